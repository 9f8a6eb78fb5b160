//! Many Services that nobody asks anything: a table that is full, and changes that are not those of the Service in question.

use std::fs;
use std::ops::Range;
use std::path::Path;

use serde_json::{Value, json};

use super::objects::{Service, items};

/// Services with both families, two ports and `endpoints` endpoints each.
#[derive(Debug, Clone, Copy)]
pub struct Crowd {
    pub services: usize,
    pub endpoints: usize,
}

impl Crowd {
    /// The objects; of the Services in `changed` one endpoint is another.
    pub fn items(self, changed: &Range<usize>) -> impl Iterator<Item = Value> {
        (0..self.services).flat_map(move |number| {
            let first = if changed.contains(&number) { 100 } else { 1 };
            let hosts: Vec<_> = (first..=first).chain(2..=self.endpoints).collect();
            [service(number), slice(number, "IPv4", &hosts), slice(number, "IPv6", &hosts)]
        })
    }

    /// The IPv4 address that only a Service of this number that `changed` leads to.
    pub fn changed_address(number: usize) -> String {
        address(number, "IPv4", 100)
    }

    /// Writes the lab's nodes, its Services, and this crowd to a manifest, at once.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(self, path: &Path, services: &[Service], changed: &Range<usize>) {
        let all: Vec<_> = items(services).into_iter().chain(self.items(changed)).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": all});
        let draft = path.with_extension("draft");
        fs::write(&draft, list.to_string()).expect("to write a manifest");
        fs::rename(&draft, path).expect("to put the manifest in place");
    }
}

fn name(number: usize) -> String {
    format!("crowd-{number}")
}

fn service(number: usize) -> Value {
    let (high, low) = (number / 250, number % 250 + 1);
    let addresses = [format!("10.97.{high}.{low}"), format!("fd00:10:97::{high:x}:{low:x}")];
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name(number), "namespace": "crowd"},
           "spec": {"type": "ClusterIP", "clusterIP": addresses[0], "clusterIPs": addresses,
                    "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
                    "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}]}})
}

fn slice(number: usize, kind: &str, hosts: &[usize]) -> Value {
    let ready = json!({"ready": true, "serving": true, "terminating": false});
    let endpoint = |&host: &usize| json!({"addresses": [address(number, kind, host)], "nodeName": "node-b", "conditions": ready});
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
           "metadata": {"name": format!("{}-{}", name(number), kind.to_lowercase()), "namespace": "crowd",
                        "labels": {"kubernetes.io/service-name": name(number)}},
           "addressType": kind,
           "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
           "endpoints": hosts.iter().map(endpoint).collect::<Vec<_>>()})
}

fn address(number: usize, kind: &str, host: usize) -> String {
    let (high, low) = (number / 250, number % 250);
    if kind == "IPv4" { format!("10.{}.{low}.{host}", 150 + high) } else { format!("fd00:10:150::{high:x}:{low:x}:{host:x}") }
}
