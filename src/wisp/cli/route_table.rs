//! `wisp route-table`: manages route tables.

use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;

use super::args::TagArgs;
use super::output::{self, Cell, Output, Tone};
use super::resource::{self, Column, Resource};
use super::{args, open_cloud, report};
use cloud::{Cloud, shapes};
use ec2::network::parse_range;
use ipnet::Ipv4Net;
use store::{InternetGatewayRecord, RouteTableRecord};

/// Manage route tables.
///
/// A subnet uses the route table with which it is associated, else the main one of its VPC. Every table has a local
/// route for traffic within the VPC.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp route-table ls
  wisp route-table create --vpc lab --name public
  wisp route-table add-route public 0.0.0.0/0 exit        through the internet gateway exit
  wisp route-table associate public front                 for the subnet front
  wisp route-table remove-route public 0.0.0.0/0          no outbound connectivity
  wisp route-table disassociate front
  wisp route-table rm public")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a table that has only the local route.
    Create {
        /// VPC ID or name [default: the default VPC].
        #[arg(long)]
        vpc: Option<String>,
        #[command(flatten)]
        tags: TagArgs,
    },
    /// List route tables with their routes.
    Ls,
    /// Add a route through an internet gateway.
    AddRoute(RouteArgs),
    /// Replace the gateway of a route.
    ReplaceRoute(RouteArgs),
    /// Remove a route.
    RemoveRoute {
        #[arg(help = args::ROUTE_TABLE)]
        table: String,
        /// Destination of the route.
        #[arg(value_parser = parse_range)]
        destination: Ipv4Net,
    },
    /// Associate a subnet with a table.
    Associate {
        #[arg(help = args::ROUTE_TABLE)]
        table: String,
        #[arg(help = args::SUBNET)]
        subnet: String,
    },
    /// Disassociate a subnet. It then uses the main table.
    Disassociate {
        #[arg(help = args::SUBNET)]
        subnet: String,
    },
    /// Make a table the main one of its VPC.
    SetMain {
        #[arg(help = args::ROUTE_TABLE)]
        table: String,
    },
    /// Delete a table without associations.
    Rm {
        #[arg(help = args::ROUTE_TABLE)]
        table: String,
    },
}

/// A route.
#[derive(Debug, Clone, clap::Args)]
struct RouteArgs {
    #[arg(help = args::ROUTE_TABLE)]
    table: String,
    /// Destination, such as 0.0.0.0/0.
    #[arg(value_parser = parse_range)]
    destination: Ipv4Net,
    #[arg(help = args::GATEWAY)]
    gateway: String,
}

pub fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    let tables = cloud.route_tables();
    let changed = match args.command {
        Command::Create { vpc, tags } => {
            let record = tables.create(vpc.as_deref(), tags.with_name()?, None)?;
            let id = record.meta.id.to_string();
            let name = record.meta.name().unwrap_or(&id).to_string();
            let next = ["route-table", "add-route", &name, "0.0.0.0/0", "GATEWAY"];
            return show(&cloud, record, &id, &next, output);
        }
        Command::Ls => {
            resource::list(&listed(&cloud, tables.list()?)?, output)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Rm { table } => {
            let remove = |table: &str| cloud.route_tables().delete(table).map(|record| record.meta.id);
            resource::remove(&[table], "deleted", output, remove)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::AddRoute(RouteArgs { table, destination, gateway }) => {
            report(tables.create_route(&table, destination, &gateway)?)
        }
        Command::ReplaceRoute(RouteArgs { table, destination, gateway }) => {
            report(tables.replace_route(&table, destination, &gateway)?)
        }
        Command::RemoveRoute { table, destination } => report(tables.delete_route(&table, destination)?),
        Command::Associate { table, subnet } => {
            report(tables.associate(&table, &subnet)?);
            tables.find(&table)?
        }
        Command::Disassociate { subnet } => {
            report(tables.disassociate(tables.association_of(&subnet)?)?);
            tables.of_subnet(&subnet)?
        }
        Command::SetMain { table } => report(tables.set_main(&table)?),
    };
    let id = changed.meta.id.to_string();
    let summary = format!("{id}  {}; {}", routes(&changed), associations(&changed));
    show(&cloud, changed, &summary, &[], output)
}

fn show(
    cloud: &Cloud,
    record: RouteTableRecord,
    summary: &str,
    next: &[&str],
    output: Output,
) -> anyhow::Result<ExitCode> {
    for table in listed(cloud, vec![record])? {
        resource::show(&table, summary, next, output)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A route table with the range of its VPC, and all gateways.
struct ListedTable {
    record: RouteTableRecord,
    range: Ipv4Net,
    gateways: Vec<InternetGatewayRecord>,
}

fn listed(cloud: &Cloud, tables: Vec<RouteTableRecord>) -> anyhow::Result<Vec<ListedTable>> {
    let (vpcs, gateways) = (cloud.vpcs().list()?, cloud.internet_gateways().list()?);
    let listed = |record: RouteTableRecord| {
        let vpc = vpcs.iter().find(|vpc| vpc.meta.id == record.spec.vpc_id)?;
        Some(ListedTable { record, range: vpc.spec.cidr, gateways: gateways.clone() })
    };
    Ok(tables.into_iter().filter_map(listed).collect())
}

fn routes(record: &RouteTableRecord) -> String {
    let route = |route: &store::Route| format!("{} → {}", route.destination, route.gateway_id);
    let routes: Vec<String> = record.spec.routes.iter().map(route).collect();
    if routes.is_empty() { "local".into() } else { routes.join(", ") }
}

fn associations(record: &RouteTableRecord) -> String {
    let name = |association: &store::RouteTableAssociation| match association.subnet_id {
        Some(subnet) => subnet.to_string(),
        None => "main".into(),
    };
    let names: Vec<String> = record.spec.associations.iter().map(name).collect();
    if names.is_empty() { "-".into() } else { names.join(", ") }
}

impl Resource for ListedTable {
    const LIST: &'static str = "RouteTables";
    const COLUMNS: &'static [Column<Self>] = &[
        Column::left("Name", |table| Cell::new(table.record.meta.name().unwrap_or("-"), Tone::Strong)),
        Column::left("Route table", |table| table.record.meta.id.to_string().into()),
        Column::left("VPC", |table| table.record.spec.vpc_id.to_string().into()),
        Column::left("Routes", |table| routes(&table.record).into()),
        Column::left("Associations", |table| associations(&table.record).into()),
    ];

    fn shape(&self) -> impl Serialize {
        shapes::route_table(&self.record, self.range, &self.gateways)
    }

    fn response(&self) -> impl Serialize {
        output::member("RouteTable", self.shape())
    }
}
