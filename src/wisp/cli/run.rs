//! `wisp run`: runs a command or a shell in an ephemeral instance.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use super::args::{ADVANCED, STORAGE};
use super::guest_command::{self, Outcome};
use super::network::NetworkArgs;
use super::size::SizeArgs;
use super::wait::{self, AGENT_TIMEOUT, FirstBootProgress, SHOW_AFTER};
use super::{disk_option, output, serial, timeline};
use cloud::capacity::cpus;
use cloud::launch::FirstBoot;
use cloud::run::{Boot, RunSpec};
use cloud::template::Start;
use ec2::capacity::InstanceSize;
use machine::config::BootProtocol;
use machine::end::End;
use machine::timeline::Mark;
use node::home::Home;
use node::image::Image;
use node::image_memory::ImageMemory;
use node::instance::{EphemeralInstance, MachineError};
use node::local;
use node::probe;

/// The default size. It is smaller than any EC2 type, because small guests boot fastest.
const DEFAULT_VCPUS: u32 = 1;
const DEFAULT_MEMORY_MIB: u64 = 256;
/// The timeout for a guest's shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(90);
/// A kernel command line option. Only kernels built for software KVM contain its name.
const EMULATION_OPTION: &[u8] = b"wisp.software_kvm";

/// Run a command or a shell in a new, temporary guest.
///
/// Standard input, output and error are connected to the command, and signals are forwarded to it. Changes to the
/// guest's root file system are discarded. The default size is 1 vCPU and 256 MiB.
///
/// The exit code is the command's; 126 if it cannot be executed, 127 if it does not exist, 125 if Wisp itself fails.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp run                                      a shell in the embedded image
  wisp run -- uname -a                          a single command
  echo hello | wisp run -- wc -c                with standard input
  wisp run --type c6i.large -- nproc            with the size of an instance type
  wisp run -p 8080:80 -- httpd -f -p 80         forward port 8080 of this host to it
  wisp run --disk data.img -- ls -l /dev/vdb    attach a raw disk, writable
  wisp run --disk data.qcow2,ro                 attach a qcow2 disk, read-only
  wisp run --kernel vmlinux --disk root.ext4,ro --console
                                                boot a kernel with its console (Ctrl-] exits)")]
pub struct Args {
    /// Image name or ID, or bundle directory [default: tiny, the embedded image].
    #[arg(value_name = "IMAGE", conflicts_with = "kernel")]
    image: Option<String>,

    #[command(flatten)]
    network: NetworkArgs,

    /// Attach a disk; can be repeated. With --kernel, the first disk is the root disk.
    ///
    /// The format is raw unless the name ends in .qcow2 or format= is given. It is never detected from the content.
    /// `ro` makes the disk read-only. For a qcow2 image with backing files, specify a backing=FILE for each, starting
    /// with the immediate one. Double each comma in a file name.
    #[arg(long = "disk", value_name = disk_option::SYNTAX, help_heading = STORAGE)]
    disks: Vec<OsString>,

    #[command(flatten)]
    size: SizeArgs,

    /// Boot this kernel instead of an image: ELF vmlinux or bzImage.
    #[arg(long, value_name = "FILE", help_heading = ADVANCED)]
    kernel: Option<PathBuf>,

    /// Initramfs for --kernel.
    #[arg(long, value_name = "FILE", requires = "kernel", help_heading = ADVANCED)]
    initrd: Option<PathBuf>,

    /// Boot protocol for --kernel: auto, linux64 or pvh; `auto` selects PVH if the kernel has a PVH note.
    #[arg(long, value_name = "PROTOCOL", requires = "kernel", value_parser = parse_protocol, default_value = "auto",
        help_heading = ADVANCED)]
    protocol: BootProtocol,

    /// Append these options to the kernel command line.
    #[arg(long, value_name = "OPTIONS", help_heading = ADVANCED)]
    cmdline: Option<String>,

    /// Always cold-boot, even if a template exists (see `wisp image warm`).
    #[arg(long, help_heading = ADVANCED)]
    cold: bool,

    /// Attach to the serial console instead of running a command; Ctrl-] terminates the guest.
    #[arg(long, conflicts_with = "command")]
    console: bool,

    /// Do not enforce the CPU, disk and network limits of --type.
    #[arg(long, help_heading = ADVANCED)]
    no_limits: bool,

    /// Timeout for the guest's boot, in seconds [default: 60, or 600 on software KVM]
    #[arg(long, value_name = "SECONDS", help_heading = ADVANCED, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: Option<u64>,

    /// Show the boot timeline after the command.
    #[arg(long)]
    timeline: bool,

    /// Command and arguments [default: a login shell].
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs the command. `began_ns` is the start time of this process.
pub fn run(args: Args, began_ns: u64) -> anyhow::Result<ExitCode> {
    let disks = args.disks.iter().map(|disk| disk_option::parse(disk)).collect::<anyhow::Result<Vec<_>>>()?;
    probe::kvm_access()?;
    let home = Home::open()?;
    let boot = boot(&args, &home)?;
    let memory = if let Boot::Image(image) = &boot { ImageMemory::of(image) } else { None };
    let request = size(&args.size.clone().or_image_size(memory))?;
    let limited = args.size.instance_type.is_some() && !args.no_limits;
    let spec = RunSpec {
        cpus: cpus(&request),
        memory_mib: request.memory_mib,
        boot,
        disks,
        cmdline: args.cmdline.clone(),
        console: args.console,
        network: Some(args.network.clone().spec()),
        limits: limited.then_some(request.instance_type),
    };
    let mut instance = start(&args, &spec, &home, began_ns)?;
    let outcome = if args.console { run_console(&mut instance) } else { run_command(&args, &spec, &mut instance) };
    let ended = instance.kill();
    // The command's error is more specific than the machine's, so it is reported first.
    let code = outcome?;
    let (end, status) = ended?;
    if let Err(error) = timeline::keep(&home, &status) {
        log::warn!("cannot save the boot timeline: {error:#}");
    }
    if args.timeline {
        output::say(&timeline::render(&status, output::Screen::stderr()));
    }
    log::info!("{end}");
    Ok(ExitCode::from(code))
}

