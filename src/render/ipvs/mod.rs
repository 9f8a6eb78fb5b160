//! `--mode=ipvs`: behaviour.md §4, measured in tests/golden.

mod sets;

pub use sets::{Filled, SetId};

use std::net::{IpAddr, SocketAddr};

use crate::ruleset::{Member, VirtualAddress, VirtualServer};

/// What one service port has in ipvs mode beside rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balanced {
    pub servers: Vec<WantedServer>,
    pub members: Vec<(SetId, Member)>,
    /// Addresses that must be local to the node for its packets to come in.
    pub addresses: Vec<IpAddr>,
}

/// A virtual server with its real servers. All of these have weight 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedServer {
    pub at: VirtualAddress,
    pub server: VirtualServer,
    pub real_servers: Vec<SocketAddr>,
}

// TEMPORARY until the render branch is merged.
pub fn node_port_server_addresses(_: &crate::config::RuleConfig, _: &crate::model::State, _: crate::net::Family) -> Vec<IpAddr> {
    Vec::new()
}
pub fn max_members(_: usize) -> u32 {
    65536
}
