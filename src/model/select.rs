//! Which endpoints get which traffic: one function, with the rules of behaviour.md §2.4
//! (kube-proxy's `CategorizeEndpoints`).

use super::endpoint::Endpoint;
use super::service::ServicePort;

/// The endpoints of a service port by the traffic they may get. All lists keep the order they came in.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Selection<'a> {
    /// For traffic with the Cluster policy, and for pods and the node itself under external policy Local.
    pub cluster: Vec<&'a Endpoint>,
    /// For traffic with the Local policy.
    pub local: Vec<&'a Endpoint>,
    /// All that stand in one of the two.
    pub reachable: Vec<&'a Endpoint>,
    /// Is there any usable endpoint in the whole cluster? Decides between refusing and dropping.
    pub any: bool,
}

/// Where this process runs, as topology hints name places.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub node: &'a str,
    pub zone: Option<&'a str>,
}

/// Sorts `endpoints` (in their final order) by traffic policy, topology and condition.
///
/// Without a ready endpoint, those that still serve while terminating are used; the cluster's list and
/// the local one fall back each on its own. The local list is never filtered by topology.
pub fn select<'a>(endpoints: &'a [Endpoint], port: &ServicePort, place: Place<'_>) -> Selection<'a> {
    let mut selection = Selection::default();
    let mut subset = false;
    if port.uses_cluster_endpoints() {
        let topology = Topology::of(endpoints, place);
        subset |= topology != Topology::Anywhere;
        let ready = endpoints.iter().filter(|e| e.conditions.ready && topology.admits(e, place));
        selection.cluster = or_terminating(ready.collect(), || endpoints.iter());
    }
    if port.uses_local_endpoints() {
        let local = || endpoints.iter().filter(|e| e.local);
        let ready: Vec<_> = local().filter(|e| e.conditions.ready).collect();
        subset |= ready.is_empty();
        selection.local = or_terminating(ready, local);
    }
    selection.any = endpoints.iter().any(|e| e.conditions.ready || still_serves(e));
    selection.reachable = union(&selection, subset);
    selection
}

fn still_serves(endpoint: &Endpoint) -> bool {
    endpoint.conditions.serving && endpoint.conditions.terminating
}

fn or_terminating<'a, I: Iterator<Item = &'a Endpoint>>(ready: Vec<&'a Endpoint>, all: impl Fn() -> I) -> Vec<&'a Endpoint> {
    if ready.is_empty() { all().filter(|e| still_serves(e)).collect() } else { ready }
}

/// The union of both lists. Only where one may hold what the other lacks (`subset`) is it more than the
/// cluster's list.
fn union<'a>(selection: &Selection<'a>, subset: bool) -> Vec<&'a Endpoint> {
    if selection.cluster.is_empty() {
        return selection.local.clone();
    }
    let mut all = selection.cluster.clone();
    if subset {
        all.extend(selection.local.iter().filter(|l| !selection.cluster.iter().any(|c| c.address == l.address)));
        all.sort_by_cached_key(|e| e.address.to_string());
    }
    all
}

/// How far hints narrow the choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    SameNode,
    SameZone,
    Anywhere,
}

impl Topology {
    /// Hints count only when every ready endpoint has them and one at least names this place.
    fn of(endpoints: &[Endpoint], place: Place<'_>) -> Self {
        let ready = || endpoints.iter().filter(|e| e.conditions.ready);
        for topology in [Self::SameNode, Self::SameZone] {
            if ready().all(|e| topology.hints(e)) && ready().any(|e| topology.admits(e, place)) {
                return topology;
            }
        }
        Self::Anywhere
    }

    fn hints(self, endpoint: &Endpoint) -> bool {
        match self {
            Self::SameNode => !endpoint.hints.nodes.is_empty(),
            Self::SameZone => !endpoint.hints.zones.is_empty(),
            Self::Anywhere => true,
        }
    }

    fn admits(self, endpoint: &Endpoint, place: Place<'_>) -> bool {
        match self {
            Self::SameNode => endpoint.hints.nodes.iter().any(|n| **n == *place.node),
            Self::SameZone => place.zone.is_some_and(|zone| endpoint.hints.zones.iter().any(|z| **z == *zone)),
            Self::Anywhere => true,
        }
    }
}
