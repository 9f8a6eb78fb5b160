//! Real packets while things change: affinity and its end, endpoints and Services that come and go under running
//! requests, the proxy stopped, killed and started again. `packets.rs` has what holds at any moment.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::slice::from_ref;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::lab::{A1, A2, B1, CLIENT, FAMILIES, Family, Lab, Pod};
use support::objects::{Door, Service};
use support::proxy::{Sluice, saved_rules};
use support::traffic::{Fate, Protocol, SILENCE, Session, ask, ask_within, protocols};
use support::{PATIENCE, require_root};

const DOORS: [Door; 2] = [Door::ClusterIp, Door::NodePort];

#[test]
fn affinity_holds_for_its_time_and_no_longer() {
    if !require_root("packets: affinity") {
        return;
    }
    let lab = Lab::new("affinity");
    let seconds = 3;
    let service = Service { affinity: Some(seconds), ..Service::new("sticky", 1, &[A1, A2, B1]) };
    let sluice = Sluice::start(&lab.node_a, &lab.scratch, from_ref(&service));
    let first = favourites(&lab, &service);
    let pods: BTreeSet<_> = first.values().collect();
    assert!(pods.len() > 1, "every client has the same favourite: {first:#?}");
    // Half-way through each is where it was, and its time begins anew.
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(favourites(&lab, &service), first, "a favourite changed before its time");
    thread::sleep(Duration::from_secs(seconds.into()) + Duration::from_millis(200));
    assert_ne!(favourites(&lab, &service), first, "all favourites outlived their time");
    sluice.stop();
}

type Kind = (Family, Protocol);

/// The backend of each client in each family and protocol, through both doors: one and no other.
fn favourites(lab: &Lab, service: &Service) -> BTreeMap<(String, Kind), String> {
    let clients = [&lab.node_a, &lab.outside, lab.pod(CLIENT), lab.pod(A1), lab.pod(A2)];
    let mut favourites = BTreeMap::new();
    for client in clients {
        for (kind, doors) in kinds().map(|kind| (kind, DOORS.iter().cycle().take(8))) {
            let pods: BTreeSet<_> = client.run(|| doors.map(|door| pod_of(&ask(kind.1, service.at(kind.0, *door)))).collect());
            assert_eq!(pods.len(), 1, "{} has not one favourite in {kind:?} but {pods:?}", client.name());
            favourites.extend(pods.into_iter().map(|pod| ((client.name().to_owned(), kind), pod)));
        }
    }
    favourites
}

#[test]
fn requests_do_not_fail_while_endpoints_change() {
    if !require_root("packets: change of endpoints") {
        return;
    }
    let lab = Lab::new("change");
    let before = Service::new("web", 1, &[A1, A2]);
    let after = Service::new("web", 1, &[A2, B1]);
    let sluice = Sluice::start(&lab.node_a, &lab.scratch, from_ref(&before));
    let requests = Requests::default();
    let changed = thread::scope(|scope| {
        for client in [lab.pod(CLIENT), &lab.outside] {
            scope.spawn(|| client.run(|| requests.make(&before)));
        }
        requests.wait_for_more();
        sluice.change(from_ref(&after), |rules| !leads_to(rules, A1) && leads_to(rules, B1));
        let changed = Instant::now();
        // Not needed any more: a request that still goes there is refused.
        lab.stop_backend(A1);
        requests.wait_for_more();
        requests.enough.store(true, Ordering::Relaxed);
        changed
    });
    let (late, early): (Vec<_>, Vec<_>) = requests.made().into_iter().partition(|(asked, _)| *asked > changed);
    // Those on their way when the backend ended may have met its end; until then it answered.
    let settled = early.iter().filter(|(asked, _)| changed.duration_since(*asked) > Duration::from_millis(20));
    let pods = |pods: &[Pod]| pods.iter().map(|pod| pod.name.to_owned()).collect::<BTreeSet<_>>();
    let settled: BTreeSet<_> = settled.map(|(_, fate)| pod_of(fate)).collect();
    assert!(settled.is_subset(&pods(&[A1, A2, B1])), "before the change was done: {settled:?}");
    let late: BTreeSet<_> = late.iter().map(|(_, fate)| pod_of(fate)).collect();
    assert_eq!(late, pods(&[A2, B1]), "after the change");
    sluice.stop();
}

/// Requests of several clients, made without pause until there are enough, and what became of each.
#[derive(Default)]
struct Requests {
    enough: AtomicBool,
    made: Mutex<Vec<(Instant, Fate)>>,
}

