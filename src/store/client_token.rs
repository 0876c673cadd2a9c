//! Client tokens: a launch that is repeated with the token of an earlier one is that one.

use serde::{Deserialize, Serialize};

use super::Record;
use crate::ec2::ReservationId;

/// A token and the launch that it was used for. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientToken {
    /// The token.
    pub token: String,
    /// A digest of the launch's parameters.
    pub parameters: String,
    /// The launch.
    pub reservation_id: ReservationId,
    /// When.
    pub created: u64,
}

impl Record for ClientToken {
    const TABLE: &'static str = "client_tokens";

    fn key(&self) -> String {
        self.token.clone()
    }
}
