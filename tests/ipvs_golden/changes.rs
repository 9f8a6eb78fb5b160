//! From ipvs mode to iptables mode and back, and `--cleanup` after either: nothing of a mode that was left stays, and what
//! is somebody else's does.

use std::path::Path;
use std::process::Command;

use super::support::golden::{FAMILIES, GOLDEN, name};
use super::support::ipvs::{self, DUMPS};
use super::support::machine::leave;
use super::support::netns::Namespace;
use super::support::proxy::BINARY as SLUICE;
use super::{in_mode, succeed};

pub const SCENARIOS: [&str; 2] = ["dual-stack-loadbalancer", "loadbalancer-source-ranges"];

/// Others' virtual servers, below a range that the proxy is told of, and their sets.
const EXCLUDED: &str = "--ipvs-exclude-cidrs=198.51.100.200/30,fd00:f::/64";
const FOREIGN_SERVERS: &str = "\
-A -t 198.51.100.201:443 -s rr
-a -t 198.51.100.201:443 -r 10.244.12.250:8443 -m -w 1
-A -t [fd00:f::1]:443 -s rr
";
const FOREIGN_SETS: &str = "\
create KUBE-FOREIGN hash:ip family inet hashsize 1024 maxelem 65536
add KUBE-FOREIGN 192.0.2.7
create foreign bitmap:port range 0-100
add foreign 53
";

fn put_foreign_things(node: &Namespace) {
    node.feed(&["ipvsadm", "-R"], FOREIGN_SERVERS);
    node.feed(&["ipset", "restore"], FOREIGN_SETS);
    // An address of no node, so that no node port is on it.
    node.links("address add fe80::feed/64 dev eth0 nodad\n");
}

/// What is there of ipvs mode beside rules is others'.
fn expect_foreign_things_alone(node: &Namespace) {
    let look = "ipvsadm -Sn; echo @; ipset save; echo @; ip -brief link show type dummy; echo @; ip -brief address show dev eth0";
    let printed = node.output(&["sh", "-ec", look]);
    let texts: Vec<_> = printed.split("@\n").collect();
    let [servers, sets, devices, addresses] = texts[..] else { panic!("not four texts: {printed}") };
    assert_eq!(ipvs::services(servers), FOREIGN_SERVERS);
    assert_eq!(ipvs::sets_and_members(sets), FOREIGN_SETS);
    assert_eq!(devices, "", "kube-ipvs0 goes");
    for address in ["172.31.0.11/24", "fd31::b/64", "fe80::feed/64"] {
        assert!(addresses.contains(address), "{address} on eth0 stays: {addresses}");
    }
}

/// `text` without all lines of others that a dump of ipvs mode does not know.
fn without_foreign(text: &str) -> String {
    let foreign = |line: &&str| !FOREIGN_SERVERS.contains(line) && !FOREIGN_SETS.contains(line);
    text.lines().filter(foreign).flat_map(|line| [line, "\n"]).collect()
}

/// What iptables mode shares with kubelet, and leaves there as `--cleanup` does (behaviour.md §3.5).
fn without_firewall(rules: &str) -> String {
    rules.lines().filter(|line| !line.contains("KUBE-FIREWALL")).flat_map(|line| [line, "\n"]).collect()
}

fn program(mode: &str, node: &Namespace, scenario: &Path) {
    succeed(in_mode(mode, node, scenario).arg(EXCLUDED)).expect("to be programmed");
}

fn clean_up(node: &Namespace) {
    let mut command: Command = node.command(SLUICE);
    succeed(command.args(["--cleanup", EXCLUDED])).expect("to be removed");
    expect_foreign_things_alone(node);
    for (_, tool, _) in FAMILIES {
        let rules = node.output(&[tool]);
        assert!(!without_firewall(&rules).contains("KUBE-"), "{tool}: {rules}");
    }
}

#[test]
#[ignore = "run in the virtual machine of what_is_programmed_is_kube_proxys"]
fn a_change_of_mode_leaves_nothing_of_the_other() {
    for scenario in SCENARIOS {
        let scenario = Path::new(GOLDEN).join(scenario);
        let node = Namespace::golden(&format!("mode-{}", name(&scenario)));
        put_foreign_things(&node);
        program("--mode=ipvs", &node, &scenario);
        program("--mode=iptables", &node, &scenario);
        expect_foreign_things_alone(&node);
        for (_, tool, dump) in FAMILIES {
            leave(&format!("changed/{}/iptables/{dump}", name(&scenario)), &node.output(&[tool]));
        }
        program("--mode=ipvs", &node, &scenario);
        let dumps = ipvs::dumps(&node);
        for dump in DUMPS {
            leave(&format!("changed/{}/ipvs/{dump}", name(&scenario)), &without_firewall(&without_foreign(&dumps[dump])));
        }
        clean_up(&node);
    }
}

#[test]
#[ignore = "run in the virtual machine of what_is_programmed_is_kube_proxys"]
fn cleanup_after_iptables_mode_leaves_nothing() {
    let scenario = Path::new(GOLDEN).join(SCENARIOS[0]);
    let node = Namespace::golden("cleanup-iptables");
    put_foreign_things(&node);
    program("--mode=iptables", &node, &scenario);
    clean_up(&node);
    // And once more, where nothing is left.
    clean_up(&node);
}
