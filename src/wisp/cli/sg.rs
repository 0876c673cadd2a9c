//! `wisp sg`: manages security groups.

use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;

use super::escape::escape_line;
use super::output::{self, Align, Cell, Output, Tone};
use super::resource::{self, Column, Resource};
use super::{open_cloud, report};
use cloud::network::{Chosen, PeerSpec, RuleSpec, shown};
use cloud::shapes;
use ec2::api::security_group::{SecurityGroup, SecurityGroupRule};
use ec2::id::SecurityGroupRuleId;
use ec2::network::{ANYWHERE, Traffic, parse_range};
use ipnet::Ipv4Net;
use store::SecurityGroupRecord;

/// Manage security groups (stateful firewall rules).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp sg create web --description 'web servers'
  wisp sg authorize web --port 80                     from anywhere
  wisp sg authorize web --port 5432 --group backend   from the members of another group
  wisp sg authorize default --port 22                 allow wisp ssh
  wisp sg revoke web --port 80
  wisp launch --name first --security-group web")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a security group.
    ///
    /// It allows all outbound and no inbound traffic.
    Create {
        /// Security group name.
        name: String,
        /// Security group description.
        #[arg(long, default_value = "created by wisp")]
        description: String,
        /// VPC ID or name [default: the default VPC].
        #[arg(long)]
        vpc: Option<String>,
    },
    /// List security groups.
    Ls {
        /// Show only the groups of this VPC (ID or name).
        #[arg(long)]
        vpc: Option<String>,
    },
    /// Show a security group's rules.
    Show {
        /// Security group name or ID.
        group: String,
    },
    /// Delete a security group that no instance or rule uses.
    Rm {
        /// Security group name or ID.
        group: String,
    },
    /// Add rules. They apply to running instances immediately.
    Authorize {
        #[command(flatten)]
        rule: RuleArgs,
        /// Rule description.
        #[arg(long)]
        description: Option<String>,
    },
    /// Remove rules. Established connections stay open.
    Revoke {
        #[command(flatten)]
        rule: RuleArgs,
        /// Rule ID, instead of the options above.
        #[arg(long = "rule", value_name = "ID", conflicts_with_all = ["protocol", "port", "ranges", "groups"])]
        id: Option<SecurityGroupRuleId>,
    },
}

#[derive(Debug, clap::Args)]
struct RuleArgs {
    /// Security group name or ID.
    group: String,
    /// The rule is for inbound traffic [default].
    #[arg(long, conflicts_with = "egress")]
    ingress: bool,
    /// The rule is for outbound traffic.
    #[arg(long)]
    egress: bool,
    /// Protocol: tcp, udp, icmp, all or a number [default: tcp if --port is given].
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Option<String>,
    /// Port, port range such as 8000-8100, or all; for icmp, the ICMP type.
    #[arg(long, value_name = "PORT")]
    port: Option<String>,
    /// Address range; can be repeated [default: 0.0.0.0/0 unless --group is given].
    #[arg(long = "cidr", value_name = "RANGE", value_parser = parse_range)]
    ranges: Vec<Ipv4Net>,
    /// Security group to match as the source (inbound) or destination (outbound); can be repeated.
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
}

impl RuleArgs {
    fn specs(&self, description: Option<&str>) -> anyhow::Result<Vec<RuleSpec>> {
        anyhow::ensure!(
            self.protocol.is_some() || self.port.is_some(),
            "MissingParameter: specify the traffic, for example --port 80, --protocol icmp or --protocol all."
        );
        let traffic = Traffic::parse(self.protocol.as_deref(), self.port.as_deref())?;
        let everywhere = self.ranges.is_empty() && self.groups.is_empty();
        let ranges = if everywhere { vec![ANYWHERE] } else { self.ranges.clone() };
        let peers = ranges.into_iter().map(PeerSpec::Range).chain(self.groups.iter().cloned().map(PeerSpec::Group));
        let description = description.map(str::to_string);
        let spec = |peer| RuleSpec { egress: self.egress, traffic, peer, description: description.clone() };
        Ok(peers.map(spec).collect())
    }
}

