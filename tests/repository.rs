//! Checks of the repository: embedded files match their sources, and all licenses are allowed and listed.

use std::fs;
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

#[test]
fn embedded_image_matches_repository() {
    let built_from = fs::read_to_string(repository().join("images/tiny/inputs.sha256")).unwrap();
    let now = wisp_image_builder::inputs::digest(&repository()).unwrap();
    assert_eq!(
        built_from.trim(),
        now,
        "the agent, the kernel's configuration or the recipe has changed since images/tiny was built: \
         run scripts/rebuild-images (--agent, if the kernel is the same)"
    );
}

#[test]
fn embedded_workloads_match_repository() {
    use sha2::{Digest, Sha256};
    let hex = |bytes: &[u8]| wisp_image_builder::inputs::hex(&Sha256::digest(bytes));
    let dir = Path::new("images/workloads");
    let mut files = vec![dir.join("Cargo.toml")];
    let source = repository().join(dir).join("src");
    files.extend(rust_files(&source).iter().map(|path| path.strip_prefix(repository()).unwrap().to_path_buf()));
    files.sort();
    // In the format of `sha256sum`.
    let line = |path: &PathBuf| format!("{}  {}\n", hex(&fs::read(repository().join(path)).unwrap()), path.display());
    let now = hex(files.iter().map(line).collect::<String>().as_bytes());
    let built_from = fs::read_to_string(repository().join(dir).join("inputs.sha256")).unwrap();
    assert_eq!(built_from.trim(), now, "the workloads have changed: run scripts/rebuild-images --workloads");
}

#[test]
fn crate_licenses_are_agreed_to_and_listed() {
    let output = std::process::Command::new(repository().join("scripts/licenses")).arg("--check").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
