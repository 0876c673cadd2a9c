//! Tests of the balloon with crafted queues. A service without a thread is served step by step.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::service::BalloonService;
use super::*;
use crate::fault::GuestFaults;
use crate::irq::IrqLine;
use crate::memory::{self, GuestMemory, PAGE, resident_bytes};
use crate::virtio::interrupt::{Interrupt, status};
use crate::virtio::queue::Virtqueue;
use crate::virtio::queue::tests::{NEXT, WRITE, endless_queue, queue_at};
use crate::virtio::worker::{Serve, Wakeups};

const DATA: u64 = 0x10_0000;
const BLOCK: u64 = 0x20_0000;
const BLOCK_SIZE: u64 = 0x20_0000;

type Descriptor = (u64, u32, u16, u16);

/// Requests for one queue: its descriptors, and the first descriptor of each chain.
type Requests<'a> = (&'a [Descriptor], &'a [u16]);

/// Creates the four queues, with requests in the queue `index`.
fn queues(memory: &GuestMemory, index: usize, requests: Requests) -> Vec<Virtqueue> {
    let (descriptors, heads) = requests;
    let queue = |number: usize| {
        let (descriptors, heads) = if number == index { (descriptors, heads) } else { (&[][..], &[][..]) };
        queue_at(memory, number as u64 * 0x1000, number, descriptors, heads)
    };
    (0..4).map(queue).collect()
}

fn activation(memory: &GuestMemory, queues: Vec<Virtqueue>) -> Activation {
    Activation {
        memory: memory.clone(),
        queues,
        interrupt: Arc::new(Interrupt::new(IrqLine::new().unwrap())),
        features: VERSION_1 | STATS_VQ | PAGE_REPORTING,
        faults: Arc::new(GuestFaults::new("balloon")),
        clock: Arc::default(),
    }
}

struct Bench {
    memory: GuestMemory,
    control: BalloonControl,
    faults: Arc<GuestFaults>,
    service: BalloonService,
}

fn bench(index: usize, descriptors: &[Descriptor], heads: &[u16]) -> Bench {
    let memory = memory::allocate(64).unwrap();
    memory.write_slice(&vec![7; BLOCK_SIZE as usize], GuestAddress(BLOCK)).unwrap();
    let activation = activation(&memory, queues(&memory, index, (descriptors, heads)));
    with_activation(memory, activation)
}

fn with_activation(memory: GuestMemory, activation: Activation) -> Bench {
    let balloon = Balloon::new().unwrap();
    let faults = Arc::clone(&activation.faults);
    let service = BalloonService::new(activation, Arc::clone(&balloon.shared), Wakeups::for_test()).unwrap();
    Bench { memory, control: balloon.control(), faults, service }
}

impl Bench {
    fn byte(&self, address: u64) -> u8 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn used(&self, index: usize) -> u16 {
        self.service.queue_states()[index].next_used
    }
}

#[test]
fn reported_block_is_released() {
    let mut bench = bench(3, &[(BLOCK, BLOCK_SIZE as u32, WRITE, 0)], &[0]);
    let before = resident_bytes(&bench.memory).unwrap();
    assert_eq!(bench.service.serve_batch(), Ok(false));
    assert!(resident_bytes(&bench.memory).unwrap() + BLOCK_SIZE <= before);
    assert_eq!((bench.byte(BLOCK), bench.byte(BLOCK + BLOCK_SIZE - 1), bench.used(3)), (0, 0, 1));
}

#[test]
fn parts_of_pages_in_report_are_kept() {
    let chain = [(BLOCK + 1, 2 * PAGE as u32, NEXT | WRITE, 1), (BLOCK + 4 * PAGE, 100, WRITE, 0)];
    let mut bench = bench(3, &chain, &[0]);
    assert_eq!(bench.service.serve_batch(), Ok(false));
    let bytes: Vec<u8> = (0..5).map(|page| bench.byte(BLOCK + page * PAGE)).collect();
    assert_eq!((bytes, bench.used(3)), (vec![7, 0, 7, 7, 7], 1));
}

#[test]
fn invalid_reports_need_reset_and_release_nothing() {
    let (size, last) = (BLOCK_SIZE as u32, (64 << 20) - PAGE);
    let invalid = [
        (BLOCK, size, 0),
        (last, 2 * PAGE as u32, WRITE),
        (u64::MAX - PAGE + 1, 2 * PAGE as u32, WRITE),
        (0xd000_0000, PAGE as u32, WRITE),
        (BLOCK, 0, WRITE),
    ];
    for (address, length, flags) in invalid {
        let mut bench = bench(3, &[(address, length, flags, 0)], &[0]);
        assert!(bench.service.serve_batch().is_err(), "{address:#x} {length:#x} {flags}");
        assert_eq!((bench.byte(BLOCK), bench.used(3)), (7, 0));
    }
}

