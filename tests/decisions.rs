//! Small questions that the goldens do not put: objects in, rules out. What is expected is what kube-proxy 1.36 does by
//! its code and behaviour.md, said with each test.

mod world;

use serde_json::{Value, json};
use sluice::config::{DetectLocal, NodePortAddresses, RuleConfig};
use sluice::model::{Event, State};
use sluice::net::{Family, PerFamily, parse_cidr};
use sluice::render::{self, Context};
use sluice::ruleset::text;
use world::shop::{config, load_balancer, local, node, remote, service, slice, state};

/// The rules of `family` on node-a, line by line.
struct Rules(Vec<String>);

impl Rules {
    fn of(objects: &[Value], family: Family) -> Self {
        Self::with(&config(), objects, family)
    }

    fn with(config: &RuleConfig, objects: &[Value], family: Family) -> Self {
        let state = state(objects);
        let facts = world::facts();
        let context = Context::new(config, facts, &state, family);
        let desired = render::all(&context);
        let blocks: Vec<_> = desired.rules.iter().map(|(_, block)| block).collect();
        let mut out = String::new();
        text::save(&mut out, render::layout(config), &blocks).expect("text");
        Self(out.lines().map(str::to_owned).collect())
    }

    /// How many rules hold all of `words`.
    fn count(&self, words: &[&str]) -> usize {
        self.0.iter().filter(|line| line.starts_with("-A") && words.iter().all(|word| line.contains(word))).count()
    }

    #[track_caller]
    fn assert(&self, count: usize, words: &[&str]) {
        assert_eq!(self.count(words), count, "rules with {words:?} in\n{}", self.0.join("\n"));
    }
}

/// `GetClusterIPByFamily`: the n-th of `clusterIPs` belongs to the n-th of `ipFamilies`, and to no other.
#[test]
fn cluster_ips_belong_to_the_families_that_are_named() {
    let both = json!(["10.96.0.1", "fd00:10:96::1"]);
    let cases = [
        (json!({ "clusterIPs": both, "ipFamilies": ["IPv4", "IPv6"] }), [1, 1]),
        (json!({ "clusterIPs": both, "ipFamilies": ["IPv4"] }), [1, 0]),
        (json!({ "clusterIPs": both, "ipFamilies": [] }), [1, 0]),
        (json!({ "clusterIPs": ["10.96.0.1"], "ipFamilies": ["IPv4", "IPv6"] }), [1, 0]),
    ];
    for (spec, want) in cases {
        let have = Family::ALL.map(|family| Rules::of(&[service(&spec)], family).count(&["shop/web has no endpoints"]));
        assert_eq!(have, want, "{spec}");
    }
}

/// kube-proxy neither sorts nor merges what a Service lists: an address given twice has its rules twice.
#[test]
fn addresses_are_sorted_by_family_and_kept_as_listed() {
    let spec = json!({ "externalIPs": ["203.0.113.1", "2001:db8::1", "203.0.113.1", "nonsense"] });
    let rules = Rules::of(&[service(&spec), remote()], Family::Ipv4);
    rules.assert(2, &["external IP"]);
    rules.assert(2, &["-d 203.0.113.1/32", "KUBE-EXT-"]);
    let rules = Rules::of(&[load_balancer(&["198.51.100.1", "2001:db8::2"], &json!({})), remote()], Family::Ipv4);
    rules.assert(1, &["loadbalancer IP"]);
}

/// AllowServiceExternalIPs=false: no rule for them, but what they make of the Service stays (behaviour.md §2.2).
#[test]
fn external_ips_can_be_left_alone() {
    let config = RuleConfig { external_ips: false, ..config() };
    let spec = json!({ "externalIPs": ["203.0.113.1"], "externalTrafficPolicy": "Local" });
    for endpoints in [remote(), local(), slice("web-a", &json!([]))] {
        Rules::with(&config, &[service(&spec), endpoints], Family::Ipv4).assert(0, &["203.0.113.1"]);
    }
    Rules::with(&config, &[service(&spec), local()], Family::Ipv4).assert(1, &["-A KUBE-EXT-", "-j KUBE-SVL-"]);
}

