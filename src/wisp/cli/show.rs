//! `wisp show`: shows an instance.

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use super::escape::escape_line;
use super::limits::LimitsShape;
use super::ls::{InstanceListing, check_cell, state_cell, status};
use super::output::{self, Output, Screen, Tone};
use super::{args, limits, open_cloud};
use cloud::shapes::GroupNames;
use cloud::{Cloud, utc};
use ec2::metadata::MetadataChange;
use ec2::network::NetworkMode;
use ec2::size::approximate_mib;
use ec2::state::InstanceState;
use machine::control::VmmStatus;
use node::guest::UserDataStatus;
use store::{InstanceRecord, VolumeRecord};

/// The timeout for optional information from the guest.
const SHORT: Duration = Duration::from_secs(5);

/// Show an instance's state, size, addresses and problems.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp show web
  wisp show i-0a1b --all        by ID prefix, with limits, sandbox, metadata options and tags
  wisp show web --output json   in the format of DescribeInstances, plus its limits")]
pub struct Args {
    #[arg(value_name = "INSTANCE", help = args::INSTANCE)]
    instance: String,

    /// Also show limits, sandbox, metadata options and tags.
    #[arg(long)]
    all: bool,
}

pub fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    let record = cloud.instances().find(&args.instance)?;
    if output == Output::Json {
        let status = status(&cloud, &record).and_then(Result::ok);
        output::print_json(&ShownInstance {
            listing: InstanceListing::new(std::slice::from_ref(&record), &cloud.security_groups().names()?),
            limits: limits::shape(&record, status.as_ref()),
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let facts = Facts {
        volumes: cloud.volumes().of(&record)?,
        groups: cloud.security_groups().names()?,
        user_data: record.spec.user_data.as_ref().filter(|_| args.all).map(|_| user_data(&cloud, &record)),
        status: status(&cloud, &record),
        console: cloud.dir(record.meta.id).console_tail().to_string(),
    };
    output::print(&render(&record, &facts, args.all, Screen::stdout()))?;
    match record.status.state {
        InstanceState::Running => output::next_command(["exec", &args.instance, "--", "uptime"]),
        InstanceState::Stopped => output::next_command(["start", &args.instance]),
        _ => output::next("ls"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The output of `--output json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ShownInstance<'a> {
    #[serde(flatten)]
    listing: InstanceListing,
    limits: LimitsShape<'a>,
}

/// Describes the state of the user data. The agent of a running guest reports it, unless cloud-init handles user data.
fn user_data(cloud: &Cloud, record: &InstanceRecord) -> String {
    if record.status.state != InstanceState::Running {
        return "set".into();
    }
    if cloud.images().open_by_id(record.spec.image_id).is_ok_and(|image| image.manifest.cloud_init) {
        return "handled by cloud-init; see `cloud-init status` in the guest".into();
    }
    let dir = cloud.dir(record.meta.id);
    let status = dir.agent(SHORT).and_then(|agent| agent.user_data(SHORT).map_err(dir.guest_error()));
    match status {
        Ok(UserDataStatus { state, exit: Some(exit) }) => format!("{}, exit code {exit}", state.as_str()),
        Ok(UserDataStatus { state, exit: None }) => state.as_str().into(),
        Err(error) => format!("unknown: {error}"),
    }
}

/// Facts that are not in the instance record.
#[derive(Default)]
struct Facts {
    volumes: Vec<VolumeRecord>,
    groups: GroupNames,
    user_data: Option<String>,
    /// The VMM's response, or `None` if the instance is not running.
    status: Option<Result<VmmStatus, node::instance::MachineError>>,
    console: String,
}

/// The output: lines with a label and a text.
struct Page {
    screen: Screen,
    lines: Vec<String>,
}

impl Page {
    fn line(&mut self, label: &str, text: &str) {
        self.lines.push(format!("{} {text}", self.screen.paint(Tone::Quiet, &format!("{label:<16}"))));
    }

    fn warn(&mut self, label: &str, text: &str) {
        self.line(label, &self.screen.paint(Tone::Warning, text));
    }
}

fn render(record: &InstanceRecord, facts: &Facts, all: bool, screen: Screen) -> String {
    let mut page = Page { screen, lines: Vec::new() };
    summary(&mut page, record, facts);
    problems(&mut page, record, facts);
    if all {
        network_details(&mut page, record);
        details(&mut page, record, facts);
    }
    page.lines.join("\n")
}

fn summary(page: &mut Page, record: &InstanceRecord, facts: &Facts) {
    let (screen, (state, tone)) = (page.screen, state_cell(record));
    page.line(
        "Instance",
        &format!("{}  {}", record.meta.id, screen.paint(Tone::Strong, record.meta.name().unwrap_or(""))),
    );
    page.line("State", &screen.paint(tone, &state));
    if let Some(reason) = &record.status.state_reason {
        page.line("State reason", &reason.message);
    }
    if facts.status.is_some() {
        let (check, tone) = check_cell(facts.status.as_ref());
        page.line("Check", &screen.paint(tone, check));
    }
    let size = format!(
        "{}, {}",
        output::count(record.spec.size.vcpus as usize, "vCPU"),
        approximate_mib(record.spec.size.memory_mib)
    );
    let overridden = if record.spec.size.overridden { " (overridden)" } else { "" };
    page.line("Type", &format!("{}: {size}{overridden}", record.spec.size.instance_type));
    page.line("Image", &format!("{} ({})", record.status.launch.image_name, record.spec.image_id));
    page.line("Launched", &utc(record.status.launch_time));
    if let Some(network) = &record.status.network {
        page.line("Private address", &network.private_ip.to_string());
        if let Some(public) = network.public_ip {
            let kind = if network.elastic_address.is_some() { " (elastic)" } else { "" };
            page.line("Public address", &format!("{public}{kind}"));
        }
        for port in &network.published {
            page.line("Published", &port.to_string());
        }
        let name = |id| facts.groups.get(id).map_or("?", String::as_str);
        let groups: Vec<&str> = network.security_groups.iter().map(name).collect();
        page.line("Security groups", &groups.join(", "));
    }
    for (index, volume) in facts.volumes.iter().enumerate() {
        let device = record.status.block_devices.iter().find(|device| device.volume_id == volume.meta.id);
        let name = device.map_or("-", |device| device.device_name.as_str());
        let deleted = device.is_some_and(|device| device.delete_on_termination);
        let end = if deleted { "deleted on termination" } else { "kept on termination" };
        let text = format!(
            "{}  {} {}, {name}, {end}",
            volume.meta.id,
            output::bytes(volume.spec.size),
            volume.spec.volume_type
        );
        page.line(if index == 0 { "Root volume" } else { "Volume" }, &text);
    }
}

fn problems(page: &mut Page, record: &InstanceRecord, facts: &Facts) {
    if let Some(Ok(status)) = &facts.status {
        status.link_problems.iter().for_each(|problem| page.warn("Network", problem));
        status.sandbox.missing.iter().for_each(|missing| page.warn("Sandbox", missing));
    }
    if record.status.state_reason.as_ref().is_some_and(|reason| reason.is_failure()) {
        page.line("Console", facts.console.trim_start_matches(['.', ';', ' ']));
    }
}

fn network_details(page: &mut Page, record: &InstanceRecord) {
    let Some(network) = &record.status.network else { return };
    let mode = match network.mode {
        _ if !record.status.state.has_machine() => "not connected while stopped",
        NetworkMode::Vpc => "connected",
        NetworkMode::User | NetworkMode::Auto => "not connected: user-mode network",
        NetworkMode::None => "not connected",
    };
    page.line("VPC", &format!("{} ({mode})", network.vpc_id));
    page.line("Subnet", &format!("{} ({})", network.subnet_id, network.zone));
    for group in &network.security_groups {
        page.line("Security group", &group.to_string());
    }
    let options = MetadataChange::from(network.metadata_options).named();
    let options: Vec<String> = options.iter().map(|(name, value)| format!("{name}={value}")).collect();
    page.line("Metadata", &options.join(", "));
}

fn details(page: &mut Page, record: &InstanceRecord, facts: &Facts) {
    let status = facts.status.as_ref().and_then(|status| status.as_ref().ok());
    for (label, text) in limits::lines(record, status) {
        page.line(label, &text);
    }
    if let Some(sandbox) = status.map(|status| &status.sandbox).filter(|sandbox| !sandbox.layers.is_empty()) {
        page.line("Sandbox", &sandbox.layers_text());
    }
    let cores = record.spec.size.vcpus / record.spec.size.threads_per_core;
    let threads = output::count(record.spec.size.threads_per_core as usize, "thread");
    page.line("CPU", &format!("{}, {threads} each", output::count(cores as usize, "core")));
    if let Some(state) = &facts.user_data {
        page.line("User data", state);
    }
    if let Some(key) = &record.spec.key_name {
        page.line("Key pair", key);
    }
    page.line("On shutdown", record.spec.shutdown_behavior.as_str());
    page.line("Hibernation", if record.spec.hibernation { "enabled" } else { "disabled" });
    page.line("Protection", if record.spec.termination_protection { "enabled" } else { "disabled" });
    for (key, value) in record.meta.tags.iter().filter(|(key, _)| *key != "Name") {
        page.line("Tag", &format!("{}={}", escape_line(key), escape_line(value)));
    }
    page.line(
        "Reservation",
        &format!("{}, launch index {}", record.status.launch.reservation_id, record.status.launch.launch_index),
    );
}
