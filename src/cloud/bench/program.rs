//! The workload program for the guests of a bench, embedded in the binary (`images/workloads`).

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::BenchError;
use node::home::Home;

const PROGRAM: &[u8] = include_bytes!("../../../images/workloads/wisp-workload.zst");
const NAME: &str = "wisp-workload";
/// Maximum unpacked size in bytes.
const MOST: usize = 16 << 20;

/// Returns the path of the program in the data directory. Unpacks it if that file is missing or from another version.
pub(super) fn unpacked(home: &Home) -> Result<PathBuf, BenchError> {
    let path = home.root().join(NAME);
    let failed = |source| BenchError::Program { path: path.clone(), source };
    let program = zstd::bulk::decompress(PROGRAM, MOST).map_err(failed)?;
    if fs::read(&path).is_ok_and(|there| there == program) {
        return Ok(path);
    }
    let make_executable = |file: &File| file.set_permissions(Permissions::from_mode(0o700));
    machine::fs::replace(&path, &program, make_executable).map_err(failed)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_runs_and_replaces_other_version() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path()).unwrap();
        fs::write(dir.path().join(NAME), "of another time").unwrap();
        let path = unpacked(&home).unwrap();
        assert_eq!(unpacked(&home).unwrap(), path);
        let run = std::process::Command::new(path).args(["integer", "--ms", "1"]).output().unwrap();
        // The program first reports its start, then the result.
        let text = String::from_utf8(run.stdout).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.strip_prefix("begin\n").unwrap()).unwrap();
        assert!(line["amount"].as_u64().unwrap() > 0 && line["threads"] == 1, "{line}");
    }
}
