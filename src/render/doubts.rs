//! What of the configuration is probably not meant so, as far as the node tells: said once at the start.

use ipnet::IpNet;

use super::{NodePorts, node_ports, of_family};
use crate::config::{DetectLocal, NodePortAddresses, RuleConfig};
use crate::model::State;
use crate::net::Family;

/// One sentence for each. `families` are those that can be programmed.
pub fn doubts(config: &RuleConfig, state: &State, families: &[Family]) -> Vec<String> {
    let primary = primary_family(config, state, families);
    let mut doubts = Vec::new();
    if let Some(address) = config.bind_address
        && !families.contains(&Family::of(address))
    {
        let family = Family::of(address);
        doubts.push(format!("--bind-address={address} counts for nothing: {family} is not programmed on this node"));
    }
    doubts.extend(primary.and_then(|primary| undetected(config, state, primary)));
    for &family in families {
        doubts.extend(unlimited_node_ports(config, state, (family, primary)));
        doubts.extend(no_node_ports(config, state, family));
    }
    doubts
}

/// The family that the cluster is of first of all, if anything tells.
fn primary_family(config: &RuleConfig, state: &State, families: &[Family]) -> Option<Family> {
    let first_of_node = || state.node().and_then(|node| node.addresses.first().copied());
    let told = config.bind_address.or_else(first_of_node).map(Family::of)?;
    Some(told).filter(|family| families.contains(family)).or(families.first().copied())
}

/// Pods have addresses of the other family only, as it seems: then pods of this one cannot be told from others.
fn undetected(config: &RuleConfig, state: &State, primary: Family) -> Option<String> {
    let (ranges, whose) = match &config.detect_local {
        DetectLocal::ClusterCidr(_) => (pod_ranges(config, state), "--cluster-cidr"),
        DetectLocal::NodeCidr => (pod_ranges(config, state), "the Node's spec.podCIDRs"),
        DetectLocal::BridgeInterface(_) | DetectLocal::InterfaceNamePrefix(_) => return None,
    };
    let other = !ranges.is_empty() && ranges.iter().all(|range| Family::of_net(range) != primary);
    other.then(|| {
        format!(
            "{whose}: no range is {primary}, the first family of this node: {primary} traffic to ClusterIPs from outside of \
             the cluster is not masqueraded"
        )
    })
}

/// The ranges that pods of the cluster, or of this node, have their addresses from.
fn pod_ranges(config: &RuleConfig, state: &State) -> Vec<IpNet> {
    match &config.detect_local {
        DetectLocal::ClusterCidr(cidrs) => Family::ALL.into_iter().filter_map(|family| cidrs[family]).collect(),
        _ => state.node().map(|node| node.pod_cidrs.clone()).unwrap_or_default(),
    }
}

/// Node ports are limited in one family, and the other is in use too.
fn unlimited_node_ports(config: &RuleConfig, state: &State, (family, primary): (Family, Option<Family>)) -> Option<String> {
    let NodePortAddresses::Within(ranges) = &config.node_port_addresses else { return None };
    if ranges.is_empty() || !of_family(ranges, family).is_empty() {
        return None;
    }
    let in_use = Some(family) == primary || !of_family(&pod_ranges(config, state), family).is_empty();
    in_use.then(|| format!("--nodeport-addresses has no {family} range: node ports are accepted on all {family} addresses"))
}

