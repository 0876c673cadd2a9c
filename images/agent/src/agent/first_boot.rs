//! Applies the seed: keys at each boot, user data once for each instance.
//!
//! What was done is kept in `/var/lib/wisp/user-data.state`, on the guest's own disk: a restart of the same instance does
//! not run its user data again, a new instance from an image of this disk does. Where the disk cannot be written, keys
//! and user data go without.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};

use super::children::Children;
use super::environment;
use super::listener;
use super::spawn::{Program, Stdio, spawn};
use super::users::User;
use crate::protocol::{ExitStatus, UserDataState, UserDataStatus};
use crate::seed::{MAX_SEED, SEED_PORT, Seed};

/// Where the agent keeps what outlives a boot.
const STATE_FOLDER: &str = "/var/lib/wisp";
const STATE: &str = "user-data.state";
const SCRIPT: &str = "user-data";
/// What a script prints goes to the console and to this file.
const LOG: &str = "/var/log/wisp-user-data.log";

/// How far user data has come, for whoever asks.
#[derive(Debug, Default)]
pub struct UserData(Mutex<UserDataStatus>);

impl UserData {
    /// How far it is.
    pub fn status(&self) -> UserDataStatus {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, status: UserDataStatus) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

/// Reads the seed from the host, if it offers one, and applies it; returns when user data has run.
pub fn apply_seed(children: &Children, user_data: &UserData) {
    let Ok(socket) = listener::connect_to_host(SEED_PORT) else { return };
    let Some(seed) = read_seed(socket) else {
        eprintln!("wisp-init: the host's seed cannot be read");
        return;
    };
    apply(children, user_data, &seed);
}

/// Applies a seed; returns when user data has run.
pub fn apply(children: &Children, user_data: &UserData, seed: &Seed) {
    if let Err(error) = authorize(seed) {
        eprintln!("wisp-init: public keys cannot be put into place: {error}");
    }
    if let Err(error) = run_user_data(children, user_data, seed, Path::new(STATE_FOLDER)) {
        eprintln!("wisp-init: user data cannot be run: {error}");
        user_data.set(UserDataStatus { state: UserDataState::Failed, exit: None });
    }
}

fn read_seed(socket: OwnedFd) -> Option<Seed> {
    let mut bytes = Vec::new();
    File::from(socket).take(MAX_SEED as u64).read_to_end(&mut bytes).ok()?;
    Seed::decode(&bytes)
}

/// Adds the public keys that are not there yet to the default user's `authorized_keys`.
fn authorize(seed: &Seed) -> io::Result<()> {
    if seed.public_keys.is_empty() {
        return Ok(());
    }
    let missing = || io::Error::other(format!("the guest has no user {:?}", seed.default_user));
    let user = User::named(&seed.default_user).ok_or_else(missing)?;
    add_keys(Path::new(&user.home), &seed.public_keys, Some((user.uid, user.gid)))
}

fn add_keys(home: &Path, keys: &[String], owner: Option<(u32, u32)>) -> io::Result<()> {
    let folder = home.join(".ssh");
    match fs::DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let path = folder.join("authorized_keys");
    let mut text = fs::read_to_string(&path).unwrap_or_default();
    for key in keys {
        if !text.lines().any(|line| line.trim() == key.trim()) {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(key.trim());
            text.push('\n');
        }
    }
    let temporary = folder.join(".authorized_keys.wisp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    if let Some((uid, gid)) = owner {
        chown(&folder, Some(uid), Some(gid))?;
        chown(&temporary, Some(uid), Some(gid))?;
    }
    fs::rename(&temporary, &path)
}

/// What a boot has to do about user data.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It ran, or was stored, at an earlier boot of this instance.
    Done(UserDataStatus),
    /// It is this instance's first boot.
    First,
}

