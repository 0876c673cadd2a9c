//! The region and its availability zones.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use super::filter::{self, Filter};
use crate::error::ApiError;
use ec2::Ec2Error;
use ec2::network::{REGION, Zone};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeRegions {
    region_names: Vec<String>,
    filters: Vec<Filter>,
    #[serde(rename = "AllRegions")]
    _all_regions: bool,
    dry_run: bool,
}

pub fn regions(_: &Context, input: DescribeRegions) -> Result<Value, ApiError> {
    super::input::check_dry_run(input.dry_run)?;
    if let Some(other) = input.region_names.iter().find(|name| *name != REGION) {
        return Err(Ec2Error::invalid_parameter("RegionName", other, format!("the only region is {REGION}.")).into());
    }
    let endpoint = format!("ec2.{REGION}.amazonaws.com");
    let mut regions = vec![json!({"RegionName": REGION, "Endpoint": endpoint, "OptInStatus": "opt-in-not-required"})];
    let names = &[("region-name", "RegionName"), ("endpoint", "Endpoint"), ("opt-in-status", "OptInStatus")];
    filter::apply(&mut regions, &input.filters, names)?;
    Ok(json!({"Regions": regions}))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeAvailabilityZones {
    zone_names: Vec<String>,
    zone_ids: Vec<String>,
    filters: Vec<Filter>,
    #[serde(rename = "AllAvailabilityZones")]
    _all: bool,
    dry_run: bool,
}

pub fn zones(_: &Context, input: DescribeAvailabilityZones) -> Result<Value, ApiError> {
    super::input::check_dry_run(input.dry_run)?;
    let mut zones: Vec<Value> = (1..).zip(Zone::ALL).map(|(number, zone)| shape(zone, number)).collect();
    for (member, asked) in [("ZoneName", &input.zone_names), ("ZoneId", &input.zone_ids)] {
        let has = |zone: &Value, name: &String| zone[member] == name.as_str();
        if let Some(unknown) = asked.iter().find(|name| !zones.iter().any(|zone| has(zone, name))) {
            return Err(Ec2Error::invalid_parameter(member, unknown, "there is no such availability zone.").into());
        }
        zones.retain(|zone| asked.is_empty() || asked.iter().any(|name| has(zone, name)));
    }
    let names = &[
        ("group-name", "GroupName"),
        ("message", "Messages.Message"),
        ("opt-in-status", "OptInStatus"),
        ("region-name", "RegionName"),
        ("state", "State"),
        ("zone-id", "ZoneId"),
        ("zone-name", "ZoneName"),
        ("zone-type", "ZoneType"),
    ];
    filter::apply(&mut zones, &input.filters, names)?;
    Ok(json!({"AvailabilityZones": zones}))
}

fn shape(zone: Zone, number: u32) -> Value {
    json!({
        "GroupName": format!("{REGION}-zg-1"),
        "Messages": [],
        "NetworkBorderGroup": REGION,
        "OptInStatus": "opt-in-not-required",
        "RegionName": REGION,
        "State": "available",
        "ZoneId": format!("use1-az{number}"),
        "ZoneName": zone,
        "ZoneType": "availability-zone",
    })
}
