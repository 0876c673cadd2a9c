//! Escapes control characters in untrusted text before a terminal sees it.
//!
//! Names, tags, paths and error messages from a guest, an image or an archive can contain control characters. These can
//! move the cursor, set the window's title, hide text or (bidirectional overrides) display a name in a different order.
//! Wisp prints escapes such as `\x1b` and `\u{202e}` instead. Command output (`wisp exec`, `wisp run`, `wisp ssh`) and
//! `wisp console -i` are not escaped, because they are the user's own terminal sessions.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Escapes control characters, except newline and tab.
pub fn escape(text: &str) -> Cow<'_, str> {
    escape_unless(text, |c| matches!(c, '\n' | '\t'))
}

/// Escapes control characters in single-line text, including newline and tab.
pub fn escape_line(text: &str) -> Cow<'_, str> {
    escape_unless(text, |_| false)
}

/// Escapes control characters in finished output, except newline, tab and Wisp's own [styles](STYLES).
pub fn escape_output(text: &str) -> Cow<'_, str> {
    if !text.contains(is_control) {
        return Cow::Borrowed(text);
    }
    let mut output = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let style = STYLES.iter().find(|style| rest.starts_with(**style));
        let length = style.map_or(c.len_utf8(), |style| style.len());
        let (head, tail) = rest.split_at(length);
        match style {
            None if is_control(c) && !matches!(c, '\n' | '\t') => push_escaped(&mut output, c),
            _ => output.push_str(head),
        }
        rest = tail;
    }
    Cow::Owned(output)
}

/// Escapes the control characters that the JSON encoder does not escape: DEL, C1 and bidirectional controls. They occur
/// only in strings, so the value stays the same.
pub fn escape_json(json: &str) -> Cow<'_, str> {
    let is_left = |c: char| is_control(c) && c >= '\x7f';
    if !json.contains(is_left) {
        return Cow::Borrowed(json);
    }
    let mut output = String::with_capacity(json.len());
    for c in json.chars() {
        // All of these characters are in the basic multilingual plane, so four digits are enough.
        if is_left(c) {
            let _ = write!(output, "\\u{:04x}", u32::from(c));
        } else {
            output.push(c);
        }
    }
    Cow::Owned(output)
}

/// The styles that `output.rs` and its tables use.
pub const STYLES: [&str; 12] = [
    "\x1b[0m",
    "\x1b[1m",
    "\x1b[2m",
    "\x1b[22m",
    "\x1b[31m",
    "\x1b[32m",
    "\x1b[33m",
    "\x1b[39m",
    "\x1b[49m",
    "\x1b[38;5;1m",
    "\x1b[38;5;2m",
    "\x1b[38;5;3m",
];

/// Returns true for C0, DEL, C1 and the controls of the Unicode bidirectional algorithm (UAX #9).
fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escape_unless(text: &str, is_kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_escaped = |c: char| is_control(c) && !is_kept(c);
    if !text.contains(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut output = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c) { push_escaped(&mut output, c) } else { output.push(c) }
    }
    Cow::Owned(output)
}

fn push_escaped(output: &mut String, c: char) {
    let _ = match c {
        '\n' => output.write_str("\\n"),
        '\t' => output.write_str("\\t"),
        '\r' => output.write_str("\\r"),
        c if c.is_ascii() => write!(output, "\\x{:02x}", u32::from(c)),
        c => write!(output, "\\u{{{:x}}}", u32::from(c)),
    };
}

/// The maximum length of a style or character that may be split between two pieces of console output; longer ones are
/// escaped.
const LONGEST: usize = 32;

/// Escapes console output piece by piece. Keeps line endings and tabs. Drops styles (SGR, `ESC [ ... m`), which are
/// common in boot messages.
#[derive(Debug, Default)]
pub struct ConsoleFilter {
    /// An incomplete sequence at the end of the last piece, which the next piece may complete.
    pending: Vec<u8>,
}

impl ConsoleFilter {
    /// Returns printable text for `piece`, except an incomplete sequence at its end.
    pub fn filter(&mut self, piece: &[u8]) -> String {
        self.pending.extend_from_slice(piece);
        let bytes = std::mem::take(&mut self.pending);
        let (output, rest) = filtered(&bytes, false);
        self.pending = rest.to_vec();
        output
    }

    /// Returns printable text for an incomplete sequence at the end of the output.
    pub fn finish(&mut self) -> String {
        filtered(&std::mem::take(&mut self.pending), true).0
    }
}

