//! Small questions about ipvs mode that the goldens do not put: objects in; virtual servers, set members, addresses and
//! rules out. What is expected is kube-proxy 1.36's by behaviour.md §4, or a deliberate difference, said with each test.

mod world;

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};
use sluice::config::{DetectLocal, IpvsConfig, Mode, NodePortAddresses, RuleConfig};
use sluice::model::ObjectKey;
use sluice::net::{Family, PerFamily, Scheduler, parse_cidr};
use sluice::render::ipvs::{Filled, SetId};
use sluice::render::{self, Context};
use sluice::ruleset::{node_text, text};
use world::shop::{lay_over, load_balancer, local, node, remote, service, slice, state};

fn config() -> RuleConfig {
    RuleConfig { mode: Mode::Ipvs, ..world::shop::config() }
}

fn with_scheduler(scheduler: Scheduler) -> RuleConfig {
    RuleConfig { ipvs: IpvsConfig { scheduler, ..IpvsConfig::default() }, ..config() }
}

fn node_ports_within(ranges: &[&str]) -> RuleConfig {
    let ranges = ranges.iter().filter_map(|range| parse_cidr(range)).collect();
    RuleConfig { node_port_addresses: NodePortAddresses::Within(ranges), ..config() }
}

/// All that one family of node-a should have, line by line, as the tools print it.
struct Wanted(Vec<String>);

impl Wanted {
    fn of(objects: &[Value]) -> Self {
        Self::with(&config(), objects, Family::Ipv4)
    }

    fn with(config: &RuleConfig, objects: &[Value], family: Family) -> Self {
        let state = state(objects);
        let context = Context::new(config, world::facts(), &state, family);
        let desired = render::all(&context);
        let mut out = String::new();
        let blocks: Vec<_> = desired.rules.iter().map(|(_, block)| block).collect();
        text::save(&mut out, render::layout(config), &blocks).expect("text");
        let balanced = desired.balanced;
        let servers = balanced.servers.iter().map(|wanted| (&wanted.at, &wanted.server, wanted.real_servers.as_slice()));
        node_text::services(&mut out, servers).expect("text");
        let sets = SetId::ALL.map(|set| {
            let members = balanced.members.iter().filter(|(of, _)| *of == set).map(|&(_, member)| member);
            (set.spec(family, 0), members.collect::<BTreeSet<_>>())
        });
        node_text::sets(&mut out, sets).expect("text");
        node_text::addresses(&mut out, &balanced.addresses).expect("text");
        Self(out.lines().map(str::to_owned).collect())
    }

    /// The lines that hold all of `words`.
    fn lines(&self, words: &[&str]) -> Vec<&str> {
        self.0.iter().map(String::as_str).filter(|line| words.iter().all(|word| line.contains(word))).collect()
    }

    #[track_caller]
    fn assert(&self, count: usize, words: &[&str]) {
        assert_eq!(self.lines(words).len(), count, "lines with {words:?} in\n{}", self.0.join("\n"));
    }
}

const DROPS: [&str; 2] = ["-A KUBE-PROXY-FIREWALL", "has no local endpoints"];

/// A node port of policy Local, and an address from outside.
fn outside_local() -> Value {
    load_balancer(
        &["198.51.100.1"],
        &json!({ "externalTrafficPolicy": "Local", "externalIPs": ["203.0.113.1"],
        "ports": [{ "protocol": "TCP", "port": 80, "nodePort": 30080 }] }),
    )
}

/// Deliberate: kube-proxy's ipvs mode sends what comes from outside to endpoints elsewhere, its iptables mode drops it.
/// Pods and the node itself reach all endpoints in either.
#[test]
fn external_policy_local_without_local_endpoints_drops_what_is_not_from_pods() {
    let wanted = Wanted::of(&[outside_local(), remote()]);
    let rule = |address: &str, port: u16| {
        format!(
            "-A KUBE-PROXY-FIREWALL ! -s 10.244.0.0/16 -d {address}/32 -p tcp -m conntrack --ctstate NEW \
             -m comment --comment \"shop/web has no local endpoints\" -m tcp --dport {port} -j DROP"
        )
    };
    let addresses = [("203.0.113.1", 80), ("198.51.100.1", 80), ("172.31.0.11", 30080), ("192.0.2.11", 30080)];
    assert_eq!(wanted.lines(&DROPS), addresses.map(|(address, port)| rule(address, port)));
    for (address, port) in addresses.into_iter().chain([("10.96.0.1", 80)]) {
        wanted.assert(1, &[&format!("-a -t {address}:{port} -r 10.244.2.1:8080")]);
    }
}

