//! Taking over rules that are there already: the real kube-proxy's, whole and in part, and our own in a large table.
//! What is right is not touched: told by the operations sent, by the generation of the rules, and by their handles.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use sluice::net::Family;
use sluice::netlink::nfacct::Counters;
use sluice::netlink::{Kernel as _, NftKernel, Seen};
use sluice::ruleset::{Handle, Table};
use support::crowd::Crowd;
use support::golden::{FAMILIES, dumps_differ, flags, for_each, name, scenarios};
use support::netns::Namespace;
use support::proxy::{BINARY, Sluice, common_flags};
use support::random::Random;
use support::{PATIENCE, Scratch, require_root, wait_until};

/// Counters of a rule that packets went through, as `iptables-save --counters` prints them.
const COUNTED: &str = "[7:420]";

const PER_SERVICE: [&str; 5] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-"];

/// What stands on a node beside kube-proxy: kubelet's chains, and a network plugin's rules in front of and behind
/// kube-proxy's own.
const OTHERS: [(&str, &[&str]); 3] = [
    ("mangle", &[":KUBE-KUBELET-CANARY - [0:0]", ":KUBE-IPTABLES-HINT - [0:0]"]),
    (
        "filter",
        &[":KUBE-KUBELET-CANARY - [0:0]", ":CNI-FORWARD - [0:0]", "-I FORWARD 1 -j CNI-FORWARD", "-A INPUT -i lo -j ACCEPT"],
    ),
    ("nat", &[":KUBE-KUBELET-CANARY - [0:0]", ":CNI-MASQ - [0:0]", "-A POSTROUTING -j CNI-MASQ", "-A CNI-MASQ -j RETURN"]),
];

/// What `iptables-save` says of an affinity's rules that kube-proxy does not: the full mask, which fills other bytes of
/// the rule when it is given.
const MASKS: [&str; 2] = [" --mask 255.255.255.255 --rsource", " --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource"];

/// A dump as kube-proxy wrote it: without the masks, and with probabilities of ten digits.
fn as_written(dump: &str) -> String {
    let dump = MASKS.iter().fold(dump.to_owned(), |dump, mask| dump.replace(mask, ""));
    let mut parts = dump.split("--probability ");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (share, rest) = part.split_once(' ').expect("a target behind the probability");
        let share: f64 = share.parse().expect("a probability");
        let share = format!("--probability {:.10} ", 1.0 / (1.0 / share).round());
        out.extend([share.as_str(), rest]);
    }
    out
}

/// A dump as it would come from a node in use: all rules have counted, and others' rules are there too.
fn lived_in(dump: &str) -> String {
    let mut out = String::new();
    let mut table = "";
    for line in dump.lines() {
        table = line.strip_prefix('*').unwrap_or(table);
        let others = OTHERS.iter().filter(|(of, _)| *of == table && line == "COMMIT").flat_map(|(_, lines)| *lines);
        for line in others.copied().chain([line]) {
            let counted = if line.starts_with('-') { COUNTED } else { "" };
            out.extend([counted, line, "\n"]);
        }
    }
    out
}

/// What `--once` prints when nothing was to be done in either family.
fn did_nothing(summary: &str) -> bool {
    summary.matches(" 0 operations in 0 transactions").count() == 2
}

fn generation(node: &Namespace) -> u32 {
    node.run(|| NftKernel::open().and_then(|mut kernel| kernel.generation()).expect("a generation"))
}

/// Makes what kube-proxy's rules refer to and iptables-restore cannot make.
fn make_counters(node: &Namespace) {
    node.run(|| {
        let mut counters = Counters::open().expect("nfacct");
        for name in ["ct_state_invalid_dropped_pkts", "localhost_nps_accepted_pkts"] {
            counters.ensure(name).expect("a counter");
        }
    });
}

fn restore(node: &Namespace, tool: &str, dump: &str) {
    node.feed(&[&tool.replace("save", "restore"), "--counters"], dump);
}

