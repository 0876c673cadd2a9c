//! The states of a volume, and of its attachment.
//!
//! Source: EC2 API Reference, `Volume` and `VolumeAttachment`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of a volume (`VolumeState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// It is being made.
    Creating,
    /// It is attached to nothing.
    Available,
    /// It is attached to an instance.
    InUse,
    /// It is being deleted.
    Deleting,
    /// It is gone.
    Deleted,
    /// It is broken.
    Error,
}

impl VolumeState {
    /// All of them.
    pub const ALL: [VolumeState; 6] = [
        VolumeState::Creating,
        VolumeState::Available,
        VolumeState::InUse,
        VolumeState::Deleting,
        VolumeState::Deleted,
        VolumeState::Error,
    ];

    /// EC2's name for it.
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

/// The state of a volume's attachment to an instance (`VolumeAttachmentState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttachmentState {
    /// The instance is being given the volume.
    Attaching,
    /// The instance has it.
    Attached,
    /// The instance is losing it.
    Detaching,
    /// The instance has lost it.
    Detached,
    /// The guest does not let go of it.
    Busy,
}

impl AttachmentState {
    /// All of them.
    pub const ALL: [AttachmentState; 5] = [
        AttachmentState::Attaching,
        AttachmentState::Attached,
        AttachmentState::Detaching,
        AttachmentState::Detached,
        AttachmentState::Busy,
    ];

    /// EC2's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            AttachmentState::Attaching => "attaching",
            AttachmentState::Attached => "attached",
            AttachmentState::Detaching => "detaching",
            AttachmentState::Detached => "detached",
            AttachmentState::Busy => "busy",
        }
    }
}

impl fmt::Display for AttachmentState {
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
        for state in AttachmentState::ALL {
            assert_eq!(serde_json::to_string(&state).expect("a string"), format!("\"{state}\""));
        }
    }
}
