//! Where vCPUs wait while their machine is paused, each with its state laid down.
//!
//! A vCPU's thread looks at the gate before it enters the guest. Who closes it kicks the vCPUs, and waits until each has
//! come: then nothing of the guest moves.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::state::{StateError, VcpuState};

/// The gate.
#[derive(Debug)]
pub struct Gate {
    /// Whether vCPUs may not just pass: what they look at first, without the lock.
    closed: AtomicBool,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    phase: Phase,
    /// Of each vCPU whether it waits, and its state once that was asked for.
    places: Vec<Place>,
    /// vCPUs whose threads are at their end.
    left: usize,
}

#[derive(Debug)]
enum Place {
    Running,
    Waiting,
    Saved(Box<Result<VcpuState, StateError>>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Paused,
    /// Paused, and the vCPUs' states are wanted.
    Saving,
    Stopped,
}

impl Gate {
    /// An open gate for so many vCPUs.
    pub fn new(vcpus: u32) -> Gate {
        let places = (0..vcpus).map(|_| Place::Running).collect();
        let inner = Inner { phase: Phase::Open, places, left: 0 };
        Gate { closed: AtomicBool::new(false), inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// Whether a vCPU may not enter the guest now.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Waits until vCPU `id` may go on; returns false if it is to end. `save` reads its state, when that is wanted.
    pub fn wait(&self, id: u32, save: impl Fn() -> Result<VcpuState, StateError>) -> bool {
        let place = id as usize;
        let mut inner = self.lock();
        loop {
            match (inner.phase, &inner.places[place]) {
                (Phase::Open | Phase::Stopped, _) => {
                    inner.places[place] = Place::Running;
                    return inner.phase == Phase::Open;
                }
                (Phase::Saving, Place::Running | Place::Waiting) => {
                    inner.places[place] = Place::Saved(Box::new(save()));
                    self.changed.notify_all();
                }
                (Phase::Paused, Place::Running) => {
                    inner.places[place] = Place::Waiting;
                    self.changed.notify_all();
                }
                _ => inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Holds a vCPU back for `duration`, or until the gate closes or somebody [nudges](Gate::nudge), for as long as it is
    /// `wanted`: which is asked so that no nudge after it is missed.
    pub fn hold(&self, duration: Duration, wanted: impl FnOnce() -> bool) {
        let inner = self.lock();
        if inner.phase == Phase::Open && wanted() {
            // However it ends: the vCPU looks again at all that it waited for.
            drop(self.changed.wait_timeout(inner, duration));
        }
    }

    /// Has those who are held back look again.
    pub fn nudge(&self) {
        let _inner = self.lock();
        self.changed.notify_all();
    }

    /// A vCPU's thread is at its end.
    pub fn leave(&self) {
        self.lock().left += 1;
        self.changed.notify_all();
    }

    /// Closes the gate and waits until every vCPU is there, which `kick` has them do. Returns whether all are; if not, some
    /// have ended, and the machine is about to.
    pub fn pause(&self, kick: impl FnOnce()) -> bool {
        self.set(Phase::Paused);
        kick();
        let inner = self.wait_for_all(|place| !matches!(place, Place::Running));
        inner.left == 0
    }

    /// The states of the vCPUs, which wait at the gate.
    pub fn save(&self) -> Result<Vec<VcpuState>, StateError> {
        self.set(Phase::Saving);
        let mut inner = self.wait_for_all(|place| matches!(place, Place::Saved(_)));
        let mut states = Vec::with_capacity(inner.places.len());
        for place in &mut inner.places {
            if let Place::Saved(state) = std::mem::replace(place, Place::Waiting) {
                states.push(*state);
            }
        }
        if inner.phase == Phase::Saving {
            inner.phase = Phase::Paused;
        }
        states.into_iter().collect()
    }

    /// Lets all vCPUs go on.
    pub fn open(&self) {
        self.set(Phase::Open);
    }

    /// Has all vCPUs end.
    pub fn stop(&self) {
        self.set(Phase::Stopped);
    }

    fn wait_for_all(&self, is_there: impl Fn(&Place) -> bool) -> MutexGuard<'_, Inner> {
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
