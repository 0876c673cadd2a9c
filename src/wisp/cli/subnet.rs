//! `wisp subnet`: manages subnets of VPCs.

use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;

use super::args::TagArgs;
use super::output::{self, Cell, Output, Tone};
use super::resource::{self, Column, Resource};
use super::{args, open_cloud};
use cloud::network::SubnetSpec;
use cloud::{Cloud, shapes};
use ec2::network::{Zone, parse_range};
use ipnet::Ipv4Net;
use store::SubnetRecord;

/// Manage subnets of VPCs.
///
/// A subnet is a part of a VPC's address range, in one availability zone (which is just a label). Instances are
/// launched into subnets.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp subnet ls
  wisp subnet create --vpc lab --cidr 10.0.1.0/24 --zone us-east-1b --name front
  wisp subnet modify front --map-public-ip         give new instances public addresses
  wisp launch --subnet front --private-ip 10.0.1.10
  wisp subnet rm front")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a subnet.
    Create {
        /// VPC ID or name [default: the default VPC].
        #[arg(long)]
        vpc: Option<String>,
        /// Address range, such as 10.0.1.0/24; must be within the VPC's range.
        #[arg(long, value_name = "RANGE", value_parser = parse_range)]
        cidr: Ipv4Net,
        /// Availability zone: us-east-1a to us-east-1f.
        #[arg(long, value_name = "ZONE", default_value_t)]
        zone: Zone,
        /// Give instances a public address while they are running, unless overridden at launch.
        #[arg(long)]
        map_public_ip: bool,
        #[command(flatten)]
        tags: TagArgs,
    },
    /// List subnets.
    Ls,
    /// Change a subnet. Existing instances are not affected.
    Modify {
        #[arg(help = args::SUBNET)]
        subnet: String,
        /// Give new instances a public address.
        #[arg(long, required_unless_present = "no_map_public_ip")]
        map_public_ip: bool,
        /// Do not give new instances a public address.
        #[arg(long, conflicts_with = "map_public_ip")]
        no_map_public_ip: bool,
    },
    /// Delete an empty subnet.
    Rm {
        #[arg(help = args::SUBNET)]
        subnet: String,
    },
}

pub fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    match args.command {
        Command::Ls => {
            let subnets = cloud.subnets().list()?;
            let free = cloud.subnets().free_addresses(&subnets)?;
            let listed = |(record, free)| ListedSubnet { record, free };
            resource::list(&subnets.into_iter().zip(free).map(listed).collect::<Vec<_>>(), output)?;
        }
        Command::Rm { subnet } => {
            resource::remove(&[subnet], "deleted", output, |subnet| {
                cloud.subnets().delete(subnet).map(|record| record.meta.id)
            })?;
        }
        Command::Create { vpc, cidr, zone, map_public_ip, tags } => {
            let tags = tags.with_name()?;
            let subnet = cloud.subnets().create(&SubnetSpec { vpc, cidr, zone, map_public_ip, tags })?;
            show(&cloud, subnet, "", output)?;
        }
        Command::Modify { subnet, map_public_ip, no_map_public_ip: _ } => {
            let subnet = cloud.subnets().map_public_ip(&subnet, map_public_ip)?;
            show(&cloud, subnet, "  modified", output)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A subnet with the number of its unused addresses.
struct ListedSubnet {
    record: SubnetRecord,
    free: usize,
}

fn show(cloud: &Cloud, record: SubnetRecord, change: &str, output: Output) -> anyhow::Result<()> {
    let free = cloud.subnets().free_addresses(std::slice::from_ref(&record))?[0];
    let (id, subnet) = (record.meta.id.to_string(), ListedSubnet { record, free });
    resource::show(
        &subnet,
        &format!("{id}{change}"),
        &["launch", "--subnet", subnet.record.meta.name().unwrap_or(&id)],
        output,
    )
}

impl Resource for ListedSubnet {
    const LIST: &'static str = "Subnets";
    const COLUMNS: &'static [Column<Self>] = &[
        Column::left("Name", |subnet| Cell::new(subnet.record.meta.name().unwrap_or("-"), Tone::Strong)),
        Column::left("Subnet", |subnet| subnet.record.meta.id.to_string().into()),
        Column::left("VPC", |subnet| subnet.record.spec.vpc_id.to_string().into()),
        Column::left("CIDR", |subnet| subnet.record.spec.cidr.to_string().into()),
        Column::right("Free addresses", |subnet| subnet.free.to_string().into()),
        Column::left("Zone", |subnet| subnet.record.spec.zone.to_string().into()),
        Column::left("Public addresses", |subnet| if subnet.record.spec.map_public_ip { "yes" } else { "no" }.into()),
    ];

    fn shape(&self) -> impl Serialize {
        shapes::subnet(&self.record, self.free)
    }

    fn response(&self) -> impl Serialize {
        output::member("Subnet", self.shape())
    }
}
