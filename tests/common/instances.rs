//! What tests of instances share.

use std::path::PathBuf;

use serde_json::Value;

use super::{Outcome, Wisp};

/// Smaller than any type: boots soonest.
pub const SMALL: [&str; 4] = ["--vcpus", "1", "--memory", "192M"];

/// Launches small instances.
pub fn launch(wisp: &Wisp, more: &[&str]) -> Outcome {
    wisp.run(&[&["launch"], &SMALL[..], more].concat())
}

/// What a command prints as JSON.
#[track_caller]
pub fn json(wisp: &Wisp, args: &[&str]) -> Value {
    let outcome = wisp.run(&[args, &["--output", "json"]].concat()).expect_code(0);
    serde_json::from_slice(&outcome.stdout).unwrap()
}

/// An instance's folder.
pub fn folder(wisp: &Wisp, instance: &str) -> PathBuf {
    let shown = json(wisp, &["show", instance]);
    let id = shown["Reservations"][0]["Instances"][0]["InstanceId"].as_str().unwrap().to_string();
    wisp.home().join("instances").join(id)
}

/// What the doctor says of a part of the host now.
pub fn finding(wisp: &Wisp, name: &str) -> Option<Value> {
    let doctor = json(wisp, &["doctor"]);
    doctor["Findings"].as_array().unwrap().iter().find(|one| one["Name"] == name).cloned()
}

/// What a shell script in an instance's guest prints.
#[track_caller]
pub fn exec(wisp: &Wisp, instance: &str, script: &str) -> String {
    wisp.run(&["exec", instance, "--", "sh", "-c", script]).expect_code(0).text().trim().to_string()
}

/// The files in a folder of the data directory, but for locks.
pub fn files(wisp: &Wisp, folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(wisp.home().join(folder)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with('.')).collect()
}
