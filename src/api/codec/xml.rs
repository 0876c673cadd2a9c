//! Encodes responses and errors as XML (protocols `ec2` and `query`).

use quick_xml::Writer;
use quick_xml::escape::escape;
use quick_xml::events::{BytesEnd, BytesStart, BytesText, Event};
use serde_json::{Map, Value};

use crate::error::{ApiError, Code};
use crate::model::{Operation, Protocol, Service, Shape, ShapeRef};

/// Returns the response of an operation. `value` has the operation's output shape.
pub fn response(
    service: &Service,
    action: &str,
    operation: &Operation,
    value: &Value,
    request_id: &str,
) -> Result<String, ApiError> {
    let mut xml = Xml::new(service);
    let root = format!("{action}Response");
    xml.open_with(&root, &[("xmlns", service.metadata.xml_namespace.as_deref().unwrap_or_default())]);
    let output = operation.output.as_deref();
    if service.metadata.protocol == Protocol::Ec2 {
        xml.text_element("requestId", request_id);
        match output {
            Some(output) => xml.members_of(output, value)?,
            None => xml.text_element("return", "true"),
        }
    } else {
        if let Some(output) = output {
            let wrapper = operation.result_wrapper.clone().unwrap_or_else(|| format!("{action}Result"));
            xml.open(&wrapper);
            xml.members_of(output, value)?;
            xml.close(&wrapper);
        }
        xml.open("ResponseMetadata");
        xml.text_element("RequestId", request_id);
        xml.close("ResponseMetadata");
    }
    xml.close(&root);
    Ok(xml.finish())
}

/// Returns an error as EC2 (`ec2`) or the other services (`query`) send it.
pub fn error(service: &Service, error: &ApiError, request_id: &str) -> String {
    let mut xml = Xml::new(service);
    let content = |xml: &mut Xml| {
        xml.text_element("Code", error.code.as_str());
        xml.text_element("Message", &error.message);
    };
    if service.metadata.protocol == Protocol::Ec2 {
        ["Response", "Errors", "Error"].iter().for_each(|name| xml.open(name));
        content(&mut xml);
        ["Error", "Errors"].iter().for_each(|name| xml.close(name));
        xml.text_element("RequestID", request_id);
        xml.close("Response");
    } else {
        let namespace = service.metadata.xml_namespace.as_deref().unwrap_or_default();
        xml.open_with("ErrorResponse", &[("xmlns", namespace)]);
        xml.open("Error");
        xml.text_element("Type", if error.code.is_receiver() { "Receiver" } else { "Sender" });
        content(&mut xml);
        xml.close("Error");
        xml.text_element("RequestId", request_id);
        xml.close("ErrorResponse");
    }
    xml.finish()
}

struct Xml<'a> {
    service: &'a Service,
    writer: Writer<Vec<u8>>,
}

