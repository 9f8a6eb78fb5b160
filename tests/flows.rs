//! Which tracked UDP flows are stale after a change, and what finding them costs: the decision as tables, the rest on
//! the fake. The real kernel is in conntrack.rs, real clients in `packets_udp.rs`.

#[path = "flows/decision.rs"]
mod decision;
mod world;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use sluice::model::endpoint::{Conditions, SliceEndpoint, SlicePort};
use sluice::model::flows::{Common, Ends, Ledger, OwnAddresses};
use sluice::model::service::{Addresses, PortSpec};
use sluice::model::{EndpointSlice, Event, Service, State};
use sluice::net::{Family, PerFamily, Protocol};
use sluice::netlink::Errno;
use sluice::netlink::Error;
use sluice::netlink::conntrack::{Flow, Tuple};
use sluice::netlink::fake::flows::FakeFlows;
use sluice::serve::Metrics;
use sluice::serve::metrics::Format;
use sluice::sync::flows::FlowSync;
use world::{config, endpoint, key};

/// A Service `number` with every door: UDP on port 53 and node port 30000 + number, TCP on port 80.
fn dns(number: u8) -> Service {
    let mut service = world::service([10, 96, 0, number].into());
    service.ports.push(PortSpec { name: "dns".into(), protocol: Protocol::Udp, port: 53, node_port: 30_000 + u16::from(number) });
    let addresses = service.families.v4.as_mut().expect("IPv4");
    addresses.external_ips = vec![[203, 0, 113, number].into()];
    addresses.load_balancer_vips = vec![[198, 51, 100, number].into()];
    let v6 = |text: &str| text.replace('N', &number.to_string()).parse().expect("an address");
    service.families.v6 =
        Some(Addresses { cluster_ip: v6("fd00:96::N"), external_ips: vec![], load_balancer_vips: vec![], source_ranges: vec![] });
    service
}

fn udp_slice(name: &str, endpoints: Vec<SliceEndpoint>) -> EndpointSlice {
    let mut slice = world::slice(&key("shop", name), endpoints);
    slice.ports.push(SlicePort { name: "dns".into(), protocol: Protocol::Udp, port: 5353 });
    slice
}

fn hosts(hosts: &[u8]) -> Vec<SliceEndpoint> {
    hosts.iter().map(|&host| endpoint([10, 244, 0, host].into())).collect()
}

fn end(text: &str) -> SocketAddr {
    text.parse().expect("an address and port")
}

/// A family's flows with their kernel and state.
struct Bench {
    kernel: FakeFlows,
    state: State,
    sync: FlowSync,
    metrics: Arc<Metrics>,
}

impl Bench {
    fn new() -> Self {
        let metrics = Arc::new(Metrics::new());
        let sync = FlowSync::new(Family::Ipv4, &config(), Arc::clone(&metrics));
        Self { kernel: FakeFlows::new(), state: State::new("node-a"), sync, metrics }
    }

    fn note(&mut self, event: Event) {
        let changes = self.state.apply(event);
        self.sync.note(&self.state, &changes);
    }

    fn endpoints(&mut self, endpoints: &[u8]) {
        self.note(Event::Slice(key("shop", "web-x"), Some(udp_slice("web", hosts(endpoints)))));
    }

    /// How often flows were listed, and how many deleted.
    fn reconcile(&mut self) -> (usize, Result<usize, Errno>) {
        let outcome = self.sync.reconcile(&mut self.kernel, &config(), &self.state);
        (self.kernel.take_listings(), outcome.map_err(|error| error.errno().expect("an error with a number")))
    }

    fn track(&mut self, asked: &str, answers: &str) {
        let client = end("10.244.0.200:4000");
        let original = Tuple { source: client, destination: end(asked) };
        self.kernel.track(Flow { original, reply: Tuple { source: end(answers), destination: client }, id: 1 });
    }

    fn left(&self) -> Vec<SocketAddr> {
        self.kernel.flows(Family::Ipv4).iter().map(|flow| flow.reply.source).collect()
    }

    fn metric(&self, name: &str) -> Option<String> {
        let text = self.metrics.encode(Format::Prometheus).expect("metrics");
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(Into::into))
    }
}

