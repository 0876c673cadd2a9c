//! Parser for PAX records (POSIX.1-2024, pax, "pax Extended Header"): `LENGTH KEYWORD=VALUE\n`.
//!
//! The length covers the whole record, so a value can contain any byte, including newlines.

use std::borrow::Cow;

/// PAX records in archive order. The last record with a keyword takes precedence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records(Vec<(Vec<u8>, Vec<u8>)>);

impl Records {
    /// Parses the content of an extended header. The error is a relative clause about the header.
    pub fn parse(mut data: &[u8]) -> Result<Records, String> {
        let mut records = Vec::new();
        // Some writers pad the content with NULs.
        while data.iter().any(|byte| *byte != 0) {
            let (record, rest) = split_record(data)?;
            records.push(record);
            data = rest;
        }
        Ok(Records(records))
    }

    pub fn extend(&mut self, later: Records) {
        self.0.extend(later.0);
    }

    /// Returns the total size of the keywords and values in bytes.
    pub fn size(&self) -> u64 {
        self.0.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }

    /// Returns the value of `key`. An empty value cancels earlier ones, so that the header's field applies.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        let found = self.0.iter().rev().find(|(name, _)| name == key.as_bytes());
        found.map(|(_, value)| value.as_slice()).filter(|value| !value.is_empty())
    }

    pub fn number(&self, key: &str) -> Result<Option<u64>, String> {
        self.get(key).map(|value| decimal(value).ok_or_else(|| not_a_number(key, value))).transpose()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))
    }
}

type Record = (Vec<u8>, Vec<u8>);

fn split_record(data: &[u8]) -> Result<(Record, &[u8]), String> {
    let digits = data.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let shown = shorten(&data[..data.len().min(digits.max(1) + 8)]);
    let length = decimal(&data[..digits]).and_then(|length| usize::try_from(length).ok());
    let (Some(length), Some(b' ')) = (length, data.get(digits)) else {
        return Err(format!("which has a PAX record that begins with {shown:?} instead of its length and a space"));
    };
    let Some(record) = data.get(..length) else {
        let left = data.len();
        return Err(format!("which has a PAX record of {length} bytes ({shown:?}), but only {left} are left"));
    };
    let Some(body) = record.get(digits + 1..).and_then(|body| body.strip_suffix(b"\n")) else {
        return Err(format!("which has a PAX record of {length} bytes ({shown:?}) that does not end with a newline"));
    };
    let Some(equals) = body.iter().position(|byte| *byte == b'=').filter(|at| *at > 0) else {
        return Err(format!("which has a PAX record ({shown:?}) without a keyword and a \"=\""));
    };
    Ok(((body[..equals].to_vec(), body[equals + 1..].to_vec()), &data[length..]))
}

pub fn decimal(text: &[u8]) -> Option<u64> {
    // `parse` would also accept a plus sign.
    let text = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    text.parse().ok()
}

/// Parses a time in seconds since 1970. The fraction is dropped.
pub fn seconds(text: &[u8]) -> Option<i64> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let whole = text.split(|byte| *byte == b'.').next()?;
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    Some(if negative { -seconds } else { seconds })
}

/// Returns the error for an invalid value, as a relative clause about the entry.
pub fn not_a_number(key: &str, value: &[u8]) -> String {
    format!("whose PAX record {key} is {:?} instead of a number", shorten(value))
}

fn shorten(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(&bytes[..bytes.len().min(40)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let length = (1..).find(|digits| (rest + digits).to_string().len() == *digits).unwrap() + rest;
        [format!("{length} ").as_bytes(), key, b"=", value, b"\n"].concat()
    }

    #[test]
    fn value_holds_newline_nul_and_equals_sign() {
        let value = b"a\nb=c\0d\n12 path=x\n";
        let data = [record(b"SCHILY.xattr.user.a", value), record(b"path", b"p")].concat();
        let records = Records::parse(&data).unwrap();
        assert_eq!(records.get("SCHILY.xattr.user.a"), Some(&value[..]));
        assert_eq!(records.get("path"), Some(&b"p"[..]));
    }

    #[test]
    fn later_record_replaces_earlier_and_empty_cancels() {
        let data = [record(b"path", b"a"), record(b"path", b"b"), record(b"uid", b"1"), record(b"uid", b"")].concat();
        let records = Records::parse(&data).unwrap();
        assert_eq!((records.get("path"), records.get("uid")), (Some(&b"b"[..]), None));
    }

    #[test]
    fn malformed_record_is_refused_with_text() {
        let cases: [(&[u8], &str); 8] = [
            (b"abc path=x\n", "begins with \"abc path=\""),
            (b"+9 path=x\n", "begins with"),
            (b"99999999999999999999999 path=x\n", "begins with"),
            (b"9\tpath=x\n", "begins with"),
            (b"99 path=x\n", "99 bytes (\"99 path=x\\n\"), but only 10 are left"),
            (b"9 path=xy", "does not end with a newline"),
            (b"7 path\n", "without a keyword"),
            (b"2 ", "does not end with a newline"),
        ];
        for (data, part) in cases {
            let error = Records::parse(data).unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn nul_padding_is_skipped() {
        assert_eq!(Records::parse(&[record(b"path", b"x"), vec![0; 20]].concat()).unwrap().0.len(), 1);
    }

    #[test]
    fn time_is_read_with_sign_and_without_fraction() {
        assert_eq!(seconds(b"1234567890.5"), Some(1_234_567_890));
        assert_eq!(seconds(b"-5.25"), Some(-5));
        assert_eq!(seconds(b"soon"), None);
    }

    proptest! {
        #[test]
        fn arbitrary_values_round_trip(values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..8)) {
            let data: Vec<u8> = values.iter().flat_map(|value| record(b"SCHILY.xattr.user.a", value)).collect();
            let records = Records::parse(&data).unwrap();
            prop_assert_eq!(records.iter().map(|(_, value)| value.to_vec()).collect::<Vec<_>>(), values);
        }

        #[test]
        fn arbitrary_data_never_panics(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Records::parse(&data);
        }
    }
}
