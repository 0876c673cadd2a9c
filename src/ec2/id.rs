//! Identifiers in EC2's format: a prefix, a dash and 17 lowercase hexadecimal digits.
//!
//! The kind of resource is part of the type, so an image ID cannot be used as an instance ID. The caller passes in the
//! random bytes.

use std::fmt;
use std::hash::Hash;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{Ec2Error, ErrorCode, one_of};

pub const DIGITS: usize = 17;
/// An odd number of digits: only the low half of the first byte is used.
pub const RANDOM_BYTES: usize = DIGITS.div_ceil(2);

const NUMBER_MASK: u128 = (1 << (4 * DIGITS)) - 1;
/// Length of EC2's older identifiers. They are well-formed, but no resource here has one.
const OLD_DIGITS: usize = 8;

pub trait ResourceKind: Copy + fmt::Debug + Ord + Hash + 'static {
    /// The text before the dash.
    const PREFIX: &'static str;
    /// The resource's name in messages.
    const NOUN: &'static str;
    const MALFORMED: ErrorCode;
    const NOT_FOUND: ErrorCode;
}

/// Defines the kinds, one per line: the kind, its identifier type, and the constants of [`ResourceKind`].
macro_rules! kinds {
    ($($kind:ident, $id:ident: $prefix:literal, $noun:literal, $malformed:ident, $not_found:ident;)*) => {$(
        #[doc = concat!("The kind of resource with the identifiers `", $prefix, "-…`.")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $kind {}

        impl ResourceKind for $kind {
            const PREFIX: &'static str = $prefix;
            const NOUN: &'static str = $noun;
            const MALFORMED: ErrorCode = ErrorCode::$malformed;
            const NOT_FOUND: ErrorCode = ErrorCode::$not_found;
        }

        #[doc = concat!("An identifier `", $prefix, "-…` (", $noun, ").")]
        pub type $id = Id<$kind>;
    )*

    const PREFIXES: &[&str] = &[$($prefix),*];
    };
}

