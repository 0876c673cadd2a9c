//! Applies the seed: keys at each boot, user data once for each instance.
//!
//! The state is in `/var/lib/wisp/user-data.state`, on the guest's own disk. A restarted instance does not run its user
//! data again; a new instance from an image of this disk does. Keys require a writable home
//! directory, and user data a writable `/var/lib`.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};

use super::children::{Child, Children};
use super::environment;
use super::files::{self, Owner};
use super::listener;
use super::spawn::{Program, Stdio, spawn};
use super::users::User;
use crate::poll::{Interest, poll};
use crate::protocol::{ExitStatus, UserDataState, UserDataStatus};
use crate::seed::{MAX_SEED, SEED_PORT, Seed};

pub const STATE_DIRECTORY: &str = "/var/lib/wisp";
const STATE: &str = "user-data.state";
const SCRIPT: &str = "user-data";
/// Log of a script's output, which also goes to the console.
const LOG: &str = "/var/log/wisp-user-data.log";
const AUTHORIZED_KEYS: &str = "authorized_keys";
const BUFFER: usize = 4096;
/// Maximum output in bytes to forward after a script's end. It exceeds a pipe's capacity.
const DRAIN_LIMIT: usize = 2 << 20;

#[derive(Debug, Default)]
pub struct UserData(Mutex<UserDataStatus>);

impl UserData {
    pub fn status(&self) -> UserDataStatus {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, status: UserDataStatus) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

/// Reads the host's seed, if there is one, and applies it. Returns after the user data has run.
pub fn apply_seed(children: &Children, user_data: &UserData) {
    let Ok(socket) = listener::connect_to_host(SEED_PORT) else { return };
    let Some(seed) = read_seed(socket) else {
        eprintln!("wisp-init: cannot read the seed from the host");
        return;
    };
    apply(children, user_data, &seed);
}

/// Applies `seed`. Returns after the user data has run.
pub fn apply(children: &Children, user_data: &UserData, seed: &Seed) {
    if let Err(error) = authorize(seed) {
        eprintln!("wisp-init: cannot install the public keys: {error}");
    }
    if let Err(error) = run_user_data(children, user_data, seed, &Places::of_the_guest()) {
        eprintln!("wisp-init: cannot run the user data: {error}");
        user_data.set(UserDataStatus { state: UserDataState::Failed, exit: None });
    }
}

fn read_seed(socket: OwnedFd) -> Option<Seed> {
    let mut bytes = Vec::new();
    File::from(socket).take(MAX_SEED as u64).read_to_end(&mut bytes).ok()?;
    Seed::decode(&bytes)
}

fn authorize(seed: &Seed) -> io::Result<()> {
    if seed.public_keys.is_empty() {
        return Ok(());
    }
    let missing = || io::Error::other(format!("the guest has no user {:?}", seed.default_user));
    let user = User::named(&seed.default_user).ok_or_else(missing)?;
    add_keys(Path::new(&user.home), &seed.public_keys, (user.uid, user.gid))
}

/// Maximum size of `authorized_keys` in bytes.
const MAX_KEYS: u64 = 1 << 20;

/// Adds keys to a user's `authorized_keys`. The user may have replaced files there, for example with links.
fn add_keys(home: &Path, keys: &[String], owner: Owner) -> io::Result<()> {
    let (uid, _) = owner;
    let home_directory = files::open_directory(home)?;
    let home_owner = rustix::fs::fstat(&home_directory)?.st_uid;
    if home_owner != uid {
        let home = home.display();
        return Err(io::Error::other(format!("{home} belongs to user {home_owner}, not to user {uid}")));
    }
    let directory = files::open_or_make_directory(&home_directory, ".ssh", 0o700)?;
    match rustix::fs::fstat(&directory)?.st_uid {
        owner if owner == uid => {}
        0 => files::give(&directory, Some(owner))?,
        other => return Err(io::Error::other(format!("~/.ssh belongs to user {other}, not to user {uid}"))),
    }
    let before = match files::read(&directory, AUTHORIZED_KEYS, MAX_KEYS)? {
        // The user can read the result, but the file may be a hard link to a system file that the user must not read.
        Some((_, stat)) if stat.st_uid != uid && stat.st_mode & 0o004 == 0 => {
            return Err(io::Error::other(format!("the user has no permission to read ~/.ssh/{AUTHORIZED_KEYS}")));
        }
        Some((before, _)) => before,
        None => Vec::new(),
    };
    match with_keys(&before, keys) {
        text if text == before => Ok(()),
        text => files::replace(&directory, AUTHORIZED_KEYS, &text, 0o600, Some(owner)),
    }
}

/// Appends the missing lines of `keys` to the content of `authorized_keys`.
fn with_keys(before: &[u8], keys: &[String]) -> Vec<u8> {
    let mut text = before.to_vec();
    for key in keys {
        let key = key.trim().as_bytes();
        if !text.split(|byte| *byte == b'\n').any(|line| line.trim_ascii() == key) {
            if text.last().is_some_and(|last| *last != b'\n') {
                text.push(b'\n');
            }
            text.extend_from_slice(key);
            text.push(b'\n');
        }
    }
    text
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// The user data ran, or was stored, at an earlier boot of this instance.
    Done(UserDataStatus),
    First,
}

#[derive(Debug)]
struct Places {
    /// Directory of the user data and its state.
    state: PathBuf,
    log: PathBuf,
    console: PathBuf,
}

impl Places {
    fn of_the_guest() -> Self {
        Self { state: STATE_DIRECTORY.into(), log: LOG.into(), console: "/dev/console".into() }
    }
}

fn run_user_data(children: &Children, user_data: &UserData, seed: &Seed, places: &Places) -> io::Result<()> {
    let Some(data) = &seed.user_data else { return Ok(()) };
    let state = places.state.join(STATE);
    if let Step::Done(status) = step(&fs::read_to_string(&state).unwrap_or_default(), &seed.instance_id) {
        user_data.set(status);
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&places.state)?;
    let directory = files::open_directory(&places.state)?;
    let is_script = data.starts_with(b"#!");
    files::replace(&directory, SCRIPT, data, if is_script { 0o700 } else { 0o600 }, None)?;
    let record = |status: UserDataStatus| {
        user_data.set(status);
        files::replace(&directory, STATE, render(&seed.instance_id, status).as_bytes(), 0o600, None)
    };
    if !is_script {
        return record(UserDataStatus { state: UserDataState::Stored, exit: None });
    }
    // Record this before the script starts: a script that stops the guest must not run again.
    record(UserDataStatus { state: UserDataState::Running, exit: None })?;
    let exit = run_script(children, &places.state.join(SCRIPT), places)?.exit_code();
    let state = if exit == 0 { UserDataState::Finished } else { UserDataState::Failed };
    record(UserDataStatus { state, exit: Some(exit) })
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
        // A script that was running when the guest stopped did not finish.
        _ => UserDataState::Failed,
    };
    Step::Done(UserDataStatus { state, exit })
}

