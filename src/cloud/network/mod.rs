//! The network of instances: their addresses, and the backends of their network devices.
//!
//! Each instance's VMM has a netstack, configured by a file in the instance's directory. The netstack connects the
//! guest to the router of its VPC, to a user-mode network (passt), or to nothing else.

mod address;
mod elastic;
mod filter;
mod interface;
mod internet_gateway;
mod link;
mod lookup;
mod metadata;
mod pending;
mod placement;
mod route_table;
mod router;
mod routes;
mod security_group;
mod spec;
mod subnet;
mod vpc;

pub(super) use address::{AddressPool, take_public_address};
pub use elastic::Addresses;
pub(super) use elastic::free_addresses_of;
pub(super) use interface::{Interfaces, plan};
pub use internet_gateway::InternetGateways;
pub(super) use link::run_link;
pub(super) use pending::NetworkChange;
pub(super) use placement::{Placement, for_fork};
pub use route_table::RouteTables;
pub(super) use router::Routers;
pub(crate) use routes::is_attached;
pub(super) use security_group::chosen_groups;
pub use security_group::{Chosen, PeerSpec, RuleChange, RuleSpec, SecurityGroups, shown};
pub(super) use spec::is_in_vpc;
pub use spec::{MTU, NetworkSpec};
pub use subnet::{SubnetSpec, Subnets};
pub use vpc::Vpcs;
