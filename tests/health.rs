//! What a running proxy answers to those who ask after its health: the kubelet, load balancers that ask for the node, and
//! load balancers that ask for a Service, while the Node, the rules and Services change under it.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

#[path = "../e2e/apiserver/mod.rs"]
mod apiserver;
mod cluster;
mod scenario;
mod support;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use apiserver::ApiServer;
use cluster::objects::{NAMESPACE, NODE, node, service, slices};
use cluster::{ClusterNode, count_lines, wait_for_line};
use serde_json::{Value, json};
use support::proxy::{Sluice, get};
use support::{PATIENCE, require_root, wait_until};

const HEALTH: &str = "127.0.0.1:10256";

/// A node with rules for the Service `web`, and its API server.
struct Programmed<'a> {
    node: &'a ClusterNode,
    server: ApiServer,
    sluice: Sluice<'a>,
}

impl<'a> Programmed<'a> {
    fn new(on: &'a ClusterNode, flags: &[&str]) -> Self {
        let server = ApiServer::start_on(on.listen());
        server.put(node("z1"));
        server.put(service("web", 1, 80));
        endpoints(&server, "web", &[5]);
        let mut arguments = vec![format!("--master={}", server.url())];
        arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let mut sluice = on.start(&arguments);
        sluice.wait_in_force();
        Self { node: on, server, sluice }
    }

    /// The status and the body; 0 when nobody answers.
    fn ask(&self, address: &str, path: &str) -> (u16, Value) {
        let answer = self.node.namespace.run(|| get(address, path)).unwrap_or_default();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| serde_json::from_str(body).unwrap());
        (status, body.unwrap_or_default())
    }

    /// Waits until load balancers are told to come, or to stay away because of the Node; the kubelet hears no ill.
    fn wait_for(&self, what: &str, eligible: bool) {
        let wanted = if eligible { 200 } else { 503 };
        wait_until(what, PATIENCE, || self.ask(HEALTH, "/healthz").0 == wanted);
        self.assert_is(what, eligible);
    }

    fn assert_is(&self, what: &str, eligible: bool) {
        let (status, body) = self.ask(HEALTH, "/healthz");
        assert_eq!(
            (status == 200, &body["nodeEligible"], &body["healthy"]),
            (eligible, &json!(eligible), &json!(true)),
            "{what}"
        );
        assert_eq!(self.ask(HEALTH, "/livez").0, 200, "{what}");
    }

    /// Waits until the proxy has seen everything that the server has said before: it follows a change made now.
    fn settle(&self, number: u8) {
        self.server.put(service("last", number, 80));
        endpoints(&self.server, "last", &[6]);
        let address = format!("-d {}/32", cluster::objects::cluster_ip(number));
        wait_until("all is seen", PATIENCE, || self.node.rules().contains(&address));
    }
}

fn with(field: &str, value: Value) -> Value {
    let mut node = node("z1");
    match field {
        "taint" => node["spec"] = json!({"taints": [value]}),
        field => node["metadata"][field] = value,
    }
    node
}

#[test]
fn load_balancers_stay_away_from_a_node_that_leaves() {
    if !require_root("load_balancers_stay_away") {
        return;
    }
    let on = ClusterNode::new("health-node");
    let it = Programmed::new(&on, &[]);
    it.assert_is("at first", true);
    for taint in ["node.kubernetes.io/unschedulable", "DeletionCandidateOfClusterAutoscaler"] {
        it.server.put(with("taint", json!({"key": taint, "effect": "NoSchedule"})));
    }
    it.settle(21);
    it.assert_is("with a taint of another kind", true);
    it.server.put(with("taint", json!({"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule"})));
    it.wait_for("tainted", false);
    it.server.put(node("z1"));
    it.wait_for("no longer tainted", true);
    it.server.put(with("deletionTimestamp", json!("2026-11-26T08:00:00Z")));
    it.wait_for("being deleted", false);
    it.server.put(node("z1"));
    it.wait_for("a new Node of the name", true);
    // Who deletes the object need not mean the machine: what was known stays, as with kube-proxy.
    it.server.delete("nodes", "", NODE);
    it.settle(22);
    it.assert_is("deleted", true);
    it.server.put(with("taint", json!({"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"})));
    it.wait_for("back, and tainted", false);
    it.server.delete("nodes", "", NODE);
    it.settle(23);
    it.assert_is("tainted and deleted", false);
    it.server.put(node("z1"));
    it.wait_for("back", true);
    it.sluice.stop();
}

