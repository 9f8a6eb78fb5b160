//! Everything that is wanted, as the sources told it, and what a change of it touches.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use jiff::Timestamp;

use super::endpoint::{Endpoint, EndpointSlice, SliceEndpoint};
use super::node::Node;
use super::select::Place;
use super::service::{PortSpec, Service, ServicePort};
use super::{Event, ObjectKey};
use crate::net::{Family, PerFamily, Protocol};

/// Above this many endpoints, counted over the service ports of one family, rules lose the comments
/// that make them twice as large (kube-proxy's `largeClusterEndpointsThreshold`).
const LARGE_CLUSTER_ENDPOINTS: usize = 1000;

/// The wanted state of the node's services.
#[derive(Debug)]
pub struct State {
    node_name: Arc<str>,
    services: BTreeMap<ObjectKey, Known>,
    slices: BTreeMap<ObjectKey, EndpointSlice>,
    /// Each Service with each of its slices.
    slices_of: BTreeSet<(ObjectKey, ObjectKey)>,
    node: Option<Node>,
    addresses: BTreeSet<IpAddr>,
    /// Endpoints of all Services, counted over their ports.
    endpoint_totals: PerFamily<usize>,
    received: Received,
}

/// A Service, and its part of the endpoint totals.
#[derive(Debug)]
struct Known {
    service: Service,
    endpoints: PerFamily<usize>,
}

/// Of which kinds a complete list has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "four independent facts, not one state")]
pub struct Received {
    pub services: bool,
    pub slices: bool,
    pub nodes: bool,
    pub addresses: bool,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub services: usize,
    pub slices: usize,
    /// Endpoints of all Services, counted over their ports.
    pub endpoints: PerFamily<usize>,
}

/// What an event changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Services whose own derived values changed, came or went.
    pub services: BTreeSet<ObjectKey>,
    /// Something all rules may depend on changed: the node, the size class of the cluster.
    pub global: bool,
    /// The node's addresses changed: no Service's own rules depend on them. Every pod that comes or goes may
    /// change them, so they must not cost a look at each Service.
    pub addresses: bool,
    /// When what changed slices was done, as far as they tell.
    pub triggers: Vec<Trigger>,
}

/// Something happened in the cluster, and a slice changed for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    pub service: ObjectKey,
    pub family: Family,
    pub at: Timestamp,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        !self.global && !self.addresses && self.services.is_empty()
    }

    pub fn merge(&mut self, other: Self) {
        self.services.extend(other.services);
        self.global |= other.global;
        self.addresses |= other.addresses;
        self.triggers.extend(other.triggers);
    }

    /// A slice came, went or changed.
    fn note_slice(&mut self, before: Option<&EndpointSlice>, now: Option<&EndpointSlice>) {
        self.services.extend([before, now].into_iter().flatten().map(|slice| slice.service.clone()));
        let Some(now) = now else { return };
        // A slice may change again without its controller saying when: the old time would not be that of this change.
        let news = now.triggered.filter(|_| before.and_then(|slice| slice.triggered) != now.triggered);
        self.triggers.extend(news.map(|at| Trigger { service: now.service.clone(), family: now.family, at }));
    }
}

impl State {
    /// An empty state of the node called `node_name` in the API.
    pub fn new(node_name: impl Into<Arc<str>>) -> Self {
        Self {
            node_name: node_name.into(),
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            slices_of: BTreeSet::new(),
            node: None,
            addresses: BTreeSet::new(),
            endpoint_totals: PerFamily::default(),
            received: Received::default(),
        }
    }

