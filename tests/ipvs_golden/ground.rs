//! Bad ground for ipvs mode: what is missing or taken by somebody else is told clearly, and the rest is programmed.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::support::Scratch;
use super::support::golden::GOLDEN;
use super::support::netns::Namespace;
use super::support::node::{error_line, service, slice};
use super::{ipvs_mode, succeed};

/// A scenario of the test's own.
fn scenario(scratch: &Scratch, objects: &[Value]) -> PathBuf {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    fs::write(scratch.file("objects.yaml"), list.to_string()).expect("a manifest");
    scratch.path().to_owned()
}

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
    succeed(&mut ipvs_mode(&node, &scenario)).expect("to be programmed");
    assert!(node.output(&["iptables-save"]).contains("KUBE-CLUSTER-IP"));
}

/// A cluster IP that is on another device as well is on kube-ipvs0 too; an external IP is served where it is. Both are
/// named, and the other device keeps them.
#[test]
#[ignore = "run in the virtual machine of what_is_programmed_is_kube_proxys"]
fn an_address_of_another_device_stays_there() {
    const ELSEWHERE: [&str; 3] = ["10.96.0.9/32", "203.0.113.9/32", "fd00:10:96::9/128"];
    let node = Namespace::golden("address-taken");
    node.links(&ELSEWHERE.map(|address| format!("address add {address} dev cni0\n")).concat());
    let spec = json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00:10:96::9"], "ipFamilies": ["IPv4", "IPv6"],
                      "externalIPs": ["203.0.113.9"], "ports": [{"name": "web", "port": 80}]});
    let objects = [service("web", spec), slice("web", json!([{"name": "web", "port": 8080}]), &["10.244.12.9"])];
    let scratch = Scratch::new("address-taken");
    let scenario = scenario(&scratch, &objects);
    for _ in 0..2 {
        let ran = ipvs_mode(&node, &scenario).output().expect("sluice");
        let log = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{log}");
        for address in ["ClusterIP 10.96.0.9", "ClusterIP fd00:10:96::9", " 203.0.113.9"] {
            let line = log.lines().find(|line| line.contains(&format!("{address} of Service shop/web")));
            assert!(line.is_some_and(|line| line.contains("another interface")), "{address} is to be named: {log}");
        }
        let on = |device| node.output(&["ip", "-brief", "address", "show", "dev", device]);
        assert!(ELSEWHERE.iter().all(|address| on("cni0").contains(address)), "{}", on("cni0"));
        let ours = on("kube-ipvs0");
        assert!(ours.contains(ELSEWHERE[0]) && !ours.contains(ELSEWHERE[1]) && ours.contains(ELSEWHERE[2]), "{ours}");
        assert!(node.output(&["ipvsadm", "-Sn"]).contains("-a -t 203.0.113.9:80 -r 10.244.12.9:8080 -m -w 1\n"));
    }
}

/// Each of 70 Services has the same 1000 endpoints on this node, by another port: 70,000 members of KUBE-LOOP-BACK, more
/// than a set takes by default.
#[test]
#[ignore = "run in the virtual machine of what_is_programmed_is_kube_proxys"]
fn sets_hold_what_is_wanted() {
    let node = Namespace::golden("large-set");
    let address = |i: i32| format!("10.244.{}.{}", 16 + i / 250, 1 + i % 250);
    let endpoints: Vec<_> = (0..1000).map(|i| json!({"addresses": [address(i)], "nodeName": "node-a"})).collect();
    let mut objects = Vec::new();
    for number in 0..70 {
        let name = format!("many-{number}");
        let spec = json!({"clusterIP": format!("10.96.1.{number}"), "ports": [{"name": "web", "port": 80}]});
        let mut slice = slice(&name, json!([{"name": "web", "port": 8000 + number}]), &[]);
        slice["endpoints"] = json!(endpoints);
        objects.extend([service(&name, spec), slice]);
    }
    let scratch = Scratch::new("large-set");
    succeed(&mut ipvs_mode(&node, &scenario(&scratch, &objects))).expect("to be programmed");
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
    succeed(&mut ipvs_mode(&node, &scenario)).expect("another scheduler is there");
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
