//! Request errors by cause, with EC2's error code and a hint for the user.

use std::fmt;

use super::capacity::Shortage;
pub use super::error_code::ErrorCode;
use super::id::{DIGITS, InstanceId};
use super::instance_type::NotLaunchable;
use super::key::KeyPairError;
use super::tag::TagError;
use super::user_data::UserDataError;
use super::volume::VolumeError;

/// A request that violates EC2's rules. Displays as `CODE: sentence`.
#[derive(Clone, Debug, PartialEq)]
pub enum Ec2Error {
    UnknownInstanceType {
        given: String,
        /// Similar type names, closest first.
        closest: Vec<&'static str>,
    },
    /// The type exists in EC2, but cannot run here on any host.
    NotLaunchable {
        instance_type: &'static str,
        reason: NotLaunchable,
    },
    InsufficientCapacity(Box<Shortage>),
    InvalidParameterValue {
        /// Spelled as in the API.
        parameter: &'static str,
        given: String,
        /// The allowed values, as a sentence.
        rule: String,
    },
    MalformedId {
        code: ErrorCode,
        noun: &'static str,
        prefix: &'static str,
        given: String,
    },
    NotFound {
        code: ErrorCode,
        noun: &'static str,
        given: String,
    },
    /// An abbreviated identifier or a name matches several resources.
    AmbiguousReference {
        noun: &'static str,
        given: String,
        matches: Vec<String>,
    },
    IncorrectInstanceState {
        instance: InstanceId,
        state: &'static str,
        /// A past participle, for example `started`.
        action: &'static str,
    },
    /// Any other error.
    Refused {
        code: ErrorCode,
        /// The problem, as a sentence.
        what: String,
        hint: Option<String>,
    },

    Volume(VolumeError),
    KeyPair(KeyPairError),
    UserData(UserDataError),
    Tag(TagError),
}

impl Ec2Error {
    pub fn refused(code: ErrorCode, what: impl Into<String>, hint: Option<String>) -> Ec2Error {
        Ec2Error::Refused { code, what: what.into(), hint }
    }

    pub fn code(&self) -> ErrorCode {
        match self {
            Ec2Error::UnknownInstanceType { .. }
            | Ec2Error::InvalidParameterValue { .. }
            | Ec2Error::AmbiguousReference { .. } => ErrorCode::InvalidParameterValue,
            Ec2Error::NotLaunchable { .. } => ErrorCode::Unsupported,
            Ec2Error::InsufficientCapacity(_) => ErrorCode::InsufficientInstanceCapacity,
            Ec2Error::MalformedId { code, .. } | Ec2Error::NotFound { code, .. } => *code,
            Ec2Error::IncorrectInstanceState { .. } => ErrorCode::IncorrectInstanceState,
            Ec2Error::Refused { code, .. } => *code,

            Ec2Error::Volume(cause) => cause.code(),
            Ec2Error::KeyPair(cause) => cause.code(),
            Ec2Error::UserData(cause) => cause.code(),
            Ec2Error::Tag(cause) => cause.code(),
        }
    }

    /// Returns a one-line hint, or none if the message needs no hint.
    pub fn hint(&self) -> Option<String> {
        match self {
            Ec2Error::UnknownInstanceType { closest, .. } => Some(match closest.as_slice() {
                [] => "`wisp types` lists the instance types.".to_owned(),
                names => format!("Did you mean {}?", one_of(names)),
            }),
            Ec2Error::NotLaunchable { .. } => {
                Some("`wisp types --fits` lists the types that this host can run.".to_owned())
            }
            Ec2Error::InsufficientCapacity(shortage) => Some(shortage.hint()),
            Ec2Error::InvalidParameterValue { .. } => None,
            Ec2Error::MalformedId { noun, prefix, .. } => Some(format!(
                "The {noun} ID must be {prefix}- followed by {DIGITS} lowercase hexadecimal digits. A unique prefix is \
                 enough."
            )),
            Ec2Error::NotFound { code, .. } => Some(match code {
                ErrorCode::InvalidAmiIdNotFound => {
                    "`wisp image ls` lists the images. You can also specify `tiny`, the built-in image, or the \
                     directory of a bundle."
                        .to_owned()
                }
                ErrorCode::InvalidVolumeNotFound => "`wisp volume ls` lists the volumes.".to_owned(),
                ErrorCode::InvalidSnapshotNotFound => "`wisp snapshot ls` lists the snapshots.".to_owned(),
                ErrorCode::InvalidKeyPairNotFound => {
                    "`wisp key ls` lists the key pairs; `wisp key create` creates one.".to_owned()
                }
                ErrorCode::InvalidGroupNotFound => "`wisp sg ls` lists the security groups.".to_owned(),
                ErrorCode::InvalidVpcIdNotFound => "`wisp vpc ls` lists the VPCs.".to_owned(),
                ErrorCode::InvalidSubnetIdNotFound => "`wisp subnet ls` lists the subnets.".to_owned(),
                ErrorCode::InvalidAllocationIdNotFound => "`wisp address ls` lists the elastic addresses.".to_owned(),
                _ => "`wisp ls` lists the instances.".to_owned(),
            }),
            Ec2Error::AmbiguousReference { matches, .. } => Some(format!("Specify {}.", one_of(matches))),
            Ec2Error::IncorrectInstanceState { instance, .. } => {
                Some(format!("`wisp show {instance}` shows details about its state."))
            }
            Ec2Error::Refused { hint, .. } => hint.clone(),

            Ec2Error::Volume(cause) => cause.hint(),
            Ec2Error::KeyPair(cause) => cause.hint(),
            Ec2Error::UserData(cause) => cause.hint(),
            Ec2Error::Tag(cause) => cause.hint(),
        }
    }
}