impl<'a> Xml<'a> {
    fn new(service: &'a Service) -> Xml<'a> {
        let writer = Writer::new(b"<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_vec());
        Xml { service, writer }
    }

    fn write(&mut self, event: Event) {
        self.writer.write_event(event).expect("a vector can be written");
    }

    fn open(&mut self, name: &str) {
        self.open_with(name, &[]);
    }

    fn open_with(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.write(Event::Start(BytesStart::new(name).with_attributes(attributes.iter().copied())));
    }

    fn close(&mut self, name: &str) {
        self.write(Event::End(BytesEnd::new(name)));
    }

    fn text_element(&mut self, name: &str, text: &str) {
        self.open(name);
        // Text of guests, such as their console output, may have characters that XML cannot have.
        let legal = text.replace(super::query::is_forbidden, "\u{fffd}");
        // Parsers turn a carriage return into a line feed, unless it is escaped (XML 1.0, section 2.11).
        let escaped = escape(&legal).replace('\r', "&#13;");
        self.write(Event::Text(BytesText::from_escaped(escaped)));
        self.close(name);
    }

    fn finish(self) -> String {
        String::from_utf8(self.writer.into_inner()).expect("only text was written")
    }

    /// Writes the members of a structure without an element around them.
    fn members_of(&mut self, shape: &str, value: &Value) -> Result<(), ApiError> {
        let (service, object) = (self.service, value.as_object());
        let (Shape::Structure { members, .. }, Some(object)) = (service.shape(shape), object) else {
            return Err(misfit(shape, value));
        };
        if let Some(name) = object.keys().find(|name| !members.contains_key(*name)) {
            return Err(misfit(&format!("{shape}.{name}"), value));
        }
        for (member, reference) in members {
            if let Some(value) = object.get(member).filter(|value| !value.is_null()) {
                let name = reference.location_name.as_deref().unwrap_or(member);
                self.element(name, reference, value)?;
            }
        }
        Ok(())
    }

    fn element(&mut self, name: &str, reference: &ShapeRef, value: &Value) -> Result<(), ApiError> {
        let service = self.service;
        match (service.shape(&reference.shape), value) {
            (Shape::Structure { .. }, _) => {
                self.open(name);
                self.members_of(&reference.shape, value)?;
                self.close(name);
            }
            (Shape::List { member, flattened, .. }, Value::Array(values)) => {
                self.list(name, member, *flattened || reference.flattened, values)?;
            }
            (Shape::Map { key, value: inner, flattened }, Value::Object(object)) => {
                self.map(name, (key, inner), *flattened || reference.flattened, object)?;
            }
            (Shape::Boolean, Value::Bool(value)) => self.text_element(name, if *value { "true" } else { "false" }),
            (Shape::Integer(_) | Shape::Long(_) | Shape::Float(_) | Shape::Double(_), Value::Number(number)) => {
                self.text_element(name, &number.to_string());
            }
            (Shape::String { .. } | Shape::Timestamp | Shape::Blob, Value::String(text)) => {
                self.text_element(name, text)
            }
            _ => return Err(misfit(&reference.shape, value)),
        }
        Ok(())
    }

    fn list(&mut self, name: &str, member: &ShapeRef, is_flattened: bool, values: &[Value]) -> Result<(), ApiError> {
        let default = if self.service.metadata.protocol == Protocol::Ec2 { "item" } else { "member" };
        if is_flattened {
            let name = member.location_name.as_deref().unwrap_or(name);
            return values.iter().try_for_each(|value| self.element(name, member, value));
        }
        self.open(name);
        let item = member.location_name.as_deref().unwrap_or(default);
        values.iter().try_for_each(|value| self.element(item, member, value))?;
        self.close(name);
        Ok(())
    }

    fn map(
        &mut self,
        name: &str,
        (key, inner): (&ShapeRef, &ShapeRef),
        is_flattened: bool,
        object: &Map<String, Value>,
    ) -> Result<(), ApiError> {
        let entry = if is_flattened { name } else { "entry" };
        if !is_flattened {
            self.open(name);
        }
        for (text, value) in object {
            self.open(entry);
            self.text_element(key.location_name.as_deref().unwrap_or("key"), text);
            self.element(inner.location_name.as_deref().unwrap_or("value"), inner, value)?;
            self.close(entry);
        }
        if !is_flattened {
            self.close(name);
        }
        Ok(())
    }
}

/// An output that does not fit its shape is a defect of the handler.
fn misfit(shape: &str, value: &Value) -> ApiError {
    let value = value.to_string().chars().take(100).collect::<String>();
    ApiError::new(Code::InternalError, format!("the response does not fit the shape {shape}: {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{self, Lookup};

    fn encode(service: &Service, action: &str, value: Value) -> Result<String, ApiError> {
        let Lookup::Found(operation) = service.operation(action) else { panic!("{action} is not served") };
        response(service, action, operation, &value, "id")
    }

    #[test]
    fn ec2_response_has_no_wrapper_and_items() {
        let tags = serde_json::json!({"Tags": [{"Key": "a<b", "Value": "\u{1}&"}]});
        let xml = encode(model::ec2(), "DescribeTags", tags).unwrap();
        let expected = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<DescribeTagsResponse \
             xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15\"><requestId>id</requestId><tagSet><item><key>a&lt;b</key>\
             <value>\u{fffd}&amp;</value></item></tagSet></DescribeTagsResponse>";
        assert_eq!(xml, expected);
        let xml = encode(model::ec2(), "CreateTags", Value::Null).unwrap();
        assert!(xml.ends_with("<requestId>id</requestId><return>true</return></CreateTagsResponse>"), "{xml}");
    }

    #[test]
    fn query_response_has_result_and_metadata() {
        let xml = encode(model::sts(), "GetCallerIdentity", serde_json::json!({"Account": "0"})).unwrap();
        let end = "><GetCallerIdentityResult><Account>0</Account></GetCallerIdentityResult><ResponseMetadata><RequestId>id\
             </RequestId></ResponseMetadata></GetCallerIdentityResponse>";
        assert!(xml.ends_with(end), "{xml}");
    }

    #[test]
    fn output_that_does_not_fit_is_refused() {
        for value in [serde_json::json!({"Whales": []}), serde_json::json!({"Tags": {}}), Value::Null] {
            assert_eq!(encode(model::ec2(), "DescribeTags", value).unwrap_err().code, Code::InternalError);
        }
    }

    #[test]
    fn errors_have_the_layout_of_their_protocol() {
        let refused = ApiError::new(Code::InvalidAction, "no");
        let ec2 = error(model::ec2(), &refused, "id");
        let expected = "<Response><Errors><Error><Code>InvalidAction</Code><Message>no</Message></Error></Errors>\
             <RequestID>id</RequestID></Response>";
        assert!(ec2.ends_with(expected), "{ec2}");
        let sts = error(model::sts(), &refused, "id");
        let expected = "><Error><Type>Sender</Type><Code>InvalidAction</Code><Message>no</Message></Error>\
             <RequestId>id</RequestId></ErrorResponse>";
        assert!(sts.ends_with(expected), "{sts}");
    }
}
