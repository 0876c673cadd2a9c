//! `wisp vpc`: manages VPCs.

use std::process::ExitCode;

use clap::Subcommand;

use super::output::{self, Align, Cell, Output, Tone};
use super::{args, launch, open_cloud, shapes};
use ec2::network::parse_range;
use ec2::tag::Tag;
use ipnet::Ipv4Net;
use store::VpcRecord;

/// Manage VPCs (isolated networks).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp vpc create --cidr 10.0.0.0/16 --name lab
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
        /// Name tag.
        #[arg(long)]
        name: Option<String>,
        /// Tag; can be repeated.
        #[arg(long = "tag", value_name = "KEY=VALUE")]
        tags: Vec<Tag>,
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
            if output == Output::Json {
                let shapes: Vec<_> = vpcs.iter().map(shapes::vpc).collect();
                output::print_json(&serde_json::json!({"Vpcs": shapes}))?;
                return Ok(ExitCode::SUCCESS);
            }
            let subnets = cloud.subnets().list()?;
            let instances = cloud.all_instances()?;
            let columns = [
                ("Name", Align::Left),
                ("VPC", Align::Left),
                ("CIDR", Align::Left),
                ("Subnets", Align::Right),
                ("Instances", Align::Right),
            ];
            let row = |vpc: &VpcRecord| {
                let name = vpc.name().unwrap_or(if vpc.is_default { "default" } else { "-" });
                let is_in = |network: &store::NetworkRecord| network.vpc_id == vpc.id;
                let instances = instances.iter().filter(|record| record.network.as_ref().is_some_and(is_in)).count();
                vec![
                    Cell::new(name, Tone::Strong),
                    Cell::from(vpc.id.to_string()),
                    Cell::from(vpc.cidr.to_string()),
                    Cell::from(subnets.iter().filter(|subnet| subnet.vpc_id == vpc.id).count().to_string()),
                    Cell::from(instances.to_string()),
                ]
            };
            output::print_table(&columns, vpcs.iter().map(row))?;
        }
        Command::Create { cidr, name, tags, .. } => {
            let vpc = match cidr {
                Some(cidr) => cloud.vpcs().create(cidr, launch::tags(tags, name.as_deref())?)?,
                None => cloud.vpcs().create_default()?,
            };
            match output {
                Output::Json => output::print_json(&serde_json::json!({"Vpc": shapes::vpc(&vpc)}))?,
                Output::Table => {
                    output::print(&vpc.id.to_string())?;
                    match vpc.is_default {
                        true => output::next("launch --name first"),
                        false => {
                            let id = vpc.id.to_string();
                            let (name, base) = (vpc.name().unwrap_or(&id), vpc.cidr.network());
                            let length = vpc.cidr.prefix_len().max(24);
                            output::next_command([
                                "subnet",
                                "create",
                                "--vpc",
                                name,
                                "--cidr",
                                &format!("{base}/{length}"),
                            ]);
                        }
                    }
                }
            }
        }
        Command::Rm { vpc } => {
            let vpc = cloud.vpcs().delete(&vpc)?;
            if output == Output::Table {
                output::print(&format!("{}  deleted", vpc.id))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
