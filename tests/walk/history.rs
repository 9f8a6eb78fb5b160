//! A small cluster's life at random: valid objects of every kind that rules depend on, and the configurations that a
//! restart may come with.

use std::net::{IpAddr, Ipv6Addr};

use sluice::config::{DetectLocal, IpvsConfig, Mode, NodePortAddresses, RuleConfig};
use sluice::model::endpoint::{Conditions, Hints, SliceEndpoint, SlicePort};
use sluice::model::service::{Addresses, PortSpec};
use sluice::model::{EndpointSlice, Event, Node, ObjectKey, Service};
use sluice::net::{Family, PerFamily, Protocol};
use sluice::render::KernelFacts;

use crate::random::Random;

pub const NODE: &str = "node-a";
const SERVICES: u64 = 4;
const SLICES: u64 = 9;
/// Names that ports of Services and of slices share, with the protocol they have.
const PORTS: [(&str, Protocol, u16); 4] =
    [("http", Protocol::Tcp, 80), ("dns", Protocol::Udp, 53), ("dns-tcp", Protocol::Tcp, 53), ("sig", Protocol::Sctp, 2905)];

/// The next changes: mostly one object, now and then a relist, the node or its addresses.
pub fn events(random: &mut Random) -> Vec<Event> {
    match random.below(24) {
        0 => vec![Event::Nodes(vec![(ObjectKey::new("", NODE), node(random))])],
        1 => vec![Event::Services(some(SERVICES, random).map(|i| (name(i), service(i, random))).collect())],
        2 => vec![Event::Slices(some(SLICES, random).map(|i| (slice_name(i), slice(i, random))).collect())],
        3 => vec![Event::Addresses(addresses(random))],
        4 => vec![Event::Service(name(random.below(SERVICES)), None)],
        5 => vec![Event::Slice(slice_name(random.below(SLICES)), None)],
        6 => (0..random.below(6)).map(|_| one_object(random)).collect(),
        _ => vec![one_object(random)],
    }
}

/// About half of the numbers below `end`.
fn some(end: u64, random: &mut Random) -> impl Iterator<Item = u64> + use<> {
    let chosen: Vec<_> = (0..end).filter(|_| random.chance(2)).collect();
    chosen.into_iter()
}

fn one_object(random: &mut Random) -> Event {
    if random.chance(3) {
        let i = random.below(SERVICES);
        Event::Service(name(i), Some(service(i, random)))
    } else {
        let i = random.below(SLICES);
        Event::Slice(slice_name(i), Some(slice(i, random)))
    }
}

fn name(i: u64) -> ObjectKey {
    ObjectKey::new(if i.is_multiple_of(2) { "even" } else { "odd" }, &format!("web-{i}"))
}

pub fn any_service(random: &mut Random) -> ObjectKey {
    name(random.below(SERVICES))
}

/// In the namespace of the Services it may belong to.
fn slice_name(i: u64) -> ObjectKey {
    ObjectKey::new(name(i % SERVICES).namespace(), &format!("slice-{i}"))
}

fn v6(high: u16, low: u64) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0x10, high, 0, 0, 0, 0, u16::try_from(low).expect("a small number")).into()
}

fn small(number: u64) -> u8 {
    u8::try_from(number).expect("a small number")
}

fn address(family: Family, net: u8, host: u64) -> IpAddr {
    match family {
        Family::Ipv4 => [10, net, 0, small(host)].into(),
        Family::Ipv6 => v6(net.into(), host),
    }
}

fn node(random: &mut Random) -> Node {
    let mut node = Node { zone: random.chance(2).then(|| zone(random)), ..Node::default() };
    for (family, cidr) in [(Family::Ipv4, "10.244.0.0/24"), (Family::Ipv6, "fd00:10:244::/64")] {
        if !random.chance(4) {
            node.addresses.push(address(family, 31, 10 + random.below(2)));
            node.pod_cidrs.push(cidr.parse().expect("a net"));
        }
    }
    node
}

fn zone(random: &mut Random) -> std::sync::Arc<str> {
    format!("zone-{}", random.below(3)).into()
}

fn addresses(random: &mut Random) -> Vec<IpAddr> {
    let all = Family::ALL.into_iter().flat_map(|family| (10..13).map(move |host| address(family, 31, host)));
    let all = all.chain([[127, 0, 0, 1].into(), Ipv6Addr::LOCALHOST.into()]);
    all.filter(|_| !random.chance(3)).collect()
}

