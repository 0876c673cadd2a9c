//! Key pairs: names, types and EC2's fingerprints. `node::key` generates and parses keys.
//!
//! Sources: EC2 API Reference, `CreateKeyPair`, `ImportKeyPair`, `KeyPairInfo`; EC2 User Guide, "Verify the
//! fingerprint of your key pair".

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use md5::Md5;
use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::error::{Ec2Error, ErrorCode};
use super::id::{self, KeyPair};

/// Maximum length of a key pair's name in characters.
pub const MAX_NAME: usize = 255;

pub fn not_found(name: &str) -> Ec2Error {
    id::not_found::<KeyPair>(name)
}

pub fn duplicate(name: &KeyName) -> Ec2Error {
    let hint = "Choose another name. `wisp key ls` lists the names in use.";
    let what = format!("The keypair '{name}' already exists.");
    Ec2Error::refused(ErrorCode::InvalidKeyPairDuplicate, what, Some(hint.into()))
}

/// Returns the error for text that is not a public key, or is one of a type that EC2 does not support.
pub fn invalid_public_key<T: fmt::Display>(what: T) -> Ec2Error {
    let hint = "Specify the file of an RSA or ED25519 public key, such as ~/.ssh/id_ed25519.pub.";
    invalid_format(what, hint)
}

/// Returns the error for a private key where a public key is expected.
pub fn refused_private_key() -> Ec2Error {
    let hint = "Never share a private key. `ssh-keygen -y -f FILE` prints its public key.";
    invalid_format("it is a private key", hint)
}

fn invalid_format(what: impl fmt::Display, hint: &str) -> Ec2Error {
    let what = format!("Key is not in valid OpenSSH public key format: {what}.");
    Ec2Error::refused(ErrorCode::InvalidKeyPairFormat, what, Some(hint.into()))
}

/// The name of a key pair: 1 to 255 ASCII characters, without leading or trailing spaces and without control
/// characters. It becomes the comment of the key's line in `authorized_keys`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct KeyName(String);

impl KeyName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyName {
    type Err = Ec2Error;

    fn from_str(text: &str) -> Result<Self, Ec2Error> {
        let rule = if text.is_empty() {
            "it must not be empty"
        } else if !text.is_ascii() {
            "it must contain only ASCII characters"
        } else if text.len() > MAX_NAME {
            "it must have at most 255 characters"
        } else if text.trim() != text {
            "it must not start or end with a space"
        } else if text.contains(|c: char| c.is_ascii_control()) {
            "it must not contain control characters"
        } else {
            return Ok(KeyName(text.to_owned()));
        };
        let what = format!("Invalid value {text:?} for KeyName: {rule}.");
        Err(Ec2Error::refused(ErrorCode::InvalidParameterValue, what, None))
    }
}

impl TryFrom<String> for KeyName {
    type Error = Ec2Error;

    fn try_from(text: String) -> Result<Self, Ec2Error> {
        text.parse()
    }
}

impl From<KeyName> for String {
    fn from(name: KeyName) -> String {
        name.0
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyType {
    /// RSA, the default of EC2's API. EC2 generates 2048-bit keys.
    #[default]
    Rsa,
    Ed25519,
}

impl KeyType {
    pub fn as_str(self) -> &'static str {
        match self {
            KeyType::Rsa => "rsa",
            KeyType::Ed25519 => "ed25519",
        }
    }
}

impl FromStr for KeyType {
    type Err = Ec2Error;

