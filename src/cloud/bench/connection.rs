//! The host's end of the network measures: connects to a loopback port that is forwarded to the guest
//! (`images/workloads/src/net.rs` is the other end). The guest's data is untrusted and only counted.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::time::{Duration, Instant};

pub(super) const GUEST_PORT: u16 = 5201;
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn free_port() -> io::Result<SocketAddrV4> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}

/// Receives until the guest stops sending. Returns the bytes received after the first read, and the time that took.
pub(super) fn receive(address: SocketAddrV4) -> io::Result<(u64, Duration)> {
    let mut stream = connect(address, b's')?;
    let mut piece = vec![0; 256 << 10];
    let mut is_over = stream.read(&mut piece)? == 0;
    let (began, mut received) = (Instant::now(), 0);
    let mut elapsed = Duration::ZERO;
    while !is_over {
        let count = stream.read(&mut piece)?;
        received += count as u64;
        is_over = count == 0;
        // The end of the stream may arrive later than the last bytes, so the wait for it does not count.
        elapsed = if is_over { elapsed } else { began.elapsed() };
    }
    Ok((received, elapsed))
}

/// Sends single bytes and waits for each echo. Returns the number of round trips and the elapsed time.
pub(super) fn echo(address: SocketAddrV4, target: Duration) -> io::Result<(u64, Duration)> {
    let mut stream = connect(address, b'e')?;
    let mut round_trip = || {
        let mut byte = [0];
        stream.write_all(&byte).and_then(|()| stream.read_exact(&mut byte))
    };
    // The first round trip waits for the forwarded connection to be established.
    round_trip()?;
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < target {
        round_trip()?;
        count += 1;
    }
    Ok((count, began.elapsed()))
}

fn connect(address: SocketAddrV4, request: u8) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address.into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    stream.write_all(&[request])?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn served(serve: impl FnOnce(TcpStream) + Send + 'static) -> SocketAddrV4 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || serve(listener.accept().unwrap().0));
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
    }

    fn request(stream: &mut TcpStream) -> u8 {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        byte[0]
    }

    #[test]
    fn receive_counts_bytes_after_first_read() {
        let address = served(|mut stream| {
            assert_eq!(request(&mut stream), b's');
            stream.write_all(&vec![1; 1 << 20]).unwrap();
        });
        let (received, _) = receive(address).unwrap();
        assert!((1..1 << 20).contains(&received), "{received}");
        let address = served(|mut stream| assert_eq!(request(&mut stream), b's'));
        assert_eq!(receive(address).unwrap().0, 0);
    }

    #[test]
    fn echo_waits_for_each_byte() {
        let address = served(|mut stream| {
            assert_eq!(request(&mut stream), b'e');
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
        });
        let (count, elapsed) = echo(address, Duration::from_millis(5)).unwrap();
        assert!(count > 0 && elapsed >= Duration::from_millis(5));
        let address = served(|mut stream| assert_eq!(request(&mut stream), b'e'));
        assert!(echo(address, Duration::from_millis(5)).is_err());
    }
}
