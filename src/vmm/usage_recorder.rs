//! Records the machine's resource usage, on a timer that runs on CPU time and therefore does not wake an idle machine.
//!
//! At full load, the usage is recorded every five seconds ([`QUANTUM_NS`] for each vCPU). The mean usage over any five
//! minutes is therefore known to within a sixtieth of the machine's CPU capacity.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use crate::cpu::cpu_timer::CpuTimer;
use crate::signals::read_from_descriptor;
use machine::usage::{FILE, Reading, ReadingsFile};

const QUANTUM_NS: u64 = 5_000_000_000;

/// Appends usage readings to a file. Only logs failures, because a machine must not end for lack of statistics.
#[derive(Debug)]
pub(crate) struct Recorder {
    file: ReadingsFile,
    expirations: OwnedFd,
    /// Never deleted: the thread's seccomp filter does not allow timer_delete(2).
    _timer: ManuallyDrop<CpuTimer>,
    /// False after a failed write, so that consecutive failures, such as on a full disk, are logged once.
    is_keeping: bool,
}

impl Recorder {
    /// Returns `None` on failure. Must be called by the main thread before the seccomp filters are installed.
    pub fn new(dir: &Path, vcpus: u32) -> Option<Recorder> {
        let begin = || {
            let file = ReadingsFile::open(dir)?;
            let signal = libc::SIGRTMIN() + 1;
            let expirations = read_from_descriptor(&[signal])?;
            let timer = CpuTimer::of_process(signal)?;
            timer.set_each(QUANTUM_NS.saturating_mul(vcpus.into()))?;
            Ok(Recorder { file, expirations, _timer: ManuallyDrop::new(timer), is_keeping: true })
        };
        begin().inspect_err(|error: &io::Error| log::error!("cannot record the machine's usage: {error}")).ok()
    }

    /// Returns a descriptor that is readable when a reading is due.
    pub fn expirations(&self) -> RawFd {
        self.expirations.as_raw_fd()
    }

    pub fn take_expirations(&self) {
        let mut buffer = [0; size_of::<libc::signalfd_siginfo>()];
        while rustix::io::read(&self.expirations, &mut buffer).is_ok_and(|count| count > 0) {}
    }

    pub fn record(&mut self, reading: &Reading) {
        let result = self.file.add(reading);
        if let Err(error) = &result
            && self.is_keeping
        {
            log::error!("cannot record the machine's usage in {FILE}: {error}");
        }
        self.is_keeping = result.is_ok();
    }
}