    fn from_str(text: &str) -> Result<Self, Ec2Error> {
        [KeyType::Rsa, KeyType::Ed25519]
            .into_iter()
            .find(|known| known.as_str() == text)
            .ok_or_else(|| Ec2Error::invalid_parameter("KeyType", text, "it must be rsa or ed25519."))
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyFormat {
    /// EC2's PEM format: PKCS #1 in PEM for RSA, OpenSSH's format for ED25519.
    #[default]
    Pem,
    /// OpenSSH's format for both types, a Wisp extension.
    OpenSsh,
}

impl FromStr for KeyFormat {
    type Err = Ec2Error;

    fn from_str(text: &str) -> Result<Self, Ec2Error> {
        match text {
            "pem" => Ok(KeyFormat::Pem),
            "openssh" => Ok(KeyFormat::OpenSsh),
            _ => Err(Ec2Error::refused(
                ErrorCode::InvalidParameterValue,
                format!("Invalid value '{text}' for KeyFormat: it must be pem or openssh."),
                Some("For PuTTY, convert the private key with `puttygen`.".into()),
            )),
        }
    }
}

/// SHA-1 of the private key as PKCS #8 in DER, as EC2 shows it for RSA keys that it generated. Same as `openssl pkcs8
/// -in KEY -inform PEM -outform DER -topk8 -nocrypt` piped to `openssl sha1 -c`.
pub fn fingerprint_of_created_rsa(pkcs8_der: &[u8]) -> String {
    with_colons(&Sha1::digest(pkcs8_der))
}

/// MD5 of the public key as X.509 SubjectPublicKeyInfo in DER. Same as `openssl rsa -in KEY -pubout -outform DER` piped
/// to `openssl md5 -c`.
pub fn fingerprint_of_imported_rsa(spki_der: &[u8]) -> String {
    with_colons(&Md5::digest(spki_der))
}

/// SHA-256 of the public key in SSH's wire format, in base64 with padding, for generated and imported keys. `ssh-keygen
/// -l` prints the same after `SHA256:`, without padding.
pub fn fingerprint_of_ed25519(public_blob: &[u8]) -> String {
    BASE64.encode(Sha256::digest(public_blob))
}

fn with_colons(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn key_name_is_ascii_without_surrounding_spaces() {
        for text in ["web", "my key (2)", "user@host", "~"] {
            assert_eq!(text.parse::<KeyName>().expect(text).as_str(), text);
        }
        assert!("x".repeat(MAX_NAME).parse::<KeyName>().is_ok());
        for text in ["", " web", "web ", "schlüssel", "a\nb", "a\u{7f}", &"x".repeat(MAX_NAME + 1)] {
            let error = text.parse::<KeyName>().expect_err(text);
            assert_eq!(error.code(), ErrorCode::InvalidParameterValue, "{text}");
            assert!(!error.to_string().contains(char::is_control), "{error:?}");
        }
    }

    #[test]
    fn key_types_and_formats_are_parsed() {
        assert_eq!("rsa".parse(), Ok(KeyType::Rsa));
        assert_eq!("ed25519".parse(), Ok(KeyType::Ed25519));
        assert_eq!("pem".parse(), Ok(KeyFormat::Pem));
        assert_eq!("openssh".parse(), Ok(KeyFormat::OpenSsh));
        assert!("dsa".parse::<KeyType>().is_err());
        let ppk = "ppk".parse::<KeyFormat>().expect_err("not supported");
        assert!(ppk.hint().is_some_and(|hint| hint.contains("puttygen")));
    }

    #[test]
    fn error_messages_match_ec2() {
        assert_eq!(not_found("web").to_string(), "InvalidKeyPair.NotFound: The key pair 'web' does not exist.");
        assert_eq!(
            duplicate(&"web".parse().expect("a name")).to_string(),
            "InvalidKeyPair.Duplicate: The keypair 'web' already exists."
        );
    }

    #[test]
    fn fingerprints_are_formatted_as_in_ec2() {
        assert_eq!(fingerprint_of_created_rsa(b"abc"), "a9:99:3e:36:47:06:81:6a:ba:3e:25:71:78:50:c2:6c:9c:d0:d8:9d");
        assert_eq!(fingerprint_of_imported_rsa(b"abc"), "90:01:50:98:3c:d2:4f:b0:d6:96:3f:7d:28:e1:7f:72");
        assert_eq!(fingerprint_of_ed25519(b"abc"), "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=");
    }

    proptest! {
        #[test]
        fn key_name_parse_never_panics(text in ".*") {
            let _ = text.parse::<KeyName>();
        }
    }
}
