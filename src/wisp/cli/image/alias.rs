//! `wisp image alias`: manages image aliases.

use clap::Subcommand;
use serde::Serialize;

use super::super::output::{Cell, Output, Tone};
use super::super::resource::{self, Column, Resource};
use cloud::{Cloud, shapes, utc};
use ec2::image_alias::AliasPath;
use store::ImageAlias;

/// Manage image aliases (Systems Manager parameters).
///
/// A launch with `resolve:ssm:PATH` uses the image of the alias.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp image alias add /aws/service/debian/release/12/latest/amd64 debian
  wisp image alias ls
  wisp launch resolve:ssm:/aws/service/debian/release/12/latest/amd64
  wisp image alias rm /aws/service/debian/release/12/latest/amd64")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Add an alias.
    Add {
        /// Parameter name, such as /images/web.
        path: AliasPath,
        #[arg(help = super::args::IMAGE)]
        image: String,
        /// Replace the image of an existing alias.
        #[arg(long)]
        overwrite: bool,
    },
    /// List aliases.
    Ls,
    /// Remove aliases. Their images are not affected.
    Rm {
        /// Parameter names.
        #[arg(required = true)]
        paths: Vec<String>,
    },
}

pub fn run(cloud: &Cloud, args: Args, output: Output) -> anyhow::Result<()> {
    match args.command {
        Command::Add { path, image, overwrite } => {
            let alias = cloud.image_aliases().set(&path, &image, overwrite)?;
            let summary = format!("{}  {}", alias.path, alias.image_id);
            resource::show(&alias, &summary, &["launch", &format!("resolve:ssm:{}", alias.path)], output)
        }
        Command::Ls => resource::list(&cloud.image_aliases().list()?, output),
        Command::Rm { paths } => resource::remove(&paths, "removed", output, |path| {
            cloud.image_aliases().remove(path).map(|alias| alias.path)
        }),
    }
}

impl Resource for ImageAlias {
    const LIST: &'static str = "Parameters";
    const COLUMNS: &'static [Column<Self>] = &[
        Column::left("Alias", |alias| Cell::new(alias.path.as_str(), Tone::Strong)),
        Column::left("Image", |alias| alias.image_id.to_string().into()),
        Column::right("Version", |alias| alias.version.to_string().into()),
        Column::left("Modified", |alias| Cell::new(utc(alias.modified), Tone::Quiet)),
    ];

    fn shape(&self) -> impl Serialize {
        shapes::parameter(self)
    }

    fn response(&self) -> impl Serialize {
        super::output::member("Parameter", self.shape())
    }
}
