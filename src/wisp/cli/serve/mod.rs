//! `wisp serve`: serves the EC2 API.

mod running;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::Context;
use clap::Subcommand;

use super::output;
use api::sigv4::AccessKey;
use api::{access_key, clients};
use node::home::Home;
use node::shell;
use running::Server;

const DEFAULT_PORT: u16 = 4280;

/// Serve the EC2 API to AWS clients, on loopback.
///
/// With a COMMAND, the server runs only as long as the command, on a free port, and the command's environment points
/// AWS clients at it. Requests must be signed with the access key of the data directory.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp serve                                   serve until Ctrl-C
  eval \"$(wisp serve env)\"                     point the clients of this shell at it
  wisp serve -- ansible-playbook site.yml      serve for one command
  wisp aws ec2 describe-instances              the same, for the AWS CLI")]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<ServeCommand>,

    /// Port on 127.0.0.1 [default: 4280, or a free one with a COMMAND].
    #[arg(long)]
    port: Option<u16>,

    /// Command to run with the server.
    #[arg(last = true, value_name = "COMMAND")]
    run: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
enum ServeCommand {
    /// Print the environment of AWS clients as shell commands.
    Env {
        /// Port of the server.
        #[arg(long, default_value_t = DEFAULT_PORT)]
        port: u16,
    },
    /// Print the access key for `credential_process` of a profile.
    Credentials,
    /// Print a profile for ~/.aws/config.
    Profile {
        /// Profile name.
        #[arg(long, default_value = "wisp")]
        name: String,
        /// Port of the server.
        #[arg(long, default_value_t = DEFAULT_PORT)]
        port: u16,
    },
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let home = Home::open()?;
    let key = access_key::of(&home)?;
    match args.command {
        Some(ServeCommand::Env { port }) => print_environment(&home, &key, port)?,
        Some(ServeCommand::Credentials) => output::print(&format!("{}\n", access_key::credential_process(&key)))?,
        Some(ServeCommand::Profile { name, port }) => print_profile(&name, port)?,
        None if args.run.is_empty() => serve(key, args.port.unwrap_or(DEFAULT_PORT))?,
        None => return run_with_server(&home, key, args.port.unwrap_or(0), &args.run),
    }
    Ok(ExitCode::SUCCESS)
}

fn serve(key: AccessKey, port: u16) -> anyhow::Result<()> {
    let server = Server::start(key, loopback(port))?;
    output::say(&format!("Serving the EC2 API on {}. Press Ctrl-C to end.", server.endpoint()));
    output::say("Point AWS clients of another shell at it:");
    let port = if port == DEFAULT_PORT { String::new() } else { format!(" --port {port}") };
    output::say(&format!("  eval \"$(wisp serve env{port})\""));
    server.wait_for_signal();
    server.stop();
    Ok(())
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn endpoint(port: u16) -> String {
    format!("http://{}", loopback(port))
}

/// Runs a command with a server of its own. Returns the command's exit code.
pub fn run_with_server(home: &Home, key: AccessKey, port: u16, command: &[OsString]) -> anyhow::Result<ExitCode> {
    let [program, arguments @ ..] = command else { anyhow::bail!("no command is given") };
    let server = Server::start(key.clone(), loopback(port))?;
    let data = tempfile::Builder::new().prefix("endpoints-").tempdir_in(home.aws())?;
    clients::write_endpoint_rules(server.endpoint(), data.path())?;
    let mut child = Command::new(program);
    child.args(arguments).envs(clients::environment(server.endpoint(), &key, data.path()));
    for name in clients::REMOVED {
        child.env_remove(name);
    }
    // A signal of the terminal reaches the command, too. The server ends after it.
    let status = server.run_command(child).with_context(|| format!("cannot run {}", program.display()))?;
    server.stop();
    Ok(exit_code(status))
}

fn exit_code(status: ExitStatus) -> ExitCode {
    // As in a shell: 128 and the signal's number.
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

fn print_environment(home: &Home, key: &AccessKey, port: u16) -> anyhow::Result<()> {
    let data = home.aws().join(format!("endpoints-{port}"));
    write_rules(port, &data)?;
    let set = clients::environment(&endpoint(port), key, &data);
    let set = set.iter().map(|(name, value)| format!("export {name}={}\n", shell::command([value])));
    let unset = format!("unset {}\n", clients::REMOVED.join(" "));
    Ok(output::print(&set.chain([unset]).collect::<String>())?)
}

fn write_rules(port: u16, data: &Path) -> anyhow::Result<()> {
    clients::write_endpoint_rules(&endpoint(port), data).with_context(|| format!("cannot write {}", data.display()))
}

fn print_profile(name: &str, port: u16) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    let program = shell::command([program]);
    Ok(output::print(&format!(
        "[profile {name}]\nregion = {}\nendpoint_url = {}\ncredential_process = {program} serve credentials\n",
        ec2::network::REGION,
        endpoint(port),
    ))?)
}
