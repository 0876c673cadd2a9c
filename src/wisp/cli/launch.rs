//! `wisp launch`: launches instances.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use super::args::{ADVANCED, MetadataArgs, NETWORK, STORAGE, WaitArgs};
use super::network::{NetworkArgs, PlacementArgs};
use super::output::{self, Output};
use super::size::SizeArgs;
use super::{open_cloud, report, template, wait};
use cloud::launch::{LaunchSpec, Launched};
use cloud::network::NetworkSpec;
use cloud::shapes;
use ec2::credits::CreditMode;
use ec2::state::{InstanceState, ShutdownBehavior};
use ec2::tag::{Tag, with_tags};
use ec2::user_data::UserData;
use ec2::volume::VolumeOption;
use ec2::{Ec2Error, catalog};

/// The default instance type. Accounts that were created before July 15, 2025 have it in EC2's free tier.
pub const DEFAULT_TYPE: &str = "t2.micro";

/// Launch instances from an image and print their IDs.
///
/// Instances run until they are stopped or terminated, or power off. Either all of the requested instances start, or
/// none do.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp launch --name web                          one t2.micro instance
  wisp launch --count 3 --type t3.nano            three instances
  wisp launch --vcpus 1 --memory 128M             smaller than any instance type
  wisp launch --type t3.small --cpu-credits standard
  wisp launch --volume 8 --volume size=1,type=gp2  with two additional volumes
  wisp launch --subnet front --private-ip 10.0.1.10
  wisp launch --name web -p 8080:80               forward port 8080 of this host to its port 80
  wisp launch --tag team=red --tag stage=test     with two tags
  ID=$(wisp launch) && wisp exec $ID -- uname -a")]
pub struct Args {
    /// Image name or ID [default: tiny, the embedded image].
    #[arg(value_name = "IMAGE")]
    image: Option<String>,

    // `--help` shows headings in the order of their first options, so network options come first.
    #[command(flatten)]
    network: NetworkArgs,

    #[command(flatten)]
    placement: PlacementArgs,

    /// Security group (see `wisp sg`); can be repeated [default: the VPC's default group].
    #[arg(long = "security-group", value_name = "GROUP", help_heading = NETWORK)]
    security_groups: Vec<String>,

    #[command(flatten)]
    metadata: MetadataArgs,

    /// Add a volume; can be repeated.
    ///
    /// SIZE, or comma-separated KEY=VALUE pairs. The keys are size, type, iops, throughput, device, snapshot, volume,
    /// delete-on-termination and name.
    #[arg(long = "volume", value_name = "SPEC", help_heading = STORAGE)]
    volumes: Vec<VolumeOption>,

    #[command(flatten)]
    size: SizeArgs,

    /// Number of instances.
    #[arg(long, value_name = "N", default_value_t = 1)]
    count: u32,

    /// Name tag.
    #[arg(long)]
    name: Option<String>,

    /// Key pair to install in the guest (see `wisp key`).
    #[arg(long, value_name = "NAME")]
    key: Option<String>,

    /// User data file, or - for standard input. A script (#!...) runs once, at the first boot.
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,

    /// Tag; can be repeated.
    #[arg(long = "tag", value_name = "KEY=VALUE")]
    tags: Vec<Tag>,

    /// Action when the guest powers off: stop or terminate.
    #[arg(long, value_name = "BEHAVIOR", default_value = "stop", help_heading = ADVANCED)]
    shutdown_behavior: ShutdownBehavior,

    /// Enable termination protection.
    #[arg(long, help_heading = ADVANCED)]
    termination_protection: bool,

    /// Enable hibernation (`wisp stop --hibernate`).
    #[arg(long, help_heading = ADVANCED)]
    hibernation: bool,

    /// Idempotency token: a repeated launch with the same token creates no new instances.
    #[arg(long, value_name = "TOKEN", help_heading = ADVANCED)]
    client_token: Option<String>,

    /// Always cold-boot, even if a template exists (see `wisp image warm`).
    #[arg(long, help_heading = ADVANCED)]
    cold: bool,

    /// Check the request without launching instances. For a valid request, fail with DryRunOperation, as in EC2.
    #[arg(long, help_heading = ADVANCED)]
    dry_run: bool,

    /// Append these options to the image's kernel command line.
    #[arg(long, value_name = "OPTIONS", help_heading = ADVANCED)]
    cmdline: Option<String>,

    /// CPU credit mode: standard or unlimited.
    ///
    /// When an instance runs out of credits, it is throttled to its baseline (standard) or uses surplus credits
    /// (unlimited). The default is standard for T2, and unlimited for T3 and T3a. Other types have no CPU credits.
    #[arg(long, value_name = "MODE", help_heading = ADVANCED)]
    cpu_credits: Option<CreditMode>,

    /// Do not enforce the instance type's CPU, disk and network limits.
    #[arg(long, help_heading = ADVANCED)]
    no_limits: bool,

    #[command(flatten)]
    wait: WaitArgs,
}

/// Returns the tags, with a Name tag if a name is given.
pub fn tags(tags: Vec<Tag>, name: Option<&str>) -> Result<BTreeMap<String, String>, Ec2Error> {
    let name = name.map(|name| Tag::new("Name", name)).transpose()?;
    with_tags(&BTreeMap::new(), tags.into_iter().chain(name))
}

/// Reads a user data file, raw or base64-encoded, and returns it in base64, as EC2's API expects it. Returns `None` for
/// an empty file.
pub fn read_user_data(path: &std::path::Path) -> anyhow::Result<Option<String>> {
    let data = UserData::read(&super::key::read(path)?)?;
    Ok(Some(data).filter(|data| !data.is_empty()).map(|data| data.to_base64()))
}

pub fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    node::probe::kvm_access()?;
    let cloud = open_cloud()?;
    let given = args.size.or_image_size(cloud.images().memory(args.image.as_deref())?);
    let size = given.of_type(catalog::find(DEFAULT_TYPE)?)?;
    let tags = tags(args.tags, args.name.as_deref())?;
    let spec = LaunchSpec {
        image: args.image,
        size,
        overridden: given.overrides(),
        overcommit: given.overcommit,
        count: args.count,
        min_count: args.count,
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
        volume_tags: BTreeMap::new(),
        network: NetworkSpec {
            metadata: args.metadata.change(),
            security_groups: args.security_groups,
            ..args.placement.placed(args.network.spec())
        },
        cpu_credits: args.cpu_credits,
        no_limits: args.no_limits,
    };
    let Launched { instances, machines, wants_warm } = report(cloud.instances().launch(&spec)?);
    match output {
        Output::Json => output::print_json(&shapes::reservation(&instances, &cloud.security_groups().names()?))?,
        Output::Table => {
            output::print(&instances.iter().map(|record| format!("{}\n", record.meta.id)).collect::<String>())?;
        }
    }
    if let Some(timeout) = args.wait.timeout() {
        wait::until_ready(&instances, machines, timeout)?;
    }
    if wants_warm {
        template::prepare_in_background(Some(&instances[0].spec.image_id.to_string()), &spec.size);
    }
    if output == Output::Table {
        match instances.as_slice() {
            [only] if only.status.state == InstanceState::Stopped => {
                output::next_command(["start", &only.meta.id.to_string()])
            }
            [only] => {
                let id = only.meta.id.to_string();
                output::next_command(["exec", only.meta.name().unwrap_or(&id), "--", "uname", "-a"]);
            }
            _ => output::next("ls"),
        }
    }
    Ok(ExitCode::SUCCESS)
}
