//! `wisp address`: manages elastic addresses.

use std::process::ExitCode;

use clap::Subcommand;

use super::output::{self, Align, Cell, Output, Tone};
use super::{args, launch, open_cloud, print_warnings, shapes};
use ec2::tag::Tag;
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
        /// Name tag.
        #[arg(long)]
        name: Option<String>,
        /// Tag; can be repeated.
        #[arg(long = "tag", value_name = "KEY=VALUE")]
        tags: Vec<Tag>,
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
    let (record, next) = match args.command {
        Command::Ls => {
            list(&cloud.addresses().list()?, output)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Allocate { name, tags } => {
            let record = cloud.addresses().allocate(launch::tags(tags, name.as_deref())?)?;
            let next = format!("address associate {} INSTANCE", record.public_ip);
            (record, next)
        }
        Command::Associate { address, instance, no_reassociation } => {
            let record = cloud.addresses().associate(&address, &instance, !no_reassociation)?;
            (record, format!("show {instance}"))
        }
        Command::Disassociate { address } => {
            let record = cloud.addresses().disassociate(&address)?;
            let next = format!("address release {}", record.public_ip);
            (record, next)
        }
        Command::Release { address } => {
            let record = cloud.addresses().release(&address)?;
            if output == Output::Table {
                output::print(&format!("{}  {}  released", record.public_ip, record.id))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
    };
    print_warnings(&cloud);
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
