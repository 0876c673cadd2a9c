//! Shell on the serial console, for a guest started with `wisp.console=shell`.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use wisp_agent::agent::{Agent, Program, Stdio, User, environment_for, environment_strings, spawn};

const TERMINAL: &std::ffi::CStr = c"/dev/ttyS0";

/// A shell that exits sooner than this has failed.
const SHORT: Duration = Duration::from_secs(1);

/// Number of consecutive failed shells after which to give up.
const SHORT_LIVES: u32 = 3;

/// Starts a new shell on the console whenever the last one exited.
pub fn keep_shell(agent: &'static Agent) {
    let started = thread::Builder::new().name("console".into()).spawn(move || {
        let mut short = 0;
        while short < SHORT_LIVES {
            let began = Instant::now();
            if let Err(error) = run_shell(agent) {
                eprintln!("wisp-init: cannot start a shell on the console: {error}");
                return;
            }
            short = if began.elapsed() < SHORT { short + 1 } else { 0 };
        }
        eprintln!("wisp-init: not restarting the console's shell: the last {SHORT_LIVES} exited immediately");
    });
    if let Err(error) = started {
        eprintln!("wisp-init: cannot start a shell on the console: {error}");
    }
}

fn run_shell(agent: &Agent) -> io::Result<()> {
    let mut env = environment_strings(environment_for(&User::own()))?;
    env.push(c"TERM=vt102".into());
    let shell = Program { path: c"/bin/sh".into(), argv: vec![c"/bin/sh".into(), c"-l".into()], env, cwd: None };
    let child = agent.children.spawn(|| spawn(&shell, Stdio::Terminal(TERMINAL)))?;
    agent.children.reap(child);
    Ok(())
}
