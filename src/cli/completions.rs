//! `wisp completions`: what a shell completes after `wisp`.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

/// Prints a script that has a shell complete wisp's commands and options.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp completions bash > ~/.local/share/bash-completion/completions/wisp
  wisp completions zsh > ~/.zfunc/_wisp
  wisp completions fish > ~/.config/fish/completions/wisp.fish")]
pub struct Args {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints it.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "wisp", &mut script);
    super::output::print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}
