//! Who answers whom: every kind of client asks through doors of a Service, and what is not as expected is collected.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::thread;

use super::lab::{self, CLIENT, FAMILIES, Family, Lab, Pod, outside_address};
use super::netns::Namespace;
use super::objects::{Door, Service};
use super::traffic::{Fate, Protocol, SILENCE, ask, ask_within, protocols};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    Pod(Pod),
    Node,
    Outside,
}

pub const POD: Client = Client::Pod(CLIENT);
pub const CLIENTS: [Client; 3] = [POD, Client::Node, Client::Outside];

#[derive(Debug, Clone, Copy)]
pub enum Expect {
    /// Just these backends, which see the client's own address.
    Kept(&'static [Pod]),
    /// Just these backends, which see the node's address on their side.
    Hidden(&'static [Pod]),
    /// Just these backends, which see the very address that was asked: the client is the node, and has it.
    AsAsked(&'static [Pod]),
    Refused,
    Silence,
}
use Expect::{AsAsked, Hidden, Kept, Refused, Silence};

/// Asks, and collects what was not as expected: one run shows all that is wrong.
#[derive(Debug)]
pub struct Trial<'lab> {
    lab: &'lab Lab,
    pub protocols: Vec<Protocol>,
    /// How often each client asks that expects an answer.
    asks: usize,
    wrong: Mutex<Vec<String>>,
}

impl<'lab> Trial<'lab> {
    pub fn new(lab: &'lab Lab, asks: usize) -> Self {
        Self { lab, asks, protocols: protocols().to_vec(), wrong: Mutex::default() }
    }

    /// All rows at once; a column for each of the Services.
    pub fn expect_table<const N: usize>(&self, rows: &[(Client, &[Door], [Expect; N])], services: &[Service; N]) {
        thread::scope(|scope| {
            for (client, doors, columns) in rows {
                for (service, expect) in services.iter().zip(columns) {
                    scope.spawn(|| self.expect(*client, doors, service, *expect));
                }
            }
        });
    }

    /// Through each of the doors, in each family and protocol, all at once.
    pub fn expect(&self, client: Client, doors: &[Door], service: &Service, expect: Expect) {
        let ways: Vec<_> = self.ways(doors);
        let seen = place(self.lab, client).run(|| {
            thread::scope(|scope| {
                let asking = |&(family, protocol, door): &_| {
                    let to = service.at(family, door);
                    scope.spawn(move || self.observe(protocol, to, expect))
                };
                let threads: Vec<_> = ways.iter().map(asking).collect();
                threads.into_iter().map(|thread| thread.join().expect("a client")).collect::<Vec<_>>()
            })
        });
        for ((family, protocol, door), seen) in ways.into_iter().zip(seen) {
            let expected = expected(expect, client, family, service.address(family, door));
            if seen != expected {
                let way = format!("{client:?} to {} by {door:?} {family:?} {protocol:?}", service.name);
                let wrong = format!("{way}\n    expected {}\n    saw      {}", list(&expected), list(&seen));
                self.wrong.lock().expect("a lock").push(wrong);
            }
        }
    }

    fn observe(&self, protocol: Protocol, to: SocketAddr, expect: Expect) -> BTreeSet<Fate> {
        match expect {
            Kept(_) | Hidden(_) | AsAsked(_) => (0..self.asks).map(|_| ask(protocol, to)).collect(),
            // Once: where a veth brings the error back while connect() still holds its socket, TCP takes it up only
            // when it sends again, a second later.
            Refused => BTreeSet::from([ask(protocol, to)]),
            Silence => BTreeSet::from([ask_within(protocol, to, SILENCE)]),
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

    /// # Panics
    /// When anything was not as expected.
    pub fn verdict(self) {
        let wrong = self.wrong.into_inner().expect("a lock");
        assert!(wrong.is_empty(), "{} ways are wrong:\n{}", wrong.len(), wrong.join("\n"));
    }
}

/// Where this client is.
pub fn place(lab: &Lab, client: Client) -> &Namespace {
    match client {
        Client::Pod(pod) => lab.pod(pod),
        Client::Node => &lab.node_a,
        Client::Outside => &lab.outside,
    }
}

fn expected(expect: Expect, client: Client, family: Family, asked: IpAddr) -> BTreeSet<Fate> {
    let answered = |pod: &Pod, seen| Fate::Answered { pod: pod.name.to_owned(), seen };
    match expect {
        Kept(pods) => pods.iter().map(|pod| answered(pod, own_address(client, family))).collect(),
        AsAsked(pods) => pods.iter().map(|pod| answered(pod, asked)).collect(),
        Hidden(pods) => pods.iter().map(|pod| answered(pod, hidden_address(*pod, family))).collect(),
        Refused => BTreeSet::from([Fate::Refused]),
        Silence => BTreeSet::from([Fate::Silent]),
    }
}

fn own_address(client: Client, family: Family) -> IpAddr {
    match client {
        Client::Pod(pod) => pod.address(family),
        Client::Node => lab::Node::A.address(family),
        Client::Outside => outside_address(family),
    }
}

/// The node's address on the side where the pod is.
fn hidden_address(pod: Pod, family: Family) -> IpAddr {
    match pod.node {
        lab::Node::A => lab::Node::A.bridge_address(family),
        lab::Node::B => lab::Node::A.address(family),
    }
}

fn list(fates: &BTreeSet<Fate>) -> String {
    fates.iter().map(Fate::to_string).collect::<Vec<_>>().join(", ")
}
