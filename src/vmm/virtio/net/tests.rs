use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::fault::GuestFaults;
use crate::irq::IrqLine;
use crate::memory::{self, GuestMemory};
use crate::virtio::interrupt::{Interrupt, status};
use crate::virtio::iovec::IoVecs;
use crate::virtio::queue::tests::{NEXT, WRITE, queue_at};
use machine::limits::Rate;
use netstack::MacAddress;

const DEADLINE: Duration = Duration::from_secs(20);
const TRANSMIT_RINGS: u64 = 0x2000;
const HEADER: u32 = header::LENGTH as u32;

type Descriptor = (u64, u32, u16, u16);

struct Bench {
    memory: GuestMemory,
    net: Net,
    interrupt: Arc<Interrupt>,
    faults: Arc<GuestFaults>,
    peer: UnixStream,
    rings: [QueueState; 2],
}

fn bench(receive: (&[Descriptor], &[u16]), transmit: (&[Descriptor], &[u16]), frames: &[(u64, Vec<u8>)]) -> Bench {
    limited_bench(None, receive, transmit, frames)
}

fn limited_bench(
    limits: Option<NetLimits>,
    receive: (&[Descriptor], &[u16]),
    transmit: (&[Descriptor], &[u16]),
    frames: &[(u64, Vec<u8>)],
) -> Bench {
    let memory = memory::allocate(64).unwrap();
    for (address, bytes) in frames {
        memory.write_slice(bytes, GuestAddress(*address)).unwrap();
    }
    let (near, peer) = UnixStream::pair().unwrap();
    peer.set_read_timeout(Some(DEADLINE)).unwrap();
    let mac = MacAddress([6, 0, 0, 0, 0, 1]);
    let config = NetConfig { mac, mtu: 1500, link: None, limits };
    let mut net = Net::new(&config, Backend::of(OwnedFd::from(near)).unwrap(), None, None).unwrap();
    let interrupt = Arc::new(Interrupt::new(IrqLine::new().unwrap()));
    let faults = Arc::new(GuestFaults::new("net"));
    let queues = vec![
        queue_at(&memory, 0, RECEIVE, receive.0, receive.1),
        queue_at(&memory, TRANSMIT_RINGS, TRANSMIT, transmit.0, transmit.1),
    ];
    let rings = [queues[RECEIVE].state(), queues[TRANSMIT].state()];
    let activation = Activation {
        memory: memory.clone(),
        queues,
        interrupt: Arc::clone(&interrupt),
        features: net.features(),
        faults: Arc::clone(&faults),
        clock: Arc::default(),
    };
    net.activate(activation).unwrap();
    Bench { memory, net, interrupt, faults, peer, rings }
}

impl Bench {
    fn wait(&self, what: &str, holds: impl Fn(&Bench) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::yield_now();
        }
    }

    /// Returns the used chains, each with its number of written bytes.
    fn used(&self, queue: usize) -> Vec<(u32, u32)> {
        let ring = self.rings[queue].used_ring;
        let word = |at: u64| self.memory.read_obj::<u32>(GuestAddress(at)).unwrap();
        let element = |index: u64| (word(ring + 4 + 8 * index), word(ring + 8 + 8 * index));
        (0..u64::from(self.used_count(queue))).map(element).collect()
    }

    fn used_count(&self, queue: usize) -> u16 {
        self.memory.read_obj(GuestAddress(self.rings[queue].used_ring + 2)).unwrap()
    }

    /// Makes the chain at `head` available in ring entry `number`, and restarts the device's thread, which serves it.
    fn offer(&mut self, queue: usize, number: u16, head: u16) {
        let ring = self.rings[queue].avail_ring;
        self.memory.write_obj(head, GuestAddress(ring + 4 + 2 * u64::from(number % 16))).unwrap();
        self.memory.write_obj(number + 1, GuestAddress(ring + 2)).unwrap();
        self.net.pause();
        self.net.resume().unwrap();
    }

    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn send(&mut self, frame: &[u8]) {
        self.peer.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
        self.peer.write_all(frame).unwrap();
    }

    fn received(&mut self) -> Vec<u8> {
        let mut prefix = [0; 4];
        self.peer.read_exact(&mut prefix).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
        self.peer.read_exact(&mut frame).unwrap();
        frame
    }

    fn needs_reset(&self) -> bool {
        self.interrupt.device_status() & status::DEVICE_NEEDS_RESET != 0
    }
}

