//! Bad ground: privilege, kernel, addresses or another program in the way. Each is named, what was programmed stays,
//! and what can be done is done. And what the log of a good start looks like.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::netns::{Process, set_sysctl};
use support::node::{Node, error_line, good, service, slice, text, wait_until_or};
use support::proxy::BINARY;
use support::{PATIENCE, wait_until};

#[test]
fn without_the_capability_the_error_names_it() {
    let Some(node) = Node::new("bad-caps") else { return };
    node.write_objects(&good("web", 1));
    node.programmed();
    let before = node.rules();
    // Where the binary was built, another user may not look.
    let binary = node.scratch.file("sluice");
    fs::copy(BINARY, &binary).unwrap();
    let mut command = node.namespace.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]);
    command.arg(binary).arg("--manifests").arg(node.manifest());
    let line = error_line(&command.output().unwrap());
    assert!(line.starts_with("error: program rules: ") && line.contains("CAP_NET_ADMIN"), "{line}");
    assert_eq!(node.rules(), before);
}

/// A kernel without `nf_tables` is not to be had here: strace answers in its place.
#[test]
fn without_netfilter_netlink_the_error_names_it() {
    let Some(node) = Node::new("bad-kernel") else { return };
    node.write_objects(&good("web", 1));
    node.programmed();
    let before = node.rules();
    let trace = node.scratch.file("trace").display().to_string();
    for (errno, words) in [
        (
            "EPROTONOSUPPORT",
            "error: program rules: the kernel has no netfilter netlink: EPROTONOSUPPORT (Protocol not supported)",
        ),
        ("EAFNOSUPPORT", "error: program rules: the kernel has no netfilter netlink: EAFNOSUPPORT"),
        ("EMFILE", "error: program rules: cannot open a netlink socket: EMFILE (Too many open files)"),
    ] {
        let inject = format!("inject=socket:error={errno}:when=1");
        let way = ["strace", "-f", "-qq", "-o", &trace, "-e", "trace=socket", "-e", &inject];
        let output = node.command_by(&way).output().unwrap();
        let traced = fs::read_to_string(&trace).unwrap();
        let hit = traced.lines().find(|line| line.contains("INJECTED")).unwrap_or_default();
        assert!(hit.contains("NETLINK_NETFILTER"), "the wrong socket was refused: {traced}");
        let line = error_line(&output);
        assert!(line.starts_with(words), "{line}\nwanted: {words}");
    }
    assert_eq!(node.rules(), before);
}

/// The first answer on the wire, to "which generation?", becomes an error: 48 bytes, type 2, EINVAL.
const NO_SUCH_SUBSYSTEM: &str = "inject=recvfrom:poke_exit=@arg2=30000000020000000100000000000000eaffffff:when=2";
/// So does the third, to a trial rule for IPv6: 36 bytes, type 2, ENOENT.
const NO_COMPATIBILITY: &str = "inject=recvfrom:poke_exit=@arg2=24000000020000001200000000000000feffffff:when=7";

/// What nfnetlink answers where the module is missing, put into the kernel's mouth. Without `-f`, so that only the
/// main thread's answers are counted.
#[test]
fn without_nf_tables_the_error_names_it() {
    let Some(node) = Node::new("bad-subsystem") else { return };
    node.write_objects(&good("web", 1));
    node.programmed();
    let before = node.rules();
    let trace = node.scratch.file("trace").display().to_string();
    let by = |inject| ["strace", "-qq", "-o", &trace, "-e", "trace=recvfrom", "-e", inject];
    let line = error_line(&node.command_by(&by(NO_SUCH_SUBSYSTEM)).output().unwrap());
    assert_eq!(line, "error: program rules: the kernel has no nf_tables: EINVAL (Invalid argument)");
    assert_eq!(node.rules(), before);

    node.write_objects(&good("web", 2));
    let output = node.command_by(&by(NO_COMPATIBILITY)).arg("--once").output().unwrap();
    let log = text(output.stderr);
    assert_eq!(output.status.code(), Some(0), "IPv4 goes on without IPv6: {log}");
    let warning = log.lines().find(|line| line.contains("WARN")).unwrap_or_default();
    assert!(warning.contains("family=IPv6") && warning.contains("the kernel has no xt extensions in nf_tables"), "{log}");
    assert!(node.rules().contains("10.244.0.2:8080"));
}

