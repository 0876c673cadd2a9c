//! The command line: one file per subcommand, with its arguments, help and action.

pub mod output;

mod address;
mod args;
mod aws;
mod bench;
mod completions;
mod console;
mod cp;
mod disk_option;
mod doctor;
mod escape;
mod exec;
mod fork;
mod gateway;
mod guest_command;
mod help;
mod history;
mod image;
mod key;
mod launch;
mod launch_parameters;
mod launch_template;
mod limits;
mod ls;
mod metadata_defaults;
mod modify;
mod network;
mod query;
mod reboot;
mod recommend;
mod resource;
mod route_table;
mod router;
mod run;
mod serial;
mod serve;
mod sg;
mod show;
mod size;
mod snapshot;
mod ssh;
mod start;
mod stop;
mod subnet;
mod tag;
mod template;
mod terminate;
mod timeline;
mod top;
mod types;
mod vmm;
mod volume;
mod vpc;
mod wait;

use std::io::Write as _;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};

use self::output::Output;
use self::query::Rendering;
use ::machine::timeline::monotonic_ns;
use cloud::shapes;
use cloud::stop::StateChange;
use cloud::{Cloud, Outcome};

/// EC2 on one Linux machine: Linux guests under KVM, with EC2's terms and behavior.
#[derive(Debug, Parser)]
#[command(
    name = "wisp",
    version,
    max_term_width = 100,
    disable_help_flag = true,
    disable_version_flag = true,
    after_help = "\
Try first:
  wisp run                     Boot a Linux guest and open a shell in it
  wisp run -- uname -a         Run one command in a guest
  wisp launch --name web       Launch an instance that keeps running (see wisp ls, wisp exec)
  wisp doctor                  Check whether this host can run guests

Environment:
  WISP_HOME          Data directory [default: $XDG_DATA_HOME/wisp, ~/.local/share/wisp]
  WISP_TEMPLATES     `off` disables templates: every guest cold-boots
  WISP_WARM_LIMIT    Disk space for templates in MiB [default: 4096; 0: no templates]
  WISP_LOG           Log level: error, warn, info or debug [default: warn]

Run wisp COMMAND --help for the options and examples of a command."
)]
struct Cli {
    /// Output format; text has the AWS CLI's format [default: table, or json with --query].
    #[arg(long, global = true, value_enum, hide_possible_values = true, value_name = "table|json|text",
        help_heading = args::GLOBAL)]
    output: Option<Format>,

    /// Print only the part of the JSON output that this JMESPath expression selects.
    #[arg(long, global = true, value_name = "JMESPATH", value_parser = query::parse, help_heading = args::GLOBAL)]
    query: Option<String>,

    /// Print help.
    #[arg(short, long, global = true, action = ArgAction::Help, help_heading = args::GLOBAL)]
    help: Option<bool>,

    /// Print the version.
    #[arg(short = 'V', long, action = ArgAction::Version, help_heading = args::GLOBAL)]
    version: Option<bool>,

    #[command(subcommand)]
    command: Command,
}

/// An output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Table,
    Json,
    Text,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Launch(launch::Args),
    Exec(exec::Args),
    Ssh(ssh::Args),
    Cp(cp::Args),
    Console(console::Args),
    Ls(ls::Args),
    Show(show::Args),
    Start(start::Args),
    Stop(stop::Args),
    Reboot(reboot::Args),
    Fork(fork::Args),
    Terminate(terminate::Args),
    Modify(modify::Args),
    Tag(tag::Args),
    MetadataDefaults(metadata_defaults::Args),
    Template(launch_template::Args),
    Image(image::Args),
    Volume(volume::Args),
    Snapshot(snapshot::Args),
    Vpc(vpc::Args),
    Subnet(subnet::Args),
    Gateway(gateway::Args),
    RouteTable(route_table::Args),
    Sg(sg::Args),
    Address(address::Args),
    Key(key::Args),
    Types(types::Args),
    Top(top::Args),
    Bench(bench::Args),
    Recommend(recommend::Args),
    Timeline(timeline::Args),
    Serve(serve::Args),
    Aws(aws::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
    #[command(hide = true)]
    Router(router::Args),
    #[command(hide = true)]
    Vmm(vmm::Args),
}

impl Cli {
    /// Sets the format of responses for programs, and returns the kind of output.
    fn choose_output(&mut self) -> Result<Output, clap::Error> {
        let query = self.query.take();
        let format = self.output.unwrap_or(if query.is_some() { Format::Json } else { Format::Table });
        if format == Format::Table {
            return match query {
                None => Ok(Output::Table),
                Some(_) => {
                    let message =
                        "--query selects a part of a response: it works with --output json and text, not with table";
                    Err(Cli::command().error(ErrorKind::ArgumentConflict, message))
                }
            };
        }
        Rendering { query, text: format == Format::Text }.set();
        Ok(Output::Json)
    }
}

/// The exit code for invalid arguments.
const USAGE: u8 = 2;
/// The exit code of commands that run a program in a guest, if Wisp itself fails or its arguments are invalid. The exit
/// codes 126 and 127 mean that the program cannot be executed or is not found.
const NOT_RUN: u8 = 125;