/// The forms Go read up to 1.16, and its canonical way of writing them.
#[test]
fn addresses_are_written_canonically() {
    let spec = json!({ "clusterIP": "010.096.000.001", "clusterIPs": ["010.096.000.001"], "externalIPs": ["203.0.113.001"],
        "loadBalancerSourceRanges": [" 192.0.2.77/24 ", "010.0.0.0/8"] });
    let endpoint = slice("web-a", &json!([{ "addresses": ["10.244.002.001"], "nodeName": "node-b" }]));
    let rules = Rules::of(&[load_balancer(&["198.051.100.001"], &spec), endpoint], Family::Ipv4);
    rules.assert(1, &["-d 10.96.0.1/32", "-j KUBE-SVC-"]);
    rules.assert(1, &["-d 203.0.113.1/32"]);
    rules.assert(1, &["-d 198.51.100.1/32", "-j KUBE-FW-"]);
    rules.assert(1, &["-A KUBE-FW-", "-s 192.0.2.0/24"]);
    rules.assert(1, &["-A KUBE-FW-", "-s 10.0.0.0/8"]);
    rules.assert(1, &["--to-destination 10.244.2.1:8080"]);

    let spec = json!({ "clusterIP": "FD00:10:96::0:1", "clusterIPs": ["FD00:10:96::0:1"], "ipFamilies": ["IPv6"] });
    Rules::of(&[service(&spec)], Family::Ipv6).assert(1, &["-d fd00:10:96::1/128"]);
}

/// Policy Local needs traffic from outside to be about: a load balancer, node ports, or external IPs of any family. Of
/// which family they are decides only which family has them.
#[test]
fn external_policy_local_of_a_cluster_ip_service() {
    let spec = |ips: &[&str]| json!({ "externalTrafficPolicy": "Local", "externalIPs": ips });
    let rules = Rules::of(&[service(&spec(&["203.0.113.1"])), remote()], Family::Ipv4);
    rules.assert(1, &["-A KUBE-EXTERNAL-SERVICES", "has no local endpoints", "203.0.113.1", "DROP"]);
    rules.assert(1, &["route LOCAL traffic"]);
    let rules = Rules::of(&[service(&spec(&["2001:db8::1"])), local()], Family::Ipv4);
    rules.assert(0, &["KUBE-EXT-"]);
    rules.assert(0, &["KUBE-SVL-"]);
    rules.assert(1, &["cluster IP", "-j KUBE-SVC-"]);
}

/// Opened for load balancers with policy Local, and for nothing else (`NeedsHealthCheck`).
#[test]
fn health_check_ports_are_of_local_load_balancers() {
    for (kind, policy, want) in
        [("LoadBalancer", "Local", 1), ("LoadBalancer", "Cluster", 0), ("NodePort", "Local", 0), ("ClusterIP", "Local", 0)]
    {
        let spec = json!({ "type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": 32000 });
        Rules::of(&[service(&spec)], Family::Ipv4).assert(want, &["health check node port"]);
    }
}

/// What the status says counts, whatever type the Service has by now.
#[test]
fn ingress_addresses_count_for_every_type() {
    let object = load_balancer(&["198.51.100.1"], &json!({ "type": "NodePort" }));
    Rules::of(&[object, remote()], Family::Ipv4).assert(1, &["loadbalancer IP", "-j KUBE-EXT-"]);
}

/// A range of length zero, however it is written, admits everybody of its family.
#[test]
fn source_ranges_filter_their_own_family() {
    for (ranges, want) in [
        (json!(["192.0.2.0/24"]), 1),
        (json!(["192.0.2.0/24", "192.0.2.9/24"]), 1),
        (json!(["192.0.2.0/24", "0.0.0.0/0"]), 0),
        (json!(["192.0.2.0/24", "1.2.3.4/0"]), 0),
        (json!(["192.0.2.0/24", "::/0"]), 1),
        (json!(["2001:db8::/32"]), 0),
        (json!(["nonsense"]), 0),
    ] {
        let object = load_balancer(&["198.51.100.1"], &json!({ "loadBalancerSourceRanges": ranges }));
        Rules::of(&[object, remote()], Family::Ipv4).assert(want, &["KUBE-PROXY-FIREWALL", "DROP"]);
    }
}

