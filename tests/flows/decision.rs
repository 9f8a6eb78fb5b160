//! Which flows are stale after a change: each test changes a cluster whose flows were all put right.

use super::*;

const STALE: bool = true;
const KEPT: bool = false;

/// A cluster whose flows were all put right, until something changes.
struct Scene {
    state: State,
    ledger: Ledger,
    own: OwnAddresses,
}

impl Scene {
    fn new() -> Self {
        Self::of(Family::Ipv4, true)
    }

    fn of(family: Family, external_ips: bool) -> Self {
        let addresses = ["172.31.0.11", "10.244.0.254", "fd31::b"].map(|text| text.parse().expect("an address"));
        let own = OwnAddresses { addresses: HashSet::from(addresses), loopback: true };
        Self { state: State::new("node-a"), ledger: Ledger::new(family, external_ips), own }
    }

    fn apply(&mut self, event: Event) {
        let changes = self.state.apply(event);
        changes.services.iter().for_each(|key| self.ledger.note(&self.state, key));
    }

    fn service(&mut self, name: &str, service: impl Into<Option<Service>>) {
        self.apply(Event::Service(key("shop", name), service.into()));
    }

    fn endpoints(&mut self, name: &str, endpoints: Vec<SliceEndpoint>) {
        self.apply(Event::Slice(key("shop", &format!("{name}-x")), Some(udp_slice(name, endpoints))));
    }

    /// One Service, number 1, whose flows have been put right.
    fn with_web(endpoints: &[u8]) -> Self {
        let mut scene = Self::new();
        scene.service("web", dns(1));
        scene.endpoints("web", hosts(endpoints));
        scene.ledger.settled();
        scene
    }

    /// By whom is asked and who answers.
    #[track_caller]
    fn expect(&self, rows: &[(&str, &str, bool)]) {
        for (asked, answers, expected) in rows {
            let flow = Ends { asked: end(asked), answers: end(answers) };
            let common = self.ledger.common();
            let outside = common.address.is_some_and(|address| address != flow.asked.ip())
                || common.port.is_some_and(|port| port != flow.asked.port());
            assert!(!(outside && *expected), "{asked} is not within {common:?}");
            let fate = |stale| if stale { "stale" } else { "kept" };
            let stale = self.ledger.is_stale(flow, &self.own);
            assert_eq!(fate(stale), fate(*expected), "a flow to {asked} that {answers} answers");
        }
    }
}

#[test]
fn flows_to_an_endpoint_that_went_away_are_stale_through_every_door() {
    let mut scene = Scene::with_web(&[1, 2]);
    scene.expect(&[("10.96.0.1:53", "10.244.0.7:5353", KEPT)]);
    scene.endpoints("web", hosts(&[2]));
    scene.expect(&[
        ("10.96.0.1:53", "10.244.0.1:5353", STALE),
        ("203.0.113.1:53", "10.244.0.1:5353", STALE),
        ("198.51.100.1:53", "10.244.0.1:5353", STALE),
        ("172.31.0.11:30001", "10.244.0.1:5353", STALE),
        ("10.244.0.254:30001", "10.244.0.1:5353", STALE),
        ("127.0.0.1:30001", "10.244.0.1:5353", STALE),
        ("127.0.0.53:30001", "10.244.0.1:5353", STALE),
        // The endpoint that stays, but not another port of it.
        ("10.96.0.1:53", "10.244.0.2:5353", KEPT),
        ("172.31.0.11:30001", "10.244.0.2:5353", KEPT),
        ("10.96.0.1:53", "10.244.0.2:5354", STALE),
        // Not translated, though the rules take all that comes to their doors.
        ("10.96.0.1:53", "10.96.0.1:53", STALE),
        ("172.31.0.11:30001", "172.31.0.11:30001", STALE),
    ]);
}