#[test]
fn a_family_that_is_switched_off_is_left_alone() {
    let Some(node) = Node::new("bad-family") else { return };
    node.namespace.run(|| set_sysctl("ipv6/conf/all/disable_ipv6", "1"));
    node.namespace.output(&["ip6tables", "-t", "nat", "-N", "MINE"]);
    let before = node.namespace.output(&["ip6tables-save"]);
    node.write_objects(&good("web", 1));
    let run = node.run(&[]);
    run.wait_for_rules("10.244.0.1:8080");
    run.wait_for_log("listening server=\"health\"");
    node.write_objects(&good("web", 2));
    run.wait_for_rules("10.244.0.2:8080");
    let log = run.stop();
    let told: Vec<_> = log.lines().filter(|line| line.contains("IPv6")).collect();
    assert!(told.len() == 1 && told[0].contains("INFO") && told[0].contains("disable_ipv6 is 1"), "{log}");
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    let rules = |dump: &str| dump.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(rules(&node.namespace.output(&["ip6tables-save"])), rules(&before));
}

/// Somebody's nftables chain has the name, but not the hook, of a built-in one: the kernel refuses all IPv6 rules.
#[test]
fn a_family_that_is_refused_does_not_silence_the_others_health_checks() {
    let Some(node) = Node::new("bad-refused") else { return };
    node.namespace.output(&["nft", "add table ip6 filter; add chain ip6 filter INPUT"]);
    let mut objects = good("web", 1);
    for object in objects.iter_mut().filter(|object| object["kind"] == "Service") {
        object["spec"]["type"] = json!("LoadBalancer");
        object["spec"]["externalTrafficPolicy"] = json!("Local");
        object["spec"]["healthCheckNodePort"] = json!(32_000);
    }
    node.write_objects(&objects);
    let run = node.run(&[]);
    run.wait_for_rules("10.244.0.1:8080");
    let answers = || node.namespace.exec(&["curl", "-s", "-m", "1", "127.0.0.1:32000"]).status.success();
    wait_until("the health check port answers", PATIENCE, answers);
    assert!(run.stop().contains("family=IPv6"), "IPv6 was to be refused");
}

/// Each finds chains made that it did not find when it looked.
#[test]
fn two_processes_that_begin_together_both_succeed() {
    let Some(node) = Node::new("bad-two") else { return };
    node.write_objects(&(1..=150).flat_map(|i| good(&format!("web-{i}"), i)).collect::<Vec<_>>());
    for _ in 0..3 {
        node.namespace.output(&["nft", "flush ruleset"]);
        let start = || node.command_by(&[]).arg("--once").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        for process in [start(), start()] {
            let output = process.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", text(output.stderr));
        }
        assert_eq!(node.rules().matches("--to-destination").count(), 150);
    }
}

#[test]
fn ports_that_are_taken_are_waited_for_or_end_the_run() {
    let Some(node) = Node::new("bad-ports") else { return };
    node.write_objects(&good("web", 1));
    let (health, metrics) = ("127.0.0.1:10256", "127.0.0.1:10249");
    let flags = [format!("--healthz-bind-address={health}"), format!("--metrics-bind-address={metrics}")];
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let taken = node.namespace.run(|| [health, metrics].map(|address| TcpListener::bind(address).unwrap()));

    let run = node.run(&flags);
    run.wait_for_rules("10.244.0.1:8080");
    for (server, address) in [("health", health), ("metrics", metrics)] {
        run.wait_for_log(&format!("cannot listen; trying again until it works server=\"{server}\" address={address}"));
    }
    let output = node.command().args(&flags).arg("--bind-address-hard-fail").output().unwrap();
    let line = error_line(&output);
    let named = line.contains(health) || line.contains(metrics);
    assert!(named && line.contains("Address already in use"), "{line}");

    drop(taken);
    run.wait_for_log(&format!("listening server=\"health\" address={health}"));
    run.wait_for_log(&format!("listening server=\"metrics\" address={metrics}"));
    let log = run.stop();
    assert_eq!(log.matches("cannot listen").count(), 2, "once for each: {log}");
}

/// The kernel lets nobody jump to a chain that it calls itself.
#[test]
fn a_start_that_never_succeeds_is_unhealthy() {
    let Some(node) = Node::new("bad-start") else { return };
    node.write_objects(&good("web", 1));
    node.namespace.output(&["nft", "add table ip nat; add chain ip nat KUBE-SERVICES { type nat hook output priority 200; }"]);
    let flags = ["--healthz-bind-address=127.0.0.1:10256", "--iptables-sync-period=1s", "--iptables-min-sync-period=0s"];
    let run = node.run(&flags);
    run.wait_for_log("rules could not be programmed");
    let unhealthy = || healthz(&node).lines().next().is_some_and(|status| status.contains(" 503 "));
    wait_until_or("503 from /healthz", unhealthy, || run.log());
    run.stop();
}

fn healthz(node: &Node) -> String {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect("127.0.0.1:10256")?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    node.namespace.run(|| ask().unwrap_or_default())
}

