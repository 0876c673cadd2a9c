//! `wisp snapshot`: manages snapshots of volumes.

use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;

use super::output::{self, Cell, Output, Tone};
use super::resource::{self, Column, Resource};
use super::{args, open_cloud};
use cloud::{shapes, utc};
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
            let tags = args::tags(Vec::new(), name.as_deref())?;
            let record = cloud.snapshots().create(volume.meta.id, &description, tags)?;
            let (id, state) = (record.meta.id.to_string(), record.status.state.as_str());
            resource::show(
                &record,
                &format!("{id}  {state}"),
                &["volume", "create", "--snapshot", name.as_deref().unwrap_or(&id)],
                output,
            )?;
        }
        Command::Ls => resource::list(&cloud.snapshots().list()?, output)?,
        Command::Rm { snapshots } => resource::remove(&snapshots, "deleted", output, |snapshot| {
            let id = cloud.snapshots().find(snapshot)?.meta.id;
            cloud.snapshots().delete(id).map(|_| id)
        })?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Resource for SnapshotRecord {
    const LIST: &'static str = "Snapshots";
    const COLUMNS: &'static [Column<Self>] = &[
        Column::left("Name", |snapshot| Cell::new(snapshot.meta.name().unwrap_or("-"), Tone::Strong)),
        Column::left("Snapshot", |snapshot| snapshot.meta.id.to_string().into()),
        Column::left("State", |snapshot| snapshot.status.state.as_str().into()),
        Column::right("Size", |snapshot| output::bytes(snapshot.status.size).into()),
        Column::left("Volume", |snapshot| snapshot.spec.volume_id.to_string().into()),
        Column::left("Created", |snapshot| Cell::new(utc(snapshot.meta.created), Tone::Quiet)),
        Column::left("Description", |snapshot| snapshot.spec.description.clone().into()),
    ];

    fn shape(&self) -> impl Serialize {
        shapes::snapshot(self)
    }
}
