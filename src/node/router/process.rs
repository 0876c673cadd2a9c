//! The router process (`wisp router`): sets up the VPC's network and serves requests in an event loop.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, bind,
    netlink::SocketAddrNetlink, sendmsg, socket_with,
};

use super::links::Links;
use super::namespace::{self, Port, Tap};
use super::{
    ANSWER_LIMIT, CONFIG, Interface, LOCK, MAX_TAPS, NamespaceSource, RouterConfig, RouterRequest, RouterResponse,
    SOCKET, rules,
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
    notifications: OwnedFd,
    links: Links,
    uplink: Option<Child>,
    /// Time by which the uplink's process must create its interface. Starting an instance does not wait for it.
    uplink_deadline: Option<Instant>,
    /// Clients that wait for the state of the uplink.
    waiting: Vec<UnixStream>,
    has_bridge: bool,
    /// Rules in force. `None` before the first ones.
    rules: Option<String>,
    /// Ports from which the bridge's table accepts frames.
    ports: Vec<Port>,
    /// Addresses whose ports could not be opened, with the reasons, until a client asks.
    failed: BTreeMap<Ipv4Addr, String>,
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
    send(&stream, &RouterResponse::Failed(why.to_string()), &[])
}

fn set_up(dir: &Path, place: NamespaceSource) -> io::Result<Running<'_>> {
    let config = read_config(dir)?;
    let uplink = match probe::is_installed(super::UPLINK_PROGRAM) {
        true => Some(namespace::prepare_uplink(dir, &config)?),
        false => None,
    };
    match &place {
        NamespaceSource::Held(network) => namespace::enter_again(network)?,
        NamespaceSource::New => namespace::enter()?,
    }
    let mut running = Running::new(dir, uplink)?;
    if matches!(place, NamespaceSource::Held(_)) {
        running.take_over(&config)?;
    }
    Ok(running)
}

