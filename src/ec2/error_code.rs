//! EC2's error codes.

use std::fmt;

/// EC2's error codes, spelled as the API spells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The instance is in a state that does not allow the action.
    IncorrectInstanceState,
    /// The host has no room for the instance.
    InsufficientInstanceCapacity,
    /// An image identifier is not well formed.
    InvalidAmiIdMalformed,
    /// There is no such image.
    InvalidAmiIdNotFound,
    /// An instance identifier is not well formed.
    InvalidInstanceIdMalformed,
    /// There is no such instance.
    InvalidInstanceIdNotFound,
    /// A parameter's value is not allowed.
    InvalidParameterValue,
    /// What was asked for exists, but not here.
    Unsupported,
    /// The request would have succeeded, and nothing was to be done.
    DryRunOperation,
    /// A client token was used before, with other parameters.
    IdempotentParameterMismatch,
    /// A client token was used for instances that are terminated.
    IdempotentInstanceTerminated,
    /// An image has that name already.
    InvalidAmiNameDuplicate,
    /// A name that no image can have.
    InvalidAmiNameMalformed,
    /// There is no such key pair.
    InvalidKeyPairNotFound,
    /// A reservation identifier is not well formed.
    InvalidReservationIdMalformed,
    /// There is no such reservation.
    InvalidReservationIdNotFound,
    /// An image is made of the snapshot.
    InvalidSnapshotInUse,
    /// There is no such snapshot.
    InvalidSnapshotNotFound,
    /// A snapshot identifier is not well formed.
    InvalidSnapshotIdMalformed,
    /// There is no such volume.
    InvalidVolumeNotFound,
    /// A volume identifier is not well formed.
    InvalidVolumeIdMalformed,
    /// A volume or snapshot is in a state that does not allow the action.
    IncorrectState,
    /// The instance is protected against it.
    OperationNotPermitted,
    /// The volume is attached to an instance.
    VolumeInUse,

    // Of VPCs, subnets and addresses.
    /// There is a default VPC already.
    DefaultVpcAlreadyExists,
    /// All addresses of the subnet are taken.
    InsufficientFreeAddressesInSubnet,
    /// There is no such elastic address.
    InvalidAllocationIdNotFound,
    /// The identifier of an elastic address is not well formed.
    InvalidAllocationIdMalformed,
    /// An address is associated with nothing.
    InvalidAssociationIdNotFound,
    /// The identifier of an association is not well formed.
    InvalidAssociationIdMalformed,
    /// An address is in use.
    InvalidIpAddressInUse,
    /// A subnet identifier is not well formed.
    InvalidSubnetIdMalformed,
    /// There is no such subnet.
    InvalidSubnetIdNotFound,
    /// The subnet overlaps another one.
    InvalidSubnetConflict,
    /// No subnet can have this range.
    InvalidSubnetRange,
    /// A VPC identifier is not well formed.
    InvalidVpcIdMalformed,
    /// There is no such VPC.
    InvalidVpcIdNotFound,
    /// No VPC can have this range.
    InvalidVpcRange,
    /// The elastic address is associated with something else.
    ResourceAlreadyAssociated,
    /// There is no default VPC, and no other was named.
    VpcIdNotSpecified,

    // Of security groups.
    /// What cannot be deleted by its nature.
    CannotDelete,
    /// Something else needs it.
    DependencyViolation,
    /// A security group has that name already.
    InvalidGroupDuplicate,
    /// There is no such security group.
    InvalidGroupNotFound,
    /// A name that only the default group has.
    InvalidGroupReserved,
    /// A security group identifier is not well formed.
    InvalidGroupIdMalformed,
    /// The group has that rule already.
    InvalidPermissionDuplicate,
    /// A rule that makes no sense.
    InvalidPermissionMalformed,
    /// The group has no such rule.
    InvalidPermissionNotFound,
    /// A rule identifier is not well formed.
    InvalidSecurityGroupRuleIdMalformed,
    /// There is no such rule.
    InvalidSecurityGroupRuleIdNotFound,
    /// A security group has all the rules it can have.
    RulesPerSecurityGroupLimitExceeded,

    // Of volumes' figures, key pairs, user data and tags.
    /// The instance can have no more volumes.
    AttachmentLimitExceeded,
    /// An entry of a block device mapping is not allowed.
    InvalidBlockDeviceMapping,
    /// A key pair has that name already.
    InvalidKeyPairDuplicate,
    /// What was given is no public key.
    InvalidKeyPairFormat,
    /// Parameters that exclude each other, or lack one another.
    InvalidParameterCombination,
    /// A tag's key is not allowed.
    InvalidTagKeyMalformed,
    /// User data that is not well formed.
    InvalidUserDataMalformed,
    /// A parameter is needed, and was not given.
    MissingParameter,
    /// A resource has all the tags it can have.
    TagLimitExceeded,
    /// There is no such type of volume.
    UnknownVolumeType,
    /// It cannot be done with this, or not now.
    UnsupportedOperation,
    /// The instance cannot be hibernated.
    UnsupportedHibernationConfiguration,
}

