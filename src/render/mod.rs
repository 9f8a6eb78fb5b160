//! From what is wanted to what the node should have: pure and deterministic. The same state and
//! configuration give the same rules, byte for byte.
//!
//! What depends on one Service alone is rendered for it alone ([`service`]), so that a change of it costs
//! no more than it touches; what depends on none is the mode's own ([`mode`]).

mod common;
mod doubts;
pub mod iptables;
pub mod ipvs;
pub mod names;
mod stale;

pub use doubts::doubts;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::config::{DetectLocal, Mode, NodePortAddresses, RuleConfig};
use crate::model::flows::OwnAddresses;
use crate::model::{Node, ObjectKey, ServicePort, State};
use crate::net::Family;
use crate::ruleset::{Block, InterfaceMatch, Layout, Negatable, Owner, Rule};
use ipvs::{Balanced, Filled};

/// What a node should have in one family, or a part of it. Modes fill the parts they use; rules are the
/// first of them.
#[derive(Debug, Default)]
pub struct Desired {
    /// Blocks of rules by owner. The mode's own block comes first: others jump to its chains.
    pub rules: Vec<(Owner, Block)>,
    /// What all service ports together have beside rules, in ipvs mode.
    pub balanced: Balanced,
}

/// What the kernel can do and is set to, as far as rules depend on it. Learnt once at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelFacts {
    /// The nfacct counters exist, so rules may count in them.
    pub nfacct: bool,
    /// `nf_conntrack_tcp_be_liberal` is on: INVALID packets need not be dropped.
    pub tcp_be_liberal: bool,
}

/// All that the rules of one family depend on beside the Services: worked out once, used for each.
#[derive(Clone, Debug)]
pub struct Context<'a> {
    pub family: Family,
    pub state: &'a State,
    config: &'a RuleConfig,
    facts: KernelFacts,
    local: Option<LocalDetector>,
    node_ip: IpAddr,
    node_ports: NodePorts,
    localhost_node_ports: bool,
    /// Which sets hold something: in ipvs mode the mode's own rules depend on it.
    filled: Filled,
    /// Sets that no rule must name: somebody else's has the name.
    unusable: Filled,
}

/// How a rule tells the traffic of this node's pods.
#[derive(Clone, Debug, PartialEq, Eq)]
enum LocalDetector {
    Source(IpNet),
    Interface(InterfaceMatch),
}

/// The addresses that accept node ports.
#[derive(Clone, Debug, PartialEq, Eq)]
enum NodePorts {
    /// All of the node's.
    Any,
    Only(Vec<IpAddr>),
}

impl<'a> Context<'a> {
    pub fn new(config: &'a RuleConfig, facts: KernelFacts, state: &'a State, family: Family) -> Self {
        let node = state.node();
        let localhost = config.localhost_node_ports && family == Family::Ipv4;
        let (node_ports, covers_loopback) = node_ports(config, state, family);
        Self {
            family,
            state,
            config,
            facts,
            local: local_detector(&config.detect_local, node, family),
            node_ip: node_ip(config, node, family),
            node_ports,
            localhost_node_ports: localhost && covers_loopback,
            filled: Filled::default(),
            unusable: Filled::default(),
        }
    }

    /// From now on these sets hold something, and those are not to be named.
    pub fn fill(&mut self, filled: Filled, unusable: Filled) {
        (self.filled, self.unusable) = (filled, unusable);
    }

    /// Do rules leave out the comments that cost most? (behaviour.md §3.4)
    fn is_large_cluster(&self) -> bool {
        self.state.is_large_cluster(self.family)
    }

    /// The external IPs that a service port is reached by. Whether a Service counts as reachable from outside does not
    /// depend on the feature gate, in kube-proxy neither.
    fn external_ips<'p>(&self, port: &'p ServicePort) -> &'p [IpAddr] {
        if self.config.external_ips { &port.addresses.external_ips } else { &[] }
    }
}

