//! SIGTERM in the middle of long work: the process ends with the transaction that is under way, not with the last one of
//! a load that may take half a minute, and the next start does the rest.
#![allow(clippy::unwrap_used, reason = "where a test cannot go on it has failed")]

mod support;

use serde_json::{Value, json};
use support::node::{Node, service, slice, wait_until_or};

/// Enough for many transactions, each of some 6,000 operations: 14 for a Service with four endpoints.
const SERVICES: u32 = 4_000;

fn objects() -> Vec<Value> {
    let address = |base: [u8; 4], n: u32| std::net::Ipv4Addr::from(u32::from_be_bytes(base) + n).to_string();
    let objects = (1..=SERVICES).flat_map(|n| {
        let name = format!("web-{n}");
        let ports = json!([{"name": "web", "port": 80}]);
        let endpoints: Vec<_> = (0..4).map(|e| address([10, 128, 0, 0], 4 * n + e)).collect();
        let endpoints: Vec<_> = endpoints.iter().map(String::as_str).collect();
        [
            service(&name, json!({"clusterIP": address([10, 96, 0, 0], n), "ports": ports})),
            slice(&name, json!([{"name": "web", "port": 8080}]), &endpoints),
        ]
    });
    objects.collect()
}

fn chains(node: &Node) -> usize {
    node.namespace.output(&["nft", "list", "chains", "ip"]).matches("chain KUBE-SVC-").count()
}

#[test]
fn a_first_load_is_left_where_it_is() {
    let Some(node) = Node::new("stop-load") else { return };
    node.write_objects(&objects());
    let run = node.run(&[]);
    wait_until_or("the first piece is committed", || chains(&node) > 0, || run.log());
    let log = run.stop();
    assert!(log.contains("SIGTERM: stopping"), "{log}");
    assert!(!log.contains("in force") && !log.contains("ERROR"), "{log}");
    let made = chains(&node);
    assert!((1..SERVICES as usize).contains(&made), "{made} chains are there");
    let log = node.programmed();
    assert!(log.contains("IPv4 rules are in force") && chains(&node) == SERVICES as usize, "{log}");

    // The same while everything is read back.
    let run = node.run(&[]);
    run.wait_for_log("programming rules");
    let log = run.stop();
    assert!(!log.contains("IPv6 rules are in force") && !log.contains("ERROR"), "{log}");
}
