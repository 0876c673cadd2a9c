//! `wisp snapshot`: manages snapshots of volumes.

use std::process::ExitCode;

use clap::Subcommand;

use super::output::{self, Align, Cell, Output, Tone};
use super::{args, launch, open_cloud, print_warnings, shapes};
use cloud::utc;
use store::SnapshotRecord;

/// Manage snapshots of volumes.
///
/// You can take a snapshot while the guest is writing to the volume. No data is copied.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp snapshot create data --name before
  wisp volume create --snapshot before --name copy      a volume as it was then
  wisp snapshot rm before")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a snapshot of a volume.
    ///
    /// A snapshot of a volume in use is crash-consistent.
    Create {
        #[arg(help = args::VOLUME)]
        volume: String,
        /// Name tag.
        #[arg(long)]
        name: Option<String>,
        /// Snapshot description.
        #[arg(long, default_value = "")]
        description: String,
    },
    /// List snapshots.
    Ls,
    /// Delete snapshots. Volumes created from them keep their data.
    Rm {
        /// Snapshot IDs or names.
        #[arg(required = true)]
        snapshots: Vec<String>,
    },
}

pub fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    match args.command {
        Command::Create { volume, name, description } => {
            let volume = cloud.volumes().find(&volume)?;
            let tags = launch::tags(Vec::new(), name.as_deref())?;
            let record = cloud.snapshots().create(volume.id, &description, tags)?;
            match output {
                Output::Json => output::print_json(&shapes::snapshot(&record))?,
                Output::Table => {
                    output::print(&format!("{}  {}", record.id, record.state.as_str()))?;
                    let id = record.id.to_string();
                    output::next_command(["volume", "create", "--snapshot", name.as_deref().unwrap_or(&id)]);
                }
            }
        }
        Command::Ls => {
            let snapshots = cloud.snapshots().list()?;
            if output == Output::Json {
                let shapes: Vec<_> = snapshots.iter().map(shapes::snapshot).collect();
                output::print_json(&serde_json::json!({"Snapshots": shapes}))?;
                return Ok(ExitCode::SUCCESS);
            }
            let columns = [
                ("Name", Align::Left),
                ("Snapshot", Align::Left),
                ("State", Align::Left),
                ("Size", Align::Right),
                ("Volume", Align::Left),
                ("Created", Align::Left),
                ("Description", Align::Left),
            ];
            let row = |record: &SnapshotRecord| {
                vec![
                    Cell::new(record.name().unwrap_or("-"), Tone::Strong),
                    Cell::from(record.id.to_string()),
                    Cell::from(record.state.as_str()),
                    Cell::from(output::bytes(record.size)),
                    Cell::from(record.volume_id.to_string()),
                    Cell::new(utc(record.started), Tone::Quiet),
                    Cell::from(record.description.clone()),
                ]
            };
            output::print_table(&columns, snapshots.iter().map(row))?;
        }
        Command::Rm { snapshots } => {
            for snapshot in snapshots {
                let record = cloud.snapshots().find(&snapshot)?;
                cloud.snapshots().delete(record.id)?;
                if output == Output::Table {
                    output::print(&format!("{}  deleted", record.id))?;
                }
            }
        }
    }
    print_warnings(&cloud);
    Ok(ExitCode::SUCCESS)
}
