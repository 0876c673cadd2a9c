//! The router process (`wisp router`): sets up the VPC's network and serves requests in an event loop.

use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::resume_unwind;
use std::path::Path;
use std::process::Child;
use std::slice;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, bind,
    netlink::SocketAddrNetlink, sendmsg, socket_with,
};

use super::namespace::{self, Port, Tap};
use super::{
    ANSWER_LIMIT, CONFIG, Interface, LOCK, NamespaceSource, RouterConfig, RouterRequest, RouterResponse, SOCKET, rules,
};
use crate::home::try_lock_file;
use crate::probe;

/// `RTMGRP_LINK` (`linux/rtnetlink.h`): notifications about added and removed interfaces.
const LINK_GROUP: u32 = 1;
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time until the uplink interface exists.
const UPLINK_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of checks for an uplink process that exited before it created its interface. Netlink does not report that.
const UPLINK_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// Interval at which a router without instances checks whether it can exit.
const IDLE_INTERVAL: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

#[derive(Debug)]
struct Running<'a> {
    dir: &'a Path,
    /// Netlink socket for interface notifications.
    links: OwnedFd,
    uplink: Option<Child>,
    /// Time by which the uplink's process must create its interface. Starting an instance does not wait for it.
    uplink_deadline: Option<Instant>,
    /// Clients that wait for the state of the uplink.
    waiting: Vec<UnixStream>,
    /// Rules in force. They cover all instances of a launch from the start, even those that are not connected yet.
    rules: String,
    /// Ports from which the bridge's table accepts frames.
    ports: Vec<Port>,
    /// Tap of the interface for which the router was started, until a client requests it.
    first: Option<(Interface, OwnedFd)>,
}

/// Runs the router of the VPC in `dir` until the VPC's last instance has stopped.
pub fn run(dir: &Path, listener: OwnedFd, place: NamespaceSource) -> io::Result<()> {
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(true)?;
    let running = set_up(dir, place);
    if let Err(error) = &running {
        refuse_first(&listener, error)?;
    }
    let result = running?.serve(&listener);
    log::info!("the router is exiting");
    result
}

/// Reports to the client that started the router why the router's setup failed.
fn refuse_first(listener: &UnixListener, why: &io::Error) -> io::Result<()> {
    let timeout = Timespec { tv_sec: CLIENT_TIMEOUT.as_secs() as i64, tv_nsec: 0 };
    poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&timeout))?;
    let (stream, _) = listener.accept()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    BufReader::new(&stream).read_line(&mut String::new())?;
    send(&stream, &RouterResponse::Failed(why.to_string()), None)
}

fn set_up(dir: &Path, place: NamespaceSource) -> io::Result<Running<'_>> {
    let config = read_config(dir)?;
    let uplink = match probe::is_installed(super::UPLINK_PROGRAM) {
        true => Some(namespace::prepare_uplink(dir, &config)?),
        false => None,
    };
    match &place {
        NamespaceSource::Held(network) => namespace::enter_again(network)?,
        NamespaceSource::New(_) => namespace::enter()?,
    }
    let links =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    bind(&links, &SocketAddrNetlink::new(0, LINK_GROUP))?;
    let rules = rules::render(&config);
    let (ports, first) = match place {
        NamespaceSource::Held(_) => {
            namespace::remove_uplink()?;
            let ports = namespace::connected_ports(&config)?;
            // Replace the previous rules before there is an uplink: they may allow traffic that no security group
            // allows anymore.
            namespace::set_rules(&format!("{rules}{}", rules::render_ports(&ports)))?;
            (ports, None)
        }
        NamespaceSource::New(address) => {
            let (first, tap) = (find(&config, address)?, Tap::new()?);
            let port = tap.port(first);
            let text = format!("{rules}{}", rules::render_ports(slice::from_ref(&port)));
            let tap = set_rules_during(&text, || namespace::configure(&config, first, tap))?;
            (vec![port], Some((first.clone(), tap)))
        }
    };
    Ok(Running { dir, links, uplink, uplink_deadline: None, waiting: Vec::new(), rules, ports, first })
}

