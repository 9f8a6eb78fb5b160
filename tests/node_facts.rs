//! What rules take from the Node is followed while the proxy runs: pod CIDRs, addresses, the zone. kube-proxy ends, or
//! ignores the change.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

#[path = "../e2e/apiserver/mod.rs"]
mod apiserver;
mod cluster;
mod scenario;
mod support;

use apiserver::ApiServer;
use cluster::objects::{NAMESPACE, NODE, node, service, slices, slices_with};
use cluster::{ClusterNode, count_lines, wait_for_line};
use serde_json::{Value, json};
use support::proxy::Sluice;
use support::{PATIENCE, require_root, wait_until};

/// A node of ours with these pod CIDRs and addresses.
fn node_with(pod_cidrs: [&str; 2], addresses: [&str; 2]) -> Value {
    let mut node = node("z1");
    node["spec"] = json!({"podCIDR": pod_cidrs[0], "podCIDRs": pod_cidrs});
    node["status"]["addresses"] = addresses.map(|address| json!({"type": "InternalIP", "address": address})).into();
    node
}

const POD_CIDRS: [&str; 2] = ["10.244.11.0/24", "fd00:10:244:b::/64"];
/// On one interface of the golden node, and on another.
const ADDRESSES: [&str; 2] = ["172.31.0.11", "fd31::b"];
const OTHER_ADDRESSES: [&str; 2] = ["10.244.11.1", "fd00:10:244:b::1"];

/// A load balancer that lets in the network of [`ADDRESSES`].
fn balanced() -> Value {
    let mut service = service("web", 1, 80);
    service["spec"]["type"] = json!("LoadBalancer");
    service["spec"]["loadBalancerSourceRanges"] = json!(["172.31.0.0/24", "fd31::/64"]);
    service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}, {"ip": "2001:db8:40::1"}]}});
    service
}

/// Starts on these objects, with the flags that make rules depend on the Node.
fn start<'a>(node: &'a ClusterNode, server: &ApiServer, objects: impl IntoIterator<Item = Value>) -> Sluice<'a> {
    for object in objects {
        server.put(object);
    }
    let url = server.url();
    let flags = ["--detect-local-mode=NodeCIDR", "--nodeport-addresses=primary", &format!("--master={url}")];
    node.start(&flags.map(String::from))
}

/// Waits until the rules say each of these, in whichever family, and none of those.
fn wait_for(node: &ClusterNode, what: &str, present: &[String], absent: &[String]) {
    wait_until(what, PATIENCE, || {
        let rules = node.rules();
        present.iter().all(|text| rules.contains(text)) && !absent.iter().any(|text| rules.contains(text))
    });
}

/// Traffic of pods is told by the pod CIDRs.
fn told_by(pod_cidrs: [&str; 2]) -> Vec<String> {
    pod_cidrs.map(|cidr| format!(" ! -s {cidr} -d ")).into()
}

/// Node ports are at these addresses.
fn node_ports_at(addresses: [&str; 2]) -> Vec<String> {
    [(addresses[0], 32), (addresses[1], 128)]
        .map(|(address, length)| {
            format!("-A KUBE-SERVICES -d {address}/{length} -m comment --comment \"kubernetes service nodeports")
        })
        .into()
}