#[test]
fn flows_that_are_not_the_services_are_kept() {
    let mut scene = Scene::with_web(&[1]);
    scene.service("other", dns(2));
    scene.endpoints("other", hosts(&[1]));
    scene.ledger.settled();
    scene.endpoints("web", hosts(&[3]));
    scene.expect(&[
        ("10.96.0.1:53", "10.244.0.1:5353", STALE),
        // Another Service with the same endpoint, or with one of its own that is long gone.
        ("10.96.0.2:53", "10.244.0.1:5353", KEPT),
        ("10.96.0.2:53", "10.244.0.9:5353", KEPT),
        ("172.31.0.11:30002", "10.244.0.1:5353", KEPT),
        // Another port of the same address, and one where there is no Service at all.
        ("10.96.0.1:54", "10.244.0.1:5353", KEPT),
        ("10.96.0.1:80", "10.244.0.1:5353", KEPT),
        ("10.96.0.77:53", "10.244.0.1:5353", KEPT),
        // Straight to the endpoint; a name server outside, behind somebody's translation and without.
        ("10.244.0.1:5353", "10.244.0.1:5353", KEPT),
        ("192.0.2.1:53", "192.0.2.1:53", KEPT),
        ("192.0.2.1:53", "192.0.2.2:53", KEPT),
        // The same node port of another host, as a pod of this node or a client behind it asks it.
        ("172.31.0.12:30001", "172.31.0.12:30001", KEPT),
        ("172.31.0.12:30001", "10.244.0.1:5353", KEPT),
        ("192.0.2.1:30001", "192.0.2.1:30001", KEPT),
        // Another port of this node; the port of the Service is none of the node's.
        ("172.31.0.11:30003", "172.31.0.11:30003", KEPT),
        ("172.31.0.11:53", "172.31.0.11:53", KEPT),
    ]);
}

#[test]
fn node_ports_are_of_the_addresses_that_accept_them() {
    let mut scene = Scene::with_web(&[1]);
    scene.own = OwnAddresses { addresses: HashSet::from([IpAddr::from([172, 31, 0, 11])]), loopback: false };
    scene.endpoints("web", hosts(&[2]));
    scene.expect(&[
        ("172.31.0.11:30001", "10.244.0.1:5353", STALE),
        ("10.244.0.254:30001", "10.244.0.254:30001", KEPT),
        ("127.0.0.1:30001", "127.0.0.1:30001", KEPT),
    ]);
}

#[test]
fn what_serves_is_kept_whatever_else_it_is() {
    let mut scene = Scene::with_web(&[1, 2, 3, 4]);
    let with = |host, ready, serving, terminating| {
        let conditions = Conditions { ready, serving, terminating };
        SliceEndpoint { conditions, ..endpoint([10, 244, 0, host].into()) }
    };
    scene.endpoints(
        "web",
        vec![with(1, false, true, true), with(2, false, true, false), with(3, false, false, true), with(4, true, true, false)],
    );
    scene.expect(&[
        ("10.96.0.1:53", "10.244.0.1:5353", KEPT),
        ("10.96.0.1:53", "10.244.0.2:5353", KEPT),
        ("10.96.0.1:53", "10.244.0.3:5353", STALE),
        ("10.96.0.1:53", "10.244.0.4:5353", KEPT),
    ]);
}

#[test]
fn the_first_endpoint_takes_over_what_went_untranslated() {
    let mut scene = Scene::with_web(&[]);
    scene.endpoints("web", hosts(&[1]));
    scene.expect(&[
        ("10.96.0.1:53", "10.96.0.1:53", STALE),
        ("172.31.0.11:30001", "172.31.0.11:30001", STALE),
        ("172.31.0.12:30001", "172.31.0.12:30001", KEPT),
        ("10.96.0.1:53", "10.244.0.1:5353", KEPT),
    ]);
}

#[test]
fn the_last_endpoint_leaves_no_flow_behind() {
    let mut scene = Scene::with_web(&[1]);
    scene.endpoints("web", hosts(&[]));
    scene.expect(&[
        ("10.96.0.1:53", "10.244.0.1:5353", STALE),
        ("172.31.0.11:30001", "10.244.0.1:5353", STALE),
        ("10.96.0.2:53", "10.244.0.1:5353", KEPT),
    ]);
}

