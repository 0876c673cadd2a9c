//! `wisp key`: manages key pairs.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use serde::Serialize;

use super::open_cloud;
use super::output::{self, Cell, Output, Tone};
use super::resource::{self, Column, Resource};
use cloud::{shapes, utc};
use ec2::key::{KeyFormat, KeyName, KeyType};
use store::KeyPairRecord;

/// Manage key pairs.
///
/// The public key is installed in guests that are launched with the key pair. The private key is written to a file when
/// the key pair is created; Wisp keeps no copy.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp key create me                                 write the private key to me.pem
  wisp key import laptop ~/.ssh/id_ed25519.pub
  wisp launch --key me --name web")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a key pair and write its private key to a file.
    Create {
        /// Key pair name.
        name: KeyName,
        /// Key type: ed25519 or rsa.
        #[arg(long = "type", value_name = "TYPE", default_value = "ed25519")]
        key_type: KeyType,
        /// Private key format: pem or openssh.
        #[arg(long, default_value = "pem")]
        format: KeyFormat,
        /// Private key file [default: NAME.pem]. An existing file is never overwritten.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Import a public key.
    Import {
        /// Key pair name.
        name: KeyName,
        /// Public key file, or - for standard input.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// List key pairs.
    Ls,
    /// Delete key pairs. Existing guests keep the public key.
    Rm {
        /// Key pair names.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

pub fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    match args.command {
        Command::Create { name, key_type, format, file } => {
            let path = file.unwrap_or_else(|| PathBuf::from(format!("{}.pem", name.as_str())));
            let record = cloud.key_pairs().create_in_file(&name, key_type, format, &path)?;
            resource::show(&record, &summary(&record), &[], output)?;
            if output == Output::Table {
                output::say(&format!("The private key was saved to {}. Wisp keeps no copy of it.", path.display()));
                output::next_command(["launch", "--key", &record.spec.name]);
            }
        }
        Command::Import { name, file } => {
            let record = cloud.key_pairs().import(&name, &read(&file)?, BTreeMap::new())?;
            resource::show(&record, &summary(&record), &["launch", "--key", &record.spec.name], output)?;
        }
        Command::Ls => resource::list(&cloud.key_pairs().list()?, output)?,
        Command::Rm { names } => {
            resource::remove(&names, "deleted", output, |name| {
                cloud.key_pairs().delete(name).map(|record| record.spec.name)
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn summary(pair: &KeyPairRecord) -> String {
    format!("{}  {}  {}", pair.meta.id, pair.spec.key_type, pair.status.fingerprint)
}

impl Resource for KeyPairRecord {
    const LIST: &'static str = "KeyPairs";
    const COLUMNS: &'static [Column<Self>] = &[
        Column::left("Name", |pair| Cell::new(pair.spec.name.clone(), Tone::Strong)),
        Column::left("Key pair", |pair| pair.meta.id.to_string().into()),
        Column::left("Type", |pair| pair.spec.key_type.clone().into()),
        Column::left("Fingerprint", |pair| pair.status.fingerprint.clone().into()),
        Column::left("Created", |pair| Cell::new(utc(pair.meta.created), Tone::Quiet)),
    ];

    fn shape(&self) -> impl Serialize {
        shapes::key_pair(self)
    }
}

/// Reads a file, or standard input for `-`.
pub fn read(path: &std::path::Path) -> anyhow::Result<Vec<u8>> {
    if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
        return Ok(bytes);
    }
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