#[test]
fn a_sync_that_is_stuck_is_unhealthy_after_twice_the_period_and_no_longer_when_it_succeeds() {
    if !require_root("a_sync_that_is_stuck") {
        return;
    }
    let on = ClusterNode::new("health-stuck");
    let it = Programmed::new(&on, &["--iptables-sync-period=1s", "--iptables-min-sync-period=0s"]);
    it.server.put(balanced("lb", 2, 32_100));
    endpoints(&it.server, "lb", &[7]);
    wait_until("the health check port", PATIENCE, || it.ask("127.0.0.1:32100", "/").0 == 200);
    // The kernel lets nobody jump to a chain that it calls itself.
    let begun = Instant::now();
    let taken = "delete table ip nat; add table ip nat; add chain ip nat KUBE-SERVICES { type nat hook output priority 200; }";
    on.namespace.output(&["nft", taken]);
    wait_until("503 from /healthz", PATIENCE, || it.ask(HEALTH, "/healthz").0 == 503);
    let took = begun.elapsed();
    println!("unhealthy after {took:.2?}");
    assert!(took >= Duration::from_secs(2), "{took:.2?}");
    let (status, body) = it.ask(HEALTH, "/livez");
    assert_eq!((status, &body["healthy"]), (503, &json!(false)), "{body}");
    let families = ["IPv4", "IPv6"].map(|family| body["status"][family]["healthy"].clone());
    assert_eq!(families, [json!(false), json!(true)], "{body}");
    let (status, body) = it.ask("127.0.0.1:32100", "/");
    assert_eq!((status, &body["serviceProxyHealthy"]), (503, &json!(false)), "{body}");
    assert!(it.sluice.metric("kubeproxy_proxy_healthz_total")["{code=\"503\"}"] > 0);
    assert!(it.sluice.metric("kubeproxy_proxy_livez_total")["{code=\"503\"}"] > 0);
    on.namespace.output(&["nft", "delete table ip nat"]);
    wait_until("200 from /healthz", PATIENCE, || it.ask(HEALTH, "/healthz").0 == 200);
    assert_eq!((it.ask(HEALTH, "/livez").0, it.ask("127.0.0.1:32100", "/").0), (200, 200));
    wait_until("the rules are back", PATIENCE, || it.node.rules().contains("sluice-test/web:http"));
    it.sluice.stop();
}

/// A Service whose load balancers ask for it on this port.
fn balanced(name: &str, number: u8, port: u16) -> Value {
    let mut service = service(name, number, 80);
    service["spec"]["type"] = json!("LoadBalancer");
    service["spec"]["externalTrafficPolicy"] = json!("Local");
    service["spec"]["healthCheckNodePort"] = json!(port);
    service
}

/// The Service's pods are these, each with an address of both families.
fn endpoints(server: &ApiServer, service: &str, numbers: &[u8]) {
    for slice in slices(service, numbers) {
        server.put(slice);
    }
}

#[test]
fn health_check_ports_of_services_open_and_move_and_tell_weights_and_close() {
    if !require_root("health_check_ports_of_services") {
        return;
    }
    let on = ClusterNode::new("health-ports");
    let it = Programmed::new(&on, &[]);
    let is = |port: u16, service: &str, status: u16, endpoints: u64| {
        let (found, body) = it.ask(&format!("127.0.0.1:{port}"), "/whatever");
        found == status && body["service"]["name"] == service && body["localEndpoints"] == endpoints
    };
    let closed = |port: u16| it.ask(&format!("127.0.0.1:{port}"), "/").0 == 0;
    // Another process has a port that a Service will want.
    let holder = on.namespace.run(|| TcpListener::bind("127.0.0.1:32202").unwrap());
    it.server.put(balanced("one", 2, 32_201));
    wait_until("open without endpoints", PATIENCE, || is(32_201, "one", 503, 0));
    endpoints(&it.server, "one", &[7]);
    wait_until("an endpoint", PATIENCE, || is(32_201, "one", 200, 1));
    endpoints(&it.server, "one", &[7, 8, 9]);
    wait_until("three endpoints", PATIENCE, || is(32_201, "one", 200, 3));
    let head = it.node.namespace.run(|| get("127.0.0.1:32201", "/")).unwrap();
    assert!(head.contains("\r\nX-Load-Balancing-Endpoint-Weight: 3\r\n"), "{head}");
    it.server.put(balanced("two", 3, 32_202));
    endpoints(&it.server, "two", &[10]);
    let words = ["WARN", "service=sluice-test/two", "port=32202", "Address already in use"];
    wait_for_line(&it.sluice, &words);
    assert!(is(32_201, "one", 200, 3), "the other is not affected");
    it.server.put(balanced("one", 2, 32_203));
    wait_until("moved", PATIENCE, || is(32_203, "one", 200, 3) && closed(32_201));
    drop(holder);
    wait_until("the port that was taken", PATIENCE, || is(32_202, "two", 200, 1));
    it.server.delete("services", NAMESPACE, "one");
    wait_until("closed", PATIENCE, || closed(32_203));
    let mut plain = balanced("two", 3, 32_202);
    plain["spec"]["externalTrafficPolicy"] = json!("Cluster");
    plain["spec"].as_object_mut().unwrap().remove("healthCheckNodePort");
    it.server.put(plain);
    wait_until("no longer wanted", PATIENCE, || closed(32_202));
    let log = it.sluice.stop();
    assert_eq!(count_lines(&log, &words), 1, "told once: {log}");
}
