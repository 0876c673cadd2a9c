//! Support for tests. [`skip_without`] skips tests on hosts that lack a capability, and fails them where
//! `WISP_TEST_REQUIRE` lists it. [`Steps`] reports all failures of a long scenario.

mod steps;

pub use steps::Steps;

/// A capability of the host that some tests need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// The tests run as root.
    Root,
    /// The kernel allows io_uring.
    IoUring,
    /// `scripts/api-clients` has installed the AWS clients.
    ApiClients,
}

impl Capability {
    fn name(self) -> &'static str {
        match self {
            Capability::Root => "root",
            Capability::IoUring => "io_uring",
            Capability::ApiClients => "api_clients",
        }
    }
}

/// Reports that a test is skipped because the host lacks `capability`.
///
/// # Panics
///
/// Panics if `WISP_TEST_REQUIRE`, a comma-separated list, contains the capability. `scripts/test` sets the variable.
pub fn skip_without(capability: Capability) {
    let required = std::env::var("WISP_TEST_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|name| name == capability.name()),
        "WISP_TEST_REQUIRE lists {}, which this host lacks",
        capability.name()
    );
    eprintln!("skipped: this host lacks {}", capability.name());
}
