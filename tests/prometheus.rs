//! The metrics of a running proxy, to Prometheus' own programs (Debian's package): promtool finds no fault in them, and
//! a real Prometheus scrapes them and evaluates what clusters ask of kube-proxy.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

#[path = "../e2e/apiserver/mod.rs"]
mod apiserver;
mod cluster;
mod scenario;
mod support;

#[path = "serve/client.rs"]
mod client;
#[path = "prometheus/server.rs"]
mod prometheus;

use apiserver::ApiServer;
use cluster::ClusterNode;
use cluster::objects::{node, service, slices};
use jiff::Timestamp;
use prometheus::{Prometheus, is_there};
use serde_json::json;
use support::proxy::{Sluice, get};
use support::{PATIENCE, require_root, wait_until};

const METRICS: &str = "127.0.0.1:10249";

/// A node with rules for one Service, and its API server.
struct Programmed<'a> {
    node: &'a ClusterNode,
    server: ApiServer,
    sluice: Sluice<'a>,
}

impl<'a> Programmed<'a> {
    fn new(on: &'a ClusterNode) -> Self {
        let server = ApiServer::start_on(on.listen());
        server.put(node("z1"));
        server.put(service("web", 1, 80));
        let mut sluice = on.start(&[format!("--master={}", server.url())]);
        change(&server, 1);
        sluice.wait_in_force();
        Self { node: on, server, sluice }
    }

    fn metrics(&self) -> String {
        let answer = self.node.namespace.run(|| get(METRICS, "/metrics")).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }
}

/// Another endpoint, with the time of its change as the controller of slices tells it.
fn change(server: &ApiServer, endpoint: u8) {
    for mut slice in slices("web", &[endpoint]) {
        let now = Timestamp::now().to_string();
        slice["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": now});
        server.put(slice);
    }
}

#[test]
fn promtool_finds_no_fault_in_the_metrics_of_a_running_proxy() {
    if !require_root("promtool_finds_no_fault") || !is_there("promtool") {
        return;
    }
    let node = ClusterNode::new("promtool");
    let it = Programmed::new(&node);
    change(&it.server, 2);
    // Something for the metrics of drift and of answers.
    node.namespace.output(&["iptables", "-t", "nat", "-F", "KUBE-SERVICES"]);
    wait_until("the repair is counted", PATIENCE, || it.metrics().contains("cause=\"notification\",ip_family=\"IPv4\"} 1"));
    let programmed = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv6\"} ";
    wait_until("the latency is measured", PATIENCE, || it.metrics().contains(programmed));
    let text = it.metrics();
    client::check_exposition(&text);
    client::promtool(&text);
    for accident in ["go_", "apiserver_", "aggregator_"] {
        assert!(!text.lines().any(|line| line.starts_with(accident)), "{accident} in {text}");
    }
    it.sluice.stop();
}

/// Of a kube-proxy in iptables mode with six Services.
const CAPTURE: &str = include_str!("serve/kube-proxy-metrics.txt");

/// No change is needed after the start for a dashboard to have its series, as with kube-proxy.
#[test]
fn every_series_of_kube_proxys_is_there_after_a_start() {
    if !require_root("every_series_of_kube_proxys") {
        return;
    }
    let on = ClusterNode::new("series");
    let server = ApiServer::start_on(on.listen());
    let mut dns = service("dns", 3, 53);
    dns["spec"]["ports"][0]["protocol"] = json!("UDP");
    let mut dns_slices = slices("dns", &[7]);
    for slice in &mut dns_slices {
        slice["ports"][0]["protocol"] = json!("UDP");
    }
    let objects = [node("z1"), service("web", 1, 80), dns].into_iter().chain(slices("web", &[5])).chain(dns_slices);
    for object in objects {
        server.put(object);
    }
    let mut sluice = on.start(&[format!("--master={}", server.url())]);
    sluice.wait_in_force();
    let ask = |address, path| on.namespace.run(|| get(address, path)).unwrap();
    ask("127.0.0.1:10256", "/livez");
    let counts = sluice.log().contains("with nfacct counters");
    let is_served = |series: &&str| counts || !series.contains("_packets_total");
    let keys = CAPTURE.lines().filter(|line| !line.starts_with('#')).map(|line| line.rsplit_once(' ').unwrap().0);
    let keys: Vec<_> = keys.filter(is_served).collect();
    assert_eq!(keys.len(), if counts { 115 } else { 113 }, "series in the capture");
    let lacking = || {
        let text = ask(METRICS, "/metrics");
        let has = |key: &str| text.lines().any(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(' ')));
        keys.iter().filter(|key| !has(key)).copied().collect::<Vec<_>>()
    };
    let begun = std::time::Instant::now();
    while !lacking().is_empty() {
        assert!(begun.elapsed() < PATIENCE, "not there: {:#?}", lacking());
    }
    sluice.stop();
}

#[test]
fn prometheus_evaluates_what_clusters_ask_of_kube_proxy() {
    if !require_root("prometheus_evaluates") || !is_there("prometheus") {
        return;
    }
    let node = ClusterNode::new("prometheus");
    let it = Programmed::new(&node);
    let prometheus = Prometheus::start(&node.namespace, &node.scratch, &[("kube-proxy", METRICS)]);
    prometheus.wait_for("panel:up", |up| up > 0.5);
    let (mut endpoint, mut rate) = (2, 0.0);
    // A rate is that of what changes between scrapes.
    while rate <= 0.0 {
        change(&it.server, endpoint);
        endpoint = endpoint.checked_add(1).expect("a rate in time");
        std::thread::sleep(std::time::Duration::from_millis(200));
        rate = prometheus.query("panel:programming_rate").first().map_or(0.0, |(_, rate)| *rate);
    }
    prometheus.wait_for("panel:sync_rate", |rate| rate > 0.0);
    prometheus.wait_for("panel:sync_latency", |seconds| seconds > 0.0 && seconds < 16.384);
    prometheus.wait_for("panel:mean_sync", |seconds| seconds > 0.0 && seconds < 16.384);
    prometheus.wait_for("panel:programming_latency", |seconds| seconds > 0.0 && seconds < 10.0);
    assert!(!prometheus.query("rest_client_requests_total{code=\"200\",method=\"GET\"}").is_empty(), "requests are counted");
    prometheus.wait_for("panel:memory", |bytes| bytes > 1e6 && bytes < 1e9);
    prometheus.wait_for("panel:cpu", |cores| cores > 0.0);
    prometheus.wait_for("panel:restore_failures", |failures| failures.abs() < 0.1);
    prometheus.wait_for("panel:rules{table=\"nat\"}", |rules| rules > 20.0);
    let version = "count by (git_version) (label_replace(kubernetes_build_info, \"git_version\", \"$1\", \"git_version\", \"(v[0-9]*.[0-9]*).*\"))";
    assert_eq!(prometheus.query(version), [(json!({"git_version": "v1.36"}), 1.0)]);
    assert_eq!(prometheus.faults(), Vec::<String>::new());
    assert_eq!(prometheus.firing(), Vec::<String>::new());

    let Programmed { server, sluice, .. } = it;
    sluice.stop();
    prometheus.wait_for_alert("KubeProxyDown", true);
    prometheus.wait_for_alert("KubeProxyInstanceUnreachable", true);
    let mut sluice = node.start(&[format!("--master={}", server.url())]);
    sluice.wait_in_force();
    prometheus.wait_for_alert("KubeProxyDown", false);
    prometheus.wait_for_alert("KubeProxyInstanceUnreachable", false);
    sluice.stop();
}
