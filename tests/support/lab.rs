//! The laboratory: two nodes, an outside client and pods, each a network namespace, joined as a cluster is.
//!
//! ```text
//!             wire (172.31.0.0/24, fd31::/64)
//!        .11 /          | .12        \ .100
//!       node-a       node-b         outside
//!     cni0 .11.1     cni0 .12.1
//!     /   |   \         |
//!  pod-a1 a2 client   pod-b1      10.244.11.0/24 on node-a, 10.244.12.0/24 on node-b, and their v6 twins
//! ```
//!
//! Only node-a runs a proxy. Everybody else sends what is for a service to node-a.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;

use super::Scratch;
use super::netns::{Namespace, set_sysctl};
use super::traffic::Backend;

/// A pod of the lab: `number` is the last part of its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pod {
    pub name: &'static str,
    pub node: Node,
    number: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    A,
    B,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

pub const A1: Pod = Pod { name: "pod-a1", node: Node::A, number: 0x21 };
pub const A2: Pod = Pod { name: "pod-a2", node: Node::A, number: 0x22 };
pub const B1: Pod = Pod { name: "pod-b1", node: Node::B, number: 0x21 };
/// A pod that is no backend.
pub const CLIENT: Pod = Pod { name: "pod-client", node: Node::A, number: 0x30 };
const PODS: [Pod; 4] = [A1, A2, B1, CLIENT];

impl Pod {
    pub fn address(self, family: Family) -> IpAddr {
        self.node.pod_address(family, self.number)
    }
}

impl Node {
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "node-a",
            Self::B => "node-b",
        }
    }

    /// 11 and 12: the third part of the pod range and the last of the node's address.
    fn number(self) -> u8 {
        match self {
            Self::A => 11,
            Self::B => 12,
        }
    }

    pub fn address(self, family: Family) -> IpAddr {
        host_address(family, self.number())
    }

    /// The node's own address among its pods, which they see when it hides a sender.
    pub fn bridge_address(self, family: Family) -> IpAddr {
        self.pod_address(family, 1)
    }

    /// The ranges of the node's pods, IPv4 first.
    pub fn pod_ranges(self) -> [String; 2] {
        FAMILIES.map(|family| format!("{}/{}", self.pod_address(family, 0), range_length(family)))
    }

    fn pod_address(self, family: Family, number: u8) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(10, 244, self.number(), number).into(),
            Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x244, self.number().into(), 0, 0, 0, number.into()).into(),
        }
    }
}

fn range_length(family: Family) -> u8 {
    if family == Family::V4 { 24 } else { 64 }
}