#[test]
fn a_local_policy_drops_nothing_while_it_need_not() {
    let unready = slice("web-a", &json!([{ "addresses": ["10.244.2.1"], "conditions": { "ready": false } }]));
    for endpoints in [local(), unready] {
        Wanted::of(&[outside_local(), endpoints.clone()]).assert(0, &["DROP", "local endpoints"]);
        let inside = service(&json!({ "internalTrafficPolicy": "Local" }));
        Wanted::of(&[inside, endpoints]).assert(0, &["DROP", "local endpoints"]);
    }
    // Nothing comes in from outside: nothing is without its endpoint.
    let waiting = load_balancer(&[], &json!({ "externalTrafficPolicy": "Local" }));
    Wanted::of(&[waiting.clone(), remote()]).assert(0, &DROPS);
    let state = state(&[waiting, remote()]);
    let config = config();
    let context = Context::new(&config, world::facts(), &state, Family::Ipv4);
    let parts = render::service(&context, &ObjectKey::new("shop", "web"));
    assert!(parts.iter().all(|part| !part.without_local.external && !part.without_local.internal), "{parts:?}");
}

/// Local endpoints are all the traffic from outside gets; other traffic gets all.
#[test]
fn external_policy_local_with_local_endpoints_goes_to_these() {
    let both = slice("web-a", &json!([{ "addresses": ["10.244.1.1"], "nodeName": "node-a" }, { "addresses": ["10.244.2.1"] }]));
    let wanted = Wanted::of(&[outside_local(), both]);
    for address in ["203.0.113.1:80", "198.51.100.1:80", "172.31.0.11:30080", "192.0.2.11:30080"] {
        assert_eq!(wanted.lines(&["-a", &format!("-t {address} ")]).len(), 1, "{address}");
        wanted.assert(1, &[&format!("-t {address} -r 10.244.1.1:8080 ")]);
    }
    wanted.assert(2, &["-a -t 10.96.0.1:80 "]);
}

#[test]
fn each_way_to_tell_pods_narrows_what_is_dropped() {
    let cases = [
        (
            DetectLocal::ClusterCidr(PerFamily { v4: parse_cidr("10.1.0.0/16"), v6: None }),
            "! -s 10.1.0.0/16 -d 203.0.113.1/32 -p",
        ),
        (DetectLocal::NodeCidr, "-A KUBE-PROXY-FIREWALL -d 203.0.113.1/32 -p"),
        (DetectLocal::BridgeInterface("cni0".into()), "-d 203.0.113.1/32 ! -i cni0 -p"),
        (DetectLocal::InterfaceNamePrefix("veth".into()), "-d 203.0.113.1/32 ! -i veth+ -p"),
    ];
    for (detect_local, words) in cases {
        let config = RuleConfig { detect_local, ..config() };
        let wanted = Wanted::with(&config, &[outside_local(), remote()], Family::Ipv4);
        wanted.assert(1, &[words, "has no local endpoints"]);
    }
}

/// Deliberate: the ClusterIP's virtual server is empty, where kube-proxy's sends to endpoints elsewhere if the Service is
/// reachable from outside. Nobody is let through, pods neither.
#[test]
fn internal_policy_local_without_local_endpoints_drops_all() {
    for ports in [json!([{ "protocol": "TCP", "port": 80 }]), json!([{ "protocol": "TCP", "port": 80, "nodePort": 30080 }])] {
        let inside = service(&json!({ "internalTrafficPolicy": "Local", "ports": ports }));
        let wanted = Wanted::of(&[inside, remote()]);
        let rule = "-A KUBE-PROXY-FIREWALL -d 10.96.0.1/32 -p tcp -m conntrack --ctstate NEW \
                    -m comment --comment \"shop/web has no local endpoints\" -m tcp --dport 80 -j DROP";
        assert_eq!(wanted.lines(&DROPS), [rule]);
        wanted.assert(1, &["-A -t 10.96.0.1:80 -s rr"]);
        wanted.assert(0, &["-a -t 10.96.0.1:80"]);
        let outside = usize::from(!ports[0]["nodePort"].is_null());
        wanted.assert(outside, &["-a -t 172.31.0.11:30080 -r 10.244.2.1:8080"]);
    }
}

