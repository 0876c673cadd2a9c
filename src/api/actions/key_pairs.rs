//! Key pairs.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use super::filter::{self, Filter, Name};
use super::input::check_dry_run;
use super::tags::{TagSpecification, tags_for};
use crate::error::ApiError;
use cloud::shapes;
use ec2::key::{self, KeyFormat, KeyName, KeyType};

const FILTERS: &[Name] = &[("fingerprint", "KeyFingerprint"), ("key-name", "KeyName"), ("key-pair-id", "KeyPairId")];

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeKeyPairs {
    key_names: Vec<String>,
    key_pair_ids: Vec<String>,
    filters: Vec<Filter>,
    include_public_key: bool,
    dry_run: bool,
}

pub fn describe(context: &Context, input: DescribeKeyPairs) -> Result<Value, ApiError> {
    check_dry_run(input.dry_run)?;
    let records = context.cloud.key_pairs().list()?;
    let mut pairs = Vec::new();
    for record in &records {
        let mut pair = super::respond(shapes::key_pair(record))?;
        if input.include_public_key {
            pair["PublicKey"] = json!(record.spec.public_key);
        }
        pairs.push(pair);
    }
    for (member, asked) in [("KeyName", &input.key_names), ("KeyPairId", &input.key_pair_ids)] {
        if let Some(unknown) = asked.iter().find(|name| !pairs.iter().any(|pair| pair[member] == name.as_str())) {
            return Err(key::not_found(unknown).into());
        }
    }
    let is_asked = |pair: &Value| {
        let has = |member: &str, asked: &[String]| asked.iter().any(|name| pair[member] == name.as_str());
        (input.key_names.is_empty() && input.key_pair_ids.is_empty())
            || has("KeyName", &input.key_names)
            || has("KeyPairId", &input.key_pair_ids)
    };
    pairs.retain(is_asked);
    filter::apply(&mut pairs, &input.filters, FILTERS)?;
    Ok(json!({"KeyPairs": pairs}))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreateKeyPair {
    key_name: String,
    key_type: Option<String>,
    key_format: Option<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
    #[serde(default)]
    dry_run: bool,
}

pub fn create(context: &Context, input: CreateKeyPair) -> Result<Value, ApiError> {
    let name: KeyName = input.key_name.parse()?;
    // The API's default differs from the command's.
    let key_type: KeyType = input.key_type.as_deref().unwrap_or("rsa").parse()?;
    let format: KeyFormat = input.key_format.as_deref().unwrap_or("pem").parse()?;
    let tags = tags_for("key-pair", &input.tag_specifications)?;
    check_dry_run(input.dry_run)?;
    let (record, private) = context.cloud.key_pairs().create(&name, key_type, format, tags)?;
    let mut pair = described(&record)?;
    pair["KeyMaterial"] = json!(private.as_str());
    Ok(pair)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImportKeyPair {
    key_name: String,
    public_key_material: String,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
    #[serde(default)]
    dry_run: bool,
}

pub fn import(context: &Context, input: ImportKeyPair) -> Result<Value, ApiError> {
    let name: KeyName = input.key_name.parse()?;
    let tags = tags_for("key-pair", &input.tag_specifications)?;
    let material = BASE64_STANDARD.decode(&input.public_key_material);
    let material = material.map_err(|_| key::invalid_public_key("it is not Base64"))?;
    check_dry_run(input.dry_run)?;
    described(&context.cloud.key_pairs().import(&name, &material, tags)?)
}

/// Returns the members that the responses of `CreateKeyPair` and `ImportKeyPair` share.
fn described(record: &store::KeyPairRecord) -> Result<Value, ApiError> {
    let pair = super::respond(shapes::key_pair(record))?;
    let members = ["KeyFingerprint", "KeyName", "KeyPairId", "Tags"];
    Ok(members.iter().map(|member| ((*member).to_string(), pair[*member].clone())).collect())
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DeleteKeyPair {
    key_name: Option<String>,
    key_pair_id: Option<String>,
    #[serde(default)]
    dry_run: bool,
}

/// Deletes a key pair. As in EC2, a pair that does not exist is no error.
pub fn delete(context: &Context, input: DeleteKeyPair) -> Result<Value, ApiError> {
    let records = context.cloud.key_pairs().list()?;
    let names: BTreeMap<String, String> =
        records.iter().map(|record| (record.meta.id.to_string(), record.spec.name.clone())).collect();
    let name = match (&input.key_name, &input.key_pair_id) {
        (Some(_), Some(_)) => {
            let what = "The parameters KeyName and KeyPairId cannot be used together";
            return Err(ec2::Ec2Error::refused(ec2::ErrorCode::InvalidParameterCombination, what, None).into());
        }
        (Some(name), None) => Some(name.clone()).filter(|name| names.values().any(|known| known == name)),
        (None, Some(id)) => names.get(id).cloned(),
        (None, None) => {
            let what = "The request must contain the parameter KeyName or KeyPairId";
            return Err(ec2::Ec2Error::refused(ec2::ErrorCode::MissingParameter, what, None).into());
        }
    };
    check_dry_run(input.dry_run)?;
    let Some(name) = name else { return Ok(json!({"Return": true})) };
    let record = context.cloud.key_pairs().delete(&name)?;
    Ok(json!({"Return": true, "KeyPairId": record.meta.id}))
}
