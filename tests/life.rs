//! The lifetime of processes: a guest's VMM ends with the command that owns the guest, and no process is left.

mod common;

use common::{Wisp, vmm_pid, wait_for_log, wait_until_gone, wait_until_unlocked};
use machine::control::{ControlClient, ControlRequest, Message};

fn only_vmm_pid(wisp: &Wisp) -> u32 {
    let runs = wisp.runs();
    let [dir] = runs.as_slice() else { panic!("expected one machine: {runs:?}") };
    vmm_pid(dir)
}

#[test]
fn killed_command_ends_its_guest() {
    let wisp = Wisp::warm();
    let running = wisp.start_guest();
    let vmm = only_vmm_pid(&wisp);
    running.signal(libc::SIGKILL);
    wait_until_gone(vmm);
    assert!(wisp.runs().is_empty(), "the killed command's instance is still there");
}

#[test]
fn next_command_removes_leftovers_of_killed_processes() {
    let wisp = Wisp::warm();
    let running = wisp.start_guest();
    let vmm = only_vmm_pid(&wisp);
    // A stopped VMM cannot react to its owner's end.
    for (pid, signal) in [(vmm as i32, libc::SIGSTOP), (running.pid(), libc::SIGKILL), (vmm as i32, libc::SIGKILL)] {
        // SAFETY: both are processes of this test that have not been waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }
    wait_until_gone(vmm);
    wait_until_unlocked(&wisp.runs()[0]);
    assert_eq!(wisp.runs().len(), 1);
    let no_kernel = tempfile::NamedTempFile::new().unwrap();
    wisp.run(&["run", "--kernel", no_kernel.path().to_str().unwrap()]).expect_code(125);
    assert!(wisp.runs().is_empty());
}

#[test]
fn killed_vmm_is_reported_and_leaves_nothing() {
    let wisp = Wisp::warm();
    let running = wisp.start_guest();
    let vmm = only_vmm_pid(&wisp);
    // SAFETY: the VMM was alive just now, and its parent has not waited for it.
    assert_eq!(unsafe { libc::kill(vmm as i32, libc::SIGKILL) }, 0);
    let outcome = running.wait().expect_code(125);
    assert!(outcome.stderr.contains("error:"), "{}", outcome.stderr);
    assert!(wisp.runs().is_empty());
}

#[test]
fn ctrl_alt_del_powers_guest_off() {
    let wisp = Wisp::warm_in_long_home();
    let running = wisp.start_guest();
    let mut control = ControlClient::connect(&wisp.runs()[0].join("vmm/control.sock")).unwrap();
    control.send(&ControlRequest::Subscribe).unwrap();
    control.send(&ControlRequest::CtrlAltDel).unwrap();
    let end = loop {
        match control.receive(Some(common::DEADLINE)).unwrap() {
            Message::Ended { end, .. } => break end,
            Message::Failed { why } => panic!("{why}"),
            _ => {}
        }
    };
    assert_eq!(end, machine::End::PowerOff);
    let outcome = running.wait().expect_code(0);
    assert!(outcome.stderr.contains("the guest powered off"), "{}", outcome.stderr);
}

#[test]
fn client_that_never_reads_stalls_only_itself() {
    use machine::unix_socket;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    let wisp = Wisp::warm_in_long_home();
    let mut running = wisp.start_guest();
    let socket = wisp.runs()[0].join("vmm/vsock.sock");
    // A connection to the agent that is idle after its greeting.
    let mut idle = unix_socket::connect(&socket).unwrap();
    idle.write_all(b"CONNECT 1024\n").unwrap();
    idle.set_read_timeout(Some(common::DEADLINE)).unwrap();
    let mut answer = [0; 3];
    idle.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"OK ");
    // No guest process listens on that port: the connection ends without an answer.
    let mut refused = unix_socket::connect(&socket).unwrap();
    refused.set_read_timeout(Some(common::DEADLINE)).unwrap();
    refused.write_all(b"CONNECT 4242\n").unwrap();
    assert_eq!(refused.read(&mut answer).unwrap(), 0);
    // An unread flood of output, while the first command and others continue.
    let agent = || node::guest::Agent::connect(&socket, common::DEADLINE).unwrap();
    agent().ping(common::DEADLINE).unwrap();
    let (flood_reader, flood) = UnixStream::pair().unwrap();
    let request = |script: &str| node::guest::ExecRequest {
        argv: vec!["sh".into(), "-c".into(), script.into()],
        ..Default::default()
    };
    let flooding = agent();
    let flooder = std::thread::spawn(move || {
        use std::os::fd::AsFd;
        let null = std::fs::File::open("/dev/null").unwrap();
        let streams = node::guest::Streams { input: null.as_fd(), output: flood.as_fd(), error: flood.as_fd() };
        flooding.exec(request("head -c 2097152 /dev/zero"), streams)
    });
    agent().ping(common::DEADLINE).unwrap();
    let mut stdin = running.stdin.take().unwrap();
    stdin.write_all(b"still here\n").unwrap();
    running.wait_for("still here");
    // When the reader resumes, no byte is missing.
    let mut flood_reader = flood_reader;
    let mut flooded = vec![0; 2_097_152];
    let read = flood_reader.read_exact(&mut flooded);
    assert_eq!(flooder.join().unwrap().map(|status| status.exit_code()).map_err(|error| error.to_string()), Ok(0));
    read.unwrap();
    drop(stdin);
    running.wait().expect_code(0);
}

/// Waits for the next second of the real-time clock: reads its register 0 until the value changes.
const NEXT_SECOND: [u8; 18] = [
    0x31, 0xc0, 0xe6, 0x70, 0xe4, 0x71, 0x88, 0xc3, // xor eax, eax; out 0x70, al; in al, 0x71; mov bl, al
    0x31, 0xc0, 0xe6, 0x70, 0xe4, 0x71, 0x38, 0xd8, 0x74,
    0xf6, // the same; cmp al, bl; je to the start of this line
];
/// `mov al, 0xfe; out 0x64, al; hlt`: the keyboard controller resets the CPU.
const RESET: [u8; 5] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4];

#[test]
fn reboot_loop_backs_off_and_can_be_terminated() {
    let wisp = Wisp::new();
    let bundle = tempfile::tempdir().unwrap();
    // Each run takes one to two seconds, so that the launch sees a running VMM.
    let kernel = common::kernel_of(&[&NEXT_SECOND[..], &NEXT_SECOND, &RESET].concat());
    std::fs::write(bundle.path().join("vmlinux"), &kernel).unwrap();
    let manifest = format!(
        "name = \"loop\"\ndescription = \"A kernel that resets\"\narchitecture = \"x86_64\"\ndefault_user = \"root\"\n\
         cloud_init = false\n[kernel]\nfile = \"vmlinux\"\nsha256 = \"{}\"\ncmdline = \"quiet\"\n\
         protocol = \"linux64\"\nsoftware_kvm_aware = true\n",
        common::sha256(&kernel)
    );
    std::fs::write(bundle.path().join("image.toml"), manifest).unwrap();
    wisp.run(&["image", "import", bundle.path().to_str().unwrap()]).expect_code(0);
    wisp.run(&["launch", "loop", "--name", "loop", "--no-wait", "--network", "none", "--memory", "128M"])
        .expect_code(0);
    wait_for_log(&wisp.instances()[0], "the guest rebooted 3 times shortly after starting; restarting it in 2s");
    wisp.run(&["terminate", "loop"]).expect_code(0);
}