fn render(instance_id: &str, status: UserDataStatus) -> String {
    let exit = status.exit.map_or_else(String::new, |exit| format!(" {exit}"));
    format!("{instance_id} {}{exit}\n", status.state.as_str())
}

/// Runs the script as root and forwards its output until it exits. Its background processes may keep writing.
fn run_script(children: &Children, script: &Path, places: &Places) -> io::Result<ExitStatus> {
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
    let child = children.spawn(|| spawn(&program, stdio)).map_err(|error| explain(error, script))?;
    drop(input);
    let mut output = ScriptOutput::new(output, places);
    output.forward_until(&child);
    if !output.has_ended {
        // Keep reading: SIGPIPE would kill background processes that write to the pipe.
        let _ = thread::Builder::new().name("user-data".into()).spawn(move || while output.forward() {});
    }
    Ok(children.reap(child))
}

/// Adds the interpreter's name to the error of a script that did not start.
fn explain(error: io::Error, script: &Path) -> io::Error {
    let mut start = Vec::new();
    let read = File::open(script).and_then(|file| file.take(256).read_to_end(&mut start));
    let line = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
    match (read, line.strip_prefix(b"#!")) {
        (Ok(_), Some(interpreter)) => {
            let interpreter = String::from_utf8_lossy(interpreter.trim_ascii()).into_owned();
            io::Error::new(error.kind(), format!("cannot start its interpreter {interpreter:?}: {error}"))
        }
        _ => error,
    }
}

struct ScriptOutput {
    pipe: File,
    sinks: Vec<File>,
    /// True once the pipe has no writer.
    has_ended: bool,
}

impl ScriptOutput {
    fn new(pipe: OwnedFd, places: &Places) -> Self {
        let console = OpenOptions::new().append(true).open(&places.console);
        let sinks = [console, files::append(&places.log)].into_iter().flatten().collect();
        Self { pipe: pipe.into(), sinks, has_ended: false }
    }

