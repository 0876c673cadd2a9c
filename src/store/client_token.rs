//! Client tokens: a launch repeated with the same token returns the first launch's instances.

use serde::{Deserialize, Serialize};

use super::Record;
use crate::ec2::ReservationId;

/// A token with the launch that used it. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientToken {
    /// The token.
    pub token: String,
    /// A digest of the launch's parameters.
    pub parameters: String,
    /// The reservation of the launch.
    pub reservation_id: ReservationId,
    /// The time of the launch.
    pub created: u64,
}

impl Record for ClientToken {
    const TABLE: &'static str = "client_tokens";

    fn key(&self) -> String {
        self.token.clone()
    }
}