/// Changes a foreign chain as fast as it goes until the file is gone.
const FOREIGN_LOOP: &str = "n=0; while [ -e \"$1\" ] && [ $n -lt 5000 ]; do n=$((n+1)); \
    iptables -t nat -A FOREIGN -s 192.0.2.1 -j RETURN && iptables -t nat -D FOREIGN -s 192.0.2.1 -j RETURN || exit 1; done";

#[test]
fn another_program_that_changes_rules_all_the_time_is_no_hindrance() {
    let Some(node) = Node::new("bad-race") else { return };
    let services = |number: u8| {
        let endpoint = format!("10.244.9.{number}");
        let pair = |n: u8| {
            let name = format!("s{n}");
            [
                service(&name, json!({"clusterIP": format!("10.96.1.{n}"), "ports": [{"port": 80}]})),
                slice(&name, json!([{"name": "", "port": 8080}]), &[&endpoint]),
            ]
        };
        (1..=200).flat_map(pair).collect::<Vec<_>>()
    };
    node.write_objects(&services(1));
    node.programmed();
    node.namespace.output(&["iptables", "-t", "nat", "-N", "FOREIGN"]);
    let busy = node.scratch.file("busy");
    fs::write(&busy, "").unwrap();
    let mut other = Process::start(node.namespace.command("sh").args(["-c", FOREIGN_LOOP, "sh"]).arg(&busy));

    // The start reads 400 chains meanwhile, and every change is sent meanwhile.
    assert!(text(node.once().stdout).contains("IPv4: 200 services, 0 operations"));
    let run = node.run(&[]);
    run.wait_for_log("IPv4 rules are in force");
    for number in 2..=8 {
        node.write_objects(&services(number));
        let in_force = || node.rules().matches(&format!("--to-destination 10.244.9.{number}:8080")).count() == 200;
        wait_until_or(&format!("change {number}"), in_force, || run.log());
    }
    assert!(other.child().try_wait().unwrap().is_none(), "the other program went on all the time");
    fs::remove_file(&busy).unwrap();
    wait_until("the other program ends", PATIENCE, || other.child().try_wait().unwrap().is_some());
    assert!(other.child().wait().unwrap().success(), "the other program was not disturbed either");
    run.stop();
    let after = node.once();
    assert!(text(after.stdout).contains("IPv4: 200 services, 0 operations"), "all is as it should be");
    assert!(node.rules().contains("FOREIGN") && !node.rules().contains("10.244.9.7:8080"));
}

#[test]
fn a_log_in_json_is_json_line_by_line() {
    let Some(node) = Node::new("bad-json") else { return };
    let objects = [&good("web", 1)[..], &[service("odd\n\"name", json!({"clusterIP": "x", "ports": [{"port": 0}]}))]].concat();
    node.write_objects(&objects);
    let run = node.run(&["--logging-format=json", "-v=4", "--oom-score-adj=-999"]);
    run.wait_for_rules("10.244.0.1:8080");
    node.write("kind: [");
    run.wait_for_log("the last good state stays");
    assert_json(&run.stop());
    let output = node.command().args(["--logging-format=json", "--once"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = text(output.stderr);
    assert_json(&log);
    let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert!(last["level"] == "ERROR" && last["message"].as_str().unwrap().contains("document 1"), "{last}");
}

fn assert_json(log: &str) {
    assert!(log.lines().count() >= 3, "{log}");
    for line in log.lines() {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for key in ["timestamp", "level", "message"] {
            assert!(value[key].as_str().is_some_and(|text| !text.is_empty()), "{key} is missing: {line}");
        }
    }
}

/// What an operator sees of a start without trouble.
#[test]
fn the_log_of_a_start_is_short_and_in_plain_words() {
    let Some(node) = Node::new("bad-log") else { return };
    node.write_objects(&good("web", 1));
    let flags = [
        "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
        "--iptables-min-sync-period=1s",
        "--feature-gates=AllowServiceExternalIPs=false",
    ];
    let run = node.run(&flags);
    run.wait_for_log("IPv4 rules are in force: 1 services");
    run.wait_for_log("IPv6 rules are in force");
    run.wait_for_log("listening server=\"metrics\"");
    let log = run.stop();
    assert!(log.lines().count() <= 10, "{log}");
    assert!(log.lines().all(|line| line.contains("INFO")), "{log}");
    assert!(!log.contains(['{', '}']) && !log.contains("Some(") && !log.contains("None"), "no inner structure: {log}");
    let first = log.lines().next().unwrap();
    for word in
        ["sluice 0.", "--hostname-override=node-a", "--proxy-mode=iptables", "--iptables-sync-period=30s"].iter().chain(&flags)
    {
        assert!(first.contains(word), "{word} is not in {first}");
    }
    // What is printed is a command line.
    let printed = first.split_once(" starts with ").unwrap().1.split(' ');
    let output = Command::new(BINARY).arg("render").args(printed).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
