//! Identities of processes that are not children: a later process with the same PID has another identity.

use std::fs;
use std::io;

/// Returns the identity of this process: the boot's ID, the PID and the start time in clock ticks after the boot.
pub fn own() -> io::Result<String> {
    let pid = std::process::id();
    of(pid)?.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat")))
}

/// Returns true if the process with this identity is running.
pub fn is_running(identity: &str) -> bool {
    let pid = identity.split('/').nth(1).and_then(|pid| pid.parse().ok());
    pid.is_some_and(|pid| of(pid).ok().flatten().as_deref() == Some(identity))
}

fn of(pid: u32) -> io::Result<Option<String>> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    Ok(start_time(&stat).map(|start| format!("{}/{pid}/{start}", boot.trim())))
}

/// Returns the start time in `/proc/PID/stat` (proc_pid_stat(5)), or `None` for a process that has exited.
fn start_time(stat: &str) -> Option<u64> {
    // The name of the process can have spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    // The state is field 3, and the start time field 22.
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_is_running() {
        let own = own().unwrap();
        assert!(is_running(&own));
        let (rest, start) = own.rsplit_once('/').unwrap();
        let later = format!("{rest}/{}", start.parse::<u64>().unwrap() + 1);
        assert!(!is_running(&later));
        assert!(!is_running(&own.replacen(|digit: char| digit.is_ascii_hexdigit(), "g", 1)));
        assert!(!is_running(""));
    }

    #[test]
    fn exited_process_is_not_running() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let id = child.id();
        // A zombie keeps its PID until it is reaped.
        rustix::process::waitid(
            rustix::process::WaitId::Pid(rustix::process::Pid::from_child(&child)),
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
        )
        .unwrap();
        assert_eq!(of(id).unwrap(), None);
        child.wait().unwrap();
    }

    #[test]
    fn start_time_is_field_22() {
        let rest = (4..=21).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(start_time(&format!("7 (a) b) S {rest} 99 23")), Some(99));
        assert_eq!(start_time(&format!("7 (a) Z {rest} 99 23")), None);
        assert_eq!(start_time("7 (a) S 4"), None);
    }
}
