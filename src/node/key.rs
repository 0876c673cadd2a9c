//! Generates SSH key pairs, parses public keys, and writes private keys to files. A private key exists only in the file
//! that the user named, and in memory that is wiped after use. Wisp stores public keys only.

use std::error::Error;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rsa::pkcs1::{DecodeRsaPublicKey, EncodeRsaPrivateKey};
use rsa::pkcs8::{DecodePublicKey, EncodePrivateKey, EncodePublicKey, LineEnding};
use rsa::{BigUint, RsaPrivateKey, RsaPublicKey};
use ssh_key::private::{Ed25519Keypair, KeypairData, RsaKeypair};
use ssh_key::public::{Ed25519PublicKey, KeyData};
use ssh_key::rand_core::OsRng;
use zeroize::Zeroizing;

use ec2::Ec2Error;
use ec2::key::{
    KeyFormat, KeyName, KeyType, fingerprint_of_created_rsa, fingerprint_of_ed25519, fingerprint_of_imported_rsa,
    invalid_public_key, refused_private_key,
};

/// Size of generated RSA keys in bits, as in EC2.
const RSA_BITS: usize = 2048;
/// Accepted sizes of imported RSA keys in bits. EC2 documents 1024, 2048 and 4096; `ssh-keygen` defaults to 3072.
const IMPORTED_RSA_BITS: RangeInclusive<usize> = 1024..=4096;
/// Maximum size of a public key file in bytes, many times that of the longest key.
const MAX_PUBLIC_KEY: usize = 64 * 1024;

/// DER prefix of a 32-byte ED25519 key (RFC 8410, section 4).
const ED25519_DER_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Markers around a key in the format of RFC 4716, section 3.2.
const RFC4716_BEGIN: &str = "---- BEGIN SSH2 PUBLIC KEY ----";
const RFC4716_END: &str = "---- END SSH2 PUBLIC KEY ----";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    pub key_type: KeyType,
    /// Line of `authorized_keys` without a newline. The comment is the key pair's name.
    pub line: String,
    pub fingerprint: String,
}

pub struct NewKeyPair {
    pub public: PublicKey,
    /// Private key as text, wiped from memory when dropped.
    pub private: Zeroizing<String>,
}