/// Every rule of the namespace by what the kernel calls it: a rule that is replaced by its like has another handle.
fn handles(node: &Namespace) -> BTreeSet<(Family, Table, String, Handle)> {
    node.run(|| {
        let mut kernel = NftKernel::open().expect("nf_tables");
        let mut all = BTreeSet::new();
        for family in Family::ALL {
            let mut add = |found| {
                if let Seen::Rule { table, chain, handle, .. } = found {
                    all.insert((family, table, chain.as_str().to_owned(), handle));
                }
            };
            kernel.read(family, &mut add).expect("a reading");
        }
        all
    })
}

/// Programs a scenario once; what was printed.
fn run_once(node: &Namespace, scenario: &Path) -> String {
    let mut command = node.command(BINARY);
    command.args(flags(scenario)).arg("--once").arg("--manifests").arg(scenario.join("objects.yaml"));
    let ran = command.output().expect("sluice");
    assert!(ran.status.success(), "{}: {}", name(scenario), String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).expect("text")
}

/// Of no scenario anything differs: neither the order of the service ports in dispatch chains, nor how iptables-restore
/// writes a rule down, kube-proxy's or one that was saved, nor the canary chains make us send an operation.
#[test]
fn nothing_of_kube_proxys_rules_is_replaced() {
    if !require_root("nothing_of_kube_proxys_rules_is_replaced") {
        return;
    }
    for_each(&scenarios(), |scenario| ["written", "saved"].iter().flat_map(|origin| replaced(scenario, origin)).collect());
}

/// What is replaced of the rules of a scenario, as kube-proxy has written them, or as they were saved.
fn replaced(scenario: &Path, origin: &str) -> Vec<String> {
    let node = Namespace::golden(&format!("takeover-{origin}-{}", name(scenario)));
    make_counters(&node);
    for (_, tool, dump) in FAMILIES {
        let dump = fs::read_to_string(scenario.join(dump)).expect("a dump");
        restore(&node, tool, &lived_in(&if origin == "written" { as_written(&dump) } else { dump }));
    }
    let before = (handles(&node), generation(&node));
    assert!(before.0.len() > 30, "{}: the rules are there", name(scenario));
    let summary = run_once(&node, scenario);
    let mut failures = Vec::new();
    if !did_nothing(&summary) {
        failures.push(format!("{}, {origin}: there was nothing to do: {summary}", name(scenario)));
    }
    if (handles(&node), generation(&node)) != before {
        failures.push(format!("{}, {origin}: the rules or their generation are others", name(scenario)));
    }
    failures
}

/// A dump of which a random part is missing, as iptables-restore takes it: no rule jumps to a chain that is not there.
///
/// Of a built-in chain the end is kept: kube-proxy puts its jumps in front of each other, so one that ended half-way
/// made those, and we put in front what is missing.
fn half(dump: &str, random: &mut Random) -> String {
    let builtin = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
    let mut out: Vec<&str> = Vec::new();
    let mut gone: Vec<&str> = Vec::new();
    for line in dump.lines().rev() {
        let chain = line.split(' ').nth(1).unwrap_or_default();
        if line == "COMMIT" {
            gone.clear();
        }
        let keep = match line.as_bytes()[0] {
            b'-' if builtin.contains(&chain) && gone.contains(&chain) => false,
            b'-' => random.below(2) == 0,
            _ => true,
        };
        if keep {
            out.push(line);
        } else {
            gone.push(chain);
        }
    }
    let chains: Vec<_> = out.iter().rev().filter_map(|line| line.strip_prefix(':')?.split(' ').next()).collect();
    let may_miss =
        |chain: &&str| PER_SERVICE.iter().chain(&["KUBE-MARK", "KUBE-PROXY-CANARY"]).any(|start| chain.starts_with(start));
    let lost: Vec<_> = chains.into_iter().filter(|chain| may_miss(chain) && random.below(4) == 0).collect();
    let names_lost = |line: &str| line.split([' ', ':']).any(|word| lost.contains(&word));
    out.iter().rev().filter(|line| !names_lost(line)).fold(String::new(), |all, line| all + line + "\n")
}

/// The rules of each chain of nat, where the service ports have theirs.
fn chains_of(dump: &str) -> BTreeMap<&str, Vec<&str>> {
    let nat = dump.split("*nat").nth(1).unwrap_or_default();
    let mut chains = BTreeMap::<_, Vec<_>>::new();
    for rule in nat.lines().filter_map(|line| line.strip_prefix("-A ")) {
        chains.entry(rule.split(' ').next().unwrap_or_default()).or_default().push(rule);
    }
    chains
}

