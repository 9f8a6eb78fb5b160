//! The rules of one service port in one family: behaviour.md §3.3.

use std::net::{IpAddr, SocketAddr};

use super::{EXTERNAL_SERVICES, MARK_MASQ, NODE_PORTS, PROXY_FIREWALL, SERVICES};
use crate::model::select::{Selection, select};
use crate::model::{Endpoint, ObjectKey, ServicePort};
use crate::net::Family;
use crate::render::ipvs::Balanced;
use crate::render::names::{NFACCT_LOCALHOST, PortChains, endpoint_chain, owner};
use crate::render::{Context, PortPart, WithoutLocal};
use crate::ruleset::{
    AddrType, Block, ChainName, Group, Match, Negatable, OwnedChain, RecentAction, RejectWith, Rule, Side, Table, Target,
};

/// All rules of `port`, one of the ports of Service `key`.
pub fn service_part(context: &Context<'_>, key: &ObjectKey, port: &ServicePort) -> PortPart {
    let endpoints = context.state.endpoints(key, port, context.family);
    let selection = select(&endpoints, port, context.state.place());
    let rendering = Rendering { context, port, chains: PortChains::of(port), selection };
    PortPart {
        owner: owner(port),
        block: Block { chains: rendering.owned_chains(), groups: rendering.groups() },
        without_local: WithoutLocal {
            internal: rendering.selection.any && !rendering.has_internal_endpoints(),
            external: rendering.selection.any && !rendering.has_external_endpoints(),
        },
        balanced: Balanced::default(),
    }
}

struct Rendering<'a> {
    context: &'a Context<'a>,
    port: &'a ServicePort,
    chains: PortChains,
    selection: Selection<'a>,
}

