//! `wisp image`: AMIs.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::output::{self, Align, Cell, Output, Screen, Tone};
use super::{open_cloud, shapes};
use crate::cloud::image::Image;
use crate::cloud::launch::ROOT_DEVICE;
use crate::cloud::utc;
use crate::store::ImageRecord;

/// AMIs: what instances are launched from.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp image ls
  wisp image show tiny
  wisp image create web --name web-1      of an instance's root volume
  wisp image rm web-1")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists the images.
    Ls,
    /// Shows all there is to say about an image.
    Show {
        /// Its name, its id, or the beginning of it.
        image: String,
    },
    /// Makes an image of an instance's root volume; a running guest writes what it has to its disk first.
    Create {
        /// The instance.
        instance: String,
        /// The image's name.
        #[arg(long)]
        name: String,
        /// What it is for.
        #[arg(long, default_value = "")]
        description: String,
        /// Do not have a running guest write to its disk first: the image is what a power cut would leave.
        #[arg(long)]
        no_reboot: bool,
    },
    /// Computes the digests of an image's files again.
    Verify {
        /// Its name, its id, or the beginning of it.
        image: String,
    },
    /// Deregisters images. Instances that use one keep it.
    Rm {
        /// Names or ids.
        #[arg(required = true)]
        images: Vec<String>,
    },
}

/// Does it.
pub fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    let mut cloud = open_cloud()?;
    match args.command {
        Command::Ls => list(&cloud.images()?, output)?,
        Command::Show { image } => {
            let (record, image) = cloud.image(Some(&image))?;
            match output {
                Output::Json => output::print_json(&json!({"Images": [shapes::image(&record, devices(&image))]}))?,
                Output::Table => output::print(&lines(&record, &image, Screen::stdout()).join("\n"))?,
            }
        }
        Command::Create { instance, name, description, no_reboot } => {
            let instance = cloud.instance(&instance)?;
            let spinner = super::wait::spinner("Copying the root volume");
            let made = cloud.create_image(instance.id, &name, &description, no_reboot);
            spinner.finish_and_clear();
            let record = made?;
            match output {
                Output::Json => output::print_json(&json!({"ImageId": record.id}))?,
                Output::Table => {
                    output::print(&record.id.to_string())?;
                    output::next(&format!("launch {name}"));
                }
            }
        }
        Command::Verify { image } => {
            let (_, image) = cloud.image(Some(&image))?;
            image.verify()?;
            output::print("All files are as they were registered.")?;
        }
        Command::Rm { images } => {
            for image in images {
                let record = cloud.deregister_image(&image)?;
                if output == Output::Table {
                    output::print(&format!("{}  deregistered", record.id))?;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn devices(image: &Image) -> Value {
    match &image.manifest.root {
        Some(_) => json!([{"DeviceName": ROOT_DEVICE, "Ebs": {"DeleteOnTermination": true, "VolumeType": "gp3"}}]),
        None => json!([]),
    }
}

fn lines(record: &ImageRecord, image: &Image, screen: Screen) -> Vec<String> {
    let line = |label: &str, text: &str| format!("{} {text}", screen.paint(Tone::Quiet, &format!("{label:<16}")));
    let manifest = &image.manifest;
    let mut lines = vec![
        line("Image", &format!("{}  {}", record.id, screen.paint(Tone::Strong, &record.name))),
        line("Description", &record.description),
        line("Owner", &format!("{}, {}", record.owner, record.visibility.as_str())),
        line("Made", &utc(record.created)),
        line("Architecture", &manifest.architecture),
        line("Default user", &manifest.default_user),
        line("Kernel", &format!("{}, options: {}", manifest.kernel.file, manifest.kernel.cmdline)),
    ];
    if let Some(root) = &manifest.root {
        lines.push(line("Root", &format!("{ROOT_DEVICE}: {}, {}", root.file, root.file_system)));
    }
    if let Some(instance) = record.source_instance {
        lines.push(line("Made of", &instance.to_string()));
    }
    for part in &manifest.components {
        lines.push(line("Contains", &format!("{} {} ({})", part.name, part.version, part.licence)));
    }
    lines
}

fn list(images: &[ImageRecord], output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        let shapes: Vec<Value> = images.iter().map(|record| shapes::image(record, json!([]))).collect();
        return output::print_json(&json!({"Images": shapes}));
    }
    let columns = [
        ("Name", Align::Left),
        ("Image", Align::Left),
        ("Owner", Align::Left),
        ("Visibility", Align::Left),
        ("Made", Align::Left),
        ("Description", Align::Left),
    ];
    let row = |record: &ImageRecord| {
        vec![
            Cell::new(record.name.clone(), Tone::Strong),
            Cell::from(record.id.to_string()),
            Cell::from(record.owner.clone()),
            Cell::from(record.visibility.as_str()),
            Cell::new(utc(record.created), Tone::Quiet),
            Cell::from(record.description.clone()),
        ]
    };
    output::print_table(&columns, images.iter().map(row))?;
    output::next(&format!("launch {}", images.last().map_or("tiny", |record| record.name.as_str())));
    Ok(())
}
