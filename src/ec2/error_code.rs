//! EC2's error codes.

use std::fmt;

/// EC2's error codes, spelled as the API spells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The instance is in a state that does not allow the action.
    IncorrectInstanceState,
    /// The host lacks capacity for the instance.
    InsufficientInstanceCapacity,
    /// An image id is malformed.
    InvalidAmiIdMalformed,
    /// The image does not exist.
    InvalidAmiIdNotFound,
    /// An instance id is malformed.
    InvalidInstanceIdMalformed,
    /// The instance does not exist.
    InvalidInstanceIdNotFound,
    /// A parameter's value is not allowed.
    InvalidParameterValue,
    /// EC2 supports the request, but Wisp or this host does not.
    Unsupported,
    /// The dry run found no problem: the request would have succeeded.
    DryRunOperation,
    /// A client token was used before with other parameters.
    IdempotentParameterMismatch,
    /// A client token was used for instances that are now terminated.
    IdempotentInstanceTerminated,
    /// The image name is in use.
    InvalidAmiNameDuplicate,
    /// The image name is invalid.
    InvalidAmiNameMalformed,
    /// The key pair does not exist.
    InvalidKeyPairNotFound,
    /// A reservation id is malformed.
    InvalidReservationIdMalformed,
    /// The reservation does not exist.
    InvalidReservationIdNotFound,
    /// An image uses the snapshot.
    InvalidSnapshotInUse,
    /// The snapshot does not exist.
    InvalidSnapshotNotFound,
    /// A snapshot id is malformed.
    InvalidSnapshotIdMalformed,
    /// The volume does not exist.
    InvalidVolumeNotFound,
    /// A volume id is malformed.
    InvalidVolumeIdMalformed,
    /// A volume or snapshot is in a state that does not allow the action.
    IncorrectState,
    /// The instance is protected against the action.
    OperationNotPermitted,
    /// The volume is attached to an instance.
    VolumeInUse,

    // VPCs, subnets and addresses.
    /// A default VPC exists already.
    DefaultVpcAlreadyExists,
    /// All addresses of the subnet are in use.
    InsufficientFreeAddressesInSubnet,
    /// The elastic address does not exist.
    InvalidAllocationIdNotFound,
    /// The id of an elastic address is malformed.
    InvalidAllocationIdMalformed,
    /// The association does not exist.
    InvalidAssociationIdNotFound,
    /// An association id is malformed.
    InvalidAssociationIdMalformed,
    /// The address is in use.
    InvalidIpAddressInUse,
    /// A subnet id is malformed.
    InvalidSubnetIdMalformed,
    /// The subnet does not exist.
    InvalidSubnetIdNotFound,
    /// The subnet overlaps another one.
    InvalidSubnetConflict,
    /// The range is not valid for a subnet.
    InvalidSubnetRange,
    /// A VPC id is malformed.
    InvalidVpcIdMalformed,
    /// The VPC does not exist.
    InvalidVpcIdNotFound,
    /// The range is not valid for a VPC.
    InvalidVpcRange,
    /// The elastic address is associated with another resource.
    ResourceAlreadyAssociated,
    /// No VPC was specified, and there is no default VPC.
    VpcIdNotSpecified,

    // Security groups.
    /// The resource can never be deleted, for example a default security group.
    CannotDelete,
    /// Another resource depends on this one.
    DependencyViolation,
    /// The security group's name is in use.
    InvalidGroupDuplicate,
    /// The security group does not exist.
    InvalidGroupNotFound,
    /// The name is reserved for default security groups.
    InvalidGroupReserved,
    /// A security group id is malformed.
    InvalidGroupIdMalformed,
    /// The group has this rule already.
    InvalidPermissionDuplicate,
    /// The rule is malformed.
    InvalidPermissionMalformed,
    /// The group does not have this rule.
    InvalidPermissionNotFound,
    /// A security group rule id is malformed.
    InvalidSecurityGroupRuleIdMalformed,
    /// The security group rule does not exist.
    InvalidSecurityGroupRuleIdNotFound,
    /// The security group has the maximum number of rules.
    RulesPerSecurityGroupLimitExceeded,

    // Volume figures, key pairs, user data and tags.
    /// The instance has the maximum number of volumes.
    AttachmentLimitExceeded,
    /// An entry of a block device mapping is not allowed.
    InvalidBlockDeviceMapping,
    /// The key pair's name is in use.
    InvalidKeyPairDuplicate,
    /// The input is not a public key.
    InvalidKeyPairFormat,
    /// Parameters exclude each other, or one requires another.
    InvalidParameterCombination,
    /// A tag key is not allowed.
    InvalidTagKeyMalformed,
    /// User data is malformed.
    InvalidUserDataMalformed,
    /// A required parameter is missing.
    MissingParameter,
    /// The resource has the maximum number of tags.
    TagLimitExceeded,
    /// The volume type does not exist.
    UnknownVolumeType,
    /// The resource does not support the operation, or not in its current state.
    UnsupportedOperation,
    /// The instance does not support hibernation.
    UnsupportedHibernationConfiguration,
}

impl ErrorCode {
    /// Returns the code as the API spells it.
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
