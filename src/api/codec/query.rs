//! Decodes form parameters (protocols `ec2` and `query`).
//!
//! A name is a path: `Filter.1.Value.2`. Lists of `ec2` have numbers only; those of `query` have `member` before each
//! number. Numbers need not start at 1 and may have gaps. Sources: AWS Query protocol and EC2 Query protocol of Smithy.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ec2::{Ec2Error, ErrorCode};
use serde_json::{Map, Number, Value};

use super::request_name;
use crate::error::{ApiError, Code};
use crate::model::{Protocol, Service, Shape, ShapeRef};

/// Maximum number of parameters, and of names in the path of one.
const MAX_PARAMETERS: usize = 10_000;
const MAX_DEPTH: usize = 12;
/// Parameters of every request, which no input shape has.
const COMMON: [&str; 2] = ["Action", "Version"];

/// Parameters as a tree of the names in their paths.
#[derive(Debug, Default)]
struct Node {
    value: Option<String>,
    children: BTreeMap<String, Node>,
}

/// Form parameters of a request.
#[derive(Debug)]
pub struct Parameters {
    root: Node,
}

impl Parameters {
    /// Parses a body or query string in `application/x-www-form-urlencoded`.
    pub fn parse(form: &[u8]) -> Result<Parameters, ApiError> {
        Parameters::collect(form_urlencoded::parse(form))
    }

    fn collect<T: AsRef<str>>(pairs: impl Iterator<Item = (T, T)>) -> Result<Parameters, ApiError> {
        let malformed = |what: String| ApiError::new(Code::MalformedQueryString, what);
        let mut root = Node::default();
        for (count, (name, value)) in pairs.enumerate() {
            let (name, value) = (name.as_ref(), value.as_ref());
            if count == MAX_PARAMETERS {
                return Err(malformed(format!("The request has more than {MAX_PARAMETERS} parameters.")));
            }
            if name.split('.').count() > MAX_DEPTH {
                return Err(malformed(format!("A parameter has more than {MAX_DEPTH} parts: {}.", shortened(name))));
            }
            if value.contains(is_forbidden) {
                let what = format!("The parameter {} has a control character.", shortened(name));
                return Err(Ec2Error::refused(ErrorCode::InvalidParameterValue, what, None).into());
            }
            let node = name.split('.').fold(&mut root, |node, part| node.children.entry(part.to_string()).or_default());
            if node.value.replace(value.to_string()).is_some() {
                return Err(malformed(format!("The parameter {} occurs twice.", shortened(name))));
            }
        }
        Ok(Parameters { root })
    }

    /// Returns a parameter that every request has: `Action` or `Version`.
    pub fn common(&self, name: &str) -> Option<&str> {
        self.root.children.get(name)?.value.as_deref()
    }

    /// Returns the input with the shape `input`. Refuses parameters that the shape does not have.
    pub fn decode(mut self, service: &Service, input: Option<&str>) -> Result<Value, ApiError> {
        COMMON.iter().for_each(|name| drop(self.root.children.remove(*name)));
        let decoder = Decoder { service, protocol: service.metadata.protocol };
        match input.map(|name| service.shape(name)) {
            Some(Shape::Structure { members, .. }) => decoder
                .structure(members, self.root, "")
                .map(|value| value.unwrap_or_else(|| Value::Object(Map::new()))),
            _ => refuse_rest(&self.root, "").map(|()| Value::Object(Map::new())),
        }
    }
}

/// Returns true for characters that XML 1.0 cannot have, not even escaped (section 2.2).
pub(super) fn is_forbidden(character: char) -> bool {
    matches!(character, '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}')
}

fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

fn unknown(path: &str) -> ApiError {
    ApiError::new(Code::UnknownParameter, format!("The parameter {} is not recognized", shortened(path)))
}

fn joined(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}

/// Fails if a node has a value or children, which no shape describes.
fn refuse_rest(node: &Node, path: &str) -> Result<(), ApiError> {
    if node.value.is_some() {
        return Err(unknown(path));
    }
    node.children.iter().try_for_each(|(name, child)| refuse_rest(child, &joined(path, name)))
}

struct Decoder<'a> {
    service: &'a Service,
    protocol: Protocol,
}

