//! EC2's rules and shapes as pure code: names, sizes, identifiers, capacity, error codes and responses.
//!
//! Nothing here does I/O, uses KVM or reads a clock, and the crate depends on no other crate of Wisp. The caller passes
//! in the host's capacity, and the random bytes for identifiers.

pub mod api;
pub mod block_device;
pub mod capacity;
pub mod catalog;
pub mod command;
pub mod credits;
pub mod error;
mod error_code;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod id;
pub mod image_alias;
pub mod instance_type;
pub mod key;
pub mod launch_template;
pub mod metadata;
pub mod network;
pub mod performance;
pub mod prices;
pub mod right_size;
pub mod size;
pub mod state;
pub mod system;
pub mod tag;
pub mod type_name;
pub mod usage;
pub mod user_data;
pub mod volume;

pub use capacity::{HostCapacity, InstanceSize};
pub use error::{Ec2Error, ErrorCode};
pub use id::{ImageId, InstanceId, KeyPairId, ReservationId, SnapshotId, VolumeId};
pub use instance_type::InstanceType;
pub use size::MemorySize;
