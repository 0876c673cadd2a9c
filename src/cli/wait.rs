//! Waiting for a guest, where a person can see that something happens.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::host::probe;

/// How long a guest may take to boot: with hardware KVM, and where its kernel is emulated.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
const EMULATED_BOOT_TIMEOUT: Duration = Duration::from_secs(600);
/// How long an agent that is ready may take to answer.
pub const AGENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Work that takes longer than this is shown on a terminal.
pub const SHOW_AFTER: Duration = Duration::from_secs(1);

/// How long a guest may take to boot on this host, unless the user says.
pub fn boot_timeout(seconds: Option<u64>) -> Duration {
    let default = if probe::is_software_kvm() { EMULATED_BOOT_TIMEOUT } else { BOOT_TIMEOUT };
    seconds.map_or(default, Duration::from_secs)
}

/// Turns while something is waited for; on a terminal only.
pub fn spinner(message: impl Into<String>) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("the template is well-formed");
    let spinner = ProgressBar::new_spinner().with_style(style);
    spinner.set_message(message.into());
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
