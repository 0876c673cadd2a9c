//! Tests of a VPC in the kernel, with frames that a compromised VMM writes to its tap, in new user and network
//! namespaces. Further tests cover a client of a faulty router.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};

use super::links::Links;
use super::namespace::{self, Port, Tap};
use super::*;
use machine::network::{FilterProtocol, FilterRule, GATEWAY_MAC};

/// Environment variable that is set in a test process in new namespaces.
const INSIDE: &str = "WISP_TEST_ROUTER";
const DEADLINE: Duration = Duration::from_secs(20);
/// Size in bytes of the header before each of a tap's frames (`IFF_VNET_HDR`).
const VNET_HEADER: usize = 10;
const ROUTER: [u8; 4] = [172, 31, 0, 1];

/// Returns true if this process runs in new namespaces. Otherwise runs the router's test `name` in such a process.
pub(super) fn is_inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--net", "--"]).arg(std::env::current_exe().unwrap());
    let name = format!("router::{name}");
    let output = command.args(["--exact", &name, "--nocapture"]).env(INSIDE, "1").output().unwrap();
    // A run without a test with this name succeeds, too.
    let has_passed = output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed");
    assert!(has_passed, "the test failed in new namespaces: {output:?}");
    false
}

/// Returns a VPC with the instances 4, 5 and 6, whose rules allow all traffic between them.
pub(super) fn config() -> RouterConfig {
    let all = || vec![FilterRule { protocol: FilterProtocol::All, peers: vec!["0.0.0.0/0".parse().unwrap()] }];
    let interface = |number: u8| Interface {
        address: address(number).into(),
        dir: format!("i-{number}").into(),
        mac: MacAddress(mac(number)),
        filter: Filter { ingress: all(), egress: all() },
        routes: vec!["0.0.0.0/0".parse().unwrap()],
    };
    RouterConfig {
        range: "172.31.0.0/16".parse().unwrap(),
        router: ROUTER.into(),
        dns: Ipv4Addr::new(172, 31, 0, 2),
        mtu: 1500,
        interfaces: [4, 5, 6].map(interface).into(),
    }
}

fn mac(number: u8) -> [u8; 6] {
    [6, 0, 0, 0, 0, number]
}

fn address(number: u8) -> [u8; 4] {
    [172, 31, 0, number]
}

fn network(config: &RouterConfig) -> (Links, Vec<Port>, Vec<OwnedFd>) {
    let mut links = Links::open().unwrap();
    namespace::configure(&mut links, config).unwrap();
    let connect = |interface| Tap::new().unwrap().connect(&mut links, config, interface).unwrap();
    let (ports, taps): (Vec<Port>, Vec<OwnedFd>) = config.interfaces.iter().map(connect).unzip();
    taps.iter().for_each(|tap| fcntl_setfl(tap, OFlags::NONBLOCK).unwrap());
    // No traffic passes before the ports are open.
    let early = packet(mac(4), address(4), address(6), b"early");
    let refused = File::from(taps[0].try_clone().unwrap()).write_all(&early);
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EIO));
    namespace::set_rules(&format!("{}{}", rules::render(config), rules::render_ports(&ports))).unwrap();
    ports.iter().for_each(|port| port.open(&mut links).unwrap());
    await_bridge(&taps[0], &taps[2]);
    (links, ports, taps)
}

/// Sends packets from the instance 4 until the instance 6 gets one. The kernel lets the bridge send a moment after its
/// first port was opened.
fn await_bridge(from: &OwnedFd, to: &OwnedFd) {
    let deadline = Instant::now() + DEADLINE;
    let tenth = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    loop {
        write(from, &packet(mac(4), address(4), address(6), b"ready"));
        poll(&mut [PollFd::new(&to.as_fd(), PollFlags::IN)], Some(&tenth)).unwrap();
        match File::from(to.try_clone().unwrap()).read(&mut [0; 2048]) {
            Ok(length) => return assert!(length > VNET_HEADER),
            Err(error) => assert!(error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline, "{error}"),
        }
    }
}

fn ethernet(source: [u8; 6], rest: &[&[u8]]) -> Vec<u8> {
    [&[0; VNET_HEADER][..], &GATEWAY_MAC.0, &source, &rest.concat()].concat()
}

fn packet(source_mac: [u8; 6], source: [u8; 4], destination: [u8; 4], text: &[u8]) -> Vec<u8> {
    ethernet(source_mac, &[&[8, 0], &ip(source, destination, text)])
}

fn ip(source: [u8; 4], destination: [u8; 4], text: &[u8]) -> Vec<u8> {
    let length = (28 + text.len()) as u16;
    let mut header = [0; 20];
    header[..4].copy_from_slice(&[0x45, 0, (length >> 8) as u8, length as u8]);
    (header[8], header[9]) = (64, 17);
    header[12..16].copy_from_slice(&source);
    header[16..].copy_from_slice(&destination);
    let sum = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let udp = [0x10, 0, 0x20, 0, 0, (8 + text.len()) as u8, 0, 0];
    [&header[..], &udp, text].concat()
}

fn write(tap: &OwnedFd, frame: &[u8]) {
    File::from(tap.try_clone().unwrap()).write_all(frame).unwrap();
}