kinds! {
    Instance, InstanceId: "i", "instance", InvalidInstanceIdMalformed, InvalidInstanceIdNotFound;
    Image, ImageId: "ami", "image", InvalidAmiIdMalformed, InvalidAmiIdNotFound;
    Volume, VolumeId: "vol", "volume", InvalidVolumeIdMalformed, InvalidVolumeNotFound;
    Snapshot, SnapshotId: "snap", "snapshot", InvalidSnapshotIdMalformed, InvalidSnapshotNotFound;
    Reservation, ReservationId: "r", "reservation", InvalidReservationIdMalformed, InvalidReservationIdNotFound;
    KeyPair, KeyPairId: "key", "key pair", InvalidKeyPairNotFound, InvalidKeyPairNotFound;
    SecurityGroup, SecurityGroupId: "sg", "security group", InvalidGroupIdMalformed, InvalidGroupNotFound;
    SecurityGroupRule, SecurityGroupRuleId: "sgr", "security group rule",
        InvalidSecurityGroupRuleIdMalformed, InvalidSecurityGroupRuleIdNotFound;
    Vpc, VpcId: "vpc", "VPC", InvalidVpcIdMalformed, InvalidVpcIdNotFound;
    Subnet, SubnetId: "subnet", "subnet", InvalidSubnetIdMalformed, InvalidSubnetIdNotFound;
    Allocation, AllocationId: "eipalloc", "elastic address", InvalidAllocationIdMalformed, InvalidAllocationIdNotFound;
    LaunchTemplate, LaunchTemplateId: "lt", "launch template",
        InvalidLaunchTemplateIdMalformed, InvalidLaunchTemplateIdNotFound;
    InternetGateway, InternetGatewayId: "igw", "internet gateway",
        InvalidInternetGatewayIdMalformed, InvalidInternetGatewayIdNotFound;
    RouteTable, RouteTableId: "rtb", "route table", InvalidRouteTableIdMalformed, InvalidRouteTableIdNotFound;
    RouteTableAssociation, RouteTableAssociationId: "rtbassoc", "route table association",
        InvalidAssociationIdMalformed, InvalidAssociationIdNotFound;
    Association, AssociationId: "eipassoc", "address association",
        InvalidAssociationIdMalformed, InvalidAssociationIdNotFound;
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String", bound = "")]
pub struct Id<K: ResourceKind> {
    /// The 17 digits, as a number.
    number: u128,
    kind: PhantomData<K>,
}

impl<K: ResourceKind> Id<K> {
    pub fn from_random(bytes: [u8; RANDOM_BYTES]) -> Self {
        let number = bytes.iter().fold(0, |number, byte| number << 8 | u128::from(*byte));
        Id { number: number & NUMBER_MASK, kind: PhantomData }
    }

    /// Returns true for an identifier or a prefix of one. Any other text can only be a name.
    pub fn looks_like(text: &str) -> bool {
        digits_after(K::PREFIX, text).is_some_and(|digits| (1..=DIGITS).contains(&digits.len()) && is_lower_hex(digits))
    }

    pub fn starts_with(&self, prefix: &str) -> bool {
        self.to_string().starts_with(prefix)
    }

    /// Returns the identifier with another prefix and the same digits. It identifies a resource that this one has exactly
    /// once, such as the network interface of an instance.
    pub fn with_prefix(self, prefix: &str) -> String {
        format!("{prefix}-{:0DIGITS$x}", self.number)
    }

    /// Finds the only identifier in `known` that starts with `reference`.
    pub fn find(reference: &str, known: impl IntoIterator<Item = Self>) -> Result<Self, Ec2Error> {
        if !Self::looks_like(reference) {
            return Err(Self::malformed(reference));
        }
        let mut matches: Vec<Self> = known.into_iter().filter(|id| id.starts_with(reference)).collect();
        matches.sort_unstable();
        matches.dedup();
        match matches.as_slice() {
            [] => Err(Self::not_found(reference)),
            [only] => Ok(*only),
            several => Err(Self::ambiguous(reference, several)),
        }
    }

    pub fn has_prefix(text: &str) -> bool {
        digits_after(K::PREFIX, text).is_some()
    }

    /// Returns the error for an unknown `reference`. Text that only starts like an identifier is malformed, and so is
    /// an identifier of another kind. Any other text may be a name.
    pub fn not_found(reference: &str) -> Ec2Error {
        let is_malformed = match digits_after(K::PREFIX, reference) {
            Some(digits) => ![DIGITS, OLD_DIGITS].contains(&digits.len()) || !is_lower_hex(digits),
            None => PREFIXES
                .iter()
                .filter_map(|prefix| digits_after(prefix, reference))
                .any(|digits| digits.len() == DIGITS && is_lower_hex(digits)),
        };
        if is_malformed {
            return Self::malformed(reference);
        }
        not_found::<K>(reference)
    }

    /// Returns the error for an abbreviated identifier or a name that matches several resources.
    pub fn ambiguous(reference: &str, matches: &[Self]) -> Ec2Error {
        let names: Vec<String> = matches.iter().map(Self::to_string).collect();
        Ec2Error::refused(
            ErrorCode::InvalidParameterValue,
            format!("'{reference}' matches {} {}s.", names.len(), K::NOUN),
            Some(format!("Specify {}.", one_of(&names))),
        )
    }

    fn malformed(given: &str) -> Ec2Error {
        let (noun, prefix) = (K::NOUN, K::PREFIX);
        let hint = format!(
            "The {noun} ID must be {prefix}- followed by {DIGITS} lowercase hexadecimal digits. A unique prefix is enough."
        );
        Ec2Error::refused(K::MALFORMED, format!("Invalid {noun} ID: '{given}'."), Some(hint))
    }
}

/// Returns the error for a well-formed reference that matches no resource of the kind.
pub(crate) fn not_found<K: ResourceKind>(reference: &str) -> Ec2Error {
    let hint = match K::NOT_FOUND {
        ErrorCode::InvalidAmiIdNotFound => {
            "`wisp image ls` lists the images. You can also specify `tiny`, the built-in image, or the directory of a \
             bundle."
        }
        ErrorCode::InvalidVolumeNotFound => "`wisp volume ls` lists the volumes.",
        ErrorCode::InvalidSnapshotNotFound => "`wisp snapshot ls` lists the snapshots.",
        ErrorCode::InvalidKeyPairNotFound => "`wisp key ls` lists the key pairs; `wisp key create` creates one.",
        ErrorCode::InvalidGroupNotFound => "`wisp sg ls` lists the security groups.",
        ErrorCode::InvalidLaunchTemplateIdNotFound => "`wisp template ls` lists the launch templates.",
        ErrorCode::InvalidInternetGatewayIdNotFound => "`wisp gateway ls` lists the internet gateways.",
        ErrorCode::InvalidRouteTableIdNotFound => "`wisp route-table ls` lists the route tables.",
        ErrorCode::InvalidVpcIdNotFound => "`wisp vpc ls` lists the VPCs.",
        ErrorCode::InvalidSubnetIdNotFound => "`wisp subnet ls` lists the subnets.",
        ErrorCode::InvalidAllocationIdNotFound => "`wisp address ls` lists the elastic addresses.",
        _ => "`wisp ls` lists the instances.",
    };
    Ec2Error::refused(K::NOT_FOUND, format!("The {} '{reference}' does not exist.", K::NOUN), Some(hint.into()))
}

impl InstanceId {
    /// Returns the error for an action that the instance's state does not allow. `action` is a past participle, for
    /// example `started`.
    pub fn incorrect_state(self, state: &str, action: &str) -> Ec2Error {
        Ec2Error::refused(
            ErrorCode::IncorrectInstanceState,
            format!("The instance '{self}' is {state}, so it cannot be {action}."),
            Some(format!("`wisp show {self}` shows details about its state.")),
        )
    }
}

fn digits_after<'a>(prefix: &str, text: &'a str) -> Option<&'a str> {
    text.strip_prefix(prefix)?.strip_prefix('-')
}

