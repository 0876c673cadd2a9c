//! Checks a decoded input against the constraints of its shape: required members, enumerations, lengths and ranges.

use ec2::{Ec2Error, ErrorCode};
use serde_json::Value;

use super::request_name;
use crate::model::{Range, Service, Shape};

/// Checks an input with the shape `input`. Errors name a member as the client's request does.
pub fn check(service: &Service, input: Option<&str>, value: &Value) -> Result<(), Ec2Error> {
    input.map_or(Ok(()), |input| check_shape(service, input, value, ""))
}

fn check_shape(service: &Service, shape: &str, value: &Value, path: &str) -> Result<(), Ec2Error> {
    let joined = |name: &str| if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
    match (service.shape(shape), value) {
        (Shape::Structure { members, required }, Value::Object(object)) => {
            let name = |member: &str| {
                let reference = members.get(member);
                let name = reference.map(|reference| request_name(service.metadata.protocol, member, reference));
                joined(name.as_deref().unwrap_or(member))
            };
            if let Some(missing) = required.iter().find(|member| !object.contains_key(*member)) {
                let what = format!("The request must contain the parameter {}", name(missing));
                return Err(Ec2Error::refused(ErrorCode::MissingParameter, what, None));
            }
            let mut members = object.iter().filter_map(|(member, value)| Some((member, members.get(member)?, value)));
            members
                .try_for_each(|(member, reference, value)| check_shape(service, &reference.shape, value, &name(member)))
        }
        (Shape::List { member, length, .. }, Value::Array(values)) => {
            check_range(*length, values.len() as f64, path, "number of values", values.len())?;
            let mut values = (1..).zip(values);
            values
                .try_for_each(|(index, value)| check_shape(service, &member.shape, value, &joined(&format!("{index}"))))
        }
        (Shape::Map { value: reference, .. }, Value::Object(object)) => {
            object.iter().try_for_each(|(key, value)| check_shape(service, &reference.shape, value, &joined(key)))
        }
        (Shape::String { values, .. }, Value::String(text)) if !values.is_empty() && !values.contains(text) => {
            let given = text.chars().take(100).collect::<String>();
            let rule = match &values[..] {
                // Long enumerations, such as that of instance types, would hide the message.
                values if values.len() > 12 => "it is not one of the values of this parameter.".to_string(),
                values => format!("it must be one of {}.", values.join(", ")),
            };
            Err(Ec2Error::invalid_parameter(path, given, rule))
        }
        (Shape::String { length, .. }, Value::String(text)) => {
            let count = text.chars().count();
            check_range(*length, count as f64, path, "length in characters", count)
        }
        (
            Shape::Integer(range) | Shape::Long(range) | Shape::Float(range) | Shape::Double(range),
            Value::Number(number),
        ) => check_range(*range, number.as_f64().unwrap_or(f64::INFINITY), path, "value", number),
        _ => Ok(()),
    }
}

fn check_range(
    range: Range,
    measure: f64,
    path: &str,
    what: &str,
    given: impl std::fmt::Display,
) -> Result<(), Ec2Error> {
    let rule = match (range.min, range.max) {
        (Some(min), Some(max)) if measure < min || measure > max => format!("the {what} must be from {min} to {max}."),
        (Some(min), None) if measure < min => format!("the {what} must be at least {min}."),
        (None, Some(max)) if measure > max => format!("the {what} must be at most {max}."),
        _ => return Ok(()),
    };
    Err(Ec2Error::invalid_parameter(path, given, rule))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model;

    fn error(input: &str, value: Value) -> Option<(ErrorCode, String)> {
        let error = check(model::ec2(), Some(input), &value).err()?;
        Some((error.code(), error.message().to_string()))
    }

    #[test]
    fn missing_parameter_has_name_of_the_request() {
        let missing = error("AttachVolumeRequest", serde_json::json!({"InstanceId": "i-1", "VolumeId": "vol-1"}));
        let message = "The request must contain the parameter Device".to_string();
        assert_eq!(missing, Some((ErrorCode::MissingParameter, message)));
        let missing = error("CreateTagsRequest", serde_json::json!({"Tags": []}));
        let message = "The request must contain the parameter ResourceId".to_string();
        assert_eq!(missing, Some((ErrorCode::MissingParameter, message)));
    }

    #[test]
    fn values_outside_of_enumerations_and_ranges_are_refused() {
        let enumeration = error("CreateVolumeRequest", serde_json::json!({"VolumeType": "gp9"})).expect("refused");
        assert_eq!(enumeration.0, ErrorCode::InvalidParameterValue);
        assert!(
            enumeration.1.starts_with("Invalid value 'gp9' for VolumeType: it must be one of "),
            "{}",
            enumeration.1
        );
        let range = error("DescribeInstanceTypesRequest", serde_json::json!({"MaxResults": 1})).expect("refused");
        assert_eq!(range.1, "Invalid value '1' for MaxResults: the value must be from 5 to 100.");
        assert_eq!(error("DescribeInstanceTypesRequest", serde_json::json!({"MaxResults": 5})), None);
    }
}
