//! The `wisp` command: see [`wisp::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    wisp::cli::main()
}
