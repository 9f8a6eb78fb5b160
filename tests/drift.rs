//! What others break is put right at once: single rules and chains, whole tables, more than the kernel can tell of,
//! somebody who does it again and again, and somebody who commits all the time. All with the built binary and the tools
//! an operator has, and all counted in its metrics.
#![allow(clippy::unwrap_used, reason = "where a test cannot go on it has failed")]

mod support;
mod world;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::PATIENCE;
use support::node::{Node, Run, good, service, slice, wait_until_or};
use world::{canonical, difference};

/// Services of the big node, each with two endpoints: 8 rules and 3 chains.
const SERVICES: u32 = 1_000;
const METRICS: &str = "127.0.0.1:10249";

/// Services of one family (`kind`), numbered from 1, each with two endpoints.
fn services(count: u32, address: impl Fn(u32) -> String, endpoint: impl Fn(u32) -> String, kind: &str) -> Vec<Value> {
    let objects = (1..=count).flat_map(|n| {
        let name = format!("web-{}-{n}", kind.to_lowercase());
        let ports = json!([{"name": "web", "port": 80}]);
        let service = service(&name, json!({"clusterIP": address(n), "ports": ports, "ipFamilies": [kind]}));
        let mut slice = slice(&name, json!([{"name": "web", "port": 8080}]), &[&endpoint(2 * n), &endpoint(2 * n + 1)]);
        slice["addressType"] = kind.into();
        [service, slice]
    });
    objects.collect()
}

/// A node with `count` Services of IPv4 and a few of IPv6.
fn objects(count: u32) -> Vec<Value> {
    let v4 = |base: [u8; 4]| move |n: u32| std::net::Ipv4Addr::from(u32::from_be_bytes(base) + n).to_string();
    let v6 = |base: &'static str| move |n: u32| format!("{base}{n:x}");
    let mut all = services(count, v4([10, 96, 0, 0]), v4([10, 244, 0, 0]), "IPv4");
    all.extend(services(5, v6("fd00:10:96::"), v6("fd00:10:244::"), "IPv6"));
    all
}

/// A node whose proxy has done its first work, and the rules as they should be.
struct Field<'a> {
    node: &'a Node,
    run: Run<'a>,
    rules: String,
}

impl<'a> Field<'a> {
    fn new(node: &'a Node, count: u32, flags: &[&str]) -> Self {
        node.write_objects(&objects(count));
        let run = node.run(&[&["--v=4"], flags].concat());
        run.wait_for_log("IPv4 rules are in force");
        run.wait_for_log("IPv6 rules are in force");
        let rules = dump(node);
        assert_eq!(rules.matches("\n:KUBE-SVC-").count(), usize::try_from(count).unwrap() + 5);
        Self { node, run, rules }
    }

    fn sh(&self, line: &str) {
        self.node.namespace.output(&["sh", "-ec", line]);
    }

    /// The sum of all samples whose name and labels begin so.
    fn metric(&self, sample: &str) -> usize {
        self.node
            .namespace
            .run(metrics)
            .lines()
            .filter_map(|line| line.strip_prefix(sample)?.rsplit_once(' ')?.1.parse::<usize>().ok())
            .sum()
    }

    fn repairs(&self) -> usize {
        self.metric("sluice_drift_repairs_total")
    }

    fn wait_for(&self, what: &str, found: impl FnMut() -> bool) {
        wait_until_or(what, found, || self.run.log());
    }

    /// How many repairs took at most so many seconds from the notification to the commit, as the proxy says.
    fn repaired_within(&self, bound: &str) -> usize {
        let bucket = |family| format!("sluice_drift_repair_duration_seconds_bucket{{ip_family=\"{family}\",le=\"{bound}\"}}");
        self.metric(&bucket("IPv4")) + self.metric(&bucket("IPv6"))
    }

    fn drift_metrics(&self) -> String {
        let text = self.node.namespace.run(metrics);
        text.lines().filter(|line| line.starts_with("sluice_drift")).collect::<Vec<_>>().join("\n")
    }

    /// Waits until the rules are as they were in the beginning.
    fn wait_for_rules_as_before(&self, what: &str) {
        self.wait_for(&format!("{what} is put right"), || dump(self.node) == self.rules);
    }

    /// The first `-A chain` line with these words, as arguments of iptables.
    fn rule(&self, words: &str) -> String {
        let line = self.rules.lines().find(|line| line.starts_with("-A ") && line.contains(words)).unwrap();
        line.strip_prefix("-A ").unwrap().to_owned()
    }

    fn chain(&self, prefix: &str) -> String {
        self.rule(&format!("-A {prefix}")).split(' ').next().unwrap().to_owned()
    }
}

