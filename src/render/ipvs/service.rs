//! What one service port has in one family: virtual servers, set members, addresses (behaviour.md §4.2–4.5), and the few
//! rules that no set can say.

use std::net::{IpAddr, SocketAddr};

use super::{Balanced, IPVS_OUT_FILTER, PROXY_FIREWALL, SetId, WantedServer};
use crate::model::select::{Selection, select};
use crate::model::{Endpoint, ObjectKey, ServicePort};
use crate::net::{Protocol, Scheduler};
use crate::render::names::owner;
use crate::render::{Context, PortPart, WithoutLocal, server_addresses};
use crate::ruleset::{
    Block, CtStates, Group, Match, Member, Negatable, Persistence, Rule, ServerFlags, Side, Table, Target, VirtualAddress,
    VirtualServer,
};

/// Everything of `port`, one of the ports of Service `key`.
pub fn service_part(context: &Context<'_>, key: &ObjectKey, port: &ServicePort) -> PortPart {
    let endpoints = context.state.endpoints(key, port, context.family);
    let selection = select(&endpoints, port, context.state.place());
    let node = match port.node_port {
        0 => Vec::new(),
        _ => server_addresses(&context.node_ports, context.state, context.family),
    };
    let without_local = without_local(port, &selection);
    let rendering = Rendering { context, port, selection, node, without_local };
    PortPart {
        owner: owner(port),
        block: Block { chains: Vec::new(), groups: rendering.groups() },
        without_local,
        balanced: Balanced {
            servers: rendering.servers(),
            members: rendering.members(&endpoints),
            addresses: rendering.addresses(),
        },
    }
}

/// Where nothing comes in from outside there is nothing to drop.
fn without_local(port: &ServicePort, selection: &Selection<'_>) -> WithoutLocal {
    let all_elsewhere = selection.any && selection.local.is_empty();
    WithoutLocal {
        internal: all_elsewhere && port.internal_policy_local,
        external: all_elsewhere && port.external_policy_local && port.externally_accessible(),
    }
}

struct Rendering<'a> {
    context: &'a Context<'a>,
    port: &'a ServicePort,
    selection: Selection<'a>,
    /// The node's addresses that its node port is served on.
    node: Vec<IpAddr>,
    without_local: WithoutLocal,
}

