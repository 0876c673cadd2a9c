//! A log file of bounded size.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// When the log is full, it is renamed to `<name>.1`, replacing the previous one, and a new file is started.
/// The two files together keep the last `limit` to 2 × `limit` bytes.
#[derive(Debug)]
pub struct BoundedLog {
    path: PathBuf,
    limit: u64,
    file: File,
    length: u64,
}

impl BoundedLog {
    pub fn open(path: &Path, limit: u64) -> io::Result<BoundedLog> {
        let flags = libc::O_NOFOLLOW;
        let file = OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(flags).open(path)?;
        let length = file.metadata()?.len();
        Ok(BoundedLog { path: path.to_path_buf(), limit, file, length })
    }

    /// Appends bytes. Returns true if it started a new file for them.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let rotates = self.length >= self.limit;
        if rotates {
            std::fs::rename(&self.path, full(&self.path))?;
            *self = BoundedLog::open(&self.path, self.limit)?;
        }
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(rotates)
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[must_use]
pub fn full(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(".1");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_log_is_rotated_and_keeps_last_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        // A log from an earlier version of wisp, which did not limit its size.
        std::fs::write(&path, [b'o'; 1000]).unwrap();
        let mut log = BoundedLog::open(&path, 100).unwrap();
        assert!(log.write(b"first\n").unwrap());
        for number in 0..1000 {
            log.write(format!("line {number}\n").as_bytes()).unwrap();
        }
        let text = [full(&path), path].map(|path| std::fs::read_to_string(path).unwrap());
        assert!(text.iter().all(|text| text.len() < 120), "{text:?}");
        assert!(text.concat().ends_with("line 998\nline 999\n"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
