//! The reasons why a machine ends. They are distinguished because the user's next step differs.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::sync::lock;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum End {
    /// The guest requested a reset through the i8042 or a KVM system event.
    Reboot,
    PowerOff,
    Saved,
    Panic,
    TripleFault,
    KvmError(KvmFailure),
    /// Requested through the control socket or by a signal.
    Killed {
        /// A short description of the requester.
        by: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvmFailure {
    pub vcpu: u32,
    /// One sentence with the problem and, if known, the remedy.
    pub message: String,
    /// The bytes at the instruction pointer in hexadecimal, if available.
    pub instruction_bytes: String,
    pub registers: String,
}

impl End {
    pub fn is_orderly(&self) -> bool {
        matches!(self, End::Reboot | End::PowerOff | End::Saved | End::Killed { .. })
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Reboot => write!(f, "the guest requested a reboot"),
            End::PowerOff => write!(f, "the guest powered off"),
            End::Saved => write!(f, "the machine was saved"),
            End::Panic => write!(f, "the guest kernel panicked"),
            End::TripleFault => write!(f, "the guest caused a triple fault"),
            End::KvmError(failure) => failure.fmt(f),
            End::Killed { by } => write!(f, "the machine was stopped by {by}"),
        }
    }
}

impl fmt::Display for KvmFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}: {}", self.vcpu, self.message)?;
        if !self.instruction_bytes.is_empty() {
            write!(f, "\n  instruction bytes: {}", self.instruction_bytes)?;
        }
        self.registers.lines().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// Sends the machine's end. If several threads send one, only the first is kept.
#[derive(Debug, Clone)]
pub struct EndSender(Arc<EndState>);

#[derive(Debug)]
pub struct EndReceiver(Arc<EndState>);

#[derive(Debug)]
struct EndState {
    end: Mutex<Option<End>>,
    event: EventFd,
}

pub fn end_channel() -> io::Result<(EndSender, EndReceiver)> {
    let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
    let state = Arc::new(EndState { end: Mutex::new(None), event });
    Ok((EndSender(Arc::clone(&state)), EndReceiver(state)))
}

impl EndSender {
    /// Reports the machine's end, unless one has been reported.
    pub fn send(&self, end: End) {
        let mut slot = lock(&self.0.end);
        if slot.is_none() {
            *slot = Some(end);
            // The counter is written once per machine and cannot overflow.
            let _ = self.0.event.write(1);
        }
    }
}

impl EndReceiver {
    /// Becomes readable once an end has been sent.
    pub fn event(&self) -> &EventFd {
        &self.0.event
    }

    pub fn take(&self) -> Option<End> {
        lock(&self.0.end).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_end_is_kept() {
        let (sender, receiver) = end_channel().unwrap();
        assert_eq!(receiver.take(), None);
        sender.send(End::Panic);
        sender.send(End::Reboot);
        assert_eq!(receiver.take(), Some(End::Panic));
    }
}
