//! Image aliases: parameters of the Systems Manager parameter store whose value is an image ID, for example
//! `/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64`.
//!
//! A launch names one with `resolve:ssm:PATH` or `resolve:ssm:PATH:VERSION` (EC2 User Guide, "Reference AMIs using
//! Systems Manager parameters").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{Ec2Error, ErrorCode};

const PREFIX: &str = "resolve:ssm:";
const MAX_LENGTH: usize = 1011;
const MAX_LEVELS: usize = 15;

/// A parameter's name: levels of letters, digits and `.-_`, each after a slash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct AliasPath(String);

impl AliasPath {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns true if the path is in the hierarchy `above`, or directly in it unless `recursive`.
    pub fn is_below(&self, above: &str, recursive: bool) -> bool {
        let rest = self.0.strip_prefix(above.trim_end_matches('/')).and_then(|rest| rest.strip_prefix('/'));
        rest.is_some_and(|rest| recursive || !rest.contains('/'))
    }
}

impl FromStr for AliasPath {
    type Err = Ec2Error;

    fn from_str(text: &str) -> Result<AliasPath, Ec2Error> {
        let is_level =
            |level: &str| !level.is_empty() && level.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c));
        let levels: Vec<&str> = text.strip_prefix('/').map(|rest| rest.split('/').collect()).unwrap_or_default();
        let is_valid = text.len() <= MAX_LENGTH
            && (1..=MAX_LEVELS).contains(&levels.len())
            && levels.iter().all(|level| is_level(level));
        if is_valid {
            return Ok(AliasPath(text.to_owned()));
        }
        let rule = format!("it must be up to {MAX_LEVELS} levels of letters, digits and .-_, such as /images/web.");
        Err(Ec2Error::invalid_parameter("Name", text, rule))
    }
}

impl TryFrom<String> for AliasPath {
    type Error = Ec2Error;

    fn try_from(text: String) -> Result<AliasPath, Ec2Error> {
        text.parse()
    }
}

impl From<AliasPath> for String {
    fn from(path: AliasPath) -> String {
        path.0
    }
}

impl fmt::Display for AliasPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// An alias that a launch names instead of an image ID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasReference {
    pub path: AliasPath,
    pub version: Option<u64>,
}

impl AliasReference {
    /// Parses `resolve:ssm:PATH[:VERSION]`. Returns `None` for text without this prefix.
    pub fn parse(text: &str) -> Result<Option<AliasReference>, Ec2Error> {
        let Some(name) = text.strip_prefix(PREFIX) else { return Ok(None) };
        let (path, version) = match name.split_once(':') {
            Some((path, version)) => (path, Some(version)),
            None => (name, None),
        };
        let invalid = |_| Ec2Error::invalid_parameter("ImageId", text, "the version must be a number.");
        let version = version.map(str::parse).transpose().map_err(invalid)?;
        Ok(Some(AliasReference { path: path.parse()?, version }))
    }
}

/// Returns the error for a path without an alias.
pub fn not_found(path: &str) -> Ec2Error {
    let hint = "`wisp image alias ls` lists the aliases; `wisp image alias add` adds one.";
    Ec2Error::refused(ErrorCode::ParameterNotFound, format!("Parameter {path} not found."), Some(hint.into()))
}

/// Returns the error for a version that an alias does not have any more, or not yet.
pub fn version_not_found(path: &AliasPath, version: u64) -> Ec2Error {
    let what = format!("Systems Manager could not find version {version} of {path}.");
    let hint = "Wisp keeps only the latest version of an alias. `wisp image alias ls` shows its number.";
    Ec2Error::refused(ErrorCode::ParameterVersionNotFound, what, Some(hint.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AMAZON: &str = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64";

    #[test]
    fn path_has_levels_of_safe_characters() {
        for text in [AMAZON, "/a", "/a/b.c-d_E9"] {
            assert_eq!(text.parse::<AliasPath>().expect(text).as_str(), text);
        }
        let (long, deep) = (format!("/{}", "x".repeat(MAX_LENGTH)), "/a".repeat(MAX_LEVELS + 1));
        for text in ["", "/", "a", "/a/", "//a", "/a b", "/ä", "/a:1", &long, &deep] {
            assert_eq!(text.parse::<AliasPath>().expect_err(text).code(), ErrorCode::InvalidParameterValue);
        }
    }

    #[test]
    fn hierarchy_contains_whole_levels() {
        let path: AliasPath = AMAZON.parse().expect("a path");
        for (above, recursive, expected) in [
            ("/aws/service/ami-amazon-linux-latest", false, true),
            ("/aws/service/ami-amazon-linux-latest/", false, true),
            ("/aws/service", false, false),
            ("/aws/service", true, true),
            ("/aws/serv", true, false),
            ("/", true, true),
            (AMAZON, true, false),
        ] {
            assert_eq!(path.is_below(above, recursive), expected, "{above} {recursive}");
        }
    }

    #[test]
    fn reference_has_optional_version() {
        let parse = |text: &str| AliasReference::parse(text);
        assert_eq!(parse("tiny"), Ok(None));
        let path: AliasPath = "/a/b".parse().expect("a path");
        assert_eq!(parse("resolve:ssm:/a/b"), Ok(Some(AliasReference { path: path.clone(), version: None })));
        assert_eq!(parse("resolve:ssm:/a/b:3"), Ok(Some(AliasReference { path, version: Some(3) })));
        for text in ["resolve:ssm:", "resolve:ssm:/a:x", "resolve:ssm:a b"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
