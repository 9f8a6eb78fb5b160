//! What `sluice` does without: other programs, all capabilities but one, a writable /proc/sys.

mod support;

use std::fs;
use std::process::Command;

use support::lab::{A1, A2, B1};
use support::netns::{Namespace, set_sysctl};
use support::objects::{Service, write_manifest};
use support::proxy::{BINARY, Sluice, arguments, saved_rules};
use support::{Scratch, require_root};

const ROUTE_LOCALNET: &str = "ipv4/conf/all/route_localnet";

#[test]
fn no_other_program_is_executed() {
    if !require_root("confined: no other program") {
        return;
    }
    let node = Namespace::golden("no-exec");
    let scratch = Scratch::new("no-exec");
    let trace = scratch.file("trace");
    // -D: the tracer is the child, and signals reach the proxy.
    let strace = ["-D", "-f", "-qq", "-e", "trace=execve,execveat", "-e", "signal=none", "-o"];
    let mut command = node.command("strace");
    command.args(strace).arg(&trace).arg(BINARY);
    whole_life(&node, &scratch, command, |_| ());
    let trace = fs::read_to_string(&trace).expect("a trace");
    let executed: Vec<_> = trace.lines().filter(|line| line.contains("exec")).collect();
    let itself = executed.first().is_some_and(|line| line.contains(BINARY));
    assert!(itself && executed.len() == 1, "executed {} times, first {:#?}", executed.len(), executed.get(..3));
}

/// Without these `setpriv` gives root all there are, and another user none.
const ONE_CAPABILITY: [&str; 2] = ["--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin"];
const NOBODY: [&str; 4] = ["--reuid=65534", "--regid=65534", "--clear-groups", "--ambient-caps=-all,+net_admin"];

#[test]
fn one_capability_is_enough_for_root() {
    if require_root("confined: root with CAP_NET_ADMIN") {
        with_one_capability("one-cap-root", &ONE_CAPABILITY);
    }
}

#[test]
fn one_capability_is_enough_for_another_user() {
    if require_root("confined: another user with CAP_NET_ADMIN") {
        with_one_capability("one-cap-user", &[&NOBODY[..], &ONE_CAPABILITY].concat());
    }
}

/// The sysctls are set beforehand, as by an init container.
fn with_one_capability(test: &str, confinement: &[&str]) {
    let node = Namespace::golden(test);
    let scratch = Scratch::new(test);
    node.run(|| set_sysctl(ROUTE_LOCALNET, "1"));
    // Where the binary was built, another user may not look.
    let binary = scratch.file("sluice");
    fs::copy(BINARY, &binary).expect("to copy the binary");
    let mut command = node.command("setpriv");
    command.args(confinement).arg(&binary);
    let log = whole_life(&node, &scratch, command, |sluice| {
        let status = fs::read_to_string(format!("/proc/{}/status", sluice.process().pid())).expect("a process");
        assert!(status.contains("CapEff:\t0000000000001000"), "{status}");
    });
    assert!(complaint(&log).is_none(), "{log}");
}

/// The usual flags, and every setting of connection tracking that there is a flag for.
const CONNTRACK: [&str; 6] = [
    "--conntrack-max-per-core=1",
    "--conntrack-tcp-timeout-established=24h",
    "--conntrack-tcp-timeout-close-wait=50m",
    "--conntrack-tcp-be-liberal",
    "--conntrack-udp-timeout=31s",
    "--conntrack-udp-timeout-stream=121s",
];
/// What they make of a namespace.
const TRACKED: [(&str, &str); 5] = [
    ("nf_conntrack_tcp_timeout_established", "86400"),
    ("nf_conntrack_tcp_timeout_close_wait", "3000"),
    ("nf_conntrack_tcp_be_liberal", "1"),
    ("nf_conntrack_udp_timeout", "31"),
    ("nf_conntrack_udp_timeout_stream", "121"),
];

/// A shell's words: runs what follows where nobody can write to /proc/sys.
const READ_ONLY: [&str; 5] = ["unshare", "--mount", "sh", "-c", "mount -o bind,ro /proc/sys /proc/sys && exec \"$0\" \"$@\""];

