//! `wisp subnet`: manages subnets of VPCs.

use std::process::ExitCode;

use clap::Subcommand;

use super::output::{self, Align, Cell, Output, Tone};
use super::{args, launch, open_cloud, shapes};
use cloud::network::SubnetSpec;
use ec2::network::{Zone, parse_range};
use ec2::tag::Tag;
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
        /// Name tag.
        #[arg(long)]
        name: Option<String>,
        /// Tag; can be repeated.
        #[arg(long = "tag", value_name = "KEY=VALUE")]
        tags: Vec<Tag>,
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
    let (subnet, is_new) = match args.command {
        Command::Ls => {
            let subnets = cloud.subnets().list()?;
            let free = cloud.subnets().free_addresses(&subnets)?;
            list(&subnets, &free, output)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Rm { subnet } => {
            let subnet = cloud.subnets().delete(&subnet)?;
            if output == Output::Table {
                output::print(&format!("{}  deleted", subnet.id))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        Command::Create { vpc, cidr, zone, map_public_ip, name, tags } => {
            let tags = launch::tags(tags, name.as_deref())?;
            (cloud.subnets().create(&SubnetSpec { vpc, cidr, zone, map_public_ip, tags })?, true)
        }
        Command::Modify { subnet, map_public_ip, no_map_public_ip: _ } => {
            (cloud.subnets().map_public_ip(&subnet, map_public_ip)?, false)
        }
    };
    if output == Output::Json {
        let free = cloud.subnets().free_addresses(std::slice::from_ref(&subnet))?;
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
        ("CIDR", Align::Left),
        ("Free addresses", Align::Right),
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
