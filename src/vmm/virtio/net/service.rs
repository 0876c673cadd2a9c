//! The network device's thread, which moves frames between the guest's queues, the netstack's services and the backend.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;

use super::backend::Backend;
use super::frame::{MAX_FRAME, Sent};
use super::header::{self, Header};
use super::receiver::{Receiver, Step};
use super::{Port, RECEIVE, Shared, TRANSMIT, feature};
use crate::fault::GuestFaults;
use crate::memory::GuestMemory;
use crate::sandbox::calls::ThreadKind;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::iovec::IoVecs;
use crate::virtio::queue::{self, Chain, QueueError, Virtqueue};
use crate::virtio::wakeups::{Wakeups, timeout_ms};
use crate::virtio::worker::Serve;
use crate::virtio::{Activation, QueueState};
use netstack::{HEAD_LENGTH, Route};

/// Maximum number of frames in one direction before serving the other direction and checking for a pause.
const BATCH: usize = 64;

const KICK: u64 = 0;
const BACKEND: u64 = 1;
const SERVICES: u64 = 2;
const CHANGED: u64 = 3;

#[derive(Debug)]
pub struct NetService {
    shared: Arc<Shared>,
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    faults: Arc<GuestFaults>,
    wakeups: Arc<Wakeups>,
    receiver: Receiver,
    transmit: Virtqueue,
    /// Polled events of the backend. If empty, it is not in the epoll set, because epoll would report a hangup forever.
    watched: EventSet,
    /// Set if the backend has no room: a frame is still in the ring, or only part of it was sent.
    is_full: bool,
    is_starved: bool,
    /// Time until throttled frames may pass, to the guest and from the guest.
    held: [Option<Duration>; 2],
}

impl NetService {
    pub(super) fn new(shared: Arc<Shared>, activation: Activation, wakeups: Arc<Wakeups>) -> io::Result<NetService> {
        let Activation { memory, queues, interrupt, features, faults, .. } = activation;
        let mut queues = queues.into_iter();
        let (Some(receive), Some(transmit)) = (queues.next(), queues.next()) else {
            return Err(io::Error::other("a network device must have two queues"));
        };
        debug_assert!(receive.index() == RECEIVE && transmit.index() == TRANSMIT);
        let has = |bit| features & bit != 0;
        for queue in [&receive, &transmit] {
            wakeups.add(queue.kick().as_raw_fd(), EventSet::IN, KICK)?;
        }
        wakeups.add(shared.changed.as_raw_fd(), EventSet::IN, CHANGED)?;
        {
            let port = shared.port();
            port.backend.set_offloads(has(feature::GUEST_CSUM), has(feature::GUEST_TSO4), has(feature::GUEST_ECN))?;
            if let Some(fd) = port.backend.fd() {
                wakeups.add(fd, EventSet::IN, BACKEND)?;
            }
            if let Some(services) = &port.services {
                wakeups.add(services.events().as_raw_fd(), EventSet::IN, SERVICES)?;
            }
        }
        let receiver = Receiver::new(receive, has(feature::MRG_RXBUF));
        let (watched, is_full, is_starved, held) = (EventSet::IN, false, false, [None; 2]);
        Ok(NetService {
            shared,
            memory,
            interrupt,
            faults,
            wakeups,
            receiver,
            transmit,
            watched,
            is_full,
            is_starved,
            held,
        })
    }

    /// Moves a batch of frames in each direction. Returns the time to wait before the next, `None` for no limit.
    fn serve(&mut self, shared: &Shared) -> Result<Option<Duration>, QueueError> {
        let mut port = shared.port();
        let now = Instant::now();
        let mut has_more = self.send_batch(&mut port, shared, now)?;
        // Poll after sending, because the guest's frames may cause immediate replies.
        if let Some(services) = &mut port.services {
            services.poll(now);
        }
        has_more |= self.receive_batch(&mut port, shared, now)?;
        self.watch(&port);
        if has_more {
            return Ok(Some(Duration::ZERO));
        }
        let services = port.services.as_mut().and_then(|services| services.timeout(now));
        match self.held {
            // Frames of the services are throttled too, so the thread would spin if it woke at the services' timeout.
            [Some(receiving), sending] => Ok(Some(sending.map_or(receiving, |sending| sending.min(receiving)))),
            [None, sending] => Ok(services.into_iter().chain(sending).min()),
        }
    }

