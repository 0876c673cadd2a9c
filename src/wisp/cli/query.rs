//! `--query` and `--output text`: a part of a response, selected by a JMESPath expression, as JSON or as text.
//!
//! The text has the format of the AWS CLI, so that scripts written for it work. Each object or list is a line with
//! tabs between scalars. Null is `None`, and objects of a nested list follow the member's name in capitals.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use anyhow::anyhow;
use serde::Serialize;
use serde_json::{Map, Value};

/// The format of responses for programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendering {
    /// The JMESPath expression that selects a part of each response.
    pub query: Option<String>,
    /// True for text, false for JSON.
    pub text: bool,
}

static RENDERING: OnceLock<Rendering> = OnceLock::new();

impl Rendering {
    /// Sets the format of all responses of this process. The first call counts.
    pub fn set(self) {
        // `main` sets it once, before the command runs.
        let _ = RENDERING.set(self);
    }
}

/// Checks a JMESPath expression.
///
/// # Errors
///
/// Returns what is wrong with the expression, and where.
pub fn parse(expression: &str) -> Result<String, String> {
    let expression = quote_words(expression);
    match jmespath::compile(&expression) {
        Ok(_) => Ok(expression),
        Err(error) => Err(error.to_string().trim_end().to_owned()),
    }
}

/// Quotes literals that are words, such as `` `running` ``. The specification wants JSON between backquotes, but the aws
/// CLI accepts words, and many published examples have them.
fn quote_words(expression: &str) -> String {
    let mut quoted = String::with_capacity(expression.len());
    let mut rest = expression;
    while let Some(start) = rest.find(['`', '\'', '"']) {
        let quote = &rest[start..=start];
        let Some(end) = closing(&rest[start + 1..], quote) else { break };
        let (before, content) = (&rest[..start], &rest[start + 1..][..end]);
        let is_word = quote == "`" && serde_json::from_str::<Value>(&content.replace("\\`", "`")).is_err();
        let content = if is_word { Value::from(content.trim()).to_string() } else { content.to_owned() };
        quoted.extend([before, quote, &content, quote]);
        rest = &rest[start + 1 + end + 1..];
    }
    quoted + rest
}

/// Returns the position of the first `quote` without a backslash before it.
fn closing(text: &str, quote: &str) -> Option<usize> {
    let mut is_escaped = false;
    text.char_indices().find_map(|(position, c)| {
        let is_end = !is_escaped && quote.starts_with(c);
        is_escaped = !is_escaped && c == '\\';
        is_end.then_some(position)
    })
}

/// Formats a response of this process as its options say.
///
/// # Errors
///
/// Fails if the expression cannot be applied, such as a function called with a value of a wrong type.
pub fn render(response: &impl Serialize) -> anyhow::Result<String> {
    RENDERING.get().unwrap_or(&Rendering::default()).render(response)
}

/// Returns true if responses are printed as text.
pub fn is_text() -> bool {
    RENDERING.get().is_some_and(|rendering| rendering.text)
}

impl Rendering {
    fn render(&self, response: &impl Serialize) -> anyhow::Result<String> {
        let Some(query) = &self.query else {
            return match self.text {
                true => Ok(text(&serde_json::to_value(response)?)),
                false => Ok(serde_json::to_string_pretty(response)?),
            };
        };
        let found = jmespath::compile(query).and_then(|query| query.search(response));
        let found =
            found.map_err(|error| anyhow!("cannot apply --query {query:?}: {}", error.to_string().trim_end()))?;
        let found = serde_json::to_value(found)?;
        if self.text { Ok(text(&found)) } else { Ok(serde_json::to_string_pretty(&found)?) }
    }
}

/// Formats a value as the AWS CLI does with `--output text`.
fn text(value: &Value) -> String {
    let mut lines = Vec::new();
    match value {
        Value::Object(object) => write_object(object, None, &scalar_keys(object), &mut lines),
        Value::Array(list) => write_list(list, None, &mut lines),
        value => lines.push(scalar(value)),
    }
    lines.join("\n")
}

/// Writes a line with the scalars of `keys`, in their order, then the members that are objects or lists.
fn write_object(object: &Map<String, Value>, name: Option<&str>, keys: &BTreeSet<&str>, lines: &mut Vec<String>) {
    // A line has a column for each key, so that the lines of a list's objects form a table.
    let cells = keys.iter().map(|key| object.get(*key).map_or_else(String::new, scalar));
    if !keys.is_empty() {
        lines.push(name.map(str::to_uppercase).into_iter().chain(cells).collect::<Vec<_>>().join("\t"));
    }
    let nested: BTreeSet<&String> = object.keys().filter(|key| !keys.contains(key.as_str())).collect();
    for key in nested {
        write_nested(&object[key], Some(key), lines);
    }
}