impl LocalDetector {
    /// Narrows a rule to traffic that is (or with `not`: is not) from this node's pods.
    fn narrow(&self, rule: Rule, not: bool) -> Rule {
        match self {
            Self::Source(net) => rule.from(Negatable { not, value: *net }),
            Self::Interface(name) => rule.on(Negatable { not, value: name.clone() }),
        }
    }
}

fn local_detector(config: &DetectLocal, node: Option<&Node>, family: Family) -> Option<LocalDetector> {
    match config {
        DetectLocal::ClusterCidr(cidrs) => cidrs[family].map(LocalDetector::Source),
        DetectLocal::NodeCidr => node.and_then(|n| n.primary_pod_cidrs()[family]).map(LocalDetector::Source),
        DetectLocal::BridgeInterface(name) => Some(LocalDetector::Interface(InterfaceMatch(name.clone()))),
        DetectLocal::InterfaceNamePrefix(prefix) => Some(LocalDetector::Interface(InterfaceMatch(format!("{prefix}+").into()))),
    }
}

/// The node's address of a family; without one, its loopback address counts (behaviour.md §7.2).
fn node_ip(config: &RuleConfig, node: Option<&Node>, family: Family) -> IpAddr {
    let bound = config.bind_address.filter(|a| Family::of(*a) == family);
    bound.or_else(|| node.and_then(|n| n.primary_addresses()[family])).unwrap_or(match family {
        Family::Ipv4 => Ipv4Addr::LOCALHOST.into(),
        Family::Ipv6 => Ipv6Addr::LOCALHOST.into(),
    })
}

/// The addresses that accept node ports, and whether the IPv4 loopback ones are meant too.
fn node_ports(config: &RuleConfig, state: &State, family: Family) -> (NodePorts, bool) {
    let ranges = match &config.node_port_addresses {
        NodePortAddresses::Within(ranges) => of_family(ranges, family),
        NodePortAddresses::Primary => {
            let address = node_ip(config, state.node(), family);
            if address.is_loopback() { Vec::new() } else { vec![IpNet::from(address)] }
        }
    };
    let loopback = covers_loopback(&ranges);
    if covers_all(&ranges) {
        return (NodePorts::Any, loopback);
    }
    let within = state.addresses().filter(|address| ranges.iter().any(|range| range.contains(address)));
    (NodePorts::Only(within.collect()), loopback)
}

fn of_family(ranges: &[IpNet], family: Family) -> Vec<IpNet> {
    ranges.iter().copied().filter(|range| Family::of_net(range) == family).collect()
}

/// A family without a range accepts on all addresses, and so does one with a range of length zero.
fn covers_all(ranges: &[IpNet]) -> bool {
    ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0)
}

fn covers_loopback(ranges: &[IpNet]) -> bool {
    covers_all(ranges) || ranges.iter().any(|r| r.addr().is_loopback() || r.contains(&IpAddr::from([127, 0, 0, 1])))
}

/// The chains of the mode in force.
pub fn layout(config: &RuleConfig) -> &'static Layout {
    match config.mode {
        Mode::Iptables => &iptables::LAYOUT,
        Mode::Ipvs => &ipvs::LAYOUT,
    }
}

/// All chains of all modes, and the rules in built-in chains that lead to them: for who wants none of it.
pub fn everything() -> &'static Layout {
    &stale::EVERYTHING
}

/// The mode's own part.
pub fn mode(context: &Context<'_>) -> (Owner, Block) {
    let block = match context.config.mode {
        Mode::Iptables => iptables::mode_block(context),
        Mode::Ipvs => ipvs::mode_block(context),
    };
    (Owner::Mode, block)
}

/// The part of one port of a Service.
#[derive(Debug)]
pub struct PortPart {
    pub owner: Owner,
    pub block: Block,
    pub without_local: WithoutLocal,
    /// What it has beside rules, in ipvs mode.
    pub balanced: Balanced,
}

/// Which of a port's traffic is dropped because its policy is Local and all endpoints are elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WithoutLocal {
    pub internal: bool,
    pub external: bool,
}

