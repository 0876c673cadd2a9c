//! Commands over the agent's protocol: an agent serves one end of a socket pair, and the test is the host.

mod support;

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use support::{DEADLINE, End, Host, command, exited, shell};
use wisp_agent::protocol::{
    ExecFailure, ExecRequest, ExitStatus, OutputStream, STDIN_WINDOW, TerminalRequest, ToGuest, ToHost, WindowSize,
};

#[test]
fn exit_code_and_both_outputs_are_separate() {
    let outcome = Host::shell("echo out; echo err >&2; exit 7").finish();
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(outcome.end, exited(7));
}

#[test]
fn missing_command_is_not_found() {
    let outcome = Host::exec(command(&["no-such-program"])).finish();
    assert_eq!(outcome.end, End::NotStarted(ExecFailure::NotFound, "no-such-program: command not found".into()));
    let outcome = Host::exec(command(&["/no/such/program"])).finish();
    assert!(matches!(outcome.end, End::NotStarted(ExecFailure::NotFound, _)), "{outcome:?}");
}

#[test]
fn file_without_execute_bit_and_directory_are_not_executable() {
    for path in ["/etc/passwd", "/etc"] {
        let outcome = Host::exec(command(&[path])).finish();
        assert!(matches!(outcome.end, End::NotStarted(ExecFailure::NotExecutable, _)), "{outcome:?}");
    }
}

#[test]
fn empty_command_and_missing_directory_are_refused() {
    let outcome = Host::exec(command(&[])).finish();
    assert!(matches!(outcome.end, End::NotStarted(ExecFailure::Other, _)), "{outcome:?}");
    let outcome = Host::exec(ExecRequest { cwd: Some("/no/such".into()), ..command(&["true"]) }).finish();
    let End::NotStarted(ExecFailure::Other, message) = outcome.end else { panic!("{outcome:?}") };
    assert!(message.contains("/no/such"), "{message}");
}

#[test]
fn environment_and_directory_are_set() {
    let request = ExecRequest {
        env: vec![("COLOUR".into(), "blue".into()), ("HOME".into(), "/over".into())],
        cwd: Some("/usr".into()),
        ..shell("echo $COLOUR $HOME; pwd; test -n \"$PATH\"")
    };
    let outcome = Host::exec(request).finish();
    assert_eq!((outcome.stdout.as_str(), outcome.end), ("blue /over\n/usr\n", exited(0)));
}

#[test]
fn input_larger_than_window_is_delivered_with_credit() {
    const TOTAL: usize = 5 * STDIN_WINDOW;
    let mut host = Host::exec(command(&["wc", "-c"]));
    let (mut window, mut left) = (STDIN_WINDOW, TOTAL);
    while left > 0 {
        if window == 0 {
            match host.receive() {
                ToHost::StdinCredit(credit) => window += credit as usize,
                other => panic!("{other:?}"),
            }
        }
        let count = window.min(left).min(10_000);
        host.stdin(&vec![b'x'; count]);
        (window, left) = (window - count, left - count);
    }
    host.send(&ToGuest::StdinEnd);
    assert_eq!(host.finish().stdout.trim(), TOTAL.to_string());
}

