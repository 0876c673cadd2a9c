//! `wisp completions`: shell completion scripts.

use std::process::ExitCode;

use clap_complete::Shell;

/// Print a shell completion script.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp completions bash > ~/.local/share/bash-completion/completions/wisp
  wisp completions zsh > ~/.zfunc/_wisp
  wisp completions fish > ~/.config/fish/completions/wisp.fish")]
pub struct Args {
    /// Shell to print the script for.
    #[arg(value_enum)]
    shell: Shell,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::help::command(), "wisp", &mut script);
    super::output::print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}
