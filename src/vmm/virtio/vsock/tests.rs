//! Tests of the ports that the device itself serves.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};
use wisp_agent::resumed::SENTINEL_PORT;
use wisp_agent::seed::SEED_PORT;

use super::Vsock;
use super::packet::{HEADER_SIZE, HOST_CID, Header, TYPE_STREAM, op};
use crate::fault::GuestFaults;
use crate::irq::IrqLine;
use crate::memory;
use crate::virtio::VERSION_1;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::tests::{WRITE, queue_at};
use crate::virtio::{Activation, VirtioDevice};
use machine::config::VsockConfig;
use netstack::broker;

const CID: u32 = 3;
const SENT: u64 = 0x10_0000;
const RECEIVED: u64 = 0x20_0000;
const BUFFER: u64 = 0x1000;

/// Sends connection requests for pairs of guest and host port. Returns the operation of each answer.
fn answers(ports: &[(u32, u32)]) -> Vec<u16> {
    let dir = tempfile::tempdir().unwrap();
    let seed = dir.path().join("seed");
    std::fs::write(&seed, b"a seed").unwrap();
    let config = VsockConfig { cid: CID, seed: Some(seed) };
    let path = dir.path().join("v");
    let connector = broker::in_thread(None, Some(path.clone())).vsock;
    let memory = memory::allocate(64).unwrap();
    let at = |start: u64, index: usize| start + index as u64 * BUFFER;
    for (index, (src_port, dst_port)) in ports.iter().enumerate() {
        let request = Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: *src_port,
            dst_port: *dst_port,
            kind: TYPE_STREAM,
            op: op::REQUEST,
            // No room for data, so that the answers are the only packets.
            buf_alloc: 0,
            ..Header::default()
        };
        memory.write_slice(&request.to_bytes(), GuestAddress(at(SENT, index))).unwrap();
    }
    let heads: Vec<u16> = (0..ports.len() as u16).collect();
    let chains = |start: u64, length: u32, flags: u16| -> Vec<(u64, u32, u16, u16)> {
        (0..ports.len()).map(|index| (at(start, index), length, flags, 0)).collect()
    };
    let queues = vec![
        queue_at(&memory, 0, 0, &chains(RECEIVED, BUFFER as u32, WRITE), &heads),
        queue_at(&memory, 0x400, 1, &chains(SENT, HEADER_SIZE as u32, 0), &heads),
        queue_at(&memory, 0x800, 2, &[], &[]),
    ];
    let activation = Activation {
        memory: memory.clone(),
        queues,
        interrupt: Arc::new(Interrupt::new(IrqLine::new().unwrap())),
        features: VERSION_1,
        faults: Arc::new(GuestFaults::new("vsock")),
        clock: Arc::default(),
    };
    let mut device = Vsock::new(&config, &path, connector).unwrap();
    device.activate(activation).unwrap();
    assert!(!device.pause().is_empty(), "the device's thread panicked");
    let mut answers: Vec<(u32, u16)> = (0..ports.len())
        .map(|index| {
            let mut bytes = [0; HEADER_SIZE];
            memory.read_slice(&mut bytes, GuestAddress(at(RECEIVED, index))).unwrap();
            let header = Header::from_bytes(&bytes);
            (header.dst_port, header.op)
        })
        .collect();
    // Resets precede responses: restore the order of the requests.
    answers.sort_by_key(|(port, _)| ports.iter().position(|(own, _)| own == port));
    answers.into_iter().map(|(_, op)| op).collect()
}

#[test]
fn seed_is_served_to_privileged_ports_only() {
    let ports = [(1, SEED_PORT), (1023, SEED_PORT), (0, SEED_PORT), (1024, SEED_PORT), (40_000, SEED_PORT)];
    assert_eq!(answers(&ports), [op::RESPONSE, op::RESPONSE, op::RST, op::RST, op::RST]);
}

#[test]
fn privileged_sentinel_is_not_replaced_by_unprivileged() {
    let ports = [(2000, SENTINEL_PORT), (1023, SENTINEL_PORT), (3000, SENTINEL_PORT), (1022, SENTINEL_PORT)];
    let answers = answers(&ports);
    assert_eq!((answers[1], answers[2], answers[3]), (op::RESPONSE, op::RST, op::RESPONSE), "{answers:?}");
}
