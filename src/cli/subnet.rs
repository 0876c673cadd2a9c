//! `wisp subnet`: subnets of VPCs.

use std::process::ExitCode;

use clap::Subcommand;

use super::output::{self, Align, Cell, Output, Tone};
use super::{launch, open_cloud, shapes};
use crate::cloud::network::SubnetSpec;
use crate::ec2::network::{Ipv4Range, Zone};
use crate::ec2::tag::Tag;
use crate::store::SubnetRecord;

/// Subnets: parts of a VPC, each in one availability zone (a label here), that instances are launched into.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp subnet ls
  wisp subnet create --vpc lab --cidr 10.0.1.0/24 --zone us-east-1b --name front
  wisp subnet modify front --map-public-ip true    instances in it get public addresses
  wisp launch --subnet front --private-ip 10.0.1.10
  wisp subnet rm front")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes a subnet.
    Create {
        /// The VPC: its id, the beginning of it, or its name; the default one if left out.
        #[arg(long)]
        vpc: Option<String>,
        /// Its addresses, within its VPC's: 10.0.1.0/24.
        #[arg(long, value_name = "RANGE")]
        cidr: Ipv4Range,
        /// Its availability zone: us-east-1a to us-east-1f.
        #[arg(long, value_name = "ZONE", default_value_t)]
        zone: Zone,
        /// Give instances in it public addresses while they run, if nothing else is said when they are launched.
        #[arg(long)]
        map_public_ip: bool,
        /// The value of its Name tag.
        #[arg(long)]
        name: Option<String>,
        /// A tag; repeat for more.
        #[arg(long = "tag", value_name = "KEY=VALUE")]
        tags: Vec<Tag>,
    },
    /// Lists the subnets.
    Ls,
    /// Changes what is done with instances that are launched into it from now on.
    Modify {
        /// The subnet: its id, the beginning of it, or its name.
        subnet: String,
        /// Whether they have public addresses while they run, if nothing else is said: true or false.
        #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
        map_public_ip: bool,
    },
    /// Deletes a subnet that no instance is in.
    Rm {
        /// The subnet: its id, the beginning of it, or its name.
        subnet: String,
    },
}

/// Does it.
pub fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    let mut cloud = open_cloud()?;
    let (subnet, is_new) = match args.command {
        Command::Ls => {
            let subnets = cloud.subnets()?;
            let free = cloud.free_addresses(&subnets)?;
            list(&subnets, &free, output)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Rm { subnet } => {
            let subnet = cloud.delete_subnet(&subnet)?;
            if output == Output::Table {
                output::print(&format!("{}  deleted", subnet.id))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        Command::Create { vpc, cidr, zone, map_public_ip, name, tags } => {
            let tags = launch::tags(tags, name.as_deref())?;
            (cloud.create_subnet(&SubnetSpec { vpc, cidr, zone, map_public_ip, tags })?, true)
        }
        Command::Modify { subnet, map_public_ip } => (cloud.map_public_ip(&subnet, map_public_ip)?, false),
    };
    if output == Output::Json {
        let free = cloud.free_addresses(std::slice::from_ref(&subnet))?;
        output::print_json(&serde_json::json!({"Subnet": shapes::subnet(&subnet, free[0])}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let id = subnet.id.to_string();
    output::print(&if is_new { id.clone() } else { format!("{id}  modified") })?;
    output::next_command(["launch", "--subnet", subnet.name().unwrap_or(&id)]);
    Ok(ExitCode::SUCCESS)
}

fn list(subnets: &[SubnetRecord], free: &[usize], output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        let shapes: Vec<_> = subnets.iter().zip(free).map(|(subnet, free)| shapes::subnet(subnet, *free)).collect();
        return output::print_json(&serde_json::json!({"Subnets": shapes}));
    }
    let columns = [
        ("Name", Align::Left),
        ("Subnet", Align::Left),
        ("VPC", Align::Left),
        ("Addresses", Align::Left),
        ("Free", Align::Right),
        ("Zone", Align::Left),
        ("Public addresses", Align::Left),
    ];
    let row = |(subnet, free): (&SubnetRecord, &usize)| {
        vec![
            Cell::new(subnet.name().unwrap_or("-"), Tone::Strong),
            Cell::from(subnet.id.to_string()),
            Cell::from(subnet.vpc_id.to_string()),
            Cell::from(subnet.cidr.to_string()),
            Cell::from(free.to_string()),
            Cell::from(subnet.zone.to_string()),
            Cell::from(if subnet.map_public_ip { "yes" } else { "no" }),
        ]
    };
    Ok(output::print_table(&columns, subnets.iter().zip(free).map(row))?)
}