    /// Sends up to [`BATCH`] frames of the guest. Returns true if there may be more.
    fn send_batch(&mut self, port: &mut Port, shared: &Shared, now: Instant) -> Result<bool, QueueError> {
        self.held[TRANSMIT] = None;
        if self.is_full && !port.backend.flush() {
            return Ok(false);
        }
        self.is_full = false;
        self.transmit.disable_notifications()?;
        let mut count = 0;
        while count < BATCH {
            self.held[TRANSMIT] = port.wait(TRANSMIT);
            if self.held[TRANSMIT].is_some() {
                break;
            }
            let Some(chain) = self.transmit.pop()? else { break };
            if self.send(port, shared, &chain, now)? == Sent::Full {
                self.transmit.undo_pop();
                self.is_full = true;
                break;
            }
            self.transmit.add_used(chain.head, 0)?;
            count += 1;
        }
        self.transmit.notify()?;
        // Part of the last frame may be unsent.
        self.is_full |= !port.backend.flush();
        // Notifications are not needed until sending is possible again.
        if self.is_full || self.held[TRANSMIT].is_some() {
            return Ok(false);
        }
        Ok(count == BATCH || self.transmit.enable_notifications()?)
    }

    fn send(&mut self, port: &mut Port, shared: &Shared, chain: &Chain, now: Instant) -> Result<Sent, QueueError> {
        let index = self.transmit.index();
        if let Some(buffer) = chain.writable.first() {
            return Err(QueueError::WrongDirection { queue: index, address: buffer.address.0 });
        }
        let total = queue::total_length(&chain.readable);
        let mut bytes = [0; header::LENGTH + HEAD_LENGTH];
        let copied = queue::read_from(&self.memory, &chain.readable, &mut bytes);
        // At least an Ethernet header must follow the virtio header.
        let frame_length = total.saturating_sub(header::LENGTH as u64);
        if frame_length < 14 || frame_length > MAX_FRAME as u64 {
            self.faults.record(&format!("a frame with the invalid length {frame_length}"));
            shared.counters.dropped();
            return Ok(Sent::Refused);
        }
        let length = frame_length as usize;
        let (header, head) = bytes[..copied].split_at(header::LENGTH);
        let header: Header = header.try_into().unwrap_or(header::PLAIN);
        if !header::is_offered(&header) {
            self.faults.record(&"a frame with an offload that was not offered");
            shared.counters.dropped();
            return Ok(Sent::Refused);
        }
        let route = match &mut port.services {
            Some(services) => services.from_guest(head, now),
            None => Route::Forward,
        };
        let skip = (header::LENGTH + head.len()) as u64;
        let rest = queue::subrange(&chain.readable, skip, u64::MAX);
        let slices = queue::volatile_slices(&self.memory, &rest);
        // Send the copy of the head that was inspected, because the guest may change its memory concurrently.
        let mut frame = IoVecs::default();
        frame.push_source(head);
        frame.extend_guest(&slices);
        let sent = match (route, &mut port.services) {
            (Route::Services, Some(services)) => {
                services.accept(&frame.copy_from(0), now);
                Sent::Done
            }
            (Route::Forward, Some(services)) if matches!(port.backend, Backend::Disconnected) => {
                services.refuse(head);
                Sent::Refused
            }
            (Route::Forward, _) if frame.fit() => port.backend.send(&header, &frame),
            _ => Sent::Refused,
        };
        match sent {
            Sent::Done => {
                port.take(TRANSMIT, length);
                shared.counters.sent(length);
            }
            Sent::Refused => shared.counters.dropped(),
            Sent::Full => {}
        }
        Ok(sent)
    }

