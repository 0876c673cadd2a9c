//! Instances that Run Command can reach.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Context, filter, page};
use crate::error::{ApiError, Code};
use ec2::ErrorCode;
use ec2::api::Timestamp;
use node::guest::Facts;
use store::InstanceRecord;

/// Default number of instances of a page.
const PAGE: usize = 50;
/// Maximum length of a computer's name, in characters.
const MAX_NAME: usize = 255;

const FILTERS: &[filter::Name] = &[
    ("InstanceIds", "InstanceId"),
    ("PingStatus", "PingStatus"),
    ("PlatformTypes", "PlatformType"),
    ("ResourceType", "ResourceType"),
];

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeInstanceInformation {
    filters: Vec<KeyFilter>,
    instance_information_filter_list: Vec<OldFilter>,
    max_results: Option<usize>,
    next_token: Option<String>,
}

/// Systems Manager API Reference, `InstanceInformationStringFilter`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct KeyFilter {
    key: String,
    values: Vec<String>,
}

/// Systems Manager API Reference, `InstanceInformationFilter`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OldFilter {
    key: String,
    value_set: Vec<String>,
}

impl DescribeInstanceInformation {
    /// Returns the filters of both kinds. An unsupported one is refused by name.
    fn filters(&mut self) -> Result<Vec<filter::Filter>, ApiError> {
        let old = self.instance_information_filter_list.drain(..).map(|filter| (filter.key, filter.value_set));
        let filters = self.filters.drain(..).map(|filter| (filter.key, filter.values)).chain(old);
        let checked = filters.map(|(name, values)| match FILTERS.iter().any(|(known, _)| *known == name) {
            true => Ok(filter::Filter { name, values }),
            false => {
                let name: String = name.chars().take(100).collect();
                let what = format!("Wisp does not support the filter {name}.");
                Err(ApiError::new(Code::Ec2(ErrorCode::UnsupportedOperation), what))
            }
        });
        checked.collect()
    }
}

pub fn describe(context: &Context, mut input: DescribeInstanceInformation) -> Result<Value, ApiError> {
    let filters = input.filters()?;
    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0);
    let agents = context.cloud.commands().agents()?;
    let mut shapes: Vec<Value> = agents.iter().map(|(record, facts)| shape(record, facts, now)).collect();
    filter::apply(&mut shapes, &filters, FILTERS)?;
    let limit = Some(input.max_results.unwrap_or(PAGE));
    let (shapes, next) = page::page(shapes, limit, input.next_token.as_deref(), false)?;
    Ok(json!({"InstanceInformationList": shapes, "NextToken": next}))
}

/// Systems Manager API Reference, `InstanceInformation`. `now` is the time of the agent's answer.
fn shape(record: &InstanceRecord, facts: &Facts, now: u64) -> Value {
    let address = record.status.network.as_ref().map(|network| network.private_ip.to_string());
    // The agent is in the guest, which is not trusted.
    let printable = |text: &str| text.chars().filter(|character| !character.is_control()).take(MAX_NAME).collect();
    let computer_name: String = printable(&facts.hostname);
    // The version is followed by the agent's features.
    let version: String = printable(facts.agent_version.split('+').next().unwrap_or_default());
    json!({
        "AgentVersion": version,
        "ComputerName": computer_name,
        "IPAddress": address,
        "InstanceId": record.meta.id,
        "LastPingDateTime": Timestamp::from_seconds(now),
        "PingStatus": "Online",
        "PlatformType": "Linux",
        "ResourceType": "EC2Instance",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_both_kinds_are_read_and_others_refused() {
        let input = |value| serde_json::from_value::<DescribeInstanceInformation>(value).unwrap();
        let mut both = input(json!({
            "Filters": [{"Key": "InstanceIds", "Values": ["i-0123456789abcdef0"]}],
            "InstanceInformationFilterList": [{"key": "PingStatus", "valueSet": ["Online"]}],
        }));
        let names: Vec<String> = both.filters().unwrap().into_iter().map(|filter| filter.name).collect();
        assert_eq!(names, ["InstanceIds", "PingStatus"]);
        let mut tag = input(json!({"Filters": [{"Key": "tag:Name", "Values": ["web"]}]}));
        let error = tag.filters().unwrap_err();
        assert_eq!(error.code, Code::Ec2(ErrorCode::UnsupportedOperation));
        assert!(error.message.contains("tag:Name"), "{}", error.message);
    }
}
