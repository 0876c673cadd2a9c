//! `wisp image`: manages images (AMIs).

mod alias;
mod shape;

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use self::shape::{Exported, MemoryShape, ShownImage, TemplateShape, VerifiedFile};
use super::output::{self, Cell, Output, Screen, Tone};
use super::resource::{self, Column, Resource};
use super::size::SizeArgs;
use super::wait::{self, FirstBootProgress};
use super::{args, launch, open_cloud};
use cloud::capacity::cpus;
use cloud::create_image::ImageConsistency;
use cloud::launch::FirstBoot;
use cloud::names::ROOT_DEVICE;
use cloud::shapes::{self, RootVolume};
use cloud::template::{self, Start, Task, TemplateRecord};
use cloud::transfer::NewImage;
use cloud::{Cloud, CloudError, utc};
use ec2::catalog;
use ec2::metadata::ImdsSupport;
use ec2::size::{MemorySize, approximate_mib};
use machine::config::CpuConfig;
use node::bundle::Verified;
use node::guest::parse_user_name;
use node::host::RootChoices;
use node::image::Image;
use node::image_memory::{self, ImageMemory};
use node::import::ImportProgress;
use node::local;
use node::shell;
use store::{ImageRecord, Visibility};

/// Manage images (AMIs).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp image ls
  wisp image show tiny
  wisp image create web --name web-1      from an instance's root volume
  wisp image import debian.tar --name debian      a root file system; wisp adds its kernel and agent
  wisp image export web-1 web-1.tar.zst   a bundle to import on another host
  wisp image alias add /images/web web-1          launch it as resolve:ssm:/images/web
  wisp image warm tiny --type t3.nano     speed up launches of that size
  wisp image rm web-1")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List images.
    Ls,
    Alias(alias::Args),
    /// Show an image.
    Show {
        #[arg(help = args::IMAGE)]
        image: String,
    },
    /// Create an image from an instance's root volume.
    ///
    /// A running guest flushes its file systems first, unless --no-reboot is given.
    Create {
        #[arg(help = args::INSTANCE)]
        instance: String,
        /// Image name.
        #[arg(long)]
        name: String,
        /// Image description.
        #[arg(long, default_value = "")]
        description: String,
        /// Do not flush a running guest's file systems; the image is then crash-consistent.
        #[arg(long)]
        no_reboot: bool,
        /// Include a running guest's memory; launches of the same size are restored from it.
        #[arg(long, conflicts_with = "no_reboot")]
        with_memory: bool,
    },
    /// Import an image.
    ///
    /// The source is a bundle, a tar archive of a root file system (plain, gzip or zstd), or a disk image without
    /// partitions (ext4, SquashFS or EROFS; raw or qcow2). See docs/images.md.
    Import {
        /// Bundle directory, bundle archive or root file system.
        source: PathBuf,
        /// Image name [default: the bundle's name].
        #[arg(long)]
        name: Option<String>,
        /// Image description.
        #[arg(long)]
        description: Option<String>,
        /// Make the image public.
        #[arg(long)]
        public: bool,
        /// Default user, who gets the key pair's public key (root file systems only).
        #[arg(long, value_name = "USER", default_value = "root", value_parser = parse_user_name)]
        default_user: String,
        /// Kernel command line options (root file systems only).
        #[arg(long, value_name = "OPTIONS", default_value = "quiet")]
        cmdline: String,
        /// Size of the file system, such as 4G (tar archives only).
        #[arg(long, value_name = "SIZE")]
        size: Option<MemorySize>,
        /// The image contains cloud-init. Needed only for SquashFS and EROFS; detected in other formats.
        #[arg(long)]
        cloud_init: bool,
    },
    /// Export an image as a bundle archive.
    Export {
        #[arg(help = args::IMAGE)]
        image: String,
        /// Archive to create: FILE.tar or FILE.tar.zst.
        file: PathBuf,
    },
    /// Verify the digests of an image's files.
    Verify {
        #[arg(help = args::IMAGE)]
        image: String,
    },
    /// Change an image's visibility, description or IMDS support.
    Modify {
        #[arg(help = args::IMAGE)]
        image: String,
        /// Visibility: private (owner only) or public (all users).
        #[arg(long)]
        visibility: Option<VisibilityArg>,
        /// Image description.
        #[arg(long)]
        description: Option<String>,
        /// v2.0: require IMDSv2 in new instances, unless overridden at launch. This cannot be undone.
        #[arg(long, value_name = "VERSION")]
        imds_support: Option<ImdsSupport>,
    },
    /// Create a template, from which launches of its size are restored.
    ///
    /// The first launch or run of an image and a size also creates one.
    Warm {
        /// Image name or ID, or bundle directory.
        image: String,
        #[command(flatten)]
        size: SizeArgs,
        /// Remove the image's templates instead.
        #[arg(long, conflicts_with_all = ["instance_type", "vcpus", "memory"])]
        remove: bool,
        /// Do nothing if a template exists, once another process that is creating it has finished.
        #[arg(long, hide = true, conflicts_with = "remove")]
        if_missing: bool,
    },
    /// Deregister images. Existing instances are not affected.
    Rm {
        /// Image names or IDs.
        #[arg(required = true)]
        images: Vec<String>,
    },
}