/// Returns the printable text and, unless `is_last`, an incomplete sequence at the end.
fn filtered(bytes: &[u8], is_last: bool) -> (String, &[u8]) {
    let mut output = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(&first) = rest.first() {
        let is_open = !is_last && rest.len() < LONGEST;
        let (taken, text) = match first {
            b'\r' if rest.get(1) == Some(&b'\n') => (2, "\r\n"),
            b'\r' | 0x1b if is_open && rest.len() == 1 => break,
            b'\n' => (1, "\n"),
            b'\t' => (1, "\t"),
            0x1b if rest.get(1) == Some(&b'[') => {
                let parameters = rest[2..].iter().take(LONGEST).take_while(|byte| matches!(byte, b'0'..=b';')).count();
                match rest.get(2 + parameters) {
                    None if is_open => break,
                    Some(b'm') => (parameters + 3, ""),
                    _ => (1, "\\x1b"),
                }
            }
            _ => {
                let head = &rest[..rest.len().min(4)];
                match first_character(head) {
                    Some(c) => {
                        let mut own = [0; 4];
                        output.push_str(&escape_line(c.encode_utf8(&mut own)));
                        rest = &rest[c.len_utf8()..];
                        continue;
                    }
                    None if is_open && is_beginning(head) => break,
                    None => {
                        let _ = write!(output, "\\x{first:02x}");
                        rest = &rest[1..];
                        continue;
                    }
                }
            }
        };
        output.push_str(text);
        rest = &rest[taken..];
    }
    (output, rest)
}

/// Returns the first character of `bytes`, if it is valid.
fn first_character(bytes: &[u8]) -> Option<char> {
    let valid = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
    };
    valid.chars().next()
}

/// Returns true if more bytes could complete the first character of `bytes`.
fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns true if the text has no control characters, except newline and tab.
    fn is_harmless(text: &str) -> bool {
        !text.chars().any(|c| is_control(c) && !matches!(c, '\n' | '\t'))
    }

    const HOSTILE: &str = "a\x1b]0;title\x07b\u{9b}2Jc\x7fd\u{202e}e\rf\u{2066}g\x00";

    #[test]
    fn control_characters_are_shown_as_escapes() {
        let shown = "a\\x1b]0;title\\x07b\\u{9b}2Jc\\x7fd\\u{202e}e\\rf\\u{2066}g\\x00";
        assert_eq!(escape(HOSTILE), shown);
        assert_eq!(escape_output(HOSTILE), shown);
        assert_eq!(escape("one\n\ttwo é \u{1f600} עברית"), "one\n\ttwo é \u{1f600} עברית");
        assert_eq!(escape_line("one\n\ttwo"), "one\\n\\ttwo");
    }

    #[test]
    fn escape_output_keeps_own_styles_only() {
        assert_eq!(escape_output("\x1b[31merror:\x1b[0m \x1b[8mhidden"), "\x1b[31merror:\x1b[0m \\x1b[8mhidden");
        assert_eq!(escape("\x1b[31m"), "\\x1b[31m");
    }

    #[test]
    fn escape_json_keeps_value() {
        let text = serde_json::to_string(&[HOSTILE]).unwrap();
        let escaped = escape_json(&text);
        assert!(is_harmless(&escaped), "{escaped}");
        assert_eq!(serde_json::from_str::<[String; 1]>(&escaped).unwrap(), [HOSTILE]);
    }

    #[test]
    fn console_keeps_lines_and_drops_styles() {
        let mut filter = ConsoleFilter::default();
        let shown = filter
            .filter(b"[\x1b[0;32m  OK  \x1b[0m] Started\r\nname: \x1b]0;x\x07 \x1b[2J\rover\xc2\x9b\xff\xc3\xa9\n");
        assert_eq!(shown, "[  OK  ] Started\r\nname: \\x1b]0;x\\x07 \\x1b[2J\\rover\\u{9b}\\xffé\n");
        assert_eq!(filter.finish(), "");
    }

    #[test]
    fn console_finish_shows_incomplete_sequence() {
        for (end, shown) in
            [(&b"x\x1b"[..], "x\\x1b"), (b"x\x1b[3", "x\\x1b[3"), (b"x\r", "x\\r"), (b"x\xc3", "x\\xc3")]
        {
            let mut filter = ConsoleFilter::default();
            assert_eq!(filter.filter(end), "x");
            assert_eq!(format!("x{}", filter.finish()), shown);
        }
    }

    proptest! {
        #[test]
        fn no_output_has_control_characters(text in "\\PC*|[\\x00-\\u{ff}\\u{200e}-\\u{202f}]*") {
            prop_assert!(is_harmless(&escape(&text)));
            prop_assert!(is_harmless(&escape_line(&text)));
            let output = STYLES.iter().fold(escape_output(&text).into_owned(), |text, style| text.replace(style, ""));
            prop_assert!(is_harmless(&output));
        }

        #[test]
        fn console_filter_result_does_not_depend_on_pieces(
            bytes in proptest::collection::vec(prop_oneof![Just(0x1b), Just(b'['), Just(b'm'), Just(b'\r'), Just(b'\n'), Just(b'1'), Just(0xc2), any::<u8>()], 0..200),
            cuts in proptest::collection::vec(0_usize..200, 0..8),
        ) {
            let mut whole = ConsoleFilter::default();
            let expected = whole.filter(&bytes) + &whole.finish();
            prop_assert!(is_harmless(&expected.replace("\r\n", "\n")));
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut pieces = ConsoleFilter::default();
            let mut shown: String = cuts.windows(2).map(|cut| pieces.filter(&bytes[cut[0]..cut[1]])).collect();
            shown += &pieces.finish();
            prop_assert_eq!(shown, expected);
        }
    }
}
