//! The client and the server for the measurements of `scripts/bench --network`.
//!
//!     net serve PORT                      serves the commands below
//!     net send ADDRESS:PORT MIB           prints MiB/s
//!     net receive ADDRESS:PORT MIB        prints MiB/s
//!     net packets ADDRESS:PORT SECONDS    prints the packets per second sent, and received
//!     net round-trips ADDRESS:PORT COUNT  prints median, p99 and maximum, in milliseconds

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

/// The first byte of a connection: the server receives the stream, or sends it.
const TAKE: u8 = 0;
const GIVE: u8 = 1;
/// The first byte of a datagram: the server echoes it, counts it, or reports and resets the count.
const ECHO: u8 = 0;
const COUNT: u8 = 1;
const REPORT: u8 = 2;
const DATAGRAM_BYTES: usize = 64;
const RETRY_AFTER: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().map_err(|_| Error::from(ErrorKind::InvalidInput));
    match words[..] {
        ["serve", port] => serve(port),
        ["send", address, mib] => stream(address, TAKE, number(mib)? << 20),
        ["receive", address, mib] => stream(address, GIVE, number(mib)? << 20),
        ["packets", address, seconds] => packets(address, Duration::from_secs(number(seconds)?)),
        ["round-trips", address, count] => round_trips(address, number(count)?),
        _ => Err(Error::new(ErrorKind::InvalidInput, "serve, send, receive, packets or round-trips")),
    }
}

fn serve(port: &str) -> Result<()> {
    let listener = TcpListener::bind(format!("0.0.0.0:{port}"))?;
    let socket = UdpSocket::bind(format!("0.0.0.0:{port}"))?;
    thread::spawn(move || answer_datagrams(&socket));
    loop {
        let (stream, _) = listener.accept()?;
        thread::spawn(move || answer_stream(stream));
    }
}

fn answer_stream(mut stream: TcpStream) -> Result<()> {
    let mut request = [0; 9];
    stream.read_exact(&mut request)?;
    let [kind, length @ ..] = request;
    let length = u64::from_le_bytes(length);
    if kind == TAKE {
        take(&mut stream, length)?;
        return stream.write_all(&[0]);
    }
    give(&mut stream, length)
}

fn answer_datagrams(socket: &UdpSocket) -> Result<()> {
    let (mut buffer, mut count) = ([0; DATAGRAM_BYTES], 0_u64);
    loop {
        let (_, peer) = socket.recv_from(&mut buffer)?;
        match buffer[0] {
            COUNT => count += 1,
            REPORT => {
                let _ = socket.send_to(&count.to_le_bytes(), peer);
                count = 0;
            }
            _ => {
                let _ = socket.send_to(&buffer, peer);
            }
        }
    }
}

fn give(stream: &mut TcpStream, mut length: u64) -> Result<()> {
    let chunk = [7; 64 << 10];
    while length > 0 {
        let count = length.min(chunk.len() as u64);
        stream.write_all(&chunk[..count as usize])?;
        length -= count;
    }
    Ok(())
}

fn take(stream: &mut TcpStream, length: u64) -> Result<()> {
    let mut chunk = [0; 64 << 10];
    let mut left = length;
    while left > 0 {
        match stream.read(&mut chunk)? as u64 {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}

fn stream(address: &str, kind: u8, length: u64) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    let began = Instant::now();
    let mut request = vec![kind];
    request.extend(length.to_le_bytes());
    stream.write_all(&request)?;
    if kind == TAKE {
        give(&mut stream, length)?;
        // The answer arrives after the server has received everything.
        stream.read_exact(&mut [0])?;
    } else {
        take(&mut stream, length)?;
    }
    println!("{:.3}", length as f64 / (1 << 20) as f64 / began.elapsed().as_secs_f64());
    Ok(())
}

fn connected(address: &str) -> Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(RETRY_AFTER))?;
    Ok(socket)
}

/// Sends datagrams of this kind until one is answered. Returns the round-trip time of the last attempt.
fn ask(socket: &UdpSocket, kind: u8, answer: &mut [u8]) -> Result<Duration> {
    let mut datagram = [0; DATAGRAM_BYTES];
    datagram[0] = kind;
    loop {
        let began = Instant::now();
        socket.send(&datagram)?;
        match socket.recv(answer) {
            Ok(_) => return Ok(began.elapsed()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
}

fn packets(address: &str, duration: Duration) -> Result<()> {
    let socket = connected(address)?;
    let (mut datagram, mut sent) = ([0; DATAGRAM_BYTES], 0_u64);
    let mut count = [0; 8];
    // Discard the count of an earlier measurement.
    ask(&socket, REPORT, &mut count)?;
    datagram[0] = COUNT;
    let began = Instant::now();
    while began.elapsed() < duration {
        // Blocks while the socket's buffer is full.
        socket.send(&datagram)?;
        sent += 1;
    }
    let elapsed = began.elapsed().as_secs_f64();
    ask(&socket, REPORT, &mut count)?;
    println!("{:.1} {:.1}", sent as f64 / elapsed, u64::from_le_bytes(count) as f64 / elapsed);
    Ok(())
}

fn round_trips(address: &str, count: u64) -> Result<()> {
    let socket = connected(address)?;
    let mut answer = [0; DATAGRAM_BYTES];
    ask(&socket, ECHO, &mut answer)?;
    let mut took = (0..count).map(|_| ask(&socket, ECHO, &mut answer)).collect::<Result<Vec<_>>>()?;
    took.sort();
    let at = |share: u64| took[((count * share).div_ceil(100).max(1) - 1) as usize].as_secs_f64() * 1e3;
    println!("{:.3} {:.3} {:.3}", at(50), at(99), at(100));
    Ok(())
}
