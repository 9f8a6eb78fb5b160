//! A running proxy with a configuration: what it shows of it, what it logs, and where to. On a node of the tests' own;
//! needs root.

use super::support::node::{Node, good, text};
use super::support::proxy::get;

/// The lines that a change of objects makes at "debug".
const STEP: &str = "rules programmed";

/// The log of a run with these flags in which a Service came.
fn log_of_a_change(node: &Node, flags: &[&str], steps_are_told: bool) -> String {
    node.write_objects(&good("web", 1));
    let run = node.run(flags);
    run.wait_for_log("IPv6 rules are in force");
    node.write_objects(&[good("web", 1), good("more", 2)].concat());
    run.wait_for_rules("10.96.0.2/32");
    if steps_are_told {
        run.wait_for_log(STEP);
    }
    run.stop()
}

#[test]
fn modules_may_say_more() {
    let Some(node) = Node::new("config-logs") else { return };
    for (flags, told) in [
        (&["-v=3"][..], false),
        (&["-v=4"], true),
        (&["--vmodule=fam*=4"], true),
        (&["--vmodule=watch=4,family=3"], false),
        (&["--vmodule=sluice::agent::family=9"], true),
    ] {
        let log = log_of_a_change(&node, flags, told);
        assert_eq!(log.contains(STEP), told, "{flags:?}: {log}");
    }
}

/// What a run with `--once` wrote to standard output and to stderr.
fn once(node: &Node, flags: &[&str]) -> (String, String) {
    let output = node.command().arg("--once").args(flags).output().unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "{flags:?}: {err}");
    (out, err)
}

#[test]
fn streams_may_be_split_and_lines_be_json() {
    let Some(node) = Node::new("config-split") else { return };
    node.write_objects(&good("web", 1));
    let split = ["--feature-gates=LoggingAlphaOptions=true", "--log-text-split-stream", "--ipvs-scheduler=rr"];
    let (out, err) = once(&node, &split);
    assert!(out.contains("rules are in force") && !out.contains("WARN"), "{out}");
    assert!(err.contains("WARN") && !err.contains("INFO"), "{err}");

    let (out, err) = once(&node, &["--logging-format=json"]);
    assert!(!out.contains("rules are in force") && err.contains("rules are in force"), "{out}{err}");
    for line in err.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["level"] == "INFO" && line["message"].is_string(), "{line}");
    }
}

/// A level that changes in the file counts without a start of the process.
#[test]
fn the_level_follows_the_file() {
    let Some(node) = Node::new("config-level") else { return };
    let file = node.scratch.file("config.conf");
    let config = format!("--config={}", file.display());
    let write = |level: u8| {
        let text = format!("{}conntrack: {{maxPerCore: 0}}\nlogging: {{verbosity: {level}}}\n", super::HEAD);
        std::fs::write(&file, text).unwrap();
    };
    write(0);
    node.write_objects(&good("web", 1));
    let run = node.run(&[&config]);
    run.wait_for_log("IPv6 rules are in force");
    assert!(!run.log().contains(STEP));
    write(4);
    let mut number = 2;
    let told = || {
        node.write_objects(&[good("web", 1), good("more", number)].concat());
        number = number % 200 + 1;
        run.log().contains(STEP)
    };
    super::support::node::wait_until_or("each step is told", told, || run.log());
    run.stop();
}

#[test]
fn a_running_proxy_shows_its_configuration_and_flags() {
    let Some(node) = Node::new("config-shown") else { return };
    let file = node.scratch.file("config.conf");
    let text = format!(
        "{}conntrack: {{maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}\nclusterCIDR: 10.244.0.0/16\n",
        super::HEAD
    );
    std::fs::write(&file, &text).unwrap();
    node.write_objects(&good("web", 1));
    let run = node.run(&[&format!("--config={}", file.display()), "--audit-period=1h"]);
    run.wait_for_log("IPv6 rules are in force");
    let shown = |path| {
        let answer = node.namespace.run(|| get("127.0.0.1:10249", path)).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    };
    let configz: serde_json::Value = serde_json::from_str(&shown("/configz")).unwrap();
    let mut wanted = super::load(&text).unwrap().effective;
    std::sync::Arc::make_mut(&mut wanted).hostname_override = "node-a".into();
    let wanted: serde_json::Value = serde_json::from_str(&wanted.to_configz()).unwrap();
    assert_eq!(configz, serde_json::json!({ "kubeproxy.config.k8s.io": wanted }));
    let flagz = shown("/flagz");
    for line in ["audit-period:1h0m0s", "cluster-cidr:", "hostname-override:node-a", &format!("config:{}", file.display())] {
        assert!(flagz.lines().any(|shown| shown == line), "{line}: {flagz}");
    }
    run.stop();
}
