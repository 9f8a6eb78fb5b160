//! Real packets through the rules `sluice` programs: which backend answers and which address it sees, for every kind
//! of client, door and policy, in both families and every protocol the kernel has sockets for.
//!
//! The tables say what kube-proxy does; what happens over time is in `packets_in_time.rs`.

mod support;

use std::slice::from_ref;

use support::lab::{A1, A2, B1, FAMILIES, Lab, Pod};
use support::objects::{Door, OUTER_DOORS, Service};
use support::proxy::Sluice;
use support::require_root;
use support::traffic::{Protocol, protocols};
use support::trial::Client::{self, Node, Outside};
use support::trial::Expect::{self, Hidden, Kept, Refused, Silence};
use support::trial::{CLIENTS, POD, Trial};

/// So many that one of three backends is missed once in four million times.
const ASKS: usize = 40;
const ALL: &[Pod] = &[A1, A2, B1];
const NEAR: &[Pod] = &[A1, A2];
const FAR: &[Pod] = &[B1];

const CLUSTER_IP: &[Door] = &[Door::ClusterIp];
const BALANCER: &[Door] = &[Door::LoadBalancer];

/// By client and door: external policy Cluster, external policy Local, internal policy Local.
const TRUTH: [(Client, &[Door], [Expect; 3]); 7] = [
    (POD, CLUSTER_IP, [Kept(ALL), Kept(ALL), Kept(NEAR)]),
    (Node, CLUSTER_IP, [Hidden(ALL), Hidden(ALL), Hidden(NEAR)]),
    (Outside, CLUSTER_IP, [Hidden(ALL), Hidden(ALL), Hidden(NEAR)]),
    (POD, &OUTER_DOORS, [Hidden(ALL), Kept(ALL), Hidden(ALL)]),
    (Node, &OUTER_DOORS, [Hidden(ALL), Hidden(ALL), Hidden(ALL)]),
    (Node, &[Door::LocalhostPort], [Hidden(ALL), Hidden(ALL), Hidden(ALL)]),
    (Outside, &OUTER_DOORS, [Hidden(ALL), Kept(NEAR), Hidden(ALL)]),
];

#[test]
fn each_client_reaches_the_right_backends_from_the_right_address() {
    if !require_root("packets: truth table") {
        return;
    }
    let lab = Lab::new("truth");
    let services = [
        Service::new("cluster", 1, ALL),
        Service { external_local: true, ..Service::new("external-local", 2, ALL) },
        Service { internal_local: true, ..Service::new("internal-local", 3, ALL) },
    ];
    let sluice = Sluice::start(&lab.node_a, &lab.scratch, &services);
    let trial = Trial::new(&lab, ASKS);
    trial.expect_table(&TRUTH, &services);
    trial.verdict();
    sluice.stop();
}

/// By client and door: no endpoints at all; both policies Local and an endpoint on the other node only.
const NOBODY_HERE: [(Client, &[Door], [Expect; 2]); 7] = [
    (POD, CLUSTER_IP, [Refused, Silence]),
    (Node, CLUSTER_IP, [Refused, Silence]),
    (Outside, CLUSTER_IP, [Refused, Silence]),
    (POD, &OUTER_DOORS, [Refused, Kept(FAR)]),
    (Node, &[Door::NodePort], [Refused, Hidden(FAR)]),
    // kube-proxy refuses these where packets come in or pass, not where the node's own go out.
    (Node, &[Door::ExternalIp, Door::LoadBalancer], [Silence, Hidden(FAR)]),
    (Outside, &OUTER_DOORS, [Refused, Silence]),
];

#[test]
fn without_endpoints_is_refused_and_without_local_ones_is_dropped() {
    if !require_root("packets: no endpoints") {
        return;
    }
    let lab = Lab::new("nobody");
    let services =
        [Service::new("nobody", 1, &[]), Service { external_local: true, internal_local: true, ..Service::new("far", 2, FAR) }];
    let sluice = Sluice::start(&lab.node_a, &lab.scratch, &services);
    let trial = Trial::new(&lab, ASKS);
    trial.expect_table(&NOBODY_HERE, &services);
    trial.verdict();
    sluice.stop();
}

