//! Verifies Signature Version 4 of requests. Source: "AWS Signature Version 4 for API requests", IAM User Guide.
//!
//! Every request must be signed, although the server listens on loopback only. Any web page that the user visits can
//! post a form to a loopback port, but cannot sign it.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::error::{ApiError, Code};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const TERMINATOR: &str = "aws4_request";
/// Maximum difference between the clocks of client and server in seconds.
const MAX_SKEW: i64 = 300;
/// Length of the date in a time of signing.
const DATE_LENGTH: usize = 8;
const TIME_FORMAT: &str = "%Y%m%dT%H%M%SZ";

type HmacSha256 = Hmac<Sha256>;

/// An access key. Debug output does not have the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKey {
    pub id: String,
    pub secret: String,
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A request as it was received.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub method: &'a str,
    /// Without the query string, still escaped.
    pub path: &'a str,
    /// Without the question mark, still escaped.
    pub query: &'a str,
    /// In any order. Names may have any case, and may repeat.
    pub headers: &'a [(String, String)],
    pub body: &'a [u8],
}

impl Request<'_> {
    fn header(&self, name: &str) -> Option<String> {
        let mut values = self.headers.iter().filter(|(given, _)| given.eq_ignore_ascii_case(name)).peekable();
        values.peek()?;
        Some(values.map(|(_, value)| normalized(value)).collect::<Vec<_>>().join(","))
    }
}

/// The scope of a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Eight digits.
    pub date: String,
    pub region: String,
    pub service: String,
}

/// A parsed `Authorization` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    pub key_id: String,
    pub scope: Scope,
    signed_headers: Vec<String>,
    signature: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("The request is not signed.")]
    Missing,
    #[error("The Authorization header is invalid: {0}.")]
    Malformed(&'static str),
    #[error(
        "'{0}' is not the access key of this Wisp data directory. This is Wisp, not AWS: run `wisp serve env`, or \
         start the client with `wisp aws`."
    )]
    UnknownKey(String),
    #[error(
        "The signature does not match: the secret access key is not the one of this Wisp data directory, or the request \
         was changed. This is Wisp, not AWS: run `wisp serve env` for the key."
    )]
    Mismatch,
    #[error("The request was signed at {signed}, more than {MAX_SKEW} seconds from this host's time {now}.")]
    Skewed { signed: String, now: String },
}

impl SignatureError {
    /// Returns the error that the clients of a service know.
    pub fn for_service(&self, service: &str) -> ApiError {
        let code = match self {
            SignatureError::Skewed { .. } => Code::RequestExpired,
            _ if service == "ec2" => Code::AuthFailure,
            SignatureError::Missing | SignatureError::Malformed(_) => Code::IncompleteSignature,
            SignatureError::UnknownKey(_) => Code::InvalidClientTokenId,
            SignatureError::Mismatch => Code::SignatureDoesNotMatch,
        };
        ApiError::new(code, self.to_string())
    }
}

impl Authorization {
    /// Parses the `Authorization` header.
    pub fn of(request: &Request) -> Result<Authorization, SignatureError> {
        let header = request.header("authorization").ok_or(SignatureError::Missing)?;
        let malformed = SignatureError::Malformed;
        let fields = header.strip_prefix(ALGORITHM).ok_or(malformed("it must begin with AWS4-HMAC-SHA256"))?;
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for (name, value) in fields.split(',').filter_map(|field| field.trim().split_once('=')) {
            match name {
                "Credential" => credential = Some(value),
                "SignedHeaders" => signed_headers = Some(value),
                "Signature" => signature = Some(value),
                _ => return Err(malformed("it has an unknown field")),
            }
        }
        let credential = credential.ok_or(malformed("Credential is missing"))?;
        let [key_id, date, region, service, TERMINATOR] = credential.split('/').collect::<Vec<_>>()[..] else {
            return Err(malformed("Credential must be KEY/DATE/REGION/SERVICE/aws4_request"));
        };
        let signed_headers = signed_headers.ok_or(malformed("SignedHeaders is missing"))?;
        let signature = signature.and_then(unhex).ok_or(malformed("Signature is missing or not hexadecimal"))?;
        Ok(Authorization {
            key_id: key_id.into(),
            scope: Scope { date: date.into(), region: region.into(), service: service.into() },
            signed_headers: signed_headers.split(';').map(str::to_ascii_lowercase).collect(),
            signature,
        })
    }

