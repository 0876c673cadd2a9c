//! Reads the input of an action into a handler's struct, and refuses parameters that the struct does not have.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{ApiError, Code};
use ec2::{Ec2Error, ErrorCode};

/// Members that clients send although their value is EC2's default. Numbers in lists are left out of the paths.
const DEFAULTS: &[(&str, &[&str])] = &[
    ("AmazonProvidedIpv6CidrBlock", &["false"]),
    ("AssignIpv6AddressOnCreation.Value", &["false"]),
    ("CapacityReservationSpecification.CapacityReservationPreference", &["open", "none"]),
    ("BlockDeviceMappings.Ebs.Encrypted", &["false"]),
    ("DisableApiStop", &["false"]),
    ("DisableApiStop.Value", &["false"]),
    ("CloudWatchOutputConfig.CloudWatchOutputEnabled", &["false"]),
    ("DocumentVersion", &["$DEFAULT", "$LATEST", "1"]),
    ("Domain", &["vpc"]),
    ("EbsOptimized", &["false"]),
    ("EbsOptimized.Value", &["false"]),
    ("EnaSupport", &["true"]),
    ("EnaSupport.Value", &["false"]),
    ("EnableDns64.Value", &["false"]),
    ("EnableNetworkAddressUsageMetrics.Value", &["false"]),
    ("EnableResourceNameDnsAAAARecordOnLaunch.Value", &["false"]),
    ("EnableResourceNameDnsARecordOnLaunch.Value", &["false"]),
    ("EnclaveOptions.Enabled", &["false"]),
    ("Encrypted", &["false"]),
    ("HttpProtocolIpv6", &["disabled"]),
    ("InstanceTenancy", &["default"]),
    ("Ipv6Native", &["false"]),
    ("Location", &["regional"]),
    ("MaintenanceOptions.AutoRecovery", &["default", "disabled"]),
    ("MapCustomerOwnedIpOnLaunch.Value", &["false"]),
    ("MaxConcurrency", &["50", "100%"]),
    ("MaxErrors", &["0"]),
    ("MetadataOptions.HttpProtocolIpv6", &["disabled"]),
    ("Monitoring.Enabled", &["false"]),
    ("MultiAttachEnabled", &["false"]),
    ("NetworkBorderGroup", &[ec2::network::REGION]),
    ("NetworkInterfaces.DeleteOnTermination", &["true"]),
    ("NetworkInterfaces.InterfaceType", &["interface"]),
    ("NetworkInterfaces.NetworkCardIndex", &["0"]),
    ("Placement.Tenancy", &["default"]),
    ("PrivateDnsHostnameTypeOnLaunch", &["ip-name"]),
    ("PublicIpv4Pool", &["amazon"]),
    ("SourceDestCheck.Value", &["true"]),
    ("SriovNetSupport", &["simple"]),
];

/// Returns the input as a handler's struct.
pub fn read<I: DeserializeOwned>(input: Value) -> Result<I, ApiError> {
    let mut unread = Vec::new();
    let read = serde_ignored::deserialize(&input, |path| unread.push(path.to_string()));
    for path in unread {
        refuse_unless_default(&input, &path)?;
    }
    // The codec has checked the types of all members, but not that numbers are positive.
    read.map_err(|error| {
        let what = format!("A value is invalid: {error}.");
        Ec2Error::refused(ErrorCode::InvalidParameterValue, what, None).into()
    })
}

fn refuse_unless_default(input: &Value, path: &str) -> Result<(), ApiError> {
    // `serde_ignored` shows an optional value as a question mark.
    let parts: Vec<&str> = path.split('.').filter(|part| *part != "?").collect();
    let value = parts.iter().try_fold(input, |value, part| match value {
        Value::Array(values) => values.get(part.parse::<usize>().ok()?),
        value => value.get(part),
    });
    match value {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Object(members)) => {
            members.keys().try_for_each(|member| refuse_unless_default(input, &format!("{path}.{member}")))
        }
        Some(value) => {
            let names: Vec<&str> = parts.into_iter().filter(|part| part.parse::<usize>().is_err()).collect();
            let name = names.join(".");
            let given = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let defaults = DEFAULTS.iter().find(|(path, _)| *path == name).map_or(&[] as &[&str], |(_, values)| values);
            if defaults.contains(&given.as_str()) {
                return Ok(());
            }
            let given: String = given.chars().take(100).collect();
            let what = format!("Wisp does not support the parameter {name} with the value '{given}'.");
            Err(ApiError::new(Code::Ec2(ErrorCode::UnsupportedOperation), what))
        }
    }
}

/// The members that most `Describe` actions have. Handlers take them as a parameter of their own: in a struct with
/// `serde(flatten)`, parameters that the struct does not have would be ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Listing {
    pub filters: Vec<super::filter::Filter>,
    pub max_results: Option<usize>,
    pub next_token: Option<String>,
    pub dry_run: bool,
}

/// Divides an input into the members of [`Listing`] and the others.
pub fn split(mut input: Value) -> Result<(Listing, Value), ApiError> {
    let mut listing = serde_json::Map::new();
    if let Value::Object(members) = &mut input {
        for name in ["Filters", "MaxResults", "NextToken", "DryRun"] {
            listing.extend(members.remove_entry(name));
        }
    }
    Ok((read(Value::Object(listing))?, input))
}

/// Fails if the request is a dry run. Handlers call it after all checks, and before they change anything.
pub fn check_dry_run(dry_run: bool) -> Result<(), ApiError> {
    if dry_run {
        let message = "Request would have succeeded, but DryRun flag is set.";
        return Err(ApiError::new(Code::Ec2(ErrorCode::DryRunOperation), message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Input {
        name: String,
        placement: Option<Placement>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Placement {
        availability_zone: Option<String>,
    }

    #[test]
    fn parameters_that_state_the_default_are_accepted() {
        let input = serde_json::json!({
            "Name": "a", "EbsOptimized": false, "Monitoring": {"Enabled": false}, "EnclaveOptions": {},
            "Placement": {"AvailabilityZone": "us-east-1a", "Tenancy": "default"},
        });
        let read: Input = read(input).unwrap();
        assert_eq!(
            (read.name.as_str(), read.placement.unwrap().availability_zone.as_deref()),
            ("a", Some("us-east-1a"))
        );
    }

    #[test]
    fn lists_refuse_unknown_parameters_by_name() {
        let input = serde_json::json!({"Filters": [{"Name": "a", "Values": ["b"]}], "MaxResults": 5, "Whales": true});
        let (listing, rest) = split(input).unwrap();
        assert_eq!((listing.filters.len(), listing.max_results), (1, Some(5)));
        let error = read::<Input>(rest).unwrap_err();
        assert!(error.message.contains(" Whales "), "{}", error.message);
    }

    #[test]
    fn other_values_are_refused_by_name() {
        for (input, name) in [
            (serde_json::json!({"Monitoring": {"Enabled": true}}), "Monitoring.Enabled"),
            (serde_json::json!({"Placement": {"Tenancy": "host"}}), "Placement.Tenancy"),
            (serde_json::json!({"Ipv6Addresses": [{"Address": "::1"}]}), "Ipv6Addresses"),
        ] {
            let error = read::<Input>(input).unwrap_err();
            assert_eq!(error.code, Code::Ec2(ErrorCode::UnsupportedOperation));
            assert!(error.message.contains(&format!(" {name} ")), "{}", error.message);
        }
    }
}
