//! AWS clients against the API: boto3 with a real guest, the AWS CLI, and requests that the server refuses. The
//! scenarios are in `tests/api`.

mod common;

use std::path::Path;

use common::{Wisp, api};

#[test]
fn boto3_runs_changes_and_terminates_a_guest() {
    api::run(&Wisp::warm(), "instances.py", &[]);
}

#[test]
fn unsigned_malformed_and_large_requests_are_refused() {
    api::run(&Wisp::without_kvm(), "refusals.py", &[]);
}

#[test]
fn aws_cli_reads_and_fails_with_its_exit_code() {
    if !Path::new("/usr/bin/aws").exists() {
        test_support::skip_without(test_support::Capability::ApiClients);
        return;
    }
    let wisp = Wisp::without_kvm();
    let aws = |args: &[&str]| {
        let args: Vec<&str> = [&["aws"], args, &["--output", "text"]].concat();
        wisp.command(&args).env("PATH", "/usr/bin:/bin").output().expect("wisp runs")
    };
    let images = aws(&["ec2", "describe-images", "--query", "Images[].Name"]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!((images.status.code(), text(&images.stdout)), (Some(0), "tiny\n".into()), "{}", text(&images.stderr));
    let unknown = aws(&["ec2", "describe-instances", "--instance-ids", "i-0123456789abcdef0"]);
    assert!(text(&unknown.stderr).contains("InvalidInstanceID.NotFound"), "{}", text(&unknown.stderr));
    assert_eq!(unknown.status.code(), Some(254));
}
