//! `wisp console`: what a guest wrote to its console.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;

use super::open_cloud;
use super::output::{self, Output};
use crate::cloud::timestamp;
use crate::vmm::devices::console::LOG;
use crate::vmm::untrusted;

/// What EC2 shows of a console, in bytes.
const LIMIT: usize = 64 << 10;
/// The most bytes that are copied to the terminal at a time.
const AT_A_TIME: u64 = 2 << 20;

/// Prints what an instance wrote to its console: the last 64 KiB.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp console web
  wisp console web --follow      and what it writes from now on, until it ends or you press ctrl-c")]
pub struct Args {
    /// The instance: its id, the beginning of it, or its name.
    #[arg(value_name = "INSTANCE")]
    instance: String,

    /// Go on with what it writes from now on.
    #[arg(long, short)]
    follow: bool,
}

/// Prints it.
pub fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let mut cloud = open_cloud()?;
    let record = cloud.instance(&args.instance)?;
    let folder = cloud.folder(record.id);
    let bytes = folder.console_output(LIMIT)?;
    match output {
        Output::Json => output::print_json(&json!({
            "InstanceId": record.id,
            "Output": String::from_utf8_lossy(&bytes),
            "Timestamp": timestamp(record.launch_time),
        }))?,
        Output::Table => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(&bytes).and_then(|()| stdout.flush()).context("standard output")?;
        }
    }
    if args.follow && record.state.has_machine() {
        follow(&folder)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints what is added to the log until the machine has ended.
fn follow(folder: &crate::cloud::machine::Folder) -> anyhow::Result<()> {
    let path = folder.vmm_directory().join(LOG);
    let mut log = untrusted::open(&path).with_context(|| format!("{} cannot be opened", path.display()))?;
    log.seek(SeekFrom::End(0))?;
    let mut monitor = folder.connect()?;
    monitor.subscribe()?;
    loop {
        // The file's growth is looked at ten times a second, the machine's end is waited for meanwhile.
        let ended = monitor.wait_ended(Duration::from_millis(100))?;
        let mut more = Vec::new();
        (&log).take(AT_A_TIME).read_to_end(&mut more)?;
        if log.stream_position()? > log.metadata()?.len() || is_rotated(&log, &path) {
            log = untrusted::open(&path)?;
            (&log).take(AT_A_TIME).read_to_end(&mut more)?;
        }
        let mut stdout = io::stdout().lock();
        if stdout.write_all(&more).and_then(|()| stdout.flush()).is_err() || ended {
            return Ok(());
        }
    }
}

fn is_rotated(log: &File, path: &std::path::Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (log.metadata(), path.symlink_metadata()) {
        (Ok(open), Ok(named)) => open.ino() != named.ino(),
        _ => false,
    }
}
