use super::*;
use node::guest::ExitStatus;
use node::home::Home;

const INSTANCE: &str = "i-0123456789abcdef0";

fn cloud() -> (Cloud, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    (Cloud::at(Home::at(directory.path()).unwrap()).unwrap(), directory)
}

fn instance(id: &str, role: &str) -> InstanceRecord {
    let record = serde_json::json!({
        "meta": {"id": id, "created": 1, "generation": 0, "tags": {"role": role}},
        "spec": {
            "image_id": "ami-0123456789abcdef0", "key_name": null, "user_data": null, "shutdown_behavior": "stop",
            "termination_protection": false,
            "size": {"instance_type": "t3.nano", "vcpus": 1, "threads_per_core": 1, "memory_mib": 192},
        },
        "status": {
            "launch": {"reservation_id": "r-0123456789abcdef0", "launch_index": 0, "image_name": "none"},
            "state": "running", "state_reason": null, "launch_time": 1, "terminated": null, "block_devices": [],
            "network": null,
        },
    });
    serde_json::from_value(record).unwrap()
}

fn script() -> ShellScript {
    ShellScript::parse(BTreeMap::from([("commands".into(), vec!["true".into()])])).unwrap()
}

/// Adds a command to the store, with one invocation.
fn add(cloud: &Cloud, created: u64, runner: &str, state: InvocationState) -> CommandId {
    let mut record = CommandRecord {
        meta: Meta::new(CommandId::from_random(ids::random_bytes()), created, BTreeMap::new()),
        spec: Spec { script: script(), comment: String::new(), instance_ids: vec![], targets: vec![], timeout: 30 },
        status: Status { runner: runner.into() },
    };
    let invocation = InvocationRecord { state, ..pending(record.meta.id, &instance(INSTANCE, "web")) };
    let insert = |tx: &Transaction| {
        tx.insert(&mut record)?;
        Ok::<_, CloudError>(tx.set(&invocation)?)
    };
    cloud.store.write(insert).unwrap();
    invocation.command_id
}

fn code<T: std::fmt::Debug>(result: Result<T, Ec2Error>) -> ErrorCode {
    result.unwrap_err().code()
}

#[test]
fn unfinished_command_of_ended_process_has_failed() {
    let (cloud, _directory) = cloud();
    let abandoned = add(&cloud, 1, "none", InvocationState::InProgress);
    let running = add(&cloud, 2, &process_identity::own().unwrap(), InvocationState::InProgress);
    let done = add(&cloud, 3, "none", InvocationState::Success);
    let found = cloud.commands().list().unwrap();
    let states: Vec<_> = found.iter().map(|command| (command.record.meta.id, command.invocations[0].state)).collect();
    assert_eq!(
        states,
        [
            (done, InvocationState::Success),
            (running, InvocationState::InProgress),
            (abandoned, InvocationState::Failed)
        ]
    );
    let result = found[2].invocations[0].result.as_ref().unwrap();
    assert!(result.stderr.contains("server ended"), "{}", result.stderr);
    // A late result does not replace it.
    cloud.commands().change(abandoned, INSTANCE.parse().unwrap(), |record| record.result = None).unwrap();
    assert_eq!(cloud.commands().list().unwrap(), found);
}

#[test]
fn command_for_instance_that_ended_is_undeliverable() {
    let (cloud, _directory) = cloud();
    let id = add(&cloud, now(), &process_identity::own().unwrap(), InvocationState::Pending);
    cloud.commands().run(id, INSTANCE.parse().unwrap()).unwrap();
    let invocation = &cloud.commands().list().unwrap()[0].invocations[0];
    assert_eq!((invocation.state, invocation.started), (InvocationState::Undeliverable, None));
    assert!(!invocation.result.as_ref().unwrap().stderr.is_empty());
}

#[test]
fn request_for_unknown_or_no_instances_is_refused() {
    let (cloud, _directory) = cloud();
    let send = |instance_ids: &[&str], targets: Vec<Target>| {
        let instance_ids = instance_ids.iter().map(|id| (*id).to_string()).collect();
        cloud.commands().send(CommandRequest {
            script: script(),
            comment: String::new(),
            instance_ids,
            targets,
            timeout: 30,
        })
    };
    let target = Target { key: "tag:role".into(), values: vec!["web".into()] };
    for (ids, targets, expected) in [
        (&[INSTANCE] as &[&str], vec![], ErrorCode::InvalidInstanceId),
        (&["web"], vec![], ErrorCode::InvalidInstanceId),
        (&[], vec![], ErrorCode::InvalidParameters),
        (&[INSTANCE], vec![target.clone()], ErrorCode::InvalidParameters),
        (&[], vec![Target { key: "whales".into(), values: vec![] }], ErrorCode::UnsupportedOperation),
    ] {
        match send(ids, targets) {
            Err(CloudError::Ec2(error)) => assert_eq!(error.code(), expected),
            other => panic!("{other:?}"),
        }
    }
    // A tag that no instance has is no error.
    assert_eq!(send(&[], vec![target]).unwrap().invocations, []);
    assert_eq!(cloud.commands().list().unwrap().len(), 1);
}

