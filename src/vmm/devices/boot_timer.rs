//! A port on which a guest reports its boot progress as marks of the boot timeline. Reads return the last mark.

use std::sync::Arc;

use crate::bus::BusDevice;
use machine::timeline::{Mark, Timeline};

/// Called when the guest's agent reports that it is ready.
pub type OnReady = Box<dyn FnOnce() + Send>;

pub struct BootTimer {
    timeline: Arc<Timeline>,
    /// Taken by the first ready mark, so that it is called only once.
    on_ready: Option<OnReady>,
    last: u8,
}

impl BootTimer {
    pub fn new(timeline: Arc<Timeline>, on_ready: OnReady) -> BootTimer {
        BootTimer { timeline, on_ready: Some(on_ready), last: 0 }
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
                self.timeline.mark(Mark::AgentReady);
                if let Some(on_ready) = self.on_ready.take() {
                    on_ready();
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
    fn ready_is_marked_and_notified_once() {
        let (timeline, notified) = (Arc::new(Timeline::default()), Arc::new(AtomicU32::new(0)));
        let counter = Arc::clone(&notified);
        let on_ready = Box::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let mut timer = BootTimer::new(Arc::clone(&timeline), on_ready);
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
        assert!(timeline.record().at(Mark::AgentReady).is_some());
    }
}