impl Requests {
    fn make(&self, service: &Service) {
        // A datagram from a port used before follows the flow that is tracked, until that is deleted.
        let streams = kinds().filter(|(_, protocol)| *protocol != Protocol::Udp);
        let ways: Vec<_> = streams.flat_map(|kind| DOORS.map(|door| (kind.1, service.at(kind.0, door)))).collect();
        for (protocol, to) in ways.into_iter().cycle().take_while(|_| !self.enough.load(Ordering::Relaxed)) {
            let asked = Instant::now();
            let fate = ask(protocol, to);
            self.made.lock().expect("a lock").push((asked, fate));
        }
    }

    fn wait_for_more(&self) {
        let count = || self.made.lock().expect("a lock").len();
        let before = count();
        support::wait_until("many more requests", PATIENCE, || count() >= before + 1000);
    }

    fn made(self) -> Vec<(Instant, Fate)> {
        self.made.into_inner().expect("a lock")
    }
}

#[test]
fn services_come_and_go() {
    if !require_root("packets: services come and go") {
        return;
    }
    let lab = Lab::new("come-and-go");
    let old = Service::new("old", 1, &[A1]);
    let new = Service::new("new", 2, &[B1]);
    let new_alone = Service { endpoints: Vec::new(), ..new.clone() };
    let sluice = Sluice::start(&lab.node_a, &lab.scratch, from_ref(&old));
    let all_see = |service: &Service, expected: &str| {
        for client in [lab.pod(CLIENT), &lab.outside] {
            for (family, protocol) in kinds() {
                let seen = client.run(|| pod_of(&ask_within(protocol, service.at(family, Door::ClusterIp), PATIENCE / 10)));
                assert_eq!(seen, expected, "{} to {} in {family:?} {protocol:?}", client.name(), service.name);
            }
        }
    };
    all_see(&old, A1.name);

    sluice.change(&[old.clone(), new.clone()], |rules| leads_to(rules, B1));
    all_see(&old, A1.name);
    all_see(&new, B1.name);

    sluice.change(&[old.clone(), new_alone], |rules| !leads_to(rules, B1) && rules.contains("has no endpoints"));
    all_see(&new, "refused");

    sluice.change(from_ref(&new), |rules| leads_to(rules, B1) && !leads_to(rules, A1));
    all_see(&new, B1.name);
    let forgotten = lab.outside.run(|| ask_within(Protocol::Tcp, old.at(Family::V4, Door::ClusterIp), SILENCE));
    assert_eq!(forgotten, Fate::Silent, "a Service that is gone");
    sluice.stop();
}

#[test]
fn traffic_does_not_depend_on_the_process() {
    if !require_root("packets: stop, kill, restart") {
        return;
    }
    let lab = Lab::new("restart");
    let service = Service::new("web", 1, &[A1, A2, B1]);
    let services = from_ref(&service);
    let sluice = Sluice::start(&lab.node_a, &lab.scratch, services);
    let rules = saved_rules(&lab.node_a);
    let mut sessions: Vec<_> =
        FAMILIES.iter().flat_map(|family| DOORS.map(|door| service.at(*family, door))).map(|to| open(&lab, to)).collect();
    let mut all_is_well = |when: &str| {
        assert_eq!(saved_rules(&lab.node_a), rules, "the rules {when}");
        for (session, answer) in &mut sessions {
            assert_eq!(session.fate(), *answer, "a connection {when}");
        }
        for (family, protocol) in kinds() {
            let fate = lab.outside.run(|| ask(protocol, service.at(family, Door::NodePort)));
            assert!(matches!(fate, Fate::Answered { .. }), "a new request {when}: {fate}");
        }
    };
    all_is_well("at first");
    sluice.stop();
    all_is_well("after SIGTERM");
    let sluice = Sluice::start(&lab.node_a, &lab.scratch, services);
    all_is_well("after a restart");
    sluice.kill();
    all_is_well("after SIGKILL");
    let sluice = Sluice::start(&lab.node_a, &lab.scratch, services);
    all_is_well("after another start");
    sluice.stop();
}

/// A connection from outside, and what it answers.
fn open(lab: &Lab, to: SocketAddr) -> (Session, Fate) {
    let mut session = lab.outside.run(|| Session::open(Protocol::Tcp, to, PATIENCE)).expect("a connection");
    let answer = session.fate();
    assert!(matches!(answer, Fate::Answered { .. }), "{to}: {answer}");
    (session, answer)
}

fn kinds() -> impl Iterator<Item = Kind> {
    FAMILIES.into_iter().flat_map(|family| protocols().iter().map(move |protocol| (family, *protocol)))
}

/// The pod that answered, or what else became of the request.
fn pod_of(fate: &Fate) -> String {
    match fate {
        Fate::Answered { pod, .. } => pod.clone(),
        other => other.to_string(),
    }
}

fn leads_to(rules: &str, pod: Pod) -> bool {
    FAMILIES.iter().any(|family| {
        let address = pod.address(*family);
        rules.contains(&format!("--to-destination {address}:")) || rules.contains(&format!("--to-destination [{address}]:"))
    })
}
