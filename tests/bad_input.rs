//! Bad input: what is wrong is said, what was programmed stays, and what is right beside it is programmed all the same.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::node::{Node, error_line, good, service, slice, text};

/// Programs these beside two good Services (one before, one after in every order) and returns log and rules.
fn beside_good_ones(node: &Node, objects: &[Value]) -> (String, String) {
    let all = [&good("aaa", 101)[..], objects, &good("zzz", 102)[..]].concat();
    node.write_objects(&all);
    let log = node.programmed();
    let rules = node.rules();
    for endpoint in ["10.244.0.101:8080", "10.244.0.102:8080"] {
        assert!(rules.contains(&format!("--to-destination {endpoint}")), "{endpoint} is missing:\n{rules}\n{log}");
    }
    for tool in ["iptables", "ip6tables"] {
        let saved = node.namespace.output(&[&format!("{tool}-save")]);
        node.namespace.feed(&[&format!("{tool}-restore"), "--test"], &saved);
    }
    let again = node.once();
    let summary = text(again.stdout);
    assert!(summary.matches(" 0 operations").count() == 2, "a second start finds nothing to do: {summary}");
    (log, rules)
}

/// # Panics
/// When a line of the log does not say one of `wanted`.
fn warned(log: &str, wanted: &[&str]) {
    for want in wanted {
        let found = log.lines().any(|line| line.contains("WARN") && line.contains(want));
        assert!(found, "no warning says {want}:\n{log}");
    }
}

#[test]
fn a_broken_manifest_at_start_ends_the_run_and_changes_nothing() {
    let Some(node) = Node::new("bad-start") else { return };
    node.write_objects(&good("web", 1));
    node.programmed();
    let before = node.rules();
    let path = node.manifest().display().to_string();
    let whole = fs::read_to_string(node.manifest()).unwrap();
    let broken = [
        (whole[..whole.len() / 2].to_owned(), format!("error: manifests: {path}: document 1 (line 1): ")),
        (
            format!("{whole}\n---\nkind: Service\napiVersion: v1\nspec: {{}}\n"),
            format!("error: manifests: {path}: document 2 (line "),
        ),
        ("kind: [".into(), format!("error: manifests: {path}: document 1 (line ")),
    ];
    for (text, want) in broken {
        node.write(&text);
        let line = error_line(&node.once());
        assert!(line.starts_with(&want), "{line}\nwanted: {want}");
        let line = error_line(&node.command().output().unwrap());
        assert!(line.starts_with(&want), "without --once: {line}\nwanted: {want}");
    }
    fs::remove_file(node.manifest()).unwrap();
    assert_eq!(
        error_line(&node.once()),
        format!("error: manifests: {path} cannot be read: No such file or directory (os error 2)")
    );
    assert_eq!(node.rules(), before);
}

#[test]
fn a_manifest_that_breaks_while_running_leaves_the_rules_until_it_is_mended() {
    let Some(node) = Node::new("bad-later") else { return };
    node.write_objects(&good("web", 1));
    let run = node.run(&[]);
    run.wait_for_rules("10.244.0.1:8080");
    let before = node.rules();
    let path = node.manifest().display().to_string();
    node.write("apiVersion: v1\nkind: Service\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: b");
    run.wait_for_log(&format!("manifests: {path}: document 2 (line "));
    run.wait_for_log("the last good state stays until this is mended");
    assert_eq!(node.rules(), before);
    node.write_objects(&good("web", 2));
    run.wait_for_rules("10.244.0.2:8080");
    run.wait_for_log("is whole again");
    let log = run.stop();
    assert_eq!(log.matches(" ERROR ").count(), 1, "{log}");
}

#[test]
fn values_that_cannot_be_are_left_out_and_named() {
    let Some(node) = Node::new("bad-values") else { return };
    let objects = [
        service("no-address", json!({"clusterIP": "10.0.0.999", "ports": [{"port": 80}]})),
        service(
            "half",
            json!({"clusterIP": "10.96.0.20", "externalIPs": ["x", "192.0.2.9"], "loadBalancerSourceRanges": ["y"],
                   "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 70000,
                   "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}},
                   "ports": [{"name": "zero", "port": 0}, {"name": "high", "port": 70000}, {"name": "none"},
                             {"name": "icmp", "port": 80, "protocol": "ICMP"}, {"name": "node", "port": 81, "nodePort": -1},
                             {"name": "web", "port": 80}]}),
        ),
        slice(
            "half",
            json!([{"name": "web", "port": 8080}, {"name": "zero", "port": 0}, {"name": "none"},
                   {"name": "high", "port": 65536}, {"name": "odd", "port": 1, "protocol": "ICMP"}]),
            &["10.244.0.20", "nowhere", "fd00::20", "10.244.0.256"],
        ),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "FQDN",
               "metadata": {"name": "names", "namespace": "shop", "labels": {"kubernetes.io/service-name": "half"}},
               "ports": [{"name": "web", "port": 8080}], "endpoints": [{"addresses": ["example.com"]}]}),
    ];
    let (log, rules) = beside_good_ones(&node, &objects);
    let wanted = [
        "Service shop/no-address: spec.clusterIP: \"10.0.0.999\"",
        "Service shop/half: spec.externalIPs[0]: \"x\"",
        "Service shop/half: spec.loadBalancerSourceRanges[0]: \"y\"",
        "Service shop/half: spec.healthCheckNodePort: 70000",
        "Service shop/half: spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401",
        "Service shop/half: spec.ports[0].port: 0 is not",
        "Service shop/half: spec.ports[1].port: 70000 is not",
        "Service shop/half: spec.ports[2].port: 0 is not",
        "Service shop/half: spec.ports[3].protocol: \"ICMP\"",
        "Service shop/half: spec.ports[4].nodePort: -1 is not",
        "EndpointSlice shop/half-1: ports[1].port: 0 is not",
        "EndpointSlice shop/half-1: ports[2].port: is missing",
        "EndpointSlice shop/half-1: ports[3].port: 65536 is not",
        "EndpointSlice shop/half-1: ports[4].protocol: \"ICMP\"",
        "EndpointSlice shop/half-1: endpoints[1].addresses[0]: \"nowhere\" is not an IPv4 address",
        "EndpointSlice shop/half-1: endpoints[2].addresses[0]: \"fd00::20\" is not an IPv4 address",
        "EndpointSlice shop/half-1: endpoints[3].addresses[0]: \"10.244.0.256\"",
        "EndpointSlice shop/names: addressType: \"FQDN\"",
    ];
    warned(&log, &wanted);
    assert!(rules.contains("10.244.0.20:8080") && rules.contains("-d 192.0.2.9/32"), "what is left of it:\n{rules}");
    assert!(rules.contains("--seconds 10800") && !rules.contains("no-address"), "{rules}");
}

