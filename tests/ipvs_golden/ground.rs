//! Bad ground for ipvs mode: what is missing or taken by somebody else is told clearly, and the rest is programmed.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::ipvs_mode;
use super::support::Scratch;
use super::support::golden::GOLDEN;
use super::support::netns::Namespace;
use super::support::node::{error_line, service, slice};

/// Somebody else's set has the name of ours and another type: rules and the other sets do without it.
#[test]
#[ignore = "run in the virtual machine of what_is_programmed_is_kube_proxys"]
fn a_set_of_another_type_is_left_alone() {
    let node = Namespace::golden("set-taken");
    node.feed(&["ipset", "restore"], "create KUBE-CLUSTER-IP hash:ip\nadd KUBE-CLUSTER-IP 192.0.2.7\n");
    let scenario = Path::new(GOLDEN).join("dual-stack");
    let error = error_line(&ipvs_mode(&node, &scenario).output().expect("sluice"));
    assert!(error.contains("set KUBE-CLUSTER-IP") && error.contains("hash:ip"), "{error}");
    let sets = node.output(&["ipset", "save"]);
    assert!(sets.contains("create KUBE-CLUSTER-IP hash:ip ") && sets.contains("add KUBE-CLUSTER-IP 192.0.2.7\n"), "{sets}");
    assert!(sets.contains("add KUBE-6-CLUSTER-IP ") && sets.contains("add KUBE-IPVS-IPS "), "{sets}");
    let rules = node.output(&["iptables-save"]);
    assert!(rules.contains("KUBE-IPVS-IPS dst") && !rules.contains("KUBE-CLUSTER-IP"), "{rules}");
    assert!(node.output(&["ipvsadm", "-Sn"]).contains("-a -t "), "virtual servers are there all the same");
    // Once it is gone, all is as it should be.
    node.output(&["sh", "-ec", "ipset destroy KUBE-CLUSTER-IP"]);
    super::succeed(&mut ipvs_mode(&node, &scenario)).expect("to be programmed");
    assert!(node.output(&["iptables-save"]).contains("KUBE-CLUSTER-IP"));
}

/// A cluster IP that is on another device as well: kube-ipvs0 has it too, and the other device keeps it.
#[test]
#[ignore = "run in the virtual machine of what_is_programmed_is_kube_proxys"]
fn an_address_of_another_device_stays_there() {
    let node = Namespace::golden("address-taken");
    let before = "address add 10.96.0.9/32 dev cni0\naddress add fd00:10:96::9/128 dev cni0 nodad\n";
    node.links(before);
    let scratch = Scratch::new("address-taken");
    let scenario = scratch.file("scenario");
    fs::create_dir_all(&scenario).expect("a folder");
    let ports = json!([{"name": "web", "port": 80}]);
    let spec = json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00:10:96::9"],
                      "ipFamilies": ["IPv4", "IPv6"], "ports": ports});
    let objects = [service("web", spec), slice("web", json!([{"name": "web", "port": 8080}]), &["10.244.12.9"])];
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    fs::write(scenario.join("objects.yaml"), list.to_string()).expect("a manifest");
    for _ in 0..2 {
        super::succeed(&mut ipvs_mode(&node, &scenario)).expect("to be programmed");
        for device in ["cni0", "kube-ipvs0"] {
            let addresses = node.output(&["ip", "-brief", "address", "show", "dev", device]);
            assert!(addresses.contains("10.96.0.9/32") && addresses.contains("fd00:10:96::9/128"), "{addresses}");
        }
    }
}

/// Each of 70 Services has the same 1000 endpoints on this node, by another port: 70,000 members of KUBE-LOOP-BACK, more
/// than a set takes by default.
#[test]
#[ignore = "run in the virtual machine of what_is_programmed_is_kube_proxys"]
fn sets_hold_what_is_wanted() {
    let node = Namespace::golden("large-set");
    let scratch = Scratch::new("large-set");
    let scenario = scratch.file("scenario");
    fs::create_dir_all(&scenario).expect("a folder");
    let mut objects = Vec::new();
    let endpoints: Vec<_> = (0..1000)
        .map(|i| json!({"addresses": [format!("10.244.{}.{}", 16 + i / 250, 1 + i % 250)], "nodeName": "node-a"}))
        .collect();
    for number in 0..70 {
        let name = format!("many-{number}");
        objects.push(service(&name, json!({"clusterIP": format!("10.96.1.{number}"), "ports": [{"name": "web", "port": 80}]})));
        let mut slice = slice(&name, json!([{"name": "web", "port": 8000 + number}]), &[]);
        slice["endpoints"] = json!(endpoints);
        objects.push(slice);
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    fs::write(scenario.join("objects.yaml"), list.to_string()).expect("a manifest");
    let summary = super::succeed(&mut ipvs_mode(&node, &scenario)).expect("to be programmed");
    println!("{summary}");
    let header = node.output(&["ipset", "list", "-terse", "KUBE-LOOP-BACK"]);
    assert!(header.contains("Number of entries: 70000\n"), "{header}");
}

#[test]
#[ignore = "run in the virtual machine of what_is_programmed_is_kube_proxys, when it has no module ip_vs_sed any more"]
fn without_a_scheduler_nothing_is_programmed() {
    let node = Namespace::golden("no-scheduler");
    let scenario = Path::new(GOLDEN).join("dual-stack");
    let error = error_line(&ipvs_mode(&node, &scenario).arg("--ipvs-scheduler=sed").output().expect("sluice"));
    assert!(error.contains("ip_vs_sed") && error.contains("ENOENT"), "{error}");
    assert_eq!(node.output(&["ipset", "save"]) + &node.output(&["ipvsadm", "-Sn"]), "");
    super::succeed(&mut ipvs_mode(&node, &scenario)).expect("another scheduler is there");
}

#[test]
#[ignore = "run in the virtual machine of what_is_programmed_is_kube_proxys, when it has no module ip_vs any more"]
fn without_ipvs_nothing_is_programmed() {
    let node = Namespace::golden("no-ipvs");
    let error = error_line(&ipvs_mode(&node, &Path::new(GOLDEN).join("dual-stack")).output().expect("sluice"));
    assert!(error.contains("IPVS (module ip_vs)"), "{error}");
    assert_eq!(node.output(&["ipset", "save"]), "");
    assert!(!node.output(&["iptables-save"]).contains("KUBE-"), "no rules without what they are for");
}
