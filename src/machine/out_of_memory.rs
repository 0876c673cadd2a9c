//! Detects that the kernel may have killed a VMM for lack of memory. The kernel reports this only by a counter.

use std::fs;

/// Number of processes killed for lack of memory since the host booted (`oom_kill` in proc_vmstat(5), Linux 4.13).
#[derive(Debug, Clone, Copy)]
pub struct OomKillCount(Option<u64>);

impl OomKillCount {
    pub fn now() -> OomKillCount {
        OomKillCount(fs::read_to_string("/proc/vmstat").ok().and_then(|text| count(&text)))
    }

    /// Returns a message if the count has risen: the killed process may be the VMM, but only the kernel's log names it.
    pub fn suspicion(self) -> Option<String> {
        let killed = OomKillCount::now().0?.checked_sub(self.0?).filter(|killed| *killed > 0)?;
        Some(format!(
            "since it started, the host's kernel has killed {killed} process{} for lack of memory, possibly this one \
             (see `sudo dmesg`). Use an instance type with less memory, free some on the host or raise a cgroup limit",
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