/// What it translated goes with it; what others do with the same address and port stays.
const GONE: [(&str, &str, bool); 8] = [
    ("10.96.0.1:53", "10.244.0.1:5353", STALE),
    ("10.96.0.1:53", "10.244.0.2:5353", STALE),
    ("172.31.0.11:30001", "10.244.0.1:5353", STALE),
    ("203.0.113.1:53", "10.244.0.1:5353", STALE),
    ("10.96.0.1:53", "10.96.0.1:53", KEPT),
    ("172.31.0.11:30001", "172.31.0.11:30001", KEPT),
    ("203.0.113.1:53", "10.88.0.2:53", KEPT),
    ("172.31.0.12:30001", "10.244.0.1:5353", KEPT),
];

#[test]
fn a_service_that_goes_takes_its_flows_with_it() {
    let mut scene = Scene::with_web(&[1, 2]);
    scene.service("web", None);
    scene.expect(&GONE);
    // Its endpoints may go first, before anything is done about it.
    let mut scene = Scene::with_web(&[1, 2]);
    scene.endpoints("web", hosts(&[2]));
    scene.endpoints("web", hosts(&[]));
    scene.service("web", None);
    scene.expect(&GONE);
    scene.ledger.settled();
    scene.expect(&GONE.map(|(asked, answers, _)| (asked, answers, KEPT)));
}

/// Asking it and asking the Service were the same, and it is still there to be asked.
#[test]
fn a_flow_that_led_where_it_was_sent_to_is_nobodys() {
    let mut scene = Scene::new();
    let mut service = dns(1);
    service.ports[1].port = 5353;
    service.families.v4.as_mut().expect("IPv4").external_ips = vec![[172, 31, 0, 11].into()];
    scene.service("web", service);
    scene.endpoints("web", vec![endpoint([172, 31, 0, 11].into())]);
    scene.expect(&[("172.31.0.11:5353", "172.31.0.11:5353", KEPT)]);
    scene.ledger.settled();
    scene.service("web", None);
    scene.expect(&[("172.31.0.11:5353", "172.31.0.11:5353", KEPT), ("10.96.0.1:5353", "172.31.0.11:5353", STALE)]);
}

#[test]
fn a_service_that_changes_leaves_its_old_doors() {
    let mut scene = Scene::with_web(&[1, 2]);
    let mut tcp = dns(1);
    tcp.ports[1].protocol = Protocol::Tcp;
    scene.service("web", tcp);
    scene.expect(&GONE);

    let mut scene = Scene::with_web(&[1, 2]);
    let mut moved = dns(1);
    (moved.ports[1].port, moved.ports[1].node_port) = (54, 30_009);
    scene.service("web", moved);
    scene.expect(&GONE);
    scene.expect(&[("10.96.0.1:54", "10.244.0.1:5353", KEPT), ("10.96.0.1:54", "10.96.0.1:54", STALE)]);

    // An address less: the others are as they were.
    let mut scene = Scene::with_web(&[1, 2]);
    let mut less = dns(1);
    less.families.v4.as_mut().expect("IPv4").external_ips.clear();
    scene.service("web", less);
    scene.expect(&[
        ("203.0.113.1:53", "10.244.0.1:5353", STALE),
        ("10.96.0.1:53", "10.244.0.1:5353", KEPT),
        ("10.96.0.1:53", "10.244.0.9:5353", KEPT),
    ]);
}

#[test]
fn a_door_that_another_service_takes_over_leads_where_that_does() {
    let mut scene = Scene::with_web(&[1]);
    scene.service("web", None);
    scene.service("next", dns(1));
    scene.endpoints("next", hosts(&[2]));
    scene.expect(&[
        ("10.96.0.1:53", "10.244.0.1:5353", STALE),
        ("10.96.0.1:53", "10.244.0.2:5353", KEPT),
        ("172.31.0.11:30001", "10.244.0.1:5353", STALE),
        ("172.31.0.11:30001", "10.244.0.2:5353", KEPT),
    ]);
}

