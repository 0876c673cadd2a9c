//! `wisp address`: elastic addresses.

use std::process::ExitCode;

use clap::Subcommand;

use super::output::{self, Align, Cell, Output, Tone};
use super::{launch, open_cloud, shapes, tell_notices};
use crate::ec2::tag::Tag;
use crate::store::AddressRecord;

/// Elastic addresses: public addresses that stay yours, and go from one instance to another.
///
/// A public address is an address of this host's loopback interface, 127.18.x.y; it leads to the ports that the instance's
/// security groups open.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp address allocate --name www
  wisp address associate www web               in place of the public address that it has
  wisp address associate www web-2             fail over: it is taken from the first
  wisp address disassociate www
  wisp address release www")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Allocates an address.
    Allocate {
        /// The value of its Name tag.
        #[arg(long)]
        name: Option<String>,
        /// A tag; repeat for more.
        #[arg(long = "tag", value_name = "KEY=VALUE")]
        tags: Vec<Tag>,
    },
    /// Lists the addresses.
    Ls,
    /// Gives an instance the address; one that another instance has is taken from it.
    Associate {
        /// The address, its id, the beginning of it, or its name.
        address: String,
        /// The instance: its id, the beginning of it, or its name.
        instance: String,
        /// Refuse if another instance has it.
        #[arg(long)]
        no_reassociation: bool,
    },
    /// Takes the address from the instance that has it.
    Disassociate {
        /// The address, its id, the beginning of it, or its name.
        address: String,
    },
    /// Gives the address back.
    Release {
        /// The address, its id, the beginning of it, or its name.
        address: String,
    },
}

/// Does it.
pub fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    let mut cloud = open_cloud()?;
    let (record, next) = match args.command {
        Command::Ls => {
            list(&cloud.addresses()?, output)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Allocate { name, tags } => {
            let record = cloud.allocate_address(launch::tags(tags, name.as_deref())?)?;
            let next = format!("address associate {} INSTANCE", record.public_ip);
            (record, next)
        }
        Command::Associate { address, instance, no_reassociation } => {
            let record = cloud.associate_address(&address, &instance, !no_reassociation)?;
            (record, format!("show {instance}"))
        }
        Command::Disassociate { address } => {
            let record = cloud.disassociate_address(&address)?;
            let next = format!("address release {}", record.public_ip);
            (record, next)
        }
        Command::Release { address } => {
            let record = cloud.release_address(&address)?;
            if output == Output::Table {
                output::print(&format!("{}  {}  released", record.public_ip, record.id))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
    };
    tell_notices(&mut cloud);
    match output {
        Output::Json => output::print_json(&shapes::address(&record))?,
        Output::Table => {
            let holder = record.instance().map(|instance| format!("  {instance}")).unwrap_or_default();
            output::print(&format!("{}  {}{holder}", record.public_ip, record.id))?;
            output::next(&next);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(addresses: &[AddressRecord], output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        let shapes: Vec<_> = addresses.iter().map(shapes::address).collect();
        return output::print_json(&serde_json::json!({"Addresses": shapes}));
    }
    if addresses.is_empty() {
        output::print("No elastic addresses.")?;
        output::next("address allocate");
        return Ok(());
    }
    let columns =
        [("Name", Align::Left), ("Address", Align::Left), ("Allocation", Align::Left), ("Instance", Align::Left)];
    let row = |record: &AddressRecord| {
        let holder = record.instance().map_or("-".to_string(), |instance| instance.to_string());
        vec![
            Cell::new(record.name().unwrap_or("-"), Tone::Strong),
            Cell::from(record.public_ip.to_string()),
            Cell::from(record.id.to_string()),
            Cell::from(holder),
        ]
    };
    Ok(output::print_table(&columns, addresses.iter().map(row))?)
}
