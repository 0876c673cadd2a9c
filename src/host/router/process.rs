//! The router's process.

use std::io::{self, BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, bind,
    netlink::SocketAddrNetlink, sendmsg, socket_with,
};

use super::namespace::{self, TAPS};
use super::{Answer, CONFIG, LOCK, Request, RouterConfig, SOCKET, rules};
use crate::host::home::try_lock_file;
use crate::host::probe;

/// `RTMGRP_LINK` (`linux/rtnetlink.h`): interfaces that come and go.
const LINK_GROUP: u32 = 1;
/// How long a client may take to say what it wants.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the way out may take to be there.
const WAY_OUT_TIMEOUT: Duration = Duration::from_secs(10);
/// When one that has nothing left to do looks again whether somebody is about to come.
const AGAIN: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The router, in its namespaces.
#[derive(Debug)]
struct Running<'a> {
    folder: &'a Path,
    /// Tells of interfaces that come and go.
    links: OwnedFd,
    /// The way out, if there is one.
    way_out: Option<Child>,
    /// The rules in force: the instances of one launch come one by one, and are in the rules from the first on.
    rules: String,
}

/// Runs the router of the VPC in `folder` until its last instance has gone: in new namespaces, or in the network namespace
/// `held` of one that was killed.
pub fn run(folder: &Path, listener: OwnedFd, held: Option<OwnedFd>) -> io::Result<()> {
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(true)?;
    let config = read_config(folder)?;
    let mut way_out = match probe::is_installed(super::WAY_OUT) {
        true => Some(namespace::prepare_way_out(folder, &config)?),
        false => None,
    };
    match &held {
        Some(network) => namespace::enter_again(network)?,
        None => namespace::enter()?,
    }
    let links =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    bind(&links, &SocketAddrNetlink::new(0, LINK_GROUP))?;
    match held {
        Some(_) => namespace::remove_way_out()?,
        None => namespace::furnish(&config)?,
    }
    // Those of before may let pass what no group does any more: they are replaced before there is a way out.
    let rules = rules::render(&config);
    namespace::set_rules(&rules)?;
    if let Some(child) = &mut way_out {
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(b"\n")?;
        }
        if let Err(error) = await_way_out(&links, child).and_then(|()| namespace::furnish_way_out(&config)) {
            log::warn!("there is no way out: {error}");
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
            way_out = None;
        }
    }
    let result = Running { folder, links, way_out, rules }.serve(&listener);
    log::info!("the network ends");
    result
}

impl Running<'_> {
    fn serve(&mut self, listener: &UnixListener) -> io::Result<()> {
        let mut was_asked = false;
        let mut wants_end = false;
        loop {
            let fds = &mut [PollFd::new(listener, PollFlags::IN), PollFd::new(&self.links, PollFlags::IN)];
            match poll(fds, wants_end.then_some(&AGAIN)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            drain(&self.links);
            while let Ok((stream, _)) = listener.accept() {
                was_asked = true;
                if let Err(error) = self.answer(&stream) {
                    log::warn!("who asked has gone: {error}");
                }
            }
            wants_end = was_asked && count_taps()? == 0;
            if !wants_end {
                continue;
            }
            // Who has the lock is about to ask for something.
            if let Some(_lock) = try_lock_file(&self.folder.join(LOCK))?
                && count_taps()? == 0
            {
                std::fs::remove_file(self.folder.join(SOCKET))?;
                if let Some(mut child) = self.way_out.take() {
                    let _ = child.kill();
                    let _ = child.wait();
                }
                return Ok(());
            }
        }
    }

    fn answer(&mut self, stream: &UnixStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
        stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
        let mut line = String::new();
        if BufReader::new(stream).read_line(&mut line)? == 0 {
            // It wanted to know whether anybody is here.
            return Ok(());
        }
        let done = serde_json::from_str(&line).map_err(io::Error::from).and_then(|request| self.carry_out(request));
        let (answer, tap) = match done {
            Ok(tap) => (Answer::Done { has_way_out: self.has_way_out() }, tap),
            Err(error) => (Answer::Failed(error.to_string()), None),
        };
        let text = serde_json::to_vec(&answer)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = tap.iter().map(AsFd::as_fd).collect();
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::Error::other("no room for a descriptor"));
        }
        let sent = sendmsg(stream, &[IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL)?;
        (&*stream).write_all(&text[sent..])
    }

    fn carry_out(&mut self, request: Request) -> io::Result<Option<OwnedFd>> {
        let config = read_config(self.folder)?;
        let rules = rules::render(&config);
        if rules != self.rules {
            namespace::set_rules(&rules)?;
            self.rules = rules;
        }
        let Request::Attach(address) = request else { return Ok(None) };
        let interface = find(&config, address)
            .ok_or_else(|| io::Error::other(format!("{address} is no address of an instance in this network")))?;
        namespace::add_tap(&config, interface).map(Some)
    }

    fn has_way_out(&mut self) -> bool {
        self.way_out.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }
}

fn find(config: &RouterConfig, address: Ipv4Addr) -> Option<&super::Interface> {
    config.interfaces.iter().find(|interface| interface.address == address)
}

pub(super) fn read_config(folder: &Path) -> io::Result<RouterConfig> {
    Ok(serde_json::from_slice(&std::fs::read(folder.join(CONFIG))?)?)
}

/// Waits until the interface of the way out is there.
fn await_way_out(links: &OwnedFd, child: &mut Child) -> io::Result<()> {
    let deadline = std::time::Instant::now() + WAY_OUT_TIMEOUT;
    while !namespace::has_way_out()? {
        if let Some(status) = child.try_wait()? {
            return Err(io::Error::other(format!("{} ended with {status}", super::WAY_OUT)));
        }
        if std::time::Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "its interface does not come"));
        }
        let again = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        match poll(&mut [PollFd::new(links, PollFlags::IN)], Some(&again)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => drain(links),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads what interfaces did, which is looked up elsewhere.
fn drain(links: &OwnedFd) {
    let mut buffer = [0; 16 << 10];
    while rustix::io::read(links, &mut buffer[..]).is_ok_and(|count| count > 0) {}
}

/// The taps of this namespace.
fn count_taps() -> io::Result<usize> {
    // SAFETY: without an argument; the list is freed below.
    let list = unsafe { libc::if_nameindex() };
    if list.is_null() {
        return Err(io::Error::last_os_error());
    }
    let mut count = 0;
    for index in 0.. {
        // SAFETY: the list goes on to the entry without a name, and nothing behind that is looked at.
        let name = unsafe { (*list.add(index)).if_name };
        if name.is_null() {
            break;
        }
        // SAFETY: the entry's name is a string that ends with zero.
        let name = unsafe { std::ffi::CStr::from_ptr(name) };
        count += usize::from(name.to_bytes().starts_with(TAPS.as_bytes()));
    }
    // SAFETY: it is the list from above, freed once.
    unsafe { libc::if_freenameindex(list) };
    Ok(count)
}