pub fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    match args.command {
        Command::Ls { vpc } => {
            resource::list(&cloud.security_groups().list(vpc.as_deref())?, output)?;
        }
        Command::Show { group } => show(&cloud.security_groups().find(&group)?, output)?,
        Command::Rm { group } => resource::remove(&[group], "deleted", output, |group| {
            cloud.security_groups().delete(group).map(|record| record.meta.id)
        })?,
        Command::Create { name, description, vpc } => {
            let record = cloud.security_groups().create(&name, &description, vpc.as_deref(), Default::default())?;
            let id = record.meta.id.to_string();
            let group = if vpc.is_some() { &id } else { &name };
            resource::show(&record, &id, &["sg", "authorize", group, "--port", "80"], output)?;
        }
        Command::Authorize { rule, description } => {
            let specs = rule.specs(description.as_deref())?;
            let changed = report(cloud.security_groups().authorize(&rule.group, &specs, &Default::default())?);
            show(&changed.group, output)?;
        }
        Command::Revoke { rule, id } => {
            let chosen = match id {
                Some(id) => Chosen::Ids(vec![id]),
                None => Chosen::Like(rule.specs(None)?),
            };
            show(&report(cloud.security_groups().revoke(&rule.group, &chosen)?).group, output)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(group: &SecurityGroupRecord, output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        return output::print_json(&group.response());
    }
    let columns = ["Rule", "Direction", "Traffic", "Peer", "Description"].map(|name| (name, Align::Left));
    let row = |rule: &ec2::network::Rule| {
        vec![
            Cell::new(rule.id.to_string(), Tone::Quiet),
            Cell::from(if rule.egress { "egress" } else { "ingress" }),
            Cell::new(rule.traffic.to_string(), Tone::Strong),
            Cell::from(shown(rule.peer)),
            Cell::new(rule.description.clone().unwrap_or_default(), Tone::Quiet),
        ]
    };
    output::print(&format!(
        "{}  {}  {}",
        group.meta.id,
        escape_line(&group.spec.name),
        escape_line(&group.spec.description)
    ))?;
    Ok(output::print_table(&columns, group.spec.rules.iter().map(row))?)
}

/// The responses of `DescribeSecurityGroups` and `DescribeSecurityGroupRules`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct GroupsAndRules {
    security_groups: Vec<SecurityGroup>,
    security_group_rules: Vec<SecurityGroupRule>,
}

fn traffic_cell(group: &SecurityGroupRecord, egress: bool) -> Cell {
    let rules = group.spec.rules.iter().filter(|rule| rule.egress == egress);
    let words: Vec<String> = rules.map(|rule| rule.traffic.to_string()).collect();
    if words.is_empty() { "-".into() } else { words.join(", ").into() }
}

impl Resource for SecurityGroupRecord {
    const LIST: &'static str = "SecurityGroups";
    const COLUMNS: &'static [Column<Self>] = &[
        Column::left("Name", |group| Cell::new(group.spec.name.clone(), Tone::Strong)),
        Column::left("Group", |group| group.meta.id.to_string().into()),
        Column::left("VPC", |group| Cell::new(group.spec.vpc_id.to_string(), Tone::Quiet)),
        Column::left("Ingress", |group| traffic_cell(group, false)),
        Column::left("Egress", |group| traffic_cell(group, true)),
        Column::left("Description", |group| Cell::new(group.spec.description.clone(), Tone::Quiet)),
    ];

    fn shape(&self) -> impl Serialize {
        shapes::security_group(self)
    }

    fn response(&self) -> impl Serialize {
        Self::list_response(std::slice::from_ref(self))
    }

    fn list_response(groups: &[Self]) -> impl Serialize {
        GroupsAndRules {
            security_groups: groups.iter().map(shapes::security_group).collect(),
            security_group_rules: groups.iter().flat_map(shapes::security_group_rules).collect(),
        }
    }
}
