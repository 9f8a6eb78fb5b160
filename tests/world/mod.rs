//! A small cluster made of model values, changed at random, and the text that a full render of it gives.

#![allow(dead_code, reason = "of which each test file uses a part")]

pub mod bench;
pub mod servers;
pub mod shop;

use std::net::IpAddr;

use sluice::config::{Config, DetectLocal, Raw, RuleConfig};
use sluice::model::endpoint::{Conditions, Hints, SliceEndpoint, SlicePort};
use sluice::model::service::{Addresses, PortSpec};
use sluice::model::{EndpointSlice, Event, Node, ObjectKey, Service, State};
use sluice::net::{Family, PerFamily, Protocol};
use sluice::render::{self, Context, KernelFacts};
use sluice::ruleset::text;

/// What counts by default, with a range of pods.
pub fn config() -> RuleConfig {
    let defaults = Config::resolve(Raw::of_defaults("node-a")).expect("defaults are sound").rules;
    let cidrs = PerFamily { v4: "10.244.0.0/16".parse().ok(), v6: None };
    RuleConfig { detect_local: DetectLocal::ClusterCidr(cidrs), ..defaults }
}

pub fn facts() -> KernelFacts {
    KernelFacts { nfacct: true, tcp_be_liberal: false }
}

pub fn key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey::new(namespace, name)
}

/// A plain ClusterIP Service with one TCP port.
pub fn service(cluster_ip: IpAddr) -> Service {
    let addresses = Addresses { cluster_ip, external_ips: vec![], load_balancer_vips: vec![], source_ranges: vec![] };
    Service {
        families: PerFamily { v4: Some(addresses), v6: None },
        ports: vec![PortSpec { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }],
        affinity_seconds: None,
        external_policy_local: false,
        internal_policy_local: false,
        health_check_node_port: 0,
    }
}

pub fn slice(service: &ObjectKey, endpoints: Vec<SliceEndpoint>) -> EndpointSlice {
    let ports = vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }];
    EndpointSlice { service: service.clone(), family: Family::Ipv4, ports, endpoints, triggered: None }
}

/// A ready endpoint on another node.
pub fn endpoint(address: IpAddr) -> SliceEndpoint {
    SliceEndpoint {
        address,
        node_name: Some("node-b".into()),
        conditions: Conditions { ready: true, serving: true, terminating: false },
        hints: Hints::default(),
    }
}

/// What a node without any rules would be given for `state`, in canonical form.
pub fn rendered(state: &State, family: Family) -> String {
    let config = config();
    let context = Context::new(&config, facts(), state, family);
    let desired = render::all(&context);
    let blocks: Vec<_> = desired.rules.iter().map(|(_, block)| block).collect();
    let mut out = String::new();
    text::save(&mut out, render::layout(&config), &blocks).expect("text");
    canonical(&out)
}

/// Chains in which the rules of one service port stand together, the service ports in any order.
const DISPATCH: [&str; 5] = ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL", "KUBE-FIREWALL"];

/// Sorts what may stand in any order: dispatch rules by service port, those of one keeping theirs.
pub fn canonical(saved: &str) -> String {
    let mut lines: Vec<&str> = saved.lines().collect();
    let chain = |line: &str| line.strip_prefix("-A ").and_then(|rest| rest.split(' ').next()).map(str::to_owned);
    for run in lines.chunk_by_mut(|a, b| chain(a).is_some() && chain(a) == chain(b)) {
        if chain(run[0]).is_some_and(|name| DISPATCH.contains(&name.as_str())) {
            run.sort_by_key(|rule| (rule.contains("must be the last rule"), service_port(rule).to_owned()));
        }
    }
    lines.join("\n")
}

fn service_port(rule: &str) -> &str {
    let comment = rule.split("--comment \"").nth(1).unwrap_or_default();
    comment.split([' ', '"']).next().unwrap_or_default()
}

/// The lines that only one of two texts has.
pub fn difference(want: &str, have: &str) -> String {
    let only = |a: &str, b: &str, sign: &str| {
        let b: Vec<_> = b.lines().collect();
        a.lines().filter(|line| !b.contains(line)).map(|line| format!("{sign} {line}")).collect::<Vec<_>>()
    };
    [only(want, have, "-"), only(have, want, "+")].concat().join("\n")
}

