//! The states of a volume and of its attachment.
//!
//! Source: EC2 API Reference, `Volume` and `VolumeAttachment`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of a volume (`VolumeState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// The volume is being created.
    Creating,
    /// The volume is not attached.
    Available,
    /// The volume is attached to an instance.
    InUse,
    /// The volume is being deleted.
    Deleting,
    /// The volume is deleted.
    Deleted,
    /// The volume is damaged.
    Error,
}

impl VolumeState {
    /// All states.
    pub const ALL: [VolumeState; 6] = [
        VolumeState::Creating,
        VolumeState::Available,
        VolumeState::InUse,
        VolumeState::Deleting,
        VolumeState::Deleted,
        VolumeState::Error,
    ];

    /// EC2's state name.
    pub fn as_str(self) -> &'static str {
        match self {
            VolumeState::Creating => "creating",
            VolumeState::Available => "available",
            VolumeState::InUse => "in-use",
            VolumeState::Deleting => "deleting",
            VolumeState::Deleted => "deleted",
            VolumeState::Error => "error",
        }
    }
}

impl fmt::Display for VolumeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_written_as_they_print() {
        for state in VolumeState::ALL {
            assert_eq!(serde_json::to_string(&state).expect("a string"), format!("\"{state}\""));
        }
    }
}