/// What service ports drop stands before the way into the source ranges, which is there for all.
#[test]
fn source_ranges_apply_behind_what_is_dropped() {
    let mut guarded = outside_local();
    guarded["spec"]["loadBalancerSourceRanges"] = json!(["192.0.2.0/24"]);
    let wanted = Wanted::of(&[guarded, remote()]);
    let chain = wanted.lines(&["-A KUBE-PROXY-FIREWALL"]);
    let last = chain.last().expect("rules");
    assert!(chain.len() == 5 && last.contains("KUBE-LOAD-BALANCER-FW dst,dst -j KUBE-SOURCE-RANGES-FIREWALL"), "{chain:#?}");
}

/// The node is let in by its address: then its connections may have the load balancer's address as their source, and else
/// they may not.
#[test]
fn source_ranges_that_hold_the_node_let_it_in() {
    let guarded = |ranges: Value| load_balancer(&["198.51.100.1"], &json!({ "loadBalancerSourceRanges": ranges }));
    let of_node = node(&[("InternalIP", "172.31.0.11")]);
    let source_ip = "add KUBE-LOAD-BALANCER-SOURCE-IP 198.51.100.1,tcp:80,198.51.100.1";
    let guard = "-A KUBE-IPVS-OUT-FILTER -s 198.51.100.1/32 -m ipvs --vproto 6 --vaddr 198.51.100.1 --vport 80 -j DROP";
    for (ranges, allowed, guards) in [
        (json!(["172.31.0.0/24"]), 1, 0),
        (json!(["172.31.1.0/24"]), 0, 1),
        (json!(["172.31.1.0/24", "0.0.0.0/0"]), 0, 0),
        (json!([]), 0, 0),
    ] {
        let wanted = Wanted::of(&[guarded(ranges.clone()), remote(), of_node.clone()]);
        wanted.assert(allowed, &[source_ip]);
        wanted.assert(guards, &[guard]);
        wanted.assert(guards, &["-A KUBE-IPVS-OUT-FILTER"]);
        wanted.assert(allowed + guards, &["add KUBE-LOAD-BALANCER-FW 198.51.100.1,tcp:80"]);
    }
}

/// The node's other interfaces keep their addresses: these are reached, but not made local a second time.
#[test]
fn addresses_of_other_interfaces_stay_where_they_are() {
    let wanted = Wanted::of(&[service(&json!({ "externalIPs": ["192.0.2.11", "203.0.113.1"] })), remote()]);
    assert_eq!(wanted.lines(&["scope global"]), ["inet 10.96.0.1/32 scope global", "inet 203.0.113.1/32 scope global"]);
    assert_eq!(wanted.lines(&["add KUBE-IPVS-IPS"]), ["add KUBE-IPVS-IPS 10.96.0.1", "add KUBE-IPVS-IPS 203.0.113.1"]);
    for address in ["192.0.2.11", "203.0.113.1"] {
        wanted.assert(1, &[&format!("-a -t {address}:80 -r 10.244.2.1:8080")]);
        wanted.assert(1, &[&format!("add KUBE-EXTERNAL-IP {address},tcp:80")]);
    }
    // A ClusterIP is made local whatever else has it.
    let own = service(&json!({ "clusterIP": "192.0.2.11", "clusterIPs": ["192.0.2.11"] }));
    Wanted::of(&[own]).assert(1, &["inet 192.0.2.11/32"]);
}

/// What a Service names twice it has once: the kernel refuses a second virtual server at one place.
#[test]
fn an_address_named_twice_has_one_virtual_server() {
    let spec = json!({ "externalIPs": ["198.51.100.1", "198.51.100.1", "10.96.0.1"], "internalTrafficPolicy": "Local" });
    let twice = [load_balancer(&["198.51.100.1"], &spec), remote()];
    let state = state(&twice);
    let config = config();
    let context = Context::new(&config, world::facts(), &state, Family::Ipv4);
    let [part] = &render::service(&context, &ObjectKey::new("shop", "web"))[..] else { panic!("one port") };
    let balanced = &part.balanced;
    let servers: Vec<_> = balanced.servers.iter().map(|s| (s.at.to_string(), s.real_servers.len())).collect();
    // At its own ClusterIP the internal policy decides.
    assert_eq!(servers, [("10.96.0.1:80/tcp".into(), 0), ("198.51.100.1:80/tcp".into(), 1)]);
    assert_eq!(balanced.addresses, ["10.96.0.1", "198.51.100.1"].map(|a| a.parse::<IpAddr>().expect("an address")));
    let members: BTreeSet<_> = balanced.members.iter().collect();
    assert_eq!(members.len(), balanced.members.len(), "{:?}", balanced.members);
}

