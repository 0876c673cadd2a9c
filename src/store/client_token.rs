//! Client tokens. A launch that is repeated with the same token returns the instances of the first launch.

use serde::{Deserialize, Serialize};

use super::{Record, Unversioned};
use ec2::ReservationId;

/// The client token of a launch. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientToken {
    pub token: String,
    /// Digest of the launch's parameters, which a repeated launch must match.
    pub parameters: String,
    pub reservation_id: ReservationId,
    pub created: u64,
}

impl Record for ClientToken {
    const TABLE: &'static str = "client_tokens";

    fn key(&self) -> String {
        self.token.clone()
    }
}

impl Unversioned for ClientToken {}
