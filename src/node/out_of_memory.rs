//! Detects kills by the kernel's out-of-memory killer. It sends SIGKILL and does not notify other processes.

use std::fs;

/// Kills for lack of memory on the host or in a cgroup (`oom_kill` in proc_vmstat, Linux 4.13 and later).
#[derive(Debug, Clone, Copy)]
pub struct OomKillCount(Option<u64>);

impl OomKillCount {
    pub fn now() -> OomKillCount {
        OomKillCount(fs::read_to_string("/proc/vmstat").ok().and_then(|text| count(&text)))
    }

    /// Returns a possible cause of a VMM's kill if the count has risen. Only the kernel's log names the killed process.
    pub fn suspicion(self) -> Option<String> {
        let killed = OomKillCount::now().0?.checked_sub(self.0?).filter(|killed| *killed > 0)?;
        Some(format!(
            "since it started, the host's kernel has killed {killed} process{} for lack of memory, possibly this one \
             (see `sudo dmesg`). Use an instance type with less memory, or give the host or its cgroup more memory",
            if killed == 1 { "" } else { "es" }
        ))
    }
}

fn count(vmstat: &str) -> Option<u64> {
    vmstat.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oom_kill_count_is_parsed() {
        assert_eq!(count("nr_free_pages 5\noom_kill 12\noom_kill_disable 1\n"), Some(12));
        assert_eq!(count("nr_free_pages 5\n"), None);
    }

    #[test]
    fn suspicion_is_none_without_kill() {
        assert_eq!(OomKillCount(Some(u64::MAX)).suspicion(), None);
        assert_eq!(OomKillCount(None).suspicion(), None);
    }
}
