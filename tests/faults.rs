//! Faults of the host. Each must end in a correct state or a clear error, and must not affect other instances.
//! `docs/reliability.md` lists all tested faults.

mod common;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use common::instances::{SMALL, dir, exec, json, launch};
use common::machines::{Machine, config};
use common::wait::wait_for_text;
use common::{DEADLINE, Outcome, Wisp};
use machine::config::{DiskAccess, DiskConfig, DiskFormat};

/// Returns the process IDs of the VMM and its supervisor.
fn processes(wisp: &Wisp, instance: &str) -> Vec<i32> {
    let id = dir(wisp, instance).file_name().unwrap().to_str().unwrap().to_string();
    common::vmm_processes(wisp.home()).into_iter().filter(|(_, of)| of.to_string() == id).map(|(pid, _)| pid).collect()
}

fn signal(processes: &[i32], signal: i32) {
    for pid in processes {
        // SAFETY: it is a process of this test that has not been waited for.
        assert_eq!(unsafe { libc::kill(*pid, signal) }, 0);
    }
}

fn state(wisp: &Wisp, instance: &str) -> String {
    let shown = json(wisp, &["show", instance]);
    shown["Reservations"][0]["Instances"][0]["State"]["Name"].as_str().unwrap().to_string()
}

#[test]
fn vmm_under_sigstop_resumes_or_is_killed() {
    let wisp = Wisp::warm();
    launch(&wisp, &["--name", "still", "--network", "none"]).expect_code(0);
    launch(&wisp, &["--name", "other", "--network", "none", "--overcommit"]).expect_code(0);
    exec(&wisp, "still", "(while true; do echo tick; sleep 1; done) > /tmp/ticks 2>&1 &");
    let vmm = processes(&wisp, "still");
    assert_eq!(vmm.len(), 2, "{vmm:?}");
    signal(&vmm, libc::SIGSTOP);

    // Commands that need no answer from the VMM work, and so do other instances.
    assert!(wisp.run(&["ls"]).expect_code(0).text().contains("still"));
    assert_eq!(exec(&wisp, "other", "echo here"), "here");
    signal(&vmm, libc::SIGCONT);
    let before: u64 = exec(&wisp, "still", "wc -l < /tmp/ticks").parse().unwrap();
    let deadline = Instant::now() + DEADLINE;
    while exec(&wisp, "still", "wc -l < /tmp/ticks").parse::<u64>().unwrap() <= before {
        assert!(Instant::now() < deadline, "the guest's clock has stopped");
    }
    assert_eq!(exec(&wisp, "still", "dmesg | grep -i 'soft lockup'; true"), "");

    // A VMM that stays stopped is killed, and its instance starts again.
    signal(&vmm, libc::SIGSTOP);
    let stopped = wisp.run(&["stop", "still", "--force"]).expect_code(0);
    assert!(stopped.stderr.contains("killed the VMM because it did not respond"), "{}", stopped.stderr);
    assert_eq!(state(&wisp, "still"), "stopped");
    vmm.iter().for_each(|pid| common::wait_until_gone((*pid).try_into().unwrap()));
    wisp.run(&["start", "still", "--no-wait"]).expect_code(0);
    wisp.run(&["terminate", "still", "other"]).expect_code(0);
}

