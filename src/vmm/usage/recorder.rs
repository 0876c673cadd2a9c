//! Who has readings taken: a timer on the monitor's CPU time, which a machine that does nothing does not set off.
//!
//! A machine that is as busy as it can be is read every [`QUANTUM_NS`]; one that is so for a hundredth of the time, a hundred
//! times more seldom. So the mean use of any five minutes is known to within a sixtieth of the whole machine.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use super::file::ReadingsFile;
use super::{FILE, Reading};
use crate::vmm::cpu::cpu_timer::CpuTimer;
use crate::vmm::signals::read_from_descriptor;

/// CPU time of each vCPU between two readings.
const QUANTUM_NS: u64 = 5_000_000_000;

/// The recorder. What it cannot do is logged: no machine ends for want of its figures.
#[derive(Debug)]
pub(in crate::vmm) struct Recorder {
    file: ReadingsFile,
    expirations: OwnedFd,
    /// It goes with the process: the filter of the machine's thread has no call to delete it.
    _timer: ManuallyDrop<CpuTimer>,
    /// Whether the last reading was kept: the log has one line for a full disk.
    is_keeping: bool,
}

impl Recorder {
    /// Records into `folder` what a machine of so many vCPUs uses. Called by the machine's own thread, before it gives up its
    /// system calls.
    pub fn new(folder: &Path, vcpus: u32) -> Option<Recorder> {
        let begin = || {
            let file = ReadingsFile::open(folder)?;
            let signal = libc::SIGRTMIN() + 1;
            let expirations = read_from_descriptor(&[signal])?;
            let timer = CpuTimer::of_process(signal)?;
            timer.set_each(QUANTUM_NS.saturating_mul(vcpus.into()))?;
            Ok(Recorder { file, expirations, _timer: ManuallyDrop::new(timer), is_keeping: true })
        };
        begin().inspect_err(|error: &io::Error| log::error!("what the machine uses is not recorded: {error}")).ok()
    }

    /// Becomes readable when it is time for a reading.
    pub fn expirations(&self) -> RawFd {
        self.expirations.as_raw_fd()
    }

    /// Notes that the time has come.
    pub fn take_expirations(&self) {
        let mut buffer = [0; size_of::<libc::signalfd_siginfo>()];
        while rustix::io::read(&self.expirations, &mut buffer).is_ok_and(|count| count > 0) {}
    }

    /// Keeps a reading.
    pub fn record(&mut self, reading: &Reading) {
        let result = self.file.add(reading);
        if let Err(error) = &result
            && self.is_keeping
        {
            log::error!("what the machine used cannot be kept in {FILE}: {error}");
        }
        self.is_keeping = result.is_ok();
    }
}
