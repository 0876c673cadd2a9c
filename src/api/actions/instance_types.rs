//! Instance types and their offerings.

use serde::Deserialize;
use serde_json::{Value, json};

use super::filter::{self, Name};
use super::input::{Listing, check_dry_run};
use super::{Context, page};
use crate::error::ApiError;
use ec2::api::instance_type::InstanceTypeInfo;
use ec2::network::{REGION, Zone};
use ec2::{Ec2Error, ErrorCode, catalog};

const FILTERS: &[Name] = &[
    ("bare-metal", "BareMetal"),
    ("burstable-performance-supported", "BurstablePerformanceSupported"),
    ("current-generation", "CurrentGeneration"),
    ("ebs-info.ebs-optimized-support", "EbsInfo.EbsOptimizedSupport"),
    ("free-tier-eligible", "FreeTierEligible"),
    ("hibernation-supported", "HibernationSupported"),
    ("hypervisor", "Hypervisor"),
    ("instance-storage-supported", "InstanceStorageSupported"),
    ("instance-type", "InstanceType"),
    ("memory-info.size-in-mib", "MemoryInfo.SizeInMiB"),
    ("network-info.ena-support", "NetworkInfo.EnaSupport"),
    ("processor-info.supported-architecture", "ProcessorInfo.SupportedArchitectures"),
    ("supported-root-device-type", "SupportedRootDeviceTypes"),
    ("supported-usage-class", "SupportedUsageClasses"),
    ("supported-virtualization-type", "SupportedVirtualizationTypes"),
    ("vcpu-info.default-cores", "VCpuInfo.DefaultCores"),
    ("vcpu-info.default-threads-per-core", "VCpuInfo.DefaultThreadsPerCore"),
    ("vcpu-info.default-vcpus", "VCpuInfo.DefaultVCpus"),
];

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeInstanceTypes {
    instance_types: Vec<String>,
}

pub fn describe(_: &Context, input: DescribeInstanceTypes, listing: Listing) -> Result<Value, ApiError> {
    let DescribeInstanceTypes { instance_types } = input;
    check_dry_run(listing.dry_run)?;
    for name in &instance_types {
        if !catalog::all().iter().any(|known| known.name == name) {
            let what = format!("The following supplied instance types do not exist: [{name}]");
            return Err(Ec2Error::refused(ErrorCode::InvalidInstanceType, what, None).into());
        }
    }
    let asked = |name: &str| instance_types.is_empty() || instance_types.iter().any(|asked| asked == name);
    let types = catalog::all().iter().filter(|known| asked(known.name)).map(InstanceTypeInfo::from);
    let mut types = types.map(super::respond).collect::<Result<Vec<_>, _>>()?;
    filter::apply(&mut types, &listing.filters, FILTERS)?;
    let by_id = !instance_types.is_empty();
    let (types, next) = page::page(types, listing.max_results, listing.next_token.as_deref(), by_id)?;
    Ok(json!({"InstanceTypes": types, "NextToken": next}))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeInstanceTypeOfferings {
    location_type: Option<String>,
}

pub fn offerings(_: &Context, input: DescribeInstanceTypeOfferings, listing: Listing) -> Result<Value, ApiError> {
    let DescribeInstanceTypeOfferings { location_type } = input;
    check_dry_run(listing.dry_run)?;
    let kind = location_type.as_deref().unwrap_or("region");
    let locations: Vec<String> = match kind {
        "region" => vec![REGION.into()],
        "availability-zone" => Zone::ALL.iter().map(ToString::to_string).collect(),
        "availability-zone-id" => (1..=Zone::ALL.len()).map(|number| format!("use1-az{number}")).collect(),
        other => return Err(Ec2Error::invalid_parameter("LocationType", other, "Wisp has no such locations.").into()),
    };
    let offering =
        |location: &String, name: &str| json!({"InstanceType": name, "Location": location, "LocationType": kind});
    let types = catalog::all().iter().filter(|known| known.launchable().is_ok());
    let mut offerings: Vec<Value> =
        types.flat_map(|known| locations.iter().map(move |location| offering(location, known.name))).collect();
    filter::apply(&mut offerings, &listing.filters, &[("instance-type", "InstanceType"), ("location", "Location")])?;
    let (offerings, next) = page::page(offerings, listing.max_results, listing.next_token.as_deref(), false)?;
    Ok(json!({"InstanceTypeOfferings": offerings, "NextToken": next}))
}