    /// Takes an event in and tells what it changed. Values are compared, so an edit of something that
    /// rules do not depend on changes nothing.
    pub fn apply(&mut self, event: Event) -> Changes {
        let large = PerFamily::from_fn(|f| self.is_large_cluster(f));
        let mut changes = Changes::default();
        match event {
            Event::Service(key, service) => self.set_service(key, service, &mut changes),
            Event::Slice(key, slice) => self.set_slice(key, slice, &mut changes),
            Event::Node(key, node) => self.set_node(&key, node, &mut changes),
            Event::Services(all) => self.replace_services(all, &mut changes),
            Event::Slices(all) => self.replace_slices(all, &mut changes),
            Event::Nodes(all) => self.replace_nodes(all, &mut changes),
            Event::Addresses(all) => self.replace_addresses(all, &mut changes),
        }
        for key in &changes.services {
            self.recount(key);
        }
        changes.global |= large != PerFamily::from_fn(|f| self.is_large_cluster(f));
        changes
    }

    pub fn received(&self) -> Received {
        self.received
    }

    pub fn size(&self) -> Size {
        Size { services: self.services.len(), slices: self.slices.len(), endpoints: self.endpoint_totals }
    }

    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    pub fn place(&self) -> Place<'_> {
        Place { node: &self.node_name, zone: self.node.as_ref().and_then(|n| n.zone.as_deref()) }
    }

    /// The addresses on the node's interfaces, sorted.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().copied()
    }

    /// Is it on one of the node's interfaces?
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    pub fn services(&self) -> impl Iterator<Item = (&ObjectKey, &Service)> {
        self.services.iter().map(|(key, known)| (key, &known.service))
    }

    pub fn service(&self, key: &ObjectKey) -> Option<&Service> {
        self.services.get(key).map(|known| &known.service)
    }

    pub fn is_large_cluster(&self, family: Family) -> bool {
        self.endpoint_totals[family] > LARGE_CLUSTER_ENDPOINTS
    }

    /// The endpoints of a service port, merged over the slices of its Service, in the order that rules
    /// have: sorted as the text `address:port`.
    ///
    /// Where two slices name the same `address:port`, the later one (by slice name) counts, unless it is
    /// terminating: a pod that reuses the address of one on its way out is the one that serves.
    pub fn endpoints(&self, service: &ObjectKey, port: &ServicePort, family: Family) -> Vec<Endpoint> {
        let mut found: Vec<_> = self.candidates(service, (&port.port_name, port.protocol), family).collect();
        found.sort_by_key(|(address, _)| *address);
        let one = |same: &[(SocketAddr, &SliceEndpoint)]| {
            let serving = same.iter().rev().find(|(_, endpoint)| !endpoint.conditions.terminating);
            let (address, endpoint) = *serving.unwrap_or(&same[0]);
            self.endpoint(endpoint, address)
        };
        let mut endpoints: Vec<_> = found.chunk_by(|(a, _), (b, _)| a == b).map(one).collect();
        endpoints.sort_by_cached_key(|e| e.address.to_string());
        endpoints
    }

    /// What the slices of a Service say of one of its ports, slice by slice.
    fn candidates<'a>(
        &'a self,
        service: &'a ObjectKey,
        (name, protocol): (&'a str, Protocol),
        family: Family,
    ) -> impl Iterator<Item = (SocketAddr, &'a SliceEndpoint)> {
        self.slices_of(service).filter(move |s| s.family == family).flat_map(move |slice| {
            let ports = slice.ports.iter().filter(move |p| *p.name == *name && p.protocol == protocol);
            ports.flat_map(|port| slice.endpoints.iter().map(|e| (SocketAddr::new(e.address, port.port), e)))
        })
    }

    /// How many addresses on this node are ready for any port of the Service: what its health check
    /// node port tells. A dual-stack pod counts once.
    pub fn local_ready_endpoints(&self, service: &ObjectKey) -> usize {
        let count = |family: Family| {
            let slices = self.slices_of(service).filter(|s| s.family == family && !s.ports.is_empty());
            let ready = slices.flat_map(|s| &s.endpoints).filter(|e| e.conditions.ready && self.is_local(e));
            ready.map(|e| e.address).collect::<BTreeSet<_>>().len()
        };
        Family::ALL.into_iter().map(count).max().unwrap_or(0)
    }

    fn endpoint(&self, from: &SliceEndpoint, address: SocketAddr) -> Endpoint {
        Endpoint { address, local: self.is_local(from), conditions: from.conditions, hints: from.hints.clone() }
    }

    fn is_local(&self, endpoint: &SliceEndpoint) -> bool {
        endpoint.node_name.as_deref() == Some(&*self.node_name)
    }

    fn slices_of<'a>(&'a self, service: &'a ObjectKey) -> impl Iterator<Item = &'a EndpointSlice> {
        let first = (service.clone(), ObjectKey::default());
        let keys = self.slices_of.range(first..).take_while(move |(of, _)| of == service);
        keys.filter_map(|(_, key)| self.slices.get(key))
    }

    fn set_service(&mut self, key: ObjectKey, service: Option<Service>, changes: &mut Changes) {
        if self.service(&key) == service.as_ref() {
            return;
        }
        let before = match service {
            Some(service) => self.services.insert(key.clone(), Known::new(service)),
            None => self.services.remove(&key),
        };
        subtract(&mut self.endpoint_totals, before.map(|known| known.endpoints).unwrap_or_default());
        changes.services.insert(key);
    }

    fn set_slice(&mut self, key: ObjectKey, slice: Option<EndpointSlice>, changes: &mut Changes) {
        let slice = slice.map(|slice| self.without_other_nodes(slice));
        let before = self.slices.remove(&key);
        if !same_to_rules(before.as_ref(), slice.as_ref()) {
            changes.note_slice(before.as_ref(), slice.as_ref());
        }
        if let Some(before) = before {
            self.slices_of.remove(&(before.service, key.clone()));
        }
        if let Some(slice) = slice {
            self.slices_of.insert((slice.service.clone(), key.clone()));
            self.slices.insert(key, slice);
        }
    }

    /// Of the names of nodes only our own is kept: where else an endpoint runs changes nothing.
    fn without_other_nodes(&self, mut slice: EndpointSlice) -> EndpointSlice {
        for endpoint in &mut slice.endpoints {
            endpoint.node_name = self.is_local(endpoint).then(|| Arc::clone(&self.node_name));
        }
        slice
    }

    /// A deleted Node leaves its last facts in force, as kube-proxy does: rules must not change because
    /// a node object was removed while its pods still run.
    fn set_node(&mut self, key: &ObjectKey, node: Option<Node>, changes: &mut Changes) {
        if *key.name() == *self.node_name && node.is_some() && self.node != node {
            self.node = node;
            changes.global = true;
        }
    }

    /// Built anew, a map takes little more than half the memory of one that grew.
    fn replace_services(&mut self, all: Vec<(ObjectKey, Service)>, changes: &mut Changes) {
        self.received.services = true;
        let all = all.into_iter().map(|(key, service)| (key, Known::new(service))).collect();
        let before = std::mem::replace(&mut self.services, all);
        let other = different(&before, &self.services, |a, b| a.service == b.service);
        self.endpoint_totals = PerFamily::default();
        for (key, known) in before {
            if let Some(now) = self.services.get_mut(&key).filter(|_| !other.contains(&key)) {
                now.endpoints = known.endpoints;
                add(&mut self.endpoint_totals, known.endpoints);
            }
        }
        changes.services.extend(other);
    }

    fn replace_slices(&mut self, all: Vec<(ObjectKey, EndpointSlice)>, changes: &mut Changes) {
        self.received.slices = true;
        let all = all.into_iter().map(|(key, slice)| (key, self.without_other_nodes(slice))).collect();
        let before = std::mem::replace(&mut self.slices, all);
        for key in different(&before, &self.slices, EndpointSlice::same_to_rules) {
            changes.note_slice(before.get(&key), self.slices.get(&key));
        }
        self.slices_of = self.slices.iter().map(|(key, slice)| (slice.service.clone(), key.clone())).collect();
    }

    fn replace_nodes(&mut self, all: Vec<(ObjectKey, Node)>, changes: &mut Changes) {
        self.received.nodes = true;
        for (key, node) in all {
            self.set_node(&key, Some(node), changes);
        }
    }

    fn replace_addresses(&mut self, all: Vec<IpAddr>, changes: &mut Changes) {
        self.received.addresses = true;
        let all = all.into_iter().collect();
        changes.addresses |= self.addresses != all;
        self.addresses = all;
    }

    /// Brings the endpoint totals up to date for one Service.
    fn recount(&mut self, key: &ObjectKey) {
        let Some(service) = self.service(key) else { return };
        let now = PerFamily::from_fn(|family| self.count(key, service, family));
        if let Some(known) = self.services.get_mut(key) {
            let before = std::mem::replace(&mut known.endpoints, now);
            add(&mut self.endpoint_totals, now);
            subtract(&mut self.endpoint_totals, before);
        }
    }

    fn count(&self, key: &ObjectKey, service: &Service, family: Family) -> usize {
        let ports = if service.families[family].is_some() { service.ports.as_slice() } else { &[] };
        let count = |port: &PortSpec| {
            let mut addresses: Vec<_> = self.candidates(key, (&port.name, port.protocol), family).map(|(a, _)| a).collect();
            addresses.sort_unstable();
            addresses.dedup();
            addresses.len()
        };
        ports.iter().map(count).sum()
    }
}

