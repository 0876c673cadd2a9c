//! `wisp launch`: instances that outlive the command.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use super::network::{NetworkArgs, PlacementArgs};
use super::output::{self, Output};
use super::size::SizeArgs;
use super::wait::{self, Wait};
use super::{open_cloud, shapes, tell_notices, warm};
use crate::cloud::launch::{LaunchSpec, Launched};
use crate::cloud::network::NetworkSpec;
use crate::ec2::credits::CreditMode;
use crate::ec2::metadata::MetadataChange;
use crate::ec2::state::{InstanceState, ShutdownBehavior};
use crate::ec2::tag::{Tag, with_tags};
use crate::ec2::user_data::UserData;
use crate::ec2::volume::VolumeOption;
use crate::ec2::{Ec2Error, catalogue};
use crate::store::InstanceRecord;

/// The type of an instance of which none was said: the one that EC2 gives away.
pub const DEFAULT_TYPE: &str = "t2.micro";

/// Launches instances from an image, and prints their ids.
///
/// They run until they are stopped or terminated; `wisp ls` shows them. Either all of them start, or none does.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp launch --name web                          one instance, of type t2.micro
  wisp launch --count 3 --type t3.nano            three at the same time
  wisp launch --vcpus 1 --memory 128M             smaller than any type
  wisp launch --type t3.small --cpu-credits standard  slowed to its baseline when its credits are spent
  wisp launch --volume 8 --volume size=1,type=gp2  with two more volumes
  wisp launch --subnet front --private-ip 10.0.1.10
  wisp launch --name web -p 8080:80               port 8080 of this host leads to its port 80
  wisp launch --tag team=red --tag stage=test     with tags
  ID=$(wisp launch) && wisp exec $ID -- uname -a")]
pub struct Args {
    /// An image's name or id; `tiny`, which is inside the binary, if left out.
    #[arg(value_name = "IMAGE")]
    image: Option<String>,

    #[command(flatten)]
    size: SizeArgs,

    /// How many instances.
    #[arg(long, value_name = "N", default_value_t = 1)]
    count: u32,

    /// The value of their Name tag.
    #[arg(long)]
    name: Option<String>,

    /// The key pair whose public key the guest gets (see `wisp key`).
    #[arg(long, value_name = "NAME")]
    key: Option<String>,

    /// User data: a script (#!...) that runs once, at the first boot, or anything else; - for standard input.
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,

    /// A tag; repeat for more.
    #[arg(long = "tag", value_name = "KEY=VALUE")]
    tags: Vec<Tag>,

    /// A volume besides the root; repeat for more. SIZE, or KEY=VALUE with commas between them: size, type, iops,
    /// throughput, device, snapshot, volume, delete-on-termination, name.
    #[arg(long = "volume", value_name = "SPEC")]
    volumes: Vec<VolumeOption>,

    /// What the guest's own power-off does to the instance: stop or terminate.
    #[arg(long, value_name = "BEHAVIOR", default_value = "stop")]
    shutdown_behavior: ShutdownBehavior,

    /// Refuse `wisp terminate` until the protection is taken off.
    #[arg(long)]
    termination_protection: bool,

    /// Have it able to hibernate: `wisp stop --hibernate` keeps its memory, and `wisp start` goes on with it.
    #[arg(long)]
    hibernation: bool,

    /// Launch once, however often this command is repeated with this token.
    #[arg(long, value_name = "TOKEN")]
    client_token: Option<String>,

    /// Boot, where a warm snapshot of the image would do (see `wisp image warm`).
    #[arg(long)]
    cold: bool,

    /// Check everything, launch nothing.
    #[arg(long)]
    dry_run: bool,

    /// Options for the kernel command line, behind the image's.
    #[arg(long, value_name = "OPTIONS")]
    cmdline: Option<String>,

    /// What happens when its CPU credits are spent: standard (its baseline) or unlimited (it goes on). T2 is standard, T3 and
    /// T3a are unlimited, unless said; other types have no credits, and all of their vCPUs.
    #[arg(long, value_name = "MODE")]
    cpu_credits: Option<CreditMode>,

