//! Converts between wire formats and JSON values that have the members of a service model's shapes.
//!
//! In these values, a timestamp is a string in ISO 8601, and a blob is a string in Base64, whatever the protocol. A member
//! without a value is missing.

pub mod json;
pub mod query;
pub mod validate;
pub mod xml;

use crate::model::{Protocol, ShapeRef};

/// Returns the name of a structure's member in a request with form parameters.
fn request_name<'a>(protocol: Protocol, member: &'a str, reference: &'a ShapeRef) -> std::borrow::Cow<'a, str> {
    match (protocol, &reference.query_name, &reference.location_name) {
        (Protocol::Ec2, Some(name), _) => name.into(),
        (Protocol::Ec2, None, Some(name)) => capitalized(name).into(),
        (_, _, Some(name)) => name.into(),
        _ => member.into(),
    }
}

fn capitalized(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}
