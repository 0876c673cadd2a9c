//! Checks of descriptor chains and buffer ranges over complete small domains, each against a simple model.

use vm_memory::{Bytes, GuestAddress};

use super::queue::tests::{INDIRECT, NEXT, WRITE, queue_with};
use super::queue::{Buffer, Chain, QueueError, Virtqueue, subrange};
use crate::memory::{self, GuestMemory};

/// The size of the test queue, and hence the most descriptors in a chain.
const SIZE: usize = 16;
const MEMORY: u64 = 64 << 20;
const DATA: u64 = 0x10_0000;
const TABLE: u64 = 0x20_0000;

/// An entry of a descriptor table: address, length, flags and next index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Entry {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

impl Entry {
    fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    fn store(self, memory: &GuestMemory, place: u64) {
        memory.write_obj(self.address, GuestAddress(place)).unwrap();
        memory.write_obj(self.length, GuestAddress(place + 8)).unwrap();
        memory.write_obj(self.flags, GuestAddress(place + 12)).unwrap();
        memory.write_obj(self.next, GuestAddress(place + 14)).unwrap();
    }
}

/// Returns the descriptors that the device visits in `table`, at most one for each entry, and true if the last one ends
/// the chain. An index outside the table or a loop does not end it.
fn walk(table: &[Entry], first: usize) -> (Vec<Entry>, bool) {
    let following = |entry: &Entry| table.get(usize::from(entry.next)).copied().filter(|_| entry.has(NEXT));
    let visited: Vec<Entry> = std::iter::successors(table.get(first).copied(), following).take(table.len()).collect();
    let ends = visited.last().is_some_and(|last| !last.has(NEXT));
    (visited, ends)
}

/// Like [`walk`] for a queue's table, whose descriptors may refer to the table `inner` (section 2.7.5.3).
fn walk_queue(table: &[Entry], head: usize, inner: Option<&[Entry]>) -> (Vec<Entry>, bool) {
    let (mut visited, ends) = walk(table, head);
    let Some(place) = visited.iter().position(|entry| entry.has(INDIRECT)) else { return (visited, ends) };
    visited.truncate(place);
    let Some(inner) = inner else { return (visited, false) };
    let (mut inside, ends) = walk(inner, 0);
    // An indirect table must not refer to another one.
    let nested = inside.iter().position(|entry| entry.has(INDIRECT));
    inside.truncate(nested.unwrap_or(inside.len()));
    visited.extend(inside);
    (visited, ends && nested.is_none())
}

/// Returns the chain with `visited` descriptors, or the first violation among them.
fn expected(head: u16, (visited, ends): (Vec<Entry>, bool)) -> Result<Chain, QueueError> {
    let queue = 0;
    for (place, Entry { address, length, flags, .. }) in visited.iter().copied().enumerate() {
        if length == 0 {
            return Err(QueueError::ZeroLength { queue, address });
        }
        if u128::from(address) + u128::from(length) > u128::from(MEMORY) {
            return Err(QueueError::OutsideMemory { queue, address, length });
        }
        if flags & WRITE == 0 && visited[..place].iter().any(|before| before.has(WRITE)) {
            return Err(QueueError::WrongDirection { queue, address });
        }
    }
    if !ends {
        return Err(QueueError::Endless { queue, head });
    }
    let buffers = |is_writable: bool| {
        let chosen = visited.iter().filter(|entry| entry.has(WRITE) == is_writable);
        chosen.map(|entry| Buffer { address: GuestAddress(entry.address), length: entry.length }).collect()
    };
    Ok(Chain { head, readable: buffers(false), writable: buffers(true) })
}

/// A queue with one available chain, whose descriptors are replaced for each check.
struct Bench {
    memory: GuestMemory,
    queue: Virtqueue,
    head: u16,
}

impl Bench {
    fn new(head: u16) -> Bench {
        let memory = memory::allocate(MEMORY >> 20).unwrap();
        let queue = queue_with(&memory, &[(0, 0, 0, 0); SIZE], &[head]);
        Bench { memory, queue, head }
    }

    /// Checks the chain of a queue's table that starts with `direct`. The remaining descriptors are zero.
    fn check_chain(&mut self, direct: &[Entry], inner: Option<&[Entry]>) {
        let mut table = [Entry::default(); SIZE];
        table[..direct.len()].copy_from_slice(direct);
        for (place, entry) in (0..).zip(direct) {
            entry.store(&self.memory, 16 * place);
        }
        let popped = self.queue.pop().map(|chain| chain.expect("the queue has one chain"));
        self.queue.undo_pop();
        let expected = expected(self.head, walk_queue(&table, self.head.into(), inner));
        assert_eq!(popped, expected, "head {} in {direct:x?}, {inner:x?}", self.head);
    }
}