#[test]
fn instances_are_chosen_by_id_or_by_all_targets() {
    let other = "i-0123456789abcdef1";
    let records = [instance(INSTANCE, "web"), instance(other, "db")];
    let ids = |found: Result<Vec<InstanceRecord>, Ec2Error>| -> Vec<String> {
        found.unwrap().iter().map(|record| record.meta.id.to_string()).collect()
    };
    let target = |key: &str, values: &[&str]| Target {
        key: key.into(),
        values: values.iter().map(|value| (*value).to_string()).collect(),
    };
    assert_eq!(ids(choose(&records, &[other.into(), other.into()], &[])), [other]);
    assert_eq!(ids(choose(&records, &[], &[target("tag:role", &["web", "db"])])), [INSTANCE, other]);
    let both = [target("tag-key", &["role"]), target("InstanceIds", &[other])];
    assert_eq!(ids(choose(&records, &[], &both)), [other]);
    assert_eq!(code(choose(&records, &["i-0123456789abcdef2".into()], &[])), ErrorCode::InvalidInstanceId);
}

#[test]
fn old_and_surplus_commands_are_superfluous() {
    let (cloud, _directory) = cloud();
    let runner = process_identity::own().unwrap();
    let now = 2 * RETENTION;
    let old = add(&cloud, 1, &runner, InvocationState::Success);
    let running = add(&cloud, 1, &runner, InvocationState::InProgress);
    let new = add(&cloud, now, &runner, InvocationState::Success);
    let commands = cloud.commands().list().unwrap();
    let ids: Vec<_> = superfluous(&commands, now).iter().map(|command| command.record.meta.id).collect();
    assert_eq!(ids, [old]);
    assert!([running, new].iter().all(|id| commands.iter().any(|command| command.record.meta.id == *id)));
    let many: Vec<Command> = std::iter::repeat_n(commands[0].clone(), MAX_INVOCATIONS + 2).collect();
    assert_eq!(superfluous(&many, now).len(), 2);
    cloud.store.write::<_, CloudError>(|tx| commands.iter().try_for_each(|command| remove(tx, command))).unwrap();
    assert_eq!(cloud.commands().list().unwrap(), []);
}

#[test]
fn too_many_running_invocations_are_refused() {
    let (cloud, _directory) = cloud();
    add(&cloud, 1, &process_identity::own().unwrap(), InvocationState::InProgress);
    let commands = cloud.commands().list().unwrap();
    assert_eq!(check_running(&commands, MAX_RUNNING - 1), Ok(()));
    assert_eq!(code(check_running(&commands, MAX_RUNNING)), ErrorCode::ThrottlingException);
}

#[test]
fn result_has_state_exit_code_and_limited_output() {
    let end = |status| CommandEnd { status, stdout: "é".repeat(STDOUT_LIMIT + 1).into(), stderr: b"err".to_vec() };
    let summary = |status| {
        let Finished { state, result } = finished(end(status));
        assert_eq!(result.stdout.chars().count(), STDOUT_LIMIT);
        (state, result.exit_code, result.stderr)
    };
    assert_eq!(summary(Ok(ExitStatus::Exited(0))), (InvocationState::Success, Some(0), "err".into()));
    assert_eq!(summary(Ok(ExitStatus::Exited(3))), (InvocationState::Failed, Some(3), "err".into()));
    assert_eq!(summary(Ok(ExitStatus::Signaled(9))), (InvocationState::Failed, Some(137), "err".into()));
    let timeout = guest::Error::TimedOut(Duration::from_secs(1));
    assert_eq!(summary(Err(timeout)), (InvocationState::ExecutionTimedOut, None, "err".into()));
    let (state, exit_code, stderr) = summary(Err(guest::Error::GuestGone));
    assert_eq!((state, exit_code), (InvocationState::Failed, None));
    assert!(stderr.starts_with("the guest closed") && stderr.ends_with("\nerr"), "{stderr}");
}