#[test]
fn a_door_of_two_services_leads_to_the_endpoints_of_both() {
    let mut scene = Scene::with_web(&[1]);
    let mut other = dns(2);
    other.families.v4.as_mut().expect("IPv4").external_ips = vec![[203, 0, 113, 1].into()];
    scene.service("other", other);
    scene.endpoints("other", hosts(&[2]));
    scene.ledger.settled();
    scene.endpoints("web", hosts(&[3]));
    let rows = |third| {
        let fates = [("10.244.0.1:5353", STALE), ("10.244.0.2:5353", KEPT), ("10.244.0.3:5353", third)];
        fates.map(|(answers, expected)| ("203.0.113.1:53", answers, expected))
    };
    scene.expect(&rows(KEPT));
    scene.service("web", None);
    scene.expect(&rows(STALE));
}

/// The rules look at addresses before node ports.
#[test]
fn an_address_and_port_comes_before_a_node_port() {
    let mut scene = Scene::with_web(&[1]);
    let mut other = dns(2);
    other.ports[1].port = 30_001;
    other.families.v4.as_mut().expect("IPv4").external_ips = vec![[172, 31, 0, 11].into()];
    scene.service("other", other);
    scene.endpoints("other", hosts(&[2]));
    scene.ledger.settled();
    scene.endpoints("web", hosts(&[3]));
    scene.expect(&[
        ("172.31.0.11:30001", "10.244.0.2:5353", KEPT),
        ("172.31.0.11:30001", "10.244.0.1:5353", KEPT),
        ("10.244.0.254:30001", "10.244.0.1:5353", STALE),
    ]);
}

#[test]
fn ports_of_one_address_have_endpoints_of_their_own() {
    let mut scene = Scene::new();
    let mut service = dns(1);
    service.ports.push(PortSpec { name: "log".into(), protocol: Protocol::Udp, port: 514, node_port: 0 });
    scene.service("web", service);
    let mut slice = udp_slice("web", hosts(&[1]));
    slice.ports.push(SlicePort { name: "log".into(), protocol: Protocol::Udp, port: 5514 });
    scene.apply(Event::Slice(key("shop", "web-x"), Some(slice.clone())));
    scene.ledger.settled();
    slice.ports.pop();
    slice.ports.push(SlicePort { name: "log".into(), protocol: Protocol::Udp, port: 6514 });
    scene.apply(Event::Slice(key("shop", "web-x"), Some(slice)));
    scene.expect(&[
        ("10.96.0.1:514", "10.244.0.1:5514", STALE),
        ("10.96.0.1:514", "10.244.0.1:6514", KEPT),
        ("10.96.0.1:53", "10.244.0.1:5353", KEPT),
        // Stale it may be, but through a port that did not change.
        ("10.96.0.1:53", "10.244.0.1:5514", KEPT),
    ]);
}

/// The API server forbids it; a file may say it.
#[test]
fn ports_with_the_same_number_lead_to_the_endpoints_of_both() {
    let mut scene = Scene::new();
    let mut service = dns(1);
    service.ports.push(PortSpec { name: "twin".into(), ..service.ports[1].clone() });
    scene.service("web", service);
    let mut slice = udp_slice("web", hosts(&[1]));
    slice.ports.push(SlicePort { name: "twin".into(), protocol: Protocol::Udp, port: 6353 });
    scene.apply(Event::Slice(key("shop", "web-x"), Some(slice)));
    scene.expect(&[
        ("10.96.0.1:53", "10.244.0.1:5353", KEPT),
        ("10.96.0.1:53", "10.244.0.1:6353", KEPT),
        ("172.31.0.11:30001", "10.244.0.1:6353", KEPT),
        ("10.96.0.1:53", "10.244.0.1:5514", STALE),
    ]);
}

