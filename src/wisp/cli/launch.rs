//! `wisp launch`: launches instances.

use std::process::ExitCode;

use super::args::{ADVANCED, WaitArgs};
use super::launch_parameters::LaunchParameters;
use super::network::NetworkArgs;
use super::output::{self, Output};
use super::size::SizeArgs;
use super::wait::FirstBootProgress;
use super::{open_cloud, report, wait};
use cloud::launch::{LaunchSpec, Launched};
use cloud::launch_template::ChosenVersion;
use cloud::network::NetworkSpec;
use cloud::{Cloud, shapes};
use ec2::catalog;
use ec2::state::InstanceState;

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
  wisp launch --template web:2 --count 3          from version 2 of a launch template
  ID=$(wisp launch) && wisp exec $ID -- uname -a")]
pub struct Args {
    // `--help` shows headings in the order of their first options, so network options come first.
    #[command(flatten)]
    parameters: LaunchParameters,

    #[command(flatten)]
    network: NetworkArgs,

    #[command(flatten)]
    size: SizeArgs,

    /// Number of instances.
    #[arg(long, value_name = "N", default_value_t = 1)]
    count: u32,

    /// Launch template, with an optional version: NAME[:VERSION]. Other options override its parameters.
    #[arg(long, value_name = "TEMPLATE", help_heading = ADVANCED)]
    template: Option<String>,

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

    /// Do not enforce the instance type's CPU, disk and network limits.
    #[arg(long, help_heading = ADVANCED)]
    no_limits: bool,

    #[command(flatten)]
    wait: WaitArgs,
}

/// Combines the options with the parameters of the template, if there is one.
fn spec(cloud: &Cloud, args: Args) -> anyhow::Result<LaunchSpec> {
    let request = args.parameters.data()?;
    let chosen = args.template.map(|template| cloud.launch_templates().version(&template)).transpose()?;
    let data = match &chosen {
        Some(chosen) => chosen.version.data.clone().for_launch(request),
        None => request,
    };
    let instance_type = args.size.instance_type.clone().or_else(|| data.instance_type.clone());
    let given = SizeArgs { instance_type, ..args.size };
    let given = given.or_image_size(cloud.images().memory(data.image_id.as_deref())?);
    let mut spec = LaunchSpec::of_template(&data, given.of_type(catalog::find(DEFAULT_TYPE)?)?)?;
    spec.add_volumes(args.parameters.volumes);
    spec.tags.extend(chosen.iter().flat_map(ChosenVersion::instance_tags));
    let NetworkSpec { mode, published, .. } = args.network.spec();
    Ok(LaunchSpec {
        overridden: given.overrides(),
        overcommit: given.overcommit,
        count: args.count,
        min_count: args.count,
        client_token: args.client_token,
        dry_run: args.dry_run,
        cold: args.cold,
        cmdline: args.cmdline,
        network: NetworkSpec { mode, published, ..spec.network },
        no_limits: args.no_limits,
        first_boot_timeout: args.wait.timeout(),
        ..spec
    })
}

pub fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    node::probe::kvm_access()?;
    let cloud = open_cloud()?;
    let timeout = args.wait.timeout();
    let spec = spec(&cloud, args)?;
    let progress = FirstBootProgress::default();
    let launched = cloud.instances().launch(&spec, &|step| progress.show(step));
    progress.finish();
    let Launched { instances, machines, .. } = report(launched?);
    match output {
        Output::Json => output::print_json(&shapes::reservation(&instances, &cloud.security_groups().names()?))?,
        Output::Table => {
            output::print(&instances.iter().map(|record| format!("{}\n", record.meta.id)).collect::<String>())?;
        }
    }
    if let Some(timeout) = timeout {
        wait::until_ready(&instances, machines, timeout)?;
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