/// The visibility of an image.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum VisibilityArg {
    /// The owner only.
    Private,
    /// All users.
    Public,
}

impl From<VisibilityArg> for Visibility {
    fn from(argument: VisibilityArg) -> Visibility {
        match argument {
            VisibilityArg::Private => Visibility::Private,
            VisibilityArg::Public => Visibility::Public,
        }
    }
}

pub fn run(args: Args, output: Output, began_ns: u64) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    match args.command {
        Command::Ls => list(&cloud, output)?,
        Command::Alias(args) => alias::run(&cloud, args, output)?,
        Command::Show { image } => show(&cloud, &image, output)?,
        Command::Create { instance, name, description, no_reboot, with_memory } => {
            let instance = cloud.instances().find(&instance)?;
            let moment = match (with_memory, no_reboot) {
                (true, _) => ImageConsistency::WithMemory,
                (false, true) => ImageConsistency::Now,
                (false, false) => ImageConsistency::Written,
            };
            let spinner = super::wait::spinner("Copying the root volume");
            let made = cloud.images().create(instance.meta.id, &name, &description, moment);
            spinner.finish_and_clear();
            created(made?, "launch", output)?;
        }
        Command::Verify { image } => {
            let files = with_bar(|bar| cloud.images().verify(&image, bar))?;
            return report(&image, files, output);
        }
        Command::Import { source, name, description, public, default_user, cmdline, size, cloud_init } => {
            let visibility = if public { Visibility::Public } else { Visibility::Private };
            let root = RootChoices { default_user, cmdline, size: size.map(MemorySize::bytes), cloud_init };
            let new = NewImage { name, description, visibility, root };
            let record = with_bar(|bar| cloud.images().import(&source, &new, bar))?;
            created(record, "run", output)?;
        }
        Command::Export { image, file } => {
            let record = with_bar(|bar| cloud.images().export(&image, &file, bar))?;
            match output {
                Output::Json => output::print_json(&Exported { image_id: record.meta.id, file })?,
                Output::Table => output::print(&format!("{}  exported to {}", record.meta.id, file.display()))?,
            }
        }
        Command::Modify { image, visibility, description, imds_support } => {
            let record = cloud.images().modify(&image, visibility.map(Visibility::from), description, imds_support)?;
            if output == Output::Table {
                output::print(&format!(
                    "{}  {}, {}",
                    record.meta.id,
                    record.spec.name,
                    record.spec.visibility.as_str()
                ))?;
            }
        }
        Command::Warm { image, size, remove, if_missing } => {
            let image = match local::unregistered(cloud.home(), Some(&image))? {
                Some(image) => image,
                None => cloud.images().open(Some(&image))?.1,
            };
            if remove {
                let count = template::remove_of(cloud.home(), &image.dir)?;
                if output == Output::Table {
                    output::print(&format!("{} removed", output::count(count, "template")))?;
                }
            } else {
                make_warm(&cloud, &image, &size, if_missing, output, began_ns)?;
            }
        }
        Command::Rm { images } => resource::remove(&images, "deregistered", output, |image| {
            cloud.images().deregister(image).map(|record| record.meta.id)
        })?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a new image. `next` is a command that can use it.
fn created(record: ImageRecord, next: &str, output: Output) -> anyhow::Result<()> {
    let image = ListedImage { record, root: None };
    resource::show(&image, &image.record.meta.id.to_string(), &[next, &image.record.spec.name], output)
}

fn show(cloud: &Cloud, reference: &str, output: Output) -> anyhow::Result<()> {
    let (record, image) = cloud.images().open(Some(reference))?;
    let warm = template::list_of(cloud.home(), &image.dir)?;
    if output == Output::Table {
        return Ok(output::print(&lines(&record, &image, &warm, Screen::stdout()).join("\n"))?);
    }
    let shown = ShownImage {
        image: shapes::image(&record, RootVolume::of(&image)),
        warm_snapshots: warm.iter().map(TemplateShape::from).collect(),
        memory: ImageMemory::of(&image).map(|memory| MemoryShape::new(memory, &image)),
    };
    output::print_json(&output::member("Images", [shown]))
}

/// Prints the files that are intact, and fails with the error of the first damaged file. JSON output has the result of
/// each file.
fn report(image: &str, files: Vec<Verified>, output: Output) -> anyhow::Result<ExitCode> {
    let damaged = files.iter().filter(|file| file.result.is_err()).count();
    if output == Output::Json {
        output::print_json(&output::member("Files", files.iter().map(VerifiedFile::from).collect::<Vec<_>>()))?;
        return Ok(ExitCode::from(u8::from(damaged > 0)));
    }
    for file in &files {
        if file.result.is_ok() {
            output::print(&format!("{}  ok", file.file))?;
        }
    }
    match files.into_iter().find_map(|file| file.result.err()) {
        Some(error) => Err(anyhow::Error::new(error).context(format!("{image} failed verification"))),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// The progress bar of an import, export or verification.
#[derive(Debug, Default)]
struct Bar {
    bar: RefCell<Option<ProgressBar>>,
}

/// Shows a progress bar during `work`.
fn with_bar<T>(work: impl FnOnce(&Bar) -> Result<T, CloudError>) -> Result<T, CloudError> {
    let bar = Bar::default();
    let result = work(&bar);
    bar.finish();
    result
}

impl Bar {
    fn finish(&self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl ImportProgress for Bar {
    fn begin(&self, what: &str, bytes: u64) {
        self.finish();
        let bar = ProgressBar::new(bytes);
        if bytes > 0 {
            let template = "{msg} {wide_bar} {bytes} of {total_bytes}, {eta} left";
            bar.set_style(ProgressStyle::with_template(template).expect("the template is well-formed"));
        }
        bar.set_message(what.to_string());
        self.bar.replace(Some(bar));
    }

    fn advance(&self, bytes: u64) {
        if let Some(bar) = self.bar.borrow().as_ref() {
            bar.inc(bytes);
        }
    }

    fn note(&self, sentence: &str) {
        self.finish();
        output::say(&format!("Note: {sentence}"));
    }
}

fn lines(record: &ImageRecord, image: &Image, warm: &[TemplateRecord], screen: Screen) -> Vec<String> {
    let line = |label: &str, text: &str| format!("{} {text}", screen.paint(Tone::Quiet, &format!("{label:<16}")));
    let manifest = &image.manifest;
    let mut lines = vec![
        line("Image", &format!("{}  {}", record.meta.id, screen.paint(Tone::Strong, &record.spec.name))),
        line("Description", &record.spec.description),
        line("Owner", &format!("{}, {}", record.status.owner, record.spec.visibility.as_str())),
        line("Created", &utc(record.meta.created)),
        line("Architecture", &manifest.architecture),
        line("Default user", &manifest.default_user),
        line("Kernel", &format!("{}, options: {}", manifest.kernel.file, manifest.kernel.cmdline)),
    ];
    if let Some(root) = &manifest.root {
        lines.push(line("Root", &format!("{ROOT_DEVICE}: {}, {}", root.file, root.file_system)));
    }
    if manifest.cloud_init {
        lines.push(line("cloud-init", "yes, configured from instance metadata"));
    }
    if let Some(version) = record.spec.imds_support {
        lines.push(line("IMDS support", version.as_str()));
    }
    if let Some(instance) = record.spec.source_instance {
        lines.push(line("Created from", &instance.to_string()));
    }
    if let Some(memory) = ImageMemory::of(image) {
        let saved = saved_line(memory.cpus, memory.memory_mib, image_memory::bytes(image));
        lines.push(line("Memory", &format!("{saved}; launches of this size are restored from it")));
    }
    lines.extend(warm.iter().map(|record| line("Template", &warm_line(record))));
    for part in &manifest.components {
        lines.push(line("Component", &format!("{} {} ({})", part.name, part.version, part.license)));
    }
    lines
}

/// Creates a template: boots a guest and takes a snapshot of it. With `if_missing`, does nothing if there is one.
fn make_warm(
    cloud: &Cloud,
    image: &Image,
    size: &SizeArgs,
    if_missing: bool,
    output: Output,
    began_ns: u64,
) -> anyhow::Result<()> {
    node::probe::kvm_access()?;
    let request = size.of_type(catalog::find(launch::DEFAULT_TYPE)?)?;
    size.check(&request)?;
    let (switch, limit) = (template::SWITCH_VARIABLE, template::LIMIT_VARIABLE);
    anyhow::ensure!(template::are_enabled(), "templates are disabled by {switch}=off or {limit}=0");
    let progress = FirstBootProgress::default();
    let mut waiting = || progress.show(FirstBoot::Waiting);
    let (home, cpus, memory_mib) = (cloud.home(), cpus(&request), request.memory_mib);
    let start = match if_missing {
        true => Start::of(home, image, cpus, memory_mib, &|| progress.show(FirstBoot::Waiting))?,
        false => Start::First(Task::take(home, image, cpus, memory_mib, &mut waiting)?),
    };
    let Start::First(task) = start else { return Ok(()) };
    progress.show(FirstBoot::Booting);
    let made = template::make(&task, image, wait::boot_timeout(None), began_ns);
    progress.finish();
    let record = made?;
    match output {
        Output::Json => output::print_json(&TemplateShape::from(&record))?,
        Output::Table => {
            output::print(&format!("template: {}", warm_line(&record)))?;
            output::next(&format!("{}{}", shell::command(["launch", &image.manifest.name]), size.options()));
        }
    }
    Ok(())
}

/// Formats a template's name, size, disk usage and creation time.
fn warm_line(record: &TemplateRecord) -> String {
    let facts = &record.facts;
    let saved = saved_line(facts.cpus, facts.memory_mib, record.bytes);
    format!("{}: {saved}, created {}", record.name(), utc(facts.made))
}

/// Formats the vCPUs, memory and disk usage of a snapshot.
fn saved_line(cpus: CpuConfig, memory_mib: u64, bytes: u64) -> String {
    let vcpus = output::count(cpus.count as usize, "vCPU");
    format!("{vcpus}, {}: {} on disk", approximate_mib(memory_mib), output::bytes(bytes))
}

fn list(cloud: &Cloud, output: Output) -> anyhow::Result<()> {
    let images = cloud.images().list()?;
    // The table does not show the root file systems, and the embedded image may have to be unpacked.
    let root = |record: &ImageRecord| match output {
        Output::Json => cloud.images().open_by_id(record.meta.id).ok().and_then(|image| RootVolume::of(&image)),
        Output::Table => None,
    };
    let listed: Vec<_> = images.into_iter().map(|record| ListedImage { root: root(&record), record }).collect();
    resource::list(&listed, output)?;
    if output == Output::Table {
        output::next_command(["launch", listed.last().map_or("tiny", |image| image.record.spec.name.as_str())]);
    }
    Ok(())
}

struct ListedImage {
    record: ImageRecord,
    root: Option<RootVolume>,
}

impl Resource for ListedImage {
    const LIST: &'static str = "Images";
    const COLUMNS: &'static [Column<Self>] = &[
        Column::left("Name", |image| Cell::new(image.record.spec.name.clone(), Tone::Strong)),
        Column::left("Image", |image| image.record.meta.id.to_string().into()),
        Column::left("Owner", |image| image.record.status.owner.clone().into()),
        Column::left("Visibility", |image| image.record.spec.visibility.as_str().into()),
        Column::left("Created", |image| Cell::new(utc(image.record.meta.created), Tone::Quiet)),
        Column::left("Description", |image| image.record.spec.description.clone().into()),
    ];

    fn shape(&self) -> impl Serialize {
        shapes::image(&self.record, self.root)
    }

    fn response(&self) -> impl Serialize {
        output::member("ImageId", self.record.meta.id)
    }
}
