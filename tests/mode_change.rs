//! From one mode to the other: what the old one left goes, as far as it is ours, once the rules of the new one are in.
//! kube-proxy leaves it there.

mod support;
mod world;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sluice::config::{Mode, RuleConfig};
use sluice::model::State;
use sluice::netlink::Kernel as _;
use sluice::netlink::fake::FakeKernel;
use sluice::ruleset::{ChainName, Match, Negatable, Op, Place, Rule, Table, Transaction};
use sluice::serve::Metrics;
use sluice::sync::{FamilySync, Inputs, Summary};
use support::golden::{FAMILIES, after_ipvs, differences, flags, for_each, name, scenarios};
use support::machine::Machine;
use support::netns::Namespace;
use support::proxy::{BINARY, Sluice};
use support::{PATIENCE, Scratch, require_root, wait_until};
use world::bench::{FAMILY, web};
use world::{Random, World, config, facts};

/// A node that is started in one mode after the other.
struct Node {
    kernel: FakeKernel,
    state: State,
}

impl Node {
    /// With Services of all kinds.
    fn new() -> Self {
        let (mut random, mut world) = (Random::new(7), World::default());
        let mut state = State::new("node-a");
        let history = (0..60).flat_map(|_| world.change(&mut random)).chain(web(9, 2));
        for event in history.collect::<Vec<_>>() {
            state.apply(event);
        }
        Self { kernel: FakeKernel::new(), state }
    }

    fn start(&mut self, mode: Mode) -> Summary {
        let config = RuleConfig { mode, ..config() };
        let inputs = Inputs { config: &config, facts: facts(), state: &self.state };
        FamilySync::new(FAMILY, Arc::new(Metrics::new())).sync(&mut self.kernel, inputs).expect("a sync")
    }

    fn commit(&mut self, ops: impl IntoIterator<Item = Op>) {
        let transaction = Transaction { family: FAMILY, ops: ops.into_iter().collect() };
        self.kernel.commit(&transaction).expect("a change by another");
    }

    /// The rules and chains, by table, in no order.
    fn lines(&self) -> BTreeSet<String> {
        let mut table = "";
        let saved = self.kernel.save(FAMILY);
        let named = |line| {
            table = str::strip_prefix(line, '*').unwrap_or(table);
            format!("{table}: {line}")
        };
        saved.lines().map(named).collect()
    }
}

/// What a node has that never was in another mode.
fn fresh(mode: Mode) -> BTreeSet<String> {
    let mut node = Node::new();
    node.start(mode);
    node.lines()
}

/// kubelet has this chain too, so nobody takes it away; and a table once made stays.
fn is_shared(line: &str) -> bool {
    line.contains("KUBE-FIREWALL") || line.starts_with("mangle: ") && !line.contains("KUBE-")
}

#[test]
fn the_other_mode_leaves_nothing() {
    let mut node = Node::new();
    node.start(Mode::Iptables);
    for (mode, sign) in [(Mode::Ipvs, "KUBE-IPVS-FILTER"), (Mode::Iptables, "KUBE-SVC-"), (Mode::Ipvs, "KUBE-NODE-PORT")] {
        assert!(node.start(mode).operations > 0);
        let (want, have) = (fresh(mode), node.lines());
        assert!(have.iter().any(|line| line.contains(sign)), "{mode}: {have:#?}");
        let extra: Vec<_> = have.difference(&want).filter(|line| !is_shared(line)).collect();
        let missing: Vec<_> = want.difference(&have).collect();
        assert!(extra.is_empty() && missing.is_empty(), "{mode}: left over {extra:#?}, missing {missing:#?}");
        assert_eq!(node.start(mode).operations, 0, "{mode}: a second start");
    }
}

