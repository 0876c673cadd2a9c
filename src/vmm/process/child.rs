//! The VMM process: enters the sandbox, and runs the machine.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use super::supervisor::{AGAIN, LEFT};
use super::{Arguments, Connections, ExplainCreateVm, ProcessError, keep_record};
use crate::kvm::VirtualMachine;
use crate::machine::{Machine, VmmInputs};
use crate::memory;
use crate::parts::DeviceInputs;
use crate::sandbox;
use crate::sandbox::files::Grants;
use crate::sandbox::limits;
use crate::sandbox::namespaces::SandboxedChild;
use crate::snapshot::origin;
use crate::virtio::block::Ring;
use machine::config::MachineConfig;
use machine::control::{self, Message};
use machine::end::End;
use machine::end_record::EndRecord;
use machine::files::{CONSOLE_SOCKET, VSOCK_SOCKET, vmm_directory};
use machine::launch::{Launcher, Restore};
use machine::passed_files::FdTable;
use machine::untrusted;
use netstack::broker::BrokerClient;

/// The VMM's resources before it builds the machine.
pub(super) struct Vmm<'a> {
    pub arguments: &'a Arguments,
    pub sandbox: SandboxedChild,
    /// The supervisor's process ID.
    pub supervisor: u32,
    pub broker: BrokerClient,
    pub network: Option<OwnedFd>,
    pub explain: ExplainCreateVm,
}

impl Vmm<'_> {
    /// Runs the machine. If it cannot be built, sends the error to the command that started it.
    pub fn run(
        self,
        Connections { owner, watcher, console }: Connections,
        config: Result<MachineConfig, ProcessError>,
    ) -> Result<ExitCode, ProcessError> {
        let complaint = owner.as_ref().or(watcher.as_ref()).map(UnixStream::try_clone).transpose();
        let complaint = complaint
            .map_err(ProcessError::host("cannot duplicate the connection to the command that started the machine"))?;
        let owned = owner.is_some();
        let launcher = match (owner, watcher) {
            (Some(owner), _) => Launcher::Owner(owner),
            (None, Some(watcher)) => Launcher::Watcher(watcher),
            (None, None) => Launcher::Detached,
        };
        let (own, explain) = (vmm_directory(&self.arguments.dir), self.explain);
        let result = config.and_then(|config| self.build_and_run(config, launcher, console));
        if let Err(error) = &result {
            let why = error.explain(explain);
            if !owned {
                keep_record(&EndRecord::Failed { why: why.clone() }, &own);
            }
            if let Some(stream) = &complaint {
                control::send_once(stream, &Message::Failed { why });
            }
        }
        if owned && complaint.as_ref().is_some_and(has_left) {
            return Ok(ExitCode::from(LEFT));
        }
        Ok(match result? {
            End::Reboot if !owned => ExitCode::from(AGAIN),
            end if end.is_orderly() => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        })
    }

    fn build_and_run(
        self,
        config: MachineConfig,
        launcher: Launcher,
        console: Option<UnixStream>,
    ) -> Result<End, ProcessError> {
        let own = vmm_directory(&self.arguments.dir);
        let owned = matches!(launcher, Launcher::Owner(_));
        let restore = self.arguments.restore.as_ref();
        config.validate().map_err(crate::Error::from)?;
        limits::grow_descriptor_table();
        let memory = memory::allocate(config.memory_mib).map_err(crate::Error::from)?;
        let kvm = VirtualMachine::begin(&memory)?;
        let devices = DeviceInputs {
            console,
            network: self.network,
            broker: self.broker,
            // An io_uring cannot be created inside the sandbox.
            rings: (0..config.all_disk_slots()).map_while(|_| Ring::new()).collect(),
            files: FdTable::of(&config.disks),
        };
        clear_leftovers(&own).map_err(ProcessError::host("cannot remove the files of the previous run"))?;
        if let Some(Restore { dir: saved, once: false }) = restore {
            origin::keep(saved, &own);
        }
        let grants = Grants::of(&own, &config, restore);
        let starter = sandbox::enter(&self.sandbox, &grants, config.threads()).map_err(crate::Error::from)?;
        let (pid, process_start_ns) = (self.supervisor, self.arguments.began_ns);
        let dir = own.clone();
        let inputs = VmmInputs { dir, memory, kvm, starter, pid, launcher, process_start_ns, devices };
        let conclude = |end: &End, status: &control::VmmStatus| {
            if !owned && *end != End::Reboot {
                keep_record(&EndRecord::ended(end, status), &own);
            }
        };
        let machine = match restore {
            Some(from) => Machine::restore(config, inputs, from.clone()),
            None if self.arguments.template => Machine::boot_template(config, inputs),
            None => Machine::boot(config, inputs),
        };
        Ok(machine?.run(conclude)?)
    }
}

/// Removes the sockets, the snapshot's origin and the end record of an earlier machine from the VMM's directory `own`.
/// The lock is held, so they are unused. This process has the user's privileges, so it removes only these names and
/// does not follow a link that an earlier VMM created.
fn clear_leftovers(own: &Path) -> std::io::Result<()> {
    EndRecord::clear(own)?;
    origin::forget(own)?;
    let control = own.join(control::SOCKET);
    let sockets = [control.with_extension("new"), control, own.join(CONSOLE_SOCKET), own.join(VSOCK_SOCKET)];
    sockets.iter().try_for_each(|socket| untrusted::remove(socket))
}

/// Returns true if the other end of the owner's connection is closed.
fn has_left(owner: &UnixStream) -> bool {
    use rustix::net::{RecvFlags, recv};
    let mut byte = [0];
    matches!(recv(owner, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT), Ok((0, _)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::files::make_vmm_directory;
    use std::fs;

    #[test]
    fn clear_leftovers_with_planted_links_keeps_their_targets() {
        let dir = tempfile::tempdir().unwrap();
        let (own, outside) = (dir.path().join("vmm"), dir.path().join("outside"));
        make_vmm_directory(dir.path()).unwrap();
        make_vmm_directory(dir.path()).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("victim"), "the user's").unwrap();
        for name in ["control.sock", "end.json", "origin"] {
            std::os::unix::fs::symlink(outside.join("victim"), own.join(name)).unwrap();
        }
        std::os::unix::fs::symlink(&outside, own.join("vsock.sock")).unwrap();
        fs::create_dir(own.join("console.sock")).unwrap();
        std::os::unix::fs::symlink(&outside, own.join("console.sock/link")).unwrap();
        fs::write(own.join("console.log"), "stays").unwrap();

        clear_leftovers(&own).unwrap();
        let left: Vec<_> = fs::read_dir(&own).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["console.log"]);
        assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "the user's");
    }
}
