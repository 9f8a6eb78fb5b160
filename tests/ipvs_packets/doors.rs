//! Which backend answers and which address it sees, for every kind of client, door and policy: the tables of
//! `packets.rs`, and where they say something else, it is IPVS or kube-proxy's own rules for it that say so.

use std::net::{IpAddr, SocketAddr};
use std::slice::from_ref;

use super::support::lab::{A1, A2, B1, FAMILIES, Lab, Node as Host, Pod, outside_address};
use super::support::objects::{Door, OUTER_DOORS, Service};
use super::support::proxy::get;
use super::support::traffic::{Backend, Fate, Protocol, TCP_PORT, UDP_PORT, ask};
use super::support::trial::Client::{self, Node, Outside};
use super::support::trial::Expect::{self, AsAsked, Hidden, Kept, Refused, Silence};
use super::support::trial::{CLIENTS, POD, Trial, place};
use super::{start, view};

const ALL: &[Pod] = &[A1, A2, B1];
const NEAR: &[Pod] = &[A1, A2];
const FAR: &[Pod] = &[B1];

const CLUSTER_IP: &[Door] = &[Door::ClusterIp];
const NODE_PORT: &[Door] = &[Door::NodePort];
const BALANCER: &[Door] = &[Door::LoadBalancer];
/// Doors whose address is on kube-ipvs0.
const VIPS: &[Door] = &[Door::ExternalIp, Door::LoadBalancer];

/// Twice each: backends take turns.
const ASKS: usize = 6;

fn trial(lab: &Lab) -> Trial<'_> {
    let mut trial = Trial::new(lab, ASKS);
    trial.protocols = vec![Protocol::Tcp, Protocol::Udp];
    trial
}

/// One client after the other: several that ask one virtual server at once could always meet the same backend.
fn expect_table<const N: usize>(trial: &Trial<'_>, rows: &[(Client, &[Door], [Expect; N])], services: &[Service; N]) {
    for client in CLIENTS {
        let rows: Vec<_> = rows.iter().filter(|(of, ..)| *of == client).copied().collect();
        trial.expect_table(&rows, services);
    }
}

/// By client and door: external policy Cluster, external policy Local, internal policy Local.
///
/// A virtual server has one set of real servers, whoever asks: pods and the node get no other endpoints than clients
/// from outside. And kube-proxy's rules masquerade nothing under the external policy Local: the node, which takes
/// the address it asks for its own, is seen as that.
const TRUTH: [(Client, &[Door], [Expect; 3]); 8] = [
    (POD, CLUSTER_IP, [Kept(ALL), Kept(ALL), Kept(NEAR)]),
    (Node, CLUSTER_IP, [Hidden(ALL), Hidden(ALL), Hidden(NEAR)]),
    (Outside, CLUSTER_IP, [Hidden(ALL), Hidden(ALL), Hidden(NEAR)]),
    (POD, &OUTER_DOORS, [Hidden(ALL), Kept(NEAR), Hidden(ALL)]),
    (Node, NODE_PORT, [Hidden(ALL), AsAsked(NEAR), Hidden(ALL)]),
    (Node, VIPS, [Hidden(ALL), AsAsked(NEAR), Hidden(ALL)]),
    (Node, &[Door::LocalhostPort], [Refused, Refused, Refused]),
    (Outside, &OUTER_DOORS, [Hidden(ALL), Kept(NEAR), Hidden(ALL)]),
];

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn each_client_reaches_the_right_backends_from_the_right_address() {
    let lab = Lab::new("truth");
    let services = [
        Service::new("cluster", 1, ALL),
        Service { external_local: true, ..Service::new("external-local", 2, ALL) },
        Service { internal_local: true, ..Service::new("internal-local", 3, ALL) },
    ];
    let sluice = start(&lab, &services, &[]);
    let mut trial = trial(&lab);
    expect_table(&trial, &TRUTH, &services);
    trial.protocols = vec![Protocol::Sctp];
    trial.expect(POD, CLUSTER_IP, &services[0], Kept(ALL));
    trial.expect(Outside, NODE_PORT, &services[0], Hidden(ALL));
    trial.verdict();
    sluice.stop();
}