fn run_user_data(children: &Children, user_data: &UserData, seed: &Seed, folder: &Path) -> io::Result<()> {
    let Some(data) = &seed.user_data else { return Ok(()) };
    let state = folder.join(STATE);
    if let Step::Done(status) = step(&fs::read_to_string(&state).unwrap_or_default(), &seed.instance_id) {
        user_data.set(status);
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let script = folder.join(SCRIPT);
    let is_script = data.starts_with(b"#!");
    write_file(&script, data, if is_script { 0o700 } else { 0o600 })?;
    let note = |status: UserDataStatus| {
        user_data.set(status);
        write_file(&state, render(&seed.instance_id, status).as_bytes(), 0o600)
    };
    if !is_script {
        return note(UserDataStatus { state: UserDataState::Stored, exit: None });
    }
    // Noted before it begins: a script that ends the machine is not begun again.
    note(UserDataStatus { state: UserDataState::Running, exit: None })?;
    let exit = run_script(children, &script)?.exit_code();
    let state = if exit == 0 { UserDataState::Finished } else { UserDataState::Failed };
    note(UserDataStatus { state, exit: Some(exit) })
}

fn write_file(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

fn step(state: &str, instance_id: &str) -> Step {
    let mut words = state.split_whitespace();
    if words.next() != Some(instance_id) {
        return Step::First;
    }
    let name = words.next();
    let exit = words.next().and_then(|word| word.parse().ok());
    let state = match name {
        Some("stored") => UserDataState::Stored,
        Some("finished") => UserDataState::Finished,
        // One that was running when the machine ended did not finish.
        _ => UserDataState::Failed,
    };
    Step::Done(UserDataStatus { state, exit })
}

fn render(instance_id: &str, status: UserDataStatus) -> String {
    let exit = status.exit.map_or_else(String::new, |exit| format!(" {exit}"));
    format!("{instance_id} {}{exit}\n", status.state.as_str())
}

/// Runs the script as root and passes on what it prints.
fn run_script(children: &Children, script: &Path) -> io::Result<ExitStatus> {
    let path = CString::new(script.as_os_str().as_encoded_bytes())?;
    let program = Program {
        argv: vec![path.clone()],
        path,
        env: environment::to_c_strings(environment::for_user(&User::own()))?,
        cwd: Some(c"/".into()),
    };
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let (output, input) = pipe_with(PipeFlags::CLOEXEC)?;
    let stdio = Stdio::Descriptors([null.as_fd(), input.as_fd(), input.as_fd()]);
    let child = children.spawn(|| spawn(&program, stdio))?;
    drop(input);
    pass_on(output);
    Ok(children.reap(child))
}

/// Copies a script's output to the console and to its log, until all who may write to it are gone.
fn pass_on(output: OwnedFd) {
    let open = |path: PathBuf| OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    let mut sinks: Vec<File> = [open("/dev/console".into()), open(LOG.into())].into_iter().flatten().collect();
    let mut output = File::from(output);
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = output.read(&mut buffer) {
        // A full disk or a console that is gone is no reason to stop the script.
        sinks.iter_mut().for_each(|sink| drop(sink.write_all(&buffer[..count])));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_is_done_once_for_each_instance() {
        assert_eq!(step("", "i-1"), Step::First);
        assert_eq!(step("i-0 finished 0\n", "i-1"), Step::First);
        let done = |state, exit| Step::Done(UserDataStatus { state, exit });
        assert_eq!(step("i-1 finished 0\n", "i-1"), done(UserDataState::Finished, Some(0)));
        assert_eq!(step("i-1 failed 3\n", "i-1"), done(UserDataState::Failed, Some(3)));
        assert_eq!(step("i-1 running\n", "i-1"), done(UserDataState::Failed, None));
        assert_eq!(step("i-1 stored\n", "i-1"), done(UserDataState::Stored, None));
    }

    #[test]
    fn what_is_noted_is_read_back() {
        for (state, exit) in [(UserDataState::Finished, Some(0)), (UserDataState::Stored, None)] {
            let status = UserDataStatus { state, exit };
            assert_eq!(step(&render("i-1", status), "i-1"), Step::Done(status));
        }
    }

    #[test]
    fn keys_are_added_to_those_that_are_there() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join(".ssh/authorized_keys");
        add_keys(home.path(), &["ssh-ed25519 A a".into()], None).unwrap();
        fs::write(&file, "ssh-rsa B b\nssh-ed25519 A a").unwrap();
        add_keys(home.path(), &["ssh-ed25519 A a".into(), "ssh-ed25519 C c".into()], None).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "ssh-rsa B b\nssh-ed25519 A a\nssh-ed25519 C c\n");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(home.path().join(".ssh").metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_script_runs_and_data_is_stored() {
        let folder = tempfile::tempdir().unwrap();
        let (children, user_data) = (Children::new(false), UserData::default());
        let trace = folder.path().join("trace");
        let run = |data: &str, id: &str| {
            let seed = Seed { instance_id: id.into(), user_data: Some(data.into()), ..Seed::default() };
            run_user_data(&children, &user_data, &seed, folder.path()).unwrap();
            user_data.status()
        };
        let script = format!("#!/bin/sh\necho ran >> {}\nexit 3\n", trace.display());
        assert_eq!(run(&script, "i-1"), UserDataStatus { state: UserDataState::Failed, exit: Some(3) });
        assert_eq!(run(&script, "i-1"), UserDataStatus { state: UserDataState::Failed, exit: Some(3) });
        assert_eq!(fs::read_to_string(&trace).unwrap(), "ran\n");
        assert_eq!(run(&script, "i-2"), UserDataStatus { state: UserDataState::Failed, exit: Some(3) });
        assert_eq!(fs::read_to_string(&trace).unwrap(), "ran\nran\n");
        assert_eq!(run("plain", "i-3"), UserDataStatus { state: UserDataState::Stored, exit: None });
        assert_eq!(fs::read_to_string(folder.path().join(SCRIPT)).unwrap(), "plain");
    }
}
