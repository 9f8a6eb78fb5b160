//! Real packets through the rules `sluice` programs: which backend answers and which address it sees, for every kind
//! of client, door and policy, in both families and every protocol the kernel has sockets for.
//!
//! The tables say what kube-proxy does; what happens over time is in `packets_in_time.rs`.

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::slice::from_ref;
use std::sync::Mutex;
use std::thread;

use support::lab::{A1, A2, B1, CLIENT, FAMILIES, Family, Lab, Node, Pod, outside_address};
use support::netns::Namespace;
use support::objects::{Door, OUTER_DOORS, Service};
use support::proxy::Sluice;
use support::require_root;
use support::traffic::{Fate, Protocol, SILENCE, ask, ask_within, protocols};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    Pod(Pod),
    Node,
    Outside,
}

const POD: Client = Client::Pod(CLIENT);
const CLIENTS: [Client; 3] = [POD, Client::Node, Client::Outside];

#[derive(Debug, Clone, Copy)]
enum Expect {
    /// Just these backends, which see the client's own address.
    Kept(&'static [Pod]),
    /// Just these backends, which see the node's address on their side.
    Hidden(&'static [Pod]),
    Refused,
    Silence,
}
use Expect::{Hidden, Kept, Refused, Silence};

const ALL: &[Pod] = &[A1, A2, B1];
const NEAR: &[Pod] = &[A1, A2];
const FAR: &[Pod] = &[B1];

const CLUSTER_IP: &[Door] = &[Door::ClusterIp];
const BALANCER: &[Door] = &[Door::LoadBalancer];

/// By client and door: external policy Cluster, external policy Local, internal policy Local.
const TRUTH: [(Client, &[Door], [Expect; 3]); 7] = [
    (POD, CLUSTER_IP, [Kept(ALL), Kept(ALL), Kept(NEAR)]),
    (Client::Node, CLUSTER_IP, [Hidden(ALL), Hidden(ALL), Hidden(NEAR)]),
    (Client::Outside, CLUSTER_IP, [Hidden(ALL), Hidden(ALL), Hidden(NEAR)]),
    (POD, &OUTER_DOORS, [Hidden(ALL), Kept(ALL), Hidden(ALL)]),
    (Client::Node, &OUTER_DOORS, [Hidden(ALL), Hidden(ALL), Hidden(ALL)]),
    (Client::Node, &[Door::LocalhostPort], [Hidden(ALL), Hidden(ALL), Hidden(ALL)]),
    (Client::Outside, &OUTER_DOORS, [Hidden(ALL), Kept(NEAR), Hidden(ALL)]),
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
    let trial = Trial::new(&lab);
    trial.expect_table(&TRUTH, &services);
    trial.verdict();
    sluice.stop();
}

/// By client and door: no endpoints at all; both policies Local and an endpoint on the other node only.
const NOBODY_HERE: [(Client, &[Door], [Expect; 2]); 7] = [
    (POD, CLUSTER_IP, [Refused, Silence]),
    (Client::Node, CLUSTER_IP, [Refused, Silence]),
    (Client::Outside, CLUSTER_IP, [Refused, Silence]),
    (POD, &OUTER_DOORS, [Refused, Kept(FAR)]),
    (Client::Node, &[Door::NodePort], [Refused, Hidden(FAR)]),
    // kube-proxy refuses these where packets come in or pass, not where the node's own go out.
    (Client::Node, &[Door::ExternalIp, Door::LoadBalancer], [Silence, Hidden(FAR)]),
    (Client::Outside, &OUTER_DOORS, [Refused, Silence]),
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
    let trial = Trial::new(&lab);
    trial.expect_table(&NOBODY_HERE, &services);
    trial.verdict();
    sluice.stop();
}

/// By client and door: the ranges hold the outside client; the pods; the node.
const RANGES: [(Client, &[Door], [Expect; 3]); 6] = [
    (Client::Outside, BALANCER, [Hidden(ALL), Silence, Silence]),
    (POD, BALANCER, [Silence, Hidden(ALL), Silence]),
    (Client::Node, BALANCER, [Silence, Silence, Hidden(ALL)]),
    // Ranges guard the load balancer's address alone.
    (Client::Outside, &[Door::NodePort, Door::ExternalIp], [Hidden(ALL), Hidden(ALL), Hidden(ALL)]),
    (POD, CLUSTER_IP, [Kept(ALL), Kept(ALL), Kept(ALL)]),
    (Client::Node, &[Door::NodePort, Door::ExternalIp], [Hidden(ALL), Hidden(ALL), Hidden(ALL)]),
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
    let trial = Trial::new(&lab);
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
    let trial = Trial::new(&lab);
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
    let mut trial = Trial::new(&lab);
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

/// Asks, and collects what was not as expected: one run shows all that is wrong.
struct Trial<'lab> {
    lab: &'lab Lab,
    protocols: Vec<Protocol>,
    wrong: Mutex<Vec<String>>,
}

impl<'lab> Trial<'lab> {
    fn new(lab: &'lab Lab) -> Self {
        Self { lab, protocols: protocols().to_vec(), wrong: Mutex::default() }
    }

    /// All rows at once; a column for each of the Services.
    fn expect_table<const N: usize>(&self, rows: &[(Client, &[Door], [Expect; N])], services: &[Service; N]) {
        thread::scope(|scope| {
            for (client, doors, columns) in rows {
                for (service, expect) in services.iter().zip(columns) {
                    scope.spawn(|| self.expect(*client, doors, service, *expect));
                }
            }
        });
    }

    /// Through each of the doors, in each family and protocol, all at once.
    fn expect(&self, client: Client, doors: &[Door], service: &Service, expect: Expect) {
        let ways: Vec<_> = self.ways(doors);
        let seen = self.client(client).run(|| {
            thread::scope(|scope| {
                let asking = |&(family, protocol, door): &_| {
                    let to = service.at(family, door);
                    scope.spawn(move || observe(protocol, to, expect))
                };
                let threads: Vec<_> = ways.iter().map(asking).collect();
                threads.into_iter().map(|thread| thread.join().expect("a client")).collect::<Vec<_>>()
            })
        });
        for ((family, protocol, door), seen) in ways.into_iter().zip(seen) {
            let expected = expected(expect, client, family);
            if seen != expected {
                let way = format!("{client:?} to {} by {door:?} {family:?} {protocol:?}", service.name);
                let wrong = format!("{way}\n    expected {}\n    saw      {}", list(&expected), list(&seen));
                self.wrong.lock().expect("a lock").push(wrong);
            }
        }
    }

    fn ways(&self, doors: &[Door]) -> Vec<(Family, Protocol, Door)> {
        let mut ways = Vec::new();
        for family in FAMILIES {
            for door in doors.iter().filter(|door| !(family == Family::V6 && **door == Door::LocalhostPort)) {
                ways.extend(self.protocols.iter().map(|protocol| (family, *protocol, *door)));
            }
        }
        ways
    }

    fn client(&self, client: Client) -> &Namespace {
        match client {
            Client::Pod(pod) => self.lab.pod(pod),
            Client::Node => &self.lab.node_a,
            Client::Outside => &self.lab.outside,
        }
    }

    fn verdict(self) {
        let wrong = self.wrong.into_inner().expect("a lock");
        assert!(wrong.is_empty(), "{} ways are wrong:\n{}", wrong.len(), wrong.join("\n"));
    }
}

fn observe(protocol: Protocol, to: SocketAddr, expect: Expect) -> BTreeSet<Fate> {
    match expect {
        // So many that one of three backends is missed once in four million times.
        Kept(_) | Hidden(_) => (0..40).map(|_| ask(protocol, to)).collect(),
        // Once: where a veth brings the error back while connect() still holds its socket, TCP takes it up only when
        // it sends again, a second later.
        Refused => BTreeSet::from([ask(protocol, to)]),
        Silence => BTreeSet::from([ask_within(protocol, to, SILENCE)]),
    }
}

fn expected(expect: Expect, client: Client, family: Family) -> BTreeSet<Fate> {
    let answered = |pod: &Pod, seen| Fate::Answered { pod: pod.name.to_owned(), seen };
    match expect {
        Kept(pods) => pods.iter().map(|pod| answered(pod, own_address(client, family))).collect(),
        Hidden(pods) => pods.iter().map(|pod| answered(pod, hidden_address(*pod, family))).collect(),
        Refused => BTreeSet::from([Fate::Refused]),
        Silence => BTreeSet::from([Fate::Silent]),
    }
}

fn own_address(client: Client, family: Family) -> std::net::IpAddr {
    match client {
        Client::Pod(pod) => pod.address(family),
        Client::Node => Node::A.address(family),
        Client::Outside => outside_address(family),
    }
}

/// The node's address on the side where the pod is.
fn hidden_address(pod: Pod, family: Family) -> std::net::IpAddr {
    match pod.node {
        Node::A => Node::A.bridge_address(family),
        Node::B => Node::A.address(family),
    }
}

fn list(fates: &BTreeSet<Fate>) -> String {
    fates.iter().map(Fate::to_string).collect::<Vec<_>>().join(", ")
}