fn host_address(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(172, 31, 0, number).into(),
        Family::V6 => Ipv6Addr::new(0xfd31, 0, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

/// The outside client's address.
pub fn outside_address(family: Family) -> IpAddr {
    host_address(family, 100)
}

#[derive(Debug)]
pub struct Lab {
    backends: Mutex<Vec<(Pod, Backend)>>,
    pods: Vec<(Pod, Namespace)>,
    pub node_a: Namespace,
    node_b: Namespace,
    pub outside: Namespace,
    wire: Namespace,
    pub scratch: Scratch,
}

impl Lab {
    /// The whole laboratory, with a backend in each of A1, A2 and B1.
    ///
    /// # Panics
    /// When a part of it cannot be made.
    pub fn new(test: &str) -> Self {
        let mut lab = Self {
            backends: Mutex::default(),
            pods: PODS.iter().map(|pod| (*pod, Namespace::new(test, pod.name))).collect(),
            node_a: Namespace::new(test, "node-a"),
            node_b: Namespace::new(test, "node-b"),
            outside: Namespace::new(test, "outside"),
            wire: Namespace::new(test, "wire"),
            scratch: Scratch::new(test),
        };
        lab.join_hosts();
        for (pod, namespace) in &lab.pods {
            plug_pod(*pod, namespace, lab.node(pod.node));
        }
        lab.backends = Mutex::new([A1, A2, B1].map(|pod| (pod, Backend::start(lab.pod(pod), pod.name))).into());
        lab
    }

    fn node(&self, node: Node) -> &Namespace {
        match node {
            Node::A => &self.node_a,
            Node::B => &self.node_b,
        }
    }

    /// # Panics
    /// When the pod is none of the lab's.
    pub fn pod(&self, pod: Pod) -> &Namespace {
        &self.pods.iter().find(|(known, _)| *known == pod).expect("a pod of the lab").1
    }

    /// Ends the pod's backend: its ports are closed when this returns.
    ///
    /// # Panics
    /// When a thread that did the same panicked.
    pub fn stop_backend(&self, pod: Pod) {
        self.backends.lock().expect("a lock").retain(|(known, _)| *known != pod);
    }

    fn join_hosts(&self) {
        self.wire.links("link add name br0 type bridge\nlink set br0 up\n");
        for (port, namespace, number) in
            [("to-a", &self.node_a, 11), ("to-b", &self.node_b, 12), ("to-outside", &self.outside, 100)]
        {
            self.wire.links(&plug(port, namespace.name(), "br0"));
            namespace.links(&addresses(host_address(Family::V4, number), 24, host_address(Family::V6, number), 64));
        }
        for (node, other) in [(Node::A, Node::B), (Node::B, Node::A)] {
            self.node(node).run(|| {
                set_sysctl("ipv4/ip_forward", "1");
                set_sysctl("ipv6/conf/all/forwarding", "1");
                // Each refusal counts, not one a second.
                set_sysctl("ipv4/icmp_ratelimit", "0");
                set_sysctl("ipv6/icmp/ratelimit", "0");
            });
            self.node(node).links(&node_routes(node, other));
        }
        // No forwarding outside: what node-a did not take for itself ends there.
        self.outside.links(&default_routes(Node::A.address(Family::V4), Node::A.address(Family::V6)));
    }
}

/// A bridge for the node's pods, the way to the other node's pods, and the way out.
fn node_routes(node: Node, other: Node) -> String {
    let mut batch = String::from("link add name cni0 type bridge\nlink set cni0 up\n");
    for (family, range) in FAMILIES.into_iter().zip(other.pod_ranges()) {
        let (own, length, via) = (node.bridge_address(family), range_length(family), other.address(family));
        let nodad = if family == Family::V6 { " nodad" } else { "" };
        let _ = writeln!(batch, "address add {own}/{length} dev cni0{nodad}");
        let _ = writeln!(batch, "route add {range} via {via}");
    }
    batch + &default_routes(outside_address(Family::V4), outside_address(Family::V6))
}

/// A pod takes its node for its only neighbour, as with most network plugins: an answer from one pod of the bridge to
/// another then passes the node, where its source address is put right.
fn plug_pod(pod: Pod, namespace: &Namespace, node: &Namespace) {
    node.links(&plug(pod.name, namespace.name(), "cni0"));
    let (v4, v6) = (pod.node.bridge_address(Family::V4), pod.node.bridge_address(Family::V6));
    let batch = addresses(pod.address(Family::V4), 32, pod.address(Family::V6), 128)
        + &format!("route add {v4} dev eth0\nroute add {v6} dev eth0\n")
        + &default_routes(v4, v6);
    namespace.links(&batch);
}

/// Joins a namespace's new `eth0` to a bridge. Hairpin: a pod that reaches itself comes back out of its own port.
fn plug(port: &str, namespace: &str, bridge: &str) -> String {
    format!(
        "link add name {port} type veth peer name eth0 netns {namespace}\n\
         link set dev {port} master {bridge}\n\
         link set dev {port} type bridge_slave hairpin on\n\
         link set dev {port} up\n"
    )
}

fn addresses(v4: IpAddr, v4_length: u8, v6: IpAddr, v6_length: u8) -> String {
    format!("link set eth0 up\naddress add {v4}/{v4_length} dev eth0\naddress add {v6}/{v6_length} dev eth0 nodad\n")
}

fn default_routes(v4: IpAddr, v6: IpAddr) -> String {
    format!("route add default via {v4}\nroute add default via {v6}\n")
}
