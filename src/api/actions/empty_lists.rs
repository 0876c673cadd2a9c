//! Lists of resources that cannot exist in Wisp. A list is empty, and an ID in a request is not found.

use serde_json::{Value, json};

use super::input::check_dry_run;
use super::page;
use crate::error::{ApiError, Code};
#[cfg(test)]
use crate::model::{Lookup, Service, Shape};

/// A kind of resource that Wisp does not support.
#[derive(Debug)]
pub struct ResourceKind {
    action: &'static str,
    /// Member of the output with the list.
    list: &'static str,
    /// Member of the input with IDs, and EC2's code for an unknown one.
    ids: Option<(&'static str, &'static str)>,
}

macro_rules! kinds {
    (@ids) => { None };
    (@ids $ids:ident $code:literal) => { Some((stringify!($ids), $code)) };
    ($($action:ident $list:ident $(($ids:ident $code:literal))?;)*) => {
        &[$(ResourceKind {
            action: stringify!($action),
            list: stringify!($list),
            ids: kinds!(@ids $($ids $code)?),
        }),*]
    };
}

const KINDS: &[ResourceKind] = kinds! {
    DescribeAddressTransfers AddressTransfers;
    DescribeBundleTasks BundleTasks (BundleIds "InvalidBundleID.NotFound");
    DescribeCapacityBlocks CapacityBlocks;
    DescribeCapacityReservationFleets CapacityReservationFleets;
    DescribeCapacityReservations CapacityReservations (CapacityReservationIds "InvalidCapacityReservationId.NotFound");
    DescribeCarrierGateways CarrierGateways (CarrierGatewayIds "InvalidCarrierGatewayID.NotFound");
    DescribeClassicLinkInstances Instances;
    DescribeClientVpnEndpoints ClientVpnEndpoints (ClientVpnEndpointIds "InvalidClientVpnEndpointId.NotFound");
    DescribeCoipPools CoipPools;
    DescribeConversionTasks ConversionTasks (ConversionTaskIds "InvalidConversionTaskId");
    DescribeCustomerGateways CustomerGateways (CustomerGatewayIds "InvalidCustomerGatewayID.NotFound");
    DescribeEgressOnlyInternetGateways EgressOnlyInternetGateways (EgressOnlyInternetGatewayIds "InvalidEgressOnlyInternetGatewayId.NotFound");
    DescribeExportImageTasks ExportImageTasks;
    DescribeExportTasks ExportTasks (ExportTaskIds "InvalidExportTaskID.NotFound");
    DescribeFastLaunchImages FastLaunchImages;
    DescribeFastSnapshotRestores FastSnapshotRestores;
    DescribeFleets Fleets (FleetIds "InvalidFleetId.NotFound");
    DescribeFlowLogs FlowLogs (FlowLogIds "InvalidFlowLogId.NotFound");
    DescribeFpgaImages FpgaImages (FpgaImageIds "InvalidFpgaImageID.NotFound");
    DescribeHostReservationOfferings OfferingSet;
    DescribeHostReservations HostReservationSet;
    DescribeHosts Hosts (HostIds "InvalidHostID.NotFound");
    DescribeIamInstanceProfileAssociations IamInstanceProfileAssociations (AssociationIds "InvalidAssociationID.NotFound");
    DescribeImportImageTasks ImportImageTasks;
    DescribeImportSnapshotTasks ImportSnapshotTasks;
    DescribeInstanceConnectEndpoints InstanceConnectEndpoints (InstanceConnectEndpointIds "InvalidInstanceConnectEndpointId.NotFound");
    DescribeInstanceEventWindows InstanceEventWindows;
    DescribeInstanceTopology Instances (GroupNames "InvalidPlacementGroup.Unknown");
    DescribeIpamPools IpamPools (IpamPoolIds "InvalidIpamPoolId.NotFound");
    DescribeIpamScopes IpamScopes (IpamScopeIds "InvalidIpamScopeId.NotFound");
    DescribeIpams Ipams (IpamIds "InvalidIpamId.NotFound");
    DescribeIpv6Pools Ipv6Pools;
    DescribeLocalGateways LocalGateways (LocalGatewayIds "InvalidLocalGatewayID.NotFound");
    DescribeLockedSnapshots Snapshots;
    DescribeMacHosts MacHosts (HostIds "InvalidHostID.NotFound");
    DescribeManagedPrefixLists PrefixLists (PrefixListIds "InvalidPrefixListID.NotFound");
    DescribeMovingAddresses MovingAddressStatuses;
    DescribeNatGateways NatGateways (NatGatewayIds "NatGatewayNotFound");
    DescribeNetworkInsightsAnalyses NetworkInsightsAnalyses (NetworkInsightsAnalysisIds "InvalidNetworkInsightsAnalysisId.NotFound");
    DescribeNetworkInsightsPaths NetworkInsightsPaths (NetworkInsightsPathIds "InvalidNetworkInsightsPathId.NotFound");
    DescribeNetworkInterfacePermissions NetworkInterfacePermissions;
    DescribePlacementGroups PlacementGroups (GroupNames "InvalidPlacementGroup.Unknown");
    DescribePrefixLists PrefixLists (PrefixListIds "InvalidPrefixListID.NotFound");
    DescribePublicIpv4Pools PublicIpv4Pools;
    DescribeReplaceRootVolumeTasks ReplaceRootVolumeTasks;
    DescribeReservedInstances ReservedInstances (ReservedInstancesIds "InvalidReservedInstancesId");
    DescribeReservedInstancesListings ReservedInstancesListings;
    DescribeReservedInstancesModifications ReservedInstancesModifications;
    DescribeReservedInstancesOfferings ReservedInstancesOfferings;
    DescribeScheduledInstances ScheduledInstanceSet;
    DescribeSecurityGroupVpcAssociations SecurityGroupVpcAssociations;
    DescribeSnapshotTierStatus SnapshotTierStatuses;
    DescribeSpotFleetRequests SpotFleetRequestConfigs (SpotFleetRequestIds "InvalidSpotFleetRequestId.NotFound");
    DescribeSpotInstanceRequests SpotInstanceRequests (SpotInstanceRequestIds "InvalidSpotInstanceRequestID.NotFound");
    DescribeSpotPriceHistory SpotPriceHistory;
    DescribeStoreImageTasks StoreImageTaskResults;
    DescribeTrafficMirrorFilters TrafficMirrorFilters;
    DescribeTrafficMirrorSessions TrafficMirrorSessions;
    DescribeTrafficMirrorTargets TrafficMirrorTargets;
    DescribeTransitGatewayAttachments TransitGatewayAttachments (TransitGatewayAttachmentIds "InvalidTransitGatewayAttachmentID.NotFound");
    DescribeTransitGatewayRouteTables TransitGatewayRouteTables (TransitGatewayRouteTableIds "InvalidRouteTableID.NotFound");
    DescribeTransitGatewayVpcAttachments TransitGatewayVpcAttachments (TransitGatewayAttachmentIds "InvalidTransitGatewayAttachmentID.NotFound");
    DescribeTransitGateways TransitGateways (TransitGatewayIds "InvalidTransitGatewayID.NotFound");
    DescribeVerifiedAccessInstances VerifiedAccessInstances;
    DescribeVpcClassicLinkDnsSupport Vpcs;
    DescribeVpcEndpointConnections VpcEndpointConnections;
    DescribeVpcEndpointServiceConfigurations ServiceConfigurations;
    DescribeVpcEndpoints VpcEndpoints (VpcEndpointIds "InvalidVpcEndpointId.NotFound");
    DescribeVpcPeeringConnections VpcPeeringConnections (VpcPeeringConnectionIds "InvalidVpcPeeringConnectionID.NotFound");
    DescribeVpnConnections VpnConnections (VpnConnectionIds "InvalidVpnConnectionID.NotFound");
    DescribeVpnGateways VpnGateways (VpnGatewayIds "InvalidVpnGatewayID.NotFound");
};