impl Known {
    fn new(service: Service) -> Self {
        Self { service, endpoints: PerFamily::default() }
    }
}

fn add(total: &mut PerFamily<usize>, part: PerFamily<usize>) {
    for family in Family::ALL {
        total[family] += part[family];
    }
}

fn subtract(total: &mut PerFamily<usize>, part: PerFamily<usize>) {
    for family in Family::ALL {
        total[family] -= part[family];
    }
}

fn same_to_rules(a: Option<&EndpointSlice>, b: Option<&EndpointSlice>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.same_to_rules(b),
        (None, None) => true,
        _ => false,
    }
}

/// The keys that only one of two maps has, or that have another value in each.
fn different<V>(a: &BTreeMap<ObjectKey, V>, b: &BTreeMap<ObjectKey, V>, same: impl Fn(&V, &V) -> bool) -> BTreeSet<ObjectKey> {
    let lost = a.keys().filter(|key| !b.contains_key(*key));
    let new = b.iter().filter(|(key, value)| !a.get(*key).is_some_and(|before| same(before, value))).map(|(key, _)| key);
    lost.chain(new).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::super::endpoint::{Conditions, Hints, SlicePort};
    use super::super::service::{Addresses, PortSpec};
    use super::*;
    use crate::net::Protocol;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("shop", name)
    }

    fn service(ports: &[&str]) -> Service {
        let addresses = Addresses {
            cluster_ip: [10, 96, 0, 1].into(),
            external_ips: vec![],
            load_balancer_vips: vec![],
            source_ranges: vec![],
        };
        let port = |name: &&str| PortSpec { name: (*name).into(), protocol: Protocol::Tcp, port: 80, node_port: 0 };
        Service {
            families: PerFamily { v4: Some(addresses), v6: None },
            ports: ports.iter().map(port).collect(),
            affinity_seconds: None,
            external_policy_local: false,
            internal_policy_local: false,
            health_check_node_port: 0,
        }
    }

    fn slice(of: &str, ports: &[&str], hosts: &[u8]) -> EndpointSlice {
        let port = |name: &&str| SlicePort { name: (*name).into(), protocol: Protocol::Tcp, port: 8080 };
        let endpoint = |&host: &u8| SliceEndpoint {
            address: [10, 244, 0, host].into(),
            node_name: Some("node-a".into()),
            conditions: Conditions { ready: true, serving: true, terminating: false },
            hints: Hints::default(),
        };
        EndpointSlice {
            service: key(of),
            family: Family::Ipv4,
            ports: ports.iter().map(port).collect(),
            endpoints: hosts.iter().map(endpoint).collect(),
            triggered: None,
        }
    }

    fn changed(names: &[&str]) -> Changes {
        Changes { services: names.iter().map(|name| key(name)).collect(), ..Changes::default() }
    }

    /// The last bytes of the endpoints of a Service's first port.
    fn hosts(state: &State, name: &str) -> Vec<String> {
        let Some(port) = state.service(&key(name)).and_then(|s| s.ports_of(&key(name), Family::Ipv4).next()) else {
            return Vec::new();
        };
        let endpoints = state.endpoints(&key(name), &port, Family::Ipv4);
        endpoints.iter().map(|e| e.address.ip().to_string().replace("10.244.0.", "")).collect()
    }

    #[test]
    fn the_time_of_a_trigger_is_told_once_and_only_with_a_change() {
        let mut state = State::new("node-a");
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let slice = |hosts: &[u8], seconds| EndpointSlice { triggered: Some(at(seconds)), ..slice("web", &["http"], hosts) };
        let mut told = |slice| state.apply(Event::Slice(key("x"), Some(slice))).triggers;
        let trigger = |seconds| vec![Trigger { service: key("web"), family: Family::Ipv4, at: at(seconds) }];
        assert_eq!(told(slice(&[1], 10)), trigger(10));
        assert_eq!(told(slice(&[1], 20)), [], "no rule changes");
        assert_eq!(told(slice(&[1, 2], 20)), [], "somebody else than the slice's controller changed it");
        assert_eq!(told(slice(&[2], 30)), trigger(30));
        let all = vec![(key("x"), slice(&[2, 3], 40)), (key("y"), slice(&[4], 41))];
        assert_eq!(state.apply(Event::Slices(all)).triggers, [trigger(40), trigger(41)].concat());
        assert_eq!(state.apply(Event::Slice(key("x"), None)).triggers, []);
    }

    #[test]
    fn the_same_value_again_changes_nothing() {
        let mut state = State::new("node-a");
        let tell = || {
            [Event::Service(key("web"), Some(service(&["http"]))), Event::Slice(key("x"), Some(slice("web", &["http"], &[1])))]
        };
        for event in tell() {
            assert_eq!(state.apply(event), changed(&["web"]));
        }
        for event in tell() {
            assert!(state.apply(event).is_empty());
        }
        assert!(state.apply(Event::Service(key("unknown"), None)).is_empty());
        assert!(state.apply(Event::Slice(key("unknown"), None)).is_empty());
    }

    #[test]
    fn a_list_takes_the_place_of_what_was_known() {
        let mut state = State::new("node-a");
        let (web, dns) = ((key("web"), service(&["http"])), (key("dns"), service(&["http"])));
        assert_eq!(state.apply(Event::Services(vec![web.clone(), dns.clone()])), changed(&["web", "dns"]));
        assert!(state.apply(Event::Services(vec![dns.clone(), web])).is_empty());
        assert_eq!(state.apply(Event::Services(vec![dns])), changed(&["web"]));
        assert!(state.service(&key("web")).is_none() && state.received().services && !state.received().slices);

        let (a, b) = ((key("a"), slice("dns", &["http"], &[1])), (key("b"), slice("dns", &["http"], &[2])));
        state.apply(Event::Slices(vec![a, b.clone()]));
        assert_eq!(hosts(&state, "dns"), ["1", "2"]);
        assert_eq!(state.apply(Event::Slices(vec![b])), changed(&["dns"]));
        assert_eq!(hosts(&state, "dns"), ["2"]);
    }

    /// kube-proxy leaves the old Service's copy in force (behaviour.md §9, 18).
    #[test]
    fn a_slice_that_moves_leaves_its_old_service() {
        let mut state = State::new("node-a");
        state.apply(Event::Services(vec![(key("old"), service(&["http"])), (key("new"), service(&["http"]))]));
        state.apply(Event::Slice(key("x"), Some(slice("old", &["http"], &[1]))));
        assert_eq!(state.apply(Event::Slice(key("x"), Some(slice("new", &["http"], &[1])))), changed(&["old", "new"]));
        assert_eq!((hosts(&state, "old"), hosts(&state, "new")), (vec![], vec!["1".to_owned()]));
        assert_eq!(state.apply(Event::Slice(key("x"), None)), changed(&["new"]));
        assert!(state.slices_of.is_empty(), "nothing is kept of Services without slices");
    }

    #[test]
    fn endpoints_are_sorted_as_text() {
        let mut state = State::new("node-a");
        state.apply(Event::Service(key("web"), Some(service(&["http"]))));
        state.apply(Event::Slice(key("x"), Some(slice("web", &["http"], &[9, 100, 10]))));
        assert_eq!(hosts(&state, "web"), ["100", "10", "9"]);
    }

    /// Counted over the ports of known Services, in whatever order Services and slices come and go.
    #[test]
    fn endpoints_are_counted_by_service_port() {
        let mut state = State::new("node-a");
        let hosts: Vec<u8> = (1..=250).collect();
        let full = || slice("web", &["a", "b", "unused"], &hosts);
        state.apply(Event::Slice(key("x"), Some(full())));
        assert_eq!(state.endpoint_totals.v4, 0, "nobody asked for them");
        state.apply(Event::Service(key("web"), Some(service(&["a", "b"]))));
        assert_eq!(state.endpoint_totals, PerFamily { v4: 500, v6: 0 });
        let mut more = full();
        more.endpoints.iter_mut().for_each(|e| e.address = e.address.to_string().replace(".0.", ".1.").parse().unwrap());
        assert!(!state.apply(Event::Slice(key("y"), Some(more))).global);
        assert_eq!((state.endpoint_totals.v4, state.is_large_cluster(Family::Ipv4)), (1000, false));
        assert_eq!(state.size(), Size { services: 1, slices: 2, endpoints: PerFamily { v4: 1000, v6: 0 } });
        let one = slice("web", &["a"], &[251]);
        assert!(state.apply(Event::Slice(key("z"), Some(one))).global, "now large: all rules change");
        assert!(state.is_large_cluster(Family::Ipv4) && !state.is_large_cluster(Family::Ipv6));
        assert!(state.apply(Event::Services(vec![])).global);
        assert_eq!(state.endpoint_totals, PerFamily::default());
    }

    #[test]
    fn a_node_that_is_deleted_is_remembered_and_others_are_ignored() {
        let mut state = State::new("node-a");
        let node = |name: &str| (ObjectKey::new("", name), Node { zone: Some("zone-a".into()), ..Node::default() });
        assert!(state.apply(Event::Nodes(vec![node("node-b")])).is_empty());
        assert!(state.apply(Event::Nodes(vec![node("node-b"), node("node-a")])).global);
        assert!(state.apply(Event::Node(node("node-a").0, None)).is_empty());
        assert!(state.apply(Event::Nodes(vec![])).is_empty());
        assert_eq!(state.place().zone, Some("zone-a"));
    }

    #[test]
    fn a_pod_counts_once_for_the_health_check_port() {
        let mut state = State::new("node-a");
        state.apply(Event::Slice(key("x"), Some(slice("web", &["a", "b"], &[1, 2]))));
        let mut more = slice("web", &["c"], &[2, 3, 4, 5]);
        more.endpoints[2].conditions.ready = false;
        more.endpoints[3].node_name = None;
        state.apply(Event::Slice(key("y"), Some(more)));
        assert_eq!(state.local_ready_endpoints(&key("web")), 3);
        let mut portless = slice("web", &[], &[7]);
        portless.ports.clear();
        state.apply(Event::Slice(key("z"), Some(portless)));
        assert_eq!(state.local_ready_endpoints(&key("web")), 3);
    }
}