/// The node's address is --bind-address, else the first internal one, else the first external one, else loopback.
#[test]
fn a_range_with_the_nodes_address_admits_the_load_balancers_own() {
    let internal = ("InternalIP", "172.31.0.11");
    let external = ("ExternalIP", "192.0.2.11");
    let hostname = ("Hostname", "192.0.2.11");
    for (addresses, bind, range, want) in [
        (&[internal][..], None, "172.31.0.0/24", 1),
        (&[external, internal], None, "172.31.0.0/24", 1),
        (&[external, internal], None, "192.0.2.0/24", 0),
        (&[external], None, "192.0.2.0/24", 1),
        (&[hostname], None, "192.0.2.0/24", 0),
        (&[], None, "127.0.0.0/8", 1),
        (&[internal], Some("203.0.113.7"), "172.31.0.0/24", 0),
        (&[internal], Some("203.0.113.7"), "203.0.113.0/24", 1),
        (&[internal], Some("2001:db8::7"), "172.31.0.0/24", 1),
    ] {
        let config = RuleConfig { bind_address: bind.and_then(|b| b.parse().ok()), ..config() };
        let object = load_balancer(&["198.51.100.1"], &json!({ "loadBalancerSourceRanges": [range] }));
        let rules = Rules::with(&config, &[object, remote(), node(addresses)], Family::Ipv4);
        rules.assert(want, &["-A KUBE-FW-", "-s 198.51.100.1/32"]);
    }
}

/// Slices meet a service port by name and protocol; only the first address of an endpoint counts.
#[test]
fn slice_ports_are_matched_by_name_and_protocol() {
    let with_ports = |ports: Value| {
        let mut slice = slice("web-a", &json!([{ "addresses": ["10.244.2.1", "10.244.2.2"] }]));
        slice["ports"] = ports;
        Rules::of(&[service(&json!({})), slice], Family::Ipv4)
    };
    with_ports(json!([{ "name": "", "protocol": "TCP", "port": 8080 }])).assert(1, &["--to-destination"]);
    // The API server's defaults for what a manifest leaves out: no name is the empty one, no protocol is TCP.
    with_ports(json!([{ "port": 8080 }])).assert(1, &["--to-destination"]);
    for other in [
        json!([]),
        json!([{ "name": "http", "protocol": "TCP", "port": 8080 }]),
        json!([{ "name": "", "protocol": "UDP", "port": 8080 }]),
        json!([{ "name": "", "protocol": "TCP" }]),
        json!([{ "name": "", "protocol": "TCP", "port": 0 }]),
    ] {
        with_ports(other).assert(0, &["--to-destination"]);
    }
}

/// The later of two with one address counts, unless it is terminating: within a slice and, by their names, over slices.
#[test]
fn an_address_given_twice_is_one_endpoint() {
    let serving = json!({ "addresses": ["10.244.2.1"] });
    let leaving = json!({ "addresses": ["10.244.2.1"], "conditions": { "ready": false, "serving": true, "terminating": true } });
    let unready = json!({ "addresses": ["10.244.2.1"], "conditions": { "ready": false } });
    for (first, second, want) in [
        (&serving, &leaving, 1),
        (&leaving, &serving, 1),
        (&serving, &unready, 0),
        (&unready, &serving, 1),
        (&leaving, &unready, 0),
    ] {
        let in_one = [service(&json!({})), slice("web-a", &json!([first, second]))];
        Rules::of(&in_one, Family::Ipv4).assert(want, &["--to-destination"]);
        let in_two = [service(&json!({})), slice("web-a", &json!([first])), slice("web-b", &json!([second]))];
        Rules::of(&in_two, Family::Ipv4).assert(want, &["--to-destination"]);
    }
}

/// Endpoints of any condition are counted, each address once, by service port and family.
#[test]
fn a_cluster_is_large_above_a_thousand_endpoints() {
    let endpoints = |n: u16| {
        let conditions = json!({ "ready": false });
        let address = |i| format!("10.244.{}.{}", i / 200, i % 200 + 1);
        (0..n).map(|i| json!({ "addresses": [address(i)], "conditions": conditions })).collect::<Vec<_>>()
    };
    let with = |n: u16, ports: Value| {
        let mut hidden = slice("many-a", &json!(endpoints(n)));
        hidden["metadata"]["labels"]["kubernetes.io/service-name"] = json!("many");
        let mut many = service(&json!({ "ports": ports }));
        many["metadata"]["name"] = json!("many");
        Rules::of(&[service(&json!({})), remote(), many, hidden.clone(), hidden], Family::Ipv4).count(&["shop/web ->"])
    };
    let one = json!([{ "protocol": "TCP", "port": 80 }]);
    let unmatched = json!([{ "name": "other", "protocol": "TCP", "port": 80 }]);
    assert_eq!(with(999, one.clone()), 1, "exactly 1000 with the one of web");
    assert_eq!(with(1000, one), 0, "1001");
    assert_eq!(with(1200, unmatched), 1, "of no service port");
}