fn frame(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

fn with_header(frame: &[u8]) -> Vec<u8> {
    [&header::PLAIN[..], frame].concat()
}

#[test]
fn frame_in_several_buffers_is_sent_whole() {
    let sent = frame(1000);
    let bytes = with_header(&sent);
    let (head, rest) = bytes.split_at(300);
    let descriptors = [(0x10_0000, 12, NEXT, 1), (0x10_000c, 288, NEXT, 2), (0x20_0000, 712, 0, 0)];
    let mut bench = bench((&[], &[]), (&descriptors, &[0]), &[(0x10_0000, head.into()), (0x20_0000, rest.into())]);
    assert_eq!(bench.received(), sent);
    bench.wait("the chain is used", |bench| bench.used(TRANSMIT) == [(0, 0)]);
    assert_eq!((bench.net.control().record().sent_frames, bench.net.control().record().sent_bytes), (1, 1000));
}

#[test]
fn frame_uses_only_the_buffers_it_needs() {
    let buffers: Vec<Descriptor> = (0..8).map(|index| (0x10_0000 + index * 0x1000, 512, WRITE, 0)).collect();
    let mut bench = bench((&buffers, &[3, 1, 2, 0, 4, 5, 6, 7]), (&[], &[]), &[]);
    let long = frame(1200);
    bench.send(&long);
    bench.wait("three chains are used", |bench| bench.used(RECEIVE) == [(3, 512), (1, 512), (2, 1212 - 1024)]);
    let first = bench.bytes(0x10_3000, 512);
    assert_eq!(first[10..12], [3, 0], "num_buffers");
    let body = [&first[12..], &bench.bytes(0x10_1000, 512), &bench.bytes(0x10_2000, 188)].concat();
    assert_eq!(body, long);
    bench.send(&frame(14));
    bench.wait("one chain is used", |bench| bench.used(RECEIVE)[3..] == [(0, HEADER + 14)]);
    assert_eq!(bench.bytes(0x10_0000 + 12, 14), frame(14));
    // On pause, chains that were taken and not used return to the queue.
    let states = bench.net.pause();
    assert_eq!((states[RECEIVE].next_avail, states[RECEIVE].next_used), (4, 4));
    bench.net.resume().unwrap();
    bench.send(&frame(100));
    bench.wait("the next chain is used", |bench| bench.used(RECEIVE)[4..] == [(4, HEADER + 100)]);
}

#[test]
fn frame_waits_for_missing_buffers() {
    let mut bench = bench((&[(0x10_0000, 256, WRITE, 0), (0x10_1000, 2048, WRITE, 0)], &[0]), (&[], &[]), &[]);
    bench.send(&frame(1000));
    bench.wait("the frame was taken", |bench| {
        let port = bench.net.shared.port();
        matches!(&port.backend, Backend::Stream(stream) if !stream.has_frame())
    });
    assert_eq!(bench.used(RECEIVE), []);
    bench.offer(RECEIVE, 1, 1);
    bench.wait("the frame is delivered", |bench| bench.used(RECEIVE) == [(0, 256), (1, 756)]);
    let body = [bench.bytes(0x10_000c, 244), bench.bytes(0x10_1000, 756)].concat();
    assert_eq!(body, frame(1000));
    assert_eq!(bench.net.control().record().received_frames, 1);
}

#[test]
fn invalid_transmit_frames_are_dropped() {
    let mut wrong = with_header(&frame(60));
    wrong[1] = 4;
    let frames = [(0x10_0000, wrong), (0x10_1000, with_header(&frame(13))), (0x10_2000, with_header(&frame(14)))];
    let descriptors = [(0x10_0000, 72, 0, 0), (0x10_1000, 25, 0, 0), (0x10_2000, 26, 0, 0), (0x10_3000, 5, 0, 0)];
    let mut bench = bench((&[], &[]), (&descriptors, &[0, 1, 3, 2]), &frames);
    assert_eq!(bench.received(), frame(14));
    bench.wait("all chains are used", |bench| bench.used(TRANSMIT).len() == 4);
    assert_eq!((bench.faults.count(), bench.net.control().record().dropped_frames), (3, 3));
    assert!(!bench.needs_reset());
}

#[test]
fn buffers_with_wrong_direction_need_reset() {
    for (receive, transmit) in [(&[][..], &[(0x10_0000, 100, WRITE, 0)][..]), (&[(0x10_0000, 100, 0, 0)], &[])] {
        let heads = |descriptors: &[Descriptor]| if descriptors.is_empty() { vec![] } else { vec![0] };
        let mut bench = bench((receive, &heads(receive)), (transmit, &heads(transmit)), &[]);
        bench.send(&frame(60));
        bench.wait("the device needs a reset", Bench::needs_reset);
        assert_eq!(bench.faults.count(), 1);
        bench.net.reset();
    }
}

#[test]
fn slow_backend_receives_every_frame() {
    const FRAMES: u16 = 200;
    let sent = frame(60_000);
    let descriptors: Vec<Descriptor> = (0..16).map(|_| (0x10_0000, 60_012, 0, 0)).collect();
    let heads: Vec<u16> = (0..16).collect();
    let mut bench = bench((&[], &[]), (&descriptors, &heads), &[(0x10_0000, with_header(&sent))]);
    for number in 0..FRAMES {
        assert_eq!(bench.received(), sent, "frame {number}");
        bench.wait("the chain is used", |bench| bench.used_count(TRANSMIT) > number);
        if number + 16 < FRAMES {
            bench.offer(TRANSMIT, number + 16, number % 16);
        }
    }
    assert_eq!(bench.net.control().record().sent_frames, u64::from(FRAMES));
}

#[test]
fn backend_hangup_takes_link_down() {
    let mut bench = bench((&[(0x10_0000, 2048, WRITE, 0)], &[0]), (&[], &[]), &[]);
    let link = |net: &Net| {
        let mut status = [0; 2];
        net.read_config(6, &mut status);
        u16::from_le_bytes(status)
    };
    assert_eq!(link(&bench.net), LINK_UP);
    let (other, _) = UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut bench.peer, other));
    bench.wait("the link is down", |bench| link(&bench.net) == 0);
}

