//! The access key of a data directory, which clients sign requests with.

use std::fs;
use std::io;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

use crate::sigv4::AccessKey;
use node::home::{Home, HomeError, write_private};

const FILE: &str = "access-key.json";
/// Letters and digits of access key IDs, which are Base32.
const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

#[derive(Debug, thiserror::Error)]
pub enum AccessKeyError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error("cannot {action} {}: {source}", path.display())]
    File { action: &'static str, path: std::path::PathBuf, source: io::Error },
    #[error("{} is damaged: {source}. Remove it to get a new access key", path.display())]
    Damaged { path: std::path::PathBuf, source: serde_json::Error },
}

/// The file's contents, with the names of `credential_process` of AWS's clients.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Stored {
    version: u32,
    access_key_id: String,
    secret_access_key: String,
}

/// Returns the access key of a data directory, and makes a random one at the first call.
pub fn of(home: &Home) -> Result<AccessKey, AccessKeyError> {
    let dir = home.aws();
    // Only one of several concurrent processes makes the key.
    let _lock = home.lock(&dir)?;
    let path = dir.join(FILE);
    match fs::read(&path) {
        Ok(text) => {
            let stored: Stored = serde_json::from_slice(&text)
                .map_err(|source| AccessKeyError::Damaged { path: path.clone(), source })?;
            Ok(AccessKey { id: stored.access_key_id, secret: stored.secret_access_key })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = random_key();
            write_private(&path, credential_process(&key).as_bytes()).map_err(|source| AccessKeyError::File {
                action: "write",
                path,
                source,
            })?;
            Ok(key)
        }
        Err(source) => Err(AccessKeyError::File { action: "read", path, source }),
    }
}

/// Returns the key in the format of `credential_process` (AWS CLI User Guide, "Sourcing credentials with an external
/// process").
pub fn credential_process(key: &AccessKey) -> String {
    let stored = Stored { version: 1, access_key_id: key.id.clone(), secret_access_key: key.secret.clone() };
    serde_json::to_string(&stored).expect("strings are plain data")
}

fn random_key() -> AccessKey {
    let mut random = [0_u8; 46];
    // Without flags and for so few bytes, getrandom fails only on a host that blocks the system call.
    getrandom(&mut random, GetRandomFlags::empty()).expect("the host provides random numbers");
    let (id, secret) = random.split_at(16);
    let id: String = id.iter().map(|byte| char::from(DIGITS[usize::from(byte % 32)])).collect();
    AccessKey { id: format!("AKIA{id}"), secret: BASE64_STANDARD.encode(secret) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn key_is_random_private_and_kept() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [first, second] = [0, 1].map(|index| Home::at(dirs[index].path()).unwrap());
        let key = of(&first).unwrap();
        assert_eq!(of(&first).unwrap(), key);
        assert_ne!(of(&second).unwrap(), key);
        assert_eq!((key.id.len(), key.secret.len()), (20, 40));
        let mode = first.aws().join(FILE).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn damaged_file_is_reported_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path()).unwrap();
        fs::write(home.aws().join(FILE), "{").unwrap();
        assert!(matches!(of(&home), Err(AccessKeyError::Damaged { .. })));
        assert_eq!(fs::read_to_string(home.aws().join(FILE)).unwrap(), "{");
    }
}
