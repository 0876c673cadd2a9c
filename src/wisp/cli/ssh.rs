//! `wisp ssh`: opens a shell or runs a command in an instance over SSH.

use std::ffi::{OsStr, OsString};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use super::guest_command::{self, Outcome};
use super::wait::AGENT_TIMEOUT;
use super::{args, open_cloud, output};
use cloud::ssh::SshTarget;
use node::guest::parse_user_name;
use node::shell;

/// The timeout for connecting to the instance's SSH port, which is forwarded from the host's loopback interface.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Open a shell or run a command in an instance over SSH.
///
/// The user, key and address are taken from the instance. If SSH is not possible (for example, if the instance's
/// security groups do not allow port 22), the command runs through the agent, as with `wisp exec`. The exit code is the
/// command's.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp key create mine && wisp launch --name web --key mine
  wisp sg authorize default --port 22  allow SSH; otherwise the guest's agent is used
  wisp ssh web                         a shell
  wisp ssh web -- 'df -h | sort'       a command, run by a shell as with ssh
  wisp ssh web -i mine.pem -l admin    with another key, as another user
  wisp ssh web --print                 print the ssh command")]
pub struct Args {
    #[arg(value_name = "[USER@]INSTANCE", help = args::INSTANCE)]
    instance: String,

    /// Private key file [default: KEY-PAIR.pem in the current directory if it exists, else ssh's default keys].
    #[arg(short, long, value_name = "FILE")]
    identity: Option<PathBuf>,

    /// User in the guest [default: the image's default user].
    #[arg(short, long, value_name = "NAME", value_parser = parse_user_name)]
    login: Option<String>,

    /// Print the ssh command instead of running it.
    #[arg(long)]
    print: bool,

    /// Command and arguments [default: a login shell].
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (named, reference) = match args.instance.split_once('@') {
        Some((user, reference)) => (Some(parse_user_name(user).map_err(anyhow::Error::msg)?), reference),
        None => (None, args.instance.as_str()),
    };
    let target = SshTarget::find(&open_cloud()?, reference)?;
    let user = args.login.or(named).unwrap_or_else(|| target.user.clone());
    let why = match ssh(&target, &user, args.identity.as_deref(), &args.command) {
        Ok(command) if args.print => {
            let words = std::iter::once(command.get_program()).chain(command.get_args());
            output::print(&shell::command(words))?;
            return Ok(ExitCode::SUCCESS);
        }
        // exec returns only if it fails.
        Ok(mut command) => format!("cannot start ssh ({})", command.exec()),
        Err(why) => why,
    };
    anyhow::ensure!(!args.print, "{}: {why}; use `wisp exec`, which does not need SSH", target.instance);
    output::say(&format!("{}: {why}; connecting through the guest's agent instead.", target.instance));
    let agent = target.dir.agent(AGENT_TIMEOUT)?;
    let command = if args.command.is_empty() { Vec::new() } else { in_a_shell(&args.command) };
    match guest_command::run(agent, &command, Some(user))? {
        Outcome::Exited(code) | Outcome::Interrupted(code) => Ok(ExitCode::from(code)),
        Outcome::GuestGone => anyhow::bail!("{}: the guest ended while the command was running", target.instance),
    }
}

/// Returns the `ssh` command, or a short reason why SSH is not possible.
fn ssh(target: &SshTarget, user: &str, identity: Option<&Path>, words: &[OsString]) -> Result<Command, String> {
    let Some(endpoint) = target.endpoint else {
        return Err(format!(
            "none of its security groups allows inbound port 22 (`wisp show {}` lists them; `wisp sg authorize GROUP \
             --port 22` allows it)",
            target.instance
        ));
    };
    if let Err(error) = TcpStream::connect_timeout(&SocketAddr::V4(endpoint), CONNECT_TIMEOUT) {
        return Err(format!("cannot connect to {endpoint} ({error})"));
    }
    Ok(command(target, endpoint, user, identity, words))
}

