//! Tags.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::filter::{self, Filter, Name};
use super::input::{Listing, check_dry_run};
use super::{Context, page};
use crate::error::ApiError;
use cloud::tags::Resource;
use ec2::Ec2Error;
use ec2::tag::{self, with_tags};

const FILTERS: &[Name] =
    &[("key", "Key"), ("resource-id", "ResourceId"), ("resource-type", "ResourceType"), ("value", "Value")];

/// EC2 API Reference, `TagSpecification`: tags of a resource that the request creates.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TagSpecification {
    resource_type: String,
    tags: Vec<Tag>,
}

/// EC2 API Reference, `Tag`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Tag {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
}

impl Tag {
    fn checked(&self) -> Result<tag::Tag, Ec2Error> {
        tag::Tag::new(&self.key, self.value.as_deref().unwrap_or_default())
    }
}

/// Returns the tags for a resource type. Refuses specifications for other types.
pub fn tags_for(
    resource_type: &str,
    specifications: &[TagSpecification],
) -> Result<BTreeMap<String, String>, Ec2Error> {
    let [tags] = tags_for_each([resource_type], specifications)?;
    Ok(tags)
}

/// Returns the tags for each of several resource types that a request creates.
pub fn tags_for_each<const N: usize>(
    resource_types: [&str; N],
    specifications: &[TagSpecification],
) -> Result<[BTreeMap<String, String>; N], Ec2Error> {
    let is_known = |given: &TagSpecification| resource_types.contains(&given.resource_type.as_str());
    if let Some(other) = specifications.iter().find(|given| !is_known(given)) {
        let rule = format!("it must be {}.", resource_types.join(" or "));
        return Err(Ec2Error::invalid_parameter("TagSpecification.ResourceType", &other.resource_type, rule));
    }
    let mut tags = [const { BTreeMap::new() }; N];
    for (resource_type, tags) in resource_types.iter().zip(&mut tags) {
        let given = specifications.iter().filter(|given| given.resource_type == *resource_type);
        let given: Result<Vec<_>, _> = given.flat_map(|given| &given.tags).map(Tag::checked).collect();
        *tags = with_tags(&BTreeMap::new(), given?)?;
    }
    Ok(tags)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ChangeTags {
    resources: Vec<String>,
    tags: Vec<Tag>,
    dry_run: bool,
}

impl ChangeTags {
    /// Returns the resources, all of which exist.
    fn find(&self, context: &Context) -> Result<Vec<Resource>, ApiError> {
        self.resources.iter().map(|id| Ok(context.cloud.tags().find_by_id(id)?)).collect()
    }
}

pub fn create(context: &Context, input: ChangeTags) -> Result<Value, ApiError> {
    let set: Vec<tag::Tag> = input.tags.iter().map(Tag::checked).collect::<Result<_, _>>()?;
    let resources = input.find(context)?;
    check_dry_run(input.dry_run)?;
    for resource in resources {
        super::report(context.cloud.tags().change(resource, &set, &[])?);
    }
    Ok(Value::Null)
}

/// Deletes tags. Without tags in the request, all tags of the resources are deleted. A tag with a value is deleted only
/// if it has that value.
pub fn delete(context: &Context, input: ChangeTags) -> Result<Value, ApiError> {
    let resources = input.find(context)?;
    check_dry_run(input.dry_run)?;
    let is_deleted = |key: &str, value: &str| {
        let names = |tag: &Tag| tag.key == key && tag.value.as_deref().is_none_or(|given| given == value);
        input.tags.is_empty() || input.tags.iter().any(names)
    };
    for (resource, tags) in context.cloud.tags().list()? {
        if resources.contains(&resource) {
            let deleted = tags.into_iter().filter(|(key, value)| is_deleted(key, value));
            let deleted: Vec<String> = deleted.map(|(key, _)| key).collect();
            super::report(context.cloud.tags().change(resource, &[], &deleted)?);
        }
    }
    Ok(Value::Null)
}

pub fn describe(context: &Context, input: Listing) -> Result<Value, ApiError> {
    check_dry_run(input.dry_run)?;
    let mut tags = Vec::new();
    for (resource, resource_tags) in context.cloud.tags().list()? {
        for (key, value) in resource_tags {
            let (id, kind) = (resource.id(), resource.resource_type());
            tags.push(json!({"Key": key, "ResourceId": id, "ResourceType": kind, "Value": value}));
        }
    }
    let (of_key, others): (Vec<_>, Vec<_>) =
        input.filters.into_iter().partition(|filter| filter.name.starts_with("tag:"));
    for filter in of_key {
        let name = filter.name.trim_start_matches("tag:").to_string();
        filter::apply(&mut tags, &[Filter { name: "key".into(), values: vec![name] }], FILTERS)?;
        filter::apply(&mut tags, &[Filter { name: "value".into(), ..filter }], FILTERS)?;
    }
    filter::apply(&mut tags, &others, FILTERS)?;
    let (tags, next) = page::page(tags, input.max_results, input.next_token.as_deref(), false)?;
    Ok(json!({"Tags": tags, "NextToken": next}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_taken_for_their_resource_type() {
        let specification = |kind: &str, key: &str| TagSpecification {
            resource_type: kind.into(),
            tags: vec![Tag { key: key.into(), value: None }],
        };
        let given = [specification("instance", "a"), specification("volume", "b"), specification("instance", "c")];
        let [instance, volume] = tags_for_each(["instance", "volume"], &given).unwrap();
        assert_eq!(instance.keys().collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(volume.keys().collect::<Vec<_>>(), ["b"]);
        assert!(tags_for("instance", &given).is_err());
    }
}
