//! `wisp ssh`: a shell, or a command, in an instance by SSH.

use std::ffi::{OsStr, OsString};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use super::guest_command::{self, Outcome};
use super::wait::AGENT_TIMEOUT;
use super::{open_cloud, output};
use crate::cloud::ssh::SshTarget;

/// How long the host's own loopback may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens a shell in an instance, or runs a command there, by SSH.
///
/// The user, the key and the address are the instance's own. Where it cannot be reached so (its security groups do not open
/// port 22, or there is no `ssh` here), the guest's agent does it, as with `wisp exec`. The exit code is the command's.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp key create mine && wisp launch --name web --key mine
  wisp sg authorize default --port 22  lets ssh in; without, the guest's agent is used
  wisp ssh web                         a shell
  wisp ssh web -- 'df -h | sort'       a command: a shell in the guest reads it, as with ssh
  wisp ssh web -i mine.pem -l admin    with another key, as another user
  wisp ssh web --print                 the ssh command, to be used by hand")]
pub struct Args {
    /// The instance: its id, the beginning of it, or its name; USER@ may stand before it.
    #[arg(value_name = "INSTANCE")]
    instance: String,

    /// The private key's file; the one that `wisp key create` wrote here, if left out, or what ssh finds by itself.
    #[arg(short, long, value_name = "FILE")]
    identity: Option<PathBuf>,

    /// The guest's user; the image's, if left out.
    #[arg(short, long, value_name = "NAME")]
    login: Option<String>,

    /// Print the ssh command in place of running it.
    #[arg(long)]
    print: bool,

    /// The command and its arguments; a login shell if left out.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Opens it.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (named, reference) = match args.instance.split_once('@') {
        Some((user, reference)) => (Some(user.to_string()), reference),
        None => (None, args.instance.as_str()),
    };
    let target = open_cloud()?.ssh_target(reference)?;
    let user = args.login.or(named).unwrap_or_else(|| target.user.clone());
    let why = match ssh(&target, &user, args.identity.as_deref(), &args.command) {
        Ok(command) if args.print => {
            output::print(&shown(&command))?;
            return Ok(ExitCode::SUCCESS);
        }
        // It comes back only where it could not be started.
        Ok(mut command) => format!("ssh cannot be started ({})", command.exec()),
        Err(why) => why,
    };
    anyhow::ensure!(!args.print, "{}: {why}; `wisp exec` needs none of it", target.instance);
    output::say(&format!("{}: {why}; through the guest's agent instead.", target.instance));
    let agent = target.folder.agent(AGENT_TIMEOUT)?;
    let command = if args.command.is_empty() { Vec::new() } else { in_a_shell(&args.command) };
    match guest_command::run(agent, &command, Some(user))? {
        Outcome::Exited(code) | Outcome::Interrupted(code) => Ok(ExitCode::from(code)),
        Outcome::GuestGone => anyhow::bail!("{}: the guest ended while the command ran", target.instance),
    }
}

/// The command; the error is why there is none, in a few words.
fn ssh(
    target: &SshTarget,
    user: &str,
    identity: Option<&std::path::Path>,
    words: &[OsString],
) -> Result<Command, String> {
    let Some(endpoint) = target.endpoint else {
        return Err("its security groups let nobody in at port 22 (`wisp sg authorize default --port 22` does)".into());
    };
    let identity = match (identity, &target.key_name) {
        (Some(path), _) => Some(path.to_path_buf()),
        (None, Some(name)) => Some(PathBuf::from(format!("{name}.pem"))).filter(|path| path.exists()),
        (None, None) => None,
    };
    if let Err(error) = TcpStream::connect_timeout(&SocketAddr::V4(endpoint), CONNECT_TIMEOUT) {
        return Err(format!("{endpoint} does not answer ({error})"));
    }
    let mut command = Command::new("ssh");
    command.args(["-p", &endpoint.port().to_string(), "-o", &format!("HostKeyAlias={}", target.instance)]);
    let mut known_hosts = OsString::from("UserKnownHostsFile=");
    known_hosts.push(&target.known_hosts);
    command.arg("-o").arg(known_hosts).args(["-o", "StrictHostKeyChecking=accept-new"]);
    if let Some(identity) = identity {
        command.arg("-i").arg(identity).args(["-o", "IdentitiesOnly=yes"]);
    }
    command.arg(format!("{user}@{}", endpoint.ip()));
    if !words.is_empty() {
        command.arg("--").args(words);
    }
    Ok(command)
}

/// As ssh has it: the words are put together with spaces, and a shell takes them apart.
fn in_a_shell(words: &[OsString]) -> Vec<OsString> {
    vec!["sh".into(), "-c".into(), words.join(OsStr::new(" "))]
}

/// A command as it is typed.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words.map(|word| quoted(word).to_string_lossy().into_owned()).collect();
    format!("{}\n", words.join(" "))
}

/// A word as a shell reads it back.
fn quoted(word: &OsStr) -> OsString {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_./=:@,+%".contains(byte);
    let bytes = word.as_encoded_bytes();
    if !bytes.is_empty() && bytes.iter().all(is_plain) {
        return word.to_os_string();
    }
    match word.to_str() {
        Some(text) => format!("'{}'", text.replace('\'', r"'\''")).into(),
        None => word.to_os_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_change_them() {
        let quote = |text: &str| quoted(OsStr::new(text)).into_string().unwrap();
        assert_eq!(quote("a-b_c.d/e=f"), "a-b_c.d/e=f");
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
    }
}
