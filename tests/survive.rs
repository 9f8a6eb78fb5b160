//! What traffic notices of the proxy's own life: nothing. Many open connections, and new ones all the time, while other
//! Services change, and while the proxy is stopped, killed half-way through a large change, and started again.

mod support;

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use sluice::netlink::NftKernel;
use support::crowd::Crowd;
use support::lab::{A1, A2, B1, CLIENT, FAMILIES, Lab};
use support::netns::{Namespace, set_sysctl};
use support::objects::{Door, Service};
use support::proxy::{BINARY, Sluice, arguments};
use support::traffic::{Datagrams, Fate, Protocol, Session, ask};
use support::{PATIENCE, require_root, wait_until};

const DOORS: [Door; 2] = [Door::ClusterIp, Door::NodePort];
/// From each of two clients, through each door, in each family: 1,000 connections in all.
const SESSIONS: usize = 125;
/// The same for UDP, 40 in all.
const SOCKETS: usize = 5;
const OTHERS: Crowd = Crowd { services: 200, endpoints: 2 };
/// So many that their first load goes in several transactions.
const MANY_OTHERS: Crowd = Crowd { services: 1500, endpoints: 2 };
/// Other Services changed at once, 40 times.
const CHANGED_AT_ONCE: usize = 5;

#[test]
fn connections_outlive_changes_restarts_and_kills() {
    if !require_root("connections_outlive_changes_restarts_and_kills") {
        return;
    }
    let lab = Lab::new("survive");
    // A busy machine may take longer than half a minute from one question of a UDP client to its next.
    lab.node_a.run(|| set_sysctl("netfilter/nf_conntrack_udp_timeout", "600"));
    let node = Proxied::new(&lab);
    let sluice = node.start(OTHERS, &(0..0));
    let mut open = Open::new(&lab, &node.services[0]);
    let asked = Asked::default();
    thread::scope(|scope| {
        for client in clients(&lab) {
            scope.spawn(|| client.run(|| asked.ask_on(&node.services)));
        }
        let until_enough = asked.ends_when_dropped();
        for round in 0..OTHERS.services / CHANGED_AT_ONCE {
            node.change(round);
        }
        let rules = node.lab.node_a.output(&["iptables-save", "-t", "nat"]);
        assert!(rules.contains(&Crowd::changed_address(OTHERS.services - 1)), "the last change is in force");
        open.assert_alive("after 200 changes of other Services");
        asked.wait_for_more();

        sluice.stop();
        asked.wait_for_more();
        let sluice = node.start(OTHERS, &(0..OTHERS.services));
        open.assert_alive("after a restart");

        node.kill_half_way(sluice);
        asked.wait_for_more();
        open.assert_alive("after SIGKILL in a sync");
        let sluice = node.start(MANY_OTHERS, &(0..0));
        assert_eq!(node.service_chains(), 2 * MANY_OTHERS.services + node.services.len() * 2 * 3, "all is there");
        open.assert_alive("after the start that ended what was begun");
        asked.wait_for_more();
        drop(until_enough);
        sluice.stop();
    });
    asked.assert_all_answered();
}

fn clients(lab: &Lab) -> [&Namespace; 2] {
    [lab.pod(CLIENT), &lab.outside]
}

/// node-a, the proxy on it, and the Services it knows beside the others.
struct Proxied<'lab> {
    lab: &'lab Lab,
    kernel: Mutex<NftKernel>,
    /// One that stays as it is, and one that changes but for one endpoint.
    services: [Service; 2],
}

impl<'lab> Proxied<'lab> {
    fn new(lab: &'lab Lab) -> Self {
        let kernel = lab.node_a.run(NftKernel::open).expect("nf_tables");
        let services = [Service::new("web", 1, &[A1, A2, B1]), Service::new("moving", 2, &[A1, A2])];
        Self { lab, kernel: Mutex::new(kernel), services }
    }

    fn write(&self, crowd: Crowd, changed: &std::ops::Range<usize>, moved: bool) {
        let [web, moving] = self.services.clone();
        let endpoints = if moved { vec![A2, B1] } else { moving.endpoints.clone() };
        crowd.write(&self.lab.scratch.file("objects.json"), &[web, Service { endpoints, ..moving }], changed);
    }

