//! `wisp-workload`: what `wisp bench` runs in a guest, one measure at a call.
//!
//! A static program without anything of its guest's: `wisp bench` copies it into any Linux. It prints `begin` when all is
//! ready (the network's: when it listens), and when it has measured one line of JSON: how
//! much was done (`amount`, in the measure's unit), in how long (`elapsed_ns`), by how many threads, and in how many bytes
//! of memory or file. What a measure cannot do here is a sentence on standard error, and exit code 1.
//!
//! It looks at the clock seldom: where a guest's kernel is emulated, that costs a good part of a millisecond.

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
wisp-workload MEASURE [--ms N] [--threads N] [--file PATH] [--bytes N] [--port N]

  integer, float                      KiB hashed (SHA-256); floating-point operations
  memory-bandwidth, memory-latency    bytes read and written; loads that wait for each other
  disk-prepare                        writes --file, which the others use
  disk-{read,write}-{1,32}            bytes, in sequence, so many requests at a time
  disk-random-{read,write}-{1,32}     operations of 4 KiB
  net                                 serves one connection at --port";

/// What is asked for besides the measure's name.
pub struct Options {
    /// How long it is to take.
    pub target: Duration,
    /// On how many vCPUs.
    pub threads: usize,
    /// The file of disk measures.
    pub file: String,
    /// Its size; the most memory of memory measures.
    pub bytes: u64,
    /// Where to listen.
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
    // There is nobody to tell if that fails.
    let _ = writeln!(std::io::stderr(), "{what}");
    ExitCode::from(code)
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options =
        Options { target: Duration::from_millis(300), threads: 1, file: String::new(), bytes: 64 << 20, port: 0 };
    while let Some(name) = words.next() {
        let value = words.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{name}: '{value}' is no number"));
        match name.as_str() {
            "--ms" => options.target = Duration::from_millis(number()?.max(1)),
            "--threads" => options.threads = number()?.clamp(1, 1024) as usize,
            "--bytes" => options.bytes = number()?,
            "--port" => options.port = number()? as u16,
            "--file" => options.file = value,
            _ => return Err(format!("'{name}' is no option\n\n{USAGE}")),
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
            None => Err(format!("'{measure}' is no measure\n\n{USAGE}")),
        },
    }
}
