use super::*;
use crate::codec::json;
use crate::error::Code;
use crate::model;
use store::command::{InvocationResult, Spec, Status};
use store::{CommandRecord, Meta};

const ID: &str = "11111111-2222-4333-8444-555555555555";
const INSTANCE: &str = "i-0123456789abcdef0";

fn command(state: InvocationState, result: Option<InvocationResult>) -> Command {
    let parameters = BTreeMap::from([("commands".to_string(), vec!["ls".to_string()])]);
    let (command_id, instance_id) = (ID.parse().unwrap(), INSTANCE.parse().unwrap());
    Command {
        record: CommandRecord {
            meta: Meta::new(command_id, 60, BTreeMap::new()),
            spec: Spec {
                script: ShellScript::parse(parameters).unwrap(),
                comment: "list".into(),
                instance_ids: vec![instance_id],
                targets: Vec::new(),
                timeout: 30,
            },
            status: Status { runner: "none".into() },
        },
        invocations: vec![InvocationRecord {
            command_id,
            instance_id,
            instance_name: "web".into(),
            state,
            started: (state != InvocationState::Pending).then_some(61),
            result,
        }],
    }
}

fn failed() -> Command {
    let result = InvocationResult {
        exit_code: Some(3),
        stdout: "x".repeat(LISTED_OUTPUT_LIMIT - 10),
        stderr: "no".into(),
        elapsed_milliseconds: 2_034,
    };
    command(InvocationState::Failed, Some(result))
}

fn given(value: Value) -> Result<CommandRequest, ApiError> {
    request(super::super::input::read(value)?)
}

#[test]
fn other_documents_and_parameters_are_refused_by_name() {
    let code = |value: Value| given(value).unwrap_err();
    let script = json!({"commands": ["ls"]});
    let document = code(json!({"DocumentName": "AWS-RunPatchBaseline", "Parameters": script}));
    assert_eq!(document.code, Code::Ec2(ErrorCode::InvalidDocument));
    assert!(document.message.contains("AWS-RunPatchBaseline"));
    let bucket = code(json!({"DocumentName": DOCUMENT, "Parameters": script, "OutputS3BucketName": "logs"}));
    assert_eq!(bucket.code, Code::Ec2(ErrorCode::UnsupportedOperation));
    assert!(bucket.message.contains("OutputS3BucketName"));
    let unknown = code(json!({"DocumentName": DOCUMENT, "Parameters": {"commands": ["ls"], "whales": ["1"]}}));
    assert_eq!(unknown.code, Code::Ec2(ErrorCode::InvalidParameters));
    assert!(unknown.message.contains("whales"));
}

#[test]
fn parameters_that_state_the_default_are_accepted() {
    let request = given(json!({
        "DocumentName": DOCUMENT, "DocumentVersion": "$DEFAULT", "MaxConcurrency": "50", "MaxErrors": "0",
        "Parameters": {"commands": ["ls"]}, "InstanceIds": [INSTANCE],
    }));
    assert_eq!(request.unwrap().timeout, command::DEFAULT_TIMEOUT);
}

#[test]
fn shapes_have_only_members_of_the_model() {
    let encode = |shape, value| json::encode(model::ssm(), Some(shape), value).unwrap();
    for command in [command(InvocationState::Pending, None), failed()] {
        let invocation = &command.invocations[0];
        encode("SendCommandResult", json!({"Command": command_shape(&command)}));
        let shape = invocation_shape(&command, invocation, true);
        encode("ListCommandInvocationsResult", json!({"CommandInvocations": [shape]}));
        encode("GetCommandInvocationResult", result_shape(&command, invocation));
    }
}

#[test]
fn pending_invocation_has_no_result() {
    let command = command(InvocationState::Pending, None);
    let shape = result_shape(&command, &command.invocations[0]);
    assert_eq!((&shape["Status"], &shape["ResponseCode"]), (&json!("Pending"), &json!(-1)));
    assert_eq!((&shape["ExecutionStartDateTime"], &shape["StandardOutputContent"]), (&json!(""), &json!("")));
    assert_eq!(command_shape(&command)["CompletedCount"], 0);
}

#[test]
fn finished_invocation_has_exit_code_times_and_output() {
    let command = failed();
    let shape = result_shape(&command, &command.invocations[0]);
    assert_eq!((&shape["StatusDetails"], &shape["ResponseCode"]), (&json!("Failed"), &json!(3)));
    assert_eq!(shape["ExecutionElapsedTime"], "PT2.034S");
    assert_eq!(shape["ExecutionEndDateTime"], "1970-01-01T00:01:03.000Z");
    assert_eq!(shape["StandardErrorContent"], "no");
    let output = plugin_shape(&command.invocations[0])["Output"].as_str().unwrap().to_string();
    assert_eq!(output.len(), LISTED_OUTPUT_LIMIT);
    let shape = command_shape(&command);
    assert_eq!(
        (&shape["ErrorCount"], &shape["TargetCount"], &shape["Status"]),
        (&json!(1), &json!(1), &json!("Failed"))
    );
}

#[test]
fn filters_are_combined_and_unknown_ones_refused() {
    let filter = |key: &str, value: &str| Filter { key: key.into(), value: value.into() };
    let matches = |filters: &[Filter]| match_all(filters, 60, "Failed");
    let before = filter("InvokedBefore", "1970-01-01T00:02:00Z");
    assert_eq!(matches(&[filter("Status", "Failed"), before.clone()]), Ok(true));
    assert_eq!(matches(&[filter("Status", "Success"), before]), Ok(false));
    assert_eq!(matches(&[filter("InvokedAfter", "1970-01-01T00:02:00Z")]), Ok(false));
    assert_eq!(matches(&[filter("DocumentName", DOCUMENT)]), Ok(true));
    assert!(matches(&[filter("InvokedAfter", "yesterday")]).is_err());
    assert!(matches(&[filter("ExecutionStage", "Complete")]).is_err());
}
