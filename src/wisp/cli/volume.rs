//! `wisp volume`: manages EBS volumes.

use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;

use super::args::TagArgs;
use super::output::{self, Cell, Output, Tone};
use super::resource::{self, Column, Resource};
use super::{args, open_cloud};
use cloud::volume::NewVolume;
use cloud::{Cloud, shapes, utc};
use ec2::block_device::DeviceName;
use ec2::volume::{VolumeChange, VolumeSize, VolumeSpec, VolumeState, VolumeType};
use store::{AttachmentRecord, VolumeRecord};

/// Manage EBS volumes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp volume create 1 --name data              a gp3 volume of 1 GiB
  wisp volume attach data web                   to a running or stopped instance
  wisp volume resize data 2                     grow it to 2 GiB
  wisp volume detach data")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a volume.
    Create {
        /// Size in GiB, or with a unit (512M) [default: the snapshot's size].
        #[arg(value_name = "SIZE")]
        size: Option<VolumeSize>,
        /// Volume type: gp2, gp3, io1, io2, st1, sc1 or standard.
        #[arg(long = "type", value_name = "TYPE", default_value = "gp3")]
        volume_type: VolumeType,
        /// IOPS (io1, io2 and gp3 only).
        #[arg(long)]
        iops: Option<u32>,
        /// Throughput in MiB/s (gp3 only).
        #[arg(long)]
        throughput: Option<u32>,
        /// Create the volume from this snapshot, without copying data.
        #[arg(long, value_name = "SNAPSHOT")]
        snapshot: Option<String>,
        #[command(flatten)]
        tags: TagArgs,
    },
    /// List volumes.
    Ls,
    /// Attach a volume to an instance.
    Attach {
        #[arg(help = args::VOLUME)]
        volume: String,
        #[arg(help = args::INSTANCE)]
        instance: String,
        /// EC2 device name [default: the next free name].
        #[arg(long)]
        device: Option<DeviceName>,
        /// Delete the volume when the instance is terminated.
        #[arg(long)]
        delete_on_termination: bool,
    },
    /// Detach a volume from its instance. Unmount it first.
    Detach {
        #[arg(help = args::VOLUME)]
        volume: String,
        /// Detach even if the guest is using the volume.
        #[arg(long)]
        force: bool,
    },
    /// Grow a volume, even while a guest is using it.
    Resize {
        #[arg(help = args::VOLUME)]
        volume: String,
        /// New size in GiB, or with a unit (512M).
        size: VolumeSize,
    },
    /// Change a volume's type, IOPS or throughput.
    Modify {
        #[arg(help = args::VOLUME)]
        volume: String,
        /// New type.
        #[arg(long = "type", value_name = "TYPE")]
        volume_type: Option<VolumeType>,
        /// New IOPS (io1, io2 and gp3 only).
        #[arg(long)]
        iops: Option<u32>,
        /// New throughput in MiB/s (gp3 only).
        #[arg(long)]
        throughput: Option<u32>,
    },
    /// Delete volumes that are not attached.
    Rm {
        /// Volume IDs or names.
        #[arg(required = true)]
        volumes: Vec<String>,
    },
}

pub fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    match args.command {
        Command::Create { size, volume_type, iops, throughput, snapshot, tags } => {
            let spec = VolumeSpec { size, volume_type, iops, throughput };
            let tags = tags.with_name()?;
            let record = cloud.volumes().create(&NewVolume { spec, snapshot, tags, ..NewVolume::default() })?;
            if let Some(note) = size.and_then(VolumeSize::extension) {
                output::say(&format!("Note: {note}"));
            }
            let id = record.meta.id.to_string();
            resource::show(
                &record,
                &summary(&record),
                &["volume", "attach", record.meta.name().unwrap_or(&id), "INSTANCE"],
                output,
            )?;
        }
        Command::Ls => {
            resource::list(&cloud.volumes().list()?, output)?;
            if output == Output::Table {
                output::next("volume create 1 --name data");
            }
        }
        Command::Attach { volume, instance, device, delete_on_termination } => {
            let (volume, instance) = (cloud.volumes().find(&volume)?, cloud.instances().find(&instance)?);
            let record = cloud.volumes().attach(volume.meta.id, instance.meta.id, device, delete_on_termination)?;
            let id = instance.meta.id.to_string();
            let next = ["exec", instance.meta.name().unwrap_or(&id), "--", "cat", "/proc/partitions"];
            resource::show(&record, &summary(&record), &next, output)?;
        }
        Command::Detach { volume, force } => {
            let volume = cloud.volumes().find(&volume)?;
            let record = cloud.volumes().detach(volume.meta.id, force)?;
            resource::show(&record, &summary(&record), &[], output)?;
        }
        Command::Resize { volume, size } => {
            modify(&cloud, &volume, VolumeChange { size: Some(size), ..VolumeChange::default() }, output)?;
        }
        Command::Modify { volume, volume_type, iops, throughput } => {
            modify(&cloud, &volume, VolumeChange { size: None, volume_type, iops, throughput }, output)?;
        }
        Command::Rm { volumes } => resource::remove(&volumes, "deleted", output, |volume| {
            let id = cloud.volumes().find(volume)?.meta.id;
            cloud.volumes().delete(id).map(|_| id)
        })?,
    }
    Ok(ExitCode::SUCCESS)
}

fn modify(cloud: &Cloud, volume: &str, change: VolumeChange, output: Output) -> anyhow::Result<()> {
    let volume = cloud.volumes().find(volume)?;
    let record = cloud.volumes().modify(volume.meta.id, &change)?;
    resource::show(&record, &summary(&record), &[], output)
}

fn attachment_cell(volume: &VolumeRecord, text: impl FnOnce(&AttachmentRecord) -> String) -> Cell {
    volume.status.attachment.as_ref().map_or("-".into(), |attachment| text(attachment).into())
}

fn summary(volume: &VolumeRecord) -> String {
    let place =
        volume.status.attachment.as_ref().map_or_else(String::new, |attachment| {
            format!(", {} on {}", attachment.device_name, attachment.instance_id)
        });
    let (size, state) = (output::bytes(volume.spec.size), volume.status.state.as_str());
    format!("{}  {size} {}, {state}{place}", volume.meta.id, volume.spec.volume_type)
}

impl Resource for VolumeRecord {
    const LIST: &'static str = "Volumes";
    const COLUMNS: &'static [Column<Self>] = &[
        Column::left("Name", |volume| Cell::new(volume.meta.name().unwrap_or("-"), Tone::Strong)),
        Column::left("Volume", |volume| volume.meta.id.to_string().into()),
        Column::left("State", |volume| {
            let tone = if volume.status.state == VolumeState::InUse { Tone::Good } else { Tone::Plain };
            Cell::new(volume.status.state.as_str(), tone)
        }),
        Column::right("Size", |volume| output::bytes(volume.spec.size).into()),
        Column::left("Type", |volume| volume.spec.volume_type.clone().into()),
        Column::left("Attached to", |volume| attachment_cell(volume, |attachment| attachment.instance_id.to_string())),
        Column::left("Device", |volume| attachment_cell(volume, |attachment| attachment.device_name.clone())),
        Column::left("Created", |volume| Cell::new(utc(volume.meta.created), Tone::Quiet)),
    ];

    fn shape(&self) -> impl Serialize {
        shapes::volume(self)
    }
}