/// The part of one Service, port by port. Empty when the Service is not there.
pub fn service(context: &Context<'_>, key: &ObjectKey) -> Vec<PortPart> {
    let Some(service) = context.state.service(key) else { return Vec::new() };
    let part = match context.config.mode {
        Mode::Iptables => iptables::service_part,
        Mode::Ipvs => ipvs::service_part,
    };
    service.ports_of(key, context.family).map(|port| part(context, key, &port)).collect()
}

/// Everything one family of the node should have. Which sets hold something is found out here, whatever the context
/// says.
pub fn all(context: &Context<'_>) -> Desired {
    let parts: Vec<_> = context.state.services().flat_map(|(key, _)| service(context, key)).collect();
    let filled = parts.iter().map(|part| part.balanced.filled()).fold(Filled::default(), Filled::and);
    let mut of_mode = context.clone();
    of_mode.fill(filled, context.unusable);
    let mut desired = Desired { rules: vec![mode(&of_mode)], balanced: Balanced::default() };
    for part in parts {
        desired.rules.push((part.owner, part.block));
        desired.balanced.append(part.balanced);
    }
    desired
}

/// Must packets to 127.0.0.1 be routed like others, for node ports to answer there?
pub fn wants_route_localnet(config: &RuleConfig) -> bool {
    let NodePortAddresses::Within(ranges) = &config.node_port_addresses else { return false };
    config.localhost_node_ports && covers_loopback(&of_family(ranges, Family::Ipv4))
}

/// The addresses, of these families, that node ports are meant for; `None`: all of the node's. All of one family alone
/// is its unspecified address.
pub fn node_port_addresses(config: &RuleConfig, state: &State, families: &[Family]) -> Option<Vec<IpAddr>> {
    let families: Vec<_> = families.iter().map(|&family| (family, node_ports(config, state, family).0)).collect();
    if families.iter().all(|(_, ports)| *ports == NodePorts::Any) {
        return None;
    }
    let of_family = |(family, ports)| match (ports, family) {
        (NodePorts::Only(addresses), _) => addresses,
        (NodePorts::Any, Family::Ipv4) => vec![Ipv4Addr::UNSPECIFIED.into()],
        (NodePorts::Any, Family::Ipv6) => vec![Ipv6Addr::UNSPECIFIED.into()],
    };
    Some(families.into_iter().flat_map(of_family).collect())
}

/// The addresses that have virtual servers of node ports, in ipvs mode: those that node ports are meant for, but no
/// loopback ones, and of all of the node's no link-local ones of IPv6 either. Sorted.
pub fn node_port_server_addresses(config: &RuleConfig, state: &State, family: Family) -> Vec<IpAddr> {
    server_addresses(&node_ports(config, state, family).0, state, family)
}

fn server_addresses(ports: &NodePorts, state: &State, family: Family) -> Vec<IpAddr> {
    let mut addresses: Vec<_> = match ports {
        NodePorts::Any => state.addresses().filter(|&a| Family::of(a) == family && !is_link_local(a)).collect(),
        NodePorts::Only(addresses) => addresses.clone(),
    };
    addresses.retain(|address| !address.is_loopback());
    addresses
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// The node's addresses on which the rules of one family serve node ports, spelled out.
pub fn own_addresses(config: &RuleConfig, state: &State, family: Family) -> OwnAddresses {
    let (ports, covers_loopback) = node_ports(config, state, family);
    let loopback = config.localhost_node_ports && family == Family::Ipv4 && covers_loopback;
    let any = ports == NodePorts::Any;
    let addresses: Vec<_> = match ports {
        NodePorts::Any => state.addresses().filter(|&address| Family::of(address) == family).collect(),
        NodePorts::Only(addresses) => addresses,
    };
    let usable = addresses.into_iter().filter(|address| loopback || !address.is_loopback());
    OwnAddresses { addresses: usable.collect(), loopback: loopback && any }
}
