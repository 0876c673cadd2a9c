//! A data directory with templates, created once for each build of the binary. Tests copy the directory.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use node::home::lock_file;

use super::instances::SMALL;

/// Options for the default sizes of `wisp run` and `wisp launch`.
const RUN_SIZE: [&str; 4] = ["--vcpus", "1", "--memory", "256M"];
const LAUNCH_SIZE: [&str; 2] = ["--type", "t2.micro"];

/// Copies the templates to `home`. The first caller creates the templates while the others wait.
pub fn copy_to(home: &Path) {
    let binary = Path::new(env!("CARGO_BIN_EXE_wisp"));
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let lock = lock_file(&dir.join("template.lock")).unwrap();
    let metadata = binary.metadata().unwrap();
    let template = dir.join(format!("template-{}-{}", metadata.mtime(), metadata.mtime_nsec()));
    if !template.exists() {
        older(dir).for_each(|path| fs::remove_dir_all(path).unwrap());
        make(binary, dir, &template);
    }
    let copied = Command::new("cp").args(["-a", "--reflink=auto"]).arg(template.join(".")).arg(home).status().unwrap();
    assert!(copied.success(), "cp ended with {copied}");
    drop(lock);
}

fn make(binary: &Path, dir: &Path, template: &Path) {
    let unfinished = tempfile::Builder::new().prefix("template-new-").tempdir_in(dir).unwrap();
    for size in [&SMALL[..], &RUN_SIZE, &LAUNCH_SIZE] {
        let mut command = Command::new(binary);
        command.args(["image", "warm", "tiny"]).args(size).env("WISP_HOME", unfinished.path());
        let made = command.env_remove("WISP_WARM_LIMIT").output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    fs::rename(unfinished.keep(), template).unwrap();
}

fn older(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("template-")).map(|entry| entry.path())
}
