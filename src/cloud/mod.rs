//! What the subcommands do, in EC2's words: the one room that sees store, host and monitor together.

pub mod embedded;
pub mod image;
pub mod run;
