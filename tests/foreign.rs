//! Rules of others on the same node stay as they are, byte for byte and in their order, whatever `sluice` does:
//! Docker's, network plugins', kubelet's, a user's, and those of native nftables.

mod support;

use support::lab::{A1, A2, B1};
use support::netns::Namespace;
use support::objects::Service;
use support::proxy::{Sluice, family_rules, saved_rules};
use support::{Scratch, require_root};

/// The chains that are the proxy's own. KUBE-FIREWALL, KUBE-IPTABLES-HINT and KUBE-KUBELET-CANARY are kubelet's.
const OWN: [&str; 13] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-EXT-",
    "KUBE-FW-",
    "KUBE-SEP-",
];

const NATIVE: &str = "\
table inet user {
	set seen {
		type ipv4_addr
		elements = { 192.0.2.66 }
	}

	chain input {
		type filter hook input priority filter + 10; policy accept;
		ip saddr @seen tcp dport 9 drop
	}
}
";

const NATIVE_NAT: &str = "\
table ip nat {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		tcp dport 9 redirect to :10
	}
}
";

#[test]
fn rules_of_others_stay_as_they_are() {
    if !require_root("foreign rules") {
        return;
    }
    let node = Namespace::golden("foreign");
    let scratch = Scratch::new("foreign");
    for (tool, rules) in
        [("iptables-restore", include_str!("foreign/ipv4.rules")), ("ip6tables-restore", include_str!("foreign/ipv6.rules"))]
    {
        node.feed(&[tool], rules);
    }
    node.feed(&["nft", "-f", "-"], NATIVE);
    let before = foreign(&node);
    assert!(before.contains("-A DOCKER") && before.contains("table inet user"), "{before}");

    let services = [Service::new("web", 1, &[A1, B1]), Service { external_local: true, ..Service::new("far", 2, &[B1]) }];
    let sluice = Sluice::start(&node, &scratch, &services);
    similar("start", &before, &foreign(&node));

    let before = add_around(&node);
    let hooks = hook_rules(&node);
    sluice.change(&[Service::new("web", 1, &[A2])], |rules| !rules.contains("lab/far"));
    similar("a change", &before, &foreign(&node));
    similar("a change, in the built-in chains", &hooks, &hook_rules(&node));

    sluice.stop();
    similar("the end", &before, &foreign(&node));
    similar("the end, in the built-in chains", &hooks, &hook_rules(&node));

    let sluice = Sluice::start(&node, &scratch, &services);
    similar("another start", &before, &foreign(&node));
    similar("another start, in the built-in chains", &hooks, &hook_rules(&node));
    sluice.stop();
}

/// kubelet and network plugins leave tables that hold only the built-in chains they needed; so does a native table
/// of the same name, whose chains have other names.
#[test]
fn tables_that_lack_built_in_chains_are_completed() {
    if !require_root("tables that lack built-in chains") {
        return;
    }
    let node = Namespace::golden("lacking");
    let scratch = Scratch::new("lacking");
    for tool in ["iptables", "ip6tables"] {
        node.output(&[tool, "-t", "mangle", "-N", "KUBE-IPTABLES-HINT"]);
        node.output(&[tool, "-N", "KUBE-FIREWALL"]);
        node.output(&[tool, "-A", "INPUT", "-j", "KUBE-FIREWALL"]);
    }
    node.feed(&["nft", "-f", "-"], NATIVE_NAT);
    let before = node.output(&["nft", "list", "chain", "ip", "nat", "prerouting"]);

    let sluice = Sluice::start(&node, &scratch, &[Service::new("web", 1, &[A1, B1])]);
    for line in ["-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD", "-A PREROUTING"] {
        assert!(saved_rules(&node).contains(line), "{line} is missing:\n{}", saved_rules(&node));
    }
    similar("start", &before, &node.output(&["nft", "list", "chain", "ip", "nat", "prerouting"]));
    sluice.stop();
}

/// A user's rules before, between and after the proxy's jumps; returns what is foreign now.
fn add_around(node: &Namespace) -> String {
    for tool in ["iptables", "ip6tables"] {
        for chain in ["INPUT", "FORWARD", "OUTPUT"] {
            node.output(&[tool, "-I", chain, "1", "-p", "udp", "--dport", "7", "-j", "DROP"]);
            node.output(&[tool, "-I", chain, "3", "-p", "udp", "--dport", "13", "-j", "DROP"]);
            node.output(&[tool, "-A", chain, "-p", "udp", "--dport", "19", "-j", "DROP"]);
        }
        for chain in ["PREROUTING", "OUTPUT", "POSTROUTING"] {
            node.output(&[tool, "-t", "nat", "-I", chain, "1", "-p", "udp", "--dport", "7", "-j", "ACCEPT"]);
            node.output(&[tool, "-t", "nat", "-A", chain, "-p", "udp", "--dport", "19", "-j", "ACCEPT"]);
        }
    }
    foreign(node)
}

/// All that is not the proxy's, in order: chains, rules, and the tables of native nftables.
fn foreign(node: &Namespace) -> String {
    let rules = saved_rules(node);
    let mut lines: Vec<_> = rules.lines().filter(|line| !is_own(line)).collect();
    let native = node.output(&["nft", "list", "table", "inet", "user"]);
    lines.extend(native.lines());
    lines.join("\n")
}

/// Whether a line declares a chain of the proxy's, or is a rule in one, or leads to one.
fn is_own(line: &str) -> bool {
    let own = |word: &str| OWN.iter().any(|name| if name.ends_with('-') { word.starts_with(name) } else { word == *name });
    line.strip_prefix(':').and_then(|line| line.split(' ').next()).is_some_and(own) || line.split(' ').any(own)
}

/// The rules of the built-in chains, the proxy's among them.
fn hook_rules(node: &Namespace) -> String {
    let rules = family_rules(node).concat();
    let hooks = ["-A PREROUTING", "-A INPUT", "-A FORWARD", "-A OUTPUT", "-A POSTROUTING"];
    rules.lines().filter(|line| hooks.iter().any(|hook| line.starts_with(hook))).collect::<Vec<_>>().join("\n")
}

/// # Panics
/// Naming the first line that differs.
fn similar(when: &str, before: &str, after: &str) {
    let differing = before.lines().zip(after.lines()).find(|(before, after)| before != after);
    assert_eq!(differing, None, "first difference after {when}; whole:\n{after}");
    assert_eq!(before.lines().count(), after.lines().count(), "lines after {when}:\n{after}");
}

#[test]
fn iptables_legacy_is_named_and_left_alone() {
    if !require_root("iptables-legacy") {
        return;
    }
    let node = Namespace::golden("legacy");
    let scratch = Scratch::new("legacy");
    node.output(&["iptables-legacy", "-t", "nat", "-A", "PREROUTING", "-p", "udp", "--dport", "7", "-j", "ACCEPT"]);
    let sluice = Sluice::start(&node, &scratch, &[Service::new("web", 1, &[A1])]);
    let log = sluice.stop();
    assert!(log.contains("iptables-legacy is in use on this node (tables nat)"), "{log}");
    let rules = node.output(&["iptables-legacy", "-t", "nat", "-S"]);
    assert!(rules.contains("-A PREROUTING -p udp -m udp --dport 7 -j ACCEPT") && !rules.contains("KUBE-"), "{rules}");
}
