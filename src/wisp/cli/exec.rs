//! `wisp exec`: runs a command or a shell in a guest.

use std::ffi::OsString;
use std::process::ExitCode;

use super::guest_command::{self, Outcome};
use super::wait::AGENT_TIMEOUT;
use super::{args, open_cloud};

/// Run a command or a shell in an instance.
///
/// The command runs through the guest's agent, without a network or a key. Standard input, output and error are
/// connected to it, and signals are forwarded to it.
///
/// The exit code is the command's; 126 if it cannot be executed, 127 if it does not exist, 125 if Wisp itself fails.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp exec web                        a shell
  wisp exec web df -h
  tar c . | wisp exec web -- tar x -C /srv")]
pub struct Args {
    #[arg(value_name = "INSTANCE", help = args::INSTANCE)]
    instance: String,

    /// User in the guest [default: root].
    #[arg(long, short, value_name = "NAME")]
    user: Option<String>,

    /// Command and arguments, with or without `--` before them [default: a login shell].
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (record, agent) = open_cloud()?.instances().agent(&args.instance, AGENT_TIMEOUT)?;
    match guest_command::run(agent, &args.command, args.user)? {
        Outcome::Exited(code) | Outcome::Interrupted(code) => Ok(ExitCode::from(code)),
        Outcome::GuestGone => {
            let state = open_cloud()?.instances().state_after_guest_end(record.meta.id)?;
            anyhow::bail!(
                "{}: the guest ended while the command was running; the instance is now {state}",
                record.meta.id
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, clap::Parser)]
    struct Exec {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &str) -> (String, Option<String>, Vec<OsString>) {
        let Args { instance, user, command } = Exec::parse_from(words.split(' ')).args;
        (instance, user, command)
    }

    #[test]
    fn words_after_instance_are_the_command() {
        let uname = vec![OsString::from("uname"), OsString::from("-a")];
        for words in ["exec web uname -a", "exec web -- uname -a"] {
            assert_eq!(parse(words), ("web".into(), None, uname.clone()), "{words}");
        }
        for words in ["exec web --user me uname -a", "exec --user me web -- uname -a", "exec web -u me -- uname -a"] {
            assert_eq!(parse(words), ("web".into(), Some("me".into()), uname.clone()), "{words}");
        }
        let own = parse("exec web ls --user you -- x").2;
        assert_eq!(own, ["ls", "--user", "you", "--", "x"].map(OsString::from));
        assert_eq!(parse("exec web"), ("web".into(), None, Vec::new()));
    }
}
