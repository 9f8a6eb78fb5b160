//! What packets and neighbours make of an address: the same, whether it is one of the device or a route, but for what is
//! said here.

use std::net::{IpAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use sluice::net::Family;
use sluice::netlink::Sent;
use sluice::netlink::link::{LocalAddresses, Style};
use sluice::ruleset::NodeOp;

use super::netns::in_namespace;
use super::shell;

const STYLES: [Style; 2] = [Style::Device, Style::Routes];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A node whose `eth0` leads to a neighbour, a named namespace, and which has a local address of each family.
struct Node {
    neighbour: String,
}

const LOCAL: [&str; 2] = ["10.96.0.1", "fd00::1"];

impl Node {
    fn new(test: &str, style: Style) -> Self {
        let neighbour = format!("{test}-{style:?}");
        shell(&format!(
            "ip link set lo up; ip netns add {neighbour}
             ip link add eth0 type veth peer name eth0 netns {neighbour}
             ip link set eth0 up; ip address add 192.0.2.1/24 dev eth0; ip address add fd11::1/64 dev eth0 nodad
             ip -n {neighbour} link set eth0 up
             ip -n {neighbour} address add 192.0.2.2/24 dev eth0; ip -n {neighbour} address add fd11::2/64 dev eth0 nodad
             for family in 4 6; do
                 ip netns exec {neighbour} bash -c \"echo 50 >/proc/sys/net/ipv$family/neigh/eth0/retrans_time_ms\"
             done"
        ));
        let mut local = LocalAddresses::open(style).unwrap();
        let ops = [NodeOp::MakeDevice, NodeOp::AddAddress(ip(LOCAL[0])), NodeOp::AddAddress(ip(LOCAL[1]))];
        let mut sent = Sent::default();
        local.apply(&ops, 0, &mut sent).unwrap();
        assert_eq!(sent.refused, []);
        Self { neighbour }
    }

    fn in_neighbour(&self, line: &str) -> String {
        shell(&format!("ip netns exec {} bash -ec '{line}'", self.neighbour))
    }

    /// Whether the node tells its neighbour that it has the address, asked for on the link.
    fn answers_for(&self, address: &str) -> bool {
        self.in_neighbour(&format!("ip neigh flush dev eth0; ip route replace {address} dev eth0; echo x >/dev/udp/{address}/9"));
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let entry = self.in_neighbour(&format!("ip neigh show {address}"));
            if entry.contains("lladdr") {
                return true;
            }
            if entry.contains("FAILED") {
                return false;
            }
            assert!(Instant::now() < deadline, "neither answered nor given up: {entry}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        shell(&format!("ip netns del {}", self.neighbour));
    }
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn neighbours_hear_the_same() {
    for style in STYLES {
        in_namespace(move || {
            let node = Node::new("hear", style);
            for (ignore, answers) in [("0", true), ("1", false), ("2", false)] {
                shell(&format!("echo {ignore} >/proc/sys/net/ipv4/conf/all/arp_ignore"));
                assert_eq!(node.answers_for(LOCAL[0]), answers, "{style:?}, arp_ignore {ignore}");
                assert!(node.answers_for("192.0.2.1"), "its own address");
            }
            assert!(!node.answers_for(LOCAL[1]), "{style:?}: IPv6 answers for an interface's own addresses alone");
            assert!(node.answers_for("fd11::1"), "its own address");
        });
    }
}

/// Packets of the node and of its neighbour, which sends them to the node as its router.
#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn addrtype_says_local() {
    for style in STYLES {
        in_namespace(move || {
            let node = Node::new("type", style);
            for (address, router, tool) in [(LOCAL[0], "192.0.2.1", "iptables"), (LOCAL[1], "fd11::1", "ip6tables")] {
                shell(&format!(
                    "for chain in OUTPUT PREROUTING; do
                         {tool} -t mangle -A $chain -d {address} -p udp --dport 9 -m addrtype --dst-type LOCAL
                     done
                     {tool} -A INPUT -d {address} -p udp --dport 9"
                ));
                let counted = || {
                    ["OUTPUT", "PREROUTING", "INPUT"].map(|chain| {
                        let rule = shell(&format!("{tool}-save -c | grep -e '-A {chain} -d {address}'"));
                        rule.trim_start_matches('[').split(':').next().unwrap().to_owned()
                    })
                };
                shell(&format!("echo x >/dev/udp/{address}/9"));
                assert_eq!(counted(), ["1", "1", "1"], "{style:?}: of the node itself");
                node.in_neighbour(&format!("ip route add {address} via {router}; echo x >/dev/udp/{address}/9"));
                assert_eq!(counted(), ["1", "2", "2"], "{style:?}: of the neighbour");
            }
        });
    }
}

/// In IPv6 only an address of an interface can be a source.
#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn the_source_is_the_address_itself_but_for_ipv6_routes() {
    let source = |to: &str| {
        let any = if Family::of(ip(to)) == Family::Ipv4 { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect((ip(to), 9)).unwrap();
        socket.local_addr().unwrap().ip()
    };
    for style in STYLES {
        in_namespace(move || {
            let _node = Node::new("source", style);
            assert_eq!(source(LOCAL[0]), ip(LOCAL[0]), "{style:?}");
            assert!(UdpSocket::bind((ip(LOCAL[0]), 0)).is_ok(), "{style:?}");
            let (own, binds) = if style == Style::Device { (LOCAL[1], true) } else { ("fd11::1", false) };
            assert_eq!(source(LOCAL[1]), ip(own), "{style:?}");
            assert_eq!(UdpSocket::bind((ip(LOCAL[1]), 0)).is_ok(), binds, "{style:?}");
        });
    }
}
