//! The `wisp` command: see [`wisp::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    node::snapshot_check::register(|dir| vmm::snapshot::check(dir).map_err(|error| error.to_string()));
    wisp::cli::main()
}
