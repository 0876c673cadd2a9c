//! `wisp-workload`: the static program that `wisp bench` copies into any Linux guest. Each call runs one workload.
//!
//! It prints `begin` when it is ready (for the network: when it listens), and then a line of JSON: the `amount` in the
//! workload's unit, `elapsed_ns`, the threads, and the bytes of memory or file. Errors are printed to standard error,
//! with exit code 1, or 2 for invalid arguments.
//!
//! It rarely reads the clock, because that takes up to a millisecond in an emulated guest kernel.

mod cpu;
mod disk;
mod memory;
mod net;
mod pages;
mod sha256;
mod timing;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use timing::Done;

const USAGE: &str = "\
wisp-workload WORKLOAD [--ms N] [--threads N] [--file PATH] [--bytes N] [--port N]

  integer, float                      KiB hashed (SHA-256); floating-point operations
  memory-bandwidth, memory-latency    bytes read and written; dependent loads
  disk-prepare                        write --file for the other disk workloads
  disk-{read,write}-{1,32}            bytes of sequential requests, with queue depth 1 or 32
  disk-random-{read,write}-{1,32}     random 4 KiB operations, with queue depth 1 or 32
  net                                 serve one connection on --port";

pub struct Options {
    /// Duration of the measurement.
    pub target: Duration,
    pub threads: usize,
    pub file: String,
    /// Size of the file, or maximum memory of memory workloads, in bytes.
    pub bytes: u64,
    pub port: u16,
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let Some(measure) = words.next() else { return complain(USAGE, 2) };
    let options = match options(words) {
        Ok(options) => options,
        Err(error) => return complain(&error, 2),
    };
    match run(&measure, &options) {
        Ok(Done { amount, elapsed, threads, bytes }) => {
            let elapsed_ns = elapsed.as_nanos();
            let line = format!(
                "{{\"amount\":{amount},\"elapsed_ns\":{elapsed_ns},\"threads\":{threads},\"bytes\":{bytes}}}\n"
            );
            match std::io::stdout().write_all(line.as_bytes()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Err(error) => complain(&error, 1),
    }
}

fn complain(what: &str, code: u8) -> ExitCode {
    // A failure cannot be reported.
    let _ = writeln!(std::io::stderr(), "{what}");
    ExitCode::from(code)
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options =
        Options { target: Duration::from_millis(300), threads: 1, file: String::new(), bytes: 64 << 20, port: 0 };
    while let Some(name) = words.next() {
        let value = words.next().ok_or_else(|| format!("{name} requires a value"))?;
        let number =
            || value.parse::<u64>().map_err(|_| format!("invalid value '{value}' for {name}: it must be a number"));
        match name.as_str() {
            "--ms" => options.target = Duration::from_millis(number()?.max(1)),
            "--threads" => options.threads = number()?.clamp(1, 1024) as usize,
            "--bytes" => options.bytes = number()?,
            "--port" => options.port = number()? as u16,
            "--file" => options.file = value,
            _ => return Err(format!("unknown option '{name}'\n\n{USAGE}")),
        }
    }
    Ok(options)
}

fn run(measure: &str, options: &Options) -> Result<Done, String> {
    match measure {
        "integer" => cpu::integer(options),
        "float" => cpu::float(options),
        "memory-bandwidth" => memory::bandwidth(options),
        "memory-latency" => memory::latency(options),
        "disk-prepare" => disk::prepare(options),
        "net" => net::serve(options),
        _ => match disk::Pattern::of(measure) {
            Some(pattern) => disk::run(pattern, options),
            None => Err(format!("unknown workload '{measure}'\n\n{USAGE}")),
        },
    }
}
