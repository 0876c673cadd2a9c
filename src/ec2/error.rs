//! A refused request: EC2's error code, a sentence and a hint for the user.

use std::fmt;

pub use super::error_code::ErrorCode;

/// A request that violates EC2's rules. Displays as `CODE: sentence`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ec2Error {
    code: ErrorCode,
    message: String,
    hint: Option<String>,
}

impl Ec2Error {
    /// `what` is the problem, as a sentence.
    pub fn refused(code: ErrorCode, what: impl Into<String>, hint: Option<String>) -> Ec2Error {
        Ec2Error { code, message: what.into(), hint }
    }

    /// `parameter` is spelled as in the API. `rule` is the allowed values, as a sentence.
    pub fn invalid_parameter(parameter: &str, given: impl fmt::Display, rule: impl fmt::Display) -> Ec2Error {
        let what = format!("Invalid value '{given}' for {parameter}: {rule}");
        Ec2Error::refused(ErrorCode::InvalidParameterValue, what, None)
    }

    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// Returns the sentence, without the code.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns a one-line hint, or none if the message needs no hint.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Ec2Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Ec2Error {}

/// Joins names: `a`, `a or b`, `a, b or c`.
pub(crate) fn one_of<T: AsRef<str>>(names: &[T]) -> String {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    match names.split_last() {
        None => String::new(),
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_parameter_message_names_value_parameter_and_rule() {
        let error = Ec2Error::invalid_parameter("VCpus", 0, "it must be between 1 and 64.");
        assert_eq!(
            error.to_string(),
            "InvalidParameterValue: Invalid value '0' for VCpus: it must be between 1 and 64."
        );
        assert_eq!(error.hint(), None);
    }

    #[test]
    fn one_of_joins_names() {
        assert_eq!(one_of(&["a"]), "a");
        assert_eq!(one_of(&["a", "b"]), "a or b");
        assert_eq!(one_of(&["a", "b", "c"]), "a, b or c");
    }
}
