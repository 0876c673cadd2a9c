//! The caller: the one user of the one account.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use crate::error::ApiError;
use ec2::api::ACCOUNT_ID;

/// Name and ID of the user.
const USER: &str = "wisp";
const USER_ID: &str = "AIDAWISP000000000000";

fn user_arn() -> String {
    format!("arn:aws:iam::{ACCOUNT_ID}:user/{USER}")
}

#[derive(Debug, Deserialize)]
pub struct NoInput {}

/// `GetCallerIdentity` of STS.
pub fn caller(_: &Context, _: NoInput) -> Result<Value, ApiError> {
    Ok(json!({"Account": ACCOUNT_ID, "Arn": user_arn(), "UserId": USER_ID}))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct GetUser {
    user_name: Option<String>,
}

/// `GetUser` of IAM.
pub fn user(_: &Context, input: GetUser) -> Result<Value, ApiError> {
    if let Some(name) = input.user_name.filter(|name| name != USER) {
        let what = format!("The user with name {name} cannot be found.");
        return Err(ApiError::new(crate::error::Code::NotFound("NoSuchEntity"), what));
    }
    let created = "2026-01-01T00:00:00.000Z";
    Ok(json!({"User": {"Arn": user_arn(), "CreateDate": created, "Path": "/", "UserId": USER_ID, "UserName": USER}}))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ListAccountAliases {
    #[serde(rename = "MaxItems")]
    _max_items: Option<u32>,
    #[serde(rename = "Marker")]
    _marker: Option<String>,
}

/// `ListAccountAliases` of IAM.
pub fn aliases(_: &Context, _: ListAccountAliases) -> Result<Value, ApiError> {
    Ok(json!({"AccountAliases": [], "IsTruncated": false}))
}
