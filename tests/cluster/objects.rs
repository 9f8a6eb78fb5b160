//! Objects of a cluster with both families, by number: Service `n` has the addresses and the node port of `n`, and
//! endpoints that are numbered too.

use serde_json::{Value, json};

pub const NODE: &str = "node-a";
/// Where all objects of these tests live.
pub const NAMESPACE: &str = "sluice-test";

pub fn cluster_ip(number: u8) -> String {
    format!("10.96.9.{number}")
}

fn cluster_ip6(number: u8) -> String {
    format!("fd00:10:96::9{number:02x}")
}

/// A dual-stack Service on `port`.
pub fn service(name: &str, number: u8, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "type": "NodePort", "clusterIP": cluster_ip(number), "clusterIPs": [cluster_ip(number), cluster_ip6(number)],
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"name": "http", "protocol": "TCP", "port": port, "targetPort": 8080, "nodePort": 30_900 + u16::from(number)}],
        },
    })
}

/// A slice of `service` in each family, one endpoint per number.
pub fn slices(service: &str, endpoints: &[u8]) -> [Value; 2] {
    let number = |number: &u8| (*number, json!({}));
    slices_with(service, &endpoints.iter().map(number).collect::<Vec<_>>())
}

/// As `slices`, with something more said of each endpoint.
pub fn slices_with(service: &str, endpoints: &[(u8, Value)]) -> [Value; 2] {
    [("IPv4", "10.244.11."), ("IPv6", "fd00:10:244:b::")].map(|(family, prefix)| {
        let endpoint = |(number, more): &(u8, Value)| {
            let mut endpoint = json!({"addresses": [format!("{prefix}{number}")], "nodeName": NODE,
                "conditions": {"ready": true, "serving": true, "terminating": false}});
            for (key, value) in more.as_object().into_iter().flatten() {
                endpoint[key] = value.clone();
            }
            endpoint
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"name": slice_name(service, family), "namespace": NAMESPACE,
                         "labels": {"kubernetes.io/service-name": service}},
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
            "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        })
    })
}

pub fn slice_names(service: &str) -> [String; 2] {
    ["IPv4", "IPv6"].map(|family| slice_name(service, family))
}

fn slice_name(service: &str, family: &str) -> String {
    format!("{service}-{}", family.to_lowercase())
}

pub fn node(zone: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": {"topology.kubernetes.io/zone": zone}},
           "status": {"addresses": [{"type": "InternalIP", "address": "172.31.0.11"}, {"type": "InternalIP", "address": "fd31::b"}]}})
}

pub fn labelled(mut object: Value, label: &str, value: &str) -> Value {
    object["metadata"]["labels"][label] = json!(value);
    object
}