/// `AllowServiceExternalIPs=false`: they are not reached, as in iptables mode.
#[test]
fn external_ips_can_be_switched_off() {
    let config = RuleConfig { external_ips: false, ..config() };
    let spec = json!({ "externalIPs": ["203.0.113.1"], "externalTrafficPolicy": "Local" });
    let wanted = Wanted::with(&config, &[load_balancer(&["198.51.100.1"], &spec), remote()], Family::Ipv4);
    wanted.assert(0, &["203.0.113.1"]);
    wanted.assert(1, &["inet 198.51.100.1/32"]);
    wanted.assert(1, &DROPS);
}

/// All of the node's addresses, or those in the ranges: never loopback, and link-local only where a range holds it.
#[test]
fn node_ports_have_virtual_servers_on_the_nodes_addresses() {
    let cases: [(&[&str], [&[&str]; 2]); 5] = [
        (&[], [&["172.31.0.11", "192.0.2.11"], &["fd31::b"]]),
        (&["0.0.0.0/0"], [&["172.31.0.11", "192.0.2.11"], &["fd31::b"]]),
        (&["172.31.0.0/16", "fe80::/10"], [&["172.31.0.11"], &["fe80::1"]]),
        (&["127.0.0.0/8", "::1/128"], [&[], &[]]),
        (&["10.0.0.0/8"], [&[], &["fd31::b"]]),
    ];
    let spec = json!({ "clusterIPs": ["10.96.0.1", "fd00:10:96::1"], "ipFamilies": ["IPv4", "IPv6"],
        "ports": [{ "protocol": "TCP", "port": 80, "nodePort": 30080 }] });
    for (ranges, want) in cases {
        for (family, want) in Family::ALL.into_iter().zip(want) {
            let config = node_ports_within(ranges);
            let found = render::node_port_server_addresses(&config, &state(&[]), family);
            let want: Vec<IpAddr> = want.iter().map(|a| a.parse().expect("an address")).collect();
            assert_eq!(found, want, "{ranges:?} {family}");
            let wanted = Wanted::with(&config, &[service(&spec)], family);
            wanted.assert(want.len(), &["-A -t ", ":30080 -s rr"]);
            // Where no address has it, no packet need be looked for.
            wanted.assert(usize::from(!want.is_empty()), &["add KUBE-", "NODE-PORT-TCP 30080"]);
            wanted.assert(usize::from(!want.is_empty()), &["-A KUBE-NODE-PORT -p tcp"]);
        }
    }
    let primary = RuleConfig { node_port_addresses: NodePortAddresses::Primary, ..config() };
    let of_node = state(&[node(&[("InternalIP", "192.0.2.11")])]);
    let found = render::node_port_server_addresses(&primary, &of_node, Family::Ipv4);
    assert_eq!(found, ["192.0.2.11".parse::<IpAddr>().expect("an address")]);
}

/// There are no bitmaps of SCTP ports: each address of the node is a member.
#[test]
fn sctp_node_ports_are_members_by_address() {
    let ports = json!([{ "protocol": "SCTP", "port": 80, "nodePort": 30080 }]);
    let object = service(&json!({ "type": "NodePort", "ports": ports, "externalTrafficPolicy": "Local" }));
    let wanted = Wanted::with(&node_ports_within(&["192.0.2.0/24"]), &[object], Family::Ipv4);
    wanted.assert(2, &["add KUBE-NODE-PORT-"]);
    wanted.assert(1, &["add KUBE-NODE-PORT-SCTP-HASH 192.0.2.11,sctp:30080"]);
    wanted.assert(1, &["add KUBE-NODE-PORT-LOCAL-SCTP-HASH 192.0.2.11,sctp:30080"]);
    wanted.assert(1, &["-A --sctp-service 192.0.2.11:30080 -s rr"]);
}

/// Deliberate: kube-proxy leaves the port shut in a family where node ports have no address.
#[test]
fn the_health_check_port_is_open_where_node_ports_have_no_address() {
    let mut object = outside_local();
    lay_over(&mut object["spec"], &json!({ "healthCheckNodePort": 32000 }));
    for ranges in [&[][..], &["127.0.0.0/8"]] {
        let wanted = Wanted::with(&node_ports_within(ranges), &[object.clone(), local()], Family::Ipv4);
        wanted.assert(1, &["add KUBE-HEALTH-CHECK-NODE-PORT 32000"]);
    }
}