impl fmt::Debug for NewKeyPair {
    /// Omits the private key, so that it never reaches a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKeyPair").field("public", &self.public).finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot create the {key_type} key: {source}")]
    Make { key_type: KeyType, source: Box<dyn Error + Send + Sync> },
    #[error("{} already exists, and wisp does not overwrite private keys: choose a different path", path.display())]
    Exists { path: PathBuf },
    #[error("cannot write the private key to {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Generates a key pair (`CreateKeyPair`) with the operating system's random number generator.
pub fn create(name: &KeyName, key_type: KeyType, format: KeyFormat) -> Result<NewKeyPair, KeyError> {
    match key_type {
        KeyType::Ed25519 => create_ed25519(name),
        KeyType::Rsa => {
            RsaPrivateKey::new(&mut OsRng, RSA_BITS).map_err(Into::into).and_then(|key| pair_of_rsa(name, &key, format))
        }
    }
    .map_err(|source| KeyError::Make { key_type, source })
}

/// Takes no format: EC2's PEM format of an ED25519 key is OpenSSH's own format.
fn create_ed25519(name: &KeyName) -> Result<NewKeyPair, Box<dyn Error + Send + Sync>> {
    let pair = Ed25519Keypair::random(&mut OsRng);
    let public = public_key(name, KeyData::Ed25519(pair.public))?;
    Ok(NewKeyPair { public, private: openssh_form(name, pair.into())? })
}

fn pair_of_rsa(
    name: &KeyName,
    key: &RsaPrivateKey,
    format: KeyFormat,
) -> Result<NewKeyPair, Box<dyn Error + Send + Sync>> {
    // Convert from the rsa crate to ssh-key only: ssh-key 0.6 confuses the two primes in the other direction.
    let pair = RsaKeypair::try_from(key)?;
    let fingerprint = fingerprint_of_created_rsa(key.to_pkcs8_der()?.as_bytes());
    let public = PublicKey { fingerprint, ..public_key(name, KeyData::Rsa(pair.public.clone()))? };
    let private = match format {
        KeyFormat::Pem => key.to_pkcs1_pem(LineEnding::LF)?,
        KeyFormat::OpenSsh => openssh_form(name, pair.into())?,
    };
    Ok(NewKeyPair { public, private })
}

fn openssh_form(name: &KeyName, pair: KeypairData) -> Result<Zeroizing<String>, ssh_key::Error> {
    ssh_key::PrivateKey::new(pair, name.as_str())?.to_openssh(ssh_key::LineEnding::LF)
}

/// Parses a public key (`ImportKeyPair`): an OpenSSH line, RFC 4716, PEM, or DER, optionally in base64. The key pair's
/// name replaces the comment.
pub fn import(name: &KeyName, material: &[u8]) -> Result<PublicKey, Ec2Error> {
    let key = if material.len() > MAX_PUBLIC_KEY {
        Err(invalid_public_key(format!("it is {} bytes long, but the maximum is {MAX_PUBLIC_KEY}", material.len())))
    } else {
        match std::str::from_utf8(material) {
            Ok(text) => read_text(text.trim()),
            Err(_) => read_der(material),
        }
    };
    public_key(name, key?)
}

fn read_text(text: &str) -> Result<KeyData, Ec2Error> {
    if text.contains("PRIVATE KEY-----") || text.starts_with("PuTTY-User-Key-File") {
        Err(refused_private_key())
    } else if text.starts_with(RFC4716_BEGIN) {
        read_rfc4716(text)
    } else if text.starts_with("-----BEGIN ") {
        let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
        read_der(&decode(&body)?)
    } else if text.contains(' ') {
        read_openssh(text)
    } else if text.is_empty() {
        Err(invalid_public_key("it is empty"))
    } else {
        read_der(&decode(text)?)
    }
}

fn read_openssh(text: &str) -> Result<KeyData, Ec2Error> {
    if text.lines().count() > 1 {
        return Err(invalid_public_key("it must be a single key, but has more than one line"));
    }
    let algorithm = text.split(' ').next().unwrap_or_default();
    if !["ssh-rsa", "ssh-ed25519"].contains(&algorithm) {
        let shown: String = algorithm.chars().take(40).collect();
        return Err(invalid_public_key(format!("it must begin with ssh-rsa or ssh-ed25519, not {shown:?}")));
    }
    let key = ssh_key::PublicKey::from_openssh(text)
        .map_err(|error| invalid_public_key(format!("invalid {algorithm} key: {error}")))?;
    Ok(key.into())
}

/// Decodes the base64 text after the headers. A header is a line with a colon, possibly continued on the next lines.
fn read_rfc4716(text: &str) -> Result<KeyData, Ec2Error> {
    let mut body = String::new();
    let mut in_header = false;
    for line in text.lines().skip(1).map(str::trim_end) {
        if line == RFC4716_END {
            let key = ssh_key::PublicKey::from_bytes(&decode(&body)?).map_err(invalid_public_key)?;
            return Ok(key.into());
        }
        if in_header || line.contains(':') {
            in_header = line.ends_with('\\');
        } else {
            body.push_str(line);
        }
    }
    Err(invalid_public_key(format!("it must end with {RFC4716_END}")))
}

/// Parses a DER key: a SubjectPublicKeyInfo with an ED25519 or RSA key, or a PKCS #1 RSA key.
fn read_der(der: &[u8]) -> Result<KeyData, Ec2Error> {
    if let Some(key) = der.strip_prefix(&ED25519_DER_PREFIX)
        && let Ok(key) = key.try_into()
    {
        return Ok(KeyData::Ed25519(Ed25519PublicKey(key)));
    }
    let key = RsaPublicKey::from_public_key_der(der)
        .ok()
        .or_else(|| RsaPublicKey::from_pkcs1_der(der).ok())
        .ok_or_else(|| invalid_public_key("it is not an RSA or ED25519 key in DER encoding"))?;
    let key = ssh_key::public::RsaPublicKey::try_from(&key).map_err(invalid_public_key)?;
    Ok(KeyData::Rsa(key))
}

fn decode(text: &str) -> Result<Vec<u8>, Ec2Error> {
    let digits: String = text.split_ascii_whitespace().collect();
    BASE64.decode(digits).map_err(|_| invalid_public_key("it is neither an OpenSSH public key nor base64"))
}

/// Returns the public key with the fingerprint that EC2 computes for imported keys.
fn public_key(name: &KeyName, key: KeyData) -> Result<PublicKey, Ec2Error> {
    let (key_type, fingerprint) = match &key {
        KeyData::Ed25519(_) => {
            let blob = ssh_key::PublicKey::from(key.clone()).to_bytes().map_err(invalid_public_key)?;
            (KeyType::Ed25519, fingerprint_of_ed25519(&blob))
        }
        KeyData::Rsa(rsa) => (KeyType::Rsa, fingerprint_of_imported_rsa(&rsa_der(rsa)?)),
        other => return Err(invalid_public_key(format!("{} keys are not supported", other.algorithm()))),
    };
    let line = ssh_key::PublicKey::new(key, name.as_str()).to_openssh().map_err(invalid_public_key)?;
    Ok(PublicKey { key_type, line, fingerprint })
}

/// Returns the key's SubjectPublicKeyInfo. Refuses a key whose size is not in [`IMPORTED_RSA_BITS`].
fn rsa_der(key: &ssh_key::public::RsaPublicKey) -> Result<Vec<u8>, Ec2Error> {
    let number = |number| BigUint::try_from(number).map_err(invalid_public_key::<ssh_key::Error>);
    let (modulus, exponent) = (number(&key.n)?, number(&key.e)?);
    let bits = modulus.bits();
    if !IMPORTED_RSA_BITS.contains(&bits) {
        let (fewest, most) = (IMPORTED_RSA_BITS.start(), IMPORTED_RSA_BITS.end());
        return Err(invalid_public_key(format!(
            "it is an RSA key of {bits} bits, but the size must be {fewest} to {most}"
        )));
    }
    let key = RsaPublicKey::new(modulus, exponent).map_err(invalid_public_key)?;
    Ok(key.to_public_key_der().map_err(invalid_public_key)?.into_vec())
}

/// Writes the private key to a new file with mode 0600. Fails if a file or link with this path exists.
pub fn write_private(path: &Path, private: &str) -> Result<(), KeyError> {
    let failed = |source| KeyError::Write { path: path.to_path_buf(), source };
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => KeyError::Exists { path: path.to_path_buf() },
            _ => failed(error),
        })?;
    file.write_all(private.as_bytes()).and_then(|()| file.sync_all()).map_err(|error| {
        // A partial file is useless and would make the next attempt fail.
        let _ = std::fs::remove_file(path);
        failed(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ec2::ErrorCode;
    use proptest::prelude::*;
    use rsa::pkcs1::DecodeRsaPrivateKey;
    use rsa::traits::PublicKeyParts;
    use std::os::unix::fs::PermissionsExt;

    /// Generated with OpenSSL, like the keys below. OpenSSL and OpenSSH print the same fingerprints.
    const RSA_PRIVATE: &str = "\
-----BEGIN RSA PRIVATE KEY-----
MIICXAIBAAKBgQDNPhjBQYjsV+00aS9vzo1Uh1UQYY8YTaNivjpDlF6LBwyCRE03
EEDNkFDn5+XVgcjr9Kc5D+WK6H332gZdmPQRp788F2v2AKgfCRHqRu0BM0Ebd5TU
ftUjSiXohfESVcN/w3rnYCbtId2kR0QSH2XO0arO2YoAMUcFQpv3D39fVQIDAQAB
AoGAGdorhhQ6KgL9Ru/E4OF0neQaC+EuBBKrdOGfNyn2Kq7tnW77BueOMhZuineE
VLtvUoFTmvVspW2ZiGG3EY0VmPXF9+/tlTCxZhyJ9kDujrPl015dwlC6ws0bneAu
GZNcOaJGgzn+LdTqmRuUJEokFm3gXaZte6dHqp/lJwPGXMECQQD47eusjAGEnhfY
lFEZPnHjLytnU43JTZBaW6vlFdWVJrfSP58xgfkSa4vpWWlY3X3iyCXNzUxKbS5f
BNCWBS/RAkEA0xKCYVaSA7I9leVeifpc/3xcaWi7k4niJOZVcaBqgtf7b9jV+26I
mj1n5+j9HjipMWlTtWWesn5bwYQE3Dy8RQJBAKk7vyyoZmPNwzJ36wa5gF3OdLij
glJoDAqSJjPxeyoSj4g9vrG+xiFywkTbh5Zlxq7GGYVn3EUBIzRwJorHbfECQGwn
JtGTl1v3f+EH16phtDdhVMTaWosd8tevgoaniQwkeXz1IaglGi/WWSCW3OQYanGc
I71mJawWXRPKfucO4/UCQGfUaQf8rKOi0GG845bntbDqh6DU00oaUANFSu/pVA5c
zi7cL7yPU28KF/iiyNHjjf4yxWzK+VUmHFhLH4R7EVI=
-----END RSA PRIVATE KEY-----
";
    const RSA_SHA1: &str = "42:39:2d:cf:2b:8e:08:ef:19:9c:de:8a:b6:13:35:0e:ff:be:36:68";
    const RSA_MD5: &str = "17:9e:18:42:f3:c2:c4:c4:f5:ad:61:f1:e5:4c:84:58";
    const RSA_RFC4716: &str = "\
---- BEGIN SSH2 PUBLIC KEY ----
Comment: \"made for this test, \\
and for nothing else\"
x-key: value
AAAAB3NzaC1yc2EAAAADAQABAAAAgQDNPhjBQYjsV+00aS9vzo1Uh1UQYY8YTaNivjpDlF
6LBwyCRE03EEDNkFDn5+XVgcjr9Kc5D+WK6H332gZdmPQRp788F2v2AKgfCRHqRu0BM0Eb
d5TUftUjSiXohfESVcN/w3rnYCbtId2kR0QSH2XO0arO2YoAMUcFQpv3D39fVQ==
---- END SSH2 PUBLIC KEY ----
";
    const RSA_SPKI: &str = "\
-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDNPhjBQYjsV+00aS9vzo1Uh1UQ
YY8YTaNivjpDlF6LBwyCRE03EEDNkFDn5+XVgcjr9Kc5D+WK6H332gZdmPQRp788
F2v2AKgfCRHqRu0BM0Ebd5TUftUjSiXohfESVcN/w3rnYCbtId2kR0QSH2XO0arO
2YoAMUcFQpv3D39fVQIDAQAB
-----END PUBLIC KEY-----
";
    const RSA_PKCS1: &str = "\
-----BEGIN RSA PUBLIC KEY-----
MIGJAoGBAM0+GMFBiOxX7TRpL2/OjVSHVRBhjxhNo2K+OkOUXosHDIJETTcQQM2Q
UOfn5dWByOv0pzkP5YrofffaBl2Y9BGnvzwXa/YAqB8JEepG7QEzQRt3lNR+1SNK
JeiF8RJVw3/DeudgJu0h3aRHRBIfZc7Rqs7ZigAxRwVCm/cPf19VAgMBAAE=
-----END RSA PUBLIC KEY-----
";
    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHQwkVzFbroOggx0V/xqU5yDN6vfWNwDEM2iaOdQBbCm me@host\n";
    const ED25519_SHA256: &str = "E/VTTxpU+ppUdxU25Cp6IvXonXfHeP6yB83bY7mainM=";

    fn name() -> KeyName {
        "web".parse().expect("a name")
    }

    fn rsa_private() -> RsaPrivateKey {
        RsaPrivateKey::from_pkcs1_pem(RSA_PRIVATE).expect("a key")
    }

    fn refused(material: &str) -> Ec2Error {
        import(&name(), material.as_bytes()).expect_err(material)
    }

    #[test]
    fn created_rsa_key_has_sha1_fingerprint_and_pkcs1_pem() {
        let pair = pair_of_rsa(&name(), &rsa_private(), KeyFormat::Pem).expect("a key");
        assert_eq!(pair.public.key_type, KeyType::Rsa);
        assert_eq!(pair.public.fingerprint, RSA_SHA1);
        assert_eq!(pair.private.as_str(), RSA_PRIVATE);
        assert!(
            pair.public.line.starts_with("ssh-rsa ") && pair.public.line.ends_with("== web"),
            "{}",
            pair.public.line
        );
    }

    #[test]
    fn rsa_key_in_openssh_format_is_same_key() {
        let pair = pair_of_rsa(&name(), &rsa_private(), KeyFormat::OpenSsh).expect("a key");
        let read = ssh_key::PrivateKey::from_openssh(pair.private.as_bytes()).expect("a parsed key");
        assert_eq!(read.public_key().to_openssh().expect("a line"), pair.public.line);
    }

    #[test]
    fn created_ed25519_key_matches_its_public_key() {
        let pair = create(&name(), KeyType::Ed25519, KeyFormat::Pem).expect("a key");
        assert!(pair.private.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\n"));
        let read = ssh_key::PrivateKey::from_openssh(pair.private.as_bytes()).expect("a parsed key");
        assert_eq!(read.public_key().to_openssh().expect("a line"), pair.public.line);
        assert_eq!(import(&name(), pair.public.line.as_bytes()), Ok(pair.public.clone()));
        let openssh_s = read.fingerprint(ssh_key::HashAlg::Sha256).to_string();
        assert_eq!(format!("SHA256:{}", pair.public.fingerprint), format!("{openssh_s}="));
    }

    #[test]
    fn created_rsa_key_has_2048_bits() {
        let pair = create(&name(), KeyType::Rsa, KeyFormat::Pem).expect("a key");
        let key = RsaPrivateKey::from_pkcs1_pem(&pair.private).expect("a parsed key");
        assert_eq!(key.n().bits(), RSA_BITS);
        assert_eq!(pair.public.fingerprint.len(), RSA_SHA1.len());
    }

    #[test]
    fn debug_output_omits_private_key() {
        let pair = create(&name(), KeyType::Ed25519, KeyFormat::Pem).expect("a key");
        assert!(!format!("{pair:?}").contains("PRIVATE"));
    }

    #[test]
    fn rsa_key_is_imported_from_every_format() {
        let line = pair_of_rsa(&name(), &rsa_private(), KeyFormat::Pem).expect("a key").public.line;
        let expected = PublicKey { key_type: KeyType::Rsa, line: line.clone(), fingerprint: RSA_MD5.to_owned() };
        let base64: String = RSA_SPKI.lines().filter(|line| !line.starts_with('-')).collect();
        let der = BASE64.decode(&base64).expect("base64");
        let with_crlf = RSA_RFC4716.replace('\n', "\r\n");
        for material in [
            line.as_bytes(),
            RSA_RFC4716.as_bytes(),
            with_crlf.as_bytes(),
            RSA_SPKI.as_bytes(),
            RSA_PKCS1.as_bytes(),
            base64.as_bytes(),
            &der,
        ] {
            assert_eq!(import(&name(), material), Ok(expected.clone()), "{}", String::from_utf8_lossy(material));
        }
    }

    #[test]
    fn imported_ed25519_key_has_openssh_fingerprint() {
        let key = import(&name(), ED25519.as_bytes()).expect("a key");
        assert_eq!((key.key_type, key.fingerprint.as_str()), (KeyType::Ed25519, ED25519_SHA256));
        assert_eq!(key.line, ED25519.trim_end().replace("me@host", "web"));
        let blob = ssh_key::PublicKey::from_openssh(ED25519).expect("a key");
        let bytes = blob.key_data().ed25519().expect("its type").0;
        let pem = format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            BASE64.encode([ED25519_DER_PREFIX.as_slice(), &bytes].concat())
        );
        assert_eq!(import(&name(), pem.as_bytes()), Ok(key));
    }

    #[test]
    fn invalid_public_key_is_refused_with_reason() {
        let twice = format!("{ED25519}{ED25519}");
        let long = "x".repeat(MAX_PUBLIC_KEY + 1);
        for (material, expected) in [
            ("", "it is empty"),
            ("hello", "neither"),
            ("AAAA", "in DER"),
            ("ecdsa-sha2-nistp256 AAAA x", "\"ecdsa-sha2-nistp256\""),
            ("from=\"10.0.0.1\" ssh-ed25519 AAAA", "\"from="),
            ("ssh-ed25519 AAAA", "invalid ssh-ed25519 key"),
            ("ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIHQwkVzFbroOggx0V/xqU5yDN6vfWNwDEM2iaOdQBbCm", "invalid ssh-rsa key"),
            (twice.as_str(), "more than one line"),
            (long.as_str(), "65537 bytes"),
            (RFC4716_BEGIN, "it must end with"),
            (RSA_PRIVATE, "private key"),
        ] {
            let error = refused(material);
            assert_eq!(error.code(), ErrorCode::InvalidKeyPairFormat);
            assert!(error.to_string().contains(expected), "{error}");
            assert!(error.hint().is_some());
        }
    }

    #[test]
    fn short_rsa_key_is_refused() {
        let key = RsaPrivateKey::new(&mut OsRng, 512).expect("a key").to_public_key();
        let pem = key.to_public_key_pem(LineEnding::LF).expect("written");
        assert!(refused(&pem).to_string().contains("RSA key of 512 bits"));
    }

    #[test]
    fn private_key_file_is_private_and_never_overwritten() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("web.pem");
        write_private(&path, "secret\n").expect("written");
        assert_eq!(path.metadata().expect("an existing file").permissions().mode() & 0o777, 0o600);
        let again = write_private(&path, "other\n").expect_err("it exists");
        assert!(matches!(again, KeyError::Exists { .. }), "{again}");
        assert_eq!(std::fs::read_to_string(&path).expect("an existing file"), "secret\n");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("nothing"), &link).expect("a link");
        assert!(matches!(write_private(&link, "x"), Err(KeyError::Exists { .. })));
        let nowhere = write_private(&dir.path().join("no/such"), "x").expect_err("no directory");
        assert!(matches!(nowhere, KeyError::Write { .. }), "{nowhere}");
    }

    proptest! {
        #[test]
        fn import_never_panics(material: Vec<u8>, text in ".*") {
            let _ = import(&name(), &material);
            let _ = import(&name(), text.as_bytes());
            let _ = import(&name(), format!("ssh-rsa {text}").as_bytes());
            let _ = import(&name(), format!("{RFC4716_BEGIN}\n{text}\n{RFC4716_END}").as_bytes());
        }
    }
}
