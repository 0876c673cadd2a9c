//! IDs of new resources.

use ec2::id::{Id, ResourceKind};

pub(super) fn new_id<K: ResourceKind>() -> Id<K> {
    Id::from_random(random())
}

/// Returns random bytes for an identifier that is not in EC2's format.
pub(super) fn random_bytes<const COUNT: usize>() -> [u8; COUNT] {
    use rustix::rand::{GetRandomFlags, getrandom};

    let mut random = [0; COUNT];
    // Without flags and for so few bytes, getrandom fails only on a host that blocks the system call.
    getrandom(&mut random, GetRandomFlags::empty()).expect("the host provides random numbers");
    random
}

#[cfg(not(test))]
fn random() -> [u8; ec2::id::RANDOM_BYTES] {
    random_bytes()
}

#[cfg(test)]
use sequence::random;

/// A sequence of IDs in each thread, so that tests with the same commands make the same calls in the same order.
#[cfg(test)]
pub(super) mod sequence {
    use std::cell::Cell;

    use ec2::id::RANDOM_BYTES;

    thread_local! {
        static NEXT: Cell<u64> = const { Cell::new(1) };
    }

    pub fn restart() {
        NEXT.set(1);
    }

    pub(super) fn random() -> [u8; RANDOM_BYTES] {
        let mut bytes = [0; RANDOM_BYTES];
        bytes[RANDOM_BYTES - 8..].copy_from_slice(&NEXT.replace(NEXT.get() + 1).to_be_bytes());
        bytes
    }
}