#[test]
fn inflated_pages_are_released() {
    let mut bench = bench(0, &[(DATA, 15, 0, 0)], &[0]);
    let page = (BLOCK / PAGE) as u32;
    // Out of order, with a repetition, a gap, and an incomplete number at the end.
    let numbers: Vec<u8> = [page + 1, page, page + 1, page + 3].into_iter().flat_map(u32::to_le_bytes).collect();
    bench.memory.write_slice(&numbers, GuestAddress(DATA)).unwrap();
    assert_eq!(bench.service.serve_batch(), Ok(false));
    let bytes: Vec<u8> = (0..4).map(|page| bench.byte(BLOCK + page * PAGE)).collect();
    assert_eq!((bytes, bench.used(0), bench.faults.count()), (vec![0, 0, 7, 7], 1, 0));
}

#[test]
fn pages_outside_memory_are_faults_and_others_are_released() {
    let mut bench = bench(0, &[(DATA, 16, 0, 0)], &[0]);
    let end = (64_u32 << 20) / PAGE as u32;
    let numbers: Vec<u8> =
        [u32::MAX, end - 1, end, (BLOCK / PAGE) as u32].into_iter().flat_map(u32::to_le_bytes).collect();
    bench.memory.write_slice(&[7; 16], GuestAddress((64 << 20) - 16)).unwrap();
    bench.memory.write_slice(&numbers, GuestAddress(DATA)).unwrap();
    assert_eq!(bench.service.serve_batch(), Ok(false));
    assert_eq!((bench.byte(BLOCK), bench.byte((64 << 20) - 1)), (0, 0));
    assert_eq!((bench.used(0), bench.faults.count()), (1, 1));
}

#[test]
fn inflate_request_releases_limited_number_of_pages() {
    let count = 5000_u32;
    let mut bench = bench(0, &[(DATA, count * 4, 0, 0)], &[0]);
    let first = (0x100_0000 / PAGE) as u32;
    for number in 0..count {
        bench.memory.write_obj(first + number, GuestAddress(DATA + u64::from(number) * 4)).unwrap();
        bench.memory.write_obj(7_u8, GuestAddress(u64::from(first + number) * PAGE)).unwrap();
    }
    assert_eq!(bench.service.serve_batch(), Ok(false));
    let kept = (0..count).filter(|number| bench.byte(u64::from(first + number) * PAGE) == 7).count();
    assert_eq!((kept, bench.used(0)), (5000 - 4096, 1));
}

#[test]
fn deflate_request_is_completed() {
    let mut bench = bench(1, &[(DATA, 4, 0, 0)], &[0]);
    assert_eq!(bench.service.serve_batch(), Ok(false));
    assert_eq!(bench.used(1), 1);
}

#[test]
fn writable_buffers_in_readable_queues_need_reset() {
    for index in 0..3 {
        let mut bench = bench(index, &[(DATA, 16, WRITE, 0)], &[0]);
        assert!(bench.service.serve_batch().is_err(), "queue {index}");
    }
}

/// Writes statistics with this amount of free memory.
fn write_statistics(memory: &GuestMemory, free: u64) {
    memory.write_slice(&[&4_u16.to_le_bytes()[..], &free.to_le_bytes()].concat(), GuestAddress(DATA)).unwrap();
}

#[test]
fn statistics_are_read_and_renewed_on_request() {
    let mut bench = bench(2, &[(DATA, 10, 0, 0)], &[0]);
    let free = |bench: &Bench| bench.control.statistics().map(|record| record.free_bytes);
    assert_eq!(free(&bench), None);
    write_statistics(&bench.memory, 5);
    assert_eq!(bench.service.serve_batch(), Ok(false));
    assert_eq!((free(&bench), bench.used(2)), (Some(5), 0));

    bench.service.request_statistics();
    assert_eq!(bench.service.serve_batch(), Ok(false));
    assert_eq!(bench.used(2), 1, "the buffer is still in the queue");
    // The driver makes the buffer available again.
    write_statistics(&bench.memory, 6);
    let available = GuestAddress(2 * 0x1000 + 0x100);
    bench.memory.write_obj(2_u16, GuestAddress(available.0 + 2)).unwrap();
    assert_eq!(bench.service.serve_batch(), Ok(false));
    assert_eq!((free(&bench), bench.used(2)), (Some(6), 1));
}

