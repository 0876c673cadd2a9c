//! Shared parts of the handlers: IDs in requests, and lists in responses.

use ec2::id::{Id, ResourceKind};
use ec2::{Ec2Error, ErrorCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::input::{Listing, check_dry_run};
use super::{filter, page};
use crate::error::{ApiError, Code};

/// Parses an ID. Commands also take names and prefixes of IDs, which the API does not.
pub fn id<K: ResourceKind>(text: &str) -> Result<Id<K>, Ec2Error> {
    text.parse().map_err(|malformed| match Id::<K>::has_prefix(text) {
        // Well-formed IDs of EC2's older, shorter format are unknown, not malformed.
        true => Id::<K>::not_found(text),
        false => malformed,
    })
}

/// Returns the error for a request without a parameter that its other parameters require.
pub fn missing(parameter: &str) -> ApiError {
    let what = format!("The request must contain the parameter {parameter}");
    Ec2Error::refused(ErrorCode::MissingParameter, what, None).into()
}

pub fn combination(what: &str) -> ApiError {
    Ec2Error::refused(ErrorCode::InvalidParameterCombination, what, None).into()
}

/// Returns the error for an ID of a kind that has no type in Wisp. `code` is EC2's.
pub fn not_found(code: &'static str, noun: &str, id: &str) -> ApiError {
    let id: String = id.chars().take(100).collect();
    ApiError::new(Code::NotFound(code), format!("The {noun} '{id}' does not exist"))
}

/// EC2 API Reference, `AttributeBooleanValue`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AttributeBoolean {
    pub value: Option<bool>,
}

/// EC2 API Reference, `AttributeValue`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AttributeValue {
    pub value: Option<String>,
}

/// The response of a `Describe` action.
pub struct Listed {
    /// Member of the response with the resources.
    pub list: &'static str,
    /// Member of a resource with its ID.
    pub id: &'static str,
    pub filters: &'static [filter::Name],
}

impl Listed {
    /// Returns the response with the resources that have one of the IDs, or with all if there are no IDs, and that match
    /// the filters. An ID that is malformed or that no resource has is an error.
    pub fn respond<K: ResourceKind>(
        &self,
        resources: Vec<Value>,
        ids: &[String],
        listing: Listing,
    ) -> Result<Value, ApiError> {
        let well_formed: Result<Vec<Id<K>>, _> = ids.iter().map(|text| id(text)).collect();
        well_formed?;
        self.respond_by(resources, ids, |id| Id::<K>::not_found(id).into(), listing)
    }

    /// Returns the response as [`respond`](Self::respond) does, for IDs that have no type.
    pub fn respond_by(
        &self,
        mut resources: Vec<Value>,
        ids: &[String],
        not_found: impl Fn(&str) -> ApiError,
        listing: Listing,
    ) -> Result<Value, ApiError> {
        check_dry_run(listing.dry_run)?;
        let has = |resource: &Value, id: &String| resource[self.id] == id.as_str();
        if let Some(unknown) = ids.iter().find(|id| !resources.iter().any(|resource| has(resource, id))) {
            return Err(not_found(unknown));
        }
        resources.retain(|resource| ids.is_empty() || ids.iter().any(|id| has(resource, id)));
        filter::apply(&mut resources, &listing.filters, self.filters)?;
        let token = listing.next_token.as_deref();
        let (resources, next) = page::page(resources, listing.max_results, token, !ids.is_empty())?;
        Ok(json!({self.list: resources, "NextToken": next}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ec2::VolumeId;
    use ec2::id::Volume;

    #[test]
    fn id_is_unknown_or_malformed() {
        let code = |text: &str| id::<Volume>(text).unwrap_err().code();
        assert_eq!(id::<Volume>("vol-0123456789abcdef0"), "vol-0123456789abcdef0".parse::<VolumeId>());
        assert_eq!(code("vol-12345678"), ErrorCode::InvalidVolumeNotFound);
        for text in ["vol-0", "vol-zz", "data", "", "i-0123456789abcdef0"] {
            assert_eq!(code(text), ErrorCode::InvalidVolumeIdMalformed, "{text}");
        }
    }

    #[test]
    fn list_has_resources_with_ids_only() {
        let listed = Listed { list: "Volumes", id: "VolumeId", filters: &[] };
        let ids = ["vol-0123456789abcdef0", "vol-0123456789abcdef1", "vol-0123456789abcdef2"];
        let volumes = || ids[..2].iter().map(|id| json!({"VolumeId": id})).collect();
        let respond = |ids: &[&str]| {
            let ids: Vec<String> = ids.iter().map(|id| (*id).to_string()).collect();
            listed.respond::<Volume>(volumes(), &ids, Listing::default())
        };
        assert_eq!(respond(&[]).unwrap()["Volumes"], json!([{"VolumeId": ids[0]}, {"VolumeId": ids[1]}]));
        assert_eq!(respond(&[ids[1]]).unwrap()["Volumes"], json!([{"VolumeId": ids[1]}]));
        let unknown = respond(&[ids[1], ids[2]]).unwrap_err();
        assert_eq!(unknown.code, Code::Ec2(ErrorCode::InvalidVolumeNotFound));
        let dry = Listing { dry_run: true, ..Listing::default() };
        let dry = listed.respond::<Volume>(volumes(), &[], dry).unwrap_err();
        assert_eq!(dry.code, Code::Ec2(ErrorCode::DryRunOperation));
    }
}
