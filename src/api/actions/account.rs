//! Attributes of the one account.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use super::input::check_dry_run;
use crate::error::ApiError;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeAccountAttributes {
    attribute_names: Vec<String>,
    dry_run: bool,
}

pub fn attributes(context: &Context, input: DescribeAccountAttributes) -> Result<Value, ApiError> {
    check_dry_run(input.dry_run)?;
    let vpcs = context.cloud.vpcs().list()?;
    let default = vpcs.iter().find(|vpc| vpc.status.is_default).map(|vpc| vpc.meta.id.to_string());
    Ok(shape(default.as_deref(), &input.attribute_names))
}

/// Returns the attributes with the names, or all of them. `default_vpc` is an ID.
fn shape(default_vpc: Option<&str>, names: &[String]) -> Value {
    let attributes = [("supported-platforms", "VPC"), ("default-vpc", default_vpc.unwrap_or("none"))];
    let asked = attributes.iter().filter(|(name, _)| names.is_empty() || names.iter().any(|asked| asked == name));
    let shape =
        |(name, value): &(&str, &str)| json!({"AttributeName": name, "AttributeValues": [{"AttributeValue": value}]});
    json!({"AccountAttributes": asked.map(shape).collect::<Vec<_>>()})
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct GetEbsEncryptionByDefault {
    dry_run: bool,
}

/// Answers that new volumes are not encrypted.
pub fn ebs_encryption(_: &Context, input: GetEbsEncryptionByDefault) -> Result<Value, ApiError> {
    check_dry_run(input.dry_run)?;
    Ok(json!({"EbsEncryptionByDefault": false}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_listed_by_name() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_string()).collect::<Vec<_>>();
        let vpc = shape(Some("vpc-0123456789abcdef0"), &names(&["default-vpc"]));
        let value = json!([{"AttributeValue": "vpc-0123456789abcdef0"}]);
        assert_eq!(vpc, json!({"AccountAttributes": [{"AttributeName": "default-vpc", "AttributeValues": value}]}));
        let all = shape(None, &[]);
        assert_eq!(all["AccountAttributes"].as_array().map(Vec::len), Some(2));
        assert_eq!(all["AccountAttributes"][1]["AttributeValues"][0]["AttributeValue"], "none");
    }
}