fn metrics() -> String {
    let mut stream = TcpStream::connect_timeout(&METRICS.parse().unwrap(), PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node-a\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// All rules, with what may stand in any order sorted.
fn dump(node: &Node) -> String {
    canonical(&node.rules())
}

/// From the notification to the commit, in seconds; what a busy machine may add to some, in a debug build.
const AT_ONCE: &str = "0.1";
const BUSY: &str = "1";
/// The same where the kernel does not tell which chain it was, so that all are read, in a debug build.
const READ_ALL: &str = "5";

#[test]
fn what_somebody_breaks_is_back_at_once() {
    let Some(node) = Node::new("drift") else { return };
    let field = Field::new(&node, SERVICES, &[]);
    let (svc, sep) = (field.chain("KUBE-SVC-"), field.chain("KUBE-SEP-"));
    let forward =
        "-D FORWARD -m conntrack --ctstate NEW -m comment --comment 'kubernetes load balancer firewall' -j KUBE-PROXY-FIREWALL";
    let damages = [
        ("a hook", "iptables -t nat -D PREROUTING 1".to_owned()),
        ("a hook in filter", format!("iptables {forward}")),
        ("a hook of IPv6", "ip6tables -t nat -D PREROUTING 1".to_owned()),
        ("an endpoint's rule", format!("iptables -t nat -D {sep} 2")),
        ("a rule that leads to a Service", "iptables -t nat -D KUBE-SERVICES 7".to_owned()),
        ("a Service's chain", format!("iptables -t nat -F {svc}")),
        ("another rule in a rule's place", format!("iptables -t nat -R {sep} 1 -j RETURN")),
        ("an alien rule", "iptables -t nat -I KUBE-SERVICES 1 -d 192.0.2.1 -j ACCEPT".to_owned()),
        ("an alien chain", "iptables -t nat -N KUBE-SVC-AAAAAAAAAAAAAAAA".to_owned()),
        ("the mode's own chain", "iptables -t nat -F KUBE-POSTROUTING".to_owned()),
        ("a chain with another name", format!("iptables -t nat -E {svc} ELSEWHERE; iptables -t nat -S > /dev/null")),
    ];
    for (n, (what, line)) in damages.iter().enumerate() {
        let operations = field.metric("sluice_drift_repair_operations_total");
        field.sh(line);
        field.wait_for(&format!("{what} is put right"), || field.repairs() > n);
        let rules = dump(&node);
        if what.contains("another name") {
            // The chain that got another name is not ours any more; ours is made again.
            let others = |line: &&str| !line.contains("ELSEWHERE");
            let rules = rules.lines().filter(others).collect::<Vec<_>>().join("\n");
            assert!(difference(&field.rules, &rules).is_empty(), "{what}: {}", difference(&field.rules, &rules));
        } else {
            assert!(rules == field.rules, "{what}:\n{}", difference(&field.rules, &rules));
        }
        let sent = field.metric("sluice_drift_repair_operations_total") - operations;
        assert!((1..30).contains(&sent), "{what}: {sent} operations");
        assert_eq!(field.repairs(), n + 1, "{what}: one repair and no more");
    }
    assert_eq!(field.metric("sluice_drift_repairs_total{cause=\"notification\""), damages.len());
    let at_once = damages.iter().filter(|(what, _)| !what.contains("another name")).count();
    assert!(field.repaired_within(AT_ONCE) > at_once / 2, "{}", field.drift_metrics());
    assert!(field.repaired_within(BUSY) >= at_once, "{}", field.drift_metrics());
    assert_eq!(field.repaired_within(READ_ALL), damages.len(), "{}", field.drift_metrics());
    let log = field.run.stop();
    let told = log.lines().find(|line| line.contains(&format!("changed IPv4 rules of this proxy in nat {svc}: put right with")));
    assert!(told.is_some_and(|line| line.contains(" iptables (pid ") && line.contains("netlink port ")), "{log}");
}

#[test]
fn flushed_tables_are_back_and_what_was_others_is_not_invented() {
    let Some(node) = Node::new("drift-flush") else { return };
    let foreign = "for t in iptables ip6tables; do $t -N FOREIGN; $t -A FOREIGN -p udp --dport 7 -j DROP; \
                   $t -I INPUT 1 -j FOREIGN; $t -t nat -A POSTROUTING -p udp -j MASQUERADE; done";
    node.namespace.output(&["sh", "-ec", foreign]);
    let field = Field::new(&node, SERVICES, &[]);
    let is_foreign = |line: &str| line.contains("FOREIGN") || line.contains("-p udp -j MASQUERADE");
    assert_eq!(field.rules.lines().filter(|line| is_foreign(line)).count(), 8);
    let own = field.rules.lines().filter(|line| !is_foreign(line)).collect::<Vec<_>>().join("\n");
    for line in ["nft flush ruleset", "iptables -t nat -F; iptables -F; ip6tables -t nat -F; ip6tables -F"] {
        let before = field.repairs();
        field.sh(line);
        field.wait_for(&format!("{line} is put right"), || dump(&node) == own);
        field.wait_for(&format!("{line} is counted"), || field.repairs() >= before + 2);
    }
    assert_eq!(field.metric("sluice_drift_repairs_slowed"), 0);
    let log = field.run.stop();
    let told = |family| log.contains(&format!(") changed {family} rules of this proxy in whole tables: put right with"));
    assert!(log.contains(" nft (pid ") && told("IPv4") && told("IPv6"), "{log}");
}

/// `iptables-restore` makes every table anew, so that all rules are there with other handles.
#[test]
fn a_restored_dump_of_our_own_rules_leaves_none_of_them_twice() {
    let Some(node) = Node::new("drift-restore") else { return };
    let field = Field::new(&node, 20, &[]);
    for turn in 1..=3 {
        let seen = field.metric("sluice_drift_notifications_total");
        field.sh("iptables-save > $$.dump; iptables-restore < $$.dump; ip6tables-save > $$.dump; ip6tables-restore < $$.dump; rm $$.dump");
        field.wait_for("the dump is heard of", || field.metric("sluice_drift_notifications_total") > seen);
        // What comes after it is looked at after it.
        let before = field.repairs();
        field.sh("iptables -t nat -D POSTROUTING 1; ip6tables -t nat -D POSTROUTING 1");
        field.wait_for("what was deleted is back", || field.repairs() >= before + 2);
        field.wait_for_rules_as_before(&format!("restored dump {turn}"));
    }
    // An old dump, without the rule that leads to a Service.
    field.sh("iptables-save | grep -v 'shop/web-ipv4-7:' > $$.dump; iptables-restore < $$.dump; rm $$.dump");
    field.wait_for_rules_as_before("an old dump");
    field.run.stop();
}

/// Fills the monitor's buffer, some 16 MB, many times over with what is nobody's business.
const FLOOD: &str = "(echo 'add table ip flood; add chain ip flood x'; \
    for i in $(seq 20000); do echo \"add rule ip flood x counter comment \\\"$(printf %090d $i)\\\"\"; done) > $0; \
    for i in 1 2 3 4 5; do nft -f $0; nft flush chain ip flood x; done; nft delete table ip flood";

#[test]
fn lost_notifications_are_one_look_at_everything() {
    let Some(node) = Node::new("drift-lost") else { return };
    let field = Field::new(&node, 50, &[]);
    field.run.signal(Signal::STOP);
    let file = node.scratch.file("flood");
    node.namespace.output(&["sh", "-ec", FLOOD, file.to_str().unwrap()]);
    field.sh("iptables -t nat -D PREROUTING 1; ip6tables -t nat -F KUBE-SERVICES");
    field.run.signal(Signal::CONT);
    field.wait_for("lost notifications are counted", || field.metric("sluice_drift_notifications_lost_total") > 0);
    field.wait_for_rules_as_before("what was lost");
    for family in ["IPv4", "IPv6"] {
        let of = |name: &str, label: &str| field.metric(&format!("sluice_{name}_total{{{label}"));
        let repaired = of("drift_repairs", &format!("cause=\"lost_notifications\",ip_family=\"{family}\""));
        let audited = of("audits", &format!("ip_family=\"{family}\",result=\"repaired\""));
        assert_eq!((repaired, audited), (1, 1), "{family}: {}", field.drift_metrics());
    }
    // From then on as ever.
    field.sh("iptables -t nat -D PREROUTING 1");
    field.wait_for("the next change is heard of", || field.metric("sluice_drift_repairs_total{cause=\"notification\"") > 0);
    let log = field.run.stop();
    assert!(log.contains("more IPv4 rules than the kernel could tell of"), "{log}");
}

#[test]
fn who_undoes_each_repair_is_named_once_and_slows_repairs_but_not_changes() {
    let Some(node) = Node::new("drift-contest") else { return };
    let field = Field::new(&node, 20, &[]);
    let again = "for i in $(seq 2000); do iptables -w -t nat -D PREROUTING 1 2> /dev/null; sleep 0.01; done";
    let opponent = node.namespace.spawn(&["sh", "-c", again]);
    field.wait_for("repairs are slowed", || field.metric("sluice_drift_repairs_slowed{ip_family=\"IPv4\"}") == 1);
    let slowed = field.repairs();
    // 1, 2 and 4 s later; more would take more than the patience of a test.
    field.wait_for("repairs go on", || field.repairs() >= slowed + 3);
    let mut objects = objects(20);
    for n in 1..=3 {
        objects.extend(good(&format!("late-{n}"), n));
        node.write_objects(&objects);
        field.run.wait_for_rules(&format!("shop/late-{n}:web cluster IP"));
    }
    assert!(field.repairs() <= slowed + 12, "a repair with each change, and few others: {}", field.drift_metrics());
    assert_eq!(field.metric("sluice_drift_repairs_slowed{ip_family=\"IPv6\"}"), 0, "nobody touched IPv6");
    drop(opponent);
    let log = field.run.stop();
    let named: Vec<_> = log.lines().filter(|line| line.contains("again and again")).collect();
    assert!(named.len() == 1 && named[0].contains("iptables (pid ") && named[0].contains("nat PREROUTING"), "{log}");
    let repairs = log.lines().filter(|line| line.contains("WARN") && line.contains("put right with")).count();
    assert_eq!(repairs, 20, "those before are told one by one, the others not:\n{log}");
}

/// Commits to `nf_tables` a hundred times a second, as long as `work` lasts.
fn with_busy_neighbour<T>(node: &Node, work: impl FnOnce() -> T) -> T {
    use sluice::netlink::{Kernel as _, NftKernel};
    use sluice::ruleset::{Op, Table, Transaction};
    /// Ends the neighbour also when the work fails.
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (stop, namespace) = (&stop, &node.namespace);
        let _end = End(stop);
        scope.spawn(move || {
            namespace.run(|| {
                let mut kernel = NftKernel::open().unwrap();
                let mut commit = |ops| kernel.commit(&Transaction { family: sluice::net::Family::Ipv4, ops });
                commit(vec![Op::AddTable(Table::Mangle)]).unwrap();
                let (table, chain) = (Table::Mangle, sluice::ruleset::ChainName::from("NEIGHBOUR"));
                let mut commits = 0;
                while !stop.load(Ordering::Relaxed) {
                    let add = Op::AddChain { table, chain: chain.clone() };
                    let delete = Op::DeleteChain { table, chain: chain.clone() };
                    commit(vec![if commits % 2 == 0 { add } else { delete }]).unwrap();
                    commits += 1;
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
        });
        work()
    })
}

#[test]
fn a_neighbour_that_commits_all_the_time_stops_nothing() {
    let Some(node) = Node::new("drift-busy") else { return };
    with_busy_neighbour(&node, || {
        let field = Field::new(&node, 200, &["--audit-period=1s"]);
        // Not by iptables-save, which begins anew with each commit of the neighbour's.
        let rules = || field.metric("kubeproxy_sync_proxy_rules_iptables_total{ip_family=\"IPv4\",table=\"nat\"}");
        let (before, mut objects) = (rules(), objects(200));
        for n in 1..=20 {
            objects.extend(good(&format!("late-{n}"), n));
            node.write_objects(&objects);
            field.wait_for("a Service more", || rules() == before + 4 * usize::from(n));
        }
        field.sh("iptables -t nat -D PREROUTING 1");
        field.wait_for("a repair", || field.repairs() > 0);
        field.wait_for("an audit", || field.metric("sluice_audits_total{ip_family=\"IPv4\",result=\"clean\"") > 0);
        assert_eq!(field.repairs(), 1, "{}", field.drift_metrics());
        let log = field.run.stop();
        assert!(!log.contains("ERROR"), "{log}");
        assert_eq!(node.rules().matches("\n:KUBE-SVC-").count(), 200 + 20 + 5);
    });
}

#[test]
fn an_audit_reads_only_when_somebody_else_has_committed() {
    let Some(node) = Node::new("drift-audit") else { return };
    let field = Field::new(&node, 20, &["--audit-period=200ms"]);
    let audits = |result: &str| {
        ["IPv4", "IPv6"].map(|family| field.metric(&format!("sluice_audits_total{{ip_family=\"{family}\",result=\"{result}\"")))
    };
    // The families are read one after the other, and what the first load did is its own.
    field.wait_for("audits of what nobody changed", || audits("unchanged").iter().all(|count| *count >= 2));
    let read = audits("clean");
    field.sh("nft add table inet other");
    field.wait_for("audits after a foreign commit", || audits("clean").iter().zip(read).all(|(now, before)| *now > before));
    let unchanged = audits("unchanged");
    field.wait_for("audits go on", || audits("unchanged").iter().zip(unchanged).all(|(now, before)| *now > before));
    assert_eq!((audits("clean"), audits("repaired"), audits("failed")), (read.map(|n| n + 1), [0; 2], [0; 2]));
    field.run.stop();
}