fn service(i: u64, random: &mut Random) -> Service {
    let outer = random.chance(2);
    let mut of_family = |family| {
        let mut some =
            |net: u8, limit: u64| (0..random.below(limit)).map(|n| address(family, net, 4 * i + n)).collect::<Vec<_>>();
        let (external_ips, load_balancer_vips) = if outer { (some(203, 3), some(198, 3)) } else { (Vec::new(), Vec::new()) };
        let ranges = ["10.31.0.0/16", "192.0.2.0/24", "fd00:10:31::/64"].map(|net| net.parse::<ipnet::IpNet>().expect("a net"));
        let keep = |net: &ipnet::IpNet| Family::of_net(net) == family;
        let source_ranges = if random.chance(3) { ranges.into_iter().filter(keep).collect() } else { Vec::new() };
        Addresses { cluster_ip: address(family, 96, 1 + i), external_ips, load_balancer_vips, source_ranges }
    };
    let both = PerFamily { v4: Some(of_family(Family::Ipv4)), v6: Some(of_family(Family::Ipv6)) };
    let families = match random.below(5) {
        0 => PerFamily { v6: None, ..both },
        1 => PerFamily { v4: None, ..both },
        _ => both,
    };
    let local = |random: &mut Random| random.chance(3);
    Service {
        families,
        ports: ports(i, outer, random),
        affinity_seconds: random.chance(4).then_some(10_800),
        external_policy_local: outer && local(random),
        internal_policy_local: local(random),
        health_check_node_port: if outer && random.chance(3) { 32_000 + u16::from(small(i)) } else { 0 },
    }
}

fn ports(i: u64, outer: bool, random: &mut Random) -> Vec<PortSpec> {
    let first = random.below(4);
    let chosen = (0..=random.below(3)).map(|n| usize::from(small((first + n) % 4)));
    let node_port = |n: usize| 30_000 + u16::from(small(i)) * 4 + u16::from(small(n as u64));
    let port = |n: usize| PORTS.get(n).map(|&(name, protocol, port)| (name, protocol, port, n));
    let has_node_port = outer && random.chance(2);
    let spec = |(name, protocol, port, n): (&str, _, _, _)| {
        let node_port = if has_node_port { node_port(n) } else { 0 };
        PortSpec { name: name.into(), protocol, port, node_port }
    };
    chosen.filter_map(port).map(spec).collect()
}

/// Now and then of another Service of its namespace: slices move.
fn slice(i: u64, random: &mut Random) -> EndpointSlice {
    let owner = if random.chance(6) { (i % 2 + 2 * random.below(SERVICES / 2)) % SERVICES } else { i % SERVICES };
    let family = if i % 3 == 2 { Family::Ipv6 } else { Family::Ipv4 };
    let ports = PORTS.iter().filter(|_| !random.chance(4)).collect::<Vec<_>>().into_iter();
    let target = if random.chance(5) { 9000 } else { 8000 };
    EndpointSlice {
        service: name(owner),
        family,
        ports: ports.map(|&(name, protocol, port)| SlicePort { name: name.into(), protocol, port: target + port }).collect(),
        endpoints: (0..random.below(4)).map(|_| endpoint(family, owner, random)).collect(),
        triggered: None,
    }
}

/// Of few addresses, so that slices of one Service have some in common.
fn endpoint(family: Family, owner: u64, random: &mut Random) -> SliceEndpoint {
    let terminating = random.chance(5);
    SliceEndpoint {
        address: address(family, 244, 10 * owner + random.below(6)),
        node_name: (!random.chance(8)).then(|| if random.chance(2) { NODE.into() } else { "node-b".into() }),
        conditions: Conditions { ready: !terminating && !random.chance(6), serving: !random.chance(6), terminating },
        hints: Hints {
            zones: (0..random.below(3)).map(|_| zone(random)).collect(),
            nodes: if random.chance(6) { [NODE.into()].into() } else { [].into() },
        },
    }
}

/// What a process may be started with.
pub fn config(random: &mut Random) -> (RuleConfig, KernelFacts) {
    let cidrs = |v4: &str, v6: &str| DetectLocal::ClusterCidr(PerFamily { v4: v4.parse().ok(), v6: v6.parse().ok() });
    let detect_local = match random.below(6) {
        0 => DetectLocal::NodeCidr,
        1 => DetectLocal::BridgeInterface("cni0".into()),
        2 => DetectLocal::InterfaceNamePrefix("veth".into()),
        3 => cidrs("10.244.0.0/16", ""),
        _ => cidrs("10.244.0.0/16", "fd00:10:244::/56"),
    };
    let ranges = ["10.31.0.0/16", "127.0.0.0/8", "fd00:10:1f::/64"].map(|net| net.parse().expect("a net"));
    let node_port_addresses = match random.below(5) {
        0 => NodePortAddresses::Primary,
        1 => NodePortAddresses::Within(ranges[..1].to_vec()),
        2 => NodePortAddresses::Within(ranges.to_vec()),
        _ => NodePortAddresses::Within(Vec::new()),
    };
    let config = RuleConfig {
        mode: Mode::Iptables,
        detect_local,
        masquerade_all: random.chance(4),
        masquerade_mark: if random.chance(4) { 0x80 } else { 0x4000 },
        localhost_node_ports: !random.chance(4),
        node_port_addresses,
        bind_address: random.chance(8).then(|| [10, 31, 0, 12].into()),
        external_ips: !random.chance(6),
        ipvs: IpvsConfig::default(),
    };
    (config, KernelFacts { nfacct: !random.chance(4), tcp_be_liberal: random.chance(4) })
}
