//! Arguments that several subcommands share.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::ValueEnum;

use super::wait;
use ec2::Ec2Error;
use ec2::metadata::MetadataChange;
use ec2::tag::{Tag, with_tags};

/// Headings of options in `--help`. Options without one are under clap's heading `Options`.
pub const NETWORK: &str = "Network";
pub const STORAGE: &str = "Storage";
pub const ADVANCED: &str = "Advanced";
pub const GLOBAL: &str = "Global options";

/// Help texts of arguments that identify a resource.
pub const INSTANCE: &str = "Instance ID, unique ID prefix or name";
pub const INSTANCES: &str = "Instance IDs, unique ID prefixes or names";
pub const IMAGE: &str = "Image ID, unique ID prefix or name";
pub const VOLUME: &str = "Volume ID, unique ID prefix or name";
pub const VPC: &str = "VPC ID, unique ID prefix or name";
pub const GATEWAY: &str = "Internet gateway ID, unique ID prefix or name";
pub const ROUTE_TABLE: &str = "Route table ID, unique ID prefix or name";
pub const SUBNET: &str = "Subnet ID, unique ID prefix or name";
pub const ADDRESS: &str = "Public address, or its ID, unique ID prefix or name";

/// Options with the tags of a new resource.
#[derive(Debug, clap::Args)]
pub struct TagArgs {
    /// Name tag.
    #[arg(long)]
    name: Option<String>,

    /// Tag; can be repeated.
    #[arg(long = "tag", value_name = "KEY=VALUE")]
    tags: Vec<Tag>,
}

impl TagArgs {
    /// Returns all tags, including the Name tag.
    pub fn with_name(self) -> Result<BTreeMap<String, String>, Ec2Error> {
        tags(self.tags, self.name.as_deref())
    }
}

/// Returns the tags, with a Name tag if a name is given.
pub fn tags(tags: Vec<Tag>, name: Option<&str>) -> Result<BTreeMap<String, String>, Ec2Error> {
    let name = name.map(|name| Tag::new("Name", name)).transpose()?;
    with_tags(&BTreeMap::new(), tags.into_iter().chain(name))
}

/// Options of commands that start guests and wait for them.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct WaitArgs {
    /// Return once the VMMs are running, without waiting for the guests to be ready. The launch does not create a template.
    #[arg(long)]
    no_wait: bool,

    /// Maximum time to wait for the guests to be ready, in seconds [default: 60, or 600 on software KVM]
    #[arg(long, value_name = "SECONDS", help_heading = ADVANCED, conflicts_with = "no_wait",
        value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: Option<u64>,
}

impl WaitArgs {
    /// Returns the timeout for the guests to be ready, or `None` with `--no-wait`.
    pub fn timeout(self) -> Option<Duration> {
        (!self.no_wait).then(|| wait::boot_timeout(self.timeout))
    }
}

/// Combines a `--flag` and `--no-flag` pair. Returns `None` if neither is given; clap rejects both.
pub fn flag_pair(on: bool, off: bool) -> Option<bool> {
    (on || off).then_some(on)
}

/// Values of --imds, a shorthand for the token and endpoint settings of --metadata-options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Imds {
    /// Requests must have a session token (IMDSv2).
    Required,
    /// Requests without a token are also accepted (IMDSv1).
    Optional,
    /// The service is disabled.
    Off,
}

/// Options of the instance metadata service.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct MetadataArgs {
    /// Instance metadata service: required (IMDSv2 only), optional (IMDSv1 also allowed) or off.
    #[arg(long, value_name = "MODE", help_heading = NETWORK, conflicts_with = "metadata_options", hide_possible_values = true)]
    imds: Option<Imds>,

    /// Metadata options in EC2's format, as comma-separated KEY=VALUE pairs.
    ///
    /// HttpTokens=required|optional, HttpEndpoint=enabled|disabled, HttpPutResponseHopLimit=1-64,
    /// InstanceMetadataTags=enabled|disabled.
    #[arg(long, value_name = "OPTIONS", help_heading = NETWORK)]
    metadata_options: Option<MetadataChange>,
}

impl MetadataArgs {
    /// Returns the requested change to the options.
    pub fn change(self) -> Option<MetadataChange> {
        self.metadata_options.or(self.imds.map(|imds| match imds {
            Imds::Required => MetadataChange::tokens(true),
            Imds::Optional => MetadataChange::tokens(false),
            Imds::Off => MetadataChange::disabled(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        metadata: MetadataArgs,
        #[command(flatten)]
        wait: WaitArgs,
    }

    fn change(words: &[&str]) -> Option<Vec<(&'static str, String)>> {
        let line = Line::try_parse_from([&["line"], words].concat()).unwrap();
        line.metadata.change().map(MetadataChange::named)
    }

    #[test]
    fn imds_mode_sets_endpoint_and_tokens() {
        assert_eq!(change(&[]), None);
        let enabled = |tokens: &str| vec![("HttpEndpoint", "enabled".into()), ("HttpTokens", tokens.into())];
        assert_eq!(change(&["--imds", "required"]), Some(enabled("required")));
        assert_eq!(change(&["--imds", "optional"]), Some(enabled("optional")));
        assert_eq!(change(&["--imds", "off"]), Some(vec![("HttpEndpoint", "disabled".into())]));
        let long = change(&["--metadata-options", "HttpTokens=required"]);
        assert_eq!(long, Some(vec![("HttpTokens", "required".into())]));
    }

    #[test]
    fn imds_mode_and_long_form_are_refused_together() {
        let words = ["line", "--imds", "off", "--metadata-options", "HttpTokens=required"];
        assert!(Line::try_parse_from(words).is_err());
    }

    #[test]
    fn no_wait_has_no_timeout() {
        let wait = |words: &[&str]| Line::try_parse_from([&["line"], words].concat()).map(|line| line.wait.timeout());
        assert_eq!(wait(&["--no-wait"]).unwrap(), None);
        assert_eq!(wait(&["--timeout", "5"]).unwrap(), Some(Duration::from_secs(5)));
        assert!(wait(&["--no-wait", "--timeout", "5"]).is_err());
    }

    #[test]
    fn flag_pair_is_none_without_a_flag() {
        assert_eq!(
            [flag_pair(false, false), flag_pair(true, false), flag_pair(false, true)],
            [None, Some(true), Some(false)]
        );
    }
}
