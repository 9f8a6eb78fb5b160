//! The Kubernetes objects of the lab, written as manifests: each Service can be entered through every door there is
//! (cluster IP, node port, external IP, load balancer IP), in both families, on port 80 of every protocol.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use serde_json::{Value, json};

use super::lab::{FAMILIES, Family, Node, Pod};
use super::traffic::Protocol;

const PORT: u16 = 80;
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// A way into a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    ClusterIp,
    /// The node port on node-a's own address.
    NodePort,
    /// The node port on 127.0.0.1; there is no such thing in IPv6.
    LocalhostPort,
    ExternalIp,
    LoadBalancer,
}

/// The doors that lead in from outside the cluster.
pub const OUTER_DOORS: [Door; 3] = [Door::NodePort, Door::ExternalIp, Door::LoadBalancer];

/// A Service of the lab; `number` makes its addresses and ports.
#[derive(Debug, Clone)]
pub struct Service {
    pub name: &'static str,
    pub number: u8,
    pub endpoints: Vec<Pod>,
    /// Endpoints of UDP where they are not those of the other protocols.
    pub udp_endpoints: Option<Vec<Pod>>,
    pub external_local: bool,
    pub internal_local: bool,
    /// Seconds of affinity to the client's address.
    pub affinity: Option<u32>,
    pub source_ranges: Vec<&'static str>,
}

impl Service {
    pub fn new(name: &'static str, number: u8, endpoints: &[Pod]) -> Self {
        Self {
            name,
            number,
            endpoints: endpoints.to_vec(),
            udp_endpoints: None,
            external_local: false,
            internal_local: false,
            affinity: None,
            source_ranges: Vec::new(),
        }
    }

    pub fn address(&self, family: Family, door: Door) -> IpAddr {
        let number = self.number;
        let (v4, v6) = match door {
            Door::ClusterIp => (Ipv4Addr::new(10, 96, 0, number), Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number.into())),
            Door::ExternalIp => {
                (Ipv4Addr::new(203, 0, 113, number), Ipv6Addr::new(0x2001, 0xdb8, 0xe, 0, 0, 0, 0, number.into()))
            }
            Door::LoadBalancer => {
                (Ipv4Addr::new(198, 51, 100, number), Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, number.into()))
            }
            Door::NodePort => return Node::A.address(family),
            Door::LocalhostPort => (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
        };
        if family == Family::V4 { v4.into() } else { v6.into() }
    }

    pub fn at(&self, family: Family, door: Door) -> SocketAddr {
        let port = if matches!(door, Door::NodePort | Door::LocalhostPort) { self.node_port() } else { PORT };
        (self.address(family, door), port).into()
    }

    fn node_port(&self) -> u16 {
        30_000 + u16::from(self.number)
    }

    fn endpoints_of(&self, protocol: Protocol) -> &[Pod] {
        self.udp_endpoints.as_deref().filter(|_| protocol == Protocol::Udp).unwrap_or(&self.endpoints)
    }

    fn object(&self) -> Value {
        let both = |door| FAMILIES.map(|family| self.address(family, door).to_string());
        let ports = PROTOCOLS.map(|protocol| {
            json!({"name": port_name(protocol), "protocol": protocol.name(), "port": PORT,
                   "targetPort": protocol.backend_port(), "nodePort": self.node_port()})
        });
        let mut spec = json!({
            "type": "LoadBalancer",
            "clusterIP": self.address(Family::V4, Door::ClusterIp).to_string(),
            "clusterIPs": both(Door::ClusterIp),
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "ports": ports,
            "externalIPs": both(Door::ExternalIp),
            "externalTrafficPolicy": policy(self.external_local),
            "internalTrafficPolicy": policy(self.internal_local),
            "loadBalancerSourceRanges": self.source_ranges,
        });
        if let Some(seconds) = self.affinity {
            spec["sessionAffinity"] = "ClientIP".into();
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
        }
        if self.external_local {
            spec["healthCheckNodePort"] = (32_000 + u16::from(self.number)).into();
        }
        let ingress = both(Door::LoadBalancer).map(|ip| json!({"ip": ip, "ipMode": "VIP"}));
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": self.name, "namespace": "lab"},
               "spec": spec, "status": {"loadBalancer": {"ingress": ingress}}})
    }

    /// One slice per family and protocol, as protocols may have different endpoints.
    fn slices(&self) -> impl Iterator<Item = Value> + '_ {
        FAMILIES.iter().flat_map(move |family| PROTOCOLS.map(|protocol| self.slice(*family, protocol)))
    }

    fn slice(&self, family: Family, protocol: Protocol) -> Value {
        let address_type = if family == Family::V4 { "IPv4" } else { "IPv6" };
        let endpoints: Vec<_> = self.endpoints_of(protocol).iter().map(|pod| endpoint(*pod, family)).collect();
        let port = port_name(protocol);
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
               "metadata": {"name": format!("{}-{port}-{}", self.name, address_type.to_lowercase()), "namespace": "lab",
                            "labels": {"kubernetes.io/service-name": self.name}},
               "addressType": address_type,
               "ports": [{"name": port, "protocol": protocol.name(), "port": protocol.backend_port()}],
               "endpoints": endpoints})
    }
}

/// Writes the lab's nodes and these Services to a manifest, at once: the file appears under its name complete.
///
/// # Panics
/// When it cannot be written.
pub fn write_manifest(path: &Path, services: &[Service]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items(services)});
    let draft = path.with_extension("draft");
    fs::write(&draft, format!("{list:#}\n")).expect("to write a manifest");
    fs::rename(&draft, path).expect("to put the manifest in place");
}

/// The lab's nodes and these Services as objects.
pub fn items(services: &[Service]) -> Vec<Value> {
    let nodes = [Node::A, Node::B].map(node_object);
    let services = services.iter().flat_map(|service| std::iter::once(service.object()).chain(service.slices()));
    nodes.into_iter().chain(services).collect()
}

fn policy(local: bool) -> &'static str {
    if local { "Local" } else { "Cluster" }
}

fn port_name(protocol: Protocol) -> String {
    protocol.name().to_lowercase()
}

fn endpoint(pod: Pod, family: Family) -> Value {
    json!({"addresses": [pod.address(family).to_string()], "nodeName": pod.node.name(),
           "conditions": {"ready": true, "serving": true, "terminating": false}})
}

fn node_object(node: Node) -> Value {
    let addresses = FAMILIES.map(|family| json!({"type": "InternalIP", "address": node.address(family).to_string()}));
    let ranges = node.pod_ranges();
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name()},
           "spec": {"podCIDR": ranges[0], "podCIDRs": ranges}, "status": {"addresses": addresses}})
}