impl Running<'_> {
    /// Opens netlink sockets in the network namespace of this process.
    fn new(dir: &Path, uplink: Option<Child>) -> io::Result<Running<'_>> {
        let notifications =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
        bind(&notifications, &SocketAddrNetlink::new(0, LINK_GROUP))?;
        Ok(Running {
            dir,
            notifications,
            links: Links::open()?,
            uplink,
            uplink_deadline: None,
            waiting: Vec::new(),
            has_bridge: false,
            rules: None,
            ports: Vec::new(),
            failed: BTreeMap::new(),
        })
    }

    /// Continues the work of a killed router in its namespaces.
    fn take_over(&mut self, config: &RouterConfig) -> io::Result<()> {
        self.has_bridge = true;
        namespace::remove_uplink(&mut self.links)?;
        let ports = namespace::connected_ports(&mut self.links, config)?;
        // Replace the previous rules before there is an uplink: they may allow traffic that no security group allows
        // anymore.
        self.set_rules(rules::render(config), ports)?;
        // The killed router may not have opened its last ports.
        self.ports.iter().try_for_each(|port| port.open(&mut self.links))
    }

    fn serve(mut self, listener: &UnixListener) -> io::Result<()> {
        let mut had_client = false;
        // The process that started the router holds the lock until it has connected an instance or given up.
        let mut may_exit = true;
        loop {
            let fds = &mut [PollFd::new(listener, PollFlags::IN), PollFd::new(&self.notifications, PollFlags::IN)];
            let timeout = if self.uplink_deadline.is_some() {
                Some(&UPLINK_INTERVAL)
            } else {
                may_exit.then_some(&IDLE_INTERVAL)
            };
            match poll(fds, timeout) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            drain(&self.notifications);
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
        Ok(namespace::tap_names()?.is_empty())
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
                Ok(RouterResponse::Uplink(self.has_uplink()))
            }
            Ok(RouterRequest::Apply) => self.apply().map(|()| RouterResponse::Done),
            Ok(RouterRequest::Attach(addresses)) => return self.attach(&stream, &addresses),
            Ok(RouterRequest::Settle(addresses)) => Ok(self.settled(&addresses)),
            Err(error) => Err(error.into()),
        };
        send(&stream, &done.unwrap_or_else(failed), &[])
    }

    fn apply(&mut self) -> io::Result<()> {
        let rules = rules::render(&read_config(self.dir)?);
        if self.rules.as_ref() != Some(&rules) {
            self.set_rules(rules, self.ports.clone())?;
        }
        Ok(())
    }

    /// Sends the taps of interfaces with these addresses, and then opens their ports. The VMMs start meanwhile.
    fn attach(&mut self, stream: &UnixStream, addresses: &[Ipv4Addr]) -> io::Result<()> {
        let connected = read_config(self.dir).and_then(|config| Ok((self.connect(&config, addresses)?, config)));
        let ((ports, taps), config) = match connected {
            Ok(connected) => connected,
            Err(error) => return send(stream, &failed(error), &[]),
        };
        // A client that was killed may have left these failures of earlier attempts.
        self.failed.retain(|address, _| !addresses.contains(address));
        send(stream, &RouterResponse::Done, &taps)?;
        if let Err(error) = self.open(&config, ports) {
            self.failed.extend(addresses.iter().map(|address| (*address, error.to_string())));
        }
        Ok(())
    }

    fn connect(&mut self, config: &RouterConfig, addresses: &[Ipv4Addr]) -> io::Result<(Vec<Port>, Vec<OwnedFd>)> {
        if !self.has_bridge {
            namespace::configure(&mut self.links, config)?;
            self.has_bridge = true;
        }
        let mut connect = |address: &Ipv4Addr| Tap::new()?.connect(&mut self.links, config, find(config, *address)?);
        addresses.iter().map(&mut connect).collect::<io::Result<Vec<_>>>().map(|ports| ports.into_iter().unzip())
    }

    /// Sets the rules for these ports and the configuration, and opens the ports.
    fn open(&mut self, config: &RouterConfig, added: Vec<Port>) -> io::Result<()> {
        // The kernel may have reused the name of a deleted tap.
        let is_other = |port: &&Port| added.iter().all(|new| new.tap != port.tap);
        let ports = self.ports.iter().filter(is_other).chain(&added).cloned().collect();
        self.set_rules(rules::render(config), ports)?;
        added.iter().try_for_each(|port| port.open(&mut self.links))
    }

    /// Puts rules in force, with one transaction of the kernel.
    fn set_rules(&mut self, rules: String, ports: Vec<Port>) -> io::Result<()> {
        let is_known = self.rules.as_ref() == Some(&rules);
        let changed = if is_known { "" } else { rules.as_str() };
        namespace::set_rules(&format!("{changed}{}", rules::render_ports(&ports)))?;
        (self.rules, self.ports) = (Some(rules), ports);
        Ok(())
    }

    /// Returns whether the ports of these addresses are open. Requests are answered in order, so none is pending.
    fn settled(&mut self, addresses: &[Ipv4Addr]) -> RouterResponse {
        let failures: Vec<String> = addresses.iter().filter_map(|address| self.failed.remove(address)).collect();
        failures.into_iter().next().map_or(RouterResponse::Done, RouterResponse::Failed)
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
            Ok(true) => read_config(self.dir).and_then(|config| namespace::configure_uplink(&mut self.links, &config)),
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
            if let Err(error) = send(&client, &answer, &[]) {
                log::warn!("cannot answer a client: {error}");
            }
        }
    }
}

fn failed(error: io::Error) -> RouterResponse {
    RouterResponse::Failed(error.to_string())
}

fn send(stream: &UnixStream, answer: &RouterResponse, taps: &[OwnedFd]) -> io::Result<()> {
    let text = serde_json::to_vec(answer)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_TAPS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = taps.iter().map(AsFd::as_fd).collect();
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other(format!("a request can attach at most {MAX_TAPS} interfaces")));
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

#[cfg(test)]
mod tests {
    use super::super::tests::{config, is_inside};
    use super::*;

    #[test]
    fn attach_forgets_earlier_failure_of_address() {
        if !is_inside("process::tests::attach_forgets_earlier_failure_of_address") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let config = config();
        std::fs::write(dir.path().join(CONFIG), serde_json::to_vec(&config).unwrap()).unwrap();
        let [first, second] = [0, 1].map(|index: usize| config.interfaces[index].address);
        let mut running = Running::new(dir.path(), None).unwrap();
        running.failed = [first, second].map(|address| (address, "no rules".to_string())).into();
        let (near, _far) = UnixStream::pair().unwrap();
        running.attach(&near, &[first]).unwrap();
        assert_eq!(running.settled(&[first]), RouterResponse::Done);
        assert_eq!(running.settled(&[second]), RouterResponse::Failed("no rules".into()));
        assert_eq!(running.settled(&[second]), RouterResponse::Done, "a failure is reported once");
    }
}