#[test]
fn flows_are_listed_once_for_each_sync_and_not_at_all_without_a_change_of_udp() {
    let mut bench = Bench::new();
    assert_eq!(bench.reconcile(), (0, Ok(0)), "no Service, no listing");
    bench.track("10.96.0.1:53", "10.244.0.1:5353");
    bench.track("10.96.0.1:53", "10.244.0.2:5353");
    let services = (1..50).map(|i| (key("shop", &format!("web-{i}")), dns(i))).chain([(key("shop", "web"), dns(1))]);
    let services: Vec<_> = services.collect();
    bench.note(Event::Services(services));
    bench.endpoints(&[1, 2]);
    assert_eq!(bench.reconcile(), (1, Ok(0)), "the first sync");
    assert_eq!(bench.reconcile(), (0, Ok(0)));
    bench.note(Event::Service(key("shop", "tcp"), Some(world::service([10, 96, 0, 99].into()))));
    bench.note(Event::Slice(key("shop", "tcp-x"), Some(world::slice(&key("shop", "tcp"), hosts(&[7])))));
    bench.note(Event::Addresses(vec![[172, 31, 0, 11].into()]));
    assert_eq!(bench.reconcile(), (0, Ok(0)), "TCP and addresses");
    bench.endpoints(&[2]);
    bench.note(Event::Service(key("shop", "web-7"), None));
    assert_eq!(bench.reconcile(), (1, Ok(1)), "two changes of UDP");
    assert_eq!(bench.left(), [end("10.244.0.2:5353")]);
    let deleted = "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"}";
    assert_eq!(bench.metric(deleted).as_deref(), Some("1"));
    let times = "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv4\"}";
    assert_eq!(bench.metric(times).as_deref(), Some("2"));
}

#[test]
fn what_failed_is_made_up_for() {
    let failed = |errno| Error::RefusedWhole { errno, said: None };
    let mut bench = Bench::new();
    bench.note(Event::Service(key("shop", "web"), Some(dns(1))));
    bench.endpoints(&[1, 2]);
    assert_eq!(bench.reconcile(), (1, Ok(0)));
    for host in [1, 2, 3] {
        bench.track("10.96.0.1:53", &format!("10.244.0.{host}:5353"));
    }
    bench.endpoints(&[2]);
    bench.kernel.fail_next_listing(failed(Errno::ENOBUFS));
    assert_eq!(bench.reconcile(), (1, Err(Errno::ENOBUFS)));
    assert!(bench.sync.is_due());
    bench.kernel.fail_next_deletion(failed(Errno::EBUSY));
    assert_eq!(bench.reconcile(), (1, Err(Errno::EBUSY)));
    assert_eq!(bench.left(), [2, 3].map(|host| SocketAddr::new([10, 244, 0, host].into(), 5353)));
    // The Service goes while its flows are still to be put right: what it once led to is not forgotten.
    bench.note(Event::Service(key("shop", "web"), None));
    bench.track("10.96.0.1:53", "10.244.0.1:5353");
    assert_eq!(bench.reconcile(), (1, Ok(2)));
    assert_eq!(bench.left(), [end("10.244.0.3:5353")], "of whom the Service never knew");
    assert_eq!(bench.reconcile(), (0, Ok(0)));
    for errno in ["ENOBUFS", "EBUSY"] {
        assert_eq!(bench.metric(&format!("sluice_netlink_errors_total{{errno=\"{errno}\"}}")).as_deref(), Some("1"));
    }
}

#[test]
fn node_port_flows_are_of_the_nodes_addresses() {
    let mut bench = Bench::new();
    bench.note(Event::Addresses(["172.31.0.11", "127.0.0.1", "fd31::b"].map(|text| text.parse().expect("one")).into()));
    bench.note(Event::Service(key("shop", "web"), Some(dns(1))));
    for asked in ["172.31.0.11:30001", "172.31.0.12:30001", "127.0.0.2:30001"] {
        bench.track(asked, "10.244.0.1:5353");
    }
    assert_eq!(bench.reconcile(), (1, Ok(2)));
    let left: Vec<_> = bench.kernel.flows(Family::Ipv4).iter().map(|flow| flow.original.destination).collect();
    assert_eq!(left, [end("172.31.0.12:30001")]);
}

#[test]
fn one_familys_flows_are_not_the_others() {
    let metrics = Arc::new(Metrics::new());
    let mut syncs = PerFamily::from_fn(|family| FlowSync::new(family, &config(), Arc::clone(&metrics)));
    let mut state = State::new("node-a");
    let changes = state.apply(Event::Service(key("shop", "web"), Some(dns(1))));
    let mut kernel = FakeFlows::new();
    for family in Family::ALL {
        syncs[family].note(&state, &changes);
        syncs[family].reconcile(&mut kernel, &config(), &state).expect("a sync");
    }
    assert_eq!(kernel.take_listings(), 2);
    let changes = state.apply(Event::Slice(key("shop", "web-x"), Some(udp_slice("web", hosts(&[1])))));
    for family in Family::ALL {
        syncs[family].note(&state, &changes);
    }
    assert!(syncs.v4.is_due() && !syncs.v6.is_due());
}
