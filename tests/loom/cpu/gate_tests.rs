use std::sync::Arc;
use std::time::Duration;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Condvar, Mutex, MutexGuard};
use loom::thread::{self, JoinHandle};

use super::gate::Gate;
use super::state::VcpuState;
use crate::check;

/// A vCPU's guest, which causes no exits: only a kick interrupts it. A kick before its entry is not lost.
struct Guest {
    run: Mutex<Run>,
    changed: Condvar,
}

#[derive(Default)]
struct Run {
    is_kicked: bool,
    is_inside: bool,
    entries: u32,
}

impl Guest {
    fn new() -> Guest {
        Guest { run: Mutex::new(Run::default()), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Run> {
        self.run.lock().unwrap()
    }

    /// Enters the guest until a kick, as KVM_RUN does.
    fn enter(&self) {
        let mut run = self.lock();
        run.is_inside = true;
        run.entries += 1;
        self.changed.notify_all();
        while !run.is_kicked {
            run = self.changed.wait(run).unwrap();
        }
        (run.is_kicked, run.is_inside) = (false, false);
    }

    fn kick(&self) {
        self.lock().is_kicked = true;
        self.changed.notify_all();
    }

    /// Waits until the guest was entered more than `entries` times.
    fn await_entry_after(&self, entries: u32) {
        let mut run = self.lock();
        while run.entries <= entries {
            run = self.changed.wait(run).unwrap();
        }
    }
}

struct Machine {
    gate: Gate,
    guests: Vec<Guest>,
    is_throttled: AtomicBool,
}

impl Machine {
    fn new(vcpus: u32) -> Arc<Machine> {
        let guests = (0..vcpus).map(|_| Guest::new()).collect();
        Arc::new(Machine { gate: Gate::new(vcpus), guests, is_throttled: AtomicBool::new(false) })
    }

    fn start(self: &Arc<Machine>) -> Vec<JoinHandle<()>> {
        let start = |id| {
            let machine = Arc::clone(self);
            thread::spawn(move || machine.run_vcpu(id))
        };
        (0..self.guests.len() as u32).map(start).collect()
    }

    /// Runs a vCPU in the order of `vcpu.rs`: the gate, the quota, the guest.
    fn run_vcpu(&self, id: u32) {
        let guest = &self.guests[id as usize];
        loop {
            if self.gate.is_closed() {
                if !self.gate.wait(id, || Ok(VcpuState { id, entries: guest.lock().entries })) {
                    break;
                }
            } else if self.is_throttled() {
                self.gate.hold(Duration::MAX, || self.is_throttled());
            } else {
                guest.enter();
            }
        }
        self.gate.leave();
    }

    fn is_throttled(&self) -> bool {
        self.is_throttled.load(Ordering::SeqCst)
    }

    fn kick(&self) {
        self.guests.iter().for_each(Guest::kick);
    }

    /// Returns the number of entries into each guest, none of which may be running.
    fn entries_while_outside(&self) -> Vec<u32> {
        let entries = |guest: &Guest| {
            let run = guest.lock();
            assert!(!run.is_inside, "a guest runs while the gate is closed");
            run.entries
        };
        self.guests.iter().map(entries).collect()
    }

    fn save(&self) -> Vec<VcpuState> {
        self.gate.save().expect("the model's vCPUs can be saved")
    }

    fn stop(&self, vcpus: Vec<JoinHandle<()>>) {
        self.gate.stop();
        self.kick();
        vcpus.into_iter().for_each(|vcpu| vcpu.join().unwrap());
        self.entries_while_outside();
    }
}

fn states(entries: &[u32]) -> Vec<VcpuState> {
    (0..).zip(entries).map(|(id, entries)| VcpuState { id, entries: *entries }).collect()
}

/// Pauses, saves and resumes, and expects that no guest runs in between and that every guest runs afterwards.
fn pause_save_and_resume(vcpus: u32) {
    let machine = Machine::new(vcpus);
    let threads = machine.start();
    assert!(machine.gate.pause(|| machine.kick()));
    let entries = machine.entries_while_outside();
    assert_eq!(machine.save(), states(&entries));
    assert_eq!(machine.entries_while_outside(), entries);
    machine.gate.open();
    machine.guests.iter().zip(entries).for_each(|(guest, entries)| guest.await_entry_after(entries));
    machine.stop(threads);
}

#[test]
fn vcpu_is_outside_guest_from_pause_to_resume() {
    check(8, || pause_save_and_resume(1));
}

#[test]
fn all_vcpus_are_outside_guest_from_pause_to_resume() {
    check(1, || pause_save_and_resume(2));
}

#[test]
fn pause_right_after_resume_stops_vcpus_again() {
    check(5, || {
        let machine = Machine::new(1);
        let threads = machine.start();
        assert!(machine.gate.pause(|| machine.kick()));
        machine.gate.open();
        assert!(machine.gate.pause(|| machine.kick()));
        let entries = machine.entries_while_outside();
        assert_eq!(machine.save(), states(&entries));
        machine.gate.open();
        machine.guests[0].await_entry_after(entries[0]);
        machine.stop(threads);
    });
}

#[test]
fn paused_vcpus_can_be_saved_twice() {
    check(5, || {
        let machine = Machine::new(1);
        let threads = machine.start();
        assert!(machine.gate.pause(|| machine.kick()));
        let entries = machine.entries_while_outside();
        assert_eq!(machine.save(), states(&entries));
        assert_eq!(machine.save(), states(&entries));
        machine.stop(threads);
    });
}

#[test]
fn stop_ends_running_vcpus() {
    check(4, || {
        let machine = Machine::new(2);
        machine.stop(machine.start());
    });
}

#[test]
fn stop_during_pause_ends_vcpus() {
    check(2, || {
        let machine = Machine::new(2);
        let threads = machine.start();
        assert!(machine.gate.pause(|| machine.kick()));
        let entries = machine.entries_while_outside();
        machine.stop(threads);
        assert_eq!(machine.entries_while_outside(), entries);
    });
}

#[test]
fn resume_after_stop_does_not_open_gate() {
    check(5, || {
        let machine = Machine::new(1);
        let threads = machine.start();
        machine.gate.stop();
        machine.gate.open();
        assert!(machine.gate.is_closed());
        machine.stop(threads);
    });
}

#[test]
fn pause_reports_vcpu_that_has_ended() {
    check(2, || {
        let machine = Machine::new(2);
        let vcpu = Arc::clone(&machine);
        let ending = thread::spawn(move || vcpu.gate.leave());
        let vcpu = Arc::clone(&machine);
        let running = thread::spawn(move || vcpu.run_vcpu(1));
        assert!(!machine.gate.pause(|| machine.kick()));
        machine.stop(vec![ending, running]);
    });
}

#[test]
fn nudge_wakes_throttled_vcpu() {
    check(8, || {
        let machine = Machine::new(1);
        machine.is_throttled.store(true, Ordering::SeqCst);
        let threads = machine.start();
        machine.is_throttled.store(false, Ordering::SeqCst);
        machine.gate.nudge();
        machine.guests[0].await_entry_after(0);
        machine.stop(threads);
    });
}

#[test]
fn throttled_vcpu_can_be_paused_saved_and_stopped() {
    check(8, || {
        let machine = Machine::new(1);
        machine.is_throttled.store(true, Ordering::SeqCst);
        let threads = machine.start();
        assert!(machine.gate.pause(|| machine.kick()));
        assert_eq!(machine.save(), states(&[0]));
        machine.gate.open();
        machine.stop(threads);
    });
}