/// The order counts: rules of the new mode first, so that no Service is without in between.
#[test]
fn what_is_left_goes_after_the_new_rules_are_in() {
    for (from, to) in [(Mode::Iptables, Mode::Ipvs), (Mode::Ipvs, Mode::Iptables)] {
        let mut node = Node::new();
        node.start(from);
        let before = node.lines();
        // One transaction goes well, and the next one's answer is that it could not be done.
        node.kernel.fail_commit_after(1, sluice::netlink::Error::Interrupted);
        let config = RuleConfig { mode: to, ..config() };
        let inputs = Inputs { config: &config, facts: facts(), state: &node.state };
        FamilySync::new(FAMILY, Arc::new(Metrics::new())).sync(&mut node.kernel, inputs).expect_err("a failure");
        let have = node.lines();
        let missing: Vec<_> = fresh(to).difference(&have).cloned().collect();
        assert!(missing.is_empty(), "{from} to {to}: {missing:#?}");
        let hook = if from == Mode::Ipvs { "kubernetes ipvs access filter" } else { "kubernetes health check service ports" };
        let stands = |lines: &BTreeSet<String>| lines.iter().any(|line| line.contains(hook));
        assert!(stands(&before) && stands(&have), "{from} to {to}: what is left was to go last");
        node.start(to);
        assert!(!stands(&node.lines()), "{from} to {to}: the next start makes up for it");
    }
}

fn jump(table: Table, from: &str, rule: Rule, to: &str) -> Op {
    Op::AddRule { table, chain: from.into(), place: Place::Head, rule: rule.jump(to) }
}

#[test]
fn only_what_a_mode_makes_is_taken_for_a_remainder() {
    let mut node = Node::new();
    node.start(Mode::Ipvs);
    let foreign_jump = || Rule::new().comment("kubernetes ipvs access filter, but mine");
    let narrowed = Rule::new().comment("kubernetes health check rules").matching(Match::Mark(Negatable::is((1, 1))));
    node.commit([
        Op::AddChain { table: Table::Filter, chain: "CNI".into() },
        Op::AddChain { table: Table::Filter, chain: "KUBE-IPVS-FILTER-OF-SOMEBODY".into() },
        jump(Table::Filter, "INPUT", foreign_jump(), "CNI"),
        jump(Table::Filter, "FORWARD", Rule::new().comment("kubernetes ipvs access filter"), "CNI"),
        // It leads to a chain of ours, which goes: the rule stays, and so does the chain, without its rules.
        jump(Table::Filter, "INPUT", narrowed, "KUBE-NODE-PORT"),
    ]);
    node.kernel.add_foreign_rule(FAMILY, Table::Filter, &ChainName::from("INPUT")).expect("a chain");
    node.start(Mode::Iptables);
    let have = node.lines();
    for line in [
        "filter: -A INPUT -m comment --comment \"kubernetes ipvs access filter, but mine\" -j CNI",
        "filter: -A FORWARD -m comment --comment \"kubernetes ipvs access filter\" -j CNI",
        "filter: -A INPUT -m comment --comment \"kubernetes health check rules\" -m mark --mark 0x1/0x1 -j KUBE-NODE-PORT",
        "filter: -A INPUT (foreign)",
        "filter: :KUBE-IPVS-FILTER-OF-SOMEBODY - [0:0]",
        "filter: :KUBE-NODE-PORT - [0:0]",
    ] {
        assert!(have.contains(line), "{line} is gone: {have:#?}");
    }
    let ours = [
        "-j KUBE-IPVS-FILTER",
        ":KUBE-IPVS-FILTER ",
        "-A KUBE-NODE-PORT",
        ":KUBE-LOAD-BALANCER",
        "-A INPUT -m comment --comment \"kubernetes health check rules\" -j",
    ];
    for remainder in ours {
        assert!(!have.iter().any(|line| line.contains(remainder)), "{remainder} stayed: {have:#?}");
    }
}

/// The scenarios that both modes were measured in, and whose rules this machine's kernel takes.
fn of_both_modes() -> Vec<PathBuf> {
    let fits = |scenario: &PathBuf| FAMILIES.iter().all(|(_, _, dump)| !of_ipvs(scenario, dump).contains("-m ipvs "));
    scenarios().into_iter().filter(fits).collect()
}

