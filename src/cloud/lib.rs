//! The control plane: implements the subcommands in EC2's terms. Only this crate uses the store and the VMMs
//! together.
//!
//! There is no daemon: each command is one process, which opens a [`Cloud`]. Concurrent commands synchronize through
//! the store. An instance's VMM runs independently of commands.

pub mod bench;
pub mod bundle;
pub mod embedded;
mod error;
pub mod fork;
mod hibernate;
pub mod image;
pub mod image_memory;
pub mod import;
pub mod key_pair;
pub mod launch;
mod layers;
pub mod lifecycle;
pub mod limits;
pub mod machine;
pub mod modify;
pub mod network;
pub mod reconcile;
pub mod registry;
pub mod resolve;
pub mod run;
pub mod run_spec;
mod seed;
pub mod shapes;
pub mod snapshot;
pub mod ssh;
pub mod tags;
pub mod template;
pub mod transfer;
pub mod usage;
mod vmm_watch;
pub mod volume;

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::rand::{GetRandomFlags, getrandom};

pub use error::CloudError;

use ec2::id::{Id, RANDOM_BYTES, ResourceKind, VpcId};
use node::home::Home;
use store::{Store, StoreError};

/// An open data directory.
#[derive(Debug)]
pub struct Cloud {
    home: Home,
    store: Store,
    notices: Vec<String>,
    /// VPCs to which instances were attached since the last check for missing uplinks.
    attached: BTreeSet<VpcId>,
}

impl Cloud {
    /// Opens the data directory and reconciles the store with the running VMMs.
    pub fn open() -> Result<Cloud, CloudError> {
        let home = Home::open()?;
        let store = Store::open(home.root())?;
        let mut cloud = Cloud { home, store, notices: Vec::new(), attached: BTreeSet::new() };
        cloud.reconcile();
        Ok(cloud)
    }

    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Takes the pending notices, such as the results of reconciliation, as sentences.
    pub fn take_notices(&mut self) -> Vec<String> {
        let damaged = self.store.take_damaged();
        damaged.into_iter().for_each(|sentence| self.notice_once(sentence));
        std::mem::take(&mut self.notices)
    }

    /// Turns a failure into a notice, because the user did not ask for this work. `what` says what failed.
    fn notice_failed(&mut self, what: &str, result: Result<(), CloudError>) {
        match result {
            Ok(()) => {}
            // A damaged record gets one notice, however many steps fail because of it.
            Err(CloudError::Store(error @ StoreError::Record { .. })) => self.notice_once(error.to_string()),
            Err(error) => self.notice_once(format!("{what}: {error}")),
        }
    }

    fn notice_once(&mut self, notice: String) {
        if !self.notices.contains(&notice) {
            self.notices.push(notice);
        }
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn new_id<K: ResourceKind>() -> Id<K> {
    let mut random = [0; RANDOM_BYTES];
    // Without flags and for so few bytes, getrandom fails only on a host that blocks the system call.
    getrandom(&mut random, GetRandomFlags::empty()).expect("the host provides random numbers");
    Id::from_random(random)
}

/// Formats a time as in EC2's messages: `2026-11-23 08:40:00 GMT`.
pub fn utc(seconds: u64) -> String {
    render_time(seconds, "%Y-%m-%d %H:%M:%S GMT")
}

/// Formats a time as in EC2's API, without fractions: `2026-11-23T08:40:00Z`.
fn timestamp_seconds(seconds: u64) -> String {
    render_time(seconds, "%Y-%m-%dT%H:%M:%SZ")
}

fn render_time(seconds: u64, format: &str) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX).strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_use_ec2_formats() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 GMT");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00:00 GMT");
        assert_eq!(timestamp_seconds(951_782_400), "2000-02-29T00:00:00Z");
    }
}
