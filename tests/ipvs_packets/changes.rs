//! Changes and damage: requests do not notice the ones, and the others are put right.

use std::net::SocketAddr;
use std::slice::from_ref;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::support::crowd::Crowd;
use super::support::lab::{A1, A2, CLIENT, FAMILIES, Family, Lab};
use super::support::objects::{Door, Service};
use super::support::proxy::saved_rules;
use super::support::traffic::{Fate, Protocol, ask};
use super::support::{PATIENCE, wait_until};
use super::{start, view};

const OTHERS: Crowd = Crowd { services: 20, endpoints: 2 };

/// Requests with a new connection each, made without pause.
#[derive(Default)]
struct Requests {
    enough: AtomicBool,
    made: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

impl Requests {
    fn make(&self, to: [SocketAddr; 2]) {
        for to in to.into_iter().cycle().take_while(|_| !self.enough.load(Ordering::Relaxed)) {
            let fate = ask(Protocol::Tcp, to);
            self.made.fetch_add(1, Ordering::Relaxed);
            if !matches!(fate, Fate::Answered { .. }) {
                self.failed.lock().expect("a lock").push(format!("{to}: {fate}"));
            }
        }
    }

    fn wait_for_more(&self) {
        let before = self.made.load(Ordering::Relaxed);
        wait_until("more requests", PATIENCE, || self.made.load(Ordering::Relaxed) > before + 50);
    }

    /// Also when the test panics: its threads are waited for.
    fn end_when_dropped(&self) -> impl Drop + '_ {
        struct Ends<'a>(&'a AtomicBool);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        Ends(&self.enough)
    }
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn no_request_fails_while_things_change() {
    let lab = Lab::new("change");
    let (both, one) = (Service::new("web", 1, &[A1, A2]), Service::new("web", 1, &[A2]));
    let manifest = lab.scratch.file("objects.json");
    let mut sluice = start(&lab, from_ref(&both), &[]);
    // All of the others' addresses begin like this.
    let others = || {
        view::servers(&lab.node_a)
            .keys()
            .filter(|(_, at)| at.to_string().contains("10.97.") || at.to_string().contains("10:97:"))
            .count()
    };
    let a1_has_weight = |web: &Service| {
        let servers = view::servers(&lab.node_a);
        let weight = FAMILIES.map(|family| {
            let real = servers[&("TCP".to_owned(), web.at(family, Door::ClusterIp))].real(A1.address(family)).copied();
            real.is_some_and(|real| real.weight > 0)
        });
        weight == [web.endpoints.contains(&A1); 2]
    };
    let requests = Requests::default();
    thread::scope(|scope| {
        for (client, door) in [(lab.pod(CLIENT), Door::ClusterIp), (&lab.outside, Door::NodePort)] {
            let to = FAMILIES.map(|family| both.at(family, door));
            let requests = &requests;
            scope.spawn(move || client.run(|| requests.make(to)));
        }
        let until_enough = requests.end_when_dropped();
        for web in [&one, &both] {
            OTHERS.write(&manifest, from_ref(web), &(0..0));
            wait_until("the others are there", PATIENCE, || others() == 2 * OTHERS.services && a1_has_weight(web));
            requests.wait_for_more();
            sluice.write(from_ref(web));
            wait_until("the others are gone", PATIENCE, || others() == 0);
            requests.wait_for_more();
            if web.endpoints.contains(&A1) {
                sluice.kill();
            } else {
                sluice.stop();
            }
            requests.wait_for_more();
            sluice = start(&lab, from_ref(web), &[]);
            requests.wait_for_more();
        }
        drop(until_enough);
        sluice.stop();
    });
    let (failed, made) = (requests.failed.into_inner().expect("a lock"), requests.made.into_inner());
    assert!(failed.is_empty(), "{} of {made} requests failed:\n{}", failed.len(), failed.join("\n"));
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn what_others_break_is_put_right() {
    let lab = Lab::new("repair");
    let service = Service::new("web", 1, &[A1, A2]);
    let sluice = start(&lab, from_ref(&service), &["--ipvs-sync-period=1s"]);
    let node = &lab.node_a;
    let address = service.address(Family::V4, Door::ClusterIp);
    let everything = || {
        let servers = view::servers(node).into_iter().map(|(at, server)| (at, server.scheduler, server.reals.len()));
        let addresses = FAMILIES.map(|family| view::has_address(node, service.address(family, Door::ClusterIp)));
        let mut sets: Vec<_> =
            node.output(&["ipset", "save"]).lines().filter(|line| line.starts_with("add")).map(str::to_owned).collect();
        sets.sort();
        (servers.collect::<Vec<_>>(), addresses, sets, saved_rules(node))
    };
    let before = everything();
    assert!(before.1 == [true; 2] && before.0.len() == 30, "{before:#?}");
    // Of the first the kernel tells; the others are found by looking, every second.
    let told = [
        "ip link delete kube-ipvs0".to_owned(),
        format!("ip address delete {address}/32 dev kube-ipvs0"),
        "iptables -t nat -F".to_owned(),
        "ip6tables -D INPUT 1".to_owned(),
    ];
    let found = [
        format!("ipvsadm -D -t {address}:80"),
        format!("ipvsadm -d -t {address}:80 -r {}:8080", A1.address(Family::V4)),
        format!("ipvsadm -E -t {address}:80 -s lc"),
        "ipset flush KUBE-CLUSTER-IP".to_owned(),
        format!("ipset del KUBE-6-IPVS-IPS {}", service.address(Family::V6, Door::ClusterIp)),
    ];
    let second = Duration::from_secs(1);
    let damage = told.iter().map(|command| (command, second)).chain(found.iter().map(|command| (command, 2 * second)));
    for (command, patience) in damage {
        node.output(&command.split(' ').collect::<Vec<_>>());
        wait_until(&format!("all is as it was before {command}"), patience, || everything() == before);
        for client in [lab.pod(CLIENT), &lab.outside, node] {
            let fate = client.run(|| ask(Protocol::Tcp, service.at(Family::V4, Door::ClusterIp)));
            assert!(matches!(fate, Fate::Answered { .. }), "after {command}: {} {fate}", client.name());
        }
    }
    let repairs: u64 = sluice.metric("sluice_drift_repairs_total").values().sum();
    // The device is of both families.
    assert!(repairs >= 10, "{repairs} repairs");
    sluice.stop();
}
