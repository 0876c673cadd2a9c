//! The I/O ports of the guest's agent: its ready reports, and the message that gives the guest an identity.

use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::devices::boot_timer::BootTimer;
use super::devices::resumed::ResumedPorts;
use super::resume_message::ResumeMessage;
use machine::sync::lock;
use machine::timeline::{Mark, Timeline};

#[derive(Debug)]
pub(super) struct AgentPorts {
    pub resumed: Arc<Mutex<ResumedPorts>>,
    pub boot_timer: Arc<Mutex<BootTimer>>,
}

impl AgentPorts {
    /// `first_ready` is the mark of the agent's first ready report. Each report is notified to `ready`.
    pub fn new(timeline: &Arc<Timeline>, first_ready: Mark, ready: EventFd) -> AgentPorts {
        let resumed: Arc<Mutex<ResumedPorts>> = Arc::default();
        let completed = Arc::clone(&resumed);
        let on_ready = Box::new(move || {
            lock(&completed).complete();
            // Cannot fail: each write adds one to a counter that would take centuries to overflow.
            let _ = ready.write(1);
        });
        let boot_timer = Arc::new(Mutex::new(BootTimer::new(Arc::clone(timeline), first_ready, on_ready)));
        AgentPorts { resumed, boot_timer }
    }

    /// Offers the message to the agent, whose next ready report completes it.
    pub fn offer(&self, message: ResumeMessage) {
        let ResumeMessage { message, release, .. } = message;
        lock(&self.resumed).offer(message, release);
        lock(&self.boot_timer).await_ready(Mark::AgentReady);
    }
}
