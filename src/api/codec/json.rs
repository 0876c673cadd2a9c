//! Converts JSON bodies (protocol `json`). Only timestamps differ from the values in this crate: on the wire they are
//! numbers of seconds.

use ec2::Ec2Error;
use serde_json::{Map, Value};

use crate::error::{ApiError, Code};
use crate::model::{Service, Shape, ShapeRef};

/// Maximum nesting of a request.
const MAX_DEPTH: usize = 32;

/// Decodes a request body. Refuses members that the shape `input` does not have.
pub fn decode(service: &Service, input: Option<&str>, body: &[u8]) -> Result<Value, ApiError> {
    let malformed = |error: serde_json::Error| ApiError::new(Code::SerializationException, error.to_string());
    let value: Value =
        if body.is_empty() { Value::Object(Map::new()) } else { serde_json::from_slice(body).map_err(malformed)? };
    match input {
        Some(input) => convert(service, input, value, "", Direction::Request, 0),
        None => Ok(Value::Object(Map::new())),
    }
}

/// Encodes a value that has the shape `output`.
pub fn encode(service: &Service, output: Option<&str>, value: Value) -> Result<String, ApiError> {
    let value = match output {
        Some(output) => convert(service, output, value, "", Direction::Response, 0)?,
        None => Value::Object(Map::new()),
    };
    Ok(value.to_string())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Request,
    Response,
}

/// Returns a timestamp in ISO 8601, from a string or a number of seconds since 1970.
pub(super) fn timestamp(value: &Value) -> Option<Value> {
    let time = match value {
        Value::String(text) => text.parse::<jiff::Timestamp>().ok().or_else(|| seconds(text.parse().ok()?))?,
        Value::Number(number) => seconds(number.as_f64()?)?,
        _ => return None,
    };
    Some(Value::String(time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()))
}

fn seconds(seconds: f64) -> Option<jiff::Timestamp> {
    // Conversions from floating point saturate, and out-of-range times fail.
    jiff::Timestamp::from_millisecond((seconds * 1000.0).round() as i64).ok()
}

fn convert(
    service: &Service,
    shape: &str,
    value: Value,
    path: &str,
    direction: Direction,
    depth: usize,
) -> Result<Value, ApiError> {
    let wrong = || ApiError::new(Code::SerializationException, format!("Wrong type or value of {}.", named(path)));
    if depth > MAX_DEPTH {
        return Err(wrong());
    }
    let inner = |reference: &ShapeRef, value, name: &str| {
        convert(service, &reference.shape, value, &format!("{path}.{name}"), direction, depth + 1)
    };
    match (service.shape(shape), value) {
        (Shape::Structure { members, .. }, Value::Object(object)) => {
            let mut converted = Map::new();
            for (name, value) in object.into_iter().filter(|(_, value)| !value.is_null()) {
                let Some(reference) = members.get(&name) else {
                    let what = format!("The parameter {} is not recognized", named(&format!("{path}.{name}")));
                    return Err(ApiError::new(Code::UnknownParameter, what));
                };
                converted.insert(name.clone(), inner(reference, value, &name)?);
            }
            Ok(Value::Object(converted))
        }
        (Shape::List { member, .. }, Value::Array(values)) => {
            let values = values.into_iter().enumerate().map(|(index, value)| inner(member, value, &index.to_string()));
            values.collect::<Result<_, _>>().map(Value::Array)
        }
        (Shape::Map { value: reference, .. }, Value::Object(object)) => {
            let entries = object.into_iter().map(|(key, value)| Ok((key.clone(), inner(reference, value, &key)?)));
            entries.collect::<Result<_, ApiError>>().map(Value::Object)
        }
        (Shape::Timestamp, value) if direction == Direction::Request => timestamp(&value).ok_or_else(wrong),
        (Shape::Timestamp, Value::String(text)) => {
            let time: jiff::Timestamp = text.parse().map_err(|_| wrong())?;
            Ok(serde_json::json!(time.as_millisecond() as f64 / 1000.0))
        }
        (Shape::Integer(_), value) if value.as_i64().is_some_and(|value| i32::try_from(value).is_ok()) => Ok(value),
        (Shape::Long(_), value) if value.is_i64() || value.is_u64() => Ok(value),
        (Shape::Float(_) | Shape::Double(_), value @ Value::Number(_)) => Ok(value),
        (Shape::Boolean, value @ Value::Bool(_)) => Ok(value),
        (Shape::String { .. } | Shape::Blob, Value::String(text)) => {
            if direction == Direction::Request && text.contains(super::query::is_forbidden) {
                let rule = "it must not have control characters.";
                return Err(Ec2Error::invalid_parameter(named(path), text.escape_default(), rule).into());
            }
            Ok(Value::String(text))
        }
        _ => Err(wrong()),
    }
}

fn named(path: &str) -> &str {
    if path.is_empty() { "the body" } else { path.trim_start_matches('.') }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model;

    #[test]
    fn timestamps_are_numbers_on_the_wire() {
        let text = serde_json::json!("2026-11-30T10:46:09.500Z");
        assert_eq!(timestamp(&serde_json::json!(1_796_035_569.5)), Some(text.clone()));
        assert_eq!(timestamp(&serde_json::json!("1796035569.5")), Some(text.clone()));
        assert_eq!(timestamp(&text), Some(text));
        assert_eq!(timestamp(&serde_json::json!("yesterday")), None);
        assert_eq!(timestamp(&serde_json::json!(1e300)), None);
    }

    #[test]
    fn unknown_members_and_wrong_types_are_refused() {
        let decode = |body: &str| decode(model::ssm(), Some("GetParameterRequest"), body.as_bytes());
        assert_eq!(decode(r#"{"Name": "/a", "WithDecryption": null}"#).unwrap(), serde_json::json!({"Name": "/a"}));
        assert_eq!(decode(r#"{"Nome": "/a"}"#).unwrap_err().code, Code::UnknownParameter);
        for body in [r#"{"Name": 7}"#, r#"{"Name": ["a"]}"#, "[]", "{", r#"{"Name": {}}"#] {
            assert_eq!(decode(body).unwrap_err().code, Code::SerializationException, "{body}");
        }
    }
}
