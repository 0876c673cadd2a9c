//! Commands of `wisp` on instances, with their results as text or JSON.

use std::path::PathBuf;

use serde_json::Value;

use super::{Outcome, Wisp};

/// The size of most test guests. It is smaller than any instance type, because small guests boot fastest.
pub const SMALL: [&str; 4] = ["--vcpus", "1", "--memory", "192M"];

pub fn launch(wisp: &Wisp, more: &[&str]) -> Outcome {
    wisp.run(&[&["launch"], &SMALL[..], more].concat())
}

#[track_caller]
pub fn json(wisp: &Wisp, args: &[&str]) -> Value {
    let outcome = wisp.run(&[args, &["--output", "json"]].concat()).expect_code(0);
    serde_json::from_slice(&outcome.stdout).unwrap()
}

pub fn dir(wisp: &Wisp, instance: &str) -> PathBuf {
    let shown = json(wisp, &["show", instance]);
    let id = shown["Reservations"][0]["Instances"][0]["InstanceId"].as_str().unwrap().to_string();
    wisp.home().join("instances").join(id)
}

pub fn finding(wisp: &Wisp, name: &str) -> Option<Value> {
    let doctor = json(wisp, &["doctor"]);
    doctor["Findings"].as_array().unwrap().iter().find(|one| one["Name"] == name).cloned()
}

#[track_caller]
pub fn exec(wisp: &Wisp, instance: &str, script: &str) -> String {
    wisp.run(&["exec", instance, "--", "sh", "-c", script]).expect_code(0).text().trim().to_string()
}

/// Returns the file names in a directory of the data directory, except locks.
pub fn files(wisp: &Wisp, dir: &str) -> Vec<String> {
    let entries = std::fs::read_dir(wisp.home().join(dir)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with('.')).collect()
}