impl Decoder<'_> {
    /// Returns `None` if the node has no values.
    fn value(&self, reference: &ShapeRef, node: Node, path: &str) -> Result<Option<Value>, ApiError> {
        match self.service.shape(&reference.shape) {
            Shape::Structure { members, .. } => self.structure(members, node, path),
            Shape::List { member, flattened, .. } => self.list(member, *flattened, node, path),
            Shape::Map { key, value, flattened } => self.map(key, value, *flattened, node, path),
            scalar => self.scalar(scalar, node, path),
        }
    }

    fn structure(
        &self,
        members: &BTreeMap<String, ShapeRef>,
        mut node: Node,
        path: &str,
    ) -> Result<Option<Value>, ApiError> {
        let mut object = Map::new();
        for (member, reference) in members {
            let name = self.name(member, reference);
            let Some(child) = node.children.remove(&name) else { continue };
            if let Some(value) = self.value(reference, child, &joined(path, &name))? {
                object.insert(member.clone(), value);
            }
        }
        let is_absent = object.is_empty() && node.value.as_deref().is_none_or(str::is_empty);
        node.value = node.value.filter(|value| !value.is_empty());
        refuse_rest(&node, path)?;
        Ok((!is_absent).then_some(Value::Object(object)))
    }

    /// Returns the name of a member. A flattened list of `query` has the name of its elements.
    fn name(&self, member: &str, reference: &ShapeRef) -> String {
        if let (Protocol::Query, Shape::List { member: element, flattened: true, .. }) =
            (self.protocol, self.service.shape(&reference.shape))
            && let Some(name) = &element.location_name
        {
            return name.clone();
        }
        request_name(self.protocol, member, reference).into_owned()
    }

    fn list(&self, element: &ShapeRef, is_flattened: bool, node: Node, path: &str) -> Result<Option<Value>, ApiError> {
        let (value, mut elements, mut path) = (node.value, node.children, path.to_string());
        if self.protocol == Protocol::Query && !is_flattened && !elements.is_empty() {
            let name = element.location_name.as_deref().unwrap_or("member");
            let inner = elements.remove(name);
            refuse_rest(&Node { value: None, children: elements }, &path)?;
            let Some(inner) = inner else { return Ok(None) };
            (elements, path) = (inner.children, joined(&path, name));
        }
        let is_empty = match value.as_deref() {
            None => false,
            // An empty list of `query`, and an absent one of `ec2`.
            Some("") => elements.is_empty(),
            Some(_) => return Err(unknown(&path)),
        };
        let mut numbered = Vec::new();
        for (number, node) in elements {
            let Ok(index) = number.parse::<u32>() else { return Err(unknown(&joined(&path, &number))) };
            numbered.push((index, number, node));
        }
        numbered.sort_by_key(|(index, ..)| *index);
        let mut values = Vec::new();
        for (_, number, node) in numbered {
            values.extend(self.value(element, node, &joined(&path, &number))?);
        }
        let is_absent = values.is_empty() && !(is_empty && self.protocol == Protocol::Query);
        Ok((!is_absent).then_some(Value::Array(values)))
    }

    fn map(
        &self,
        key: &ShapeRef,
        value: &ShapeRef,
        is_flattened: bool,
        node: Node,
        path: &str,
    ) -> Result<Option<Value>, ApiError> {
        let (mut entries, mut path) = (node.children, path.to_string());
        if !is_flattened {
            let inner = entries.remove("entry");
            refuse_rest(&Node { value: None, children: entries }, &path)?;
            let Some(inner) = inner else { return Ok(None) };
            (entries, path) = (inner.children, joined(&path, "entry"));
        }
        let mut object = Map::new();
        for (number, mut entry) in entries {
            let path = joined(&path, &number);
            let mut part = |reference: &ShapeRef, default: &str| {
                let name = reference.location_name.as_deref().unwrap_or(default);
                let node = entry.children.remove(name).unwrap_or_default();
                self.value(reference, node, &joined(&path, name))
            };
            let key = part(key, "key")?;
            let value = part(value, "value")?;
            refuse_rest(&entry, &path)?;
            if let (Some(Value::String(key)), Some(value)) = (key, value) {
                object.insert(key, value);
            }
        }
        Ok(Some(Value::Object(object)))
    }

    fn scalar(&self, shape: &Shape, node: Node, path: &str) -> Result<Option<Value>, ApiError> {
        let Node { value, children } = node;
        refuse_rest(&Node { value: None, children }, path)?;
        let Some(text) = value else { return Ok(None) };
        // Clients of EC2 send absent parameters with an empty value.
        if text.is_empty() && (self.protocol == Protocol::Ec2 || !matches!(shape, Shape::String { .. })) {
            return Ok(None);
        }
        let invalid = |rule: &str| ApiError::from(Ec2Error::invalid_parameter(path, shortened(&text), rule));
        let number = || text.parse::<f64>().ok().and_then(Number::from_f64).map(Value::Number);
        let value = match shape {
            Shape::Integer(_) => {
                text.parse::<i32>().map(Value::from).map_err(|_| invalid("it must be a 32-bit integer."))?
            }
            Shape::Long(_) => text.parse::<i64>().map(Value::from).map_err(|_| invalid("it must be an integer."))?,
            Shape::Float(_) | Shape::Double(_) => number().ok_or_else(|| invalid("it must be a number."))?,
            Shape::Boolean if text.eq_ignore_ascii_case("true") => Value::Bool(true),
            Shape::Boolean if text.eq_ignore_ascii_case("false") => Value::Bool(false),
            Shape::Boolean => return Err(invalid("it must be true or false.")),
            Shape::Timestamp => {
                let time = super::json::timestamp(&Value::String(text.clone()));
                time.ok_or_else(|| invalid("it must be a time such as 2026-11-30T10:46:09Z."))?
            }
            Shape::Blob if BASE64_STANDARD.decode(&text).is_err() => return Err(invalid("it must be Base64.")),
            _ => Value::String(text),
        };
        Ok(Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{self, Lookup};

    fn decode(service: &Service, action: &str, form: &str) -> Result<Value, ApiError> {
        let Lookup::Found(operation) = service.operation(action) else { panic!("{action} is not served") };
        Parameters::parse(form.as_bytes())?.decode(service, operation.input.as_deref())
    }

    #[test]
    fn lists_are_ordered_by_number_and_may_have_gaps() {
        let form = "Action=DescribeInstances&Version=2016-11-15&InstanceId.10=i-b&InstanceId.2=i-a\
                    &Filter.1.Name=tag%3AName&Filter.1.Value.7=a+b";
        let value = decode(model::ec2(), "DescribeInstances", form).unwrap();
        let filters = serde_json::json!([{"Name": "tag:Name", "Values": ["a b"]}]);
        assert_eq!(value, serde_json::json!({"InstanceIds": ["i-a", "i-b"], "Filters": filters}));
    }

    #[test]
    fn empty_values_are_absent() {
        let value = decode(model::ec2(), "RunInstances", "SubnetId=&UserData=&MinCount=1&Placement.Tenancy=").unwrap();
        assert_eq!(value, serde_json::json!({"MinCount": 1}));
    }

    #[test]
    fn unknown_parameters_are_refused_by_name() {
        for (form, path) in [
            ("Whale=1", "Whale"),
            ("InstanceId.x=1", "InstanceId.x"),
            ("Filter.1.Name.3=a", "Filter.1.Name.3"),
            ("InstanceId=i-1", "InstanceId"),
            ("Filter.1.Nome=a", "Filter.1.Nome"),
        ] {
            let error = decode(model::ec2(), "DescribeInstances", form).unwrap_err();
            assert_eq!(error, unknown(path), "{form}");
        }
    }

    #[test]
    fn values_of_the_wrong_type_are_refused() {
        for form in ["MinCount=x", "EbsOptimized=yes", "MinCount=1.5", "UserData=%01"] {
            let error = decode(model::ec2(), "RunInstances", form).unwrap_err();
            assert_eq!(error.code, Code::Ec2(ErrorCode::InvalidParameterValue), "{form}");
        }
    }

    #[test]
    fn repeated_deep_and_too_many_parameters_are_refused() {
        let deep = vec!["a"; MAX_DEPTH + 1].join(".");
        let many: String = (0..=MAX_PARAMETERS).map(|n| format!("InstanceId.{n}=i&")).collect();
        for form in ["MaxResults=5&MaxResults=6", &format!("{deep}=1"), many.trim_end_matches('&')] {
            let error = decode(model::ec2(), "DescribeInstances", form).unwrap_err();
            assert_eq!(error.code, Code::MalformedQueryString);
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_forms_never_panic(form in "[A-Za-z]{0,9}(\\.[0-9A-Za-z]{0,4}){0,4}=[ -~]{0,9}(&[A-Za-z.0-9]{0,20}=[ -~]{0,9}){0,4}") {
            for (action, _) in model::ec2().operations().take(20) {
                let _ = decode(model::ec2(), action, &form);
            }
        }
    }
}