fn of_ipvs(scenario: &Path, dump: &str) -> String {
    fs::read_to_string(scenario.join(format!("ipvs-{dump}"))).expect("a dump")
}

#[test]
fn iptables_mode_takes_over_from_kube_proxys_ipvs_mode() {
    if !require_root("iptables_mode_takes_over_from_kube_proxys_ipvs_mode") {
        return;
    }
    let scratch = Scratch::new("mode-change");
    let scenarios = of_both_modes();
    assert!(scenarios.len() > 30, "most scenarios fit");
    for_each(&scenarios, |scenario| {
        let node = Namespace::golden(&format!("mode-{}", name(scenario)));
        node.feed(&["ipset", "restore"], &fs::read_to_string(scenario.join("ipvs-ipset.txt")).expect("a dump"));
        for (_, tool, dump) in FAMILIES {
            node.feed(&[&tool.replace("save", "restore")], &of_ipvs(scenario, dump));
        }
        let ran = node
            .command(BINARY)
            .args(flags(scenario))
            .arg("--once")
            .arg("--manifests")
            .arg(scenario.join("objects.yaml"))
            .output();
        let ran = ran.expect("sluice");
        assert!(ran.status.success(), "{}: {}", name(scenario), String::from_utf8_lossy(&ran.stderr));
        let judge = |(family, tool, dump): (&str, &str, &str)| {
            let want = scratch.file(&format!("{}-{dump}", name(scenario)));
            fs::write(&want, after_ipvs(&fs::read_to_string(scenario.join(dump)).expect("a dump"))).expect("a file");
            let found = differences(&scratch, &want, &node.output(&[tool]));
            (!found.is_empty()).then(|| format!("{} {family}:\n{found}", name(scenario)))
        };
        let sets = node.output(&["ipset", "list", "-n"]);
        let sets = (!sets.is_empty()).then(|| format!("{}: sets stayed: {sets}", name(scenario)));
        FAMILIES.into_iter().filter_map(judge).chain(sets).collect()
    });
}

/// Needs IPVS, which not every machine has.
const IN_GUEST: &str = r#"uname -r; modprobe -a ip_vs ip_set dummy; "$0" --ignored --test-threads=1"#;

#[test]
fn modes_change_on_linux_6_1() {
    let Some(machine) = Machine::run(&Scratch::new("mode-change-machine"), IN_GUEST) else { return };
    assert!(machine.failures.is_empty(), "{}", machine.failures.join("\n"));
}

/// A node with a kernel that has IPVS.
struct IpvsNode(Namespace);

impl IpvsNode {
    fn new(role: &str) -> Self {
        Self(Namespace::golden(&format!("modes-{role}")))
    }

    fn sluice(&self, arguments: &[&str]) -> String {
        let scenario = scenarios().into_iter().find(|path| name(path) == "dual-stack-loadbalancer").expect("the scenario");
        let mut command = self.0.command(BINARY);
        if !arguments.contains(&"--cleanup") {
            command.args(flags(&scenario)).arg("--once").arg("--manifests").arg(scenario.join("objects.yaml"));
        }
        let ran = command.args(arguments).output().expect("sluice");
        let log = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.success(), "{arguments:?}: {log}");
        log
    }

    /// Rules, virtual servers, sets, the device and local routes: in no order, without counters and what is random.
    fn everything(&self) -> BTreeSet<String> {
        let commands: [&[&str]; 6] = [
            &["iptables-save"],
            &["ip6tables-save"],
            &["ipvsadm", "-Sn"],
            &["ipset", "save"],
            &["ip", "-o", "route", "show", "table", "local"],
            &["ip", "-6", "-o", "route", "show", "table", "local"],
        ];
        let mut lines = BTreeSet::new();
        for command in commands {
            let mut table = "";
            let output = self.0.output(command);
            for line in output.lines().filter(|line| !line.starts_with('#')) {
                table = line.strip_prefix('*').unwrap_or(table);
                let line = line.split(" [").next().unwrap_or_default().split(" bucketsize").next().unwrap_or_default();
                lines.insert(format!("{} {table}: {line}", command.join(" ")));
            }
        }
        lines
    }
}