#[test]
fn each_family_has_its_flows() {
    let mut scene = Scene::of(Family::Ipv6, true);
    scene.service("web", dns(1));
    let v6 = |hosts: &[u16]| {
        let address = |host: &u16| endpoint([0xfd00, 0x244, 0, 0, 0, 0, 0, *host].into());
        EndpointSlice { family: Family::Ipv6, ..udp_slice("web", hosts.iter().map(address).collect()) }
    };
    scene.apply(Event::Slice(key("shop", "web-6"), Some(v6(&[1, 2]))));
    scene.ledger.settled();
    scene.endpoints("web", hosts(&[1]));
    assert!(!scene.ledger.is_due(), "an IPv4 endpoint is no business of IPv6");
    scene.apply(Event::Slice(key("shop", "web-6"), Some(v6(&[2]))));
    scene.expect(&[
        ("[fd00:96::1]:53", "[fd00:244::1]:5353", STALE),
        ("[fd00:96::1]:53", "[fd00:244::2]:5353", KEPT),
        ("[fd31::b]:30001", "[fd00:244::1]:5353", STALE),
        ("[fd31::c]:30001", "[fd31::c]:30001", KEPT),
        ("10.96.0.1:53", "10.244.0.9:5353", KEPT),
    ]);
}

#[test]
fn a_service_with_one_door_narrows_the_search() {
    let mut scene = Scene::new();
    let mut inner = dns(1);
    inner.ports[1].node_port = 0;
    inner.families.v4.as_mut().expect("IPv4").external_ips.clear();
    inner.families.v4.as_mut().expect("IPv4").load_balancer_vips.clear();
    scene.service("web", inner.clone());
    let (address, port) = (Some([10, 96, 0, 1].into()), Some(53));
    assert_eq!(scene.ledger.common(), Common { address, port });
    inner.families.v4.as_mut().expect("IPv4").external_ips = vec![[203, 0, 113, 1].into()];
    scene.service("web", inner.clone());
    assert_eq!(scene.ledger.common(), Common { address: None, port });
    inner.ports[1].node_port = 30_001;
    scene.service("web", inner);
    assert_eq!(scene.ledger.common(), Common::default());
    scene.ledger.settled();
    assert_eq!(scene.ledger.common(), Common::default());
    let mut other = dns(2);
    other.ports[1].node_port = 53;
    scene.service("other", other);
    assert_eq!(scene.ledger.common(), Common { address: None, port });
}

#[test]
fn at_the_start_nothing_is_known_to_be_right() {
    let mut scene = Scene::new();
    scene.endpoints("web", hosts(&[1]));
    assert!(!scene.ledger.is_due(), "endpoints without a Service have no flows");
    scene.service("web", dns(1));
    scene.expect(&[
        ("10.96.0.1:53", "10.244.0.9:5353", STALE),
        ("172.31.0.11:30001", "10.244.0.9:5353", STALE),
        ("10.96.0.1:53", "10.244.0.1:5353", KEPT),
        ("10.96.0.2:53", "10.244.0.9:5353", KEPT),
    ]);
}

#[test]
fn external_ips_that_are_switched_off_are_no_doors() {
    let mut scene = Scene::of(Family::Ipv4, false);
    scene.service("web", dns(1));
    scene.endpoints("web", hosts(&[1]));
    scene.expect(&[
        ("203.0.113.1:53", "203.0.113.1:53", KEPT),
        ("198.51.100.1:53", "198.51.100.1:53", STALE),
        ("10.96.0.1:53", "10.96.0.1:53", STALE),
    ]);
}

#[test]
fn what_changes_nothing_for_udp_is_no_change() {
    let mut scene = Scene::with_web(&[1]);
    let mut service = dns(1);
    service.ports[0].port = 8080;
    service.affinity_seconds = Some(10);
    service.internal_policy_local = true;
    scene.service("web", service);
    assert!(!scene.ledger.is_due());
    // An endpoint that drains still serves; one that never did is not there.
    let mut draining = hosts(&[1]);
    draining[0].conditions = Conditions { ready: false, serving: true, terminating: true };
    scene.endpoints("web", draining);
    assert!(!scene.ledger.is_due());
    scene.service("tcp", world::service([10, 96, 0, 9].into()));
    scene.apply(Event::Slice(key("shop", "tcp-x"), Some(world::slice(&key("shop", "tcp"), hosts(&[5])))));
    assert!(!scene.ledger.is_due());
}