/// What a range of --nodeport-addresses holds gets a rule; loopback only where node ports can work there.
#[test]
fn node_ports_on_chosen_addresses() {
    let last = "must be the last rule";
    let with = |ranges: &[&str], family| {
        let ranges = ranges.iter().filter_map(|range| parse_cidr(range)).collect();
        Rules::with(&RuleConfig { node_port_addresses: NodePortAddresses::Within(ranges), ..config() }, &[], family)
    };
    for (ranges, want) in [
        (&["172.31.0.0/24"][..], 1),
        (&["172.31.0.0/24", "172.31.0.11/32"], 1),
        (&["172.31.0.0/24", "127.0.0.0/8"], 2),
        (&["172.31.0.0/24", "127.0.0.1/32"], 2),
        (&["203.0.113.0/24"], 0),
    ] {
        let rules = with(ranges, Family::Ipv4);
        rules.assert(want, &[last, "-d "]);
        rules.assert(0, &[last, "addrtype"]);
        let localhost = usize::from(ranges.iter().any(|range| range.starts_with("127")));
        rules.assert(localhost, &["block incoming localnet connections"]);
        with(ranges, Family::Ipv6).assert(1, &[last, "! -d ::1/128", "--dst-type LOCAL"]);
    }
    with(&["172.31.0.0/24", "0.0.0.0/0"], Family::Ipv4).assert(1, &[last, "--dst-type LOCAL"]);
    let rules = with(&["::1/128", "fe80::/10", "fd31::/64"], Family::Ipv6);
    rules.assert(0, &[last, "-d ::1/128"]);
    rules.assert(2, &[last, "-d "]);
    with(&["::1/128"], Family::Ipv6).assert(0, &[last]);
}

/// `primary`: the node's address of each family; a family without one accepts on all.
#[test]
fn node_ports_on_the_primary_address() {
    let config = RuleConfig { node_port_addresses: NodePortAddresses::Primary, ..config() };
    let of_node = [node(&[("InternalIP", "172.31.0.11"), ("InternalIP", "192.0.2.11")])];
    let rules = Rules::with(&config, &of_node, Family::Ipv4);
    rules.assert(1, &["must be the last rule", "-d 172.31.0.11/32"]);
    rules.assert(1, &["must be the last rule"]);
    rules.assert(0, &["block incoming localnet connections"]);
    Rules::with(&config, &of_node, Family::Ipv6).assert(1, &["must be the last rule", "--dst-type LOCAL"]);
    Rules::with(&config, &[], Family::Ipv4).assert(1, &["must be the last rule", "--dst-type LOCAL"]);
}