#[test]
fn ports_and_addresses_given_twice_break_nothing() {
    let Some(node) = Node::new("bad-twice") else { return };
    let ports = json!([{"name": "web", "port": 80, "nodePort": 30080}, {"name": "web", "port": 81, "nodePort": 30080},
                       {"name": "web", "port": 80, "protocol": "UDP"}, {"name": "same", "port": 81}]);
    let twice = json!({"clusterIP": "10.96.0.101", "type": "NodePort", "ports": ports,
                       "externalIPs": ["192.0.2.9", "192.0.2.9"], "loadBalancerSourceRanges": ["10.0.0.0/8", "10.0.0.0/8"]});
    let same_address = json!({"clusterIP": "10.96.0.101", "ports": [{"name": "web", "port": 80}]});
    let slice_ports = json!([{"name": "web", "port": 8080}, {"name": "web", "port": 8080}, {"name": "same", "port": 8080}]);
    let objects = [
        service("twice", twice),
        slice("twice", slice_ports, &["10.244.0.20", "10.244.0.20"]),
        service("same-address", same_address),
        slice("same-address", json!([{"name": "web", "port": 8080}]), &["10.244.0.21"]),
    ];
    let (log, rules) = beside_good_ones(&node, &objects);
    warned(&log, &["Service shop/twice: spec.ports[1]: takes the place of an earlier port with the same name and protocol tcp"]);
    assert!(rules.contains("10.244.0.20:8080") && rules.contains("10.244.0.21:8080"), "{rules}");
    // And they go again.
    let (_, rules) = beside_good_ones(&node, &[]);
    assert!(!rules.contains("twice") && !rules.contains("same-address"), "{rules}");
}

#[test]
fn odd_names_break_neither_rules_nor_log() {
    let Some(node) = Node::new("bad-names") else { return };
    let very_long = "n".repeat(300);
    let spec = |number: u8, port: &str| json!({"clusterIP": format!("10.96.0.{number}"), "ports": [{"name": port, "port": 80}]});
    let named = |name: &str, number: u8, port: &str| {
        let endpoint = format!("10.244.0.{number}");
        [service(name, spec(number, port)), slice(name, json!([{"name": port, "port": 8080}]), &[&endpoint])]
    };
    let programmed = [named(&very_long, 1, &very_long), named("ünï¢ødé-✂", 2, "port"), named("q\"u'o\\t e$`", 3, "p")].concat();
    let cut = named(&"ü".repeat(200), 4, &"✂".repeat(100));
    let left_out = [
        named("line\n-A INPUT -j DROP\n", 5, "p"),
        named("nul\0", 6, "p"),
        named("a/b", 7, "p"),
        named("twice:web", 8, ""),
        named("port", 9, "p\nq"),
    ];
    let (log, rules) = beside_good_ones(&node, &[&programmed[..], &cut[..], &left_out.concat()[..]].concat());
    for number in 1..=4 {
        assert!(rules.contains(&format!("10.244.0.{number}:8080")), "{number}:\n{rules}");
    }
    for number in 5..=9 {
        assert!(!rules.contains(&format!("10.96.0.{number}/32")), "{number}:\n{rules}");
    }
    warned(
        &log,
        &[
            "Service shop/line\\n-A INPUT -j DROP\\n: metadata.name: \"line\\n-A INPUT -j DROP\\n\" is no name, left out",
            "Service shop/a/b: metadata.name: \"a/b\" is no name",
            "Service shop/port: spec.ports[0].name: \"p\\nq\" is no name",
        ],
    );
    assert!(log.lines().all(|line| line.contains("INFO") || line.contains("WARN")), "a line of somebody else's:\n{log}");
}

#[test]
fn thousands_of_endpoints_in_one_service_are_programmed() {
    let Some(node) = Node::new("bad-many") else { return };
    let addresses: Vec<_> = (0..3000).map(|n| format!("10.244.{}.{}", n / 250, n % 250 + 1)).collect();
    let slices = addresses.chunks(100).enumerate().map(|(i, chunk)| {
        let mut slice =
            slice("big", json!([{"name": "web", "port": 8080}]), &chunk.iter().map(String::as_str).collect::<Vec<_>>());
        slice["metadata"]["name"] = format!("big-{i}").into();
        slice
    });
    let big = service("big", json!({"clusterIP": "10.96.0.20", "ports": [{"name": "web", "port": 80}]}));
    let (_, rules) = beside_good_ones(&node, &std::iter::once(big).chain(slices).collect::<Vec<_>>());
    assert_eq!(rules.matches("--to-destination 10.244.").count(), 3002);
}
