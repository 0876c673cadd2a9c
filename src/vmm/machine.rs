//! Assembles a machine from its parts and runs it. Start reading the VMM here.
//!
//! [`Machine::boot`] and [`Machine::restore`] create memory, devices and vCPUs in the stages of [`parts`].
//! [`Machine::run`] starts the vCPUs and runs the event loop until there is an [`End`].

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::console_socket::ConsoleSocket;
use super::cpu::gate::Gate;
use super::cpu::quota::Quota;
use super::cpu::time::CpuTime;
use super::cpu::vcpu::{VcpuContext, install_kick_handler};
use super::cpu::xstate::Xstate;
use super::cpu::{emulation, registers, state};
use super::error::Error;
use super::event_loop::{ControlledMachine, EventLoop, EventSources, Terminal};
use super::fault::GuestFaults;
use super::freeze;
use super::kvm::{PendingVm, VirtualMachine};
use super::memory::GuestMemory;
use super::parts::{self, DeviceBuilder, DeviceInputs, Layout, Vcpus, WiredDevices, read_link, saved_state};
use super::resume_message::ResumeMessage;
use super::running::RunningMachine;
use super::sandbox::{self, threads::PendingStarter};
use super::snapshot;
use super::snapshot::cancellation::Cancellation;
use super::snapshot::origin::Origin;
use super::usage_recorder::Recorder;
use super::virtio::transport::TransportState;
use super::wiring::{ConnectedDevices, Devices};
use machine::config::MachineConfig;
use machine::control::{ControlServer, Message, SOCKET, VmmStatus};
use machine::end::{End, EndReceiver};
use machine::kept_balance::KeptBalance;
use machine::launch::{Launcher, Restore};
use machine::timeline::{ExitCounters, Mark, Timeline};
use machine::usage::Clock;

/// Host resources that the caller opens for a machine.
#[derive(Debug)]
pub struct VmmInputs {
    /// Directory for the sockets, console log, overlays and snapshots.
    pub dir: PathBuf,
    /// Zeroed memory of the configured size.
    pub memory: GuestMemory,
    /// The virtual machine with this memory.
    pub kvm: PendingVm,
    pub starter: PendingStarter,
    /// The VMM's process ID outside the sandbox's PID namespace.
    pub pid: u32,
    pub launcher: Launcher,
    /// The start time of the user's command, in nanoseconds of `CLOCK_MONOTONIC`.
    pub process_start_ns: Option<u64>,
    pub devices: DeviceInputs,
}

/// A machine that is built and has not run yet.
#[derive(Debug)]
pub struct Machine {
    config: MachineConfig,
    process: Process,
    vm: VmFd,
    vcpus: Vec<VcpuFd>,
    context: VcpuContext,
    devices: Devices,
    ends: EndReceiver,
    ready: EventFd,
    control: ControlServer,
    console_socket: ConsoleSocket,
    restored: Option<RestoredState>,
    /// The identity that the guest has not been given yet.
    identity: Option<ResumeMessage>,
}

/// The parts of [`VmmInputs`] that are used when the machine runs.
#[derive(Debug)]
struct Process {
    pid: u32,
    launcher: Launcher,
    dir: PathBuf,
    starter: PendingStarter,
}

/// The parts of a snapshot that are used after the machine is built.
#[derive(Debug)]
struct RestoredState {
    from: Restore,
    origin: Origin,
    virtio: Vec<TransportState>,
}

impl Machine {
    /// Builds a machine that boots the kernel of its configuration.
    pub fn boot(config: MachineConfig, inputs: VmmInputs) -> Result<Machine, Error> {
        Machine::boot_until(Mark::AgentReady, config, inputs)
    }

    /// Builds a machine that boots without the identity in its configuration, so that a snapshot of it can be a
    /// template. [`ControlRequest::Personalize`](machine::control::ControlRequest::Personalize) gives it the identity.
    pub fn boot_template(mut config: MachineConfig, inputs: VmmInputs) -> Result<Machine, Error> {
        let identity = ResumeMessage::of(&config, read_link(&config)?.as_ref())?;
        config.hide_identity();
        let machine = Machine::boot_until(Mark::TemplateReady, config, inputs)?;
        Ok(Machine { identity: Some(identity), ..machine })
    }