/// Node ports are limited to addresses that the node has not.
fn no_node_ports(config: &RuleConfig, state: &State, family: Family) -> Option<String> {
    let NodePortAddresses::Within(_) = &config.node_port_addresses else { return None };
    let none = matches!(node_ports(config, state, family), (NodePorts::Only(addresses), _) if addresses.is_empty());
    none.then(|| {
        format!(
            "--nodeport-addresses: this node has no address in the {family} ranges: until it has, no {family} node port answers"
        )
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::config::{Config, Raw};
    use crate::model::{Event, Node, ObjectKey};
    use crate::net::PerFamily;

    const BOTH: [Family; 2] = Family::ALL;

    fn config() -> RuleConfig {
        Config::resolve(Raw::of_defaults("node-a")).expect("defaults are sound").rules
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn cluster_cidr(texts: &[&str]) -> DetectLocal {
        let ranges = nets(texts);
        DetectLocal::ClusterCidr(PerFamily::from_fn(|family| ranges.iter().copied().find(|net| Family::of_net(net) == family)))
    }

    fn node_ports_within(texts: &[&str]) -> NodePortAddresses {
        NodePortAddresses::Within(nets(texts))
    }

    /// A node with an address of each family, IPv4 first, and pod CIDRs.
    fn state(pod_cidrs: &[&str]) -> State {
        let addresses: Vec<IpAddr> = ["192.0.2.11", "2001:db8::11"].map(|text| text.parse().unwrap()).into();
        let node = Node { addresses: addresses.clone(), pod_cidrs: nets(pod_cidrs), ..Node::default() };
        let mut state = State::new("node-a");
        state.apply(Event::Nodes(vec![(ObjectKey::new("", "node-a"), node)]));
        state.apply(Event::Addresses([addresses, vec![[127, 0, 0, 1].into()]].concat()));
        state
    }

    #[test]
    fn what_is_usual_is_not_doubted() {
        let usual = [
            config(),
            RuleConfig { detect_local: cluster_cidr(&["10.244.0.0/16"]), ..config() },
            RuleConfig { detect_local: cluster_cidr(&["10.244.0.0/16", "fd00:10:244::/56"]), ..config() },
            RuleConfig { node_port_addresses: NodePortAddresses::Primary, ..config() },
            // One family as far as anything tells, and its node ports are limited.
            RuleConfig { node_port_addresses: node_ports_within(&["192.0.2.0/24"]), ..config() },
            RuleConfig { bind_address: Some([192, 0, 2, 11].into()), detect_local: DetectLocal::NodeCidr, ..config() },
        ];
        for config in usual {
            assert_eq!(doubts(&config, &state(&["10.244.1.0/24"]), &BOTH), [""; 0], "{config:?}");
            assert_eq!(doubts(&config, &state(&["10.244.1.0/24"]), &[Family::Ipv4]), [""; 0], "{config:?}");
        }
    }

    #[test]
    fn pods_of_the_other_family_are_doubted() {
        let words = "no range is IPv4, the first family of this node: ";
        let found = |config: &RuleConfig, pod_cidrs: &[&str]| doubts(config, &state(pod_cidrs), &BOTH);
        let by_cluster = RuleConfig { detect_local: cluster_cidr(&["fd00:10:244::/56"]), ..config() };
        let found_of_cluster = found(&by_cluster, &["10.244.1.0/24"]);
        assert!(found_of_cluster.len() == 1 && found_of_cluster[0].starts_with(&format!("--cluster-cidr: {words}")));
        let by_node = RuleConfig { detect_local: DetectLocal::NodeCidr, ..config() };
        let found_of_node = found(&by_node, &["fd00:10:244:1::/64"]);
        assert!(found_of_node.len() == 1 && found_of_node[0].starts_with(&format!("the Node's spec.podCIDRs: {words}")));
        // Told to be of the other family.
        let bound = RuleConfig { bind_address: "2001:db8::11".parse().ok(), ..by_cluster };
        assert_eq!(found(&bound, &[]), [""; 0]);
        assert_eq!(doubts(&bound, &State::new("node-a"), &BOTH), [""; 0]);
    }

    /// Without a Node nobody knows which family is the first.
    #[test]
    fn a_cluster_of_ipv6_alone_is_not_doubted() {
        let config = RuleConfig { detect_local: cluster_cidr(&["fd00:10:244::/56"]), ..config() };
        assert_eq!(doubts(&config, &State::new("node-a"), &BOTH), [""; 0]);
    }

    #[test]
    fn node_ports_that_are_limited_in_one_family_alone_are_doubted() {
        let limited = RuleConfig { node_port_addresses: node_ports_within(&["192.0.2.0/24"]), ..config() };
        let words = "--nodeport-addresses has no IPv6 range: node ports are accepted on all IPv6 addresses";
        let dual = RuleConfig { detect_local: cluster_cidr(&["10.244.0.0/16", "fd00:10:244::/56"]), ..limited.clone() };
        assert_eq!(doubts(&dual, &state(&[]), &BOTH), [words]);
        assert_eq!(doubts(&dual, &state(&[]), &[Family::Ipv4]), [""; 0], "IPv6 is not programmed");
        let by_node = RuleConfig { detect_local: DetectLocal::NodeCidr, ..limited };
        assert_eq!(doubts(&by_node, &state(&["10.244.1.0/24", "fd00:10:244:1::/64"]), &BOTH), [words]);
        let other = RuleConfig { node_port_addresses: node_ports_within(&["2001:db8::/64"]), ..config() };
        assert_eq!(doubts(&other, &state(&[]), &BOTH), [words.replace("IPv6", "IPv4")]);
    }

    #[test]
    fn node_ports_without_an_address_and_a_bind_address_without_rules_are_doubted() {
        let nowhere = RuleConfig { node_port_addresses: node_ports_within(&["198.51.100.0/24"]), ..config() };
        let found = doubts(&nowhere, &state(&[]), &BOTH);
        assert!(found.len() == 1 && found[0].ends_with("until it has, no IPv4 node port answers"), "{found:?}");
        let bound = RuleConfig { bind_address: "2001:db8::11".parse().ok(), ..config() };
        let found = doubts(&bound, &state(&[]), &[Family::Ipv4]);
        assert_eq!(found, ["--bind-address=2001:db8::11 counts for nothing: IPv6 is not programmed on this node"]);
    }
}
