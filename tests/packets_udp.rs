//! UDP clients that keep their socket while things change: they follow the Service from the next packet on, and
//! nobody else's flow is touched. Which flows are stale in every case is in flows.rs.

mod support;

use std::slice::from_ref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use support::lab::{A1, A2, B1, CLIENT, FAMILIES, Family, Lab, Pod, outside_address};
use support::netns::Namespace;
use support::objects::{Door, Service};
use support::proxy::Sluice;
use support::traffic::{Datagrams, Fate, SILENCE};
use support::{PATIENCE, require_root};

const DOORS: [Door; 4] = [Door::ClusterIp, Door::NodePort, Door::ExternalIp, Door::LoadBalancer];

/// A client that asks without pause from one socket, so that its flow never ends by itself.
struct Client {
    way: String,
    /// Who answered, or what else became of it, each time it was another than before.
    seen: Arc<Mutex<Vec<String>>>,
    enough: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    fn start(namespace: &Namespace, service: &Service, family: Family, door: Door) -> Self {
        let to = service.at(family, door);
        let (seen, enough) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicBool>::default());
        let (seen_there, enough_there) = (Arc::clone(&seen), Arc::clone(&enough));
        let thread = namespace.run_beside(move || {
            let socket = Datagrams::new(to, SILENCE / 5).expect("a socket");
            while !enough_there.load(Ordering::Relaxed) {
                let fate = match socket.fate() {
                    Fate::Answered { pod, .. } => pod,
                    other => other.to_string(),
                };
                let mut seen = seen_there.lock().expect("a lock");
                if seen.last() != Some(&fate) {
                    seen.push(fate);
                }
                drop(seen);
                thread::sleep(Duration::from_millis(5));
            }
        });
        let way = format!("{} by {door:?} {family:?} to {}", namespace.name(), service.name);
        Self { way, seen, enough, thread: Some(thread) }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("a lock").clone()
    }

    /// Those who answered, one after the other: a busy machine may be silent in between.
    fn answers(&self) -> Vec<String> {
        let mut answers: Vec<_> = self.seen().into_iter().filter(|seen| seen.starts_with("pod-")).collect();
        answers.dedup();
        answers
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.enough.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Clients of a Service everywhere, through every door, in both families.
struct Clients(Vec<Client>);

impl Clients {
    fn start(lab: &Lab, service: &Service) -> Self {
        let mut clients = Vec::new();
        for namespace in [lab.pod(CLIENT), &lab.outside, &lab.node_a] {
            for family in FAMILIES {
                clients.extend(DOORS.map(|door| Client::start(namespace, service, family, door)));
            }
        }
        Self(clients)
    }

    /// Waits until what each client sees last is `good`.
    fn wait_until_all(&self, what: &str, good: impl Fn(&str) -> bool) {
        let bad = |client: &&Client| !client.seen().last().is_some_and(|last| good(last));
        let end = Instant::now() + PATIENCE;
        while let Some(client) = self.0.iter().find(bad) {
            assert!(Instant::now() < end, "{} does not see {what} but {:?}", client.way, client.seen());
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait_for(&self, pod: Pod) {
        self.wait_until_all(pod.name, |last| last == pod.name);
    }

    fn assert_answered_by(&self, pods: &[Pod]) {
        let names: Vec<_> = pods.iter().map(|pod| pod.name).collect();
        for client in &self.0 {
            assert_eq!(client.answers(), names, "{}", client.way);
        }
    }

    fn assert_unmoved(&self) {
        for client in &self.0 {
            assert_eq!(client.answers().len(), 1, "{} was moved: {:?}", client.way, client.seen());
        }
    }
}

fn nobody(last: &str) -> bool {
    last == "refused" || last == "silence"
}

fn leads_to(rules: &str, pod: Pod) -> bool {
    FAMILIES.iter().any(|family| {
        let address = pod.address(*family);
        rules.contains(&format!("--to-destination {address}:")) || rules.contains(&format!("--to-destination [{address}]:"))
    })
}

/// The flows of a node that lead to `destination`, with their ids, without what changes with each packet.
fn flows_to(node: &Namespace, destination: &str) -> Vec<String> {
    let listed = |family| node.output(&["conntrack", "-L", "-o", "id", "-f", family]);
    let dumps = ["ipv4", "ipv6"].map(listed).concat();
    let lines = dumps.lines().filter(|line| line.contains(&format!(" dst={destination} ")));
    let is_stable = |word: &&str| ["src=", "dst=", "sport=", "dport=", "id="].iter().any(|part| word.starts_with(part));
    let stable = |line: &str| line.split_whitespace().filter(is_stable).collect::<Vec<_>>().join(" ");
    let mut flows: Vec<_> = lines.map(stable).collect();
    flows.sort();
    flows
}

#[test]
fn clients_follow_when_their_endpoint_goes_and_stay_when_others_change() {
    if !require_root("packets: UDP clients and endpoints") {
        return;
    }
    let lab = Lab::new("udp-follow");
    let web = Service::new("web", 1, &[A1]);
    let other = Service::new("other", 2, &[A1, A2]);
    let sluice = Sluice::start(&lab.node_a, &lab.scratch, &[web.clone(), other.clone()]);
    let (of_web, of_other) = (Clients::start(&lab, &web), Clients::start(&lab, &other));
    of_web.wait_for(A1);
    of_other.wait_until_all("an answer", |last| last.starts_with("pod-"));
    // The same node port of another host, asked by a pod; nobody answers there.
    let strangers = FAMILIES.map(|family| (outside_address(family), 30_001).into());
    let _sockets =
        lab.pod(CLIENT).run(|| strangers.map(|to| Datagrams::new(to, SILENCE).map(|socket| (socket.ask().err(), socket))));
    let foreign = || FAMILIES.map(|family| flows_to(&lab.node_a, &outside_address(family).to_string()));
    let of_strangers = foreign();
    assert!(of_strangers.iter().all(|flows| flows.iter().any(|flow| flow.contains("dport=30001"))), "{of_strangers:?}");
    let of_others_ip = || flows_to(&lab.node_a, &other.address(Family::V4, Door::ClusterIp).to_string());
    let tracked = of_others_ip();
    assert_eq!(tracked.len(), 3, "{tracked:?}");

    // A1 still answers who still asks it.
    let web = Service { endpoints: vec![B1], ..web };
    sluice.change(&[web.clone(), other.clone()], |rules| leads_to(rules, B1));
    of_web.wait_for(B1);
    of_web.assert_answered_by(&[A1, B1]);
    assert_eq!(of_others_ip(), tracked, "flows of another Service");
    let kept = |flows: [Vec<String>; 2]| {
        flows.map(|flows| flows.into_iter().filter(|flow| flow.contains("dport=30001")).collect::<Vec<_>>())
    };
    assert_eq!(kept(foreign()), kept(of_strangers), "flows to another host");
    of_other.assert_unmoved();
    sluice.stop();
}

#[test]
fn clients_that_were_there_before_their_service_reach_it() {
    if !require_root("packets: UDP clients before their Service") {
        return;
    }
    let lab = Lab::new("udp-first");
    let other = Service::new("other", 2, &[A2]);
    let web = Service::new("web", 1, &[A1]);
    let empty = Service { endpoints: Vec::new(), ..web.clone() };
    let sluice = Sluice::start(&lab.node_a, &lab.scratch, from_ref(&other));
    let clients = Clients::start(&lab, &web);
    clients.wait_until_all("nobody", nobody);
    sluice.change(&[other.clone(), empty], |rules| rules.contains("lab/web:udp has no endpoints"));
    clients.wait_until_all("nobody", nobody);
    sluice.change(&[other.clone(), web], |rules| leads_to(rules, A1));
    clients.wait_for(A1);
    clients.assert_answered_by(&[A1]);
    sluice.stop();
}

#[test]
fn nobody_is_led_on_where_a_service_was() {
    if !require_root("packets: UDP clients of a Service that goes") {
        return;
    }
    let lab = Lab::new("udp-last");
    let web = Service::new("web", 1, &[A1]);
    let gone = Service::new("gone", 2, &[A2]);
    let empty = Service { endpoints: Vec::new(), ..web.clone() };
    let sluice = Sluice::start(&lab.node_a, &lab.scratch, &[web.clone(), gone.clone()]);
    let (of_web, of_gone) = (Clients::start(&lab, &web), Clients::start(&lab, &gone));
    of_web.wait_for(A1);
    of_gone.wait_for(A2);
    sluice.change(from_ref(&empty), |rules| rules.contains("lab/web:udp has no endpoints") && !rules.contains("lab/gone"));
    of_web.wait_until_all("nobody", nobody);
    of_gone.wait_until_all("nobody", nobody);
    sluice.stop();
}

#[test]
fn what_changed_while_the_proxy_was_away_is_made_up_for() {
    if !require_root("packets: UDP clients and a restart") {
        return;
    }
    let lab = Lab::new("udp-restart");
    let web = Service::new("web", 1, &[A1]);
    let other = Service::new("other", 2, &[A1, A2, B1]);
    let sluice = Sluice::start(&lab.node_a, &lab.scratch, &[web.clone(), other.clone()]);
    let (of_web, of_other) = (Clients::start(&lab, &web), Clients::start(&lab, &other));
    of_web.wait_for(A1);
    of_other.wait_until_all("an answer", |last| last.starts_with("pod-"));
    sluice.stop();
    let web = Service { endpoints: vec![B1], ..web };
    let sluice = Sluice::start(&lab.node_a, &lab.scratch, &[web, other]);
    of_web.wait_for(B1);
    of_web.assert_answered_by(&[A1, B1]);
    of_other.assert_unmoved();
    sluice.stop();
}