impl Rendering<'_> {
    fn has_internal_endpoints(&self) -> bool {
        self.selection.any && !(self.port.internal_policy_local && self.selection.local.is_empty())
    }

    fn has_external_endpoints(&self) -> bool {
        self.selection.any && !(self.port.external_policy_local && self.selection.local.is_empty())
    }

    fn internal_chain(&self) -> &ChainName {
        if self.port.internal_policy_local { &self.chains.local } else { &self.chains.cluster }
    }

    fn external_policy_chain(&self) -> &ChainName {
        if self.port.external_policy_local { &self.chains.local } else { &self.chains.cluster }
    }

    fn uses_cluster_chain(&self) -> bool {
        !self.selection.cluster.is_empty()
    }

    fn uses_local_chain(&self) -> bool {
        !self.selection.local.is_empty()
    }

    fn uses_external_chain(&self) -> bool {
        self.selection.any && self.port.externally_accessible()
    }

    fn uses_firewall_chain(&self) -> bool {
        let addresses = &self.port.addresses;
        self.selection.any && !addresses.load_balancer_vips.is_empty() && !addresses.source_ranges.is_empty()
    }

    fn groups(&self) -> Vec<Group> {
        let groups = [
            (Table::Nat, SERVICES, self.dispatch_rules()),
            (Table::Nat, NODE_PORTS, self.node_port_rules()),
            (Table::Filter, SERVICES, self.refuse_internal_rules()),
            (Table::Filter, EXTERNAL_SERVICES, self.refuse_external_rules()),
            (Table::Filter, PROXY_FIREWALL, self.firewall_drop_rules()),
            (Table::Filter, NODE_PORTS, self.health_check_rules()),
        ];
        let filled = groups.into_iter().filter(|(_, _, rules)| !rules.is_empty());
        filled.map(|(table, chain, rules)| Group { table, chain: chain.into(), slot: 0, side: Side::Head, rules }).collect()
    }

    /// `-d ADDRESS -p PROTOCOL -m comment --comment "NAME WHAT" -m PROTOCOL --dport PORT`
    fn to(&self, address: IpAddr, what: &str) -> Rule {
        let rule = Rule::new().to(Negatable::is(address.into())).comment(&format!("{} {what}", self.port.name));
        rule.port(self.port.protocol, Some(self.port.port))
    }

    fn dispatch_rules(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        if self.has_internal_endpoints() {
            rules.push(self.to(self.port.cluster_ip(), "cluster IP").jump(self.internal_chain()));
        }
        if self.selection.any {
            let addresses = &self.port.addresses;
            let external = |&ip: &IpAddr| self.to(ip, "external IP").jump(&self.chains.external);
            rules.extend(self.context.external_ips(self.port).iter().map(external));
            let entry = if self.uses_firewall_chain() { &self.chains.firewall } else { &self.chains.external };
            rules.extend(addresses.load_balancer_vips.iter().map(|&ip| self.to(ip, "loadbalancer IP").jump(entry)));
        }
        rules
    }

    /// The rule for loopback addresses only counts: both lead to the same chain.
    fn node_port_rules(&self) -> Vec<Rule> {
        if self.port.node_port == 0 || !self.selection.any {
            return Vec::new();
        }
        let rule = Rule::new().comment(&self.port.name).port(self.port.protocol, Some(self.port.node_port));
        let mut rules = Vec::new();
        if self.context.localhost_node_ports && self.context.facts.nfacct {
            let loopback = ipnet::IpNet::new_assert(IpAddr::from([127, 0, 0, 0]), 8);
            let counted = rule.clone().to(Negatable::is(loopback)).matching(Match::NfAcct(NFACCT_LOCALHOST.into()));
            rules.push(counted.jump(&self.chains.external));
        }
        rules.push(rule.jump(&self.chains.external));
        rules
    }

    /// What to do with traffic that no endpoint may get: refuse where there is none at all, drop where
    /// there are some, but not on this node.
    fn refusal(&self) -> (&'static str, Target) {
        let reject = match self.context.family {
            Family::Ipv4 => RejectWith::IcmpPortUnreachable,
            Family::Ipv6 => RejectWith::Icmp6PortUnreachable,
        };
        if self.selection.any { ("has no local endpoints", Target::Drop) } else { ("has no endpoints", Target::Reject(reject)) }
    }

    fn refuse_internal_rules(&self) -> Vec<Rule> {
        let (why, target) = self.refusal();
        let refuse = || self.to(self.port.cluster_ip(), why).then(target);
        (!self.has_internal_endpoints()).then(refuse).into_iter().collect()
    }

    fn refuse_external_rules(&self) -> Vec<Rule> {
        if self.has_external_endpoints() {
            return Vec::new();
        }
        let (why, target) = self.refusal();
        let addresses = self.context.external_ips(self.port).iter().chain(&self.port.addresses.load_balancer_vips);
        let mut rules: Vec<_> = addresses.map(|&ip| self.to(ip, why).then(target.clone())).collect();
        if self.port.node_port != 0 {
            let rule = Rule::new().comment(&format!("{} {why}", self.port.name));
            let rule = rule.matching(Match::AddrType(AddrType::DestinationLocal));
            rules.push(rule.port(self.port.protocol, Some(self.port.node_port)).then(target));
        }
        rules
    }

    fn firewall_drop_rules(&self) -> Vec<Rule> {
        if !self.uses_firewall_chain() {
            return Vec::new();
        }
        let why = format!("traffic not accepted by {}", self.chains.firewall);
        self.port.addresses.load_balancer_vips.iter().map(|&ip| self.to(ip, &why).then(Target::Drop)).collect()
    }

    fn health_check_rules(&self) -> Vec<Rule> {
        let number = self.port.health_check_node_port;
        let rule = || {
            let rule = Rule::new().comment(&format!("{} health check node port", self.port.name));
            rule.port(crate::net::Protocol::Tcp, Some(number)).then(Target::Accept)
        };
        (number != 0).then(rule).into_iter().collect()
    }

    fn owned_chains(&self) -> Vec<OwnedChain> {
        let mut chains: Vec<_> = self.selection.reachable.iter().map(|endpoint| self.endpoint_chain(endpoint)).collect();
        let mut chain = |wanted: bool, name: &ChainName, rules: &dyn Fn() -> Vec<Rule>| {
            if wanted {
                chains.push(OwnedChain { table: Table::Nat, name: name.clone(), rules: rules() });
            }
        };
        chain(self.uses_cluster_chain(), &self.chains.cluster, &|| {
            self.balancing_rules(&self.chains.cluster, &self.selection.cluster)
        });
        chain(self.uses_local_chain(), &self.chains.local, &|| self.balancing_rules(&self.chains.local, &self.selection.local));
        chain(self.uses_external_chain(), &self.chains.external, &|| self.external_rules());
        chain(self.uses_firewall_chain(), &self.chains.firewall, &|| self.firewall_rules());
        chains
    }

    /// A comment that large clusters do without.
    fn costly_comment(&self, rule: Rule, text: &dyn Fn() -> String) -> Rule {
        if self.context.is_large_cluster() { rule } else { rule.comment(&text()) }
    }

    fn endpoint_chain(&self, endpoint: &Endpoint) -> OwnedChain {
        let name = endpoint_chain(self.port, endpoint.address);
        let commented = |rule| self.costly_comment(rule, &|| self.port.name.to_string());
        let hairpin = commented(Rule::new().from(Negatable::is(endpoint.address.ip().into()))).jump(MARK_MASQ);
        let mut translate = commented(Rule::new());
        if self.port.affinity_seconds.is_some() {
            translate = translate.matching(self.recent(&name, RecentAction::Set));
        }
        let translate = translate.port(self.port.protocol, None).then(Target::Dnat(endpoint.address));
        OwnedChain { table: Table::Nat, name, rules: vec![hairpin, translate] }
    }

    fn recent(&self, list: &ChainName, action: RecentAction) -> Match {
        Match::Recent { family: self.context.family, list: list.clone(), action }
    }

    /// A policy's chain: who must be masqueraded, who comes back to the same endpoint, and the dice.
    fn balancing_rules(&self, chain: &ChainName, endpoints: &[&Endpoint]) -> Vec<Rule> {
        let mut rules = Vec::new();
        if chain == self.internal_chain() {
            rules.extend(self.masquerade_cluster_ip_rule());
        }
        let names: Vec<_> = endpoints.iter().map(|e| endpoint_chain(self.port, e.address)).collect();
        let to = |endpoint: SocketAddr| self.costly_comment(Rule::new(), &|| format!("{} -> {endpoint}", self.port.name));
        if let Some(seconds) = self.port.affinity_seconds {
            let sticky = |name| self.recent(name, RecentAction::Check { seconds });
            rules.extend(endpoints.iter().zip(&names).map(|(e, name)| to(e.address).matching(sticky(name)).jump(name)));
        }
        for (i, (endpoint, name)) in endpoints.iter().zip(&names).enumerate() {
            let mut rule = to(endpoint.address);
            let remaining = endpoints.len() - i;
            if remaining > 1 {
                rule = rule.matching(Match::Statistic { probability: probability(remaining) });
            }
            rules.push(rule.jump(name));
        }
        rules
    }

    fn masquerade_cluster_ip_rule(&self) -> Option<Rule> {
        let rule = self.to(self.port.cluster_ip(), "cluster IP").jump(MARK_MASQ);
        if self.context.config.masquerade_all {
            return Some(rule);
        }
        self.context.local.as_ref().map(|local| local.narrow(rule, true))
    }

    /// Entry for traffic from outside. Under policy Local the source address is kept, so only local
    /// endpoints may answer; this node's pods and the node itself go by the Cluster policy all the same.
    fn external_rules(&self) -> Vec<Rule> {
        let what = |text: &str| Rule::new().comment(&format!("{text} for {} external destinations", self.port.name));
        let mut rules = Vec::new();
        if self.port.external_policy_local {
            if let Some(local) = &self.context.local {
                rules.push(local.narrow(what("pod traffic"), false).jump(&self.chains.cluster));
            }
            let from_node = || Match::AddrType(AddrType::SourceLocal);
            rules.push(what("masquerade LOCAL traffic").matching(from_node()).jump(MARK_MASQ));
            rules.push(what("route LOCAL traffic").matching(from_node()).jump(&self.chains.cluster));
        } else {
            rules.push(what("masquerade traffic").jump(MARK_MASQ));
        }
        if self.has_external_endpoints() {
            rules.push(Rule::new().jump(self.external_policy_chain()));
        }
        rules
    }

    /// Whoever is not let through here is dropped by KUBE-PROXY-FIREWALL. When the node itself is
    /// allowed, so is traffic whose source is the load balancer's address: a node's own connection to
    /// that address may have it as its source.
    fn firewall_rules(&self) -> Vec<Rule> {
        let addresses = &self.port.addresses;
        let allow = |net| {
            let rule = Rule::new().from(Negatable::is(net)).comment(&format!("{} loadbalancer IP", self.port.name));
            rule.jump(&self.chains.external)
        };
        let mut rules: Vec<_> = addresses.source_ranges.iter().map(|&net| allow(net)).collect();
        if addresses.source_ranges.iter().any(|net| net.contains(&self.context.node_ip)) {
            rules.extend(addresses.load_balancer_vips.iter().map(|&ip| allow(ip.into())));
        }
        let rest = format!("other traffic to {} will be dropped by KUBE-PROXY-FIREWALL", self.port.name);
        rules.push(Rule::new().comment(&rest));
        rules
    }
}

/// 1/n as the kernel keeps it: a fraction of 2³¹, rounded. kube-proxy writes 1/n with ten decimals, and
/// iptables rounds what it reads, so that text is what has to be rounded here too.
fn probability(n: usize) -> u32 {
    let n = u32::try_from(n).unwrap_or(u32::MAX);
    let written = (1e10 / f64::from(n)).round() / 1e10;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 2³¹, never negative")]
    let fraction = (written * f64::from(1u32 << 31)).round() as u32;
    fraction
}