/// Returns every descriptor of a small domain: valid, empty, at the end of memory and outside, in both directions, and
/// with each of `next` or none.
fn entries(next: &[u16]) -> Vec<Entry> {
    let buffers = [(DATA, 1), (DATA, 0), (MEMORY - 16, 16), (MEMORY - 16, 17), (u64::MAX, 1)];
    let mut entries = Vec::new();
    for (address, length) in buffers {
        for flags in [0, WRITE] {
            entries.push(Entry { address, length, flags, next: 0 });
            entries.extend(next.iter().map(|next| Entry { address, length, flags: flags | NEXT, next: *next }));
        }
    }
    entries
}

#[test]
fn every_chain_of_three_descriptors_matches_model() {
    let mut bench = Bench::new(0);
    // Index 3 is a zero descriptor, and 16 is outside the table.
    let entries = entries(&[0, 1, 2, 3, 16]);
    for first in &entries {
        for second in &entries {
            for third in &entries {
                bench.check_chain(&[*first, *second, *third], None);
            }
        }
    }
}

#[test]
fn every_head_index_matches_model() {
    let entries = entries(&[0, 1, 2]);
    for head in (0..20).chain([u16::MAX]) {
        let mut bench = Bench::new(head);
        for first in &entries {
            for second in &entries {
                bench.check_chain(&[*first, *second], None);
            }
        }
    }
}

#[test]
fn every_indirect_table_of_two_descriptors_matches_model() {
    let mut bench = Bench::new(0);
    let before = entries(&[1]);
    let mut inside = entries(&[0, 1, 2]);
    inside.push(Entry { address: TABLE, length: 16, flags: INDIRECT, next: 0 });
    for length in [0, 1, 15, 16, 17, 32] {
        for (flags, address) in [(INDIRECT, TABLE), (INDIRECT | WRITE | NEXT, TABLE), (INDIRECT, MEMORY)] {
            let table = Entry { address, length, flags, next: 0 };
            for first in &inside {
                for second in &inside {
                    let inner = [*first, *second];
                    (0..).zip(inner).for_each(|(place, entry)| entry.store(&bench.memory, TABLE + 16 * place));
                    let is_valid = length % 16 == 0 && address == TABLE;
                    let inner = is_valid.then(|| &inner[..length as usize / 16]);
                    bench.check_chain(&[table], inner);
                    if length == 32 && address == TABLE {
                        before.iter().for_each(|before| bench.check_chain(&[*before, table], inner));
                    }
                }
            }
        }
    }
}

fn addresses(buffers: &[Buffer]) -> Vec<u64> {
    buffers.iter().flat_map(|Buffer { address, length }| address.0..address.0 + u64::from(*length)).collect()
}

fn check_subrange(lengths: &[u32], skip: u64, length: u64) {
    let buffer = |(number, length): (u64, &u32)| Buffer { address: GuestAddress(number << 12), length: *length };
    let buffers: Vec<Buffer> = (1..).zip(lengths).map(buffer).collect();
    let part = subrange(&buffers, skip, length);
    let expected: Vec<u64> = addresses(&buffers).into_iter().skip(skip as usize).take(length as usize).collect();
    assert_eq!(addresses(&part), expected, "{skip} and {length} of {lengths:?}");
    assert!(part.iter().all(|buffer| buffer.length > 0), "{part:?}");
}

#[test]
fn every_subrange_of_three_short_buffers_matches_model() {
    const LONGEST: u32 = 4;
    let sizes = || 1..=LONGEST;
    let mut lists = vec![vec![]];
    lists.extend(sizes().map(|one| vec![one]));
    lists.extend(sizes().flat_map(|one| sizes().map(move |two| vec![one, two])));
    lists.extend(sizes().flat_map(|one| sizes().flat_map(move |two| sizes().map(move |three| vec![one, two, three]))));
    for lengths in lists {
        for skip in 0..u64::from(3 * LONGEST + 2) {
            (0..u64::from(3 * LONGEST + 2)).for_each(|length| check_subrange(&lengths, skip, length));
        }
    }
}
