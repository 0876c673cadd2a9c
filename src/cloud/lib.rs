//! The control plane: implements the subcommands in EC2's terms, with a service for each noun. Only this crate uses
//! the store and the VMMs together.
//!
//! There is no daemon: each command is one process, which opens a [`Cloud`]. Concurrent commands synchronize through
//! the store. An instance's VMM runs independently of commands.

mod attachment;
pub mod bench;
pub mod capacity;
pub mod command;
pub mod create_image;
mod error;
pub mod first_guest;
mod first_launch;
pub mod fork;
mod hibernate;
mod ids;
pub mod image_alias;
pub mod instances;
pub mod key_pair;
pub mod launch;
pub mod launch_template;
mod layers;
pub mod lifecycle;
pub mod limits;
mod lookup;
#[cfg(test)]
mod model;
pub mod modify;
pub mod names;
pub mod network;
pub mod reconcile;
pub mod registry;
pub mod resolve;
pub mod run;
mod seed;
pub mod settings;
pub mod shapes;
pub mod snapshot;
pub mod ssh;
mod start;
pub mod stop;
mod sweep;
pub mod tags;
pub mod template;
pub mod transfer;
pub mod usage;
pub mod volume;
mod warnings;

use std::time::{SystemTime, UNIX_EPOCH};

pub use error::CloudError;
pub use warnings::{Outcome, Warnings};

use command::Commands;
use ids::new_id;
use image_alias::ImageAliases;
use instances::Instances;
use key_pair::KeyPairs;
use launch_template::LaunchTemplates;
use network::{Addresses, Interfaces, InternetGateways, RouteTables, Routers, SecurityGroups, Subnets, Vpcs};
use registry::Images;
use settings::Settings;
use snapshot::Snapshots;
use sweep::Sweep;
use tags::Tags;
use usage::Metering;
use volume::Volumes;

use ec2::InstanceId;
use node::home::Home;
use node::host::Node;
use node::instance::InstanceDir;
use node::local::LocalNode;
use store::{Record, Store};

/// An open data directory.
#[derive(Debug)]
pub struct Cloud {
    home: Home,
    node: Box<dyn Node>,
    store: Store,
}

impl Cloud {
    /// Opens the data directory without reconciling, to finish work that this process started.
    pub fn open_without_reconciling() -> Result<Cloud, CloudError> {
        Cloud::at(Home::open()?)
    }

    /// Opens the data directory and reconciles the store with the running VMMs.
    pub fn open() -> Result<Outcome<Cloud>, CloudError> {
        let value = Cloud::at(Home::open()?)?;
        let warnings = value.instances().reconcile();
        Ok(Outcome { value, warnings })
    }

    /// Opens the data directory `home` on this host.
    fn at(home: Home) -> Result<Cloud, CloudError> {
        let node = LocalNode::new(home.clone());
        Cloud::with_node(home, Box::new(node))
    }

    fn with_node(home: Home, node: Box<dyn Node>) -> Result<Cloud, CloudError> {
        let store = Store::open(home.root())?;
        Ok(Cloud { home, node, store })
    }

    pub fn addresses(&self) -> Addresses<'_> {
        Addresses { cloud: self }
    }

    pub fn commands(&self) -> Commands<'_> {
        Commands { cloud: self }
    }

    pub fn image_aliases(&self) -> ImageAliases<'_> {
        ImageAliases { cloud: self }
    }

    pub fn images(&self) -> Images<'_> {
        Images { cloud: self }
    }

    pub fn instances(&self) -> Instances<'_> {
        Instances { cloud: self }
    }

    pub fn internet_gateways(&self) -> InternetGateways<'_> {
        InternetGateways { cloud: self }
    }

    fn interfaces(&self) -> Interfaces<'_> {
        Interfaces { cloud: self }
    }

    pub fn key_pairs(&self) -> KeyPairs<'_> {
        KeyPairs { cloud: self }
    }

    pub fn launch_templates(&self) -> LaunchTemplates<'_> {
        LaunchTemplates { cloud: self }
    }

    pub fn metering(&self) -> Metering<'_> {
        Metering { cloud: self }
    }

    pub fn route_tables(&self) -> RouteTables<'_> {
        RouteTables { cloud: self }
    }

    fn routers(&self) -> Routers<'_> {
        Routers { cloud: self }
    }

    pub fn security_groups(&self) -> SecurityGroups<'_> {
        SecurityGroups { cloud: self }
    }

    pub fn settings(&self) -> Settings<'_> {
        Settings { cloud: self }
    }

    pub fn snapshots(&self) -> Snapshots<'_> {
        Snapshots { cloud: self }
    }

    pub fn subnets(&self) -> Subnets<'_> {
        Subnets { cloud: self }
    }

    fn sweep(&self) -> Sweep<'_> {
        Sweep { cloud: self }
    }

    pub fn tags(&self) -> Tags<'_> {
        Tags { cloud: self }
    }

    pub fn volumes(&self) -> Volumes<'_> {
        Volumes { cloud: self }
    }

    pub fn vpcs(&self) -> Vpcs<'_> {
        Vpcs { cloud: self }
    }

    /// Returns the directory of an instance, which need not exist.
    pub fn dir(&self, id: InstanceId) -> InstanceDir {
        InstanceDir::of(&self.home, id)
    }

    fn node(&self) -> &dyn Node {
        self.node.as_ref()
    }

    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Returns all records of a kind.
    fn records<R: Record>(&self) -> Result<Vec<R>, CloudError> {
        self.store.read(|tx| Ok(tx.list()?))
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Formats a time as in EC2's messages: `2026-11-23 08:40:00 GMT`.
pub fn utc(seconds: u64) -> String {
    render_time(seconds, "%Y-%m-%d %H:%M:%S GMT")
}

/// Formats a time as in EC2's API, without fractions: `2026-11-23T08:40:00Z`.
fn timestamp_seconds(seconds: u64) -> String {
    render_time(seconds, "%Y-%m-%dT%H:%M:%SZ")
}

fn render_time(seconds: u64, format: &str) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX).strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_use_ec2_formats() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 GMT");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00:00 GMT");
        assert_eq!(timestamp_seconds(951_782_400), "2000-02-29T00:00:00Z");
    }
}
