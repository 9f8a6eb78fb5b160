//! The kernel in a bad mood: the built binary meets each error that netlink is known to give, by strace in the place of
//! the kernel or by a kernel that was led to it. What is changed meanwhile is programmed all the same, the error is named
//! in the log, and counted.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

mod support;

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;
use support::netns::Process;
use support::node::{Node, Run, error_line, good};
use support::{PATIENCE, wait_until};

/// Lets the next call of this name fail so, in each thread of the proxy, and makes sure that strace is there first.
fn inject(run: &Run<'_>, node: &Node, fault: &str) -> Process {
    let trace = node.scratch.file("trace");
    fs::write(&trace, "").unwrap();
    let pid = run.pid().as_raw_nonzero().to_string();
    let call = fault.split(':').next().unwrap();
    let mut command = Command::new("strace");
    command.args(["-f", "-o", trace.to_str().unwrap(), "-e", &format!("trace={call}"), "-e"]);
    command.arg(format!("inject={fault}:when=1")).args(["-p", &pid]).stdout(Stdio::null()).stderr(Stdio::null());
    let strace = Process::start(&mut command);
    wait_until("strace is attached to every thread", PATIENCE, || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let tracer = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).unwrap_or_default();
        tasks.map(|task| tracer(task.unwrap())).all(|status| !status.contains("TracerPid:\t0\n"))
    });
    strace
}

