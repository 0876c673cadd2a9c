//! Checks of the repository: modules import only lower modules, and embedded files match their sources.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules that each top-level module may import, apart from itself (`docs/architecture.md`).
const ALLOWED: [(&str, &[&str]); 8] = [
    // Only for fuzzing; no other module may import it.
    ("fuzzing", &["cloud", "ec2", "guest", "vmm"]),
    ("cli", &["cloud", "ec2", "store", "host", "guest", "vmm"]),
    ("cloud", &["ec2", "store", "host", "guest", "vmm"]),
    ("ec2", &[]),
    ("store", &["ec2"]),
    ("host", &["ec2", "vmm"]),
    ("guest", &[]),
    ("vmm", &[]),
];

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

/// Returns the modules that a source text names as `crate::<module>`.
fn imported_modules(text: &str) -> Vec<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| {
        line.match_indices("crate::").map(|(at, word)| {
            let rest = &line[at + word.len()..];
            rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
        })
    })
    .collect()
}

#[test]
fn modules_import_only_lower_modules() {
    let source = repository().join("src");
    let modules: Vec<String> = fs::read_dir(&source)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    let mut looked_at = 0;
    for module in &modules {
        let (_, allowed) =
            ALLOWED.iter().find(|(name, _)| name == module).unwrap_or_else(|| panic!("src/{module} is not in ALLOWED"));
        for file in rust_files(&source.join(module)) {
            for named in imported_modules(&fs::read_to_string(&file).unwrap()) {
                looked_at += 1;
                let fine = named == *module || allowed.contains(&named.as_str()) || !modules.contains(&named);
                assert!(fine, "{} imports crate::{named}, which {module} must not import", file.display());
            }
        }
    }
    assert!(looked_at > 100, "only {looked_at} imports were found: does this test still recognize imports?");
}

#[test]
fn imported_modules_finds_crate_paths() {
    assert_eq!(imported_modules("use crate::cli::run;\n// vmm\nlet x = ec2::id::Id;"), ["cli", "ec2"]);
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
