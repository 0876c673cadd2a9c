//! Quotes commands for a shell, so that users can copy them from wisp's output.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Joins words into a command, and quotes those that a shell would otherwise interpret.
pub fn command<W: AsRef<OsStr>>(words: impl IntoIterator<Item = W>) -> String {
    let words: Vec<OsString> = words.into_iter().map(|word| quoted(word.as_ref())).collect();
    words.join(OsStr::new(" ")).to_string_lossy().into_owned()
}

/// Quotes a word for a shell if needed. Escapes control characters and invalid UTF-8, to protect the terminal.
pub fn quoted(word: &OsStr) -> OsString {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_./=:@,+%".contains(byte);
    let bytes = word.as_bytes();
    // zsh expands words that start with an equals sign.
    if !bytes.is_empty() && !bytes.starts_with(b"=") && bytes.iter().all(is_plain) {
        return word.to_os_string();
    }
    if word.to_str().is_none_or(|text| text.contains(char::is_control)) {
        return in_dollar_quotes(bytes).into();
    }
    let mut quoted = vec![b'\''];
    for byte in bytes {
        match byte {
            b'\'' => quoted.extend(br"'\''"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    OsString::from_vec(quoted)
}

fn in_dollar_quotes(bytes: &[u8]) -> String {
    let mut quoted = String::from("$'");
    for byte in bytes {
        match byte {
            b'\'' | b'\\' => quoted.extend(['\\', char::from(*byte)]),
            b' '..=b'~' => quoted.push(char::from(*byte)),
            // With all three octal digits, a digit that follows is not read as part of the escape.
            byte => write!(quoted, "\\{byte:03o}").expect("writing to a string cannot fail"),
        }
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_quoted_only_if_needed() {
        let quote = |text: &str| quoted(OsStr::new(text)).into_string().unwrap();
        assert_eq!(quote("a-b_c.d/e=f"), "a-b_c.d/e=f");
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
        assert_eq!(quote("=ls"), "'=ls'");
        assert_eq!(quote("größe"), "'größe'");
        assert_eq!(quote("a\x1b[2Jb'"), r"$'a\033[2Jb\''");
        assert_eq!(quoted(OsStr::from_bytes(b"\xff1")), r"$'\3771'");
    }

    #[test]
    fn command_is_its_quoted_words() {
        assert_eq!(command(["launch", "--key", "my key"]), "launch --key 'my key'");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn quoted_word_round_trips_through_shell(
            // Random bytes are seldom valid UTF-8, so also generate text, which is quoted differently.
            bytes in prop_oneof![
                prop::collection::vec(1_u8.., 0..20),
                "[ab '\"\\\\$`!~*=é]{0,20}".prop_map(String::into_bytes),
                "[\x01\x1b7a']{0,20}".prop_map(String::into_bytes),
            ],
        ) {
            let word = OsString::from_vec(bytes.clone());
            let mut script = OsString::from("printf %s ");
            script.push(quoted(&word));
            let read = Command::new("bash").args(["--noprofile", "--norc", "-c"]).arg(&script).output().unwrap();
            prop_assert_eq!(read.stdout, bytes);
        }
    }
}
