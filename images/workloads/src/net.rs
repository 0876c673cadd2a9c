//! Network workload: serves one connection from the host, through the guest's network interface.
//!
//! The host sends `s` for a stream of bytes during `--ms`, or `e` for an echo of each byte until it closes its side.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::Options;
use crate::timing::{Done, begin};

const PIECE: usize = 32 << 10;

/// Seconds after which SIGALRM ends this process, for example if the host does not connect.
const PATIENCE: u32 = 60;

/// Listens, prints `begin`, and serves one connection to its end.
pub fn serve(options: &Options) -> Result<Done, String> {
    // SAFETY: the call only schedules SIGALRM, which ends this process.
    unsafe { libc::alarm(PATIENCE) };
    let at = (Ipv4Addr::UNSPECIFIED, options.port);
    let listener = TcpListener::bind(at).map_err(|error| format!("port {}: {error}", options.port))?;
    begin()?;
    let served = listener.accept().and_then(|(mut stream, _)| {
        stream.set_nodelay(true)?;
        let mut request = [0];
        stream.read_exact(&mut request)?;
        match request[0] {
            b's' => send(&mut stream, options.target),
            _ => echo(&mut stream),
        }
    });
    let (amount, elapsed) = served.map_err(|error| format!("the connection failed: {error}"))?;
    Ok(Done { amount, elapsed, threads: 1, bytes: 0 })
}

fn send(stream: &mut TcpStream, target: Duration) -> std::io::Result<(u64, Duration)> {
    let piece = vec![0x5a; PIECE];
    let (began, mut sent) = (Instant::now(), 0);
    while began.elapsed() < target {
        stream.write_all(&piece)?;
        sent += PIECE as u64;
    }
    Ok((sent, began.elapsed()))
}

fn echo(stream: &mut TcpStream) -> std::io::Result<(u64, Duration)> {
    let (began, mut count) = (Instant::now(), 0);
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
        count += 1;
    }
    Ok((count, began.elapsed()))
}
