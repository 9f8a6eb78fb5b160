//! How connections are spread: each scheduler as it promises, and affinity for as long as it is to hold.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::slice::from_ref;

use super::support::lab::{A1, A2, B1, CLIENT, Family, Lab};
use super::support::netns::Namespace;
use super::support::objects::{Door, Service};
use super::support::traffic::{Protocol, Session, ask};
use super::support::{PATIENCE, wait_until};
use super::{asked, pod_of, start, view};

const DOOR: (Family, Door) = (Family::V4, Door::ClusterIp);

fn counted(pods: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for pod in pods {
        *counts.entry(pod.as_str()).or_default() += 1;
    }
    counts
}

/// Connections that stay open, and who answers each.
fn opened(client: &Namespace, to: SocketAddr, count: usize) -> Vec<(Session, String)> {
    client.run(|| {
        let open = || {
            let mut session = Session::open(Protocol::Tcp, to, PATIENCE).expect("a connection");
            let pod = pod_of(&session.fate());
            (session, pod)
        };
        (0..count).map(|_| open()).collect()
    })
}

/// IPVS forgets them 10 s later.
fn reset(sessions: impl IntoIterator<Item = (Session, String)>) {
    for (session, _) in sessions {
        session.reset().expect("to reset");
    }
}

/// With the scheduler in force; each run takes over what the one before it left.
fn with_scheduler(lab: &Lab, service: &Service, scheduler: &str, check: impl FnOnce(SocketAddr)) {
    let sluice = start(lab, from_ref(service), &[&format!("--ipvs-scheduler={scheduler}")]);
    let servers = view::servers(&lab.node_a);
    let shown = if scheduler == "mh" { "mh (mh-port)" } else { scheduler };
    let others: Vec<_> = servers.iter().filter(|(_, server)| server.scheduler != shown).collect();
    // The protocols' five doors in two families, node ports on two addresses each.
    assert!(others.is_empty() && servers.len() == 30, "{} virtual servers, not with {scheduler}: {others:?}", servers.len());
    check(service.at(DOOR.0, DOOR.1));
    sluice.stop();
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn schedulers_take_turns_or_stay_with_a_client() {
    let lab = Lab::new("turns");
    let service = Service::new("web", 1, &[A1, A2]);
    let clients = [lab.pod(CLIENT), &lab.outside, lab.pod(A2)];
    for scheduler in ["rr", "wrr"] {
        with_scheduler(&lab, &service, scheduler, |_| {
            let pods = asked(clients[0], &service, DOOR, 20);
            assert_eq!(counted(&pods), [(A1.name, 10), (A2.name, 10)].into(), "{scheduler}");
        });
    }
    for scheduler in ["sh", "dh"] {
        with_scheduler(&lab, &service, scheduler, |_| {
            for client in clients {
                let pods = asked(client, &service, DOOR, 10);
                assert_eq!(counted(&pods).len(), 1, "{scheduler}: {} is answered by {pods:?}", client.name());
            }
        });
    }
    // A hash of address and port: one client's connections are spread, by chance.
    with_scheduler(&lab, &service, "mh", |_| {
        let pods = asked(clients[0], &service, DOOR, 40);
        assert_eq!(counted(&pods).len(), 2, "mh: {pods:?}");
    });
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn schedulers_choose_who_has_fewer_connections() {
    let lab = Lab::new("fewer");
    let service = Service::new("web", 1, &[A1, A2]);
    let client = lab.pod(CLIENT);
    for scheduler in ["lc", "wlc", "sed", "nq"] {
        with_scheduler(&lab, &service, scheduler, |to| {
            let sessions = opened(client, to, 12);
            let pods: Vec<_> = sessions.iter().map(|(_, pod)| pod.clone()).collect();
            assert_eq!(counted(&pods), [(A1.name, 6), (A2.name, 6)].into(), "{scheduler}");
            let (of_a1, of_a2): (Vec<_>, Vec<_>) = sessions.into_iter().partition(|(_, pod)| pod == A1.name);
            reset(of_a1);
            wait_until("IPVS knows that they are closed", PATIENCE, || {
                let servers = view::servers(&lab.node_a);
                servers[&("TCP".to_owned(), to)].real(A1.address(DOOR.0)).is_some_and(|real| real.active == 0)
            });
            let more = opened(client, to, 5);
            assert!(more.iter().all(|(_, pod)| pod == A1.name), "{scheduler}: {more:?}");
            // The next scheduler finds nobody busy.
            reset(more.into_iter().chain(of_a2));
            wait_until("nobody is connected", PATIENCE, || {
                view::servers(&lab.node_a).values().flat_map(|server| &server.reals).all(|real| real.active + real.inactive == 0)
            });
        });
    }
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn affinity_holds_for_its_time_and_no_longer() {
    let lab = Lab::new("affinity");
    let service = Service { affinity: Some(2), ..Service::new("sticky", 1, &[A1, A2, B1]) };
    // What IPVS remembers of a client stays while it knows any of its flows.
    let sluice = start(&lab, from_ref(&service), &["--ipvs-udp-timeout=1s"]);
    let to = service.at(DOOR.0, DOOR.1);
    let favourite = |client: &Namespace, protocol| {
        let pods: Vec<_> = client.run(|| (0..8).map(|_| pod_of(&ask(protocol, to))).collect());
        assert!(pods.iter().all(|pod| *pod == pods[0]), "{} has no favourite but {pods:?}", client.name());
        pods[0].clone()
    };
    // What stands for all connections of a client has no port.
    let remembered = |protocol: &str| {
        let connections = view::connections(&lab.node_a);
        connections.iter().filter(|line| line.starts_with(protocol) && line.contains(":0 ")).count()
    };
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let (mine, others) = (favourite(lab.pod(CLIENT), protocol), favourite(&lab.outside, protocol));
        // They take turns.
        assert_ne!(mine, others, "{protocol:?}");
        if protocol == Protocol::Udp {
            wait_until("the favourites are forgotten", PATIENCE, || remembered("UDP") == 0);
            assert_ne!(favourite(lab.pod(CLIENT), protocol), mine, "the next one's turn");
        }
    }
    // Closed connections of TCP are remembered for two minutes, and with them their client.
    assert_eq!(remembered("TCP"), 2, "{:#?}", view::connections(&lab.node_a));
    sluice.stop();
}