    fn boot_until(first_ready: Mark, config: MachineConfig, inputs: VmmInputs) -> Result<Machine, Error> {
        let start = StartUp::begin(&inputs)?;
        let memory = inputs.memory;
        let layout = Layout::of_config(&config)?;
        let loading = parts::spawn_loader(&memory, &config, &layout.resources)?;
        let machine = inputs.kvm.finish()?;
        start.timeline.mark(Mark::MemoryReady);
        let link = read_link(&config)?;
        let builder = DeviceBuilder {
            config: &config,
            dir: &inputs.dir,
            layout,
            memory: &memory,
            vm: &machine.vm,
            timeline: &start.timeline,
            link,
        };
        let wired = builder.boot(inputs.devices, first_ready)?;
        let vcpus = Vcpus::boot(&machine, config.cpus)?;
        let boot = loading.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        start.timeline.mark(Mark::KernelLoaded);
        vcpus.fds.iter().try_for_each(registers::set_common)?;
        registers::set_boot(&vcpus.fds[0], &memory, &boot)?;
        let process = Process { pid: inputs.pid, launcher: inputs.launcher, dir: inputs.dir, starter: inputs.starter };
        start.assemble(Parts { config, process, memory, machine, wired, vcpus, restored: None })
    }

    /// Builds a machine that continues from the snapshot `from`.
    pub fn restore(config: MachineConfig, inputs: VmmInputs, from: Restore) -> Result<Machine, Error> {
        let start = StartUp::begin(&inputs)?;
        let state = saved_state(&from.dir, &config)?;
        let origin = Origin::open(&from.dir, &inputs.dir, &state)?;
        let memory = inputs.memory;
        origin.map(&memory)?;
        let layout = Layout::of_snapshot(&config, &state)?;
        let machine = inputs.kvm.finish()?;
        state.check_host(&from.dir, &machine.kvm, &machine.supported)?;
        start.timeline.mark(Mark::MemoryReady);
        let link = read_link(&config)?;
        let mut message = ResumeMessage::of(&config, link.as_ref())?;
        message.renew_generation(&memory, state.generation);
        let builder = DeviceBuilder {
            config: &config,
            dir: &inputs.dir,
            layout,
            memory: &memory,
            vm: &machine.vm,
            timeline: &start.timeline,
            link,
        };
        let wired = builder.restore(inputs.devices, &state, message)?;
        let vcpus = Vcpus::restore(&machine, &state)?;
        freeze::restore(&machine.vm, &wired.connected.devices, &state)?;
        let restored = Some(RestoredState { from, origin, virtio: state.virtio });
        let process = Process { pid: inputs.pid, launcher: inputs.launcher, dir: inputs.dir, starter: inputs.starter };
        start.assemble(Parts { config, process, memory, machine, wired, vcpus, restored })
    }

    /// Runs the guest. Once all vCPUs have stopped and the disks are flushed, calls `conclude`, then tells subscribers.
    pub fn run(self, conclude: impl FnOnce(&End, &VmmStatus)) -> Result<End, Error> {
        // Nothing reads an ephemeral machine's usage after its end, so it is not recorded.
        let recorder = match self.process.launcher {
            Launcher::Owner(_) => None,
            _ => Recorder::new(&self.process.dir, self.config.cpus.count),
        };
        let serial_room = self.devices.serial_room.try_clone().map_err(Error::host("create an eventfd"))?;
        let serial = Arc::clone(&self.devices.serial);
        let event_loop = EventLoop::new(EventSources {
            control: self.control,
            launcher: self.process.launcher,
            terminal: Terminal { socket: self.console_socket, serial, serial_room },
            ends: self.ends,
            ready: self.ready,
            recorder,
            owner_until_ready: self.identity.is_some(),
        })?;
        sandbox::seal(self.process.starter)?;
        if let Some(restored) = &self.restored {
            restored.begin(&self.devices, &self.context.timeline)?;
        }
        let mut machine = RunningMachine {
            config: self.config,
            pid: self.process.pid,
            vm: self.vm,
            context: Arc::new(self.context),
            vcpus: Vec::new(),
            devices: self.devices,
            restored_from: self.restored.as_ref().and_then(RestoredState::name),
            origin: self.restored.map(|restored| restored.origin),
            identity: Mutex::new(self.identity),
            clock: Clock::start(),
            cancellation: Cancellation::default(),
        };
        if let Err(error) = machine.start(self.vcpus) {
            machine.stop();
            return Err(error);
        }
        let machine = Arc::new(machine);
        let controlled: Arc<dyn ControlledMachine> = machine.clone();
        let (end, mut control) = event_loop.run(&controlled);
        drop(controlled);
        let mut machine = Arc::into_inner(machine).expect("only jobs share the machine, and none is running");
        let last_status = machine.status();
        machine.stop();
        machine.keep_balance(&self.process.dir);
        log::info!("{end}");
        conclude(&end, &last_status);
        control.broadcast(&Message::Ended { end: end.clone(), status: Box::new(last_status) });
        Ok(end)
    }
}