    /// Let it have all that this host has: not the CPU credits, disk and network speeds of its type.
    #[arg(long)]
    no_limits: bool,

    #[command(flatten)]
    network: NetworkArgs,

    #[command(flatten)]
    placement: PlacementArgs,

    /// A security group that it is in (see `wisp sg`); repeat for more. The default one, if none is said.
    #[arg(long = "security-group", value_name = "GROUP")]
    security_groups: Vec<String>,

    /// How its metadata can be asked for: HttpTokens=required|optional, HttpEndpoint=enabled|disabled,
    /// HttpPutResponseHopLimit=1-64, InstanceMetadataTags=enabled|disabled, with commas between them.
    #[arg(long, value_name = "OPTIONS")]
    metadata_options: Option<MetadataChange>,

    /// What to wait for: none (the machines run), running (the same), or ready (the guests' agents answer).
    #[arg(long, value_enum, default_value_t = Wait::Ready)]
    wait: Wait,

    /// How long the guests may take to be ready, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: Option<u64>,
}

/// Those, and the name as one more.
pub fn tags(tags: Vec<Tag>, name: Option<&str>) -> Result<BTreeMap<String, String>, Ec2Error> {
    let name = name.map(|name| Tag::new("Name", name)).transpose()?;
    with_tags(&BTreeMap::new(), tags.into_iter().chain(name))
}

/// Reads the user data in a file, raw or in base64, and returns it as EC2's API takes it: in base64. An empty file has none.
pub fn read_user_data(path: &std::path::Path) -> anyhow::Result<Option<String>> {
    let data = UserData::read(&super::key::read(path)?).map_err(Ec2Error::from)?;
    Ok(Some(data).filter(|data| !data.is_empty()).map(|data| data.to_base64()))
}

/// Launches them.
pub fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    crate::host::probe::kvm_access()?;
    let mut cloud = open_cloud()?;
    let given = args.size.or_memorys(cloud.image_memory(args.image.as_deref())?);
    let size = given.of_type(catalogue::find(DEFAULT_TYPE)?)?;
    let tags = tags(args.tags, args.name.as_deref())?;
    let spec = LaunchSpec {
        image: args.image,
        size,
        overridden: given.overrides(),
        overcommit: given.overcommit,
        count: args.count,
        key_name: args.key,
        user_data: args.user_data.as_deref().map(read_user_data).transpose()?.flatten(),
        tags,
        shutdown_behavior: args.shutdown_behavior,
        termination_protection: args.termination_protection,
        cold: args.cold,
        hibernation: args.hibernation,
        client_token: args.client_token,
        dry_run: args.dry_run,
        cmdline: args.cmdline,
        volumes: args.volumes,
        network: NetworkSpec {
            metadata: args.metadata_options,
            security_groups: args.security_groups,
            ..args.placement.placed(args.network.spec())
        },
        cpu_credits: args.cpu_credits,
        no_limits: args.no_limits,
    };
    let Launched { instances, monitors, wants_warm } = cloud.launch(&spec)?;
    tell_notices(&mut cloud);
    let all: Vec<&InstanceRecord> = instances.iter().collect();
    match output {
        Output::Json => output::print_json(&shapes::reservation(&all, &cloud.group_names()?))?,
        Output::Table => {
            output::print(&instances.iter().map(|record| format!("{}\n", record.id)).collect::<String>())?;
        }
    }
    if args.wait == Wait::Ready {
        wait::until_ready(&instances, monitors, wait::boot_timeout(args.timeout))?;
    }
    if wants_warm {
        warm::prepare_in_background(Some(&instances[0].image_id.to_string()), &spec.size);
    }
    if output == Output::Table {
        match instances.as_slice() {
            [only] if only.state == InstanceState::Stopped => output::next_command(["start", &only.id.to_string()]),
            [only] => {
                let id = only.id.to_string();
                output::next_command(["exec", only.name().unwrap_or(&id), "--", "uname", "-a"]);
            }
            _ => output::next("ls"),
        }
    }
    Ok(ExitCode::SUCCESS)
}