impl ErrorCode {
    /// The code as the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::IncorrectInstanceState => "IncorrectInstanceState",
            ErrorCode::InsufficientInstanceCapacity => "InsufficientInstanceCapacity",
            ErrorCode::InvalidAmiIdMalformed => "InvalidAMIID.Malformed",
            ErrorCode::InvalidAmiIdNotFound => "InvalidAMIID.NotFound",
            ErrorCode::InvalidInstanceIdMalformed => "InvalidInstanceID.Malformed",
            ErrorCode::InvalidInstanceIdNotFound => "InvalidInstanceID.NotFound",
            ErrorCode::InvalidParameterValue => "InvalidParameterValue",
            ErrorCode::Unsupported => "Unsupported",
            ErrorCode::DryRunOperation => "DryRunOperation",
            ErrorCode::IdempotentInstanceTerminated => "IdempotentInstanceTerminated",
            ErrorCode::IdempotentParameterMismatch => "IdempotentParameterMismatch",
            ErrorCode::InvalidAmiNameDuplicate => "InvalidAMIName.Duplicate",
            ErrorCode::InvalidAmiNameMalformed => "InvalidAMIName.Malformed",
            ErrorCode::InvalidKeyPairNotFound => "InvalidKeyPair.NotFound",
            ErrorCode::InvalidReservationIdMalformed => "InvalidReservationID.Malformed",
            ErrorCode::InvalidReservationIdNotFound => "InvalidReservationID.NotFound",
            ErrorCode::InvalidSnapshotInUse => "InvalidSnapshot.InUse",
            ErrorCode::InvalidSnapshotNotFound => "InvalidSnapshot.NotFound",
            ErrorCode::InvalidSnapshotIdMalformed => "InvalidSnapshotID.Malformed",
            ErrorCode::InvalidVolumeNotFound => "InvalidVolume.NotFound",
            ErrorCode::InvalidVolumeIdMalformed => "InvalidVolumeID.Malformed",
            ErrorCode::IncorrectState => "IncorrectState",
            ErrorCode::OperationNotPermitted => "OperationNotPermitted",
            ErrorCode::VolumeInUse => "VolumeInUse",

            ErrorCode::DefaultVpcAlreadyExists => "DefaultVpcAlreadyExists",
            ErrorCode::InvalidAllocationIdNotFound => "InvalidAllocationID.NotFound",
            ErrorCode::InvalidAllocationIdMalformed => "InvalidAllocationID.Malformed",
            ErrorCode::InvalidAssociationIdNotFound => "InvalidAssociationID.NotFound",
            ErrorCode::InvalidAssociationIdMalformed => "InvalidAssociationID.Malformed",
            ErrorCode::InvalidIpAddressInUse => "InvalidIPAddress.InUse",
            ErrorCode::InvalidSubnetIdMalformed => "InvalidSubnetID.Malformed",
            ErrorCode::InvalidSubnetIdNotFound => "InvalidSubnetID.NotFound",
            ErrorCode::InvalidSubnetConflict => "InvalidSubnet.Conflict",
            ErrorCode::InvalidSubnetRange => "InvalidSubnet.Range",
            ErrorCode::InvalidVpcIdMalformed => "InvalidVpcID.Malformed",
            ErrorCode::InvalidVpcIdNotFound => "InvalidVpcID.NotFound",
            ErrorCode::InvalidVpcRange => "InvalidVpc.Range",
            ErrorCode::ResourceAlreadyAssociated => "Resource.AlreadyAssociated",
            ErrorCode::VpcIdNotSpecified => "VPCIdNotSpecified",
            ErrorCode::InsufficientFreeAddressesInSubnet => "InsufficientFreeAddressesInSubnet",
            ErrorCode::CannotDelete => "CannotDelete",
            ErrorCode::DependencyViolation => "DependencyViolation",
            ErrorCode::InvalidGroupDuplicate => "InvalidGroup.Duplicate",
            ErrorCode::InvalidGroupNotFound => "InvalidGroup.NotFound",
            ErrorCode::InvalidGroupReserved => "InvalidGroup.Reserved",
            ErrorCode::InvalidGroupIdMalformed => "InvalidGroupId.Malformed",
            ErrorCode::InvalidPermissionDuplicate => "InvalidPermission.Duplicate",
            ErrorCode::InvalidPermissionMalformed => "InvalidPermission.Malformed",
            ErrorCode::InvalidPermissionNotFound => "InvalidPermission.NotFound",
            ErrorCode::InvalidSecurityGroupRuleIdMalformed => "InvalidSecurityGroupRuleId.Malformed",
            ErrorCode::InvalidSecurityGroupRuleIdNotFound => "InvalidSecurityGroupRuleId.NotFound",
            ErrorCode::RulesPerSecurityGroupLimitExceeded => "RulesPerSecurityGroupLimitExceeded",
            ErrorCode::AttachmentLimitExceeded => "AttachmentLimitExceeded",
            ErrorCode::InvalidBlockDeviceMapping => "InvalidBlockDeviceMapping",
            ErrorCode::InvalidKeyPairDuplicate => "InvalidKeyPair.Duplicate",
            ErrorCode::InvalidKeyPairFormat => "InvalidKeyPair.Format",
            ErrorCode::InvalidParameterCombination => "InvalidParameterCombination",
            ErrorCode::InvalidTagKeyMalformed => "InvalidTagKey.Malformed",
            ErrorCode::InvalidUserDataMalformed => "InvalidUserData.Malformed",
            ErrorCode::MissingParameter => "MissingParameter",
            ErrorCode::TagLimitExceeded => "TagLimitExceeded",
            ErrorCode::UnknownVolumeType => "UnknownVolumeType",
            ErrorCode::UnsupportedOperation => "UnsupportedOperation",
            ErrorCode::UnsupportedHibernationConfiguration => "UnsupportedHibernationConfiguration",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