#[test]
fn dropped_stream_leaves_socket_at_frame_boundary() {
    let (near, mut peer) = UnixStream::pair().unwrap();
    let kept = near.try_clone().unwrap();
    let mut stream = match Backend::of(OwnedFd::from(near)).unwrap() {
        Backend::Stream(stream) => stream,
        other => panic!("{other:?}"),
    };
    peer.write_all(&[&50_u32.to_be_bytes()[..], &[1; 30]].concat()).unwrap();
    let mut space = [0; 100];
    let mut target = IoVecs::default();
    target.push_target(&mut space);
    assert_eq!(stream.receive(&target, |_| true), frame::Received::Nothing);
    peer.write_all(&[&[1; 20][..], &3_u32.to_be_bytes(), &[7, 8, 9]].concat()).unwrap();
    drop(stream);
    let mut rest = [0; 7];
    (&kept).read_exact(&mut rest).unwrap();
    assert_eq!(rest, [0, 0, 0, 3, 7, 8, 9]);
}

#[test]
fn refused_frame_leaves_no_bytes_in_guest_memory() {
    use std::os::unix::net::UnixDatagram;
    const FRAME: usize = 3000;
    // First the buffers have room for the longest frame, then for less than the frame that is sent.
    for (count, length) in [(2, 36_000), (2, 700)] {
        for is_tap in [true, false] {
            let memory = memory::allocate(64).unwrap();
            let buffers: Vec<Descriptor> =
                (0..count).map(|number| (0x30_0000 + (number << 20), length, WRITE, 0)).collect();
            let heads: Vec<u16> = (0..count as u16).collect();
            let mut receiver = receiver::Receiver::new(queue_at(&memory, 0, RECEIVE, &buffers, &heads), true);
            let (frame, mut backend, _peer): (_, _, OwnedFd) = if is_tap {
                let (near, far) = UnixDatagram::pair().unwrap();
                far.send(&[&header::PLAIN[..], &[7; FRAME]].concat()).unwrap();
                (vec![7; FRAME], Backend::Tap(tap::Tap::for_test(near.into())), far.into())
            } else {
                let (near, mut far) = UnixStream::pair().unwrap();
                far.write_all(&[&(FRAME as u32).to_be_bytes()[..], &[7; FRAME]].concat()).unwrap();
                (vec![7; FRAME], Backend::of(near.into()).unwrap(), far.into())
            };
            let mut asked = Vec::new();
            let refuse = |head: &[u8]| {
                asked = head.to_vec();
                false
            };
            assert_eq!(receiver.receive(&memory, &mut backend, refuse), Ok(receiver::Step::Dropped));
            assert_eq!(asked, frame[..asked.len()]);
            assert!(asked.len() >= 100);
            for (address, length, ..) in buffers {
                let mut bytes = vec![0; length as usize];
                memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
                assert!(bytes.iter().all(|byte| *byte == 0), "tap: {is_tap}, room for {length}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn arbitrary_rings_never_panic(
        receive in proptest::collection::vec((0_u64..0x80, 0_u32..3000, 0_u16..8, 0_u16..16), 0..16),
        transmit in proptest::collection::vec((0_u64..0x80, 0_u32..3000, 0_u16..8, 0_u16..16), 0..16),
        content in proptest::collection::vec(any::<u8>(), 4096),
        sizes in proptest::collection::vec(0_usize..5000, 0..4),
    ) {
        let place = |descriptors: Vec<Descriptor>| -> Vec<Descriptor> {
            descriptors.into_iter().map(|(page, length, flags, next)| (page << 16, length, flags, next)).collect()
        };
        let (receive, transmit) = (place(receive), place(transmit));
        let heads = |descriptors: &[Descriptor]| (0..descriptors.len() as u16).collect::<Vec<_>>();
        let frames: Vec<(u64, Vec<u8>)> = (1..0x40).map(|page| (page << 16, content.clone())).collect();
        let mut bench =
            bench((&receive, &heads(&receive)), (&transmit, &heads(&transmit)), &frames);
        for size in sizes {
            bench.send(&frame(size));
        }
        // The thread serves the whole queue and stops when it is paused.
        bench.net.pause();
        bench.net.resume().unwrap();
        bench.net.reset();
    }
}

#[test]
fn throttled_frames_wait_without_blocking_pause() {
    // At one byte per second, one frame passes each way. The next frame would have to wait for minutes.
    let limits = Some(NetLimits { bytes: Rate::constant(1) });
    let buffers = [(0x30_0000, 512, WRITE, 0), (0x31_0000, 512, WRITE, 0)];
    let frames = [(0x10_0000, with_header(&frame(100))), (0x20_0000, with_header(&frame(200)))];
    let sent = [(0x10_0000, HEADER + 100, 0, 0), (0x20_0000, HEADER + 200, 0, 0)];
    let mut bench = limited_bench(limits, (&buffers, &[0, 1]), (&sent, &[0, 1]), &frames);
    assert_eq!(bench.received(), frame(100));
    bench.send(&frame(300));
    bench.send(&frame(50));
    bench.wait("one frame arrived", |bench| bench.used(RECEIVE) == [(0, HEADER + 300)]);
    for _ in 0..2 {
        let states = bench.net.pause();
        assert_eq!((states[RECEIVE].next_avail, states[TRANSMIT].next_avail), (1, 1));
        bench.net.resume().unwrap();
    }
    let record = bench.net.control().record();
    assert_eq!((record.received_frames, record.sent_frames, record.dropped_frames), (1, 1, 0));
}
