//! Which tracked UDP flows are stale: those that lead, or do not lead, where the rules would no longer send their
//! next packet.
//!
//! The kernel decides about a flow with its first packet. A UDP client that keeps its socket keeps its flow, so
//! when an endpoint goes away its packets go nowhere for as long as it keeps sending. [`Ledger`] remembers by which
//! addresses and ports UDP Services are reached, and which of those changed; flows through any other are nobody's
//! business here.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{ObjectKey, ServicePort, State};
use crate::net::{Family, Protocol};

/// A tracked flow as its two ends name the service's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Whom the client sends to.
    pub asked: SocketAddr,
    /// Who answers: another than `asked` when the destination was translated.
    pub answers: SocketAddr,
}

/// What the destinations of all flows that may be stale have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Common {
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
}

/// The addresses of this node that accept node ports, in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnAddresses {
    pub addresses: HashSet<IpAddr>,
    /// And all loopback addresses: interfaces name one of them.
    pub loopback: bool,
}

impl OwnAddresses {
    fn contains(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address) || (self.loopback && address.is_loopback())
    }
}

/// A way into a UDP service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Door {
    /// ClusterIP, external IP or load balancer IP, with the service port.
    Address(SocketAddr),
    NodePort(u16),
}

impl Door {
    fn address(self) -> Option<IpAddr> {
        match self {
            Self::Address(address) => Some(address.ip()),
            Self::NodePort(_) => None,
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::NodePort(port) => port,
        }
    }
}

/// The doors of a Service and the serving endpoints behind each.
type Doors = BTreeMap<Door, Arc<BTreeSet<SocketAddr>>>;

/// What is known of the UDP Services of one family, and which of their doors changed since the flows were last put
/// right.
#[derive(Debug)]
pub struct Ledger {
    family: Family,
    /// Do external IPs count?
    external_ips: bool,
    services: HashMap<ObjectKey, Doors>,
    /// Who has a door. More than one Service may: an external IP can be anybody's.
    owners: HashMap<Door, Vec<ObjectKey>>,
    /// Doors that changed, with the endpoints they led to before.
    changed: HashMap<Door, HashSet<SocketAddr>>,
}

impl Ledger {
    pub fn new(family: Family, external_ips: bool) -> Self {
        Self { family, external_ips, services: HashMap::new(), owners: HashMap::new(), changed: HashMap::new() }
    }

    /// Takes in what a Service is now. A Service seen for the first time has changed: what happened to its
    /// endpoints before is unknown.
    pub fn note(&mut self, state: &State, key: &ObjectKey) {
        let now = self.doors(state, key);
        let before = self.services.remove(key).unwrap_or_default();
        for (door, endpoints) in before.iter().filter(|(door, endpoints)| now.get(door) != Some(endpoints)) {
            self.changed.entry(*door).or_default().extend(endpoints.iter());
        }
        for door in now.keys().filter(|door| !before.contains_key(door)) {
            self.changed.entry(*door).or_default();
            self.owners.entry(*door).or_default().push(key.clone());
        }
        for door in before.keys().filter(|door| !now.contains_key(door)) {
            self.disown(*door, key);
        }
        if !now.is_empty() {
            self.services.insert(key.clone(), now);
        }
    }

    /// May there be stale flows?
    pub fn is_due(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Which flows [`Self::is_stale`] need not be asked about: those that differ from this. Most Services have one
    /// door, and a node's flows are mostly through others.
    pub fn common(&self) -> Common {
        let Some(first) = self.changed.keys().next() else { return Common::default() };
        let all = |same: fn(Door, Door) -> bool| self.changed.keys().all(|door| same(*door, *first));
        Common {
            address: first.address().filter(|_| all(|a, b| a.address() == b.address())),
            port: all(|a, b| a.port() == b.port()).then(|| first.port()),
        }
    }

    /// All stale flows were deleted.
    pub fn settled(&mut self) {
        self.changed.clear();
    }

    /// Is the flow one that a changed Service had or has a claim to, and does it lead elsewhere than the rules now do?
    pub fn is_stale(&self, flow: Ends, node: &OwnAddresses) -> bool {
        let address = Door::Address(flow.asked);
        // A node port is what an address without a Service of its own can be (the rules come in that order too).
        if self.owners.contains_key(&address) || self.leads_astray(address, flow) {
            return self.leads_astray(address, flow);
        }
        node.contains(flow.asked.ip()) && self.leads_astray(Door::NodePort(flow.asked.port()), flow)
    }

    fn leads_astray(&self, door: Door, flow: Ends) -> bool {
        let Some(before) = self.changed.get(&door) else { return false };
        match self.owners.get(&door) {
            // Whether it goes to an endpoint that is gone, or was not translated as there was none: the rules of a
            // door take all that comes.
            Some(owners) => {
                let mut behind = owners.iter().filter_map(|key| self.services.get(key)?.get(&door));
                !behind.any(|endpoints| endpoints.contains(&flow.answers))
            }
            // Nobody's door: only what the Service translated was the Service's.
            None => flow.answers != flow.asked && before.contains(&flow.answers),
        }
    }

    fn disown(&mut self, door: Door, key: &ObjectKey) {
        if let Some(owners) = self.owners.get_mut(&door) {
            owners.retain(|owner| owner != key);
            if owners.is_empty() {
                self.owners.remove(&door);
            }
        }
    }

    fn doors(&self, state: &State, key: &ObjectKey) -> Doors {
        let mut doors = Doors::new();
        let Some(service) = state.service(key) else { return doors };
        if !service.ports.iter().any(|port| port.protocol == Protocol::Udp) {
            return doors;
        }
        for port in service.ports_of(key, self.family).filter(|port| port.protocol == Protocol::Udp) {
            let endpoints = state.endpoints(key, &port, self.family);
            let serving = endpoints.iter().filter(|endpoint| endpoint.conditions.serving);
            let serving: Arc<BTreeSet<_>> = Arc::new(serving.map(|endpoint| endpoint.address).collect());
            for door in self.doors_of(&port) {
                let behind = doors.entry(door).or_insert_with(|| Arc::clone(&serving));
                if !Arc::ptr_eq(behind, &serving) {
                    Arc::make_mut(behind).extend(serving.iter());
                }
            }
        }
        doors
    }

    fn doors_of(&self, port: &ServicePort) -> impl Iterator<Item = Door> {
        let addresses = &port.addresses;
        let external = if self.external_ips { addresses.external_ips.as_slice() } else { &[] };
        let all = external.iter().chain(&addresses.load_balancer_vips).chain([&addresses.cluster_ip]);
        let node_port = (port.node_port != 0).then_some(Door::NodePort(port.node_port));
        all.map(|&address| Door::Address(SocketAddr::new(address, port.port))).chain(node_port)
    }
}