/// Starts the guest: from the template if the image can have one, which the first guest makes.
fn start(args: &Args, spec: &RunSpec, home: &Home, began_ns: u64) -> anyhow::Result<EphemeralInstance> {
    let progress = FirstBootProgress::default();
    let image = match &spec.boot {
        Boot::Image(image) if can_use_template(args, spec, image) => image,
        _ => return Ok(spec.start(home, None, began_ns)?),
    };
    let waiting = || progress.show(FirstBoot::Waiting);
    let start = Start::of(home, image, spec.cpus, spec.memory_mib, &waiting);
    progress.finish();
    match start? {
        Start::First(task) => {
            let first = spec.start_first(home, began_ns)?;
            progress.show(FirstBoot::Booting);
            let completed = first.complete(task, wait::boot_timeout(args.timeout));
            progress.finish();
            let (instance, warning) = completed?;
            if let Some(why) = warning {
                output::say(&format!("Note: no template for later runs: {why}"));
            }
            Ok(instance)
        }
        start => Ok(spec.start(home, start.template(), began_ns)?),
    }
}

fn can_use_template(args: &Args, spec: &RunSpec, image: &Image) -> bool {
    !args.cold && !args.console && spec.disks.is_empty() && spec.cmdline.is_none() && image.manifest.root.is_some()
}

/// Returns the requested vCPUs and memory. Fails if this host lacks capacity for them.
fn size(size: &SizeArgs) -> anyhow::Result<InstanceSize> {
    let request = size.or_else(DEFAULT_VCPUS, DEFAULT_MEMORY_MIB)?;
    size.check(&request)?;
    Ok(request)
}

fn boot(args: &Args, home: &Home) -> anyhow::Result<Boot> {
    let Some(kernel) = &args.kernel else {
        return Ok(Boot::Image(Box::new(image(home, args.image.as_deref())?)));
    };
    let initrd = args.initrd.as_deref().map(absolute).transpose()?;
    let kernel = absolute(kernel)?;
    let software_kvm_aware = is_software_kvm_aware(&kernel);
    if probe::is_software_kvm() && !software_kvm_aware {
        warn_of_emulation(&kernel);
    }
    Ok(Boot::Kernel { kernel, initrd, protocol: args.protocol, software_kvm_aware })
}

/// Opens the image. Does not open the store, which takes time, for the embedded image and bundle directories.
fn image(home: &Home, reference: Option<&str>) -> anyhow::Result<Image> {
    match local::unregistered(home, reference)? {
        Some(image) => Ok(image),
        None => Ok(super::open_cloud()?.images().open(reference)?.1),
    }
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    path.canonicalize().with_context(|| format!("cannot open {}", path.display()))
}

fn parse_protocol(text: &str) -> Result<BootProtocol, String> {
    match text {
        "auto" => Ok(BootProtocol::Auto),
        "linux64" => Ok(BootProtocol::Linux64),
        "pvh" => Ok(BootProtocol::Pvh),
        _ => Err("it must be auto, linux64 or pvh".into()),
    }
}

/// Returns true if the kernel contains [`EMULATION_OPTION`]. Returns false for an unreadable kernel; the error is
/// reported later, when the kernel is loaded.
fn is_software_kvm_aware(kernel: &Path) -> bool {
    std::fs::read(kernel).is_ok_and(|content| contains(&content, EMULATION_OPTION))
}

