//! The last lines of a guest's console, which explain a failure.

use std::fmt;
use std::path::Path;

use machine::files::CONSOLE_LOG;
use machine::untrusted;

/// Number of console lines shown after a failure.
const CONSOLE_LINES: usize = 12;
/// Bytes of the console log that are searched for these lines.
const CONSOLE_TAIL: u64 = 16 << 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleTail(Vec<String>);

impl fmt::Display for ConsoleTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(f, "; the console is empty");
        }
        write!(f, ". Last lines of the console:")?;
        self.0.iter().try_for_each(|line| write!(f, "\n  | {line}"))
    }
}

/// Returns the last console lines of the guest whose VMM has the directory `own`.
pub(super) fn console_tail(own: &Path) -> ConsoleTail {
    let bytes = untrusted::read_tail(&own.join(CONSOLE_LOG), CONSOLE_TAIL).unwrap_or_default();
    ConsoleTail(last_lines(&bytes, CONSOLE_LINES))
}

/// Returns the last `count` lines of console output that are not blank. Removes control characters, which could
/// move a terminal's cursor.
fn last_lines(bytes: &[u8], count: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let clean = |line: &str| line.chars().filter(|c| !c.is_control() || *c == '\t').collect::<String>();
    let lines: Vec<String> = text.lines().map(clean).filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn console_tail_drops_control_characters() {
        let lines = last_lines(b"one\r\n\x1b[2Jtwo\n\n\nthree\n", 2);
        assert_eq!(lines, ["[2Jtwo", "three"]);
    }
}
