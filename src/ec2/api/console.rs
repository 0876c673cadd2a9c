//! Console output.

use serde::Serialize;

use super::Timestamp;
use crate::InstanceId;

/// EC2 API Reference, `GetConsoleOutputResult`. The output is plain text, which the API encodes in base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct GetConsoleOutputResult {
    pub instance_id: InstanceId,
    pub output: String,
    /// The start of the machine whose output this is.
    pub timestamp: Timestamp,
}
