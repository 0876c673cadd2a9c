//! Scenarios of AWS clients, which are Python scripts in `tests/api`.

use std::path::Path;

use super::Wisp;

/// Runs a script with boto3 and a server for the data directory of `wisp`. Skips the test if boto3 is not installed.
pub fn run(wisp: &Wisp, script: &str, arguments: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/api-clients/bin/python");
    if !python.exists() {
        test_support::skip_without(test_support::Capability::ApiClients);
        return;
    }
    let script = root.join("tests/api").join(script);
    let [python, script] = [&python, &script].map(|path| path.to_str().expect("UTF-8"));
    wisp.run(&[&["serve", "--", python, script], arguments].concat()).expect_code(0);
}