/// A xorshift generator: the same seed, the same history.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, end: u8) -> u8 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u8::try_from(self.0 % u64::from(end)).expect("below a u8")
    }

    pub fn chance(&mut self, one_in: u8) -> bool {
        self.below(one_in) == 0
    }
}

/// How far the history has come.
#[derive(Default)]
pub struct World {
    steps: u32,
}

impl World {
    /// The next change: a Service or slice new, different or gone, a relist, the node, its addresses.
    pub fn change(&mut self, random: &mut Random) -> Vec<Event> {
        self.steps += 1;
        match random.below(20) {
            0 => vec![Event::Nodes(vec![(key("", "node-a"), random_node(random))])],
            1 => vec![Event::Services((0..random.below(8)).map(|i| (name(i), random_service(i, random))).collect())],
            2 => vec![Event::Slices((0..random.below(8)).map(|i| (slice_name(i), random_slice(i, random))).collect())],
            3 => vec![Event::Service(name(random.below(8)), None)],
            4 => vec![Event::Slice(slice_name(random.below(8)), None)],
            5..12 => {
                let i = random.below(8);
                vec![Event::Service(name(i), Some(random_service(i, random)))]
            }
            _ => {
                let i = random.below(8);
                vec![Event::Slice(slice_name(i), Some(random_slice(i, random)))]
            }
        }
    }
}

fn name(i: u8) -> ObjectKey {
    key("shop", &format!("web-{i}"))
}

fn slice_name(i: u8) -> ObjectKey {
    key("shop", &format!("web-{i}-slice"))
}

fn random_node(random: &mut Random) -> Node {
    Node {
        zone: random.chance(2).then(|| format!("zone-{}", random.below(3)).into()),
        addresses: vec![IpAddr::from([172, 31, 0, 10 + random.below(2)])],
        ..Node::default()
    }
}

fn random_service(i: u8, random: &mut Random) -> Service {
    let mut service = service([10, 96, 0, 1 + i].into());
    if let Some(addresses) = &mut service.families.v4 {
        addresses.external_ips = (0..random.below(3)).map(|n| IpAddr::from([203, 0, 113, 4 * i + n])).collect();
        addresses.load_balancer_vips = (0..random.below(3)).map(|n| IpAddr::from([198, 51, 100, 4 * i + n])).collect();
        if random.chance(2) {
            addresses.source_ranges = vec!["172.31.0.0/16".parse().expect("a net"), "192.0.2.0/24".parse().expect("a net")];
        }
    }
    if random.chance(2) {
        service.ports[0].node_port = 30_000 + u16::from(i);
    }
    if random.chance(3) {
        service.ports.push(PortSpec { name: "admin".into(), protocol: Protocol::Udp, port: 53, node_port: 0 });
    }
    service.affinity_seconds = random.chance(3).then_some(10_800);
    service.external_policy_local = random.chance(2);
    service.internal_policy_local = random.chance(4);
    service.health_check_node_port = if random.chance(4) { 32_000 + u16::from(i) } else { 0 };
    service
}

/// Now and then of another Service: slices move.
fn random_slice(i: u8, random: &mut Random) -> EndpointSlice {
    let owner = if random.chance(8) { random.below(8) } else { i };
    let mut slice = slice(&name(owner), (0..random.below(6)).map(|n| random_endpoint(i, n, random)).collect());
    if random.chance(3) {
        slice.ports.push(SlicePort { name: "admin".into(), protocol: Protocol::Udp, port: 5353 });
    }
    slice
}

fn random_endpoint(i: u8, n: u8, random: &mut Random) -> SliceEndpoint {
    let terminating = random.chance(5);
    SliceEndpoint {
        address: [10, 244, i, n].into(),
        node_name: Some(if random.chance(2) { "node-a" } else { "node-b" }.into()),
        conditions: Conditions { ready: !terminating && !random.chance(5), serving: !random.chance(5), terminating },
        hints: Hints {
            zones: if random.chance(2) { [format!("zone-{}", random.below(3)).into()].into() } else { [].into() },
            nodes: [].into(),
        },
    }
}