/// Applies `rules` and connects a tap in parallel, to save milliseconds. Returns the tap after both succeed.
fn set_rules_during(rules: &str, connect: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<OwnedFd> {
    thread::scope(|scope| {
        let set = scope.spawn(|| namespace::set_rules(rules));
        let tap = connect();
        set.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        tap
    })
}

impl Running<'_> {
    fn serve(mut self, listener: &UnixListener) -> io::Result<()> {
        let mut had_client = false;
        // The process that started the router holds the lock until it has connected an instance or given up.
        let mut may_exit = true;
        loop {
            let fds = &mut [PollFd::new(listener, PollFlags::IN), PollFd::new(&self.links, PollFlags::IN)];
            let timeout = if self.uplink_deadline.is_some() {
                Some(&UPLINK_INTERVAL)
            } else {
                may_exit.then_some(&IDLE_INTERVAL)
            };
            match poll(fds, timeout) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            drain(&self.links);
            self.check_uplink();
            while let Ok((stream, _)) = listener.accept() {
                had_client = true;
                if let Err(error) = self.answer(stream) {
                    log::warn!("cannot answer a client: {error}");
                }
            }
            if had_client {
                self.release_uplink();
            }
            may_exit = self.has_no_instances()?;
            if !may_exit {
                if let Err(error) = self.remove_stale_ports() {
                    log::warn!("cannot remove the rules of deleted taps: {error}");
                }
                continue;
            }
            // A process that holds the lock may be about to send a request.
            if let Some(_lock) = try_lock_file(&self.dir.join(LOCK))?
                && self.has_no_instances()?
            {
                std::fs::remove_file(self.dir.join(SOCKET))?;
                if let Some(mut child) = self.uplink.take() {
                    let _ = child.kill();
                    let _ = child.wait();
                }
                return Ok(());
            }
        }
    }

    fn has_no_instances(&self) -> io::Result<bool> {
        Ok(namespace::tap_names()?.len() == usize::from(self.first.is_some()))
    }

    fn remove_stale_ports(&mut self) -> io::Result<()> {
        let names = namespace::tap_names()?;
        let left: Vec<Port> = self.ports.iter().filter(|port| names.contains(&port.tap)).cloned().collect();
        if left.len() < self.ports.len() {
            namespace::set_rules(&rules::render_ports(&left))?;
            self.ports = left;
        }
        Ok(())
    }

    fn answer(&mut self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
        stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
        let mut line = String::new();
        if BufReader::new((&stream).take(ANSWER_LIMIT)).read_line(&mut line)? == 0 {
            // The client only checked that the router is running.
            return Ok(());
        }
        let done = match serde_json::from_str(&line) {
            Ok(RouterRequest::Uplink) => {
                self.release_uplink();
                if self.uplink_deadline.is_some() {
                    self.waiting.push(stream);
                    return Ok(());
                }
                Ok((RouterResponse::Uplink(self.has_uplink()), None))
            }
            Ok(RouterRequest::Apply) => self.apply().map(|_| (RouterResponse::Done, None)),
            Ok(RouterRequest::Attach(address)) => self.attach(address).map(|tap| (RouterResponse::Done, Some(tap))),
            Err(error) => Err(error.into()),
        };
        let (answer, tap) = done.unwrap_or_else(|error| (RouterResponse::Failed(error.to_string()), None));
        send(&stream, &answer, tap)
    }

    fn apply(&mut self) -> io::Result<RouterConfig> {
        let config = read_config(self.dir)?;
        let rules = rules::render(&config);
        if rules != self.rules {
            namespace::set_rules(&rules)?;
            self.rules = rules;
        }
        Ok(config)
    }

    fn attach(&mut self, address: Ipv4Addr) -> io::Result<OwnedFd> {
        let config = self.apply()?;
        let interface = find(&config, address)?;
        // If the process that started this router gave up, another instance may have the address now.
        match self.first.take() {
            Some((first, tap)) if (first.address, first.mac) == (address, interface.mac) => Ok(tap),
            _ => self.add_tap(&config, interface),
        }
    }

    fn add_tap(&mut self, config: &RouterConfig, interface: &Interface) -> io::Result<OwnedFd> {
        let tap = Tap::new()?;
        let port = tap.port(interface);
        // The kernel may have reused the name of a deleted tap.
        let mut ports: Vec<Port> = self.ports.iter().filter(|other| other.tap != port.tap).cloned().collect();
        ports.push(port);
        let tap = set_rules_during(&rules::render_ports(&ports), || namespace::connect(config, interface, tap))?;
        self.ports = ports;
        Ok(tap)
    }

    /// Lets the uplink's process continue, after the first request. Earlier, it would delay the first instance's start.
    fn release_uplink(&mut self) {
        if let Some(mut stdin) = self.uplink.as_mut().and_then(|child| child.stdin.take()) {
            // Ignore a process that has exited: `check_uplink` detects that.
            let _ = stdin.write_all(b"\n");
            self.uplink_deadline = Some(Instant::now() + UPLINK_TIMEOUT);
        }
    }

    fn has_uplink(&mut self) -> bool {
        self.uplink.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Configures the uplink interface once it exists.
    fn check_uplink(&mut self) {
        let (Some(deadline), Some(child)) = (self.uplink_deadline, &mut self.uplink) else { return };
        let outcome = match namespace::uplink_exists() {
            Ok(true) => read_config(self.dir).and_then(|config| namespace::configure_uplink(&config)),
            Ok(false) => match child.try_wait() {
                Ok(None) if Instant::now() < deadline => return,
                Ok(None) => Err(io::Error::new(io::ErrorKind::TimedOut, "its interface did not appear in time")),
                Ok(Some(status)) => Err(io::Error::other(format!("{} exited: {status}", super::UPLINK_PROGRAM))),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        self.uplink_deadline = None;
        if let Err(error) = outcome {
            log::warn!("cannot set up the uplink: {error}");
            // Ignore errors: the process may have exited by itself.
            let _ = child.kill();
            let _ = child.wait();
            self.uplink = None;
        }
        let answer = RouterResponse::Uplink(self.uplink.is_some());
        for client in self.waiting.drain(..) {
            if let Err(error) = send(&client, &answer, None) {
                log::warn!("cannot answer a client: {error}");
            }
        }
    }
}

fn send(stream: &UnixStream, answer: &RouterResponse, tap: Option<OwnedFd>) -> io::Result<()> {
    let text = serde_json::to_vec(answer)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = tap.iter().map(AsFd::as_fd).collect();
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no space for a descriptor in the control message"));
    }
    let sent = sendmsg(stream, &[IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL)?;
    (&*stream).write_all(&text[sent..])
}

fn find(config: &RouterConfig, address: Ipv4Addr) -> io::Result<&Interface> {
    let found = config.interfaces.iter().find(|interface| interface.address == address);
    found.ok_or_else(|| io::Error::other(format!("no instance in this VPC has the address {address}")))
}

pub(super) fn read_config(dir: &Path) -> io::Result<RouterConfig> {
    Ok(serde_json::from_slice(&std::fs::read(dir.join(CONFIG))?)?)
}

/// Discards notifications. They only wake the event loop, which queries the interfaces.
fn drain(links: &OwnedFd) {
    let mut buffer = [0; 16 << 10];
    while rustix::io::read(links, &mut buffer[..]).is_ok_and(|count| count > 0) {}
}
