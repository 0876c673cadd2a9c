//! System call filters (seccomp(2)) for each kind of thread, from the lists in [`super::calls`].
//!
//! A thread that makes a call that is not on its list gets SIGSYS, whose handler logs the call and ends the process. No
//! list allows replacing the handler, and the kernel kills a process that blocks the signal. A call of another
//! architecture ends the process at once.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use machine::sandbox_record::{SECCOMP_EXIT_CODE, SECCOMP_LOG_PREFIX};

use super::calls::{Arguments, Call, ThreadKind};

/// True once filters are enabled for the threads of this process.
static WANTED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static THREAD_NAME: Cell<&'static str> = const { Cell::new("a thread") };
}

/// Enables filters for threads of this process. Each thread installs its own.
pub fn prepare() -> io::Result<()> {
    // SAFETY: all zeroes is a valid `sigaction`; the handler is async-signal-safe.
    let installed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_violation as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut())
    };
    if installed == -1 {
        return Err(io::Error::last_os_error());
    }
    WANTED.store(true, Ordering::Release);
    Ok(())
}

pub fn is_wanted() -> bool {
    WANTED.load(Ordering::Acquire)
}

/// Installs the filters for `kind` on the calling thread. Does nothing unless filters are enabled.
pub fn enter(kind: ThreadKind) -> io::Result<()> {
    if !is_wanted() {
        return Ok(());
    }
    THREAD_NAME.with(|who| who.set(kind.as_str()));
    let [first, second] = programs(kind);
    for program in [first, second] {
        apply_filter(program).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Compiles the filters of the threads that every machine starts, so that the threads only install them.
pub fn compile_start_up_filters() {
    let later = [ThreadKind::Job, ThreadKind::Net];
    for kind in ThreadKind::ALL.into_iter().filter(|kind| !later.contains(kind)) {
        programs(kind);
    }
}

/// Returns two filters, of which the stricter action applies: one makes `clone3` return ENOSYS, one has the list.
fn programs(kind: ThreadKind) -> [&'static BpfProgram; 2] {
    static NO_CLONE3: OnceLock<BpfProgram> = OnceLock::new();
    static LISTS: [OnceLock<BpfProgram>; ThreadKind::ALL.len()] = [const { OnceLock::new() }; ThreadKind::ALL.len()];
    let no_clone3 = || {
        let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
        compile(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))
    };
    let list = || compile(rules(kind), SeccompAction::Trap, SeccompAction::Allow);
    [NO_CLONE3.get_or_init(no_clone3), LISTS[kind as usize].get_or_init(list)]
}

fn compile(rules: Rules, others: SeccompAction, listed: SeccompAction) -> BpfProgram {
    SeccompFilter::new(rules, others, listed, TargetArch::x86_64)
        .and_then(BpfProgram::try_from)
        .expect("a test compiles all lists")
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Merges the groups of `kind`. A call is allowed if at least one group allows it.
fn rules(kind: ThreadKind) -> Rules {
    let mut rules = Rules::new();
    let calls = || kind.groups().iter().copied().flatten();
    for call in calls() {
        rules.entry(call.number).or_default().extend(conditions(call));
    }
    for call in calls().filter(|call| matches!(call.arguments, Arguments::Any)) {
        rules.insert(call.number, Vec::new());
    }
    rules
}

fn conditions(call: &Call) -> Vec<SeccompRule> {
    // The kernel reads these arguments as 32 bits. clone's flags are 64 bits, but the upper half has no meaning.
    let rule = |argument, operator, value| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .expect("system calls have six arguments")
    };
    match call.arguments {
        Arguments::Any => Vec::new(),
        Arguments::OwnProcess(argument) => vec![rule(argument, SeccompCmpOp::Eq, std::process::id().into())],
        Arguments::OneOf(argument, values) => {
            values.iter().map(|value| rule(argument, SeccompCmpOp::Eq, *value)).collect()
        }
        Arguments::Bits { argument, mask, value } => vec![rule(argument, SeccompCmpOp::MaskedEq(mask), value)],
        Arguments::AllBits(bits) => {
            let condition = |(argument, mask, value): &(u8, u64, u64)| {
                // The mask selects the part of the argument to compare.
                SeccompCondition::new(*argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(*mask), *value)
            };
            let conditions = bits.iter().map(condition).collect::<Result<_, _>>();
            vec![conditions.and_then(SeccompRule::new).expect("system calls have six arguments")]
        }
    }
}

/// Logs the call and ends the process. Async-signal-safe: allocates nothing and takes no lock.
extern "C" fn on_violation(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t`. For SIGSYS, the call's number follows the call's address, which
    // follows three integers and padding (`asm-generic/siginfo.h`).
    let number = unsafe { info.cast::<libc::c_int>().add(6).read() };
    let mut line = Line { bytes: [0; 200], length: 0 };
    let name = syscalls::Sysno::new(number as usize).map_or("unknown to wisp", |call| call.name());
    let who = THREAD_NAME.with(Cell::get);
    line.push(SECCOMP_LOG_PREFIX);
    line.push(who);
    line.push(" made the system call ");
    line.push_number(number as u32);
    line.push(" (");
    line.push(name);
    line.push("); src/vmm/sandbox/calls.rs does not allow the call or its arguments\n");
    // SAFETY: `length` bytes of the line are initialized; descriptor 2 is the log, or closed.
    unsafe {
        libc::write(2, line.bytes.as_ptr().cast(), line.length);
        libc::_exit(SECCOMP_EXIT_CODE);
    }
}

struct Line {
    bytes: [u8; 200],
    length: usize,
}

impl Line {
    fn push(&mut self, text: &str) {
        for byte in text.bytes() {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = byte;
                self.length += 1;
            }
        }
    }

    fn push_number(&mut self, number: u32) {
        if number > 9 {
            self.push_number(number / 10);
        }
        let digit = [b'0' + (number % 10) as u8];
        self.push(std::str::from_utf8(&digit).unwrap_or("?"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_every_thread_kind_compile() {
        for kind in ThreadKind::ALL {
            programs(kind).into_iter().for_each(|program| assert!(!program.is_empty(), "{kind:?}"));
        }
    }

    #[test]
    fn starter_allows_every_call_of_its_threads() {
        let starter = rules(ThreadKind::Starter);
        let others = |kind: &ThreadKind| !matches!(kind, ThreadKind::Main | ThreadKind::Starter);
        for kind in ThreadKind::ALL.into_iter().filter(others) {
            for (number, wanted) in rules(kind) {
                let name = syscalls::Sysno::new(number as usize).map_or("?", |call| call.name());
                let there = starter.get(&number).unwrap_or_else(|| panic!("the starter lacks {name} of {kind:?}"));
                let all = there.is_empty() || !wanted.is_empty() && wanted.iter().all(|rule| there.contains(rule));
                assert!(all, "the starter's list lacks arguments of {name} of {kind:?}");
            }
        }
    }

    #[test]
    fn no_kind_allows_calls_that_gain_access() {
        let forbidden = [
            libc::SYS_socket,
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_connect,
            libc::SYS_sendmsg,
            libc::SYS_sendmmsg,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_bpf,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_chroot,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_chmod,
            libc::SYS_fchmod,
            libc::SYS_fchmodat,
            libc::SYS_chown,
            libc::SYS_setuid,
            libc::SYS_setresuid,
            libc::SYS_capset,
            libc::SYS_prlimit64,
            libc::SYS_setrlimit,
            libc::SYS_rt_sigaction,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_pidfd_open,
            libc::SYS_pidfd_getfd,
            libc::SYS_mknod,
            libc::SYS_symlink,
            libc::SYS_open_by_handle_at,
            libc::SYS_init_module,
            libc::SYS_kexec_load,
        ];
        for kind in ThreadKind::ALL {
            let rules = rules(kind);
            forbidden.iter().for_each(|number| assert!(!rules.contains_key(number), "{kind:?}: {number}"));
        }
    }
}