/// By client and door: no endpoints at all; both policies Local and an endpoint on the other node only.
const NOBODY_HERE: [(Client, &[Door], [Expect; 2]); 7] = [
    (POD, CLUSTER_IP, [Refused, Silence]),
    // What the node itself sends passes no rule that could drop it: IPVS refuses it.
    (Node, CLUSTER_IP, [Refused, Refused]),
    (Outside, CLUSTER_IP, [Refused, Silence]),
    (POD, &OUTER_DOORS, [Refused, Kept(FAR)]),
    (Node, NODE_PORT, [Refused, AsAsked(FAR)]),
    // Sent with the address that it asks, and answered to it: node-b knows another way there.
    (Node, VIPS, [Refused, Silence]),
    (Outside, &OUTER_DOORS, [Refused, Silence]),
];

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn without_endpoints_is_refused_and_without_local_ones_is_dropped() {
    let lab = Lab::new("nobody");
    let services =
        [Service::new("nobody", 1, &[]), Service { external_local: true, internal_local: true, ..Service::new("far", 2, FAR) }];
    let sluice = start(&lab, &services, &[]);
    let trial = trial(&lab);
    expect_table(&trial, &NOBODY_HERE, &services);
    // Let through, they would be silent as well: node-b's pod would answer the client past node-a.
    let from_outside = |line: &&String| FAMILIES.iter().any(|family| line.contains(&outside_address(*family).to_string()));
    let let_through: Vec<_> = view::connections(&lab.node_a).into_iter().filter(|line| from_outside(&line)).collect();
    assert!(let_through.is_empty(), "{let_through:#?}");
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
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn source_ranges_guard_the_load_balancer() {
    let lab = Lab::new("ranges");
    let ranges =
        |name, number, ranges: [&'static str; 2]| Service { source_ranges: ranges.into(), ..Service::new(name, number, ALL) };
    let services = [
        ranges("for-outside", 1, ["172.31.0.100/32", "fd31::64/128"]),
        ranges("for-pods", 2, ["10.244.0.0/16", "fd00:10:244::/56"]),
        ranges("for-node", 3, ["172.31.0.11/32", "fd31::b/128"]),
    ];
    let sluice = start(&lab, &services, &[]);
    let trial = trial(&lab);
    expect_table(&trial, &RANGES, &services);
    trial.verdict();
    sluice.stop();
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn a_pod_that_reaches_itself_is_seen_as_its_node() {
    let lab = Lab::new("hairpin");
    let service = Service::new("self", 1, &[A1]);
    let sluice = start(&lab, from_ref(&service), &[]);
    let trial = trial(&lab);
    trial.expect(Client::Pod(A1), CLUSTER_IP, &service, Hidden(&[A1]));
    trial.expect(Client::Pod(A1), &OUTER_DOORS, &service, Hidden(&[A1]));
    // It still sees its neighbour.
    trial.expect(Client::Pod(A2), CLUSTER_IP, &service, Kept(&[A1]));
    trial.verdict();
    sluice.stop();
}

/// A backend on the node listens on all of the node's addresses, and those of Services are among them.
#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn ports_that_are_no_services_are_refused_and_health_checks_let_in() {
    let lab = Lab::new("filter");
    let service = Service { external_local: true, ..Service::new("web", 1, &[A1]) };
    let sluice = start(&lab, from_ref(&service), &[]);
    let backend = Backend::start(&lab.node_a, "node-a");
    for family in FAMILIES {
        for (client, from) in CLIENTS.into_iter().map(|client| (client, place(&lab, client))) {
            for (protocol, port) in [(Protocol::Tcp, TCP_PORT), (Protocol::Udp, UDP_PORT)] {
                let fate = |address: IpAddr| from.run(|| ask(protocol, (address, port).into()));
                for door in [Door::ClusterIp, Door::ExternalIp, Door::LoadBalancer] {
                    let seen = fate(service.address(family, door));
                    assert_eq!(seen, Fate::Refused, "{client:?} to port {port} of {door:?} {family:?}");
                }
            }
            let seen = from.run(|| ask(Protocol::Tcp, (Host::A.address(family), TCP_PORT).into()));
            assert!(matches!(seen, Fate::Answered { .. }), "{client:?} to the node's own {TCP_PORT} {family:?}: {seen}");
        }
        let health = SocketAddr::from((Host::A.address(family), 32_001)).to_string();
        let answer = lab.outside.run(|| get(&health, "/healthz")).expect("an answer");
        assert!(answer.contains(" 200 ") && answer.contains("\"localEndpoints\": 1"), "{answer}");
    }
    drop(backend);
    sluice.stop();
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn routes_make_addresses_local_as_well_as_a_device_does() {
    let lab = Lab::new("routes");
    let service = Service::new("web", 1, ALL);
    let sluice = start(&lab, from_ref(&service), &["--ipvs-local-addresses=routes"]);
    for family in FAMILIES {
        let address = service.address(family, Door::ClusterIp);
        assert!(!view::has_address(&lab.node_a, address), "{address} is on the device");
    }
    let trial = trial(&lab);
    trial.expect(POD, CLUSTER_IP, &service, Kept(ALL));
    trial.expect(Outside, CLUSTER_IP, &service, Hidden(ALL));
    for client in CLIENTS {
        trial.expect(client, &OUTER_DOORS, &service, Hidden(ALL));
    }
    for to in FAMILIES.map(|family| service.at(family, Door::ClusterIp)) {
        for fate in lab.node_a.run(|| [(); ASKS].map(|()| ask(Protocol::Tcp, to))) {
            assert!(matches!(fate, Fate::Answered { .. }), "the node to {to}: {fate}");
        }
    }
    trial.verdict();
    sluice.stop();
}