/// Those that are not ready may be again, and connections to those that go live on.
#[test]
fn the_hairpin_set_holds_local_endpoints_in_any_condition() {
    let endpoint = |address: &str, node: &str, conditions: Value| json!({ "addresses": [address], "nodeName": node, "conditions": conditions });
    let endpoints = json!([
        endpoint("10.244.1.1", "node-a", json!({})),
        endpoint("10.244.1.2", "node-a", json!({ "ready": false, "serving": false })),
        endpoint("10.244.1.3", "node-a", json!({ "ready": false, "serving": false, "terminating": true })),
        endpoint("10.244.2.1", "node-b", json!({})),
    ]);
    let wanted = Wanted::of(&[service(&json!({})), slice("web-a", &endpoints)]);
    let members = [1, 2, 3].map(|n| format!("add KUBE-LOOP-BACK 10.244.1.{n},tcp:8080,10.244.1.{n}"));
    assert_eq!(wanted.lines(&["add KUBE-LOOP-BACK"]), members);
    wanted.assert(2, &["-a -t 10.96.0.1:80"]);
}

#[test]
fn schedulers_and_affinity_are_the_virtual_servers() {
    let sticky = json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 90 } } });
    for scheduler in Scheduler::ALL {
        let flags = if scheduler == Scheduler::Mh { " -b mh-port" } else { "" };
        let wanted = Wanted::with(&with_scheduler(scheduler), &[service(&json!({})), remote()], Family::Ipv4);
        assert_eq!(wanted.lines(&["-A -t"]), [format!("-A -t 10.96.0.1:80 -s {scheduler}{flags}")]);
        let wanted = Wanted::with(&with_scheduler(scheduler), &[service(&sticky), remote()], Family::Ipv4);
        assert_eq!(wanted.lines(&["-A -t"]), [format!("-A -t 10.96.0.1:80 -s {scheduler} -p 90{flags}")]);
    }
}

/// Affinity is of one client, not of its network.
#[test]
fn affinity_is_by_the_whole_address() {
    let spec =
        json!({ "sessionAffinity": "ClientIP", "clusterIPs": ["10.96.0.1", "fd00:10:96::1"], "ipFamilies": ["IPv4", "IPv6"] });
    let state = state(&[service(&spec)]);
    let config = config();
    for (family, bits) in [(Family::Ipv4, 32), (Family::Ipv6, 128)] {
        let context = Context::new(&config, world::facts(), &state, family);
        let parts = render::service(&context, &ObjectKey::new("shop", "web"));
        let persistence: Vec<_> = parts[0].balanced.servers.iter().filter_map(|s| s.server.persistence).collect();
        assert!(matches!(persistence[..], [one] if one.prefix == bits && one.seconds == 10_800), "{persistence:?}");
    }
}

/// A rule may only name a set of members; those that every packet passes name theirs always.
#[test]
fn the_modes_rules_follow_which_sets_hold_something() {
    let (config, state) = (config(), state(&[]));
    let rules = |filled: Filled| {
        let mut context = Context::new(&config, world::facts(), &state, Family::Ipv4);
        context.fill(filled, Filled::default());
        let mut out = String::new();
        text::save(&mut out, render::layout(&config), &[&render::mode(&context).1]).expect("text");
        out
    };
    let count = |text: &str, set: SetId| text.matches(&format!("--match-set {} ", set.name(Family::Ipv4))).count();
    let none = rules(Filled::default());
    for set in SetId::ALL {
        let one = rules([set].into_iter().collect());
        let (always, more) = match set {
            SetId::ClusterIp | SetId::LoadBalancer | SetId::ExternalIpLocal => (1, 2),
            SetId::ExternalIp => (1, 3),
            SetId::HealthCheckNodePort => (2, 0),
            SetId::IpvsIps => (1, 0),
            _ => (0, 1),
        };
        assert_eq!((count(&none, set), count(&one, set)), (always, always + more), "{set:?}");
        let others = SetId::ALL.into_iter().filter(|other| *other != set);
        assert!(others.into_iter().all(|other| count(&one, other) == count(&none, other)), "{set:?}: {one}");
    }
}

/// A change of one Service must cost no look at others.
#[test]
fn a_service_is_rendered_alike_whoever_else_is_there() {
    let mut other = outside_local();
    other["metadata"]["name"] = json!("other");
    let config = config();
    let part = |objects: &[Value]| {
        let state = state(objects);
        let context = Context::new(&config, world::facts(), &state, Family::Ipv4);
        format!("{:?}", render::service(&context, &ObjectKey::new("shop", "web")))
    };
    assert_eq!(part(&[outside_local(), remote()]), part(&[outside_local(), other, remote()]));
}
