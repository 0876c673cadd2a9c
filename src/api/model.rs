//! Service models: the operations of a service and the shapes of their input and output.
//!
//! A model is a trimmed `service-2.json` of botocore. `scripts/service-models` writes it.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::OnceLock;

use flate2::read::GzDecoder;
use serde::Deserialize;

/// Shape name of a list, a map's key or value, or a member, with its name on the wire.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShapeRef {
    pub shape: String,
    pub location_name: Option<String>,
    /// Name in a request of protocol `ec2`, if it differs from the capitalized location name.
    pub query_name: Option<String>,
    #[serde(default)]
    pub flattened: bool,
    pub timestamp_format: Option<TimestampFormat>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum TimestampFormat {
    #[serde(rename = "iso8601")]
    Iso8601,
    #[serde(rename = "rfc822")]
    Rfc822,
    #[serde(rename = "unixTimestamp")]
    UnixTimestamp,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Shape {
    Structure {
        #[serde(default)]
        members: BTreeMap<String, ShapeRef>,
        #[serde(default)]
        required: Vec<String>,
    },
    List {
        member: ShapeRef,
        #[serde(default)]
        flattened: bool,
        #[serde(flatten)]
        length: Range,
    },
    Map {
        key: ShapeRef,
        value: ShapeRef,
        #[serde(default)]
        flattened: bool,
    },
    String {
        #[serde(default, rename = "enum")]
        values: Vec<String>,
        #[serde(flatten)]
        length: Range,
    },
    Integer(Range),
    Long(Range),
    Float(Range),
    Double(Range),
    Boolean,
    Timestamp,
    Blob,
}

/// Inclusive bounds of a number, of a string's length in characters or of a list's length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
pub struct Range {
    pub min: Option<f64>,
    pub max: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Form parameters and XML, as EC2 has them.
    Ec2,
    /// Form parameters and XML, as IAM, STS and Auto Scaling have them.
    Query,
    Json,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    pub api_version: String,
    pub protocol: Protocol,
    pub service_id: String,
    pub json_version: Option<String>,
    /// Prefix of the header `X-Amz-Target` of protocol `json`.
    pub target_prefix: Option<String>,
    pub xml_namespace: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// Shape names.
    pub input: Option<String>,
    pub output: Option<String>,
    /// Element around the output of protocol `query`.
    pub result_wrapper: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct Service {
    pub metadata: Metadata,
    /// `None` for an operation whose shapes were not kept.
    operations: BTreeMap<String, Option<Operation>>,
    shapes: BTreeMap<String, Shape>,
}

/// An operation that a model has.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup<'a> {
    Found(&'a Operation),
    /// The service has the operation, but the model does not include its shapes.
    NotServed,
    Unknown,
}

impl PartialEq for Operation {
    fn eq(&self, other: &Operation) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Operation {}

impl Service {
    pub fn operation(&self, name: &str) -> Lookup<'_> {
        match self.operations.get(name) {
            Some(Some(operation)) => Lookup::Found(operation),
            Some(None) => Lookup::NotServed,
            None => Lookup::Unknown,
        }
    }

    /// Returns the operations whose shapes the model has, with their names.
    pub fn operations(&self) -> impl Iterator<Item = (&str, &Operation)> {
        self.operations.iter().filter_map(|(name, operation)| Some((name.as_str(), operation.as_ref()?)))
    }

    /// Returns a shape that an operation or another shape names.
    pub fn shape(&self, name: &str) -> &Shape {
        // A test looks up every name of each embedded model.
        self.shapes.get(name).unwrap_or_else(|| panic!("the model of {} has no shape {name}", self.metadata.service_id))
    }

    fn read(compressed: &[u8]) -> Service {
        let mut text = String::new();
        GzDecoder::new(compressed).read_to_string(&mut text).expect("embedded models are compressed text");
        serde_json::from_str(&text).expect("embedded models are valid")
    }
}

macro_rules! services {
    ($($function:ident: $file:literal, $scope:literal, $doc:literal;)*) => {
        $(
            #[doc = $doc]
            pub fn $function() -> &'static Service {
                static MODEL: OnceLock<Service> = OnceLock::new();
                MODEL.get_or_init(|| Service::read(include_bytes!(concat!("models/", $file, ".json.gz"))))
            }
        )*

        /// Returns the model of a service by its name in a signature's scope.
        pub fn by_signing_name(name: &str) -> Option<&'static Service> {
            match name {
                $($scope => Some($function()),)*
                _ => None,
            }
        }

        /// Names of all services in the scope of signatures.
        pub const SIGNING_NAMES: &[&str] = &[$($scope),*];
    };
}

services! {
    ec2: "ec2", "ec2", "Returns the model of EC2.";
    iam: "iam", "iam", "Returns the model of IAM.";
    ssm: "ssm", "ssm", "Returns the model of Systems Manager.";
    sts: "sts", "sts", "Returns the model of the Security Token Service.";
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(service: &Service, name: &str, checked: &mut BTreeMap<String, ()>) {
        if checked.insert(name.to_string(), ()).is_some() {
            return;
        }
        let refs: Vec<&ShapeRef> = match service.shape(name) {
            Shape::Structure { members, required } => {
                assert!(required.iter().all(|member| members.contains_key(member)), "{name}");
                members.values().collect()
            }
            Shape::List { member, .. } => vec![member],
            Shape::Map { key, value, .. } => vec![key, value],
            _ => Vec::new(),
        };
        refs.into_iter().for_each(|reference| check(service, &reference.shape, checked));
    }

    #[test]
    fn models_have_all_shapes_that_they_name() {
        for name in SIGNING_NAMES {
            let service = by_signing_name(name).expect("listed");
            let mut checked = BTreeMap::new();
            for (_, operation) in service.operations() {
                for shape in operation.input.iter().chain(&operation.output) {
                    check(service, shape, &mut checked);
                }
            }
            assert_eq!(checked.len(), service.shapes.len(), "{name} has shapes that no operation uses");
        }
    }

    #[test]
    fn operation_is_found_not_served_or_unknown() {
        assert!(matches!(ec2().operation("RunInstances"), Lookup::Found(_)));
        assert_eq!(ec2().operation("CreateFleet"), Lookup::NotServed);
        assert_eq!(ec2().operation("CreateWhale"), Lookup::Unknown);
    }
}
