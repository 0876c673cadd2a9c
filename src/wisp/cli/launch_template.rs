//! `wisp template`: manages launch templates.

use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;
use serde_json::Value;

use super::launch_parameters::LaunchParameters;
use super::open_cloud;
use super::output::{self, Cell, Output, Screen, Tone};
use super::resource::{self, Column, Resource};
use cloud::launch_template::{ChosenVersion, NewLaunchTemplate, NewVersion, VersionSelection};
use cloud::{Cloud, CloudError, shapes, utc};
use ec2::launch_template::{LaunchTemplateData, VersionReference, split_reference};
use store::{LaunchTemplateRecord, LaunchTemplateVersion};

const TEMPLATE: &str = "Launch template name, ID or unique ID prefix";

/// Manage launch templates (versioned launch parameters).
///
/// Launch templates are unrelated to the snapshots of `wisp image warm`, which are called templates.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp template create web --type t3.nano --name web --key me
  wisp template create like-db --instance db      with the parameters of an instance
  wisp template version web --type t3.small       a new version, based on the latest one
  wisp template set-default web 2
  wisp template show web                          the versions
  wisp template show web:2                        the parameters of version 2
  wisp launch --template web --count 3            options override the template's parameters
  wisp template rm web:1")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a launch template with one version.
    Create {
        /// Launch template name: 3 to 128 letters, digits and ().-/_ characters.
        #[arg(value_name = "NAME")]
        template: String,
        #[command(flatten)]
        version: VersionArgs,
    },
    /// Create a version. It does not become the default version.
    Version {
        #[arg(help = TEMPLATE)]
        template: String,
        /// Version that provides the parameters that are not given: a number, $Latest or $Default.
        #[arg(long, value_name = "VERSION", default_value = "$Latest", conflicts_with = "instance")]
        source: VersionReference,
        #[command(flatten)]
        version: VersionArgs,
    },
    /// List launch templates.
    Ls,
    /// List a template's versions, or show a version's parameters.
    Show {
        /// Launch template name or ID, or TEMPLATE:VERSION.
        template: String,
    },
    /// Set the default version.
    SetDefault {
        #[arg(help = TEMPLATE)]
        template: String,
        /// A version number or $Latest.
        version: VersionReference,
    },
    /// Delete launch templates or versions.
    Rm {
        /// Launch template names or IDs, or TEMPLATE:VERSION.
        #[arg(required = true)]
        templates: Vec<String>,
    },
}

/// The parameters and the description of a new version.
#[derive(Debug, Clone, clap::Args)]
struct VersionArgs {
    #[command(flatten)]
    parameters: LaunchParameters,

    /// Instance type (see `wisp types`).
    #[arg(long = "type", value_name = "TYPE")]
    instance_type: Option<String>,

    /// Take the parameters that are not given from an instance.
    #[arg(long, value_name = "INSTANCE")]
    instance: Option<String>,

    /// Description of the version.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
}

impl VersionArgs {
    fn data(&self, cloud: &Cloud) -> anyhow::Result<LaunchTemplateData> {
        let given = self.parameters.template_data(self.instance_type.clone())?;
        Ok(match &self.instance {
            Some(instance) => cloud.launch_templates().data_of_instance(instance)?.for_launch(given),
            None => given,
        })
    }
}

