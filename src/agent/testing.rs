//! What the tests of several parts need.

use crate::config::{DetectLocal, IpvsConfig, Mode, NodePortAddresses, RuleConfig};
use crate::net::PerFamily;

pub fn rule_config() -> RuleConfig {
    RuleConfig {
        mode: Mode::Iptables,
        detect_local: DetectLocal::ClusterCidr(PerFamily::default()),
        masquerade_all: false,
        masquerade_mark: 0x4000,
        localhost_node_ports: true,
        node_port_addresses: NodePortAddresses::Within(Vec::new()),
        bind_address: None,
        external_ips: true,
        ipvs: IpvsConfig::default(),
    }
}
