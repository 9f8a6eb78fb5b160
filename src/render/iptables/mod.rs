//! The rules of `--mode=iptables`: behaviour.md §3, measured in tests/golden.

mod mode;
mod service;

pub(super) use mode::hooks;
pub use mode::mode_block;
pub use service::service_part;

use super::{ipvs, stale};
use crate::ruleset::{Layout, Table};

const EXTERNAL_SERVICES: &str = "KUBE-EXTERNAL-SERVICES";
pub(super) const FIREWALL: &str = "KUBE-FIREWALL";
const FORWARD: &str = "KUBE-FORWARD";
const MARK_MASQ: &str = "KUBE-MARK-MASQ";
const NODE_PORTS: &str = "KUBE-NODEPORTS";
const POSTROUTING: &str = "KUBE-POSTROUTING";
const PROXY_CANARY: &str = "KUBE-PROXY-CANARY";
const PROXY_FIREWALL: &str = "KUBE-PROXY-FIREWALL";
const SERVICES: &str = "KUBE-SERVICES";

/// Which chains are this mode's.
pub static LAYOUT: Layout = Layout {
    tables: &Table::ALL,
    dispatch: &[
        (Table::Filter, EXTERNAL_SERVICES),
        (Table::Filter, NODE_PORTS),
        (Table::Filter, PROXY_FIREWALL),
        (Table::Filter, SERVICES),
        (Table::Nat, NODE_PORTS),
        (Table::Nat, SERVICES),
    ],
    // kubelet has the same chain, with the same rule in it.
    common: &[(Table::Filter, FIREWALL)],
    prefixes: PER_SERVICE,
    stale_chains: &[ipvs::OWN_CHAINS],
    stale_hooks: &stale::HOOKS_OF_IPVS,
};

/// Beginnings of the names of chains of service ports.
pub(super) const PER_SERVICE: &[(Table, &str)] = &[
    (Table::Nat, "KUBE-SVC-"),
    (Table::Nat, "KUBE-SVL-"),
    (Table::Nat, "KUBE-EXT-"),
    (Table::Nat, "KUBE-FW-"),
    (Table::Nat, "KUBE-SEP-"),
];

/// The other chains that only this mode has, and nobody shares.
pub(super) const OWN_CHAINS: &[(Table, &str)] = &[
    (Table::Filter, EXTERNAL_SERVICES),
    (Table::Filter, NODE_PORTS),
    (Table::Filter, SERVICES),
    (Table::Nat, NODE_PORTS),
    (Table::Mangle, PROXY_CANARY),
    (Table::Filter, PROXY_CANARY),
    (Table::Nat, PROXY_CANARY),
];