pub fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    let templates = cloud.launch_templates();
    match args.command {
        Command::Create { template, version } => {
            let data = version.data(&cloud)?;
            let description = version.description;
            let new = NewLaunchTemplate { name: template, description, data, ..NewLaunchTemplate::default() };
            let record = templates.create(&new)?;
            let next = ["launch", "--template", &record.spec.name];
            resource::show(&record, &record.meta.id.to_string(), &next, output)?;
        }
        Command::Version { template, source, version } => {
            let source = version.instance.is_none().then_some(source);
            let new = NewVersion {
                source,
                data: version.data(&cloud)?,
                description: version.description,
                client_token: None,
            };
            let chosen = templates.create_version(&template, &new)?;
            let number = chosen.version.number.to_string();
            let summary = format!("{}  version {number}", chosen.template.meta.id);
            let next = ["template", "set-default", &chosen.template.spec.name, &number];
            resource::show(&chosen, &summary, &next, output)?;
        }
        Command::Ls => resource::list(&templates.list()?, output)?,
        Command::Show { template } => show(&cloud, &template, output)?,
        Command::SetDefault { template, version } => {
            let record = templates.set_default(&template, version)?;
            let summary = format!("{}  default version {}", record.meta.id, record.spec.default_version);
            resource::show(&record, &summary, &["launch", "--template", &record.spec.name], output)?;
        }
        Command::Rm { templates } => {
            resource::remove(&templates, "deleted", output, |reference| remove(&cloud, reference))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(cloud: &Cloud, reference: &str, output: Output) -> anyhow::Result<()> {
    let (template, version) = split_reference(reference)?;
    if version.is_none() {
        let (template, versions) = cloud.launch_templates().versions(template, &VersionSelection::default())?;
        let chosen = |version| ChosenVersion { template: template.clone(), version };
        return resource::list(&versions.into_iter().map(chosen).collect::<Vec<_>>(), output);
    }
    let chosen = cloud.launch_templates().version(reference)?;
    if output == Output::Json {
        return resource::list(&[chosen], output);
    }
    output::print(&lines(&chosen, Screen::stdout())?.join("\n"))?;
    output::next_command(["launch", "--template", reference]);
    Ok(())
}

/// Deletes a template or a version, and returns its name.
fn remove(cloud: &Cloud, reference: &str) -> Result<String, CloudError> {
    let (template, version) = split_reference(reference)?;
    let Some(version) = version else {
        return cloud.launch_templates().delete(template).map(|record| record.meta.id.to_string());
    };
    let number = match version {
        VersionReference::Number(number) => number,
        VersionReference::Latest | VersionReference::Default => {
            cloud.launch_templates().version(reference)?.version.number
        }
    };
    let result = cloud.launch_templates().delete_versions(template, &[number])?;
    match result.failed.into_iter().next() {
        Some((_, error)) => Err(error.into()),
        None => Ok(format!("{} version {number}", result.template.meta.id)),
    }
}

/// Returns a line for each parameter of a version.
fn lines(ChosenVersion { template, version }: &ChosenVersion, screen: Screen) -> anyhow::Result<Vec<String>> {
    let line = |(label, text): (String, String)| {
        format!("{} {}", screen.paint(Tone::Quiet, &format!("{label:<36}")), screen.paint(Tone::Plain, &text))
    };
    let mut facts = vec![
        ("Launch template".into(), format!("{}  {}", template.meta.id, template.spec.name)),
        ("Version".into(), version.number.to_string()),
        ("Created".into(), utc(version.created)),
    ];
    facts.extend(version.description.iter().map(|description| ("Description".into(), description.clone())));
    let user_data = version.data.user_data.as_ref().map(|data| format!("{} bytes of Base64", data.len()));
    let data = LaunchTemplateData { user_data, ..version.data.clone() };
    flatten("", &serde_json::to_value(data)?, &mut facts);
    Ok(facts.into_iter().map(line).collect())
}

/// Adds the values in a JSON value to `facts`, with their paths.
fn flatten(path: &str, value: &Value, facts: &mut Vec<(String, String)>) {
    let below = |name: &str| if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
    match value {
        Value::Object(members) => members.iter().for_each(|(name, value)| flatten(&below(name), value, facts)),
        Value::Array(values) => values.iter().for_each(|value| flatten(path, value, facts)),
        Value::String(text) => facts.push((path.to_string(), text.clone())),
        other => facts.push((path.to_string(), other.to_string())),
    }
}

impl Resource for LaunchTemplateRecord {
    const LIST: &'static str = "LaunchTemplates";
    const COLUMNS: &'static [Column<Self>] = &[
        Column::left("Name", |template| Cell::new(template.spec.name.clone(), Tone::Strong)),
        Column::left("Launch template", |template| template.meta.id.to_string().into()),
        Column::right("Default", |template| template.spec.default_version.to_string().into()),
        Column::right("Latest", |template| template.latest_version().to_string().into()),
        Column::left("Created", |template| Cell::new(utc(template.meta.created), Tone::Quiet)),
    ];

    fn shape(&self) -> impl Serialize {
        shapes::launch_template(self)
    }

    fn response(&self) -> impl Serialize {
        output::member("LaunchTemplate", self.shape())
    }
}

impl Resource for ChosenVersion {
    const LIST: &'static str = "LaunchTemplateVersions";
    const COLUMNS: &'static [Column<Self>] = &[
        Column::right("Version", |chosen| Cell::new(chosen.version.number.to_string(), Tone::Strong)),
        Column::left("Default", |chosen| {
            if chosen.version.number == chosen.template.spec.default_version { "yes" } else { "-" }.into()
        }),
        Column::left("Image", |chosen| text(&chosen.version, |data| &data.image_id)),
        Column::left("Type", |chosen| text(&chosen.version, |data| &data.instance_type)),
        Column::left("Created", |chosen| Cell::new(utc(chosen.version.created), Tone::Quiet)),
        Column::left("Description", |chosen| chosen.version.description.clone().unwrap_or_else(|| "-".into()).into()),
    ];

    fn shape(&self) -> impl Serialize {
        shapes::launch_template_version(&self.template, &self.version)
    }

    fn response(&self) -> impl Serialize {
        output::member("LaunchTemplateVersion", self.shape())
    }
}

fn text(version: &LaunchTemplateVersion, member: fn(&LaunchTemplateData) -> &Option<String>) -> Cell {
    member(&version.data).clone().unwrap_or_else(|| "-".into()).into()
}
