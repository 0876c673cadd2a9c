//! Tags: valid keys and values, and the maximum number per resource.
//!
//! Source: EC2 User Guide, "Tag your Amazon EC2 resources", tag restrictions. EC2 allows any character in a tag. Wisp
//! refuses control characters, because a table cannot show them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::error::{Ec2Error, ErrorCode};

/// Maximum length of a key in characters.
pub const MAX_KEY: usize = 128;
/// Maximum length of a value in characters.
pub const MAX_VALUE: usize = 256;
/// Maximum number of tags per resource.
pub const MAX_TAGS: usize = 50;

/// Keys with this prefix, in any case, are reserved for AWS.
const RESERVED: &str = "aws:";

/// A tag that a user may set. Parses `KEY=VALUE`; the value starts after the first `=`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    key: String,
    value: String,
}

impl Tag {
    pub fn new(key: &str, value: &str) -> Result<Tag, Ec2Error> {
        check_key(key)?;
        let length = value.chars().count();
        if length > MAX_VALUE {
            return Err(invalid(format!(
                "Tag value exceeds the maximum length of {MAX_VALUE} characters: the value of '{key}' has {length}."
            )));
        }
        if value.chars().any(char::is_control) {
            return Err(control_character(key));
        }
        Ok(Tag { key: key.to_owned(), value: value.to_owned() })
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn value(&self) -> &str {
        &self.value
    }
}

impl FromStr for Tag {
    type Err = Ec2Error;

    fn from_str(text: &str) -> Result<Self, Ec2Error> {
        let Some((key, value)) = text.split_once('=') else {
            let what = format!("Invalid value '{text}' for tag: it must be KEY=VALUE.");
            let hint = "Write KEY=VALUE, or `KEY=` for a tag without a value.";
            return Err(Ec2Error::refused(ErrorCode::InvalidParameterValue, what, Some(hint.into())));
        };
        Tag::new(key, value)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}={}", self.key, self.value))
    }
}

/// Checks that a user may set, change or remove a tag with this key.
pub fn check_key(key: &str) -> Result<(), Ec2Error> {
    let length = key.chars().count();
    let malformed =
        |what: String, hint: &str| Err(Ec2Error::refused(ErrorCode::InvalidTagKeyMalformed, what, Some(hint.into())));
    if key.is_empty() {
        malformed("Tag key cannot be empty.".into(), "Write KEY=VALUE, such as Name=web.")
    } else if key.chars().any(char::is_control) {
        Err(control_character(key))
    } else if is_reserved(key) {
        let what = format!("Tag keys starting with 'aws:' are reserved for internal use: '{key}'.");
        malformed(what, "Choose a key that does not start with aws:.")
    } else if length > MAX_KEY {
        let what = format!("Tag key exceeds the maximum length of {MAX_KEY} characters: '{key}' has {length}.");
        Err(invalid(what))
    } else {
        Ok(())
    }
}

fn invalid(what: String) -> Ec2Error {
    Ec2Error::refused(ErrorCode::InvalidParameterValue, what, None)
}

fn control_character(key: &str) -> Ec2Error {
    invalid(format!("Tag {key:?} contains a control character."))
}

/// Returns true if the metadata service can serve this key as the last component of a path (EC2 User Guide, "Work with
/// instance tags in instance metadata").
pub fn is_metadata_key(key: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+-=.,_:@".contains(c);
    !key.is_empty() && key.chars().all(allowed) && ![".", "..", "_index"].contains(&key)
}

/// Checks the tag keys of an instance whose metadata includes its tags.
pub fn check_metadata_keys<'a>(keys: impl IntoIterator<Item = &'a str>) -> Result<(), Ec2Error> {
    let Some(key) = keys.into_iter().find(|key| !is_metadata_key(key)) else {
        return Ok(());
    };
    let what = format!(
        "'{key}' is not a valid tag key. Tag keys must match pattern ([0-9a-zA-Z\\-_+=,.@:]{{1,255}}), and must not be a \
         reserved name ('.', '..', '_index')."
    );
    let hint = "Choose another key, or exclude tags from the metadata with InstanceMetadataTags=disabled.";
    Err(Ec2Error::refused(ErrorCode::InvalidParameterValue, what, Some(hint.into())))
}

/// Returns a resource's tags with `added` (`CreateTags`). If `current` already has a key, its value is replaced.
pub fn with_tags(
    current: &BTreeMap<String, String>,
    added: impl IntoIterator<Item = Tag>,
) -> Result<BTreeMap<String, String>, Ec2Error> {
    let mut new = BTreeMap::new();
    for Tag { key, value } in added {
        if new.contains_key(&key) {
            let what = format!("Duplicate tag key '{key}' specified.");
            let hint = "Specify each key only once.";
            return Err(Ec2Error::refused(ErrorCode::InvalidParameterValue, what, Some(hint.into())));
        }
        new.insert(key, value);
    }
    let mut tags = current.clone();
    tags.extend(new);
    // Reserved tags do not count toward the limit.
    let count = tags.keys().filter(|key| !is_reserved(key)).count();
    if count > MAX_TAGS {
        let what = format!("The maximum number of tags is {MAX_TAGS}, but the resource would have {count}.");
        let hint = "Remove some of the resource's tags first.";
        return Err(Ec2Error::refused(ErrorCode::TagLimitExceeded, what, Some(hint.into())));
    }
    Ok(tags)
}

