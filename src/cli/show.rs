//! `wisp show`: shows an instance.

use std::process::ExitCode;
use std::time::Duration;

use super::escape::escape_line;
use super::ls::{check_cell, state_cell, status};
use super::output::{self, Output, Screen, Tone};
use super::shapes::{self, GroupNames};
use super::{limits, open_cloud};
use crate::cloud::{Cloud, CloudError, utc};
use crate::ec2::network::NetworkMode;
use crate::ec2::size::approximate_mib;
use crate::ec2::state::InstanceState;
use crate::guest::UserDataStatus;
use crate::store::{InstanceRecord, VolumeRecord};

/// The timeout for optional information from the guest.
const SHORT: Duration = Duration::from_secs(5);

/// Show an instance.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp show web                 by name
  wisp show i-0a1b              by the beginning of its id
  wisp show web --output json   as DescribeInstances prints it, with its limits")]
pub struct Args {
    /// Instance: id, prefix of the id, or name.
    #[arg(value_name = "INSTANCE")]
    instance: String,
}

/// Runs the command.
pub fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let mut cloud = open_cloud()?;
    let record = cloud.instance(&args.instance)?;
    if output == Output::Json {
        let mut value = shapes::reservations(std::slice::from_ref(&record), &cloud.group_names()?);
        let status = status(&cloud, &record).and_then(Result::ok);
        value["Limits"] = limits::shape(&record, status.as_ref());
        output::print_json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let volumes = cloud.volumes_of(&record)?;
    let screen = Screen::stdout();
    let mut lines = lines(&record, &volumes, &cloud.group_names()?, screen);
    let status = status(&cloud, &record);
    if status.is_some() {
        let (check, tone) = check_cell(status.as_ref());
        lines.insert(2, line(screen, "Check", &screen.paint(tone, check)));
    }
    let status = status.and_then(Result::ok);
    for (label, text) in limits::lines(&record, status.as_ref()) {
        lines.push(line(screen, label, &text));
    }
    for problem in status.iter().flat_map(|status| &status.link_problems) {
        lines.push(line(screen, "Network", &screen.paint(Tone::Warning, problem)));
    }
    if let Some(sandbox) = status.map(|status| status.sandbox).filter(|sandbox| !sandbox.layers.is_empty()) {
        lines.push(line(screen, "Sandbox", &sandbox.layers_text()));
        lines.extend(sandbox.missing.iter().map(|missing| line(screen, "", &screen.paint(Tone::Warning, missing))));
    }
    if record.user_data.is_some() {
        lines.push(line(screen, "User data", &user_data(&cloud, &record)));
    }
    if record.state_reason.as_ref().is_some_and(|reason| reason.is_failure()) {
        let tail = cloud.dir(record.id).console_tail().to_string();
        lines.push(line(screen, "Console", tail.trim_start_matches(['.', ';', ' '])));
    }
    output::print(&lines.join("\n"))?;
    match record.state {
        InstanceState::Running => output::next_command(["exec", &args.instance, "--", "uptime"]),
        InstanceState::Stopped => output::next_command(["start", &args.instance]),
        _ => output::next("ls"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The state of the user data, as the guest reports it.
fn user_data(cloud: &Cloud, record: &InstanceRecord) -> String {
    if record.state != InstanceState::Running {
        return "given; the guest does not run".into();
    }
    if cloud.open_image(record.image_id).is_ok_and(|image| image.manifest.cloud_init) {
        return "left to cloud-init; `cloud-init status` in the guest tells how far it is".into();
    }
    let status = cloud
        .dir(record.id)
        .agent(SHORT)
        .and_then(|agent| agent.user_data(SHORT).map_err(|source| CloudError::Guest { instance: record.id, source }));
    match status {
        Ok(UserDataStatus { state, exit: Some(exit) }) => format!("{}, exit code {exit}", state.as_str()),
        Ok(UserDataStatus { state, exit: None }) => state.as_str().into(),
        Err(error) => format!("not known: {error}"),
    }
}

fn line(screen: Screen, label: &str, text: &str) -> String {
    format!("{} {text}", screen.paint(Tone::Quiet, &format!("{label:<16}")))
}

/// The connection of an instance to its VPC.
fn connection(mode: NetworkMode) -> &'static str {
    match mode {
        NetworkMode::Vpc => "connected",
        NetworkMode::User | NetworkMode::Auto => "by a user-mode network of its own",
        NetworkMode::None => "not connected",
    }
}

fn lines(record: &InstanceRecord, volumes: &[VolumeRecord], groups: &GroupNames, screen: Screen) -> Vec<String> {
    let line = |label: &str, text: &str| line(screen, label, text);
    let (state, tone) = state_cell(record);
    let mut lines = vec![
        line("Instance", &format!("{}  {}", record.id, screen.paint(Tone::Strong, record.name().unwrap_or("")))),
        line("State", &screen.paint(tone, &state)),
    ];
    if let Some(reason) = &record.state_reason {
        lines.push(line("State reason", &reason.message));
    }
    let cores = record.vcpus / record.threads_per_core;
    lines.push(line(
        "Type",
        &format!(
            "{}: {} ({}, {}), {}{}",
            record.instance_type,
            output::count(record.vcpus as usize, "vCPU"),
            output::count(cores as usize, "core"),
            output::count(record.threads_per_core as usize, "thread"),
            approximate_mib(record.memory_mib),
            if record.overridden { "; not the type's own figures" } else { "" }
        ),
    ));
    lines.push(line("Image", &format!("{} ({})", record.image_name, record.image_id)));
    lines.push(line("Launched", &utc(record.launch_time)));
    for (index, volume) in volumes.iter().enumerate() {
        let device = record.block_devices.iter().find(|device| device.volume_id == volume.id);
        let goes = device.is_some_and(|device| device.delete_on_termination);
        lines.push(line(
            if index == 0 { "Root volume" } else { "Volume" },
            &format!(
                "{}  {}  {}  {}, {} on termination",
                device.map_or("-", |device| device.device_name.as_str()),
                volume.id,
                output::bytes(volume.size),
                volume.volume_type,
                if goes { "deleted" } else { "kept" }
            ),
        ));
    }
    if let Some(network) = &record.network {
        lines.push(line("VPC", &format!("{}, {}", network.vpc_id, connection(network.mode))));
        lines.push(line("Subnet", &format!("{} ({})", network.subnet_id, network.zone)));
        lines.push(line("Private address", &network.private_ip.to_string()));
        if let Some(public) = network.public_ip {
            let kind = if network.elastic_address.is_some() { " (elastic)" } else { "" };
            lines.push(line("Public address", &format!("{public}{kind}")));
        }
        let named = |id| format!("{} ({id})", groups.get(id).map_or("?", String::as_str));
        let groups: Vec<String> = network.security_groups.iter().map(named).collect();
        lines.push(line("Security groups", &groups.join(", ")));
        for port in &network.published {
            lines.push(line("Published", &port.to_string()));
        }
        let options = &network.metadata_options;
        let versions = match (options.endpoint, options.tokens_required) {
            (false, _) => "not answered",
            (true, true) => "version 2 only",
            (true, false) => "versions 1 and 2",
        };
        lines.push(line("Metadata", versions));
    }
    if let Some(key) = &record.key_name {
        lines.push(line("Key pair", key));
    }
    lines.push(line("Power-off", &format!("the guest's own {}s the instance", record.shutdown_behavior.as_str())));
    if record.hibernation {
        lines.push(line("Hibernation", "configured"));
    }
    if record.termination_protection {
        lines.push(line("Protection", "terminate is refused"));
    }
    for (key, value) in record.tags.iter().filter(|(key, _)| *key != "Name") {
        lines.push(line("Tag", &format!("{}={}", escape_line(key), escape_line(value))));
    }
    lines.push(line("Reservation", &format!("{}, number {}", record.reservation_id, record.launch_index)));
    lines
}
