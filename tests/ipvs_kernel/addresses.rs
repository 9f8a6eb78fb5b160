//! The device `kube-ipvs0` and local addresses in both styles, as `ip` shows them, and who is told of their changes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use sluice::net::Family;
use sluice::netlink::address::{AddressMonitor, DeviceChange};
use sluice::netlink::link::{LocalAddresses, Style, interface_index};
use sluice::netlink::{Errno, Sent};
use sluice::ruleset::NodeOp;

use super::netns::in_namespace;
use super::{refusals, shell};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn add(address: &str) -> NodeOp {
    NodeOp::AddAddress(ip(address))
}

fn delete(address: &str) -> NodeOp {
    NodeOp::DeleteAddress(ip(address))
}

fn apply(local: &mut LocalAddresses, ops: &[NodeOp]) -> Sent {
    let mut sent = Sent::default();
    local.apply(ops, 0, &mut sent).unwrap();
    sent
}

/// Does what must not be refused.
fn must(local: &mut LocalAddresses, ops: &[NodeOp]) -> Sent {
    let sent = apply(local, ops);
    assert_eq!(sent.refused, []);
    sent
}

fn addresses(local: &mut LocalAddresses, family: Family) -> Option<Vec<IpAddr>> {
    let mut found = local.addresses(family).unwrap()?;
    found.sort_unstable();
    Some(found)
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn the_device_is_as_kube_proxys() {
    in_namespace(|| {
        let mut local = LocalAddresses::open(Style::Device).unwrap();
        assert_eq!(addresses(&mut local, Family::Ipv4), None);
        assert!(!local.delete_device().unwrap());
        must(&mut local, &[NodeOp::MakeDevice, NodeOp::MakeDevice]);
        must(&mut local, &[NodeOp::MakeDevice]);
        let shown = shell("ip -d link show kube-ipvs0");
        assert!(shown.contains("<BROADCAST,NOARP>") && shown.contains("state DOWN") && shown.contains("mtu 1500"), "{shown}");
        assert!(shown.lines().any(|line| line.trim_start().starts_with("dummy ")), "{shown}");
        assert_eq!(addresses(&mut local, Family::Ipv4), Some(Vec::new()));

        let sent = must(&mut local, &[add("10.96.0.1"), add("fd00::1"), add("10.96.0.1"), add("10.96.0.2"), add("fd00::1")]);
        assert_eq!((sent.messages, sent.sends), (5, 1));
        let shown = shell("ip -o address show dev kube-ipvs0");
        for line in
            ["inet 10.96.0.1/32 scope global kube-ipvs0", "inet 10.96.0.2/32 scope global", "inet6 fd00::1/128 scope global"]
        {
            assert!(shown.contains(line), "{line}: {shown}");
        }
        assert!(!shown.contains("tentative") && !shown.contains("fe80"), "{shown}");
        assert!(
            shell("ip -6 route show table local").contains("local fd00::1 dev kube-ipvs0"),
            "at once, not when it is checked"
        );
        assert_eq!(addresses(&mut local, Family::Ipv4), Some(vec![ip("10.96.0.1"), ip("10.96.0.2")]));
        assert_eq!(addresses(&mut local, Family::Ipv6), Some(vec![ip("fd00::1")]));

        must(&mut local, &[delete("10.96.0.1"), delete("10.96.0.1"), delete("fd00::1"), delete("fd00::1")]);
        assert_eq!(addresses(&mut local, Family::Ipv4), Some(vec![ip("10.96.0.2")]));
        assert_eq!(addresses(&mut local, Family::Ipv6), Some(Vec::new()));
        assert!(local.delete_device().unwrap());
        assert_eq!(addresses(&mut local, Family::Ipv4), None);
    });
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn a_device_that_was_exchanged_is_found_again() {
    in_namespace(|| {
        let mut local = LocalAddresses::open(Style::Device).unwrap();
        let sent = apply(&mut local, &[add("10.96.0.1"), delete("10.96.0.1")]);
        assert_eq!(refusals(&sent), [(0, Errno::ENODEV)], "what is not there needs no deletion");
        must(&mut local, &[NodeOp::MakeDevice, add("10.96.0.1")]);
        shell("ip link del kube-ipvs0; ip link add kube-ipvs0 type dummy; ip address add fe80::7/64 dev kube-ipvs0 nodad");
        must(&mut local, &[add("10.96.0.2")]);
        assert_eq!(addresses(&mut local, Family::Ipv4), Some(vec![ip("10.96.0.2")]));
        assert_eq!(addresses(&mut local, Family::Ipv6), Some(Vec::new()), "link-local ones are left out");
    });
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn a_device_of_another_type_is_somebody_elses() {
    in_namespace(|| {
        shell("ip link add kube-ipvs0 type bridge");
        let mut local = LocalAddresses::open(Style::Device).unwrap();
        let sent = apply(&mut local, &[NodeOp::MakeDevice, add("10.96.0.1")]);
        let refused: Vec<_> = sent.refused.iter().map(ToString::to_string).collect();
        let words = [
            "make device kube-ipvs0, one of type bridge has that name: EEXIST (File exists)",
            "add local address 10.96.0.1: ENODEV (No such device)",
        ];
        assert_eq!(refused, words);
        assert_eq!(addresses(&mut local, Family::Ipv4), None);
        assert!(!local.delete_device().unwrap());
        assert!(shell("ip -d link show kube-ipvs0").contains("bridge"));
    });
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn routes_are_ours_alone() {
    in_namespace(|| {
        shell(
            "ip link set lo up; ip link add eth0 type dummy; ip link set eth0 up; ip address add 10.96.0.9/24 dev eth0
             ip route add local 10.96.0.7 dev lo; ip -6 route add local fd00::7 dev lo; ip route add 10.96.0.8 dev eth0 proto 115",
        );
        let before = shell("ip route show table all; ip -6 route show table all");
        let mut local = LocalAddresses::open(Style::Routes).unwrap();
        assert_eq!(addresses(&mut local, Family::Ipv4), Some(Vec::new()));
        let sent = must(&mut local, &[add("10.96.0.1"), add("fd00::1"), add("10.96.0.1"), add("fd00::1"), add("10.96.0.9")]);
        assert_eq!((sent.messages, sent.sends), (5, 1));
        assert!(shell("ip route show table local").contains("local 10.96.0.1 dev lo proto 115 scope host"));
        assert!(shell("ip -6 route show table local").contains("local fd00::1 dev lo proto 115"));
        assert_eq!(addresses(&mut local, Family::Ipv4), Some(vec![ip("10.96.0.1"), ip("10.96.0.9")]));
        assert_eq!(addresses(&mut local, Family::Ipv6), Some(vec![ip("fd00::1")]));
        // Neither others' routes nor that of an address.
        must(&mut local, &[delete("10.96.0.7"), delete("fd00::7"), delete("10.96.0.9"), delete("10.96.0.3"), delete("fd00::3")]);
        assert_eq!(addresses(&mut local, Family::Ipv4), Some(vec![ip("10.96.0.1")]));
        assert_eq!(local.delete_routes().unwrap(), 2);
        assert_eq!(local.delete_routes().unwrap(), 0);
        assert_eq!(shell("ip route show table all; ip -6 route show table all"), before);
    });
}

/// Who changes from one style to the other makes the new addresses before the old ones go.
#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn the_style_is_changed_without_a_gap() {
    in_namespace(|| {
        shell("ip link set lo up");
        let (mut device, mut routes) =
            (LocalAddresses::open(Style::Device).unwrap(), LocalAddresses::open(Style::Routes).unwrap());
        let both = [add("10.96.0.1"), add("fd00::1")];
        let both_are_local =
            || assert_eq!(shell("(ip route get 10.96.0.1; ip -6 route get fd00::1) | grep -c ^local").trim(), "2");
        must(&mut device, &[NodeOp::MakeDevice]);
        must(&mut device, &both);
        must(&mut routes, &both);
        assert!(device.delete_device().unwrap());
        both_are_local();
        must(&mut device, &[NodeOp::MakeDevice]);
        must(&mut device, &both);
        assert_eq!(routes.delete_routes().unwrap(), 2);
        both_are_local();
    });
}

/// In either style, in few datagrams each, and the kernel lists every one of them. What that takes is the benchmark's
/// (docs/performance.md, "Local addresses").
#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn thousands_are_added_in_few_sends() {
    const COUNT: u32 = 8000;
    in_namespace(|| {
        shell("ip link set lo up");
        for family in Family::ALL {
            let address = |i: u32| match family {
                Family::Ipv4 => IpAddr::from(Ipv4Addr::from(0x0a60_0000 + i)),
                Family::Ipv6 => Ipv6Addr::from(0xfd00_u128 << 112 | u128::from(i)).into(),
            };
            let ops: Vec<_> = (0..COUNT).map(address).map(NodeOp::AddAddress).collect();
            let added = |local: &mut LocalAddresses| {
                let sent = must(local, &ops);
                assert!(sent.sends <= 10, "{sent:?}");
                assert_eq!(local.addresses(family).unwrap().unwrap().len(), ops.len());
            };
            let mut routes = LocalAddresses::open(Style::Routes).unwrap();
            added(&mut routes);
            assert_eq!(routes.delete_routes().unwrap(), ops.len());
            let mut device = LocalAddresses::open(Style::Device).unwrap();
            must(&mut device, &[NodeOp::MakeDevice]);
            added(&mut device);
            assert!(device.delete_device().unwrap());
        }
    });
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn interfaces_are_found_by_name() {
    in_namespace(|| {
        assert_eq!(interface_index("lo").unwrap(), Some(1));
        assert_eq!(interface_index("eth7").unwrap(), None);
        shell("ip link add eth7 index 4711 type dummy");
        assert_eq!(interface_index("eth7").unwrap(), Some(4711));
        let error = interface_index("a-name-longer-than-any").unwrap_err().to_string();
        assert!(error.starts_with("cannot look for a network device: E") && error.ends_with("a-name-longer-than-any"), "{error}");
    });
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn the_devices_changes_are_told_apart() {
    in_namespace(|| {
        shell("ip link set lo up");
        let mut monitor = AddressMonitor::open(Some("kube-ipvs0")).unwrap();
        let mut after = |line: &str| {
            shell(line);
            // All that there is to hear is there; but of an IPv6 address the kernel tells once more later.
            let mut changed = monitor.wait(Duration::from_secs(1)).unwrap();
            changed.device.dedup();
            (changed.others, changed.device, monitor.device())
        };
        let number = |name: &str| interface_index(name).unwrap();
        let link = |exists| vec![DeviceChange::Link { exists }];
        let address = |address: &str, exists| vec![DeviceChange::Address { address: ip(address), exists }];
        assert_eq!(after("ip link add eth0 type dummy"), (false, vec![], None));
        assert_eq!(after("ip address add 192.0.2.1/24 dev eth0"), (true, vec![], None));
        assert_eq!(after("ip link add kube-ipvs0 type dummy"), (false, link(true), number("kube-ipvs0")));
        let (four, six) = (address("10.96.0.1", true), address("fd00::1", true));
        assert_eq!(after("ip address add 10.96.0.1/32 dev kube-ipvs0"), (false, four, number("kube-ipvs0")));
        assert_eq!(after("ip address add fd00::1/128 dev kube-ipvs0 nodad"), (false, six, number("kube-ipvs0")));
        assert_eq!(after("ip address del 192.0.2.1/24 dev eth0"), (true, vec![], number("kube-ipvs0")));
        let both = "ip address add 192.0.2.1/24 dev eth0; ip address del 10.96.0.1/32 dev kube-ipvs0";
        assert_eq!(after(both), (true, address("10.96.0.1", false), number("kube-ipvs0")));
        assert_eq!(after("ip link set eth0 up").1, []);
        let gone = [address("fd00::1", false), link(false)].concat();
        assert_eq!(after("ip link del kube-ipvs0"), (false, gone, None));
        assert_eq!(after("ip link add kube-ipvs0 type dummy"), (false, link(true), number("kube-ipvs0")));
        assert_eq!(after("ip link set kube-ipvs0 name other"), (false, link(false), None));

        // One that was there before is known from the beginning; what was lost is found out.
        let mut monitor = AddressMonitor::open(Some("other")).unwrap();
        assert_eq!(monitor.device(), number("other"));
        shell("for i in {0..3000}; do echo address add 172.16.$((i/250)).$((i%250))/32 dev eth0; done | ip -batch -");
        shell("ip link set other name again; ip link set eth0 down; ip link set eth0 name other");
        let changed = monitor.wait(Duration::ZERO).unwrap();
        assert!(changed.others && changed.device.contains(&DeviceChange::Lost), "{changed:?}");
        assert_eq!(monitor.device(), number("other"));
    });
}