fn is_lower_hex(digits: &str) -> bool {
    digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl<K: ResourceKind> FromStr for Id<K> {
    type Err = Ec2Error;

    fn from_str(text: &str) -> Result<Self, Ec2Error> {
        digits_after(K::PREFIX, text)
            .filter(|digits| digits.len() == DIGITS && is_lower_hex(digits))
            .and_then(|digits| u128::from_str_radix(digits, 16).ok())
            .map(|number| Id { number, kind: PhantomData })
            .ok_or_else(|| Self::malformed(text))
    }
}

impl<K: ResourceKind> TryFrom<String> for Id<K> {
    type Error = Ec2Error;

    fn try_from(text: String) -> Result<Self, Ec2Error> {
        text.parse()
    }
}

impl<K: ResourceKind> From<Id<K>> for String {
    fn from(id: Id<K>) -> String {
        id.to_string()
    }
}

impl<K: ResourceKind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.with_prefix(K::PREFIX))
    }
}

impl<K: ResourceKind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn instance(text: &str) -> InstanceId {
        text.parse().expect(text)
    }

    #[test]
    fn from_random_uses_17_digits() {
        let bytes = [0xf1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x01];
        assert_eq!(InstanceId::from_random(bytes).to_string(), "i-123456789abcdef01");
        let zero = ImageId::from_random([0; RANDOM_BYTES]);
        assert_eq!(zero.to_string(), "ami-00000000000000000");
        assert_eq!(zero.with_prefix("snap"), "snap-00000000000000000");
    }

    #[test]
    fn not_found_has_code_and_hint_of_its_kind() {
        let error = ImageId::not_found("web");
        assert_eq!(error.to_string(), "InvalidAMIID.NotFound: The image 'web' does not exist.");
        assert_eq!(
            error.hint(),
            Some(
                "`wisp image ls` lists the images. You can also specify `tiny`, the built-in image, or the directory \
                 of a bundle."
            )
        );
    }

    #[test]
    fn incorrect_state_message_names_state_and_action() {
        assert_eq!(
            instance("i-0123456789abcdef0").incorrect_state("terminated", "started").to_string(),
            "IncorrectInstanceState: The instance 'i-0123456789abcdef0' is terminated, so it cannot be started."
        );
    }

    #[test]
    fn malformed_id_is_refused_with_code_of_its_kind() {
        for text in [
            "",
            "i",
            "i-",
            "i-0a1b",
            "i-0123456789abcdef",
            "i-0123456789abcdef012",
            "i-0123456789ABCDEF0",
            "i-0123456789abcdefg",
            "i-+123456789abcdef0",
            "ami-0123456789abcdef0",
            "i-0123456789abcdé0",
        ] {
            let error = text.parse::<InstanceId>().expect_err(text);
            assert_eq!(error.code(), ErrorCode::InvalidInstanceIdMalformed, "{text}");
        }
        let error = "i-0123456789abcdef0".parse::<ImageId>().expect_err("an instance ID");
        assert_eq!(error.code(), ErrorCode::InvalidAmiIdMalformed);
    }

    #[test]
    fn unambiguous_prefix_finds_its_id() {
        let known = [instance("i-0a1b0000000000000"), instance("i-0a2b0000000000000")];
        assert_eq!(InstanceId::find("i-0a1", known), Ok(known[0]));
        assert_eq!(InstanceId::find("i-0a2b0000000000000", known), Ok(known[1]));
        let code = |reference| InstanceId::find(reference, known).expect_err(reference).code();
        assert_eq!(code("i-0a"), ErrorCode::InvalidParameterValue);
        assert_eq!(code("i-ff"), ErrorCode::InvalidInstanceIdMalformed);
        assert_eq!(code("i-0a1b0000000000001"), ErrorCode::InvalidInstanceIdNotFound);
        assert_eq!(code("web-1"), ErrorCode::InvalidInstanceIdMalformed);
    }

    #[test]
    fn unknown_reference_is_malformed_or_not_found() {
        fn codes<K: ResourceKind>() {
            let code = |reference: &str| Id::<K>::not_found(reference).code();
            let prefix = K::PREFIX;
            for well_formed in [format!("{prefix}-0123456789abcdef0"), format!("{prefix}-0123abcd"), "web".to_owned()] {
                assert_eq!(code(&well_formed), K::NOT_FOUND, "{well_formed}");
            }
            let other = if prefix == "i" { "vol" } else { "i" };
            for malformed in [
                format!("{prefix}-"),
                format!("{prefix}-123"),
                format!("{prefix}-0123456789ABCDEF0"),
                format!("{prefix}-web"),
                format!("{other}-0123456789abcdef0"),
            ] {
                assert_eq!(code(&malformed), K::MALFORMED, "{malformed}");
            }
        }
        codes::<Instance>();
        codes::<Image>();
        codes::<Volume>();
        codes::<Snapshot>();
        codes::<SecurityGroup>();
        codes::<SecurityGroupRule>();
        codes::<Vpc>();
        codes::<Subnet>();
        codes::<Allocation>();
        codes::<Association>();
        assert_eq!(InstanceId::not_found("vol-1").code(), ErrorCode::InvalidInstanceIdNotFound, "it may be a name");
    }

    #[test]
    fn name_does_not_look_like_an_id() {
        assert!(InstanceId::looks_like("i-0a1"));
        for name in ["i-", "web", "i-am-a-name", "ami-0a1", "i-0123456789abcdef01"] {
            assert!(!InstanceId::looks_like(name), "{name}");
        }
    }

    #[test]
    fn id_serializes_as_string() {
        let id = instance("i-0123456789abcdef0");
        let json = serde_json::to_string(&id).expect("a string");
        assert_eq!(json, "\"i-0123456789abcdef0\"");
        assert_eq!(serde_json::from_str::<InstanceId>(&json).expect("reads back"), id);
        assert!(serde_json::from_str::<InstanceId>("\"i-1\"").is_err());
    }

    proptest! {
        #[test]
        fn displayed_id_is_parsed_back(bytes: [u8; RANDOM_BYTES]) {
            let id = ImageId::from_random(bytes);
            prop_assert!(ImageId::looks_like(&id.to_string()));
            prop_assert_eq!(id.to_string().parse::<ImageId>(), Ok(id));
        }

        #[test]
        fn parse_never_panics(text in ".*") {
            let _ = text.parse::<InstanceId>();
            let _ = InstanceId::find(&text, []);
        }
    }
}