    /// Forwards output until the child has ended, then the rest of the pipe.
    fn forward_until(&mut self, child: &Child) {
        let mut left = DRAIN_LIMIT;
        let mut is_running = true;
        while !self.has_ended && (is_running || left > 0) {
            let timeout = (!is_running).then_some(Duration::ZERO);
            let slots = [
                Some((self.pipe.as_fd(), Interest::Read)),
                Some((child.as_fd(), Interest::Read)).filter(|_| is_running),
            ];
            let Ok([output, ended]) = poll(slots, timeout) else { return };
            if output.read {
                left = if is_running { left } else { left.saturating_sub(BUFFER) };
                self.forward();
            } else if !is_running {
                return;
            }
            is_running &= !ended.read;
        }
    }

    /// Waits for output and forwards it. Returns false at the end of the output.
    fn forward(&mut self) -> bool {
        let mut buffer = [0; BUFFER];
        match self.pipe.read(&mut buffer) {
            // A full disk or a missing console must not stop the script.
            Ok(count @ 1..) => self.sinks.iter_mut().for_each(|sink| drop(sink.write_all(&buffer[..count]))),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => self.has_ended = true,
        }
        !self.has_ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::files::tests::make_pipe;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn user_data_runs_once_per_instance() {
        assert_eq!(step("", "i-1"), Step::First);
        assert_eq!(step("i-0 finished 0\n", "i-1"), Step::First);
        let done = |state, exit| Step::Done(UserDataStatus { state, exit });
        assert_eq!(step("i-1 finished 0\n", "i-1"), done(UserDataState::Finished, Some(0)));
        assert_eq!(step("i-1 failed 3\n", "i-1"), done(UserDataState::Failed, Some(3)));
        assert_eq!(step("i-1 running\n", "i-1"), done(UserDataState::Failed, None));
        assert_eq!(step("i-1 stored\n", "i-1"), done(UserDataState::Stored, None));
    }

    #[test]
    fn recorded_status_is_read_back() {
        for (state, exit) in [(UserDataState::Finished, Some(0)), (UserDataState::Stored, None)] {
            let status = UserDataStatus { state, exit };
            assert_eq!(step(&render("i-1", status), "i-1"), Step::Done(status));
        }
    }

    fn home() -> (tempfile::TempDir, Owner) {
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        (tempfile::tempdir().unwrap(), own)
    }

    fn key(name: &str) -> Vec<String> {
        vec![format!("ssh-ed25519 {name} {name}")]
    }

    #[test]
    fn keys_are_appended_to_existing_keys() {
        let (home, owner) = home();
        let file = home.path().join(".ssh/authorized_keys");
        add_keys(home.path(), &key("A"), owner).unwrap();
        fs::write(&file, b"ssh-rsa B b\xff\nssh-ed25519 A A").unwrap();
        add_keys(home.path(), &[key("A"), key("C")].concat(), owner).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"ssh-rsa B b\xff\nssh-ed25519 A A\nssh-ed25519 C C\n");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(home.path().join(".ssh").metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn keys_do_not_follow_symlinks() {
        let (home, owner) = home();
        let system = tempfile::tempdir().unwrap();
        let secret = system.path().join("shadow");
        fs::write(&secret, "secret").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
        let is_untouched = || {
            let mode = secret.metadata().unwrap().permissions().mode() & 0o777;
            let names = fs::read_dir(system.path()).unwrap().count();
            fs::read_to_string(&secret).unwrap() == "secret" && mode == 0o640 && names == 1
        };
        // The directory is a link.
        symlink(system.path(), home.path().join(".ssh")).unwrap();
        add_keys(home.path(), &key("A"), owner).unwrap_err();
        assert!(is_untouched());
        // The files to read and to write are links.
        fs::remove_file(home.path().join(".ssh")).unwrap();
        fs::create_dir(home.path().join(".ssh")).unwrap();
        let file = home.path().join(".ssh/authorized_keys");
        symlink(&secret, &file).unwrap();
        add_keys(home.path(), &key("A"), owner).unwrap_err();
        assert!(is_untouched());
        fs::remove_file(&file).unwrap();
        symlink(&secret, home.path().join(".ssh/.authorized_keys.wisp")).unwrap();
        add_keys(home.path(), &key("A"), owner).unwrap();
        assert!(is_untouched());
        assert_eq!(fs::read_to_string(&file).unwrap(), "ssh-ed25519 A A\n");
        // The home directory belongs to another user.
        let error = add_keys(home.path(), &key("B"), (owner.0 + 1, owner.1)).unwrap_err().to_string();
        assert!(error.contains(&format!("belongs to user {}", owner.0)), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "ssh-ed25519 A A\n");
    }

    #[test]
    fn keys_are_not_written_to_files_of_another_user() {
        if !rustix::process::geteuid().is_root() {
            return test_support::skip_without(test_support::Capability::Root);
        }
        const USER: Owner = (1000, 1000);
        const OTHER: u32 = 65534;
        let (home, _) = home();
        let directory = home.path().join(".ssh");
        let give = |path: &Path, user| std::os::unix::fs::chown(path, Some(user), None).unwrap();
        give(home.path(), USER.0);
        fs::create_dir(&directory).unwrap();
        give(&directory, OTHER);
        let error = add_keys(home.path(), &key("A"), USER).unwrap_err().to_string();
        assert!(error.contains(&format!("~/.ssh belongs to user {OTHER}")), "{error}");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        // A system file that the user cannot read, as if hard-linked by the user.
        give(&directory, USER.0);
        let file = directory.join(AUTHORIZED_KEYS);
        fs::write(&file, "secret").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let error = add_keys(home.path(), &key("A"), USER).unwrap_err().to_string();
        assert!(error.contains("no permission to read"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "secret");
    }

    #[test]
    fn keys_in_pipe_are_refused_without_blocking() {
        let (home, owner) = home();
        fs::create_dir(home.path().join(".ssh")).unwrap();
        let file = home.path().join(".ssh/authorized_keys");
        make_pipe(&file);
        let error = add_keys(home.path(), &key("A"), owner).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }

    struct Guest {
        dir: tempfile::TempDir,
        children: Children,
        user_data: UserData,
        places: Places,
    }

    impl Guest {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let console = dir.path().join("console");
            fs::write(&console, "").unwrap();
            let places = Places { state: dir.path().join("state"), log: dir.path().join("log"), console };
            Self { dir, children: Children::new(false), user_data: UserData::default(), places }
        }

        fn run(&self, data: &str, id: &str) -> io::Result<UserDataStatus> {
            let seed = Seed { instance_id: id.into(), user_data: Some(data.into()), ..Seed::default() };
            run_user_data(&self.children, &self.user_data, &seed, &self.places)?;
            Ok(self.user_data.status())
        }
    }

    #[test]
    fn script_runs_and_plain_data_is_stored() {
        let guest = Guest::new();
        let trace = guest.dir.path().join("trace");
        let script = format!("#!/bin/sh\necho said\necho ran >> {}\nexit 3\n", trace.display());
        let failed = UserDataStatus { state: UserDataState::Failed, exit: Some(3) };
        assert_eq!(guest.run(&script, "i-1").unwrap(), failed);
        assert_eq!(guest.run(&script, "i-1").unwrap(), failed);
        assert_eq!(fs::read_to_string(&trace).unwrap(), "ran\n");
        assert_eq!(guest.run(&script, "i-2").unwrap(), failed);
        assert_eq!(fs::read_to_string(&trace).unwrap(), "ran\nran\n");
        assert_eq!(fs::read_to_string(&guest.places.log).unwrap(), "said\nsaid\n");
        assert_eq!(fs::read_to_string(&guest.places.console).unwrap(), "said\nsaid\n");
        let stored = UserDataStatus { state: UserDataState::Stored, exit: None };
        assert_eq!(guest.run("plain", "i-3").unwrap(), stored);
        assert_eq!(fs::read_to_string(guest.places.state.join(SCRIPT)).unwrap(), "plain");
    }

    #[test]
    fn script_finishes_at_exit_despite_background_process() {
        let guest = Guest::new();
        let pipe = |name: &str| {
            let path = guest.dir.path().join(name);
            make_pipe(&path);
            let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            (path, file)
        };
        let ((start, mut starting), (end, ending)) = (pipe("start"), pipe("end"));
        let script = format!(
            "#!/bin/sh\n(read line < {}; echo late; echo $line > {}) &\necho said\n",
            start.display(),
            end.display()
        );
        let finished = UserDataStatus { state: UserDataState::Finished, exit: Some(0) };
        assert_eq!(guest.run(&script, "i-1").unwrap(), finished);
        assert_eq!(fs::read_to_string(&guest.places.log).unwrap(), "said\n");
        // Later output neither kills the process nor blocks it.
        starting.write_all(b"alive\n").unwrap();
        let [ready] = poll([Some((ending.as_fd(), Interest::Read))], Some(Duration::from_secs(60))).unwrap();
        assert!(ready.read, "the background process has ended early");
    }

    #[test]
    fn missing_interpreter_is_named() {
        let guest = Guest::new();
        let error = guest.run("#!/no/such/shell -x\n", "i-1").unwrap_err().to_string();
        assert!(error.contains("\"/no/such/shell -x\""), "{error}");
    }
}