/// Runs the command line. The exit code is 0, 1 (failed) or 2 (usage). Commands that run a program in a guest return
/// its exit code or, like docker, 125 if Wisp itself fails.
pub fn main() -> ExitCode {
    let began_ns = monotonic_ns();
    // The page of `wisp --help` is rendered only if clap has something to print.
    let matches = Cli::command().try_get_matches().or_else(|_| help::command().try_get_matches());
    let parsed = matches.and_then(|matches| Cli::from_arg_matches(&matches)).and_then(|mut cli| {
        let output = cli.choose_output()?;
        Ok((cli, output))
    });
    let (cli, output) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            // If printing fails, the exit code is the same.
            let _ = error.print();
            return if error.use_stderr() { usage_code() } else { ExitCode::SUCCESS };
        }
    };
    let runs_in_guest = matches!(cli.command, Command::Run(_) | Command::Exec(_) | Command::Ssh(_) | Command::Aws(_));
    let log = env_logger::Env::new().filter_or(
        "WISP_LOG",
        if matches!(cli.command, Command::Vmm(_) | Command::Router(_)) { "info" } else { "warn" },
    );
    // virtio-queue logs every ring error, and a guest can cause any number of them. `vmm::fault` counts them and limits
    // how often they are logged.
    let quiet = log::LevelFilter::Off;
    env_logger::Builder::from_env(log)
        .filter_module("virtio_queue", quiet)
        .format(|line, record| {
            // The message can contain text from a guest.
            let text = record.args().to_string();
            writeln!(line, "[{} {:<5}] {}", line.timestamp(), record.level(), escape::escape(&text))
        })
        .init();
    let result = match cli.command {
        Command::Run(args) => run::run(args, began_ns),
        Command::Serve(args) => serve::run(args),
        Command::Aws(args) => aws::run(args),
        Command::Launch(args) => launch::run(args, output),
        Command::Ls(args) => ls::run(&args, output),
        Command::Show(args) => show::run(&args, output),
        Command::Start(args) => start::run(&args, output),
        Command::Stop(args) => stop::run(&args, output),
        Command::Fork(args) => fork::run(args, output),
        Command::Reboot(args) => reboot::run(&args, output),
        Command::Terminate(args) => terminate::run(&args, output),
        Command::Exec(args) => exec::run(args),
        Command::Ssh(args) => ssh::run(args),
        Command::Sg(args) => sg::run(args, output),
        Command::Vpc(args) => vpc::run(args, output),
        Command::Gateway(args) => gateway::run(args, output),
        Command::RouteTable(args) => route_table::run(args, output),
        Command::Subnet(args) => subnet::run(args, output),
        Command::Address(args) => address::run(args, output),
        Command::Cp(args) => cp::run(&args),
        Command::Console(args) => console::run(&args, output),
        Command::Modify(args) => modify::run(&args, output),
        Command::MetadataDefaults(args) => metadata_defaults::run(&args, output),
        Command::Template(args) => launch_template::run(args, output),
        Command::Tag(args) => tag::run(&args, output),
        Command::Image(args) => image::run(args, output, began_ns),
        Command::Volume(args) => volume::run(args, output),
        Command::Snapshot(args) => snapshot::run(args, output),
        Command::Key(args) => key::run(args, output),
        Command::Top(args) => top::run(&args, output),
        Command::Recommend(args) => recommend::run(&args, output),
        Command::Completions(args) => completions::run(&args),
        Command::Bench(args) => bench::run(args, output),
        Command::Types(args) => types::run(&args, output),
        Command::Timeline(args) => timeline::run(&args, output),
        Command::Doctor(args) => doctor::run(&args, output),
        Command::Router(args) => router::run(&args),
        Command::Vmm(args) => vmm::run(args),
    };
    result.unwrap_or_else(|error| {
        output::print_error(&error);
        if runs_in_guest { ExitCode::from(NOT_RUN) } else { ExitCode::FAILURE }
    })
}

/// Returns the exit code for invalid arguments.
fn usage_code() -> ExitCode {
    let matches = Cli::command().ignore_errors(true).try_get_matches().ok();
    let runs_in_guest =
        matches.is_some_and(|matches| matches!(matches.subcommand_name(), Some("run" | "exec" | "ssh")));
    ExitCode::from(if runs_in_guest { NOT_RUN } else { USAGE })
}

/// Opens the data directory and prints its warnings, such as instances that ended since the last command.
fn open_cloud() -> anyhow::Result<Cloud> {
    Ok(report(Cloud::open()?))
}

/// Prints the warnings of an operation, and returns its value.
fn report<T>(outcome: Outcome<T>) -> T {
    for warning in outcome.warnings {
        output::say(&format!("{} {warning}", output::Screen::stderr().paint(output::Tone::Warning, "Note:")));
    }
    outcome.value
}

/// Prints state changes of instances. `list` is the name of the list in JSON output.
fn print_changes(list: &str, changes: &[StateChange], output: Output) -> anyhow::Result<()> {
    match output {
        Output::Json => {
            output::print_json(&output::member(list, changes.iter().map(shapes::state_change).collect::<Vec<_>>()))?
        }
        Output::Table => {
            let line =
                |change: &StateChange| format!("{}  {} → {}\n", change.instance, change.previous, change.current);
            output::print(&changes.iter().map(line).collect::<String>())?;
        }
    }
    Ok(())
}
