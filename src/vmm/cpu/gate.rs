//! The gate at which vCPU threads wait while the machine is paused, and save their state on request.
//!
//! A vCPU thread checks the gate before it enters the guest. `pause` closes the gate, kicks the vCPUs and waits until
//! all of them are at the gate. From then on, no guest code runs until the gate opens.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::state::{StateError, VcpuState};
use crate::sync::{AtomicBool, Condvar, Mutex, MutexGuard};

#[derive(Debug)]
pub struct Gate {
    /// The fast path: read without the lock before each entry into the guest.
    closed: AtomicBool,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    phase: Phase,
    /// One entry per vCPU: whether the vCPU is waiting, and its state once that is saved.
    places: Vec<VcpuPosition>,
    /// The number of vCPU threads that have ended.
    left: usize,
}

#[derive(Debug)]
enum VcpuPosition {
    Running,
    Waiting,
    Saved(Box<Result<VcpuState, StateError>>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Paused,
    /// Paused, and the vCPUs' states have been requested.
    Saving,
    Stopped,
}

impl Gate {
    pub fn new(vcpus: u32) -> Gate {
        let places = (0..vcpus).map(|_| VcpuPosition::Running).collect();
        let inner = Inner { phase: Phase::Open, places, left: 0 };
        Gate { closed: AtomicBool::new(false), inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// Returns true if vCPUs must not enter the guest.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Waits until vCPU `id` may continue; returns false if its thread must end. `save` reads its state on request.
    pub fn wait(&self, id: u32, save: impl Fn() -> Result<VcpuState, StateError>) -> bool {
        let place = id as usize;
        let mut inner = self.lock();
        loop {
            match (inner.phase, &inner.places[place]) {
                (Phase::Open | Phase::Stopped, _) => {
                    inner.places[place] = VcpuPosition::Running;
                    return inner.phase == Phase::Open;
                }
                (Phase::Saving, VcpuPosition::Running | VcpuPosition::Waiting) => {
                    inner.places[place] = VcpuPosition::Saved(Box::new(save()));
                    self.changed.notify_all();
                }
                (Phase::Paused, VcpuPosition::Running) => {
                    inner.places[place] = VcpuPosition::Waiting;
                    self.changed.notify_all();
                }
                _ => inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Throttles a vCPU for `duration`, or until the gate closes or [`nudge`](Gate::nudge) is called. Does nothing if
    /// the gate is closed or `wanted` returns false, which is called under the lock, so that no nudge is missed.
    pub fn hold(&self, duration: Duration, wanted: impl FnOnce() -> bool) {
        let inner = self.lock();
        if inner.phase == Phase::Open && wanted() {
            // Whatever ended the wait, the vCPU checks all its conditions again.
            drop(self.changed.wait_timeout(inner, duration));
        }
    }

    /// Wakes throttled vCPUs to check their conditions again.
    pub fn nudge(&self) {
        let _inner = self.lock();
        self.changed.notify_all();
    }

    /// Reports that a vCPU thread has ended.
    pub fn leave(&self) {
        self.lock().left += 1;
        self.changed.notify_all();
    }

    /// Closes the gate, calls `kick`, and waits until all vCPUs have arrived. Returns false if a thread has ended.
    pub fn pause(&self, kick: impl FnOnce()) -> bool {
        self.set(Phase::Paused);
        kick();
        let inner = self.wait_for_all(|place| !matches!(place, VcpuPosition::Running));
        inner.left == 0
    }

    /// Returns the states of all vCPUs. Fails if the gate is stopped meanwhile or a thread has ended.
    pub fn save(&self) -> Result<Vec<VcpuState>, StateError> {
        self.set(Phase::Saving);
        let mut inner = self.wait_for_all(|place| matches!(place, VcpuPosition::Saved(_)));
        let mut states = Vec::with_capacity(inner.places.len());
        for place in &mut inner.places {
            if let VcpuPosition::Saved(state) = std::mem::replace(place, VcpuPosition::Waiting) {
                states.push(*state);
            }
        }
        let is_complete = inner.phase == Phase::Saving && states.len() == inner.places.len();
        if inner.phase == Phase::Saving {
            inner.phase = Phase::Paused;
        }
        if !is_complete {
            return Err(StateError::Stopping);
        }
        states.into_iter().collect()
    }

    pub fn open(&self) {
        self.set(Phase::Open);
    }

    pub fn stop(&self) {
        self.set(Phase::Stopped);
    }

    fn wait_for_all(&self, is_there: impl Fn(&VcpuPosition) -> bool) -> MutexGuard<'_, Inner> {
        let mut inner = self.lock();
        while inner.places.iter().filter(|place| is_there(place)).count() + inner.left < inner.places.len() {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner
    }

    fn set(&self, phase: Phase) {
        let mut inner = self.lock();
        if inner.phase != Phase::Stopped {
            inner.phase = phase;
        }
        self.closed.store(inner.phase != Phase::Open, Ordering::Release);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
