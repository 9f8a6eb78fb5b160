//! Draining: what is removed gets no new connections, and those it has go on, whatever becomes of the proxy meanwhile.

use std::slice::from_ref;
use std::time::{Duration, Instant};

use super::support::lab::{A1, A2, CLIENT, FAMILIES, Family, Lab, Pod};
use super::support::netns::Namespace;
use super::support::objects::{Door, Service};
use super::support::proxy::Sluice;
use super::support::traffic::{Datagrams, Fate, Protocol, SILENCE, Session, ask};
use super::support::{PATIENCE, wait_until};
use super::{asked, start, view};

const DRAINING: &str = "sluice_draining_real_servers";
/// Through each of two doors, in each family: 100 in all.
const SESSIONS: usize = 25;

fn clients(lab: &Lab) -> [(&Namespace, Door); 2] {
    [(lab.pod(CLIENT), Door::ClusterIp), (&lab.outside, Door::NodePort)]
}

/// Connections that stay open, and what each was answered at first.
struct Open(Vec<(Session, Fate)>);

impl Open {
    fn new(lab: &Lab, service: &Service, through_each: usize) -> Self {
        let mut open = Self(Vec::new());
        open.more(lab, service, through_each);
        open
    }

    fn more(&mut self, lab: &Lab, service: &Service, through_each: usize) {
        for (client, door) in clients(lab) {
            for to in FAMILIES.map(|family| service.at(family, door)) {
                let sessions = client.run(|| {
                    let open = |_| Session::open(Protocol::Tcp, to, PATIENCE).map(|mut session| (session.fate(), session));
                    (0..through_each).map(open).collect::<Result<Vec<_>, _>>().expect("connections")
                });
                self.0.extend(sessions.into_iter().map(|(answer, session)| (session, answer)));
            }
        }
    }

    fn with(&self, pod: Pod) -> usize {
        self.0.iter().filter(|(_, answer)| matches!(answer, Fate::Answered { pod: name, .. } if name == pod.name)).count()
    }

    fn assert_alive(&mut self, when: &str) {
        let lost: Vec<_> =
            self.0.iter_mut().map(|(session, answer)| (session.fate(), answer)).filter(|(now, was)| now != *was).collect();
        assert!(lost.is_empty(), "{} connections are lost {when}: {:?}", lost.len(), lost[0]);
    }

    fn reset(self) {
        for (session, _) in self.0 {
            session.reset().expect("to reset");
        }
    }
}

/// The real servers of this pod, for TCP.
fn reals(lab: &Lab, pod: Pod) -> Vec<view::Real> {
    let servers = view::servers(&lab.node_a);
    let tcp = servers.iter().filter(|((protocol, _), _)| protocol == "TCP");
    tcp.flat_map(|(_, server)| FAMILIES.iter().filter_map(|family| server.real(pod.address(*family)).copied())).collect()
}

fn draining(sluice: &Sluice<'_>) -> u64 {
    sluice.metric(DRAINING).values().sum()
}

fn wait_for_drains(sluice: &Sluice<'_>, count: u64) {
    wait_until("so many real servers drain", PATIENCE, || draining(sluice) == count);
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn connections_to_a_removed_endpoint_live_on_and_new_ones_go_elsewhere() {
    let lab = Lab::new("drain");
    let both = Service::new("web", 1, &[A1, A2]);
    let one = Service::new("web", 1, &[A2]);
    let mut sluice = start(&lab, from_ref(&both), &[]);
    let mut open = Open::new(&lab, &both, SESSIONS);
    assert!(open.with(A1) >= 48 && open.with(A1) + open.with(A2) == 4 * SESSIONS, "{} of A1", open.with(A1));

    sluice.write(from_ref(&one));
    wait_until("nobody is sent to the removed endpoint", PATIENCE, || reals(&lab, A1).iter().all(|real| real.weight == 0));
    for when in ["after the removal", "after a restart", "after SIGKILL and a start"] {
        wait_for_drains(&sluice, 4);
        assert!(reals(&lab, A1).iter().all(|real| real.weight == 0 && real.active > 0), "{when}: {:?}", reals(&lab, A1));
        open.assert_alive(when);
        for (client, door) in clients(&lab) {
            let pods = FAMILIES.iter().flat_map(|family| asked(client, &one, (*family, door), 5));
            assert!(pods.into_iter().all(|pod| pod == A2.name), "{when}: new connections from {}", client.name());
        }
        if when == "after the removal" {
            let log = sluice.stop();
            assert!(log.contains("no new connections go to 10.244.11.33:8080, until the"), "{log}");
        } else {
            sluice.kill();
        }
        open.assert_alive("while there is no proxy");
        sluice = start(&lab, from_ref(&one), &[]);
    }

    sluice.write(from_ref(&both));
    wait_until("the endpoint is back", PATIENCE, || reals(&lab, A1).iter().filter(|real| real.weight == 1).count() == 10);
    wait_for_drains(&sluice, 0);
    open.assert_alive("after the endpoint came back");
    let before = open.with(A1);
    open.more(&lab, &both, 4);
    assert_eq!(open.with(A1), before + 8, "new connections to what came back");
    leaves(&lab, sluice, open, &one);
}

/// The endpoint goes again, and so do all connections.
fn leaves(lab: &Lab, sluice: Sluice<'_>, mut open: Open, one: &Service) {
    sluice.write(from_ref(one));
    wait_for_drains(&sluice, 4);
    open.assert_alive("after the second removal");
    open.reset();
    // IPVS forgets a connection 10 s after its reset.
    wait_until("the removed endpoint's real servers are gone", PATIENCE, || reals(lab, A1).is_empty());
    wait_for_drains(&sluice, 0);
    let log = sluice.stop();
    assert_eq!(log.matches("what was removed is wanted again").count(), 4, "{log}");
    assert_eq!(log.matches("the last connection to what was removed has ended").count(), 4, "{log}");
}

/// A client that keeps its socket.
#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn clients_of_udp_follow_at_once() {
    let lab = Lab::new("udp");
    let web = Service::new("web", 1, &[A1]);
    let sluice = start(&lab, from_ref(&web), &[]);
    let sockets: Vec<_> = clients(&lab)
        .into_iter()
        .flat_map(|(client, door)| FAMILIES.map(|family| (client, web.at(family, door))))
        .map(|(client, to)| (to, client.run(|| Datagrams::new(to, SILENCE).expect("a socket"))))
        .collect();
    let wait_for = |pod: Pod| {
        for (to, socket) in &sockets {
            let answered = || matches!(socket.fate(), Fate::Answered { pod: name, .. } if name == pod.name);
            wait_until(&format!("{} answers at {to}", pod.name), PATIENCE, answered);
        }
    };
    wait_for(A1);
    sluice.write(from_ref(&Service::new("web", 1, &[A2])));
    wait_for(A2);
    sluice.stop();
}