/// A library that shifts the wall clock by `WISP_TEST_CLOCK` seconds. VMMs start with an allow-list of variables,
/// so the library adds itself to the environment of each executed program.
const OTHER_CLOCK: &str = "
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <stdlib.h>
        #include <string.h>
        #include <sys/syscall.h>
        #include <time.h>
        #include <unistd.h>
        static char *library, *shift;
        __attribute__((constructor)) static void remember(void) {
            if (getenv(\"LD_PRELOAD\")) library = strdup(getenv(\"LD_PRELOAD\"));
            if (getenv(\"WISP_TEST_CLOCK\")) shift = strdup(getenv(\"WISP_TEST_CLOCK\"));
        }
        int clock_gettime(clockid_t clock, struct timespec *now) {
            int result = syscall(SYS_clock_gettime, clock, now);
            if (result == 0 && clock == CLOCK_REALTIME && shift) now->tv_sec += atol(shift);
            return result;
        }
        int execvp(const char *file, char *const words[]) {
            int (*next)(const char *, char *const[]) = dlsym(RTLD_NEXT, \"execvp\");
            if (library) setenv(\"LD_PRELOAD\", library, 1);
            if (shift) setenv(\"WISP_TEST_CLOCK\", shift, 1);
            return next(file, words);
        }
";

/// The offset and length of a disk's bad sectors. The image's root disk ends before them.
const BAD: u64 = 512 << 20;
const BAD_LENGTH: u64 = 64 << 10;

/// A library that fails file accesses at [`BAD`]. The library disables io_uring, which it cannot intercept.
const BAD_SECTORS: &str = "
        #define _GNU_SOURCE
        #include <errno.h>
        #include <stdarg.h>
        #include <sys/syscall.h>
        #include <sys/uio.h>
        #include <unistd.h>
        long syscall(long number, ...) {
            if (number == SYS_io_uring_setup) { errno = ENOSYS; return -1; }
            va_list list;
            va_start(list, number);
            long words[6];
            for (int i = 0; i < 6; i++) words[i] = va_arg(list, long);
            va_end(list);
            register long fourth __asm__(\"r10\") = words[3];
            register long fifth __asm__(\"r8\") = words[4];
            register long sixth __asm__(\"r9\") = words[5];
            long result;
            __asm__ volatile(\"syscall\" : \"=a\"(result)
                             : \"a\"(number), \"D\"(words[0]), \"S\"(words[1]), \"d\"(words[2]), \"r\"(fourth), \"r\"(fifth), \"r\"(sixth)
                             : \"rcx\", \"r11\", \"memory\");
            if (result >= 0 || result < -4095) return result;
            errno = -result;
            return -1;
        }
        static int is_bad(const struct iovec *parts, int count, off_t offset) {
            off_t end = offset;
            for (int i = 0; i < count; i++) end += parts[i].iov_len;
            return end > BAD && offset < BAD + BAD_LENGTH;
        }
        #define VECTORED(name, number) \
            ssize_t name(int file, const struct iovec *parts, int count, off_t offset) { \
                if (is_bad(parts, count, offset)) { errno = EIO; return -1; } \
                return syscall(number, file, parts, count, offset, 0L); \
            }
        VECTORED(preadv, SYS_preadv)
        VECTORED(preadv64, SYS_preadv)
        VECTORED(pwritev, SYS_pwritev)
        VECTORED(pwritev64, SYS_pwritev)
";

fn compile_library(dir: &Path, source: &str) -> std::path::PathBuf {
    let (file, library) = (dir.join("library.c"), dir.join("library.so"));
    fs::write(&file, source).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args([format!("-DBAD={BAD}L"), format!("-DBAD_LENGTH={BAD_LENGTH}L")]);
    let built = compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&file).arg("-ldl").output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    library
}

#[test]
fn host_clock_jump_changes_only_guest_time() {
    const DAY: i64 = 86_400;
    let wisp = Wisp::warm();
    let tools = tempfile::tempdir().unwrap();
    let library = compile_library(tools.path(), OTHER_CLOCK);
    let at = |days: i64, words: &[&str]| {
        let mut command = wisp.command(words);
        command.env("LD_PRELOAD", &library).env("WISP_TEST_CLOCK", (days * DAY).to_string());
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).trim().to_string();
        assert!(output.status.success(), "{words:?}, {days} days on: {}", String::from_utf8_lossy(&output.stderr));
        text
    };
    // Commands and the VMMs that they start see the shifted clock. KVM itself uses the host's.
    let is_right = |days: i64| {
        let time = exec(&wisp, "it", "date -u +%s").parse::<i64>().unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
        assert!(
            (time - now - days * DAY).abs() < DEADLINE.as_secs() as i64,
            "the guest's time is {time}, and the host's is {now}"
        );
    };
    let launched = || json(&wisp, &["show", "it"])["Reservations"][0]["Instances"][0]["LaunchTime"].to_string();
    let size = ["launch", "--vcpus", "1", "--memory", "192M", "--network", "none", "--hibernation"];
    at(0, &[&size[..], &["--name", "before"]].concat());
    let before = json(&wisp, &["show", "before"])["Reservations"][0]["Instances"][0]["LaunchTime"].to_string();
    at(400, &[&size[..], &["--name", "it", "--overcommit"]].concat());
    assert!(launched() > before, "{} is not after {before}", launched());
    is_right(400);
    // For these commands, the instance was launched in the future.
    assert!(at(0, &["ls"]).contains("running") && at(-400, &["show", "it"]).contains("running"));
    at(-400, &["tag", "it", "when=before"]);
    // A restore sets the guest's clock, even if the guest had changed it.
    exec(&wisp, "it", "date -u -s @1000000000");
    at(-400, &["stop", "it", "--hibernate"]);
    at(0, &["start", "it"]);
    is_right(0);
    at(3, &["stop", "it", "--force"]);
    at(-3, &["start", "it"]);
    assert!(launched() < before, "{} is not before {before}", launched());
    is_right(0);
    at(0, &["terminate", "it", "before"]);
}

#[test]
fn unread_console_does_not_block_guest() {
    let wisp = Wisp::warm();
    launch(&wisp, &["--name", "talker", "--network", "none"]).expect_code(0);
    let idle = std::os::unix::net::UnixStream::connect(dir(&wisp, "talker").join("vmm/console.sock")).unwrap();
    exec(&wisp, "talker", "seq 10000 11999 > /dev/console; echo the-last-line > /dev/console");
    let log = dir(&wisp, "talker").join("vmm/console.log");
    wait_for_text(&log, "the-last-line");
    let text = fs::read_to_string(&log).unwrap();
    assert!((10_000..12_000).all(|number| text.contains(&format!("{number}\r\n"))), "a line is missing");
    drop(idle);
    assert!(wisp.run(&["console", "talker"]).expect_code(0).text().contains("the-last-line"));
    wisp.run(&["terminate", "talker"]).expect_code(0);
}

#[test]
fn bad_sectors_fail_only_requests_that_touch_them() {
    let wisp = Wisp::new();
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&wisp);
    // The other disks end before the bad sectors, so the library does not affect them.
    for (name, size) in [("bad", 2 * BAD), ("good", BAD / 2)] {
        let path = dir.path().join(name);
        fs::File::create(&path).unwrap().set_len(size).unwrap();
        let (format, access) = (DiskFormat::Raw, DiskAccess::ReadWrite);
        config.disks.push(DiskConfig::new(name, path, format, access));
    }
    let tools = tempfile::tempdir().unwrap();
    let library = compile_library(tools.path(), BAD_SECTORS);
    let mut machine = Machine::start_with_preload(&wisp, dir, &config, &library);
    machine.wait_until_ready();
    let errors = |machine: &mut Machine| machine.status().disks.iter().map(|disk| disk.errors).collect::<Vec<_>>();
    assert_eq!(errors(&mut machine), [0, 0, 0]);

    let (bad, before, after) = ((BAD + BAD_LENGTH / 2) >> 12, (BAD >> 12) - 1, (BAD + BAD_LENGTH) >> 12);
    let attempt = |what: &str| format!("{what} 2> /tmp/said && echo done || grep -o 'Input/output error' /tmp/said");
    let read = |at: u64| attempt(&format!("dd if=/dev/vdb of=/dev/null bs=4k count=1 skip={at} iflag=direct"));
    let write = |at: u64| attempt(&format!("dd if=/root/page of=/dev/vdb bs=4k count=1 seek={at} oflag=direct"));
    machine.shell("yes sector | head -c 4096 > /root/page");
    assert_eq!(machine.shell(&read(bad)).trim(), "Input/output error");
    assert_eq!(machine.shell(&write(bad)).trim(), "Input/output error");
    let failed = errors(&mut machine);
    assert!(failed[0] == 0 && failed[1] >= 2 && failed[2] == 0, "{failed:?}");
    for at in [before, after] {
        assert_eq!(machine.shell(&format!("{}; {}", write(at), read(at))), "done\ndone\n");
        let same = format!("dd if=/dev/vdb bs=4k count=1 skip={at} iflag=direct 2> /dev/null | cmp - /root/page");
        machine.shell(&same);
    }
    machine.shell(
        "dd if=/root/page of=/dev/vdc bs=4k conv=fsync 2> /dev/null; dd if=/dev/vdc of=/dev/null bs=64k count=64",
    );
    assert_eq!(errors(&mut machine), failed, "adjacent sectors and the other disk have no errors");

    let disk = &machine.status().disks[1];
    let said = disk.last_error.clone().unwrap();
    assert!(disk.id == "bad" && said.contains("the write failed on the host") && said.contains("os error 5"), "{said}");
    common::wait_for_log(machine.dir.path(), "disk bad: the read failed on the host");
    assert!(machine.status().guest_faults.iter().all(|fault| fault.count == 0));
    machine.shell("dmesg | grep -q 'I/O error, dev vdb' && sync");
}

struct MemoryGroup(PathBuf);

impl MemoryGroup {
    fn new(limit: u64) -> std::io::Result<MemoryGroup> {
        // The host has cgroup version 1 or 2.
        let first = Path::new("/sys/fs/cgroup/memory");
        let (root, file) = if first.join("tasks").exists() {
            (first, "memory.limit_in_bytes")
        } else {
            (Path::new("/sys/fs/cgroup"), "memory.max")
        };
        let group = root.join(format!("wisp-test-{}", std::process::id()));
        fs::create_dir(&group)?;
        let group = MemoryGroup(group);
        fs::write(group.0.join(file), limit.to_string())?;
        Ok(group)
    }

    fn run(&self, mut command: Command) -> Outcome {
        let member = fs::OpenOptions::new().write(true).open(self.0.join("cgroup.procs")).unwrap();
        // SAFETY: write is async-signal-safe, and the descriptor is open.
        unsafe { command.pre_exec(move || rustix::io::write(&member, b"0").map(drop).map_err(Into::into)) };
        let Output { status, stdout, stderr } = command.output().unwrap();
        Outcome { code: status.code(), stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() }
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        // A process that has just ended remains in the group briefly.
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

#[test]
fn oom_killed_vmm_is_reported_and_loses_no_synced_data() {
    let wisp = Wisp::warm();
    launch(&wisp, &["--name", "other", "--network", "none"]).expect_code(0);
    let group = MemoryGroup::new(32 << 20).inspect_err(|error| {
        eprintln!(
            "cannot create a control group ({error}): the test kills the VMM itself, and the OOM report is not tested"
        );
    });
    let run = |words: &[&str]| match &group {
        Ok(group) => group.run(wisp.command(words)),
        Err(_) => wisp.run(words),
    };
    run(&[&["launch", "--name", "large", "--network", "none", "--overcommit"], &SMALL[..]].concat()).expect_code(0);
    exec(&wisp, "large", "echo kept > /root/kept; sync");
    // The group's limit is below the guest's memory, so the VMM is killed, and the command fails.
    let fill = if group.is_ok() { "head -c 200000000 /dev/zero > /dev/shm/zeroes" } else { "echo up; sleep 9999" };
    let filled = match &group {
        Ok(_) => wisp.run(&["exec", "large", "--", "sh", "-c", fill]),
        Err(_) => {
            let mut running = wisp.start(&["exec", "large", "--", "sh", "-c", fill]);
            running.wait_for("up");
            signal(&processes(&wisp, "large"), libc::SIGKILL);
            running.wait()
        }
    };
    assert_ne!(filled.code, Some(0));
    let shown = json(&wisp, &["show", "large"]);
    let instance = &shown["Reservations"][0]["Instances"][0];
    assert_eq!(instance["State"]["Name"], "stopped");
    let reason = instance["StateReason"]["Message"].as_str().unwrap();
    assert!(reason.contains(if group.is_ok() { "for lack of memory" } else { "was killed" }), "{reason}");

    // Without the group's limit, the guest has enough memory.
    assert_eq!(exec(&wisp, "other", "echo here"), "here");
    wisp.run(&["start", "large"]).expect_code(0);
    assert_eq!(exec(&wisp, "large", "cat /root/kept"), "kept");
    wisp.run(&["terminate", "large", "other"]).expect_code(0);

    if group.is_ok() {
        let ran = run(&["run", "--network", "none", "--", "sh", "-c", fill]).expect_code(125);
        assert!(ran.stderr.contains("for lack of memory"), "{}", ran.stderr);
    }
    assert!(wisp.runs().is_empty());
}
