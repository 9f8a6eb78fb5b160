//! The rules of `--mode=iptables`: behaviour.md §3, measured in tests/golden.

mod mode;
mod service;

pub use mode::mode_block;
pub use service::service_part;

use crate::ruleset::{Layout, Table};

const EXTERNAL_SERVICES: &str = "KUBE-EXTERNAL-SERVICES";
const FIREWALL: &str = "KUBE-FIREWALL";
const FORWARD: &str = "KUBE-FORWARD";
const MARK_MASQ: &str = "KUBE-MARK-MASQ";
const NODE_PORTS: &str = "KUBE-NODEPORTS";
const POSTROUTING: &str = "KUBE-POSTROUTING";
const PROXY_CANARY: &str = "KUBE-PROXY-CANARY";
const PROXY_FIREWALL: &str = "KUBE-PROXY-FIREWALL";
const SERVICES: &str = "KUBE-SERVICES";

/// Which chains are this mode's.
pub static LAYOUT: Layout = Layout {
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
    prefixes: &[
        (Table::Nat, "KUBE-SVC-"),
        (Table::Nat, "KUBE-SVL-"),
        (Table::Nat, "KUBE-EXT-"),
        (Table::Nat, "KUBE-FW-"),
        (Table::Nat, "KUBE-SEP-"),
    ],
};