impl RestoredState {
    fn name(&self) -> Option<String> {
        self.from.dir.file_name().map(|name| name.to_string_lossy().into_owned())
    }

    /// Restores the virtio devices. A snapshot that may be restored only once is consumed, so no vCPU may run before.
    fn begin(&self, devices: &Devices, timeline: &Timeline) -> Result<(), Error> {
        freeze::restore_virtio(devices, &self.virtio, &self.from.dir)?;
        timeline.mark(Mark::StateRestored);
        if self.from.once {
            snapshot::consume(&self.from.dir)?;
        }
        Ok(())
    }
}

/// The first stage: the timeline, and the socket at which clients may connect already.
struct StartUp {
    timeline: Arc<Timeline>,
    control: ControlServer,
}

/// The results of all other stages.
struct Parts {
    config: MachineConfig,
    process: Process,
    memory: GuestMemory,
    machine: VirtualMachine,
    wired: WiredDevices,
    vcpus: Vcpus,
    restored: Option<RestoredState>,
}

impl StartUp {
    fn begin(inputs: &VmmInputs) -> Result<StartUp, Error> {
        let timeline = Arc::new(Timeline::default());
        timeline.mark(Mark::VmmStart);
        if let Some(start) = inputs.process_start_ns {
            timeline.mark_at(Mark::ProcessStart, start);
        }
        install_kick_handler()?;
        let control = ControlServer::bind(&inputs.dir.join(SOCKET))?;
        Ok(StartUp { timeline, control })
    }

    fn assemble(self, parts: Parts) -> Result<Machine, Error> {
        let Parts { config, process, memory, machine, wired, vcpus, restored } = parts;
        let VirtualMachine { kvm, supported, vm } = machine;
        let WiredDevices { connected, console_socket, end_sender, ends, ready } = wired;
        let ConnectedDevices { ports, mmio, mut devices } = connected;
        let software_kvm = emulation::is_software_kvm();
        let xstate_faults = Arc::new(GuestFaults::new("xstate"));
        devices.faults.push(("xstate".into(), Arc::clone(&xstate_faults)));
        let context = VcpuContext {
            ports,
            mmio,
            memory,
            software_kvm,
            xstate: Xstate::of_host(&supported).filter(|_| software_kvm),
            xstate_faults,
            exits: Arc::new(ExitCounters::default()),
            cpu_time: CpuTime::new(config.cpus.count, devices.clocks.clone()),
            quota: quota(&config, &process.dir),
            timeline: self.timeline,
            ends: end_sender,
            gate: Gate::new(config.cpus.count),
            saved_msrs: state::saved_msrs(&kvm)?,
            identity: vcpus.identity,
        };
        Ok(Machine {
            config,
            process,
            vm,
            vcpus: vcpus.fds,
            context,
            devices,
            ends,
            ready,
            control: self.control,
            console_socket,
            restored,
            identity: None,
        })
    }
}

/// Starts with the balance that the machine's previous run saved, if any.
fn quota(config: &MachineConfig, dir: &Path) -> Option<Quota> {
    let mut budget = config.cpu_budget?;
    match KeptBalance::read(dir) {
        Ok(kept) => budget.balance = kept.map_or(budget.balance, |kept| kept.balance),
        Err(error) => log::warn!("cannot read the saved CPU credit balance: {error}"),
    }
    Some(Quota::new(budget, config.cpus.count))
}