    /// Starts the proxy and waits until it has programmed all there is.
    fn start(&self, crowd: Crowd, changed: &std::ops::Range<usize>) -> Sluice<'lab> {
        self.write(crowd, changed, false);
        let mut command = self.lab.node_a.command(BINARY);
        command.args(arguments(&self.lab.scratch.file("objects.json")));
        let sluice = Sluice::spawn(&self.lab.node_a, &self.lab.scratch, command);
        let services = crowd.services + self.services.len();
        let done = format!(" rules are in force: {services} services");
        wait_until("both families are synced", PATIENCE, || sluice.log().matches(&done).count() == 2);
        sluice
    }

    /// The number of changes that anybody made.
    fn generation(&self) -> u32 {
        self.kernel.lock().expect("a lock").generation().expect("a generation")
    }

    /// Some of the other Services get another endpoint, and one goes from the Service that moves.
    fn change(&self, round: usize) {
        let before = self.generation();
        self.write(OTHERS, &(0..(round + 1) * CHANGED_AT_ONCE), round.is_multiple_of(2));
        // In each family: what is new, and what is gone.
        wait_until("a change is programmed", PATIENCE, || self.generation() >= before + 4);
    }

    /// Lets the proxy begin with many Services more, and kills it with SIGKILL when the first of them are in.
    fn kill_half_way(&self, sluice: Sluice<'_>) {
        let before = self.generation();
        self.write(MANY_OTHERS, &(0..0), false);
        while self.generation() == before {}
        sluice.kill();
        let chains = self.service_chains();
        let (few, all) = (2 * OTHERS.services, 2 * MANY_OTHERS.services);
        assert!(chains > few && chains < all, "it was killed in the midst of a sync: {chains} of {all} chains");
    }

    fn service_chains(&self) -> usize {
        let saved = ["iptables-save", "ip6tables-save"].map(|tool| self.lab.node_a.output(&[tool, "-t", "nat"])).concat();
        saved.matches("\n:KUBE-SVC-").count()
    }
}

/// Connections and UDP sockets that stay open, and what each was answered at first.
struct Open {
    sessions: Vec<(Session, Fate)>,
    sockets: Vec<(Datagrams, Fate)>,
}

impl Open {
    fn new(lab: &Lab, service: &Service) -> Self {
        let mut open = Self { sessions: Vec::new(), sockets: Vec::new() };
        for client in clients(lab) {
            client.run(|| open.connect_all(service));
        }
        assert_eq!(open.sessions.len(), 1000);
        open
    }

    fn connect_all(&mut self, service: &Service) {
        for to in FAMILIES.iter().flat_map(|family| DOORS.map(|door| service.at(*family, door))) {
            for _ in 0..SESSIONS {
                let mut session = Session::open(Protocol::Tcp, to, PATIENCE).expect("a connection");
                let answer = answered(to, session.fate());
                self.sessions.push((session, answer));
            }
            for _ in 0..SOCKETS {
                let socket = Datagrams::new(to, PATIENCE).expect("a socket");
                let answer = answered(to, socket.fate());
                self.sockets.push((socket, answer));
            }
        }
    }

    /// Each still reaches the backend it reached at first, and is seen there as it was.
    fn assert_alive(&mut self, when: &str) {
        let sessions = self.sessions.iter_mut().map(|(session, answer)| (session.fate(), answer));
        let lost: Vec<_> = sessions.filter(|(fate, answer)| fate != *answer).map(|(fate, _)| fate).collect();
        assert!(lost.is_empty(), "{} of 1,000 connections are lost {when}: {}", lost.len(), lost[0]);
        for (socket, answer) in &self.sockets {
            assert_eq!(socket.fate(), *answer, "a UDP client {when}");
        }
    }
}

fn answered(to: SocketAddr, fate: Fate) -> Fate {
    assert!(matches!(fate, Fate::Answered { .. }), "{to}: {fate}");
    fate
}

/// Requests with a new connection each, made without pause.
#[derive(Default)]
struct Asked {
    enough: AtomicBool,
    made: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

impl Asked {
    /// TCP alone of the Service that moves: a datagram follows the flow of the one before it, which is another test's.
    fn ask_on(&self, services: &[Service; 2]) {
        let ways = FAMILIES.iter().flat_map(|family| DOORS.map(|door| (*family, door)));
        let [web, moving] = services;
        let kinds = [(web, Protocol::Tcp), (web, Protocol::Udp), (moving, Protocol::Tcp)];
        let ways: Vec<_> = ways.flat_map(|(family, door)| kinds.map(|(of, protocol)| (protocol, of.at(family, door)))).collect();
        for (protocol, to) in ways.into_iter().cycle().take_while(|_| !self.enough.load(Ordering::Relaxed)) {
            let fate = ask(protocol, to);
            self.made.fetch_add(1, Ordering::Relaxed);
            if !matches!(fate, Fate::Answered { .. }) {
                self.failed.lock().expect("a lock").push(format!("{protocol:?} to {to}: {fate}"));
            }
        }
    }

    fn wait_for_more(&self) {
        let before = self.made.load(Ordering::Relaxed);
        wait_until("more requests", PATIENCE, || self.made.load(Ordering::Relaxed) > before + 200);
    }

    /// Also when the test panics: its threads are waited for.
    fn ends_when_dropped(&self) -> impl Drop + '_ {
        struct Ends<'a>(&'a AtomicBool);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        Ends(&self.enough)
    }

    fn assert_all_answered(self) {
        let failed = self.failed.into_inner().expect("a lock");
        let made = self.made.into_inner();
        assert!(failed.is_empty(), "{} of {made} requests failed:\n{}", failed.len(), failed.join("\n"));
        assert!(made > 2000, "{made} requests are few");
    }
}
