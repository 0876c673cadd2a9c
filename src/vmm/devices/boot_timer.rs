//! A port on which a guest reports its boot progress as marks of the boot timeline. Reads return the last mark.

use std::fmt;
use std::sync::Arc;

use crate::bus::BusDevice;
use machine::timeline::{Mark, Timeline};

/// Called when the guest's agent reports that it is ready.
pub type OnReady = Box<dyn Fn() + Send>;

pub struct BootTimer {
    timeline: Arc<Timeline>,
    on_ready: OnReady,
    /// The mark of the next ready report. `None` after it, so that further reports have no effect.
    awaited: Option<Mark>,
    last: u8,
}

impl BootTimer {
    /// `ready` is the mark of the agent's first ready report.
    pub fn new(timeline: Arc<Timeline>, ready: Mark, on_ready: OnReady) -> BootTimer {
        BootTimer { timeline, on_ready, awaited: Some(ready), last: 0 }
    }

    /// Awaits another ready report, after the guest was given its identity.
    pub fn await_ready(&mut self, mark: Mark) {
        self.awaited = Some(mark);
    }
}

impl fmt::Debug for BootTimer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("BootTimer").field("awaited", &self.awaited).field("last", &self.last).finish()
    }
}

impl BusDevice for BootTimer {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data[0] = self.last;
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        self.last = data[0];
        match data[0] {
            wisp_agent::MARK_INIT_STARTED => self.timeline.mark(Mark::InitStarted),
            wisp_agent::MARK_AGENT_READY => {
                if let Some(mark) = self.awaited.take() {
                    self.timeline.mark(mark);
                    (self.on_ready)();
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn ready_is_marked_and_notified_once_for_each_wait() {
        let (timeline, notified) = (Arc::new(Timeline::default()), Arc::new(AtomicU32::new(0)));
        let counter = Arc::clone(&notified);
        let on_ready = Box::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let mut timer = BootTimer::new(Arc::clone(&timeline), Mark::TemplateReady, on_ready);
        timer.write(0, &[wisp_agent::MARK_INIT_STARTED]);
        timer.write(0, &[77]);
        assert_eq!(notified.load(Ordering::Relaxed), 0);
        timer.write(0, &[wisp_agent::MARK_AGENT_READY]);
        assert_eq!(notified.load(Ordering::Relaxed), 1);
        for _ in 0..3 {
            timer.write(0, &[wisp_agent::MARK_AGENT_READY]);
        }
        assert_eq!(notified.load(Ordering::Relaxed), 1);
        assert!(timeline.record().at(Mark::InitStarted).is_some());
        assert!(timeline.record().at(Mark::TemplateReady).is_some());
        assert!(timeline.record().at(Mark::AgentReady).is_none());

        timer.await_ready(Mark::AgentReady);
        for _ in 0..2 {
            timer.write(0, &[wisp_agent::MARK_AGENT_READY]);
        }
        assert_eq!(notified.load(Ordering::Relaxed), 2);
        assert!(timeline.record().at(Mark::AgentReady).is_some());
    }
}
