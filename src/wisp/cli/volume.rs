//! `wisp volume`: manages EBS volumes.

use std::process::ExitCode;

use clap::Subcommand;

use super::output::{self, Align, Cell, Output, Tone};
use super::{args, launch, open_cloud, print_warnings, shapes};
use cloud::volume::NewVolume;
use cloud::{Cloud, utc};
use ec2::block_device::DeviceName;
use ec2::tag::Tag;
use ec2::volume::{VolumeChange, VolumeSize, VolumeSpec, VolumeState, VolumeType};
use store::VolumeRecord;

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
        /// Name tag.
        #[arg(long)]
        name: Option<String>,
        /// Tag; can be repeated.
        #[arg(long = "tag", value_name = "KEY=VALUE")]
        tags: Vec<Tag>,
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
        Command::Create { size, volume_type, iops, throughput, snapshot, name, tags } => {
            let spec = VolumeSpec { size, volume_type, iops, throughput };
            let tags = launch::tags(tags, name.as_deref())?;
            let record = cloud.volumes().create(&NewVolume { spec, snapshot, tags })?;
            if let Some(note) = size.and_then(VolumeSize::extension) {
                output::say(&format!("Note: {note}"));
            }
            show(&record, output)?;
            if output == Output::Table {
                output::next_command(["volume", "attach", &called(&record), "INSTANCE"]);
            }
        }
        Command::Ls => list(&cloud, output)?,
        Command::Attach { volume, instance, device, delete_on_termination } => {
            let (volume, instance) = (cloud.volumes().find(&volume)?, cloud.instance(&instance)?);
            let record = cloud.volumes().attach(volume.id, instance.id, device, delete_on_termination)?;
            show(&record, output)?;
            if output == Output::Table {
                let name = instance.name().map_or_else(|| instance.id.to_string(), str::to_owned);
                output::next_command(["exec", &name, "--", "cat", "/proc/partitions"]);
            }
        }
        Command::Detach { volume, force } => {
            let volume = cloud.volumes().find(&volume)?;
            show(&cloud.volumes().detach(volume.id, force)?, output)?;
        }
        Command::Resize { volume, size } => {
            let volume = cloud.volumes().find(&volume)?;
            let change = VolumeChange { size: Some(size), ..VolumeChange::default() };
            show(&cloud.volumes().modify(volume.id, &change)?, output)?;
        }
        Command::Modify { volume, volume_type, iops, throughput } => {
            let volume = cloud.volumes().find(&volume)?;
            let change = VolumeChange { size: None, volume_type, iops, throughput };
            show(&cloud.volumes().modify(volume.id, &change)?, output)?;
        }
        Command::Rm { volumes } => {
            for volume in volumes {
                let record = cloud.volumes().find(&volume)?;
                cloud.volumes().delete(record.id)?;
                if output == Output::Table {
                    output::print(&format!("{}  deleted", record.id))?;
                }
            }
        }
    }
    print_warnings(&cloud);
    Ok(ExitCode::SUCCESS)
}

fn called(record: &VolumeRecord) -> String {
    record.name().map_or_else(|| record.id.to_string(), str::to_owned)
}

fn show(record: &VolumeRecord, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Json => output::print_json(&shapes::volume(record)),
        Output::Table => {
            let place = record.attachment.as_ref().map_or_else(String::new, |attachment| {
                format!(", {} on {}", attachment.device_name, attachment.instance_id)
            });
            let (size, state) = (output::bytes(record.size), record.state.as_str());
            Ok(output::print(&format!("{}  {size} {}, {state}{place}", record.id, record.volume_type))?)
        }
    }
}

fn list(cloud: &Cloud, output: Output) -> anyhow::Result<()> {
    let volumes = cloud.volumes().list()?;
    if output == Output::Json {
        let shapes: Vec<_> = volumes.iter().map(shapes::volume).collect();
        return output::print_json(&serde_json::json!({"Volumes": shapes}));
    }
    let columns = [
        ("Name", Align::Left),
        ("Volume", Align::Left),
        ("State", Align::Left),
        ("Size", Align::Right),
        ("Type", Align::Left),
        ("Attached to", Align::Left),
        ("Device", Align::Left),
        ("Created", Align::Left),
    ];
    let row = |record: &VolumeRecord| {
        let tone = if record.state == VolumeState::InUse { Tone::Good } else { Tone::Plain };
        let attachment = record.attachment.as_ref();
        vec![
            Cell::new(record.name().unwrap_or("-"), Tone::Strong),
            Cell::from(record.id.to_string()),
            Cell::new(record.state.as_str(), tone),
            Cell::from(output::bytes(record.size)),
            Cell::from(record.volume_type.clone()),
            Cell::from(attachment.map_or("-".into(), |attachment| attachment.instance_id.to_string())),
            Cell::from(attachment.map_or("-", |attachment| attachment.device_name.as_str())),
            Cell::new(utc(record.created), Tone::Quiet),
        ]
    };
    output::print_table(&columns, volumes.iter().map(row))?;
    output::next("volume create 1 --name data");
    Ok(())
}
