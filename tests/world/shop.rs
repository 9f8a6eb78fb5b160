//! A few API objects in which a test changes what it is about: the Service shop/web and its endpoints on two nodes.

use serde_json::{Value, json};
use sluice::config::{DetectLocal, RuleConfig};
use sluice::model::{EndpointSlice, Event, Node, Service, State};
use sluice::net::{PerFamily, parse_cidr};

pub fn config() -> RuleConfig {
    let cidrs = PerFamily { v4: parse_cidr("10.244.0.0/16"), v6: parse_cidr("fd00:10:244::/56") };
    RuleConfig { detect_local: DetectLocal::ClusterCidr(cidrs), ..super::config() }
}

pub fn decode<T: serde::de::DeserializeOwned>(object: &Value) -> T {
    serde_json::from_value(object.clone()).expect("an object of its kind")
}

pub fn event(object: &Value) -> Event {
    match object["kind"].as_str() {
        Some("Service") => {
            let parsed = Service::from_object(&decode(object));
            Event::Service(parsed.key, parsed.value)
        }
        Some("EndpointSlice") => {
            let parsed = EndpointSlice::from_object(&decode(object));
            Event::Slice(parsed.key, parsed.value)
        }
        _ => {
            let parsed = Node::from_object(&decode(object));
            Event::Node(parsed.key, parsed.value)
        }
    }
}

/// The addresses of node-a's interfaces.
pub fn addresses() -> Event {
    let addresses = ["127.0.0.1", "172.31.0.11", "192.0.2.11", "::1", "fe80::1", "fd31::b"];
    Event::Addresses(addresses.map(|a| a.parse().expect("an address")).to_vec())
}

/// The state of node-a with these objects.
pub fn state(objects: &[Value]) -> State {
    let mut state = State::new("node-a");
    for object in objects {
        state.apply(event(object));
    }
    state.apply(addresses());
    state
}

/// A Service shop/web with ClusterIP 10.96.0.1 and one unnamed TCP port, `spec` laid over it.
pub fn service(spec: &Value) -> Value {
    let mut whole = json!({ "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ipFamilies": ["IPv4"],
        "ports": [{ "protocol": "TCP", "port": 80 }] });
    lay_over(&mut whole, spec);
    json!({ "kind": "Service", "metadata": { "namespace": "shop", "name": "web" }, "spec": whole })
}

pub fn lay_over(whole: &mut Value, part: &Value) {
    for (key, value) in part.as_object().expect("fields") {
        whole[key] = value.clone();
    }
}

/// A load balancer with these ingress IPs, `spec` laid over it.
pub fn load_balancer(ips: &[&str], spec: &Value) -> Value {
    let mut object = service(&json!({ "type": "LoadBalancer" }));
    lay_over(&mut object["spec"], spec);
    object["status"] = json!({ "loadBalancer": { "ingress": ips.iter().map(|ip| json!({ "ip": ip })).collect::<Vec<_>>() } });
    object
}

pub fn slice(name: &str, endpoints: &Value) -> Value {
    json!({ "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
        "metadata": { "namespace": "shop", "name": name, "labels": { "kubernetes.io/service-name": "web" } },
        "ports": [{ "name": "", "protocol": "TCP", "port": 8080 }] })
}

pub fn remote() -> Value {
    slice("web-a", &json!([{ "addresses": ["10.244.2.1"], "nodeName": "node-b" }]))
}

pub fn local() -> Value {
    slice("web-a", &json!([{ "addresses": ["10.244.1.1"], "nodeName": "node-a" }]))
}

pub fn node(addresses: &[(&str, &str)]) -> Value {
    let listed: Vec<_> = addresses.iter().map(|(kind, address)| json!({ "type": kind, "address": address })).collect();
    json!({ "kind": "Node", "metadata": { "name": "node-a" }, "status": { "addresses": listed } })
}