#[test]
fn pod_cidrs_and_addresses_of_the_node_are_followed() {
    if !require_root("pod_cidrs_and_addresses_of_the_node_are_followed") {
        return;
    }
    let cluster_node = ClusterNode::new("node-facts");
    let server = ApiServer::start_on(cluster_node.listen());
    let objects = slices("web", &[5]).into_iter().chain([balanced(), node_with(POD_CIDRS, ADDRESSES)]);
    let mut sluice = start(&cluster_node, &server, objects);
    // The node's own address is in the source ranges, so the load balancer's address may be a source too.
    let own: Vec<_> = ["198.51.100.1/32", "2001:db8:40::1/128"].map(|vip| format!(" -s {vip} ")).into();
    let before = [told_by(POD_CIDRS), node_ports_at(ADDRESSES), own.clone()].concat();
    wait_for(&cluster_node, "the rules", &before, &[]);

    // kube-proxy exits.
    let other_cidrs = ["10.244.99.0/24", "fd00:10:244:63::/64"];
    server.put(node_with(other_cidrs, ADDRESSES));
    wait_for(&cluster_node, "other pod CIDRs", &told_by(other_cidrs), &told_by(POD_CIDRS));

    // kube-proxy logs it, or sees nothing.
    server.put(node_with(other_cidrs, OTHER_ADDRESSES));
    let gone = [node_ports_at(ADDRESSES), own].concat();
    wait_for(&cluster_node, "other addresses", &node_ports_at(OTHER_ADDRESSES), &gone);

    // A Node that goes leaves what it said; one that comes back counts.
    server.delete("nodes", "", NODE);
    let mut other = service("late", 2, 81);
    other["spec"]["type"] = json!("ClusterIP");
    server.put(other);
    wait_for(&cluster_node, "a later Service", &["late:http".into()], &[]);
    let still = [told_by(other_cidrs), node_ports_at(OTHER_ADDRESSES)].concat();
    wait_for(&cluster_node, "rules of the Node that is gone", &still, &[]);
    server.put(node_with(POD_CIDRS, ADDRESSES));
    wait_for(&cluster_node, "the Node is back", &before, &told_by(other_cidrs));
    assert!(sluice.is_running());
    let log = sluice.stop();
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn the_zone_of_the_node_is_followed() {
    if !require_root("the_zone_of_the_node_is_followed") {
        return;
    }
    let cluster_node = ClusterNode::new("node-zone");
    let server = ApiServer::start_on(cluster_node.listen());
    let of_zone = |zone: &str| json!({"zone": zone, "hints": {"forZones": [{"name": zone}]}});
    let hinted = slices_with("web", &[(5, of_zone("z1")), (6, of_zone("z2"))]);
    let mut near = service("web", 1, 80);
    near["spec"]["trafficDistribution"] = json!("PreferSameZone");
    let in_zone = |zone: &str| {
        let mut node = node_with(POD_CIDRS, ADDRESSES);
        node["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!(zone);
        node
    };
    let sluice = start(&cluster_node, &server, hinted.into_iter().chain([near, in_zone("z1")]));
    let [first, second]: [Vec<String>; 2] =
        [5, 6].map(|host| vec![format!("10.244.11.{host}:8080"), format!("[fd00:10:244:b::{host}]:8080")]);
    wait_for(&cluster_node, "the zone's endpoint", &first, &second);
    server.put(in_zone("z2"));
    wait_for(&cluster_node, "the other zone's endpoint", &second, &first);
    server.put(in_zone(""));
    wait_for(&cluster_node, "no zone: all endpoints", &[first, second].concat(), &[]);
    sluice.stop();
}

#[test]
fn a_node_whose_pod_cidrs_come_late_is_waited_for() {
    if !require_root("a_node_whose_pod_cidrs_come_late_is_waited_for") {
        return;
    }
    let cluster_node = ClusterNode::new("node-cidrs");
    let server = ApiServer::start_on(cluster_node.listen());
    let objects = slices("web", &[5]).into_iter().chain([service("web", 1, 80), node("z1")]);
    let sluice = start(&cluster_node, &server, objects);
    wait_for_line(&sluice, &["WARN", "wait for Node node-a: it has no pod CIDRs"]);
    cluster_node.assert_untouched();
    server.put(node_with(POD_CIDRS, ADDRESSES));
    wait_for(&cluster_node, "the rules", &told_by(POD_CIDRS), &[]);
    assert_eq!(count_lines(&sluice.stop(), &["wait for Node"]), 1);
}

/// Said once, when the Node is known.
#[test]
fn a_doubtful_setting_is_named_at_the_start() {
    if !require_root("a_doubtful_setting_is_named_at_the_start") {
        return;
    }
    let cluster_node = ClusterNode::new("node-doubt");
    let server = ApiServer::start_on(cluster_node.listen());
    let objects = slices("web", &[5])
        .into_iter()
        .chain([service("web", 1, 80), node_with(["fd00:10:244:b::/64", "fd00:10:244:c::/64"], ADDRESSES)]);
    let sluice = start(&cluster_node, &server, objects);
    wait_for(&cluster_node, "the rules", &[format!("{NAMESPACE}/web:http")], &[]);
    let words = ["WARN", "the Node's spec.podCIDRs: no range is IPv4"];
    assert_eq!(count_lines(&sluice.stop(), &words), 1);
}
