//! `wisp gateway`: manages internet gateways.

use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;

use super::args::TagArgs;
use super::output::{self, Cell, Output, Tone};
use super::resource::{self, Column, Resource};
use super::{args, open_cloud, report};
use cloud::shapes;
use store::InternetGatewayRecord;

/// Manage internet gateways.
///
/// A subnet whose route table has no route to an attached gateway has no outbound connectivity, and public addresses
/// in it are unreachable. The default VPC has a gateway and a default route to it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp gateway create --name exit
  wisp gateway attach exit lab
  wisp route-table add-route rtb-0a1b 0.0.0.0/0 exit
  wisp gateway detach exit
  wisp gateway rm exit")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a gateway.
    Create {
        #[command(flatten)]
        tags: TagArgs,
    },
    /// List gateways.
    Ls,
    /// Attach a gateway to a VPC.
    Attach {
        #[arg(help = args::GATEWAY)]
        gateway: String,
        #[arg(help = args::VPC)]
        vpc: String,
    },
    /// Detach a gateway from its VPC.
    Detach {
        #[arg(help = args::GATEWAY)]
        gateway: String,
    },
    /// Delete a detached gateway.
    Rm {
        #[arg(help = args::GATEWAY)]
        gateway: String,
    },
}

pub fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    let gateways = cloud.internet_gateways();
    match args.command {
        Command::Create { tags } => {
            let record = gateways.create(tags.with_name()?)?;
            let id = record.meta.id.to_string();
            let next = ["gateway", "attach", record.meta.name().unwrap_or(&id), "VPC"];
            resource::show(&record, &id, &next, output)?;
        }
        Command::Ls => resource::list(&gateways.list()?, output)?,
        Command::Attach { gateway, vpc } => {
            let record = report(gateways.attach(&gateway, &vpc)?);
            resource::show(&record, &summary(&record), &["route-table", "ls"], output)?;
        }
        Command::Detach { gateway } => {
            let record = report(gateways.detach(&gateway, None)?);
            resource::show(&record, &summary(&record), &[], output)?;
        }
        Command::Rm { gateway } => {
            resource::remove(&[gateway], "deleted", output, |gateway| {
                cloud.internet_gateways().delete(gateway).map(|record| record.meta.id)
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn summary(record: &InternetGatewayRecord) -> String {
    match record.spec.vpc_id {
        Some(vpc) => format!("{}  attached to {vpc}", record.meta.id),
        None => format!("{}  detached", record.meta.id),
    }
}

impl Resource for InternetGatewayRecord {
    const LIST: &'static str = "InternetGateways";
    const COLUMNS: &'static [Column<Self>] = &[
        Column::left("Name", |gateway| Cell::new(gateway.meta.name().unwrap_or("-"), Tone::Strong)),
        Column::left("Internet gateway", |gateway| gateway.meta.id.to_string().into()),
        Column::left("VPC", |gateway| gateway.spec.vpc_id.map_or_else(|| "-".into(), |vpc| vpc.to_string()).into()),
    ];

    fn shape(&self) -> impl Serialize {
        shapes::internet_gateway(self)
    }

    fn response(&self) -> impl Serialize {
        output::member("InternetGateway", self.shape())
    }
}
