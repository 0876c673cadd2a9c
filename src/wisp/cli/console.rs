//! `wisp console`: shows the output of a guest's serial console, or attaches to the console.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use super::escape::ConsoleFilter;
use super::output::{self, Output};
use super::{args, open_cloud, serial};
use ec2::api::Timestamp;
use ec2::api::console::GetConsoleOutputResult;
use machine::files::{CONSOLE_LOG, CONSOLE_SOCKET};
use machine::untrusted;
use node::instance::MachineHandle;

/// The maximum size of console output in bytes, as in EC2.
const LIMIT: usize = 64 << 10;
/// The maximum number of bytes to read from the log at a time.
const AT_A_TIME: u64 = 2 << 20;

/// Show the last 64 KiB of console output, or attach to the console.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp console web
  wisp console web --follow      follow the output until the instance stops or you press Ctrl-C
  wisp console web > log         save the last 64 KiB unmodified
  wisp launch --name web --cmdline wisp.console=shell && wisp console -i web
                                 press Enter for a prompt, Ctrl-] to detach

On a terminal, control characters are escaped and colors are removed. Output to a pipe or a file is unmodified.")]
pub struct Args {
    #[arg(value_name = "INSTANCE", help = args::INSTANCE)]
    instance: String,

    /// Attach this terminal to the console; Ctrl-] detaches, and the guest keeps running.
    #[arg(long, short, conflicts_with_all = ["follow", "raw"])]
    interactive: bool,

    /// Follow the output until the instance stops.
    #[arg(long, short)]
    follow: bool,

    /// Do not escape control characters on a terminal.
    #[arg(long)]
    raw: bool,
}

/// Prints console output, filtered on a terminal.
struct Printer<W> {
    output: W,
    filter: Option<ConsoleFilter>,
}

impl<W: Write> Printer<W> {
    fn new(output: W, is_terminal: bool, raw: bool) -> Printer<W> {
        Printer { output, filter: (is_terminal && !raw).then(ConsoleFilter::default) }
    }

    fn print(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.filter {
            Some(filter) => self.output.write_all(filter.filter(bytes).as_bytes())?,
            None => self.output.write_all(bytes)?,
        }
        self.output.flush()
    }

    /// Prints an incomplete escape sequence at the end of the output, escaped.
    fn finish(&mut self) -> io::Result<()> {
        let rest = self.filter.as_mut().map(ConsoleFilter::finish).unwrap_or_default();
        self.output.write_all(rest.as_bytes())?;
        self.output.flush()
    }
}

pub fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    if args.interactive {
        return attach(&args.instance);
    }
    let cloud = open_cloud()?;
    let record = cloud.instances().find(&args.instance)?;
    let dir = cloud.dir(record.meta.id);
    let bytes = dir.console_output(LIMIT)?;
    let mut printer = Printer::new(io::stdout(), io::stdout().is_terminal(), args.raw);
    match output {
        Output::Json => output::print_json(&GetConsoleOutputResult {
            instance_id: record.meta.id,
            output: String::from_utf8_lossy(&bytes).into_owned(),
            timestamp: Timestamp::from_seconds(record.status.launch_time),
        })?,
        Output::Table => printer.print(&bytes).context("cannot write to standard output")?,
    }
    if args.follow && record.status.state.has_machine() {
        follow(&dir, &mut printer)?;
    }
    printer.finish().context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// Attaches this terminal to an instance's serial console.
fn attach(instance: &str) -> anyhow::Result<ExitCode> {
    let (record, dir) = open_cloud()?.instances().reachable(instance)?;
    let stream = untrusted::connect(&dir.vmm_directory().join(CONSOLE_SOCKET))
        .with_context(|| format!("{}: cannot connect to its console", record.meta.id))?;
    output::say("Attached. Press Ctrl-] to detach.");
    match serial::join(stream)? {
        serial::Left::ByEscape => output::say("\nDetached. The instance is still running."),
        serial::Left::GuestEnded => output::say("\nThe guest has ended."),
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints new console output until the machine has ended.
fn follow(dir: &node::instance::InstanceDir, printer: &mut Printer<impl Write>) -> anyhow::Result<()> {
    let path = dir.vmm_directory().join(CONSOLE_LOG);
    let mut log = untrusted::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    log.seek(SeekFrom::End(0))?;
    let mut machine = MachineHandle::connect(dir)?;
    machine.subscribe()?;
    loop {
        // Read the log ten times a second until the machine has ended.
        let ended = machine.wait_ended(Duration::from_millis(100))?;
        let mut more = Vec::new();
        (&log).take(AT_A_TIME).read_to_end(&mut more)?;
        if log.stream_position()? > log.metadata()?.len() || is_rotated(&log, &path) {
            log = untrusted::open(&path)?;
            (&log).take(AT_A_TIME).read_to_end(&mut more)?;
        }
        if printer.print(&more).is_err() || ended {
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

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &[u8] = b"login: \x1b]0;title\x07\r\n\x1b[2J\x1b[";

    fn printed(is_terminal: bool, raw: bool) -> Vec<u8> {
        let mut printer = Printer::new(Vec::new(), is_terminal, raw);
        HOSTILE.chunks(3).for_each(|piece| printer.print(piece).unwrap());
        printer.finish().unwrap();
        printer.output
    }

    #[test]
    fn terminal_gets_escaped_output_unless_raw() {
        let shown = printed(true, false);
        assert_eq!(String::from_utf8(shown).unwrap(), "login: \\x1b]0;title\\x07\r\n\\x1b[2J\\x1b[");
        assert_eq!(printed(true, true), HOSTILE);
    }

    #[test]
    fn pipe_gets_all_bytes() {
        assert_eq!(printed(false, false), HOSTILE);
    }
}