    /// Delivers up to [`BATCH`] frames to the guest. Returns true if there may be more, and buffers for them.
    fn receive_batch(&mut self, port: &mut Port, shared: &Shared, now: Instant) -> Result<bool, QueueError> {
        self.receiver.queue().disable_notifications()?;
        let mut count = 0;
        self.is_starved = loop {
            self.held[RECEIVE] = port.wait(RECEIVE);
            if self.held[RECEIVE].is_some() {
                break false;
            }
            if count == BATCH {
                self.receiver.queue().notify()?;
                return Ok(true);
            }
            match self.receive(port, now)? {
                Step::Delivered(length) => {
                    port.take(RECEIVE, length);
                    shared.counters.received(length);
                }
                Step::Dropped => shared.counters.dropped(),
                Step::Closed => self.close(port, shared),
                Step::Nothing => break false,
                Step::NoBuffers => break true,
            }
            count += 1;
        };
        self.receiver.queue().notify()?;
        // Notifications of new buffers are only needed while frames wait for buffers.
        if self.is_starved { self.receiver.queue().enable_notifications() } else { Ok(false) }
    }

    /// Delivers one frame: the waiting frame, else a frame from the services, else a frame from the backend.
    fn receive(&mut self, port: &mut Port, now: Instant) -> Result<Step, QueueError> {
        if self.receiver.is_waiting() {
            return self.receiver.deliver_waiting(&self.memory);
        }
        let Port { backend, services, .. } = port;
        if let Some(services) = services
            && let Some(frame) = services.next_frame()
        {
            return self.receiver.deliver(&self.memory, header::PLAIN, frame);
        }
        if matches!(backend, Backend::Disconnected) {
            return Ok(Step::Nothing);
        }
        let may_pass = |head: &[u8]| services.as_mut().is_none_or(|services| services.to_guest(head, now));
        self.receiver.receive(&self.memory, backend, may_pass)
    }

    /// Disconnects the backend. Takes the link down if the device has no services, which would still answer the guest.
    fn close(&mut self, port: &mut Port, shared: &Shared) {
        port.backend = Backend::Disconnected;
        shared.is_cut_off.store(true, Ordering::Release);
        if port.services.is_none() {
            self.interrupt.change_config(|| shared.is_up.store(false, Ordering::Release));
        }
    }

    /// Updates the set of backend events to the ones that the thread can act on.
    fn watch(&mut self, port: &Port) {
        let holds = self.is_starved || self.held[RECEIVE].is_some();
        let mut wanted = if holds { EventSet::empty() } else { EventSet::IN };
        wanted.set(EventSet::OUT, self.is_full);
        let Some(fd) = port.backend.fd().filter(|_| wanted != self.watched) else { return };
        let changed = match (self.watched.is_empty(), wanted.is_empty()) {
            (true, _) => self.wakeups.add(fd, wanted, BACKEND),
            (_, true) => self.wakeups.remove(fd),
            _ => self.wakeups.change(fd, wanted, BACKEND),
        };
        match changed {
            Ok(()) => self.watched = wanted,
            Err(error) => log::warn!("polling the network backend failed: {error}"),
        }
    }

    fn serve_on(&mut self) -> Result<(), QueueError> {
        let shared = Arc::clone(&self.shared);
        loop {
            // Reset the counters first: this round serves everything that was notified before.
            for queue in [self.receiver.queue(), &mut self.transmit] {
                let _ = queue.kick().read();
            }
            let _ = shared.changed.read();
            let timeout = self.serve(&shared)?;
            let began = self.held.iter().any(Option::is_some).then(Instant::now);
            let is_running = self.wakeups.wait(timeout_ms(timeout), |_, _| {});
            if let Some(began) = began {
                shared.counters.throttled(began.elapsed());
            }
            if !is_running {
                return Ok(());
            }
        }
    }
}

impl Serve for NetService {
    const KIND: ThreadKind = ThreadKind::Net;

    fn queue_states(&self) -> Vec<QueueState> {
        vec![self.receiver.state(), self.transmit.state()]
    }

    fn run(&mut self) {
        let outcome = self.serve_on();
        self.receiver.put_back();
        if let Err(error) = outcome {
            self.faults.record(&error);
            self.interrupt.need_reset();
        }
    }
}