impl fmt::Display for Ec2Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.code())?;
        match self {
            Ec2Error::UnknownInstanceType { given, .. } => {
                write!(f, "Invalid value '{given}' for InstanceType.")
            }
            Ec2Error::NotLaunchable { instance_type, reason } => {
                write!(f, "{instance_type} cannot run here: {reason}.")
            }
            Ec2Error::InsufficientCapacity(shortage) => write!(f, "{shortage}"),
            Ec2Error::InvalidParameterValue { parameter, given, rule } => {
                write!(f, "Invalid value '{given}' for {parameter}: {rule}")
            }
            Ec2Error::MalformedId { noun, given, .. } => {
                write!(f, "Invalid {noun} ID: '{given}'.")
            }
            Ec2Error::NotFound { noun, given, .. } => {
                write!(f, "The {noun} '{given}' does not exist.")
            }
            Ec2Error::AmbiguousReference { noun, given, matches } => {
                write!(f, "'{given}' matches {} {noun}s.", matches.len())
            }
            Ec2Error::IncorrectInstanceState { instance, state, action } => {
                write!(f, "The instance '{instance}' is {state}, so it cannot be {action}.")
            }
            Ec2Error::Refused { what, .. } => write!(f, "{what}"),

            Ec2Error::Volume(cause) => cause.fmt(f),
            Ec2Error::KeyPair(cause) => cause.fmt(f),
            Ec2Error::UserData(cause) => cause.fmt(f),
            Ec2Error::Tag(cause) => cause.fmt(f),
        }
    }
}

impl std::error::Error for Ec2Error {}

impl From<VolumeError> for Ec2Error {
    fn from(cause: VolumeError) -> Self {
        Ec2Error::Volume(cause)
    }
}

impl From<KeyPairError> for Ec2Error {
    fn from(cause: KeyPairError) -> Self {
        Ec2Error::KeyPair(cause)
    }
}

impl From<UserDataError> for Ec2Error {
    fn from(cause: UserDataError) -> Self {
        Ec2Error::UserData(cause)
    }
}

impl From<TagError> for Ec2Error {
    fn from(cause: TagError) -> Self {
        Ec2Error::Tag(cause)
    }
}

/// Joins names: `a`, `a or b`, `a, b or c`.
fn one_of<T: AsRef<str>>(names: &[T]) -> String {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    match names.split_last() {
        None => String::new(),
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ImageId;

    #[test]
    fn unknown_type_message_matches_ec2() {
        let error = Ec2Error::UnknownInstanceType { given: "t9.big".to_owned(), closest: Vec::new() };
        assert_eq!(error.to_string(), "InvalidParameterValue: Invalid value 't9.big' for InstanceType.");
        assert_eq!(error.hint().as_deref(), Some("`wisp types` lists the instance types."));
    }

    #[test]
    fn hint_suggests_closest_types() {
        let error = Ec2Error::UnknownInstanceType {
            given: "t3.lage".to_owned(),
            closest: vec!["t3.large", "t3a.large", "t2.large"],
        };
        assert_eq!(error.hint().as_deref(), Some("Did you mean t3.large, t3a.large or t2.large?"));
    }

    #[test]
    fn not_found_has_code_and_hint_of_its_kind() {
        let error = ImageId::not_found("web");
        assert_eq!(error.to_string(), "InvalidAMIID.NotFound: The image 'web' does not exist.");
        assert_eq!(
            error.hint().as_deref(),
            Some(
                "`wisp image ls` lists the images. You can also specify `tiny`, the built-in image, or the directory \
                 of a bundle."
            )
        );
    }

    #[test]
    fn incorrect_state_message_names_state_and_action() {
        let error = Ec2Error::IncorrectInstanceState {
            instance: "i-0123456789abcdef0".parse().expect("well formed"),
            state: "terminated",
            action: "started",
        };
        assert_eq!(
            error.to_string(),
            "IncorrectInstanceState: The instance 'i-0123456789abcdef0' is terminated, so it cannot be started."
        );
    }
}
