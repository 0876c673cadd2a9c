//! Compares the codec with botocore: random inputs and outputs of every action whose shapes the models have.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use api::codec::query::Parameters;
use api::codec::{json, xml};
use api::model::{Lookup, Protocol, by_signing_name};
use serde_json::Value;

const ACTIONS: &str = include_str!("../models/actions.txt");

/// Returns the Python of the virtual environment that `scripts/api-clients` creates.
fn python() -> Option<PathBuf> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/api-clients/bin/python");
    python.exists().then_some(python)
}

/// Runs the oracle with an input, and returns its output.
fn oracle(python: &Path, arguments: &[&str], input: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle.py");
    let mut child = Command::new(python)
        .arg(script)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input.as_bytes()).expect("the oracle reads its input"));
        child.wait_with_output().expect("the oracle ends")
    });
    assert!(output.status.success(), "the oracle failed; see its message above");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn codec_agrees_with_botocore_on_all_actions() {
    let Some(python) = python() else {
        test_support::skip_without(test_support::Capability::ApiClients);
        return;
    };
    let cases = oracle(&python, &["generate", "7", "20"], ACTIONS);
    let mut encoded = String::new();
    let mut count = 0;
    for line in cases.lines() {
        let mut case: Value = serde_json::from_str(line).expect("the oracle prints JSON");
        let text = |name: &str| case[name].as_str().expect("a string").to_string();
        let (action, body) = (text("action"), text("body"));
        let service = by_signing_name(&text("service")).expect("a served service");
        let Lookup::Found(operation) = service.operation(&action) else { panic!("{action} has no shapes") };
        let input = operation.input.as_deref();
        let decoded = match service.metadata.protocol {
            Protocol::Json => json::decode(service, input, body.as_bytes()),
            Protocol::Ec2 | Protocol::Query => {
                Parameters::parse(body.as_bytes()).and_then(|parameters| parameters.decode(service, input))
            }
        };
        assert_eq!(decoded.as_ref(), Ok(&case["input"]), "{action}: {body}");
        let output = case["output"].clone();
        let response = match service.metadata.protocol {
            Protocol::Json => json::encode(service, operation.output.as_deref(), output),
            Protocol::Ec2 | Protocol::Query => xml::response(service, &action, operation, &output, "the-id"),
        };
        case["response"] = Value::String(response.expect("the output fits its shape"));
        encoded.push_str(&format!("{case}\n"));
        count += 1;
    }
    assert!(count >= 20 * 150, "only {count} cases");
    assert_eq!(oracle(&python, &["check"], &encoded).trim(), count.to_string());
}
