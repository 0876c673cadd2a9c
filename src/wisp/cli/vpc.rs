//! `wisp vpc`: manages VPCs.

use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;

use super::args::TagArgs;
use super::output::{self, Cell, Output, Tone};
use super::resource::{self, Column, Resource};
use super::{args, open_cloud};
use cloud::{Cloud, CloudError, shapes};
use ec2::network::parse_range;
use ipnet::Ipv4Net;
use store::VpcRecord;

/// Manage VPCs (isolated networks).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp vpc create --cidr 10.0.0.0/16 --name lab
  wisp vpc create --cidr 10.1.0.0/16 --name web --gateway      with outbound connectivity
  wisp subnet create --vpc lab --cidr 10.0.1.0/24 --name front
  wisp launch --subnet front --name web
  wisp vpc ls
  wisp vpc rm lab                                  once it is empty")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a VPC. Then add subnets with `wisp subnet create`.
    Create {
        /// Address range, such as 10.0.0.0/16; the prefix length must be 16 to 28.
        #[arg(long, value_name = "RANGE", required_unless_present = "default", value_parser = parse_range)]
        cidr: Option<Ipv4Net>,
        #[command(flatten)]
        tags: TagArgs,
        /// Also create an internet gateway, and a default route to it.
        #[arg(long, conflicts_with = "default")]
        gateway: bool,
        /// Recreate the default VPC after it was deleted, with a subnet in each zone.
        #[arg(long, conflicts_with_all = ["cidr", "name", "tags"])]
        default: bool,
    },
    /// List VPCs.
    Ls,
    /// Delete an empty VPC.
    Rm {
        #[arg(help = args::VPC)]
        vpc: String,
    },
}

pub fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    match args.command {
        Command::Ls => {
            let vpcs = cloud.vpcs().list()?;
            resource::list(&with_counts(&cloud, vpcs)?, output)?;
        }
        Command::Create { cidr, tags, gateway, .. } => {
            let tags = tags.with_name()?;
            let vpc = match cidr {
                Some(cidr) if gateway => cloud.vpcs().create_with_gateway(cidr, tags)?,
                Some(cidr) => cloud.vpcs().create(cidr, tags)?,
                None => cloud.vpcs().create_default()?,
            };
            show(vpc, output)?;
        }
        Command::Rm { vpc } => {
            resource::remove(&[vpc], "deleted", output, |vpc| cloud.vpcs().delete(vpc).map(|record| record.meta.id))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(record: VpcRecord, output: Output) -> anyhow::Result<()> {
    let (base, length) = (record.spec.cidr.network(), record.spec.cidr.prefix_len().max(24));
    let (id, cidr) = (record.meta.id.to_string(), format!("{base}/{length}"));
    let vpc = ListedVpc { record, subnets: 0, instances: 0 };
    if vpc.record.status.is_default {
        return resource::show(&vpc, &id, &["launch", "--name", "first"], output);
    }
    let name = vpc.record.meta.name().unwrap_or(&id);
    resource::show(&vpc, &id, &["subnet", "create", "--vpc", name, "--cidr", &cidr], output)
}

/// A VPC with the numbers of its subnets and instances.
struct ListedVpc {
    record: VpcRecord,
    subnets: usize,
    instances: usize,
}

fn with_counts(cloud: &Cloud, vpcs: Vec<VpcRecord>) -> Result<Vec<ListedVpc>, CloudError> {
    let (subnets, instances) = (cloud.subnets().list()?, cloud.instances().list()?);
    let listed = |record: VpcRecord| {
        let is_in = |network: &store::NetworkRecord| network.vpc_id == record.meta.id;
        ListedVpc {
            subnets: subnets.iter().filter(|subnet| subnet.spec.vpc_id == record.meta.id).count(),
            instances: instances.iter().filter(|instance| instance.status.network.as_ref().is_some_and(is_in)).count(),
            record,
        }
    };
    Ok(vpcs.into_iter().map(listed).collect())
}

impl Resource for ListedVpc {
    const LIST: &'static str = "Vpcs";
    const COLUMNS: &'static [Column<Self>] = &[
        Column::left("Name", |ListedVpc { record, .. }| {
            Cell::new(
                record.meta.name().unwrap_or(if record.status.is_default { "default" } else { "-" }),
                Tone::Strong,
            )
        }),
        Column::left("VPC", |vpc| vpc.record.meta.id.to_string().into()),
        Column::left("CIDR", |vpc| vpc.record.spec.cidr.to_string().into()),
        Column::right("Subnets", |vpc| vpc.subnets.to_string().into()),
        Column::right("Instances", |vpc| vpc.instances.to_string().into()),
    ];

    fn shape(&self) -> impl Serialize {
        shapes::vpc(&self.record)
    }

    fn response(&self) -> impl Serialize {
        output::member("Vpc", self.shape())
    }
}
