//! EC2's error codes.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    IncorrectInstanceState,
    InsufficientInstanceCapacity,
    InvalidAmiIdMalformed,
    InvalidAmiIdNotFound,
    InvalidInstanceIdMalformed,
    InvalidInstanceIdNotFound,
    InvalidInstanceType,
    InvalidParameterValue,
    /// EC2 supports the request, but Wisp or this host does not.
    Unsupported,
    /// The dry run found no problem: the request would have succeeded.
    DryRunOperation,
    /// A client token was used before with other parameters.
    IdempotentParameterMismatch,
    /// A client token was used for instances that are now terminated.
    IdempotentInstanceTerminated,
    InvalidAmiNameDuplicate,
    InvalidAmiNameMalformed,
    InvalidKeyPairNotFound,
    InvalidReservationIdMalformed,
    InvalidReservationIdNotFound,
    /// An image uses the snapshot.
    InvalidSnapshotInUse,
    InvalidSnapshotNotFound,
    InvalidSnapshotIdMalformed,
    InvalidVolumeNotFound,
    InvalidVolumeIdMalformed,
    /// A volume or snapshot is in a state that does not allow the action.
    IncorrectState,
    /// The resource is protected, for example by termination protection.
    OperationNotPermitted,
    VolumeInUse,

    // VPCs, subnets and addresses.
    DefaultVpcAlreadyExists,
    InsufficientFreeAddressesInSubnet,
    InvalidAllocationIdNotFound,
    InvalidAllocationIdMalformed,
    InvalidAssociationIdNotFound,
    InvalidAssociationIdMalformed,
    InvalidIpAddressInUse,
    InvalidSubnetIdMalformed,
    InvalidSubnetIdNotFound,
    /// The subnet overlaps another one.
    InvalidSubnetConflict,
    InvalidSubnetRange,
    InvalidVpcIdMalformed,
    InvalidVpcIdNotFound,
    InvalidVpcRange,
    ResourceAlreadyAssociated,
    /// No VPC was specified, and there is no default VPC.
    VpcIdNotSpecified,

    // Security groups.
    /// The resource can never be deleted, for example a default security group.
    CannotDelete,
    DependencyViolation,
    InvalidGroupDuplicate,
    InvalidGroupNotFound,
    InvalidGroupReserved,
    InvalidGroupIdMalformed,
    InvalidPermissionDuplicate,
    InvalidPermissionMalformed,
    InvalidPermissionNotFound,
    InvalidSecurityGroupRuleIdMalformed,
    InvalidSecurityGroupRuleIdNotFound,
    RulesPerSecurityGroupLimitExceeded,

    // Volumes, key pairs, user data and tags.
    AttachmentLimitExceeded,
    InvalidBlockDeviceMapping,
    InvalidKeyPairDuplicate,
    InvalidKeyPairFormat,
    /// Also used if a parameter requires another one that is missing.
    InvalidParameterCombination,
    InvalidTagKeyMalformed,
    InvalidUserDataMalformed,
    MissingParameter,
    TagLimitExceeded,
    UnknownVolumeType,
    /// The resource does not support the operation, at least in its current state.
    UnsupportedOperation,
    UnsupportedHibernationConfiguration,

    // Internet gateways and route tables.
    GatewayNotAttached,
    InvalidInternetGatewayIdMalformed,
    InvalidInternetGatewayIdNotFound,
    InvalidRouteNotFound,
    InvalidRouteTableIdMalformed,
    InvalidRouteTableIdNotFound,
    RouteAlreadyExists,
    RouteLimitExceeded,

    // Launch templates.
    InvalidLaunchTemplateIdMalformed,
    InvalidLaunchTemplateIdNotFound,
    InvalidLaunchTemplateNameAlreadyExists,
    InvalidLaunchTemplateNameMalformed,
    InvalidLaunchTemplateNameNotFound,
    InvalidLaunchTemplateVersionNotFound,
    VersionLimitExceeded,

    // Image aliases, with Systems Manager's codes.
    ParameterAlreadyExists,
    ParameterNotFound,
    ParameterVersionNotFound,

    // Commands, with Systems Manager's codes.
    InvalidCommandId,
    InvalidDocument,
    InvalidInstanceId,
    InvalidParameters,
    InvalidPluginName,
    InvocationDoesNotExist,
    /// Too many commands are running. Clients try again.
    ThrottlingException,
}