/// Where health check ports listen: a family without a range of its own keeps all its addresses, the other does not.
#[test]
fn node_port_addresses_of_each_family() {
    let with = |ranges: &[&str]| {
        let ranges = ranges.iter().filter_map(|range| parse_cidr(range)).collect();
        let config = RuleConfig { node_port_addresses: NodePortAddresses::Within(ranges), ..config() };
        let mut state = State::new("node-a");
        let addresses = ["127.0.0.1", "172.31.0.11", "::1", "fd31::b"];
        state.apply(Event::Addresses(addresses.map(|a| a.parse().expect("an address")).to_vec()));
        let found = render::node_port_addresses(&config, &state, &Family::ALL);
        found.map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(with(&[]), None);
    assert_eq!(with(&["0.0.0.0/0", "::/0"]), None);
    assert_eq!(with(&["172.31.0.0/24"]).as_deref(), Some("172.31.0.11 ::"));
    assert_eq!(with(&["fd31::/64"]).as_deref(), Some("0.0.0.0 fd31::b"));
    assert_eq!(with(&["172.31.0.0/24", "fd31::/64"]).as_deref(), Some("172.31.0.11 fd31::b"));
    assert_eq!(with(&["203.0.113.0/24", "fd31::/64"]).as_deref(), Some("fd31::b"));
}

/// A node whose zone has an empty name is in none. (The API refuses such hints; a file can have them.)
#[test]
fn an_empty_zone_is_no_zone() {
    let mut node = node(&[]);
    node["metadata"]["labels"] = json!({ "topology.kubernetes.io/zone": "" });
    let hinted = |ip: &str, zone: &str| json!({ "addresses": [ip], "hints": { "forZones": [{ "name": zone }] } });
    let slice = slice("web-a", &json!([hinted("10.244.2.1", ""), hinted("10.244.2.2", "zone-b")]));
    Rules::of(&[node, service(&json!({})), slice], Family::Ipv4).assert(2, &["--to-destination"]);
}

/// Without a detector nothing is masqueraded for its source, unless everything is.
#[test]
fn masquerading_without_a_way_to_tell_pods() {
    let nothing = RuleConfig { detect_local: DetectLocal::ClusterCidr(PerFamily::default()), ..config() };
    let spec = json!({ "type": "NodePort", "externalTrafficPolicy": "Local",
        "ports": [{ "protocol": "TCP", "port": 80, "nodePort": 30080 }] });
    let objects = [service(&spec), local()];
    let rules = Rules::with(&nothing, &objects, Family::Ipv4);
    rules.assert(0, &["-A KUBE-SVC-", "KUBE-MARK-MASQ"]);
    rules.assert(0, &["pod traffic"]);
    let all = RuleConfig { masquerade_all: true, ..nothing };
    Rules::with(&all, &objects, Family::Ipv4).assert(1, &["-A KUBE-SVC-", "cluster IP", "KUBE-MARK-MASQ"]);
}

/// Both policies Local, reachable from outside: the cluster's endpoints are still there for pods and the node itself.
#[test]
fn both_policies_local() {
    let spec = json!({ "type": "NodePort", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
        "ports": [{ "protocol": "TCP", "port": 80, "nodePort": 30080 }] });
    let both = slice("web-a", &json!([{ "addresses": ["10.244.1.1"], "nodeName": "node-a" }, { "addresses": ["10.244.2.1"] }]));
    let rules = Rules::of(&[service(&spec), both], Family::Ipv4);
    rules.assert(1, &["cluster IP", "-A KUBE-SERVICES", "-j KUBE-SVL-"]);
    rules.assert(1, &["-A KUBE-SVL-", "cluster IP", "KUBE-MARK-MASQ"]);
    rules.assert(0, &["-A KUBE-SVC-", "KUBE-MARK-MASQ"]);
    rules.assert(2, &["--to-destination"]);
    rules.assert(1, &["pod traffic", "-j KUBE-SVC-"]);
    let rules = Rules::of(&[service(&spec), remote()], Family::Ipv4);
    rules.assert(1, &["-A KUBE-SERVICES", "has no local endpoints", "DROP"]);
    rules.assert(1, &["-A KUBE-EXTERNAL-SERVICES", "has no local endpoints", "DROP"]);
    rules.assert(0, &["-A KUBE-EXT-", "-j KUBE-SVL-"]);
}

/// Labels are there or not; what they say does not matter (the watch's selectors).
#[test]
fn labels_hide_objects_by_being_there() {
    for value in ["", "other-proxy"] {
        let mut hidden = service(&json!({}));
        hidden["metadata"]["labels"] = json!({ "service.kubernetes.io/service-proxy-name": value });
        Rules::of(&[hidden, remote()], Family::Ipv4).assert(0, &["shop/web"]);
        let mut slice = remote();
        slice["metadata"]["labels"]["service.kubernetes.io/headless"] = json!(value);
        Rules::of(&[service(&json!({})), slice], Family::Ipv4).assert(1, &["has no endpoints"]);
    }
    let mut nobodys = remote();
    nobodys["metadata"]["labels"] = json!({});
    Rules::of(&[service(&json!({})), nobodys], Family::Ipv4).assert(1, &["has no endpoints"]);
    for skipped in [json!({ "type": "ExternalName" }), json!({ "clusterIP": "None" }), json!({ "clusterIP": "" })] {
        Rules::of(&[service(&skipped), remote()], Family::Ipv4).assert(0, &["shop/web"]);
    }
}

/// Being deleted is not being gone.
#[test]
fn a_service_that_is_being_deleted_is_served() {
    let mut object = service(&json!({}));
    object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    Rules::of(&[object, remote()], Family::Ipv4).assert(1, &["cluster IP", "-j KUBE-SVC-"]);
}

/// Affinity lists are checked before the dice are thrown; a timeout left out is the API's default.
#[test]
fn affinity_comes_before_the_dice() {
    let two = slice("web-a", &json!([{ "addresses": ["10.244.2.1"] }, { "addresses": ["10.244.2.2"] }]));
    let rules = Rules::of(&[service(&json!({ "sessionAffinity": "ClientIP" })), two], Family::Ipv4);
    let chain: Vec<_> = rules.0.iter().filter(|line| line.starts_with("-A KUBE-SVC-")).collect();
    let kinds: Vec<_> = chain.iter().map(|line| (line.contains("--seconds 10800 --reap"), line.contains("statistic"))).collect();
    assert_eq!(kinds, [(false, false), (true, false), (true, false), (false, true), (false, false)], "{chain:#?}");
    rules.assert(2, &["-m recent --set", "--to-destination"]);
}