    /// Verifies the signature in constant time, and the time of signing against `now`.
    pub fn verify(&self, request: &Request, key: &AccessKey, now: jiff::Timestamp) -> Result<(), SignatureError> {
        if self.key_id != key.id {
            return Err(SignatureError::UnknownKey(self.key_id.chars().take(64).collect()));
        }
        let signs = |name: &str| self.signed_headers.iter().any(|signed| signed == name);
        if !signs("host") || !signs("x-amz-date") {
            return Err(SignatureError::Malformed("the headers host and x-amz-date must be signed"));
        }
        let unsigned = request.headers.iter().map(|(name, _)| name.to_ascii_lowercase());
        if unsigned.filter(|name| name.starts_with("x-amz-")).any(|name| !signs(&name)) {
            return Err(SignatureError::Malformed("all headers whose names begin with x-amz- must be signed"));
        }
        let time = request.header("x-amz-date").ok_or(SignatureError::Malformed("the header x-amz-date is missing"))?;
        let signed = jiff::civil::DateTime::strptime(TIME_FORMAT, &time);
        let signed = signed.and_then(|signed| signed.to_zoned(jiff::tz::TimeZone::UTC));
        let signed = signed.map_err(|_| SignatureError::Malformed("the header x-amz-date is not a time"))?.timestamp();
        if time.get(..DATE_LENGTH) != Some(self.scope.date.as_str()) {
            return Err(SignatureError::Malformed("the date of Credential differs from x-amz-date"));
        }
        let string =
            format!("{ALGORITHM}\n{time}\n{}\n{}", self.scope(), hex(&Sha256::digest(self.canonical(request))));
        let mut mac = hmac(&self.signing_key(key));
        mac.update(string.as_bytes());
        mac.verify_slice(&self.signature).map_err(|_| SignatureError::Mismatch)?;
        if (now.as_second() - signed.as_second()).abs() > MAX_SKEW {
            let [signed, now] = [signed, now].map(|time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            return Err(SignatureError::Skewed { signed, now });
        }
        Ok(())
    }

    fn scope(&self) -> String {
        let Scope { date, region, service } = &self.scope;
        format!("{date}/{region}/{service}/{TERMINATOR}")
    }

    fn signing_key(&self, key: &AccessKey) -> Vec<u8> {
        let Scope { date, region, service } = &self.scope;
        let secret = format!("AWS4{}", key.secret).into_bytes();
        [date, region, service, TERMINATOR].iter().fold(secret, |key, part| {
            let mut mac = hmac(&key);
            mac.update(part.as_bytes());
            mac.finalize().into_bytes().to_vec()
        })
    }

    fn canonical(&self, request: &Request) -> String {
        let headers: String = self
            .signed_headers
            .iter()
            .map(|name| format!("{name}:{}\n", request.header(name).unwrap_or_default()))
            .collect();
        let (query, signed, body) =
            (canonical_query(request.query), self.signed_headers.join(";"), hex(&Sha256::digest(request.body)));
        format!("{}\n{}\n{query}\n{headers}\n{signed}\n{body}", request.method, request.path)
    }
}

fn hmac(key: &[u8]) -> HmacSha256 {
    HmacSha256::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// Trims a header's value, and replaces each run of spaces by one.
fn normalized(value: &str) -> String {
    value.split(' ').filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ").trim().to_string()
}

fn canonical_query(query: &str) -> String {
    let mut pairs: Vec<_> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .flat_map(|pair| form_urlencoded::parse(pair.as_bytes()))
        .map(|(name, value)| (escape(&name), escape(&value)))
        .collect();
    pairs.sort();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

/// Escapes all bytes but the unreserved ones of RFC 3986, section 2.3.
fn escape(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let digits = digits.filter(|digits| digits.len() == 64)?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    // A request that botocore 1.44.8 signed.
    const TIME: &str = "20261130T104609Z";

    fn key() -> AccessKey {
        AccessKey { id: "AKIDEXAMPLE".into(), secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into() }
    }

    fn headers(authorization: &str) -> Vec<(String, String)> {
        let authorization = authorization.to_string();
        [
            ("Host", "127.0.0.1:4566".to_string()),
            ("Content-Type", "application/x-www-form-urlencoded; charset=utf-8".to_string()),
            ("X-Amz-Date", TIME.to_string()),
            ("Authorization", authorization),
        ]
        .map(|(name, value)| (name.to_string(), value))
        .to_vec()
    }

    const BODY: &[u8] = b"Action=DescribeInstances&Version=2016-11-15";
    const AUTHORIZATION: &str = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261130/us-east-1/ec2/aws4_request, SignedHeaders=content-type;host;x-amz-date, \
         Signature=b9e91f2cb9bac442cf1fbb5a7d3943b904072a03f534ef5d33a8c70b13757839";

    fn verify(authorization: &str, query: &str, body: &[u8], key: &AccessKey, now: &str) -> Result<(), SignatureError> {
        let headers = headers(authorization);
        let request = Request { method: "POST", path: "/", query, headers: &headers, body };
        let now = now.parse().expect("a time");
        Authorization::of(&request)?.verify(&request, key, now)
    }

    #[test]
    fn signature_of_botocore_is_verified() {
        assert_eq!(verify(AUTHORIZATION, "", BODY, &key(), "2026-11-30T10:50:00Z"), Ok(()));
    }

    #[test]
    fn changed_requests_and_other_keys_are_refused() {
        let now = "2026-11-30T10:46:09Z";
        let other = AccessKey { secret: "other".into(), ..key() };
        assert_eq!(verify(AUTHORIZATION, "", b"Action=RunInstances", &key(), now), Err(SignatureError::Mismatch));
        assert_eq!(verify(AUTHORIZATION, "a=b", BODY, &key(), now), Err(SignatureError::Mismatch));
        assert_eq!(verify(AUTHORIZATION, "", BODY, &other, now), Err(SignatureError::Mismatch));
        let unknown = AccessKey { id: "AKIDOTHER".into(), ..key() };
        let expected = Err(SignatureError::UnknownKey("AKIDEXAMPLE".into()));
        assert_eq!(verify(AUTHORIZATION, "", BODY, &unknown, now), expected);
    }

    #[test]
    fn old_and_future_signatures_are_refused() {
        for now in ["2026-11-30T10:51:10Z", "2026-11-30T10:41:08Z"] {
            let refused = verify(AUTHORIZATION, "", BODY, &key(), now);
            assert!(matches!(refused, Err(SignatureError::Skewed { .. })), "{refused:?}");
        }
    }

    #[test]
    fn incomplete_authorization_is_refused() {
        let now = "2026-11-30T10:46:09Z";
        let without_host = AUTHORIZATION.replace("host;", "");
        let bad =
            ["Basic abc", "AWS4-HMAC-SHA256 Credential=a/b", &without_host, &AUTHORIZATION[..AUTHORIZATION.len() - 1]];
        for authorization in bad {
            let refused = verify(authorization, "", BODY, &key(), now);
            assert!(matches!(refused, Err(SignatureError::Malformed(_))), "{authorization}: {refused:?}");
        }
    }

    #[test]
    fn query_is_sorted_and_escaped_once() {
        assert_eq!(canonical_query("b=2&a=%2f+c&a=%2F&e"), "a=%2F&a=%2F%20c&b=2&e=");
    }

    #[test]
    fn secret_is_not_printed() {
        assert!(!format!("{:?}", key()).contains("wJalr"));
    }
}