pub fn find(action: &str) -> Option<&'static ResourceKind> {
    KINDS.iter().find(|kind| kind.action == action)
}

pub fn describe(kind: &ResourceKind, input: &Value) -> Result<Value, ApiError> {
    if let Some((member, code)) = kind.ids
        && let Some(id) = input.get(member).and_then(Value::as_array).and_then(|ids| ids.first()?.as_str())
    {
        let id: String = id.chars().take(100).collect();
        return Err(ApiError::new(Code::NotFound(code), format!("The ID '{id}' does not exist")));
    }
    check_dry_run(input.get("DryRun").and_then(Value::as_bool).unwrap_or(false))?;
    let token = input.get("NextToken").and_then(Value::as_str);
    page::page(Vec::<Value>::new(), None, token, false)?;
    Ok(json!({kind.list: []}))
}

/// Checks the table against a model.
#[cfg(test)]
pub fn check(service: &Service) {
    for kind in KINDS {
        let Lookup::Found(operation) = service.operation(kind.action) else { panic!("{} is unknown", kind.action) };
        let has = |shape: &Option<String>, member: &str| match service.shape(shape.as_deref().expect("a shape")) {
            Shape::Structure { members, .. } => {
                members.get(member).is_some_and(|member| matches!(service.shape(&member.shape), Shape::List { .. }))
            }
            _ => false,
        };
        assert!(has(&operation.output, kind.list), "{}", kind.action);
        assert!(kind.ids.is_none_or(|(member, _)| has(&operation.input, member)), "{}", kind.action);
    }
}
