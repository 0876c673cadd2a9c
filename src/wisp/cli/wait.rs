//! Waits for guests and shows progress on terminals.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::output;
use cloud::launch::FirstBoot;
use node::host::Machine;
use node::probe;
use store::InstanceRecord;

/// The default boot timeouts, on hardware KVM and on software KVM.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
const EMULATED_BOOT_TIMEOUT: Duration = Duration::from_secs(600);
/// The timeout for a ready agent's response.
pub const AGENT_TIMEOUT: Duration = Duration::from_secs(60);
/// The delay before `wisp run` shows that the guest is booting.
pub const SHOW_AFTER: Duration = Duration::from_secs(1);

/// Returns the user's boot timeout or, by default, the one for this host's kind of KVM.
pub fn boot_timeout(seconds: Option<u64>) -> Duration {
    let default = if probe::is_software_kvm() { EMULATED_BOOT_TIMEOUT } else { BOOT_TIMEOUT };
    seconds.map_or(default, Duration::from_secs)
}

/// Shows a spinner if standard error is a terminal.
pub fn spinner(message: impl Into<String>) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("the template is well-formed");
    let spinner = ProgressBar::new_spinner().with_style(style);
    spinner.set_message(message.into());
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

const WAITING: &str = "Waiting for another launch's first boot";

/// The progress of a start that boots the first guest of an image and a size, or waits for it.
#[derive(Debug, Default)]
pub struct FirstBootProgress(RefCell<Option<ProgressBar>>);

impl FirstBootProgress {
    pub fn show(&self, step: FirstBoot) {
        self.finish();
        self.0.replace(Some(spinner(match step {
            FirstBoot::Waiting => WAITING,
            FirstBoot::Booting => "Booting the first guest",
        })));
    }

    pub fn finish(&self) {
        if let Some(spinner) = self.0.take() {
            spinner.finish_and_clear();
        }
    }
}

/// Waits until every agent is ready. Fails with the first guest that ends early or times out.
pub fn until_ready(
    instances: &[InstanceRecord],
    machines: Vec<Box<dyn Machine>>,
    timeout: Duration,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + timeout;
    let total = machines.len();
    let spinner = spinner(if total == 1 { "Booting the guest".into() } else { format!("Booting {total} guests") });
    for (done, (mut machine, record)) in machines.into_iter().zip(instances).enumerate() {
        if total > 1 {
            spinner.set_message(format!("Booting {} of {total} guests", total - done));
        }
        if !machine.wait_ready(deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)))? {
            spinner.finish_and_clear();
            return Err(machine.not_ready(record.status.state, timeout).into());
        }
        // The network can fail while the guest boots. Earlier network problems have already been reported.
        for problem in machine.link_problems().unwrap_or_default() {
            spinner.suspend(|| output::say(&problem));
        }
    }
    spinner.finish_and_clear();
    Ok(())
}
