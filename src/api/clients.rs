//! The environment that points AWS's clients at a server.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use crate::model::{SIGNING_NAMES, by_signing_name};
use crate::sigv4::AccessKey;
use ec2::network::REGION;

/// File in the directory of a service and version that older clients look up in `AWS_DATA_PATH`.
const RULES: &str = "endpoint-rule-set-1.json";

/// Returns environment variables for old and new clients. `data` is a directory that [`write_endpoint_rules`] has
/// written. New clients read `AWS_ENDPOINT_URL`; those from before the summer of 2023 read only `AWS_DATA_PATH`.
pub fn environment(endpoint: &str, key: &AccessKey, data: &Path) -> Vec<(&'static str, String)> {
    let direct = |name| match std::env::var(name) {
        Ok(others) if !others.is_empty() => format!("{others},{DIRECT}"),
        _ => DIRECT.into(),
    };
    vec![
        ("NO_PROXY", direct("NO_PROXY")),
        ("no_proxy", direct("no_proxy")),
        ("AWS_ACCESS_KEY_ID", key.id.clone()),
        ("AWS_SECRET_ACCESS_KEY", key.secret.clone()),
        ("AWS_REGION", REGION.into()),
        ("AWS_DEFAULT_REGION", REGION.into()),
        ("AWS_ENDPOINT_URL", endpoint.into()),
        ("AWS_DATA_PATH", data.display().to_string()),
        ("AWS_EC2_METADATA_DISABLED", "true".into()),
        ("AWS_PAGER", String::new()),
    ]
}

/// Variables that would override those of [`environment`].
pub const REMOVED: &[&str] = &[
    "AWS_DEFAULT_PROFILE",
    "AWS_ENDPOINT_URL_EC2",
    "AWS_ENDPOINT_URL_IAM",
    "AWS_ENDPOINT_URL_SSM",
    "AWS_ENDPOINT_URL_STS",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_PROFILE",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
];

/// The hosts that clients reach without a proxy: otherwise, requests and private keys would pass through it.
const DIRECT: &str = "127.0.0.1,localhost";

/// Writes endpoint rules for all services to a directory: an endpoint that the user names comes first, then this
/// server.
pub fn write_endpoint_rules(endpoint: &str, data: &Path) -> io::Result<()> {
    for service in SIGNING_NAMES.iter().filter_map(|name| Some((name, by_signing_name(name)?))) {
        let (name, model) = service;
        let dir = data.join(name).join(&model.metadata.api_version);
        fs::create_dir_all(&dir)?;
        machine::fs::write_private(&dir.join(RULES), rules(endpoint).to_string().as_bytes())?;
    }
    Ok(())
}

/// Returns a rule set (Smithy, "Endpoint rule set").
fn rules(endpoint: &str) -> Value {
    let parameter =
        |built_in: &str, kind: &str| json!({"builtIn": built_in, "required": false, "documentation": "", "type": kind});
    json!({
        "version": "1.0",
        "parameters": {
            "Region": parameter("AWS::Region", "String"),
            "Endpoint": parameter("SDK::Endpoint", "String"),
            "UseDualStack": {"builtIn": "AWS::UseDualStack", "required": true, "default": false, "documentation": "", "type": "Boolean"},
            "UseFIPS": {"builtIn": "AWS::UseFIPS", "required": true, "default": false, "documentation": "", "type": "Boolean"},
            "UseGlobalEndpoint": {"builtIn": "AWS::STS::UseGlobalEndpoint", "required": true, "default": false, "documentation": "", "type": "Boolean"},
        },
        "rules": [
            {
                "conditions": [{"fn": "isSet", "argv": [{"ref": "Endpoint"}]}],
                "endpoint": {"url": {"ref": "Endpoint"}, "properties": {}, "headers": {}},
                "type": "endpoint",
            },
            {"conditions": [], "endpoint": {"url": endpoint, "properties": {}, "headers": {}}, "type": "endpoint"},
        ],
    })
}
