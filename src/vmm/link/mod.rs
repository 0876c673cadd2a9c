//! What a guest finds on its link that is not another machine.

mod config;

pub use config::{
    Cidr, Filter, FilterProtocol, FilterRule, Forward, GATEWAY_MAC, LinkConfig, METADATA_ADDRESS, MacAddress,
    MetadataConfig, ParseError, Transport,
};

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Bytes of a frame's beginning that are looked at.
pub const HEAD_LENGTH: usize = 256;

/// Where a frame of the guest's goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// On.
    Forward,
    /// Nowhere.
    Drop,
    /// To the services.
    Services,
}

/// Stub.
#[derive(Debug)]
pub struct Services {
    events: std::fs::File,
}

impl Services {
    /// Stub.
    pub fn new(_mac: MacAddress, _config: LinkConfig) -> Services {
        Services { events: std::fs::File::open("/dev/null").unwrap() }
    }
    /// Stub.
    pub fn reload(&mut self, _config: LinkConfig) {}
    /// Stub.
    pub fn problems(&self) -> Vec<String> {
        Vec::new()
    }
    /// Stub.
    pub fn from_guest(&mut self, _head: &[u8], _length: usize, _now: Instant) -> Route {
        Route::Forward
    }
    /// Stub.
    pub fn accept(&mut self, _frame: &[u8], _now: Instant) {}
    /// Stub.
    pub fn to_guest(&mut self, _head: &[u8], _length: usize, _now: Instant) -> bool {
        true
    }
    /// Stub.
    pub fn poll(&mut self, _now: Instant) {}
    /// Stub.
    pub fn next_frame(&mut self) -> Option<Vec<u8>> {
        None
    }
    /// Stub.
    pub fn timeout(&self, _now: Instant) -> Option<Duration> {
        None
    }
    /// Stub.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}