/// The chains of service ports of which nothing is missing in the half.
fn complete(golden: &str, half: &str) -> BTreeSet<String> {
    let (golden, half) = (chains_of(golden), chains_of(half));
    let complete = half.iter().filter(|(chain, rules)| golden.get(*chain) == Some(rules)).map(|(chain, _)| (*chain).to_owned());
    complete.filter(|chain| PER_SERVICE.iter().any(|prefix| chain.starts_with(prefix))).collect()
}

#[test]
fn rules_that_are_there_in_part_are_completed() {
    if !require_root("rules_that_are_there_in_part_are_completed") {
        return;
    }
    let scratch = Scratch::new("takeover-half");
    let kept = AtomicUsize::new(0);
    for_each(&scenarios(), |scenario| {
        let seed = name(scenario).bytes().fold(1, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte));
        let mut random = Random::new(seed);
        let node = Namespace::golden(&format!("half-{}", name(scenario)));
        make_counters(&node);
        let complete = FAMILIES.map(|(_, tool, dump)| {
            let golden = fs::read_to_string(scenario.join(dump)).expect("a dump");
            let half = half(&golden, &mut random);
            assert!(half.len() < golden.len());
            restore(&node, tool, &half);
            complete(&golden, &half)
        });
        let mut right = handles(&node);
        right.retain(|(family, _, chain, _)| complete[usize::from(*family == Family::Ipv6)].contains(chain));
        kept.fetch_add(right.len(), Ordering::Relaxed);
        run_once(&node, scenario);
        let after = handles(&node);
        let replaced =
            right.difference(&after).map(|(family, _, chain, _)| format!("{}: {family} {chain} was right", name(scenario)));
        let differ = dumps_differ(&node, &scratch, scenario).map(|found| format!("{}:\n{found}", name(scenario)));
        replaced.chain(differ).collect()
    });
    assert!(kept.into_inner() > 100, "halves have chains that are complete");
}

/// A process that finds what it wants changes nothing at all, and follows changes from then on.
#[test]
fn a_restart_over_a_full_table_changes_nothing() {
    if !require_root("a_restart_over_a_full_table_changes_nothing") {
        return;
    }
    let crowd = Crowd { services: 2000, endpoints: 2 };
    let scratch = Scratch::new("takeover-full");
    let manifest = scratch.file("objects.json");
    crowd.write(&manifest, &[], &(0..0));
    let node = Namespace::golden("takeover-full");
    let mut first = node.command(BINARY);
    first.args(common_flags()).arg("--once").arg("--manifests").arg(&manifest);
    let loaded = first.output().expect("sluice");
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    let before = (handles(&node), generation(&node));
    assert!(before.0.len() > 2 * 2000 * 8, "the table is full: {} rules", before.0.len());

    let mut command = node.command(BINARY);
    command.args(common_flags()).arg("--manifests").arg(&manifest);
    let sluice = Sluice::spawn(&node, &scratch, command);
    // Not told by the rules, which are there already.
    wait_until("both families are synced", PATIENCE, || sluice.log().matches(" rules are in force: 2000 services").count() == 2);
    let metrics = node.run(|| get("127.0.0.1:10249", "/metrics"));
    assert!(!metrics.contains("\nsluice_transactions_total{"), "no transaction was sent:\n{metrics}");
    assert!(metrics.contains("\nsluice_events_total{"), "it counts:\n{metrics}");
    assert!((handles(&node), generation(&node)) == before, "the rules or their generation are others");

    crowd.write(&manifest, &[], &(1234..1235));
    let changed = Crowd::changed_address(1234);
    wait_until("a change after the restart is followed", PATIENCE, || {
        node.output(&["iptables-save", "-t", "nat"]).contains(&format!("--to-destination {changed}:8080"))
    });
    // One endpoint's chain flushed away, one made, the balancing chain, in each family.
    let count = before.0.intersection(&handles(&node)).count();
    assert_eq!(before.0.len() - count, 2 * (2 + 3), "rules of one Service were replaced and no others");
    sluice.stop();
}

/// The body of an answer.
fn get(server: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(server).expect("a server");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node-a\r\nConnection: close\r\n\r\n").expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}
