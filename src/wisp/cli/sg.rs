//! `wisp sg`: manages security groups.

use std::process::ExitCode;

use clap::Subcommand;

use super::escape::escape_line;
use super::output::{self, Align, Cell, Output, Tone};
use super::{open_cloud, print_warnings, shapes};
use cloud::network::{RuleSpec, shown};
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
    Authorize(RuleArgs),
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
    fn spec(&self) -> anyhow::Result<RuleSpec> {
        anyhow::ensure!(
            self.protocol.is_some() || self.port.is_some(),
            "MissingParameter: specify the traffic, for example --port 80, --protocol icmp or --protocol all."
        );
        let traffic = Traffic::parse(self.protocol.as_deref(), self.port.as_deref())?;
        let everywhere = self.ranges.is_empty() && self.groups.is_empty();
        let ranges = if everywhere { vec![ANYWHERE] } else { self.ranges.clone() };
        Ok(RuleSpec { egress: self.egress, traffic, ranges, groups: self.groups.clone() })
    }
}

pub fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    let changed = match args.command {
        Command::Ls { vpc } => {
            let groups = cloud.security_groups().list(vpc.as_deref())?;
            list(&groups, output)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Show { group } => cloud.security_groups().find(&group)?,
        Command::Rm { group } => {
            let record = cloud.security_groups().delete(&group)?;
            if output == Output::Table {
                output::print(&format!("{}  deleted", record.id))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        Command::Create { name, description, vpc } => {
            let record = cloud.security_groups().create(&name, &description, vpc.as_deref())?;
            if output == Output::Table {
                output::print(&record.id.to_string())?;
                let group = if vpc.is_some() { record.id.to_string() } else { name };
                output::next_command(["sg", "authorize", &group, "--port", "80"]);
                return Ok(ExitCode::SUCCESS);
            }
            record
        }
        Command::Authorize(rule) => cloud.security_groups().authorize(&rule.group, &rule.spec()?)?,
        Command::Revoke { rule, id: Some(id) } => cloud.security_groups().revoke_by_id(&rule.group, id)?,
        Command::Revoke { rule, id: None } => cloud.security_groups().revoke(&rule.group, &rule.spec()?)?,
    };
    print_warnings(&cloud);
    match output {
        Output::Json => output::print_json(&serde_json::json!({"SecurityGroups": [shapes::security_group(&changed)]}))?,
        Output::Table => show(&changed)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(groups: &[SecurityGroupRecord], output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        let shapes: Vec<_> = groups.iter().map(shapes::security_group).collect();
        return output::print_json(&serde_json::json!({"SecurityGroups": shapes}));
    }
    let columns = [
        ("Name", Align::Left),
        ("Group", Align::Left),
        ("VPC", Align::Left),
        ("Ingress", Align::Left),
        ("Egress", Align::Left),
        ("Description", Align::Left),
    ];
    let row = |group: &SecurityGroupRecord| {
        let rules = |egress| {
            let of_way = group.rules.iter().filter(|rule| rule.egress == egress);
            let words: Vec<String> = of_way.map(|rule| rule.traffic.to_string()).collect();
            if words.is_empty() { "-".to_string() } else { words.join(", ") }
        };
        vec![
            Cell::new(group.name.clone(), Tone::Strong),
            Cell::from(group.id.to_string()),
            Cell::new(group.vpc_id.to_string(), Tone::Quiet),
            Cell::from(rules(false)),
            Cell::from(rules(true)),
            Cell::new(group.description.clone(), Tone::Quiet),
        ]
    };
    Ok(output::print_table(&columns, groups.iter().map(row))?)
}

fn show(group: &SecurityGroupRecord) -> anyhow::Result<()> {
    let columns = [("Rule", Align::Left), ("Direction", Align::Left), ("Traffic", Align::Left), ("Peer", Align::Left)];
    let row = |rule: &ec2::network::Rule| {
        vec![
            Cell::new(rule.id.to_string(), Tone::Quiet),
            Cell::from(if rule.egress { "egress" } else { "ingress" }),
            Cell::new(rule.traffic.to_string(), Tone::Strong),
            Cell::from(shown(rule.peer)),
        ]
    };
    output::print(&format!("{}  {}  {}", group.id, escape_line(&group.name), escape_line(&group.description)))?;
    Ok(output::print_table(&columns, group.rules.iter().map(row))?)
}