/// How often the proxy says that the kernel answered so.
fn counted(node: &Node, errno: &str) -> u64 {
    let metrics = node.namespace.output(&["curl", "-s", "--retry", "3", "--retry-all-errors", "http://127.0.0.1:10249/metrics"]);
    let label = format!("sluice_netlink_errors_total{{errno=\"{errno}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(label.as_str())).map_or(0, |count| count.parse().unwrap())
}

fn webs(count: u8) -> Vec<Value> {
    (1..=count).flat_map(|i| good(&format!("web-{i}"), i)).collect()
}

fn assert_survives(test: &str, fault: &str, errno: &str, is_told: bool) {
    let Some(node) = Node::new(test) else { return };
    node.write_objects(&webs(3));
    let run = node.run(&[]);
    run.wait_for_rules("10.244.0.3:8080");
    let strace = inject(&run, &node, fault);
    node.write_objects(&webs(5));
    run.wait_for_rules("10.244.0.5:8080");
    let trace = fs::read_to_string(node.scratch.file("trace")).unwrap();
    assert!(trace.contains("INJECTED"), "nothing was injected: {trace}");
    drop(strace);
    if is_told {
        assert!(counted(&node, errno) >= 1, "{errno} is not counted");
    }
    let log = run.stop();
    assert!(log.contains(errno) == is_told, "{errno} told: {is_told}\n{log}");
    let rules = node.rules();
    node.programmed();
    assert_eq!(rules, node.rules(), "the next start finds nothing to do");
}

#[test]
fn a_transaction_the_socket_finds_too_long() {
    // Nothing to tell: it is sent in parts.
    assert_survives("edge-emsgsize", "sendto:error=EMSGSIZE", "EMSGSIZE", false);
}

#[test]
fn no_memory_to_send() {
    assert_survives("edge-enomem", "sendto:error=ENOMEM", "ENOMEM", true);
}

#[test]
fn answers_that_are_lost() {
    assert_survives("edge-enobufs", "recvfrom:error=ENOBUFS", "ENOBUFS", true);
}

#[test]
fn a_signal_in_between() {
    assert_survives("edge-eintr-send", "sendto:error=EINTR", "EINTR", false);
    assert_survives("edge-eintr-receive", "recvfrom:error=EINTR", "EINTR", false);
}

/// A base chain has the name of a Service's chain, and the kernel lets no rule jump to one: a Service that the real
/// kernel refuses.
#[test]
fn a_refused_service_is_named_and_the_others_go_on() {
    let Some(node) = Node::new("edge-refused") else { return };
    let squatted = chain_of(&node, 3);
    let chain = format!("add table ip nat; add chain ip nat {squatted} {{ type nat hook prerouting priority -90; }}");
    node.namespace.output(&["nft", &chain]);
    node.write_objects(&webs(4));
    let run = node.run(&[]);
    run.wait_for_rules("10.244.0.4:8080");
    run.wait_for_log("Service shop/web-3");
    assert!(!node.rules().contains("shop/web-3:web cluster IP\" -m tcp --dport 80 -j KUBE-SVC-"), "{}", node.rules());
    assert!(counted(&node, "EOPNOTSUPP") >= 1);
    let log = run.log();
    let line = log.lines().find(|line| line.contains("Service shop/web-3")).unwrap();
    assert!(line.contains("ERROR") && line.contains("EOPNOTSUPP") && line.contains("left out until it changes"), "{line}");
    assert_eq!(log.matches("Service shop/web-3").count(), 1, "said once: {log}");

    // The others' changes are programmed. A chain of that name is ours, so it went; when the Service changes, it works.
    node.write_objects(&webs(6));
    run.wait_for_rules("10.244.0.6:8080");
    let mut objects = webs(6);
    objects[5]["endpoints"][0]["addresses"][0] = "10.244.0.33".into();
    node.write_objects(&objects);
    run.wait_for_rules("10.244.0.33:8080");
    run.stop();
}

/// Its obstacle went with the refusal, and nobody else commits: the audit has nothing to find but this.
#[test]
fn a_refused_service_is_tried_again_with_the_audit() {
    let Some(node) = Node::new("edge-audit") else { return };
    let squatted = chain_of(&node, 3);
    let chain = format!("add table ip nat; add chain ip nat {squatted} {{ type nat hook prerouting priority -90; }}");
    node.namespace.output(&["nft", &chain]);
    node.write_objects(&webs(4));
    let run = node.run(&["--audit-period=2s"]);
    run.wait_for_log("Service shop/web-3");
    run.wait_for_rules("shop/web-3:web cluster IP\" -m tcp --dport 80 -j KUBE-SVC-");
    run.stop();
}

#[test]
fn once_fails_with_the_name_of_a_refused_service_when_the_others_are_programmed() {
    let Some(node) = Node::new("edge-once") else { return };
    let squatted = [3, 5].map(|number| chain_of(&node, number));
    let base = |chain: &String| format!("add chain ip nat {chain} {{ type nat hook prerouting priority -90; }}; ");
    node.namespace.output(&["nft", &format!("add table ip nat; {}", squatted.each_ref().map(base).concat())]);
    node.write_objects(&webs(6));
    let output = node.once();
    let line = error_line(&output);
    let told = line.starts_with("error: program IPv4 rules: of Service shop/web-3 (and 1 more): the kernel refused ");
    assert!(told && line.contains("EOPNOTSUPP"), "{line}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "there is no summary of what was not done");
    let rules = node.rules();
    for (number, in_force) in [(1, true), (2, true), (3, false), (4, true), (5, false), (6, true)] {
        let jump = format!("shop/web-{number}:web cluster IP\" -m tcp --dport 80 -j KUBE-SVC-");
        assert_eq!(rules.contains(&jump), in_force, "{number}: {rules}");
    }
}

/// The name of the chain that a Service of [`webs`] will have.
fn chain_of(node: &Node, number: u8) -> String {
    node.write_objects(&webs(number));
    let rendered = node.namespace.output(&[
        support::proxy::BINARY,
        "render",
        "--family=ipv4",
        "--manifests",
        node.manifest().to_str().unwrap(),
        "--hostname-override=node-a",
    ]);
    let rule =
        rendered.lines().find(|line| line.starts_with("-A KUBE-SERVICES") && line.contains(&format!("web-{number}:"))).unwrap();
    rule.rsplit(' ').next().unwrap().to_owned()
}
