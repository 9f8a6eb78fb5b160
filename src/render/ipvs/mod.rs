//! `--mode=ipvs`: behaviour.md §4, measured in tests/golden.

mod mode;
mod service;
mod sets;

pub(super) use mode::hooks;
pub use mode::mode_block;
pub use service::service_part;
pub use sets::{Filled, SetId, room};

use std::net::{IpAddr, SocketAddr};

use super::{iptables, stale};
use crate::ruleset::{Layout, Member, Table, VirtualAddress, VirtualServer};

const FORWARD: &str = "KUBE-FORWARD";
const IPVS_FILTER: &str = "KUBE-IPVS-FILTER";
const IPVS_OUT_FILTER: &str = "KUBE-IPVS-OUT-FILTER";
const LOAD_BALANCER: &str = "KUBE-LOAD-BALANCER";
const MARK_MASQ: &str = "KUBE-MARK-MASQ";
const NODE_PORT: &str = "KUBE-NODE-PORT";
const POSTROUTING: &str = "KUBE-POSTROUTING";
const PROXY_FIREWALL: &str = "KUBE-PROXY-FIREWALL";
const SERVICES: &str = "KUBE-SERVICES";
const SOURCE_RANGES_FIREWALL: &str = "KUBE-SOURCE-RANGES-FIREWALL";

/// Which chains are this mode's. Sets hold nearly all that depends on Services, so there are few, and none by Service.
pub static LAYOUT: Layout = Layout {
    tables: &[Table::Filter, Table::Nat],
    dispatch: &[(Table::Filter, IPVS_OUT_FILTER), (Table::Filter, PROXY_FIREWALL)],
    common: &[],
    prefixes: iptables::PER_SERVICE,
    stale_chains: &[iptables::OWN_CHAINS],
    stale_hooks: &stale::HOOKS_OF_IPTABLES,
};

/// The chains that only this mode has.
pub(super) const OWN_CHAINS: &[(Table, &str)] = &[
    (Table::Filter, IPVS_FILTER),
    (Table::Filter, IPVS_OUT_FILTER),
    (Table::Filter, NODE_PORT),
    (Table::Filter, SOURCE_RANGES_FIREWALL),
    (Table::Nat, LOAD_BALANCER),
    (Table::Nat, NODE_PORT),
];

/// Those that iptables mode has by the same names, whatever is in them.
pub(super) const COMMON_CHAINS: &[(Table, &str)] = &[
    (Table::Filter, FORWARD),
    (Table::Filter, PROXY_FIREWALL),
    (Table::Nat, MARK_MASQ),
    (Table::Nat, POSTROUTING),
    (Table::Nat, SERVICES),
];

/// What one service port, or all of them, have in ipvs mode beside rules.
///
/// One service port has each thing once. Several may share members and addresses, and two Services may even ask for one
/// virtual server: then the first one's counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balanced {
    pub servers: Vec<WantedServer>,
    pub members: Vec<(SetId, Member)>,
    /// Addresses that must be local to the node for its packets to come in.
    pub addresses: Vec<IpAddr>,
}

impl Balanced {
    /// The sets that have a member of it.
    pub fn filled(&self) -> Filled {
        self.members.iter().map(|&(set, _)| set).collect()
    }

    /// Puts another one's things behind these.
    pub fn append(&mut self, other: Self) {
        self.servers.extend(other.servers);
        self.members.extend(other.members);
        self.addresses.extend(other.addresses);
    }
}

/// A virtual server with its real servers. All of these have weight 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedServer {
    pub at: VirtualAddress,
    pub server: VirtualServer,
    pub real_servers: Vec<SocketAddr>,
}