impl ErrorCode {
    /// Returns true for `*.NotFound` and `*.Malformed`, the codes for a reference that matches no resource.
    pub fn is_unknown_reference(self) -> bool {
        [".NotFound", ".Malformed"].iter().any(|suffix| self.as_str().ends_with(suffix))
    }

    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::IncorrectInstanceState => "IncorrectInstanceState",
            ErrorCode::InsufficientInstanceCapacity => "InsufficientInstanceCapacity",
            ErrorCode::InvalidAmiIdMalformed => "InvalidAMIID.Malformed",
            ErrorCode::InvalidAmiIdNotFound => "InvalidAMIID.NotFound",
            ErrorCode::InvalidInstanceIdMalformed => "InvalidInstanceID.Malformed",
            ErrorCode::InvalidInstanceIdNotFound => "InvalidInstanceID.NotFound",
            ErrorCode::InvalidInstanceType => "InvalidInstanceType",
            ErrorCode::InvalidParameterValue => "InvalidParameterValue",
            ErrorCode::Unsupported => "Unsupported",
            ErrorCode::DryRunOperation => "DryRunOperation",
            ErrorCode::IdempotentInstanceTerminated => "IdempotentInstanceTerminated",
            ErrorCode::IdempotentParameterMismatch => "IdempotentParameterMismatch",
            ErrorCode::InvalidAmiNameDuplicate => "InvalidAMIName.Duplicate",
            ErrorCode::InvalidAmiNameMalformed => "InvalidAMIName.Malformed",
            ErrorCode::GatewayNotAttached => "Gateway.NotAttached",
            ErrorCode::InvalidInternetGatewayIdMalformed => "InvalidInternetGatewayId.Malformed",
            ErrorCode::InvalidInternetGatewayIdNotFound => "InvalidInternetGatewayID.NotFound",
            ErrorCode::InvalidRouteNotFound => "InvalidRoute.NotFound",
            ErrorCode::InvalidRouteTableIdMalformed => "InvalidRouteTableId.Malformed",
            ErrorCode::InvalidRouteTableIdNotFound => "InvalidRouteTableID.NotFound",
            ErrorCode::RouteAlreadyExists => "RouteAlreadyExists",
            ErrorCode::RouteLimitExceeded => "RouteLimitExceeded",
            ErrorCode::InvalidLaunchTemplateIdMalformed => "InvalidLaunchTemplateId.Malformed",
            ErrorCode::InvalidLaunchTemplateIdNotFound => "InvalidLaunchTemplateId.NotFound",
            ErrorCode::InvalidLaunchTemplateNameAlreadyExists => "InvalidLaunchTemplateName.AlreadyExistsException",
            ErrorCode::InvalidLaunchTemplateNameMalformed => "InvalidLaunchTemplateName.MalformedException",
            ErrorCode::InvalidLaunchTemplateNameNotFound => "InvalidLaunchTemplateName.NotFoundException",
            ErrorCode::InvalidLaunchTemplateVersionNotFound => "InvalidLaunchTemplateId.VersionNotFound",
            ErrorCode::ParameterAlreadyExists => "ParameterAlreadyExists",
            ErrorCode::ParameterNotFound => "ParameterNotFound",
            ErrorCode::ParameterVersionNotFound => "ParameterVersionNotFound",
            ErrorCode::InvalidCommandId => "InvalidCommandId",
            ErrorCode::InvalidDocument => "InvalidDocument",
            ErrorCode::InvalidInstanceId => "InvalidInstanceId",
            ErrorCode::InvalidParameters => "InvalidParameters",
            ErrorCode::InvalidPluginName => "InvalidPluginName",
            ErrorCode::InvocationDoesNotExist => "InvocationDoesNotExist",
            ErrorCode::ThrottlingException => "ThrottlingException",
            ErrorCode::VersionLimitExceeded => "VersionLimitExceeded",
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