fn command_by(node: &Namespace, words: &[&str]) -> Command {
    let mut command = node.command(words[0]);
    command.args(&words[1..]);
    command
}

fn sysctl(node: &Namespace, name: &str) -> String {
    node.run(|| fs::read_to_string(format!("/proc/sys/net/{name}")).expect("a sysctl").trim().to_owned())
}

/// The limit that the host has, for the flags to ask for: nobody can change it in a namespace.
fn limit_of_host(node: &Namespace) -> String {
    format!("--conntrack-min={}", sysctl(node, "netfilter/nf_conntrack_max"))
}

#[test]
fn sysctls_that_cannot_be_written_are_named_in_one_line() {
    if !require_root("confined: read-only /proc/sys") {
        return;
    }
    let node = Namespace::golden("read-only");
    let scratch = Scratch::new("read-only");
    node.run(|| set_sysctl(ROUTE_LOCALNET, "0"));
    let mut command = command_by(&node, &READ_ONLY);
    command.arg(BINARY).args(["--conntrack-min=1000000"]);
    let log = whole_life_with(&node, &scratch, command, &CONNTRACK, |_| ());
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
    let [warning] = warnings[..] else { panic!("one cause is one line:\n{log}") };
    let names = TRACKED.map(|(name, _)| format!("net.netfilter.{name}="));
    for word in names.iter().map(String::as_str).chain([
        "net.netfilter.nf_conntrack_max=1000000 (it is ",
        "net.ipv4.conf.all.route_localnet=1 (it is 0: node ports do not answer on 127.0.0.1",
        "EROFS (Read-only file system)",
        "--init-only",
    ]) {
        assert!(warning.contains(word), "{word} is not in {warning}");
    }
    assert!(TRACKED.iter().all(|(name, value)| sysctl(&node, &format!("netfilter/{name}")) != *value), "nothing was set");
}

/// Not in the host's namespace, with all privilege there.
#[test]
fn the_limit_of_a_namespace_is_the_hosts() {
    if !require_root("confined: the limit of tracked connections") {
        return;
    }
    let node = Namespace::golden("limit");
    let scratch = Scratch::new("limit");
    let before = sysctl(&node, "netfilter/nf_conntrack_max");
    let mut command = node.command(BINARY);
    command.arg("--conntrack-min=1000000");
    let log = whole_life_with(&node, &scratch, command, &CONNTRACK, |_| ());
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
    let [warning] = warnings[..] else { panic!("one warning, about the limit:\n{log}") };
    assert!(warning.contains(&format!("net.netfilter.nf_conntrack_max=1000000 (it is {before}: ")), "{warning}");
    assert!(warning.contains("EACCES") && warning.contains("--conntrack-max-per-core=0 leaves it"), "{warning}");
    for (name, value) in TRACKED {
        assert_eq!(sysctl(&node, &format!("netfilter/{name}")), value, "{name}");
    }
    let told = log.lines().filter(|line| line.contains("set on this node: ")).count();
    assert!(told == 1 && log.contains("nf_conntrack_udp_timeout=31 (it was "), "{log}");
    assert!(log.contains("INVALID packets are forwarded"), "set before it is read: {log}");
}

/// What a `DaemonSet` with an init container does: that one is privileged, the proxy is another user with one capability
/// and a read-only /proc/sys, and has nothing to complain about.
#[test]
fn after_init_only_one_capability_is_enough() {
    if !require_root("confined: after --init-only") {
        return;
    }
    let node = Namespace::golden("init-only");
    let scratch = Scratch::new("init-only");
    node.run(|| set_sysctl(ROUTE_LOCALNET, "0"));
    let limit = limit_of_host(&node);
    let init = node.command(BINARY).args(CONNTRACK).args(["--init-only", &limit]).output().expect("sluice");
    let log = String::from_utf8_lossy(&init.stderr).into_owned();
    assert_eq!(init.status.code(), Some(0), "{log}");
    assert!(log.lines().last().is_some_and(|line| line.contains("System initialized and --init-only specified")), "{log}");
    assert!(saved_rules(&node).is_empty(), "nothing is programmed");
    assert_eq!(sysctl(&node, ROUTE_LOCALNET), "1");
    for (name, value) in TRACKED {
        assert_eq!(sysctl(&node, &format!("netfilter/{name}")), value, "{name}");
    }

    let binary = scratch.file("sluice");
    fs::copy(BINARY, &binary).expect("to copy the binary");
    let mut command = command_by(&node, &[&READ_ONLY[..], &["setpriv"], &NOBODY, &ONE_CAPABILITY].concat());
    command.arg(&binary).arg(&limit);
    let log = whole_life_with(&node, &scratch, command, &CONNTRACK, |_| ());
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    let told: Vec<_> = log.lines().filter(|line| line.contains("oom_score_adj")).collect();
    let [told] = told[..] else { panic!("that the oom score stays is told once: {log}") };
    assert!(told.contains("INFO") && told.contains("EACCES") && told.contains("CAP_SYS_RESOURCE"), "{told}");
}