/// Builds the command. No value from the image or the instance's owner can be parsed as an option.
fn command(
    target: &SshTarget,
    endpoint: SocketAddrV4,
    user: &str,
    identity: Option<&Path>,
    words: &[OsString],
) -> Command {
    let identity = match (identity, &target.key_name) {
        (Some(path), _) => Some(path.to_path_buf()),
        // "./" keeps ssh from expanding a name that starts with "~".
        (None, Some(name)) => Some(PathBuf::from(format!("./{name}.pem"))).filter(|path| path.exists()),
        (None, None) => None,
    };
    let mut command = Command::new("ssh");
    command.args(["-p", &endpoint.port().to_string(), "-o", &format!("HostKeyAlias={}", target.instance)]);
    command.arg("-o").arg(known_hosts_option(&target.known_hosts)).args(["-o", "StrictHostKeyChecking=accept-new"]);
    if let Some(identity) = identity {
        command.arg("-i").arg(identity).args(["-o", "IdentitiesOnly=yes"]);
    }
    // After "--", ssh accepts no options, not even after the address.
    command.args(["-l", user, "--", &endpoint.ip().to_string()]).args(words);
    command
}

/// Returns the option for the known hosts file. ssh splits its value at spaces and expands `%` (ssh_config(5)).
fn known_hosts_option(path: &Path) -> OsString {
    let mut option = b"UserKnownHostsFile=".to_vec();
    let bytes = path.as_os_str().as_bytes();
    let needs_quotes = bytes.iter().any(|byte| b" \t\"\\'#".contains(byte));
    option.extend(needs_quotes.then_some(b'"'));
    for byte in bytes {
        match byte {
            b'%' => option.push(b'%'),
            b'"' | b'\\' => option.push(b'\\'),
            _ => {}
        }
        option.push(*byte);
    }
    option.extend(needs_quotes.then_some(b'"'));
    OsString::from_vec(option)
}

/// Joins the words with spaces for a shell to parse, as ssh does.
fn in_a_shell(words: &[OsString]) -> Vec<OsString> {
    vec!["sh".into(), "-c".into(), words.join(OsStr::new(" "))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::home::Home;
    use node::instance::InstanceDir;

    fn target(known_hosts: &str) -> SshTarget {
        let home = tempfile::tempdir().unwrap();
        let id = "i-0123456789abcdef0".parse().unwrap();
        SshTarget {
            instance: id,
            dir: InstanceDir::of(&Home::at(home.path()).unwrap(), id),
            user: "admin".into(),
            key_name: Some("no-such-key".into()),
            endpoint: Some("127.18.0.5:22".parse().unwrap()),
            known_hosts: known_hosts.into(),
        }
    }

    fn arguments(target: &SshTarget, user: &str, words: &[&str]) -> Vec<String> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let command = command(target, target.endpoint.unwrap(), user, None, &words);
        command.get_args().map(|word| word.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn ssh_user_and_words_are_not_options() {
        let arguments = arguments(&target("/w/known_hosts"), "-oProxyCommand=x", &["-oProxyCommand=y", "z"]);
        let tail = ["-l", "-oProxyCommand=x", "--", "127.18.0.5", "-oProxyCommand=y", "z"];
        assert!(arguments.ends_with(&tail.map(String::from)), "{arguments:?}");
        assert!(arguments.contains(&"UserKnownHostsFile=/w/known_hosts".to_string()), "{arguments:?}");
    }

    /// `ssh -G` prints the configuration that OpenSSH derives from the command.
    #[test]
    fn openssh_parses_command_as_intended() {
        let target = target("/w h/100%/a\"b/known_hosts");
        // If ssh parsed this word as an option, its output would have a line "proxycommand".
        let mut command = command(&target, target.endpoint.unwrap(), "admin", None, &["-oProxyCommand=x".into()]);
        let program = command.get_program().to_owned();
        let arguments: Vec<_> = command.get_args().map(OsStr::to_owned).collect();
        command = Command::new(program);
        let output = command.args(["-F", "none", "-G"]).args(arguments).output().expect("openssh-client is needed");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        for line in ["user admin", "hostname 127.18.0.5", "port 22"] {
            assert!(text.lines().any(|other| other == line), "{line}: {text}{error}");
        }
        assert!(!text.lines().any(|line| line.starts_with("proxycommand ")), "{text}");
        assert!(
            text.lines().any(|line| line.starts_with("userknownhostsfile ") && line.contains("/w h/100")),
            "{text}"
        );
    }
}
