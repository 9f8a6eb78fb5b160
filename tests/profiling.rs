//! What `--profiling` adds to a running proxy: its log can be made to say more, and less again, while it runs.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

mod support;

use support::node::{Node, good, wait_until_or};
use support::{PATIENCE, wait_until};

const VERBOSITY: &str = "127.0.0.1:10249/debug/flags/v";

/// What `curl` with these words prints.
fn curl(node: &Node, words: &[&str]) -> String {
    let output = node.namespace.exec(&[&["curl", "-s", "-m", "5"], words].concat());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_log_says_as_much_as_is_asked_for() {
    let Some(node) = Node::new("profiling") else { return };
    node.write_objects(&good("web", 1));
    for format in ["text", "json"] {
        let run = node.run(&["--profiling", &format!("--logging-format={format}")]);
        run.wait_for_log("listening");
        run.wait_for_rules("10.244.0.1:8080");
        assert!(!run.log().contains("DEBUG"), "{}", run.log());
        assert_eq!(curl(&node, &["-X", "PUT", "-d", "4", VERBOSITY]), "successfully set klog.logging.verbosity to 4\n");
        node.write_objects(&good("web", 2));
        wait_until_or("details in the log", || run.log().contains("DEBUG"), || run.log());
        run.wait_for_rules("10.244.0.2:8080");
        assert_eq!(curl(&node, &["-X", "PUT", "-d", "0", VERBOSITY]), "successfully set klog.logging.verbosity to 0\n");
        let details = run.log().matches("DEBUG").count();
        node.write_objects(&good("web", 1));
        run.wait_for_rules("10.244.0.1:8080");
        assert!(curl(&node, &["127.0.0.1:10249/debug/pprof/"]).contains("pprof shows the profiles of Go programs"));
        let log = run.stop();
        assert_eq!(log.matches("DEBUG").count(), details, "{log}");
    }
    let run = node.run(&[]);
    run.wait_for_log("listening");
    let status = ["-o", "/dev/null", "-w", "%{http_code}", "-X", "PUT", "-d", "4", VERBOSITY];
    wait_until("404 without the flag", PATIENCE, || curl(&node, &status) == "404");
    run.stop();
}