fn cluster_ip_is_there(lab: &Lab, service: &Service, family: Family) -> [bool; 3] {
    let at = service.at(family, Door::ClusterIp);
    let set = if family == Family::V4 { "KUBE-IPVS-IPS" } else { "KUBE-6-IPVS-IPS" };
    let member = at.ip().to_string();
    [
        view::servers(&lab.node_a).contains_key(&("TCP".to_owned(), at)),
        view::has_address(&lab.node_a, at.ip()),
        view::members(&lab.node_a, set).contains(&member),
    ]
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn connections_to_a_removed_service_live_on_and_new_ones_are_refused() {
    let lab = Lab::new("removed");
    let (web, other) = (Service::new("web", 1, &[A1, A2]), Service::new("other", 2, &[A1]));
    let sluice = start(&lab, &[web.clone(), other.clone()], &[]);
    let mut open = Open::new(&lab, &web, 2);
    sluice.write(from_ref(&other));
    // In each family two doors with two real servers each.
    wait_for_drains(&sluice, 8);
    open.assert_alive("after the Service was removed");
    for (client, door) in clients(&lab) {
        for family in FAMILIES {
            assert_eq!(asked(client, &web, (family, door), 1), ["refused"], "{} by {door:?} {family:?}", client.name());
            assert_eq!(asked(client, &other, (family, door), 1), [A1.name], "another Service");
        }
    }
    for family in FAMILIES {
        assert_eq!(cluster_ip_is_there(&lab, &web, family), [true; 3], "{family:?}, while it drains");
    }
    let sluice = {
        sluice.kill();
        start(&lab, from_ref(&other), &[])
    };
    wait_for_drains(&sluice, 8);
    open.assert_alive("after the proxy was killed and started");
    open.reset();
    wait_for_drains(&sluice, 0);
    for family in FAMILIES {
        wait_until("all is gone", PATIENCE, || cluster_ip_is_there(&lab, &web, family) == [false; 3]);
        assert_eq!(cluster_ip_is_there(&lab, &other, family), [true; 3], "{family:?}, another Service");
    }
    sluice.stop();
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn a_removed_service_drains_no_longer_than_the_flag_says() {
    let lab = Lab::new("timeout");
    let (web, other) = (Service::new("web", 1, &[A1]), Service::new("other", 2, &[A1]));
    let to = web.at(Family::V4, Door::ClusterIp);
    for seconds in [3, 0] {
        let both = [web.clone(), other.clone()];
        let sluice = start(&lab, &both, &[&format!("--ipvs-drain-timeout={seconds}s")]);
        let client = lab.pod(CLIENT);
        let mut session = client.run(|| Session::open(Protocol::Tcp, to, SILENCE)).expect("a connection");
        assert!(matches!(session.fate(), Fate::Answered { .. }));
        let removed = Instant::now();
        sluice.write(from_ref(&other));
        let mut drained = false;
        wait_until("all is gone", PATIENCE, || {
            drained |= draining(&sluice) > 0;
            FAMILIES.iter().all(|family| cluster_ip_is_there(&lab, &web, *family) == [false; 3])
        });
        assert!(removed.elapsed() >= Duration::from_secs(seconds), "gone after {:?}", removed.elapsed());
        assert_eq!(drained, seconds > 0, "with {seconds} s");
        let fate = session.fate();
        assert!(!matches!(fate, Fate::Answered { .. }), "with {seconds} s: {fate}");
        assert!(matches!(client.run(|| ask(Protocol::Tcp, other.at(Family::V4, Door::ClusterIp))), Fate::Answered { .. }));
        let log = sluice.stop();
        assert_eq!(log.contains("(--ipvs-drain-timeout)"), seconds > 0, "{log}");
    }
}
