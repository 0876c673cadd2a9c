//! `wisp ls`: lists instances.

use std::net::Ipv4Addr;
use std::process::ExitCode;

use serde::Serialize;

use super::open_cloud;
use super::output::{self, Align, Cell, Output, Screen, Table, Tone};
use cloud::Cloud;
use cloud::shapes::{self, GroupNames};
use ec2::api::instance::{InstanceCreditSpecification, Reservation};
use ec2::size::approximate_mib;
use ec2::state::{InstanceState, StateReason};
use ec2::tag::Tag;
use machine::control::VmmStatus;
use machine::timeline::Mark;
use node::instance::{MachineError, MachineHandle};
use store::InstanceRecord;

/// List instances.
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "ps",
    after_help = "\
Examples:
  wisp ls                                    all instances
  wisp ls --query 'Reservations[].Instances[].PrivateIpAddress' --output text
  wisp ls -q --state running                 IDs of running instances only"
)]
pub struct Args {
    /// Show only instances in this state; can be repeated.
    #[arg(long = "state", value_name = "STATE", value_parser = parse_state)]
    states: Vec<InstanceState>,

    /// Show only instances with this tag; can be repeated, and all tags must match.
    #[arg(long = "tag", value_name = "KEY=VALUE")]
    tags: Vec<Tag>,

    /// Print only IDs.
    #[arg(short, long)]
    quiet: bool,
}

fn parse_state(text: &str) -> Result<InstanceState, String> {
    let known = InstanceState::ALL.iter().find(|state| state.as_str() == text);
    known.copied().ok_or_else(|| {
        let names: Vec<&str> = InstanceState::ALL.iter().map(|state| state.as_str()).collect();
        format!("it must be one of {}", names.join(", "))
    })
}

pub fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    let mut instances = cloud.instances().list()?;
    instances.retain(|record| {
        (args.states.is_empty() || args.states.contains(&record.status.state))
            && args.tags.iter().all(|tag| record.meta.tags.get(tag.key()).is_some_and(|value| value == tag.value()))
    });
    if output == Output::Json {
        output::print_json(&InstanceListing::new(&instances, &cloud.security_groups().names()?))?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.quiet {
        output::print(&instances.iter().map(|record| format!("{}\n", record.meta.id)).collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    if instances.is_empty() {
        output::say("No instances.");
        output::next("launch --name first");
        return Ok(ExitCode::SUCCESS);
    }
    output::print(&render(&cloud, &instances, Screen::stdout()))?;
    suggest_next(&instances);
    Ok(ExitCode::SUCCESS)
}

/// The responses of `DescribeInstances` and `DescribeInstanceCreditSpecifications`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InstanceListing {
    reservations: Vec<Reservation>,
    instance_credit_specifications: Vec<InstanceCreditSpecification>,
}

impl InstanceListing {
    pub fn new(instances: &[InstanceRecord], groups: &GroupNames) -> Self {
        InstanceListing {
            reservations: shapes::reservations(instances, groups),
            instance_credit_specifications: shapes::credit_specifications(instances),
        }
    }
}

fn suggest_next(instances: &[InstanceRecord]) {
    // Suggest a name only if no other instance has it, apart from terminated ones.
    let is_living = |record: &&InstanceRecord| record.status.state != InstanceState::Terminated;
    let alike = |name: &str| instances.iter().filter(is_living).filter(|other| other.meta.name() == Some(name)).count();
    let called = |record: &InstanceRecord| match record.meta.name() {
        Some(name) if alike(name) == 1 => name.to_string(),
        _ => record.meta.id.to_string(),
    };
    if let Some(running) = instances.iter().find(|record| record.status.state == InstanceState::Running) {
        output::next_command(["exec", &called(running)]);
    } else if let Some(stopped) = instances.iter().find(|record| record.status.state == InstanceState::Stopped) {
        output::next_command(["start", &called(stopped)]);
    } else {
        output::next("launch");
    }
}

fn render(cloud: &Cloud, instances: &[InstanceRecord], screen: Screen) -> String {
    let columns = [
        ("Name", Align::Left),
        ("Instance", Align::Left),
        ("State", Align::Left),
        ("Check", Align::Left),
        ("Type", Align::Left),
        ("vCPUs", Align::Right),
        ("Memory", Align::Right),
        ("Image", Align::Left),
        ("Private address", Align::Left),
        ("Public address", Align::Left),
    ];
    let mut table = Table::new(screen, &columns);
    for record in instances {
        let (state, tone) = state_cell(record);
        let (check, check_tone) = check_cell(status(cloud, record).as_ref());
        table.row(vec![
            Cell::new(record.meta.name().unwrap_or("-"), Tone::Strong),
            Cell::from(record.meta.id.to_string()),
            Cell::new(state, tone),
            Cell::new(check, check_tone),
            Cell::from(format!(
                "{}{}",
                record.spec.size.instance_type,
                if record.spec.size.overridden { "*" } else { "" }
            )),
            Cell::from(record.spec.size.vcpus.to_string()),
            Cell::from(approximate_mib(record.spec.size.memory_mib)),
            Cell::from(record.status.launch.image_name.clone()),
            address(record.status.network.as_ref().map(|network| network.private_ip)),
            address(record.status.network.as_ref().and_then(|network| network.public_ip)),
        ]);
    }
    let mut lines = table.lines();
    if instances.iter().any(|record| record.spec.size.overridden) {
        lines.push(screen.paint(Tone::Quiet, "* vCPUs or memory overridden"));
    }
    lines.join("\n")
}

fn address(address: Option<Ipv4Addr>) -> Cell {
    address.map_or_else(|| Cell::new("-", Tone::Quiet), |address| Cell::from(address.to_string()))
}

/// Formats the state, with a note if the instance failed or is hibernated.
pub fn state_cell(record: &InstanceRecord) -> (String, Tone) {
    let failed = record.status.state_reason.as_ref().is_some_and(|reason| reason.is_failure());
    match record.status.state {
        state @ (InstanceState::Stopped | InstanceState::Terminated) if failed => {
            (format!("{state} (failed)"), Tone::Bad)
        }
        state @ InstanceState::Stopped
            if record.status.state_reason.as_ref().is_some_and(StateReason::is_hibernation) =>
        {
            (format!("{state} (hibernated)"), Tone::Plain)
        }
        state @ InstanceState::Running => (state.to_string(), Tone::Good),
        state @ InstanceState::Terminated => (state.to_string(), Tone::Quiet),
        state @ InstanceState::Stopped => (state.to_string(), Tone::Plain),
        state => (state.to_string(), Tone::Warning),
    }
}

/// Returns the status of the instance's VMM, or `None` if the instance is not running.
pub fn status(cloud: &Cloud, record: &InstanceRecord) -> Option<Result<VmmStatus, MachineError>> {
    (record.status.state == InstanceState::Running)
        .then(|| MachineHandle::connect(&cloud.dir(record.meta.id)).and_then(|mut client| client.status()))
}

/// Formats EC2's status check, which passes once the guest's agent is ready.
pub fn check_cell(status: Option<&Result<VmmStatus, MachineError>>) -> (&'static str, Tone) {
    match status {
        None => ("-", Tone::Quiet),
        Some(Ok(status)) if status.timeline.at(Mark::AgentReady).is_some() => ("ok", Tone::Good),
        Some(Ok(_)) => ("initializing", Tone::Warning),
        Some(Err(_)) => ("impaired", Tone::Bad),
    }
}