/// Warns that the kernel is not built for software KVM, which this host has.
fn warn_of_emulation(kernel: &Path) {
    output::say(&format!(
        "Note: this host has software KVM, which emulates guest kernels. {} is not built for software KVM: it takes \
         many minutes to boot and cannot run programs. Omit --kernel to boot the embedded kernel, or use a host with \
         hardware KVM.",
        kernel.display()
    ));
}

fn contains(content: &[u8], word: &[u8]) -> bool {
    content.windows(word.len()).any(|window| window == word)
}

/// Attaches to the serial console until the guest ends or the user exits.
fn run_console(instance: &mut EphemeralInstance) -> anyhow::Result<u8> {
    let stream = instance.take_console().context("the instance was started without a console")?;
    match serial::join(stream)? {
        serial::Left::ByEscape => {
            output::say("Console closed. The guest was terminated.");
            Ok(0)
        }
        serial::Left::GuestEnded => {
            let (end, _) = instance.outcome(SHUTDOWN_TIMEOUT)?;
            output::say(&format!("The VM has stopped: {end}."));
            Ok(u8::from(!end.is_orderly()))
        }
    }
}

/// Runs the command through the agent. Then, if the user attached a writable disk, shuts the guest down cleanly.
fn run_command(args: &Args, spec: &RunSpec, instance: &mut EphemeralInstance) -> anyhow::Result<u8> {
    wait_ready(args, instance)?;
    let interactive = guest_command::is_interactive(&args.command);
    if interactive {
        greet(spec, instance)?;
    }
    let agent = instance.dir().agent(AGENT_TIMEOUT)?;
    let code = match guest_command::run(agent, &args.command, None)? {
        Outcome::Exited(code) => code,
        Outcome::Interrupted(code) => return Ok(code),
        Outcome::GuestGone => return guest_ended(instance),
    };
    if spec.writes_last() {
        instance.dir().agent(AGENT_TIMEOUT)?.shutdown(false, AGENT_TIMEOUT)?;
        instance.outcome(SHUTDOWN_TIMEOUT).context("the guest did not shut down in time")?;
    }
    if interactive {
        output::next("timeline   (to see the phases of this boot)");
    }
    Ok(code)
}

fn wait_ready(args: &Args, instance: &mut EphemeralInstance) -> Result<(), MachineError> {
    let timeout = wait::boot_timeout(args.timeout);
    let first = timeout.min(SHOW_AFTER);
    if instance.wait_ready(first)? {
        return Ok(());
    }
    let spinner = wait::spinner("Booting the guest");
    let ready = instance.wait_ready(timeout - first);
    spinner.finish_and_clear();
    if ready? { Ok(()) } else { Err(instance.not_ready(timeout)) }
}

/// Prints the greeting before the shell's first prompt.
fn greet(spec: &RunSpec, instance: &mut EphemeralInstance) -> anyhow::Result<()> {
    let boot = instance.status()?.timeline.between(Mark::ProcessStart, Mark::AgentReady).unwrap_or(0);
    output::say(&format!(
        "{} is ready after {}: {}, {} MiB. Type `exit` to terminate it and discard its root file system.",
        instance.dir().id(),
        output::duration(Duration::from_nanos(boot)),
        output::count(spec.cpus.count as usize, "vCPU"),
        spec.memory_mib,
    ));
    Ok(())
}

/// Handles the guest's end during the command. A power-off or a reboot is not an error.
fn guest_ended(instance: &mut EphemeralInstance) -> anyhow::Result<u8> {
    let (end, _) = instance.outcome(SHUTDOWN_TIMEOUT)?;
    match end {
        End::PowerOff | End::Reboot => {
            output::say(&format!("The VM has stopped: {end}."));
            Ok(0)
        }
        end => anyhow::bail!("the command did not finish: {end}{}", instance.dir().console_tail()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use machine::config::CpuConfig;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Result<Args, clap::Error> {
        Line::try_parse_from([&["run"], words].concat()).map(|line| line.args)
    }

    #[test]
    fn size_without_options_is_default() {
        let request = size(&parse(&[]).unwrap().size).unwrap();
        assert_eq!((request.vcpus, request.memory_mib), (1, 256));
        assert_eq!(cpus(&request), CpuConfig { count: 1, threads_per_core: 1 });
    }

    #[test]
    fn size_overrides_without_type_are_accepted() {
        let request = size(&parse(&["--vcpus", "2", "--memory", "128M", "--overcommit"]).unwrap().size).unwrap();
        assert_eq!((request.vcpus, request.memory_mib), (2, 128));
    }

    #[test]
    fn conflicting_options_are_refused() {
        for words in
            [&["tiny", "--kernel", "k"][..], &["--initrd", "i"], &["--console", "--", "ls"], &["--timeout", "0"]]
        {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn words_after_dashes_are_the_command() {
        let args = parse(&["tiny", "--", "ls", "--help"]).unwrap();
        assert_eq!(args.image.as_deref(), Some("tiny"));
        assert_eq!(args.command, ["ls", "--help"]);
    }
}