impl Rendering<'_> {
    /// External and load balancer IPs.
    fn external_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let addresses = self.context.external_ips(self.port).iter().chain(&self.port.addresses.load_balancer_vips);
        addresses.copied()
    }

    /// Addresses of the node that are on another interface are local already, and stay where they are.
    fn addresses(&self) -> Vec<IpAddr> {
        let external = self.external_addresses().filter(|&address| !self.context.state.has_address(address));
        sorted([self.port.cluster_ip()].into_iter().chain(external).collect())
    }

    fn servers(&self) -> Vec<WantedServer> {
        let internal = if self.port.internal_policy_local { &self.selection.local } else { &self.selection.cluster };
        let external = self.external_endpoints();
        let mut servers = vec![self.server(self.port.cluster_ip(), self.port.port, internal)];
        servers.extend(self.external_addresses().map(|address| self.server(address, self.port.port, external)));
        servers.extend(self.node.iter().map(|&address| self.server(address, self.port.node_port, external)));
        // One address may be named in two ways; the ClusterIP's policy comes first.
        servers.sort_by_key(|server| server.at);
        servers.dedup_by_key(|server| server.at);
        servers
    }

    /// Under policy Local without a local endpoint, this node's pods and the node itself still reach all of them; what
    /// comes from elsewhere is dropped before it comes to the virtual server.
    fn external_endpoints(&self) -> &[&Endpoint] {
        let local = self.port.external_policy_local && !self.selection.local.is_empty();
        if local { &self.selection.local } else { &self.selection.cluster }
    }

    fn server(&self, address: IpAddr, port: u16, endpoints: &[&Endpoint]) -> WantedServer {
        let scheduler = self.context.config.ipvs.scheduler;
        let persistence = |seconds| Persistence { seconds, prefix: self.context.family.host_prefix() };
        let server = VirtualServer {
            scheduler,
            flags: if scheduler == Scheduler::Mh { ServerFlags::MH_PORT } else { ServerFlags::NONE },
            persistence: self.port.affinity_seconds.map(persistence),
        };
        let at = VirtualAddress { protocol: self.port.protocol, address: SocketAddr::new(address, port) };
        WantedServer { at, server, real_servers: endpoints.iter().map(|endpoint| endpoint.address).collect() }
    }

    fn members(&self, endpoints: &[Endpoint]) -> Vec<(SetId, Member)> {
        let protocol = self.port.protocol;
        let mut members: Vec<_> = self.addresses().into_iter().map(|ip| (SetId::IpvsIps, Member::Ip(ip))).collect();
        members.extend(endpoints.iter().filter(|endpoint| endpoint.local).map(|endpoint| {
            let (ip, port) = (endpoint.address.ip(), endpoint.address.port());
            (SetId::LoopBack, Member::IpPortIp(ip, protocol, port, ip))
        }));
        members.push((SetId::ClusterIp, self.at(self.port.cluster_ip())));
        let external = if self.port.external_policy_local { SetId::ExternalIpLocal } else { SetId::ExternalIp };
        members.extend(self.context.external_ips(self.port).iter().map(|&ip| (external, self.at(ip))));
        members.extend(self.port.addresses.load_balancer_vips.iter().flat_map(|&ip| self.load_balancer_members(ip)));
        members.extend(self.node_port_members());
        // Opened whether or not node ports have addresses in this family: the server behind it may have.
        let health = Some(self.port.health_check_node_port).filter(|&port| port != 0);
        members.extend(health.map(|port| (SetId::HealthCheckNodePort, Member::Port(port))));
        sorted(members)
    }

    fn at(&self, ip: IpAddr) -> Member {
        Member::IpPort(ip, self.port.protocol, self.port.port)
    }

    fn load_balancer_members(&self, vip: IpAddr) -> Vec<(SetId, Member)> {
        let (protocol, port) = (self.port.protocol, self.port.port);
        let mut members = vec![(SetId::LoadBalancer, self.at(vip))];
        if self.port.external_policy_local {
            members.push((SetId::LoadBalancerLocal, self.at(vip)));
        }
        let ranges = &self.port.addresses.source_ranges;
        if ranges.is_empty() {
            return members;
        }
        members.push((SetId::LoadBalancerFw, self.at(vip)));
        let allowed = |&range| (SetId::LoadBalancerSourceCidr, Member::IpPortNet(vip, protocol, port, range));
        members.extend(ranges.iter().map(allowed));
        if self.allows_node() {
            members.push((SetId::LoadBalancerSourceIp, Member::IpPortIp(vip, protocol, port, vip)));
        }
        members
    }

    /// May the node itself come in by the load balancer's address?
    fn allows_node(&self) -> bool {
        self.port.addresses.source_ranges.iter().any(|range| range.contains(&self.context.node_ip))
    }

    fn node_port_members(&self) -> Vec<(SetId, Member)> {
        if self.node.is_empty() {
            return Vec::new();
        }
        let (all, local) = match self.port.protocol {
            Protocol::Tcp => (SetId::NodePortTcp, SetId::NodePortLocalTcp),
            Protocol::Udp => (SetId::NodePortUdp, SetId::NodePortLocalUdp),
            Protocol::Sctp => (SetId::NodePortSctp, SetId::NodePortLocalSctp),
        };
        let port = self.port.node_port;
        // There is no bitmap of SCTP ports.
        let members = match self.port.protocol {
            Protocol::Tcp | Protocol::Udp => vec![Member::Port(port)],
            Protocol::Sctp => self.node.iter().map(|&ip| Member::IpPort(ip, Protocol::Sctp, port)).collect(),
        };
        let sets = [Some(all), self.port.external_policy_local.then_some(local)].into_iter().flatten();
        sets.flat_map(|set| members.iter().map(move |&member| (set, member))).collect()
    }

    fn groups(&self) -> Vec<Group> {
        let groups = [(IPVS_OUT_FILTER, self.node_guard_rules()), (PROXY_FIREWALL, self.drop_rules())];
        let filled = groups.into_iter().filter(|(_, rules)| !rules.is_empty());
        let group =
            |(chain, rules): (&str, _)| Group { table: Table::Filter, chain: chain.into(), slot: 0, side: Side::Head, rules };
        filled.map(group).collect()
    }

    /// The node's own connection to a load balancer's address has that address as its source, which the source ranges
    /// know nothing of.
    fn node_guard_rules(&self) -> Vec<Rule> {
        let addresses = &self.port.addresses;
        if addresses.source_ranges.is_empty() || self.allows_node() {
            return Vec::new();
        }
        let (protocol, port) = (self.port.protocol, self.port.port);
        let guard = |&address: &IpAddr| {
            let rule = Rule::new().from(Negatable::is(address.into()));
            rule.matching(Match::Ipvs { protocol, address, port }).then(Target::Drop)
        };
        addresses.load_balancer_vips.iter().map(guard).collect()
    }

    /// What policy Local keeps from the endpoints elsewhere. This node's own connections never come here, and its pods
    /// may reach external addresses all the same. Known connections live on: their real server may be draining.
    fn drop_rules(&self) -> Vec<Rule> {
        let drop = |address: IpAddr, port| {
            let rule = Rule::new().to(Negatable::is(address.into()));
            let rule = rule.matching(Match::Conntrack(Negatable::is(CtStates::NEW)));
            let rule = rule.comment(&format!("{} has no local endpoints", self.port.name));
            rule.port(self.port.protocol, Some(port)).then(Target::Drop)
        };
        let not_from_pods = |rule| match &self.context.local {
            Some(local) => local.narrow(rule, true),
            None => rule,
        };
        let mut rules = Vec::new();
        if self.without_local.internal {
            rules.push(drop(self.port.cluster_ip(), self.port.port));
        }
        if self.without_local.external {
            let external = self.external_addresses().map(|address| drop(address, self.port.port));
            let node = self.node.iter().map(|&address| drop(address, self.port.node_port));
            rules.extend(external.chain(node).map(not_from_pods));
        }
        rules
    }
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort_unstable();
    list.dedup();
    list
}
