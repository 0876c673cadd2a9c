//! Records of launch templates in the store.

use serde::{Deserialize, Serialize};

use super::{Meta, Record, Resource};
use ec2::id::LaunchTemplateId;
use ec2::launch_template::{LaunchTemplateData, VersionReference};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchTemplateRecord {
    pub meta: Meta<LaunchTemplateId>,
    pub spec: Spec,
    pub status: Status,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Unique among all launch templates.
    pub name: String,
    /// Number of the version that a launch uses if it names none.
    pub default_version: u64,
    /// In the order of their numbers, and never empty.
    pub versions: Vec<LaunchTemplateVersion>,
}

/// A version, which never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchTemplateVersion {
    pub number: u64,
    #[serde(default)]
    pub description: Option<String>,
    /// Creation time in seconds since 1970.
    pub created: u64,
    pub data: LaunchTemplateData,
    /// Client token of the request that added the version.
    #[serde(default)]
    pub client_token: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Number of the version that was created last. The numbers of deleted versions are not used again.
    pub last_version: u64,
}

impl LaunchTemplateRecord {
    /// Returns the number of the latest version that was not deleted.
    pub fn latest_version(&self) -> u64 {
        self.spec.versions.last().map_or(0, |version| version.number)
    }

    /// Returns a version, or `None` if there is none with that number.
    pub fn version(&self, reference: VersionReference) -> Option<&LaunchTemplateVersion> {
        let number = match reference {
            VersionReference::Latest => self.latest_version(),
            VersionReference::Default => self.spec.default_version,
            VersionReference::Number(number) => number,
        };
        self.spec.versions.iter().find(|version| version.number == number)
    }
}

impl Record for LaunchTemplateRecord {
    const TABLE: &'static str = "launch_templates";
    const UNIQUE_KEYS: &'static [&'static str] = &["name"];

    fn key(&self) -> String {
        self.meta.id.to_string()
    }

    fn unique_key(&self, _name: &str) -> Option<String> {
        Some(self.spec.name.clone())
    }
}

impl Resource for LaunchTemplateRecord {
    type Id = LaunchTemplateId;

    fn meta(&self) -> &Meta<LaunchTemplateId> {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut Meta<LaunchTemplateId> {
        &mut self.meta
    }
}