/// Returns the payloads of the packets that a tap receives, up to the payload `last`.
fn texts(tap: &OwnedFd, last: &[u8]) -> Vec<Vec<u8>> {
    let (mut texts, deadline) = (Vec::new(), Instant::now() + DEADLINE);
    let mut file = File::from(tap.try_clone().unwrap());
    while texts.last().is_none_or(|text| text != last) {
        assert!(Instant::now() < deadline, "{texts:?}");
        poll(&mut [PollFd::new(&tap.as_fd(), PollFlags::IN)], Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap();
        let mut frame = [0; 2048];
        match file.read(&mut frame) {
            Ok(length) => texts.push(frame[VNET_HEADER + 14 + 28..length].to_vec()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
    }
    texts
}

#[test]
fn spoofed_frames_are_dropped_at_the_port() {
    if !is_inside("tests::spoofed_frames_are_dropped_at_the_port") {
        return;
    }
    let config = config();
    let (mut links, ports, taps) = network(&config);
    let [from, _, to] = taps.as_slice() else { unreachable!() };
    write(from, &packet(mac(4), address(4), address(6), b"first"));
    assert_eq!(texts(to, b"first"), [b"first"]);

    let arp: &[&[u8]] = &[&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &mac(4), &address(6), &mac(6), &address(6)];
    // A priority tag, which the kernel would remove before routing the packet.
    let tagged: &[&[u8]] = &[&[0x81, 0, 0, 0, 8, 0], &ip(address(5), address(6), b"tagged")];
    for spoofed in [
        packet(mac(4), address(5), address(6), b"address"),
        packet(mac(5), address(4), address(6), b"mac"),
        packet(mac(5), address(5), address(6), b"both"),
        packet(mac(4), ROUTER, address(6), b"router's address"),
        packet(GATEWAY_MAC.0, address(4), address(6), b"router's mac"),
        packet(mac(4), [172, 31, 9, 9], address(6), b"unused address"),
        packet(mac(4), [0; 4], address(6), b"no address"),
        ethernet(mac(4), arp),
        ethernet(mac(4), tagged),
    ] {
        write(from, &spoofed);
    }
    write(from, &packet(mac(4), address(4), address(6), b"last"));
    assert_eq!(texts(to, b"last"), [b"last"]);

    // After a kill, a new router restores the same state.
    let mut connected = namespace::connected_ports(&mut links, &config).unwrap();
    connected.sort_by(|one, other| one.tap.cmp(&other.tap));
    assert_eq!(connected, ports);
    namespace::set_rules(&rules::render_ports(&connected)).unwrap();
    write(from, &packet(mac(4), address(5), address(6), b"address"));
    write(from, &packet(mac(4), address(4), address(6), b"restored"));
    assert_eq!(texts(to, b"restored"), [b"restored"]);
}

#[test]
fn tap_without_rules_sends_nothing() {
    if !is_inside("tests::tap_without_rules_sends_nothing") {
        return;
    }
    let config = config();
    let (mut links, mut ports, taps) = network(&config);
    let without = ports.remove(0);
    namespace::set_rules(&rules::render_ports(&ports)).unwrap();
    write(&taps[0], &packet(mac(4), address(4), address(6), b"unbound"));
    write(&taps[1], &packet(mac(5), address(5), address(6), b"bound"));
    assert_eq!(texts(&taps[2], b"bound"), [b"bound"]);

    // The taps disappear when their descriptors are closed.
    assert!(namespace::tap_names().unwrap().contains(&without.tap));
    drop(taps);
    assert_eq!(namespace::tap_names().unwrap(), Vec::<String>::new());
    assert!(namespace::connected_ports(&mut links, &config).unwrap().is_empty());
}

#[test]
fn endless_response_is_refused_at_its_limit() {
    let (near, mut far) = UnixStream::pair().unwrap();
    // Writes until the client has closed its end.
    let router = std::thread::spawn(move || while far.write_all(&[b' '; 4096]).is_ok() {});
    let error = ask(Path::new("/networks/vpc-1"), &near, &RouterRequest::Apply).unwrap_err();
    assert!(matches!(&error, RouterError::Refused(why) if why.contains(&ANSWER_LIMIT.to_string())), "{error}");
    drop(near);
    router.join().unwrap();
}

#[test]
fn exited_router_is_reported_as_ended() {
    let dir = Path::new("/networks/vpc-1");
    let (near, far) = UnixStream::pair().unwrap();
    drop(far);
    assert!(matches!(ask(dir, &near, &RouterRequest::Apply), Err(RouterError::Ended(_))));
    let (near, far) = UnixStream::pair().unwrap();
    let router = std::thread::spawn(move || {
        let mut byte = [0];
        (&far).read_exact(&mut byte).unwrap();
    });
    let error = ask(dir, &near, &RouterRequest::Uplink).unwrap_err();
    router.join().unwrap();
    assert_eq!(error.to_string(), "the VPC's router exited unexpectedly; see /networks/vpc-1/router.log");
    // If the router has read the whole request before it exits, the read returns EOF instead of ECONNRESET.
    let (near, far) = UnixStream::pair().unwrap();
    let router = std::thread::spawn(move || BufReader::new(far).read_line(&mut String::new()).unwrap());
    let answer = ask(dir, &near, &RouterRequest::Uplink);
    router.join().unwrap();
    assert!(matches!(answer, Err(RouterError::Ended(_))), "{answer:?}");
}

#[test]
fn settle_accepts_exited_router_and_refuses_killed_router() {
    let dir = tempfile::tempdir().unwrap();
    let router = Router::lock(dir.path()).unwrap();
    let settle = || router.settle(vec![address(4).into()]);
    // A router that exits normally removes its socket.
    settle().unwrap();
    drop(unix_socket::bind(&dir.path().join(SOCKET)).unwrap());
    assert!(matches!(settle(), Err(RouterError::Io(error)) if error.kind() == ErrorKind::ConnectionRefused));
}
