//! Parameters of the Systems Manager parameter store: image aliases.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Context, page};
use crate::error::{ApiError, Code};
use cloud::shapes;
use ec2::ErrorCode;
use ec2::image_alias::not_found;
use store::ImageAlias;

/// Maximum number of parameters of a page of `GetParametersByPath`.
const PAGE: usize = 10;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct GetParameter {
    name: String,
    /// No parameter is encrypted.
    #[serde(rename = "WithDecryption")]
    _with_decryption: Option<bool>,
}

pub fn parameter(context: &Context, input: GetParameter) -> Result<Value, ApiError> {
    Ok(json!({"Parameter": find(context, &input.name)?}))
}

/// Finds a parameter by `NAME` or `NAME:VERSION`.
fn find(context: &Context, reference: &str) -> Result<Value, ApiError> {
    let (path, version) = match reference.split_once(':') {
        Some((path, version)) => (path, Some(version)),
        None => (reference, None),
    };
    let alias = context.cloud.image_aliases().find(path)?;
    if version.is_some_and(|version| version != alias.version.to_string()) {
        return Err(ApiError::new(Code::Ec2(ErrorCode::ParameterVersionNotFound), format!("{reference} not found.")));
    }
    super::respond(shapes::parameter(&alias))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct GetParameters {
    names: Vec<String>,
    #[serde(rename = "WithDecryption")]
    _with_decryption: Option<bool>,
}

pub fn parameters(context: &Context, input: GetParameters) -> Result<Value, ApiError> {
    let (mut found, mut invalid) = (Vec::new(), Vec::new());
    for name in input.names {
        match find(context, &name) {
            Ok(parameter) => found.push(parameter),
            Err(error) if is_unknown(&error) => invalid.push(name),
            Err(error) => return Err(error),
        }
    }
    Ok(json!({"InvalidParameters": invalid, "Parameters": found}))
}

fn is_unknown(error: &ApiError) -> bool {
    [ErrorCode::ParameterNotFound, ErrorCode::ParameterVersionNotFound].map(Code::Ec2).contains(&error.code)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct GetParametersByPath {
    path: String,
    recursive: bool,
    max_results: Option<usize>,
    next_token: Option<String>,
    #[serde(rename = "WithDecryption")]
    _with_decryption: Option<bool>,
}

pub fn by_path(context: &Context, input: GetParametersByPath) -> Result<Value, ApiError> {
    if !input.path.starts_with('/') {
        return Err(not_found(&input.path).into());
    }
    let aliases = context.cloud.image_aliases().below(&input.path, input.recursive)?;
    let shape = |alias: &ImageAlias| super::respond(shapes::parameter(alias));
    let parameters: Vec<Value> = aliases.iter().map(shape).collect::<Result<_, _>>()?;
    let limit = input.max_results.unwrap_or(PAGE);
    let (parameters, next) = page::page(parameters, Some(limit), input.next_token.as_deref(), false)?;
    Ok(json!({"NextToken": next, "Parameters": parameters}))
}