fn write_list(list: &[Value], name: Option<&str>, lines: &mut Vec<String>) {
    if list.iter().any(Value::is_object) {
        let keys = list.iter().filter_map(Value::as_object).flat_map(scalar_keys).collect();
        for item in list {
            match item {
                Value::Object(object) => write_object(object, name, &keys, lines),
                item => write_nested(item, name, lines),
            }
        }
        return;
    }
    let scalars: Vec<String> = list.iter().filter(|item| !item.is_array()).map(scalar).collect();
    match name {
        // A list of scalars that is a member has a line for each of them.
        Some(name) => lines.extend(scalars.iter().map(|scalar| format!("{}\t{scalar}", name.to_uppercase()))),
        None if !scalars.is_empty() => lines.push(scalars.join("\t")),
        None => {}
    }
    for item in list.iter().filter_map(Value::as_array) {
        write_list(item, name, lines);
    }
}

fn write_nested(value: &Value, name: Option<&str>, lines: &mut Vec<String>) {
    match value {
        Value::Object(object) => write_object(object, name, &scalar_keys(object), lines),
        Value::Array(list) => write_list(list, name, lines),
        value => lines.push(scalar(value)),
    }
}

/// Returns the names of the members that are neither objects nor lists.
fn scalar_keys(object: &Map<String, Value>) -> BTreeSet<&str> {
    let is_scalar = |value: &Value| !value.is_object() && !value.is_array();
    object.iter().filter(|(_, value)| is_scalar(value)).map(|(key, _)| key.as_str()).collect()
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn response() -> Value {
        json!({"Reservations": [{"OwnerId": "123", "Instances": [
            {"InstanceId": "i-1", "State": {"Name": "running", "Code": 16}, "Tags": [{"Key": "Name", "Value": "web"}]},
            {"InstanceId": "i-2", "KeyName": "k", "State": {"Name": "stopped", "Code": 80}, "Ports": [22, 80]},
        ]}]})
    }

    fn rendered(query: Option<&str>, text: bool) -> String {
        Rendering { query: query.map(str::to_owned), text }.render(&response()).unwrap()
    }

    #[test]
    fn query_selects_part_of_response() {
        let ids = rendered(Some("Reservations[].Instances[].InstanceId"), false);
        assert_eq!(serde_json::from_str::<Value>(&ids).unwrap(), json!(["i-1", "i-2"]));
        let stopped = "Reservations[].Instances[?State.Name=='stopped'][].InstanceId | [0]";
        assert_eq!(rendered(Some(stopped), false), "\"i-2\"");
        assert_eq!(rendered(Some("Absent"), false), "null");
    }

    // The expected lines are those that the AWS CLI prints for the same values.
    #[test]
    fn text_has_format_of_aws_cli() {
        assert_eq!(rendered(Some("Reservations[].Instances[].InstanceId"), true), "i-1\ti-2");
        assert_eq!(rendered(Some("Reservations[].Instances[].[InstanceId,KeyName]"), true), "i-1\tNone\ni-2\tk");
        assert_eq!(rendered(Some("Reservations[0].OwnerId"), true), "123");
        assert_eq!(rendered(Some("Absent"), true), "None");
        assert_eq!(rendered(Some("Absent[]"), true), "None");
        assert_eq!(rendered(Some("Reservations[?OwnerId=='x']"), true), "");
        assert_eq!(
            rendered(None, true),
            "RESERVATIONS\t123\n\
             INSTANCES\ti-1\t\n\
             STATE\t16\trunning\n\
             TAGS\tName\tweb\n\
             INSTANCES\ti-2\tk\n\
             PORTS\t22\n\
             PORTS\t80\n\
             STATE\t80\tstopped"
        );
    }

    #[test]
    fn words_between_backquotes_are_strings() {
        let stopped = parse("Reservations[].Instances[?State.Name==`stopped`][].InstanceId").unwrap();
        assert_eq!(rendered(Some(&stopped), true), "i-2");
        for unchanged in
            ["a[?b==`1`]", "a[?b==`\"x y\"`]", "a[?b=='`x`']", "\"`x`\"", "a[?b=='it\\'s `x`']", "`[\"\\`\"]`"]
        {
            assert_eq!(quote_words(unchanged), unchanged);
        }
        assert_eq!(quote_words("a[?b==`t3.nano` || c==`it's`]"), "a[?b==`\"t3.nano\"` || c==`\"it's\"`]");
        assert_eq!(quote_words("a[?b==`x"), "a[?b==`x");
    }

    #[test]
    fn errors_name_expression() {
        assert!(parse("Reservations[").unwrap_err().contains("Reservations["));
        let rendering = Rendering { query: Some("length(`1`)".to_owned()), text: false };
        assert!(format!("{:#}", rendering.render(&response()).unwrap_err()).contains("--query"));
    }
}