/// What the lines have beside what they are to have, and what they lack of it.
#[track_caller]
fn assert_same(what: &str, have: &BTreeSet<String>, want: &BTreeSet<String>) {
    // A table once made stays, with its built-in chains.
    let of_table =
        |line: &str| line.contains(": *") || line.ends_with(": COMMIT") || line.contains(": :") && line.ends_with(" ACCEPT");
    let of_nobody = |line: &&String| line.contains("KUBE-FIREWALL") || of_table(line);
    let extra: Vec<_> = have.difference(want).filter(|line| !of_nobody(line)).collect();
    let missing: Vec<_> = want.difference(have).filter(|line| !of_nobody(line)).collect();
    assert!(extra.is_empty() && missing.is_empty(), "{what}: left over {extra:#?}, missing {missing:#?}");
}

const MINE: &str = "--ipvs-exclude-cidrs=192.0.2.0/24";

/// What another program has in the same node.
fn add_others(node: &Namespace) {
    node.output(&["ipvsadm", "-A", "-t", "192.0.2.9:80"]);
    node.output(&["ipset", "create", "MINE", "hash:ip"]);
    node.output(&["iptables", "-A", "INPUT", "-m", "set", "--match-set", "MINE", "src", "-j", "DROP"]);
}

#[test]
#[ignore = "run in the virtual machine of modes_change_on_linux_6_1"]
fn each_mode_is_as_if_the_other_had_never_been() {
    let [iptables, ipvs] = ["iptables", "ipvs"].map(|mode| {
        let node = IpvsNode::new(mode);
        add_others(&node.0);
        node.sluice(&[&format!("--mode={mode}"), MINE]);
        node.everything()
    });
    let node = IpvsNode::new("both");
    add_others(&node.0);
    node.sluice(&["--mode=iptables"]);
    for _ in 0..2 {
        node.sluice(&["--mode=ipvs", MINE]);
        assert_same("ipvs mode", &node.everything(), &ipvs);
        // Without the range: what is not ours stays all the same.
        let log = node.sluice(&["--mode=iptables"]);
        assert!(
            log.contains("removed what ipvs mode left: 32 virtual servers, 16 local addresses with their device, 34 sets"),
            "{log}"
        );
        assert_same("iptables mode", &node.everything(), &iptables);
        assert!(!node.sluice(&["--mode=iptables"]).contains("removed what"), "once is enough");
    }
}

/// A file for `--config` that says what the flags of a scenario say.
fn write_configuration(node: &IpvsNode, scenario: &Path, mode: &str, file: &Path) {
    let fresh = file.with_extension("new");
    let mut command = node.0.command(BINARY);
    command.args(flags(scenario)).args([&format!("--mode={mode}"), MINE, "--write-config-to"]).arg(&fresh);
    let ran = command.output().expect("sluice");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    fs::rename(fresh, file).expect("a file in place of another");
}