#[test]
fn unread_statistics_are_available_in_saved_queue() {
    let mut bench = bench(2, &[(DATA, 10, 0, 0)], &[0]);
    assert_eq!(bench.service.serve_batch(), Ok(false));
    let state = bench.service.queue_states()[2];
    assert_eq!((state.next_avail, state.next_used), (0, 0));
}

#[test]
fn statistics_end_with_reset() {
    let memory = memory::allocate(64).unwrap();
    write_statistics(&memory, 5);
    let mut balloon = Balloon::new().unwrap();
    let control = balloon.control();
    balloon.activate(activation(&memory, queues(&memory, 2, (&[(DATA, 10, 0, 0)], &[0])))).unwrap();
    // The thread serves the queues once before it checks for a pause.
    balloon.pause();
    assert!(control.statistics().is_some());
    balloon.reset();
    assert_eq!(control.statistics(), None);
}

#[test]
fn queues_of_rejected_features_are_not_served() {
    let memory = memory::allocate(64).unwrap();
    memory.write_obj(7_u8, GuestAddress(BLOCK)).unwrap();
    let queues = queues(&memory, 3, (&[(BLOCK, BLOCK_SIZE as u32, WRITE, 0)], &[0]));
    let activation = Activation { features: VERSION_1, ..activation(&memory, queues) };
    let mut bench = with_activation(memory, activation);
    assert_eq!(bench.service.serve_batch(), Ok(false));
    assert_eq!((bench.byte(BLOCK), bench.used(3)), (7, 0));
}

#[test]
fn queues_that_the_driver_did_not_set_up_are_ignored() {
    let memory = memory::allocate(64).unwrap();
    let interrupt = Arc::new(Interrupt::new(IrqLine::new().unwrap()));
    let queue = |index| {
        let queue = virtio_queue::QueueT::new(16).unwrap();
        let kick = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        Virtqueue::new(index, queue, memory.clone(), Arc::clone(&interrupt), kick)
    };
    let activation = activation(&memory, (0..4).map(queue).collect());
    let mut bench = with_activation(memory.clone(), activation);
    assert_eq!(bench.service.serve_batch(), Ok(false));
}

#[test]
fn endless_reports_are_served_in_batches_and_device_pauses() {
    let memory = memory::allocate(64).unwrap();
    let endless = || {
        let mut all = queues(&memory, 0, (&[], &[]));
        all[3] = endless_queue(&memory, 3, (BLOCK, PAGE as u32, WRITE));
        activation(&memory, all)
    };
    let mut bench = with_activation(memory.clone(), endless());
    for turn in 1..=3 {
        assert_eq!(bench.service.serve_batch(), Ok(true));
        assert_eq!(bench.service.queue_states()[3].next_avail, turn * 8);
    }
    let mut balloon = Balloon::new().unwrap();
    balloon.activate(endless()).unwrap();
    assert_eq!(balloon.pause().len(), 4);
}

#[test]
fn invalid_request_of_active_device_needs_reset() {
    let memory = memory::allocate(64).unwrap();
    let activation = activation(&memory, queues(&memory, 3, (&[(BLOCK, 4096, 0, 0)], &[0])));
    let (interrupt, faults) = (Arc::clone(&activation.interrupt), Arc::clone(&activation.faults));
    let mut balloon = Balloon::new().unwrap();
    balloon.activate(activation).unwrap();
    balloon.pause();
    assert_eq!(faults.count(), 1);
    assert_ne!(interrupt.device_status() & status::DEVICE_NEEDS_RESET, 0);
}

#[test]
fn configuration_asks_for_no_pages() {
    let mut data = [0xff; 12];
    Balloon::new().unwrap().read_config(0, &mut data);
    assert_eq!(data, [0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
}

#[test]
fn pages_are_not_released_while_they_are_held() {
    let mut bench = bench(3, &[(BLOCK, BLOCK_SIZE as u32, WRITE, 0)], &[0]);
    let control = bench.control.clone();
    let held = control.hold_pages();
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| bench.service.serve_batch().unwrap());
        assert_eq!(bench.memory.read_obj::<u8>(GuestAddress(BLOCK)).unwrap(), 7);
        drop(held);
        serving.join().unwrap();
    });
    assert_eq!(bench.byte(BLOCK), 0);
}
