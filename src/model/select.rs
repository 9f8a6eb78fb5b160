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

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use super::super::endpoint::{Conditions, Hints};
    use super::super::service::Addresses;
    use super::*;
    use crate::net::Protocol;

    const HERE: Place<'static> = Place { node: "node-a", zone: Some("zone-a") };

    /// Endpoint n from words: `here` is on this node, `unready`, `leaving` (terminating and serving), `dying`
    /// (terminating, not serving), `z:a` a hint for zone-a, `n:a` one for node-a.
    fn endpoint(n: u8, words: &str) -> Endpoint {
        let has = |word: &str| words.split(' ').any(|w| w == word);
        let hints = |prefix: &str, full: &str| {
            words.split(' ').filter_map(|w| w.strip_prefix(prefix)).map(|name| format!("{full}{name}").into()).collect()
        };
        let (leaving, dying) = (has("leaving"), has("dying"));
        Endpoint {
            address: SocketAddr::from(([10, 244, 0, n], 80)),
            local: has("here"),
            conditions: Conditions {
                ready: !(has("unready") || leaving || dying),
                serving: !(has("unready") || dying),
                terminating: leaving || dying,
            },
            hints: Hints { zones: hints("z:", "zone-"), nodes: hints("n:", "node-") },
        }
    }

    /// A service port from words: `node-port`, `ext-local`, `int-local`.
    fn port(words: &str) -> ServicePort {
        let cluster_ip = IpAddr::from([10, 96, 0, 1]);
        let has = |word: &str| words.split(' ').any(|w| w == word);
        ServicePort {
            name: "ns/name".into(),
            port_name: "".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: if has("node-port") { 30080 } else { 0 },
            addresses: Addresses { cluster_ip, external_ips: vec![], load_balancer_vips: vec![], source_ranges: vec![] },
            affinity_seconds: None,
            external_policy_local: has("ext-local"),
            internal_policy_local: has("int-local"),
            health_check_node_port: 0,
        }
    }

    /// Endpoints numbered from 1; the numbers of the cluster list, the local one, the reachable ones; any?
    type Case<'a> = (&'a str, &'a [&'a str], &'a [u8], &'a [u8], &'a [u8], bool);

    #[track_caller]
    fn check(place: Place<'_>, cases: &[Case<'_>]) {
        for &(words, given, cluster, local, reachable, any) in cases {
            let endpoints: Vec<_> = (1..).zip(given).map(|(n, words)| endpoint(n, words)).collect();
            let found = select(&endpoints, &port(words), place);
            let numbers = |list: &[&Endpoint]| list.iter().map(|e| number(e.address)).collect::<Vec<_>>();
            let have = (numbers(&found.cluster), numbers(&found.local), numbers(&found.reachable), found.any);
            let want = (cluster.to_vec(), local.to_vec(), reachable.to_vec(), any);
            assert_eq!(have, want, "{words:?} with {given:?}");
        }
    }

    fn number(address: SocketAddr) -> u8 {
        match address.ip() {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(_) => 0,
        }
    }

    #[test]
    fn zone_hints_count_when_all_ready_endpoints_have_them_and_one_names_the_zone() {
        check(
            HERE,
            &[
                ("", &["z:a", "z:b", "z:a z:b"], &[1, 3], &[], &[1, 3], true),
                ("", &["z:a", "z:b", ""], &[1, 2, 3], &[], &[1, 2, 3], true),
                ("", &["z:b", "z:c"], &[1, 2], &[], &[1, 2], true),
                ("", &["z:a", "z:b", "unready"], &[1], &[], &[1], true),
                ("", &["z:a unready", "z:b"], &[2], &[], &[2], true),
                ("", &["z:a", "leaving"], &[1], &[], &[1], true),
            ],
        );
        let nowhere = Place { zone: None, ..HERE };
        check(nowhere, &[("", &["z:a", "z:b"], &[1, 2], &[], &[1, 2], true)]);
    }

    #[test]
    fn node_hints_come_before_zone_hints_and_fall_back_to_them() {
        check(
            HERE,
            &[
                ("", &["n:a z:a", "n:b z:a", "n:c z:b"], &[1], &[], &[1], true),
                ("", &["n:b z:a", "n:c z:b"], &[1], &[], &[1], true),
                ("", &["n:b z:b", "n:c z:c"], &[1, 2], &[], &[1, 2], true),
                ("", &["n:a z:a", "z:a", "z:b"], &[1, 2], &[], &[1, 2], true),
                ("", &["n:a", "n:b"], &[1], &[], &[1], true),
                ("", &["n:a unready", "n:b"], &[2], &[], &[2], true),
                ("", &["n:a", "n:a n:b", "n:b unready"], &[1, 2], &[], &[1, 2], true),
            ],
        );
    }

    #[test]
    fn local_policies_take_local_endpoints_whatever_the_hints() {
        check(
            HERE,
            &[
                ("int-local", &["here", ""], &[], &[1], &[1], true),
                ("int-local", &["", ""], &[], &[], &[], true),
                ("int-local", &[], &[], &[], &[], false),
                ("int-local node-port", &["here", ""], &[1, 2], &[1], &[1, 2], true),
                ("ext-local node-port", &["here", ""], &[1, 2], &[1], &[1, 2], true),
                ("ext-local node-port", &["", ""], &[1, 2], &[], &[1, 2], true),
                // Not reachable from outside: the external policy is about nothing.
                ("ext-local", &["here", ""], &[1, 2], &[], &[1, 2], true),
                ("int-local ext-local node-port", &["here", ""], &[1, 2], &[1], &[1, 2], true),
                ("ext-local node-port", &["here z:b", "z:a", "z:b"], &[2], &[1], &[1, 2], true),
                ("ext-local node-port", &["here z:a", "z:a", "z:b"], &[1, 2], &[1], &[1, 2], true),
                ("int-local", &["here z:b", "z:a"], &[], &[1], &[1], true),
            ],
        );
    }

    #[test]
    fn without_a_ready_endpoint_those_that_still_serve_are_used() {
        check(
            HERE,
            &[
                ("", &["leaving", "dying", "unready"], &[1], &[], &[1], true),
                ("", &["leaving", ""], &[2], &[], &[2], true),
                ("", &["dying", "unready"], &[], &[], &[], false),
                // Topology does not narrow the fallback.
                ("", &["leaving z:a", "leaving z:b"], &[1, 2], &[], &[1, 2], true),
                ("int-local", &["here leaving", "leaving"], &[], &[1], &[1], true),
                ("int-local", &["here dying", "leaving"], &[], &[], &[], true),
                ("int-local", &["here unready", "here dying"], &[], &[], &[], false),
                // Each list falls back on its own.
                ("ext-local node-port", &["here leaving", ""], &[2], &[1], &[1, 2], true),
                ("ext-local node-port", &["here leaving", "leaving"], &[1, 2], &[1], &[1, 2], true),
                ("ext-local node-port", &["here", "leaving"], &[1], &[1], &[1], true),
                ("ext-local node-port", &["here leaving z:a", "z:a", "z:b"], &[2], &[1], &[1, 2], true),
            ],
        );
    }

    /// publishNotReadyAddresses: the controller says ready, whatever else is so.
    #[test]
    fn a_terminating_endpoint_that_is_called_ready_is_ready() {
        let mut endpoints = [endpoint(1, "leaving here"), endpoint(2, "unready")];
        endpoints[0].conditions.ready = true;
        let found = select(&endpoints, &port("ext-local node-port"), HERE);
        assert_eq!((found.cluster.len(), found.local.len(), found.reachable.len()), (1, 1, 1));
    }
}