/// Returns true if only Wisp itself sets tags with this key.
pub fn is_reserved(key: &str) -> bool {
    key.get(..RESERVED.len()).is_some_and(|start| start.eq_ignore_ascii_case(RESERVED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tag(text: &str) -> Tag {
        text.parse().expect(text)
    }

    fn refused(text: &str) -> Ec2Error {
        text.parse::<Tag>().expect_err(text)
    }

    #[test]
    fn tag_value_starts_after_first_equals_sign() {
        for (text, key, value) in [
            ("Name=web", "Name", "web"),
            ("a=b=c", "a", "b=c"),
            ("empty=", "empty", ""),
            ("with space=a, b", "with space", "a, b"),
            ("ключ=значение *", "ключ", "значение *"),
        ] {
            assert_eq!((tag(text).key(), tag(text).value()), (key, value));
            assert_eq!(tag(text).to_string(), text);
        }
    }

    #[test]
    fn lengths_are_counted_in_characters() {
        let (key, value) = ("ä".repeat(MAX_KEY), "ö".repeat(MAX_VALUE));
        assert!(Tag::new(&key, &value).is_ok());
        let error = refused(&format!("{key}ä={value}"));
        assert_eq!(error.code(), ErrorCode::InvalidParameterValue);
        let error = refused(&format!("key={value}ö"));
        assert_eq!(
            error.to_string(),
            "InvalidParameterValue: Tag value exceeds the maximum length of 256 characters: the value of 'key' has 257."
        );
    }

    #[test]
    fn invalid_tag_is_refused_with_ec2_code() {
        for (text, code) in [
            ("Name", ErrorCode::InvalidParameterValue),
            ("", ErrorCode::InvalidParameterValue),
            ("=web", ErrorCode::InvalidTagKeyMalformed),
            ("aws:x=1", ErrorCode::InvalidTagKeyMalformed),
            ("AWS:x=1", ErrorCode::InvalidTagKeyMalformed),
            ("a\nb=1", ErrorCode::InvalidParameterValue),
            ("a=\u{1b}[2J", ErrorCode::InvalidParameterValue),
        ] {
            let error = refused(text);
            assert_eq!(error.code(), code, "{text}");
            assert!(!error.to_string().contains(char::is_control), "{error:?}");
        }
        assert!(check_key("awsome").is_ok());
    }

    #[test]
    fn tag_limit_is_fifty_without_aws_tags() {
        let numbered = |from: usize, to: usize| (from..to).map(|number| tag(&format!("{number}=x")));
        let full = with_tags(&BTreeMap::new(), numbered(0, MAX_TAGS)).expect("fifty");
        assert!(with_tags(&full, [tag("0=new")]).is_ok_and(|tags| tags["0"] == "new"));
        let error = with_tags(&full, [tag("more=1")]).expect_err("fifty-one");
        assert_eq!(error.code(), ErrorCode::TagLimitExceeded);
        let mut with_own = full.clone();
        with_own.remove("0");
        with_own.insert("aws:autoscaling:groupName".to_owned(), "x".to_owned());
        assert!(with_tags(&with_own, [tag("more=1")]).is_ok());
    }

    #[test]
    fn key_unfit_for_a_path_is_refused_for_metadata() {
        for key in ["Name", "a+b-c=d.e,f_g:h@i", "aws:autoscaling:groupName", "...", "_index_", "0"] {
            assert!(is_metadata_key(key), "{key}");
        }
        for key in ["", ".", "..", "_index", "a b", "a/b", "/", " ", "ключ", "a*", "a?b", "a#b", "a%20b"] {
            assert!(!is_metadata_key(key), "{key}");
        }
        assert!(check_metadata_keys(["a", "b"]).is_ok());
        let error = check_metadata_keys(["a", "b c"]).expect_err("a space");
        assert_eq!(
            error.to_string(),
            "InvalidParameterValue: 'b c' is not a valid tag key. Tag keys must match pattern \
             ([0-9a-zA-Z\\-_+=,.@:]{1,255}), and must not be a reserved name ('.', '..', '_index')."
        );
    }

    #[test]
    fn duplicate_key_is_refused() {
        let error = with_tags(&BTreeMap::new(), [tag("a=1"), tag("a=2")]).expect_err("twice");
        assert_eq!(error.to_string(), "InvalidParameterValue: Duplicate tag key 'a' specified.");
    }

    proptest! {
        #[test]
        fn parsed_tag_displays_as_given(text in ".*") {
            if let Ok(tag) = text.parse::<Tag>() {
                prop_assert_eq!(tag.to_string(), text);
            }
        }
    }
}