/// It is there to set things: what it cannot set is a failure, all of it in one line.
#[test]
fn init_only_fails_with_all_that_it_could_not_set() {
    if !require_root("confined: --init-only fails") {
        return;
    }
    let node = Namespace::golden("init-fails");
    node.run(|| set_sysctl(ROUTE_LOCALNET, "0"));
    let mut command = command_by(&node, &READ_ONLY);
    let failed = command.arg(BINARY).args(CONNTRACK).arg("--init-only").output().expect("sluice");
    let log = String::from_utf8_lossy(&failed.stderr).into_owned();
    let line = log.lines().last().unwrap_or_default();
    assert_eq!(failed.status.code(), Some(1), "{log}");
    assert!(line.starts_with("error: prepare the node for iptables mode: cannot set sysctl "), "{line}");
    for (name, value) in TRACKED {
        assert!(line.contains(&format!("net.netfilter.{name}={value}")), "{name} is not in {line}");
    }
    assert!(line.contains("route_localnet=1") && !log.contains("WARN") && !log.contains("System initialized"), "{log}");
}

/// To raise it takes no privilege.
#[test]
fn the_oom_score_is_set_where_it_may_be() {
    if !require_root("confined: the oom score") {
        return;
    }
    let node = Namespace::golden("oom");
    let scratch = Scratch::new("oom");
    let log = whole_life_with(&node, &scratch, node.command(BINARY), &["--oom-score-adj=321"], |sluice| {
        let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", sluice.process().pid())).expect("a process");
        assert_eq!(score, "321\n");
    });
    assert!(!log.contains("oom-score-adj=321: "), "{log}");
}

/// The warning about the sysctl, if there is one.
fn complaint(log: &str) -> Option<&str> {
    let name = ROUTE_LOCALNET.replace('/', ".");
    log.lines().find(|line| line.contains("WARN") && line.contains(&name))
}

/// Starts the proxy by way of `command`, which takes the proxy's arguments, checks what it programs and that it
/// follows a change, and ends it. Returns its log.
fn whole_life(node: &Namespace, scratch: &Scratch, command: Command, check: impl Fn(&Sluice)) -> String {
    whole_life_with(node, scratch, command, &[], check)
}

/// With flags that take the place of the usual ones.
fn whole_life_with(node: &Namespace, scratch: &Scratch, mut command: Command, flags: &[&str], check: impl Fn(&Sluice)) -> String {
    let manifest = scratch.file("objects.json");
    write_manifest(&manifest, &[Service::new("web", 1, &[A1, B1])]);
    command.args(arguments(&manifest)).args(flags);
    let mut sluice = Sluice::spawn(node, scratch, command);
    sluice.wait_in_force();
    check(&sluice);
    let rules = saved_rules(node);
    for endpoint in ["10.244.11.33:8080", "[fd00:10:244:b::21]:8080", "[fd00:10:244:c::21]:5353"] {
        assert!(rules.contains(endpoint), "{endpoint} is missing:\n{rules}");
    }
    sluice.change(&[Service::new("web", 1, &[A2])], |rules| {
        !rules.contains("10.244.12.33:") && !rules.contains("fd00:10:244:c::21")
    });
    sluice.stop()
}
