//! Filters of `Describe` actions: names map to paths in the response's shapes.
//!
//! Names are combined by AND, and the values of a name by OR. `*` matches any characters, and `?` one character, unless a
//! backslash precedes it.

use serde::Deserialize;
use serde_json::Value;

use crate::error::ApiError;
use ec2::Ec2Error;

/// EC2 API Reference, `Filter`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Filter {
    pub name: String,
    pub values: Vec<String>,
}

/// A filter's name, and the path of its member in a resource. Lists on the path match if one of their elements does.
pub type Name = (&'static str, &'static str);

/// The filters of all resources with tags: `tag:KEY`, `tag-key` and `tag-value`.
const TAGS: &str = "Tags";
/// Maximum number of values of a filter.
const MAX_VALUES: usize = 200;
/// Maximum length of a value in characters.
const MAX_LENGTH: usize = 255;

/// Keeps the resources that match all filters. An unknown name is refused.
pub fn apply(resources: &mut Vec<Value>, filters: &[Filter], names: &[Name]) -> Result<(), ApiError> {
    for filter in filters {
        check(filter)?;
        let path = match (filter.name.as_str(), names.iter().find(|(name, _)| *name == filter.name)) {
            ("tag-key", _) => format!("{TAGS}.Key"),
            ("tag-value", _) => format!("{TAGS}.Value"),
            (_, Some((_, path))) => (*path).to_string(),
            (name, None) => match name.strip_prefix("tag:") {
                Some(key) => {
                    resources.retain(|resource| tag(resource, key).is_some_and(|value| matches_any(&value, filter)));
                    continue;
                }
                None => return Err(unknown(name)),
            },
        };
        let path: Vec<&str> = path.split('.').collect();
        resources.retain(|resource| has(resource, &path, filter));
    }
    Ok(())
}

/// Checks EC2's limits, because matching needs time in proportion to the number and length of the values.
fn check(filter: &Filter) -> Result<(), ApiError> {
    let is_long = |value: &&String| value.chars().count() > MAX_LENGTH;
    if filter.values.len() > MAX_VALUES {
        let rule = format!("it must have at most {MAX_VALUES} values.");
        return Err(Ec2Error::invalid_parameter("Filter", &filter.name, rule).into());
    }
    match filter.values.iter().find(is_long) {
        Some(value) => {
            let shown: String = value.chars().take(40).collect();
            let rule = format!("it must have at most {MAX_LENGTH} characters.");
            Err(Ec2Error::invalid_parameter("Filter.Value", format!("{shown}..."), rule).into())
        }
        None => Ok(()),
    }
}

fn unknown(name: &str) -> ApiError {
    let given: String = name.chars().take(100).collect();
    Ec2Error::refused(ec2::ErrorCode::InvalidParameterValue, format!("The filter '{given}' is invalid"), None).into()
}

fn tag(resource: &Value, key: &str) -> Option<String> {
    let tags = resource.get(TAGS)?.as_array()?;
    let tag = tags.iter().find(|tag| tag.get("Key").and_then(Value::as_str) == Some(key))?;
    Some(tag.get("Value")?.as_str()?.to_string())
}

fn has(value: &Value, path: &[&str], filter: &Filter) -> bool {
    match (value, path) {
        (Value::Array(values), _) => values.iter().any(|value| has(value, path, filter)),
        (Value::Object(object), [first, rest @ ..]) => object.get(*first).is_some_and(|value| has(value, rest, filter)),
        (Value::String(text), []) => matches_any(text, filter),
        (Value::Bool(_) | Value::Number(_), []) => matches_any(&value.to_string(), filter),
        _ => false,
    }
}

fn matches_any(text: &str, filter: &Filter) -> bool {
    filter.values.iter().any(|pattern| matches(text, pattern))
}

/// Returns true if a text matches a pattern with `*` and `?`. Needs time in proportion to the product of both lengths.
fn matches(text: &str, pattern: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let mut symbols = pattern.chars();
    // `ends[i]` is true if the pattern so far matches the first `i` characters.
    let mut ends = vec![false; text.len() + 1];
    ends[0] = true;
    while let Some(symbol) = symbols.next() {
        let is_escaped = symbol == '\\' && symbols.as_str().starts_with(['*', '?', '\\']);
        let symbol = if is_escaped { symbols.next().unwrap_or(symbol) } else { symbol };
        if symbol == '*' && !is_escaped {
            let first = ends.iter().position(|end| *end).unwrap_or(ends.len());
            ends[first..].fill(true);
            continue;
        }
        for index in (0..text.len()).rev() {
            ends[index + 1] = ends[index] && ((symbol == '?' && !is_escaped) || symbol == text[index]);
        }
        ends[0] = false;
    }
    ends[text.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_match_any_and_one_character() {
        for (text, pattern, expected) in [
            ("web", "web", true),
            ("web", "w*", true),
            ("web", "*b", true),
            ("web", "w?b", true),
            ("web", "w?", false),
            ("web", "*e*", true),
            ("", "*", true),
            ("", "?", false),
            ("web", "", false),
            ("a*c", "a*c", true),
            ("aab", "*ab", true),
            ("a*c", r"a\*c", true),
            ("abc", r"a\*c", false),
            ("a?", r"?\?", true),
            (r"a\b", r"a\\b", true),
            (r"a\b", r"a\b", true),
        ] {
            assert_eq!(matches(text, pattern), expected, "{text} {pattern}");
        }
    }

    #[test]
    fn names_are_combined_by_and_and_values_by_or() {
        let all = vec![
            serde_json::json!({"Id": "a", "State": {"Name": "running"}, "Tags": [{"Key": "k", "Value": "v"}]}),
            serde_json::json!({"Id": "b", "State": {"Name": "stopped"}, "Tags": [], "Groups": [{"Id": "g"}]}),
        ];
        let names: &[Name] = &[("state", "State.Name"), ("group", "Groups.Id"), ("id", "Id")];
        let found = |filters: &[(&str, &[&str])]| {
            let filter = |(name, values): &(&str, &[&str])| Filter {
                name: (*name).into(),
                values: values.iter().map(|value| (*value).into()).collect(),
            };
            let mut resources = all.clone();
            apply(&mut resources, &filters.iter().map(filter).collect::<Vec<_>>(), names).unwrap();
            resources.iter().map(|resource| resource["Id"].as_str().unwrap().to_string()).collect::<String>()
        };
        assert_eq!(found(&[("state", &["running", "stopped"])]), "ab");
        assert_eq!(found(&[("state", &["running"]), ("id", &["b"])]), "");
        assert_eq!(found(&[("tag:k", &["v*"])]), "a");
        assert_eq!(found(&[("tag-key", &["k"])]), "a");
        assert_eq!(found(&[("group", &["g"])]), "b");
        assert!(apply(&mut all.clone(), &[Filter { name: "whale".into(), values: vec![] }], names).is_err());
    }

    proptest::proptest! {
        #[test]
        fn text_matches_itself_and_star(text in "[a-c*?]{0,8}") {
            proptest::prop_assert!(matches(&text, &text));
            proptest::prop_assert!(matches(&text, "*"));
        }
    }
}
