//! Names of templates, and references to templates and versions.

use std::fmt;
use std::str::FromStr;

use super::MAX_DESCRIPTION;
use crate::error::{Ec2Error, ErrorCode};
use crate::id::LaunchTemplateId;

const MAX_NAME: usize = 128;
const MIN_NAME: usize = 3;

/// A version of a launch template. Parses `$Latest`, `$Default` and a number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum VersionReference {
    Latest,
    #[default]
    Default,
    Number(u64),
}

impl FromStr for VersionReference {
    type Err = Ec2Error;

    fn from_str(text: &str) -> Result<VersionReference, Ec2Error> {
        match text {
            "$Latest" => Ok(VersionReference::Latest),
            "$Default" => Ok(VersionReference::Default),
            number => number.parse().ok().filter(|number| *number > 0).map(VersionReference::Number).ok_or_else(|| {
                let rule = "it must be a version number, $Latest or $Default.";
                Ec2Error::invalid_parameter("LaunchTemplateVersion", text, rule)
            }),
        }
    }
}

impl fmt::Display for VersionReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VersionReference::Latest => f.pad("$Latest"),
            VersionReference::Default => f.pad("$Default"),
            VersionReference::Number(number) => number.fmt(f),
        }
    }
}

/// Splits `NAME:VERSION`. A template's name cannot contain a colon.
pub fn split_reference(text: &str) -> Result<(&str, Option<VersionReference>), Ec2Error> {
    match text.split_once(':') {
        Some((template, version)) => Ok((template, Some(version.parse()?))),
        None => Ok((text, None)),
    }
}

/// Checks the name of a new template.
pub fn check_name(name: &str) -> Result<(), Ec2Error> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "().-/_".contains(c);
    if (MIN_NAME..=MAX_NAME).contains(&name.len()) && name.chars().all(allowed) {
        return Ok(());
    }
    let what = format!("Invalid launch template name '{name}'.");
    let hint = format!("A name has {MIN_NAME} to {MAX_NAME} letters, digits and ().-/_ characters.");
    Err(Ec2Error::refused(ErrorCode::InvalidLaunchTemplateNameMalformed, what, Some(hint)))
}

pub fn check_description(description: &str) -> Result<(), Ec2Error> {
    if description.chars().count() > MAX_DESCRIPTION || description.chars().any(char::is_control) {
        let rule = format!("it can have up to {MAX_DESCRIPTION} characters, and no control characters.");
        return Err(Ec2Error::invalid_parameter("VersionDescription", description, rule));
    }
    Ok(())
}

/// Returns the error for an unknown name or ID of a template.
pub fn not_found(reference: &str) -> Ec2Error {
    let (code, attribute) = match reference.parse::<LaunchTemplateId>() {
        Ok(_) => (ErrorCode::InvalidLaunchTemplateIdNotFound, "ID"),
        Err(_) if LaunchTemplateId::has_prefix(reference) => return LaunchTemplateId::not_found(reference),
        Err(_) => (ErrorCode::InvalidLaunchTemplateNameNotFound, "name"),
    };
    let what = format!("The specified launch template, with template {attribute} {reference}, does not exist.");
    Ec2Error::refused(code, what, None)
}

/// Returns the error for an unknown version of a template.
pub fn version_not_found(id: LaunchTemplateId, version: VersionReference) -> Ec2Error {
    let what = format!("Could not find the specified version {version} for the launch template with ID {id}.");
    Ec2Error::refused(ErrorCode::InvalidLaunchTemplateVersionNotFound, what, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_reference_displays_as_given() {
        for text in ["$Latest", "$Default", "1", "42"] {
            assert_eq!(text.parse::<VersionReference>().expect(text).to_string(), text);
        }
        for text in ["", "0", "-1", "latest", "1.5", "$latest"] {
            assert_eq!(text.parse::<VersionReference>().expect_err(text).code(), ErrorCode::InvalidParameterValue);
        }
    }

    #[test]
    fn reference_has_optional_version() {
        assert_eq!(split_reference("web").expect("a name"), ("web", None));
        assert_eq!(split_reference("web:3").expect("a version"), ("web", Some(VersionReference::Number(3))));
        assert_eq!(split_reference("web:$Latest").expect("latest"), ("web", Some(VersionReference::Latest)));
        assert!(split_reference("web:").is_err());
    }

    #[test]
    fn name_follows_ec2s_rule() {
        for name in ["web", "a/b_c(1).d-e", &"x".repeat(128)] {
            check_name(name).expect(name);
        }
        for name in ["", "ab", "a b c", "wéb", "web:1", &"x".repeat(129)] {
            let code = check_name(name).expect_err(name).code();
            assert_eq!(code, ErrorCode::InvalidLaunchTemplateNameMalformed);
        }
    }

    #[test]
    fn unknown_template_has_code_of_its_reference() {
        assert_eq!(not_found("web").code(), ErrorCode::InvalidLaunchTemplateNameNotFound);
        assert_eq!(not_found("lt-07ff4bb0369cd679c").code(), ErrorCode::InvalidLaunchTemplateIdNotFound);
        assert_eq!(not_found("lt-zz").code(), ErrorCode::InvalidLaunchTemplateIdMalformed);
    }
}
