//! `wisp address`: manages elastic addresses.

use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;

use super::args::TagArgs;
use super::output::{self, Cell, Output, Tone};
use super::resource::{self, Column, Resource};
use super::{args, open_cloud, report};
use cloud::shapes;
use store::AddressRecord;

/// Manage elastic addresses (Elastic IPs).
///
/// An elastic address is a public address that is yours until you release it. It can move between instances. Public
/// addresses are loopback addresses of this host (127.18.x.y). Connections to one are forwarded to the instance, if
/// its security groups allow the port.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp address allocate --name www
  wisp address associate www web               replace its public address
  wisp address associate www web-2             fail over: move it to web-2
  wisp address disassociate www
  wisp address release www")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Allocate an address.
    Allocate {
        #[command(flatten)]
        tags: TagArgs,
    },
    /// List addresses.
    Ls,
    /// Associate an address with an instance, even if another instance has it.
    Associate {
        #[arg(help = args::ADDRESS)]
        address: String,
        #[arg(help = args::INSTANCE)]
        instance: String,
        /// Fail if another instance has the address.
        #[arg(long)]
        no_reassociation: bool,
    },
    /// Disassociate an address from its instance.
    Disassociate {
        #[arg(help = args::ADDRESS)]
        address: String,
    },
    /// Release an address.
    Release {
        #[arg(help = args::ADDRESS)]
        address: String,
    },
}

pub fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    match args.command {
        Command::Ls => list(&cloud.addresses().list()?, output)?,
        Command::Allocate { tags } => {
            let record = cloud.addresses().allocate(tags.with_name()?)?;
            let address = record.status.public_ip.to_string();
            resource::show(&record, &summary(&record), &["address", "associate", &address, "INSTANCE"], output)?;
        }
        Command::Associate { address, instance, no_reassociation } => {
            let record = report(cloud.addresses().associate(&address, &instance, !no_reassociation)?);
            resource::show(&record, &summary(&record), &["show", &instance], output)?;
        }
        Command::Disassociate { address } => {
            let record = report(cloud.addresses().disassociate(&address)?);
            resource::show(
                &record,
                &summary(&record),
                &["address", "release", &record.status.public_ip.to_string()],
                output,
            )?;
        }
        Command::Release { address } => resource::remove(&[address], "released", output, |address| {
            cloud.addresses().release(address).map(|record| format!("{}  {}", record.status.public_ip, record.meta.id))
        })?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(addresses: &[AddressRecord], output: Output) -> anyhow::Result<()> {
    if addresses.is_empty() && output == Output::Table {
        output::print("No elastic addresses.")?;
        output::next("address allocate");
        return Ok(());
    }
    resource::list(addresses, output)
}

fn summary(address: &AddressRecord) -> String {
    let holder = address.instance().map(|instance| format!("  {instance}")).unwrap_or_default();
    format!("{}  {}{holder}", address.status.public_ip, address.meta.id)
}

impl Resource for AddressRecord {
    const LIST: &'static str = "Addresses";
    const COLUMNS: &'static [Column<Self>] = &[
        Column::left("Name", |address| Cell::new(address.meta.name().unwrap_or("-"), Tone::Strong)),
        Column::left("Address", |address| address.status.public_ip.to_string().into()),
        Column::left("Allocation", |address| address.meta.id.to_string().into()),
        Column::left("Instance", |address| address.instance().map_or("-".into(), |id| id.to_string().into())),
    ];

    fn shape(&self) -> impl Serialize {
        shapes::address(self)
    }
}