#[test]
fn host_exceeding_window_is_disconnected() {
    let mut host = Host::exec(command(&["sleep", "1000"]));
    // The pipe itself also holds up to a window.
    for _ in 0..3 {
        host.stdin(&vec![b'x'; STDIN_WINDOW]);
    }
    let message = loop {
        match host.receive() {
            ToHost::Failed(message) => break message,
            ToHost::StdinCredit(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(message.contains("window"), "{message}");
    assert!(host.leave().is_err());
}

#[test]
fn large_output_arrives_before_status() {
    let outcome = Host::shell("head -c 3000000 /dev/zero | tr '\\0' a; printf end >&2").finish();
    assert_eq!((outcome.stdout.len(), outcome.stderr.as_str()), (3_000_000, "end"));
    assert_eq!(outcome.end, exited(0));
}

#[test]
fn signal_reaches_command_that_reads_no_input() {
    let mut host = Host::exec(command(&["sleep", "1000"]));
    host.stdin(&vec![b'x'; STDIN_WINDOW]);
    host.send(&ToGuest::Signal(libc::SIGTERM));
    assert_eq!(host.finish().end, End::Status(ExitStatus::Signaled(libc::SIGTERM)));
}

#[test]
fn signal_reaches_whole_process_group() {
    let mut host =
        Host::shell("sh -c 'trap \"echo inner; exit 0\" INT; echo ready; while :; do sleep 0.01; done'; echo outer");
    host.wait_for("ready");
    host.send(&ToGuest::Signal(libc::SIGINT));
    assert!(host.finish().stdout.contains("inner"));
}

#[test]
fn command_does_not_inherit_ignored_signals() {
    let outcome = Host::shell("grep SigIgn /proc/self/status").finish();
    let ignored = u64::from_str_radix(outcome.stdout.trim_start_matches("SigIgn:").trim(), 16).expect("a mask");
    assert_eq!(ignored & (1 << (libc::SIGPIPE - 1)), 0);
}

#[test]
fn closed_output_raises_sigpipe() {
    let mut host = Host::exec(command(&["yes"]));
    host.wait_for("y\n");
    host.send(&ToGuest::OutputClosed(OutputStream::Stdout));
    assert_eq!(host.finish().end, End::Status(ExitStatus::Signaled(libc::SIGPIPE)));
}

#[test]
fn background_process_does_not_hold_session() {
    let mut host = Host::shell("sleep 1000 & echo $!");
    let outcome = host.finish();
    assert_eq!(outcome.end, exited(0));
    let pid = outcome.stdout.trim().to_owned();
    assert_eq!(Host::exec(command(&["kill", &pid])).finish().end, exited(0), "it was left running");
}

#[test]
fn command_runs_as_another_user_and_agent_keeps_its_own() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let request = ExecRequest { user: Some("nobody".into()), ..shell("id -un; id -G; echo $USER") };
    let outcome = Host::exec(request).finish();
    assert_eq!(outcome.stdout, "nobody\n65534\nnobody\n");
    assert_eq!(Host::exec(command(&["id", "-u"])).finish().stdout, "0\n");
}

#[test]
fn unknown_user_is_refused() {
    let outcome = Host::exec(ExecRequest { user: Some("no-such-user".into()), ..command(&["true"]) }).finish();
    let message = "the guest has no user \"no-such-user\"".to_owned();
    assert_eq!(outcome.end, End::NotStarted(ExecFailure::Other, message));
}

fn on_terminal(request: ExecRequest) -> ExecRequest {
    let size = WindowSize { rows: 33, columns: 101 };
    ExecRequest { terminal: Some(TerminalRequest { size, term: "xterm".into() }), ..request }
}

#[test]
fn terminal_has_requested_size_and_follows_resize() {
    let mut host = Host::exec(on_terminal(shell("stty size; read line; stty size; echo $TERM")));
    host.wait_for("33 101\r\n");
    host.send(&ToGuest::Resize(WindowSize { rows: 50, columns: 132 }));
    host.stdin(b"\n");
    let outcome = host.finish();
    assert!(outcome.stdout.contains("50 132\r\nxterm\r\n"), "{outcome:?}");
    assert_eq!(outcome.end, exited(0));
}

#[test]
fn control_c_interrupts_foreground_process() {
    // Run cat without a shell: some shells lose the signal while they start a program.
    let mut host = Host::exec(on_terminal(command(&["cat"])));
    host.stdin(b"ready\n");
    // The terminal's echo, and cat's own output.
    host.wait_for("ready\r\nready\r\n");
    host.stdin(b"\x03");
    assert_eq!(host.finish().end, End::Status(ExitStatus::Signaled(libc::SIGINT)));
}

#[test]
fn end_of_input_sends_control_d_to_terminal() {
    let mut host = Host::exec(on_terminal(command(&["cat"])));
    host.stdin(b"line\n");
    host.send(&ToGuest::StdinEnd);
    let outcome = host.finish();
    assert!(outcome.stdout.ends_with("line\r\nline\r\n"), "{outcome:?}");
    assert_eq!(outcome.end, exited(0));
}

#[test]
fn command_closing_its_terminal_is_not_hung_up() {
    let outcome = Host::exec(on_terminal(shell("exec <&- >&- 2>&-; sleep 0.05; exit 3"))).finish();
    assert_eq!(outcome.end, exited(3));
}

#[test]
fn final_terminal_output_is_not_lost() {
    for _ in 0..20 {
        let outcome = Host::exec(on_terminal(shell("printf last"))).finish();
        assert_eq!((outcome.stdout.as_str(), outcome.end), ("last", exited(0)));
    }
}

/// Creates a socket that closes when the last process that holds it exits. No PID is needed.
fn exit_socket(directory: &Path) -> (UnixListener, String) {
    let path = directory.join("life-line");
    let listener = UnixListener::bind(&path).expect("bound");
    set_socket_timeout(listener.as_fd(), Timeout::Recv, Some(DEADLINE)).expect("a deadline");
    (listener, path.display().to_string())
}

/// Holds a connection to the socket `$0` until the process exits. Ignores signals.
const HOLD: &str = "import socket,signal,sys,time;s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1]);\
signal.signal(signal.SIGHUP,signal.SIG_IGN if len(sys.argv)>2 else signal.SIG_DFL);print('up',flush=True);time.sleep(1000)";

fn assert_disconnect_ends_process(request: impl FnOnce(ExecRequest) -> ExecRequest, extra: &[&str]) {
    let home = tempfile::tempdir().expect("a directory");
    let (listener, path) = exit_socket(home.path());
    let argv = [&["python3", "-c", HOLD, path.as_str()], extra].concat();
    let mut host = Host::exec(request(command(&argv)));
    host.wait_for("up");
    let (mut held, _) = listener.accept().expect("the command connected");
    set_socket_timeout(held.as_fd(), Timeout::Recv, Some(DEADLINE)).expect("a deadline");

    assert!(host.leave().is_err(), "the agent notices that the host disconnected");

    assert_eq!(held.read(&mut [0]).expect("within the deadline"), 0, "the command is gone");
}

#[test]
fn disconnect_ends_command() {
    assert_disconnect_ends_process(|request| request, &[]);
}

#[test]
fn disconnect_ends_terminal_command() {
    assert_disconnect_ends_process(on_terminal, &[]);
}

#[test]
fn disconnect_kills_command_that_ignores_sighup() {
    assert_disconnect_ends_process(|request| request, &["ignore"]);
}