/// By client and door: the ranges hold the outside client; the pods; the node.
const RANGES: [(Client, &[Door], [Expect; 3]); 6] = [
    (Outside, BALANCER, [Hidden(ALL), Silence, Silence]),
    (POD, BALANCER, [Silence, Hidden(ALL), Silence]),
    (Node, BALANCER, [Silence, Silence, Hidden(ALL)]),
    // Ranges guard the load balancer's address alone.
    (Outside, &[Door::NodePort, Door::ExternalIp], [Hidden(ALL), Hidden(ALL), Hidden(ALL)]),
    (POD, CLUSTER_IP, [Kept(ALL), Kept(ALL), Kept(ALL)]),
    (Node, &[Door::NodePort, Door::ExternalIp], [Hidden(ALL), Hidden(ALL), Hidden(ALL)]),
];

#[test]
fn source_ranges_guard_the_load_balancer() {
    if !require_root("packets: source ranges") {
        return;
    }
    let lab = Lab::new("ranges");
    let ranges =
        |name, number, ranges: [&'static str; 2]| Service { source_ranges: ranges.into(), ..Service::new(name, number, ALL) };
    let services = [
        ranges("for-outside", 1, ["172.31.0.100/32", "fd31::64/128"]),
        ranges("for-pods", 2, ["10.244.0.0/16", "fd00:10:244::/56"]),
        ranges("for-node", 3, ["172.31.0.11/32", "fd31::b/128"]),
    ];
    // The addresses are the node's as well, as with some load balancers: what the firewall let through without leading
    // it on would be refused there, not dropped.
    for (service, family) in services.iter().flat_map(|service| FAMILIES.map(|family| (service, family))) {
        lab.node_a.links(&format!("address add {} dev lo\n", service.address(family, Door::LoadBalancer)));
    }
    let sluice = Sluice::start(&lab.node_a, &lab.scratch, &services);
    let trial = Trial::new(&lab, ASKS);
    trial.expect_table(&RANGES, &services);
    trial.verdict();
    sluice.stop();
}

#[test]
fn a_pod_that_reaches_itself_is_seen_as_its_node() {
    if !require_root("packets: hairpin") {
        return;
    }
    let lab = Lab::new("hairpin");
    let service = Service::new("self", 1, &[A1]);
    let sluice = Sluice::start(&lab.node_a, &lab.scratch, from_ref(&service));
    let trial = Trial::new(&lab, ASKS);
    trial.expect(Client::Pod(A1), CLUSTER_IP, &service, Hidden(&[A1]));
    trial.expect(Client::Pod(A1), &OUTER_DOORS, &service, Hidden(&[A1]));
    // It still sees its neighbour.
    trial.expect(Client::Pod(A2), CLUSTER_IP, &service, Kept(&[A1]));
    trial.verdict();
    sluice.stop();
}

#[test]
fn protocols_of_one_port_have_endpoints_of_their_own() {
    if !require_root("packets: one port, several protocols") {
        return;
    }
    let lab = Lab::new("split");
    let service = Service { udp_endpoints: Some(vec![A2]), ..Service::new("split", 1, &[A1]) };
    let sluice = Sluice::start(&lab.node_a, &lab.scratch, from_ref(&service));
    let mut trial = Trial::new(&lab, ASKS);
    for client in CLIENTS {
        for protocol in protocols() {
            trial.protocols = vec![*protocol];
            let expect = if *protocol == Protocol::Udp { Hidden(&[A2]) } else { Hidden(&[A1]) };
            trial.expect(client, &OUTER_DOORS, &service, expect);
        }
    }
    trial.verdict();
    sluice.stop();
}