#[test]
#[ignore = "run in the virtual machine of modes_change_on_linux_6_1"]
fn a_running_proxy_changes_its_mode_with_its_configuration_file() {
    let scenario = scenarios().into_iter().find(|path| name(path) == "dual-stack-loadbalancer").expect("the scenario");
    let [iptables, ipvs] = ["iptables", "ipvs"].map(|mode| {
        let node = IpvsNode::new(mode);
        add_others(&node.0);
        node.sluice(&[&format!("--mode={mode}"), MINE]);
        node.everything()
    });
    let (node, scratch) = (IpvsNode::new("file"), Scratch::new("mode-file"));
    add_others(&node.0);
    let file = scratch.file("config.conf");
    write_configuration(&node, &scenario, "iptables", &file);
    let mut command = node.0.command(BINARY);
    command.arg("--config").arg(&file).arg("--manifests").arg(scenario.join("objects.yaml"));
    command.args(flags(&scenario).iter().filter(|flag| flag.starts_with("--node-ip")));
    let mut sluice = Sluice::spawn(&node.0, &scratch, command);
    for (mode, wanted) in [("iptables", &iptables), ("ipvs", &ipvs), ("iptables", &iptables)] {
        write_configuration(&node, &scenario, mode, &file);
        let lacks = |have: &BTreeSet<String>| wanted.difference(have).any(|line| !line.contains("KUBE-FIREWALL"));
        let as_wanted = || sluice.log().contains(&format!("--proxy-mode={mode}")) && !lacks(&node.everything());
        wait_until(&format!("{mode} mode is in force"), 4 * PATIENCE, as_wanted);
        // What the other mode left goes last.
        let has_more =
            || node.everything().difference(wanted).any(|line| line.contains("KUBE-") && !line.contains("KUBE-FIREWALL"));
        wait_until("nothing of the other mode is left", 4 * PATIENCE, || !has_more());
        assert_same(mode, &node.everything(), wanted);
    }
    assert!(sluice.is_running());
    sluice.stop();
}

#[test]
#[ignore = "run in the virtual machine of modes_change_on_linux_6_1"]
fn a_cleanup_leaves_what_was_there_before() {
    let node = IpvsNode::new("clean");
    add_others(&node.0);
    let before = node.everything();
    for flags in [&["--mode=iptables"][..], &["--mode=ipvs", MINE], &["--mode=ipvs", MINE, "--ipvs-local-addresses=routes"]] {
        node.sluice(flags);
        assert!(node.everything().len() > before.len() + 50, "{flags:?}");
        node.sluice(&["--cleanup"]);
        assert_same(&format!("{flags:?}"), &node.everything(), &before);
    }
}

/// What kube-proxy's ipvs mode made of a scenario, all of it.
fn make_ipvs_mode(node: &Namespace, scenario: &Path) {
    let dump = |file: &str| fs::read_to_string(scenario.join(file)).expect("a dump");
    node.feed(&["ipset", "restore"], &dump("ipvs-ipset.txt"));
    node.feed(&["ipvsadm", "-R"], &dump("ipvs-services.txt"));
    node.output(&["ip", "link", "add", "kube-ipvs0", "type", "dummy"]);
    let addresses = dump("ipvs-addresses.txt");
    for address in addresses.lines().filter_map(|line| line.strip_prefix("inet")?.split(' ').nth(1)) {
        node.output(&["ip", "address", "add", address, "dev", "kube-ipvs0"]);
    }
    for (_, tool, dump) in FAMILIES {
        node.feed(&[&tool.replace("save", "restore"), "--noflush"], &of_ipvs(scenario, dump));
    }
}

#[test]
#[ignore = "run in the virtual machine of modes_change_on_linux_6_1"]
fn a_cleanup_after_kube_proxys_ipvs_mode_leaves_what_was_there_before() {
    for wanted in ["dual-stack-loadbalancer", "session-affinity", "nodeport-cluster"] {
        let scenarios = scenarios();
        let Some(scenario) = scenarios.iter().find(|path| name(path) == wanted) else { panic!("there is no {wanted}") };
        let node = IpvsNode::new(wanted);
        add_others(&node.0);
        let before = node.everything();
        make_ipvs_mode(&node.0, scenario);
        assert!(node.everything().len() > before.len() + 50, "{wanted}");
        node.sluice(&["--cleanup"]);
        assert_same(wanted, &node.everything(), &before);
        // The others' server is the table's only one, and this ends with its namespace.
        assert!(node.0.output(&["ipvsadm", "-Sn"]).contains("192.0.2.9:80"));
    }
}
