//! The HTTP interface over real sockets: answers compared with those captured from kube-proxy (`tests/serve/`),
//! and clients that try to hold the server up.
//!
//! Conditions are waited for with a deadline; nothing sleeps for a guess.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod serve {
    pub mod client;
    pub mod pages;
}

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serve::client::{
    Answer, captured, connect, eventually, get, in_time, is_hung_up, read_answer, receive, request, send, try_get,
};
use serve::pages::{LOCAL, Running, pages, start, start_pages};
use sluice::model::{Node, ObjectKey};
use sluice::net::Family;
use sluice::serve::health::Now;
use sluice::serve::http::Limits;
use sluice::serve::service_health::Servers;
use sluice::serve::status::health_routes;
use sluice::serve::{BindFailure, Health, HealthPort, ListenOn, Metrics, Server, ServiceHealth};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const PERIOD: Duration = Duration::from_secs(30);

fn healthy() -> Health {
    let health = Health::new(PERIOD);
    health.set_node(Some(&Node::default()));
    for family in Family::ALL {
        health.queued(family);
        health.updated(family);
    }
    health
}

async fn start_health(health: Health, limits: Limits) -> Running {
    start(health_routes(health, Arc::new(Metrics::new())), limits).await
}

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new())
}

/// A port nobody listens on now.
async fn free_port() -> u16 {
    let listener = tokio::net::TcpListener::bind(LOCAL).await.unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::test]
async fn health_answers_are_kube_proxys() {
    let health = healthy();
    let server = start_health(health.clone(), Limits::default()).await;
    for (path, file) in [("/healthz", "hz_healthz"), ("/livez", "hz_livez"), ("/readyz", "hz_readyz"), ("/", "hz_readyz")] {
        assert_eq!(get(server.address, path).await.timeless(), captured(file).timeless(), "{path}");
    }
    health.set_node(Some(&Node { leaving: true, ..Node::default() }));
    assert_eq!(get(server.address, "/healthz?x").await.timeless(), captured("hz_tainted").timeless());
    assert_eq!(get(server.address, "/livez").await.timeless(), captured("hz_livez").timeless());
}

#[tokio::test]
async fn health_answers_are_counted() {
    let (health, metrics) = (healthy(), Arc::new(Metrics::new()));
    let server = start(health_routes(health.clone(), Arc::clone(&metrics)), Limits::default()).await;
    get(server.address, "/healthz").await;
    get(server.address, "/livez").await;
    health.begin_shutdown();
    get(server.address, "/healthz").await;
    get(server.address, "/readyz").await;
    let status = start_pages(pages(metrics)).await;
    let body = get(status.address, "/metrics").await.body;
    for sample in
        ["proxy_healthz_total{code=\"200\"} 1", "proxy_healthz_total{code=\"503\"} 1", "proxy_livez_total{code=\"200\"} 1"]
    {
        assert!(body.contains(&format!("\nkubeproxy_{sample}\n")), "{sample} in {body}");
    }
}

#[tokio::test]
async fn status_answers_are_kube_proxys() {
    let server = start_pages(pages(metrics())).await;
    for (path, file) in [
        ("/proxyMode", "m_proxyMode"),
        ("/healthz", "m_healthz"),
        ("/healthz?verbose", "m_healthz_verbose"),
        ("/livez", "hz_readyz"),
        ("/", "hz_readyz"),
    ] {
        assert_eq!(get(server.address, path).await.timeless(), captured(file).timeless(), "{path}");
    }
    // Written by another of Go's handlers, which sets one header less.
    let mut ping = captured("m_healthz").timeless();
    ping.headers.remove("X-Content-Type-Options");
    assert_eq!(get(server.address, "/healthz/ping").await.timeless(), ping);
    let (mut ours, mut theirs) = (get(server.address, "/metrics").await, captured("m_metrics_head"));
    // Go streams what we send whole; the start time differs.
    for name in ["Content-Length", "Transfer-Encoding", "Process-Start-Time-Unix", "Date"] {
        let known = ours.headers.remove(name).is_some() | theirs.headers.remove(name).is_some();
        assert!(known, "{name}");
    }
    assert_eq!((ours.status, ours.headers), (theirs.status, theirs.headers));
}

#[tokio::test]
async fn head_answers_without_a_body_and_any_method_is_taken() {
    let server = start_pages(pages(metrics())).await;
    let mut stream = connect(server.address).await;
    send(&mut stream, "HEAD /proxyMode HTTP/1.1\r\nHost: n\r\n\r\nDELETE /proxyMode HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"iptables") {
        assert!(receive(&mut stream, &mut text).await.unwrap(), "ended early: {}", String::from_utf8_lossy(&text));
    }
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text.matches("Content-Length: 8\r\n").count(), 2, "{text}");
    assert_eq!(text.matches("iptables").count(), 1, "{text}");
}

#[tokio::test]
async fn a_client_that_stops_half_way_is_cut_off_and_holds_nobody_up() {
    let limits = Limits { first_request: Duration::from_millis(300), ..Limits::default() };
    let server = start_health(healthy(), limits).await;
    let mut slow = connect(server.address).await;
    send(&mut slow, "GET /livez HTTP/1.1\r\nHost: sl").await.unwrap();
    assert_eq!(get(server.address, "/livez").await.status, "HTTP/1.1 200 OK");
    let started = Instant::now();
    assert!(is_hung_up(&mut slow).await && started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_client_that_drips_headers_is_cut_off() {
    let limits = Limits { first_request: Duration::from_millis(300), ..Limits::default() };
    let server = start_health(healthy(), limits).await;
    let mut slow = connect(server.address).await;
    send(&mut slow, "GET /livez HTTP/1.1\r\n").await.unwrap();
    let dripped = async {
        while send(&mut slow, "X: y\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    in_time(dripped).await;
}

#[tokio::test]
async fn a_quiet_connection_is_kept_for_the_next_probe_and_then_closed() {
    let limits =
        Limits { first_request: Duration::from_millis(100), next_request: Duration::from_millis(600), ..Limits::default() };
    let server = start_health(healthy(), limits).await;
    let mut stream = connect(server.address).await;
    for _ in 0..3 {
        send(&mut stream, "GET /livez HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
        assert_eq!(read_answer(&mut stream).await.status, "HTTP/1.1 200 OK");
        // Longer than the first request may take: only the bound on idling counts now.
        tokio::time::sleep(limits.first_request * 2).await;
    }
    assert!(is_hung_up(&mut stream).await);
}

#[tokio::test]
async fn a_crowd_of_idle_clients_keeps_no_probe_out() {
    let limits = Limits { first_request: Duration::from_mins(5), ..Limits::default() };
    let server = start_health(healthy(), limits).await;
    let mut crowd = Vec::new();
    for _ in 0..400 {
        crowd.push(connect(server.address).await);
    }
    assert_eq!(get(server.address, "/livez").await.status, "HTTP/1.1 200 OK");
    // The quietest made room; the youngest are still served.
    let mut first = crowd.swap_remove(0);
    assert!(is_hung_up(&mut first).await);
    let youngest = crowd.last_mut().unwrap();
    send(youngest, "GET /livez HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
    assert_eq!(read_answer(youngest).await.status, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn many_clients_at_once_are_all_answered() {
    let server = start_health(healthy(), Limits::default()).await;
    let clients: Vec<_> = (0..100).map(|_| tokio::spawn(async move { get(server.address, "/healthz").await.status })).collect();
    for client in clients {
        assert_eq!(client.await.unwrap(), "HTTP/1.1 200 OK");
    }
}

#[tokio::test]
async fn oversized_heads_are_refused_and_bodies_are_not_waited_for() {
    let server = start_health(healthy(), Limits::default()).await;
    let huge = format!("X-Huge: {}\r\n", "x".repeat(20 << 10));
    assert_eq!(request(server.address, "/livez", &huge).await.status, "HTTP/1.1 431 Request Header Fields Too Large");
    let many = "X: y\r\n".repeat(150);
    assert_eq!(request(server.address, "/livez", &many).await.status, "HTTP/1.1 431 Request Header Fields Too Large");
    let answer = request(server.address, "/livez", "Content-Length: 1000000000\r\n").await;
    assert_eq!(answer.status, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn a_taken_port_is_tried_until_it_is_free() {
    let holder = tokio::net::TcpListener::bind(LOCAL).await.unwrap();
    let address = holder.local_addr().unwrap();
    let limits = Limits { bind_retry: Duration::from_millis(50), ..Limits::default() };
    let server = Server::new("test", Some(address), health_routes(healthy(), metrics())).limits(limits);
    let (mut bound, mut failure) = (server.bound(), server.failure());
    assert_eq!(*failure.borrow_and_update(), None);
    let (shutdown, fired) = watch::channel(false);
    let task = tokio::spawn(server.run(fired));
    let told = in_time(failure.wait_for(Option::is_some)).await.unwrap().clone().unwrap();
    assert_eq!((told.server, told.address, told.cause.contains("Address already in use")), ("test", address, true), "{told:?}");
    let early = tokio::time::timeout(limits.bind_retry * 4, bound.wait_for(Option::is_some)).await.is_ok();
    assert!(!early && !task.is_finished(), "the port is another's");
    assert!(!failure.has_changed().unwrap(), "one cause is told once");
    drop(holder);
    in_time(failure.wait_for(Option::is_none)).await.unwrap();
    let found = in_time(bound.wait_for(Option::is_some)).await;
    assert_eq!(*found.unwrap(), Some(address));
    assert_eq!(get(address, "/livez").await.status, "HTTP/1.1 200 OK");
    shutdown.send(true).unwrap();
    in_time(task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_taken_port_is_an_error_with_hard_fail() {
    let holder = tokio::net::TcpListener::bind(LOCAL).await.unwrap();
    let address = holder.local_addr().unwrap();
    let server = Server::new("health", Some(address), health_routes(healthy(), metrics())).hard_fail(true);
    let failure = server.failure();
    let (_shutdown, fired) = watch::channel(false);
    let error = in_time(server.run(fired)).await.unwrap_err();
    assert_eq!(error.to_string(), format!("health server: listen on {address}"));
    let cause = "Address already in use (os error 98)".into();
    assert_eq!(*failure.borrow(), Some(BindFailure { server: "health", address, cause }), "told before the end");
}

#[tokio::test]
async fn a_server_ends_with_the_signal_and_closes_everything() {
    let server = start_health(healthy(), Limits::default()).await;
    let mut stream = connect(server.address).await;
    send(&mut stream, "GET /livez HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
    read_answer(&mut stream).await;
    server.shutdown.send(true).unwrap();
    in_time(server.task).await.unwrap().unwrap();
    assert!(is_hung_up(&mut stream).await);
    assert!(tokio::net::TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn a_server_switched_off_waits_for_the_end() {
    let (shutdown, fired) = watch::channel(false);
    let task = tokio::spawn(Server::new("test", None, health_routes(healthy(), metrics())).hard_fail(true).run(fired));
    tokio::task::yield_now().await;
    assert!(!task.is_finished());
    drop(shutdown);
    in_time(task).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_unspecified_address_means_both_families() {
    let server = Server::new("test", Some((Ipv4Addr::UNSPECIFIED, 0).into()), health_routes(healthy(), metrics()));
    let mut bound = server.bound();
    let (_shutdown, fired) = watch::channel(false);
    tokio::spawn(server.run(fired));
    let port = in_time(bound.wait_for(Option::is_some)).await.unwrap().unwrap().port();
    assert_eq!(get((Ipv4Addr::LOCALHOST, port).into(), "/livez").await.status, "HTTP/1.1 200 OK");
    if tokio::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok() {
        assert_eq!(get((Ipv6Addr::LOCALHOST, port).into(), "/livez").await.status, "HTTP/1.1 200 OK");
    }
}

fn wanted(name: &str, port: u16, local_endpoints: usize) -> HealthPort {
    HealthPort { service: ObjectKey::new("ns1", name), port, local_endpoints }
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

async fn is_closed(address: SocketAddr) -> bool {
    tokio::net::TcpStream::connect(address).await.is_err()
}

/// Health check ports on 127.0.0.1. The sender ends them.
fn start_ports(health: Health) -> (ServiceHealth, watch::Sender<bool>, JoinHandle<()>) {
    let (ports, servers): (ServiceHealth, Servers) = ServiceHealth::new(health);
    let servers = servers.limits(Limits { bind_retry: Duration::from_millis(50), ..Limits::default() });
    ports.listen_on(ListenOn::These(vec![Ipv4Addr::LOCALHOST.into()]));
    let (shutdown, fired) = watch::channel(false);
    (ports, shutdown, tokio::spawn(servers.run(fired)))
}

/// The answer there, once it is Service `name`'s with this many endpoints.
async fn answer_of(address: SocketAddr, name: &str, endpoints: usize) -> Answer {
    let mut found = None;
    eventually(&format!("{name} with {endpoints} endpoints on {address}"), async || {
        let Some(answer) = try_get(address, "/any/path").await else { return false };
        let ours = answer.body.contains(&format!("\"name\": \"{name}\""))
            && answer.body.contains(&format!("\"localEndpoints\": {endpoints},"));
        found = Some(answer);
        ours
    })
    .await;
    found.unwrap()
}

#[tokio::test]
async fn service_health_answers_are_kube_proxys() {
    let now = Arc::new(Mutex::new(Now::read()));
    let clock = Arc::clone(&now);
    let health = Health::with_clock(PERIOD, move || *clock.lock().unwrap());
    let (ports, _shutdown, _task) = start_ports(health.clone());
    let port = free_port().await;
    ports.sync(vec![wanted("svc2", port, 1)]);
    assert_eq!(answer_of(at(port), "svc2", 1).await.timeless(), captured("hcnp").timeless());

    ports.sync(vec![wanted("svc2", port, 0)]);
    let none = answer_of(at(port), "svc2", 0).await;
    assert_eq!(
        (none.status.as_str(), none.headers["X-Load-Balancing-Endpoint-Weight"].as_str()),
        ("HTTP/1.1 503 Service Unavailable", "0")
    );

    ports.sync(vec![wanted("svc2", port, 3)]);
    assert_eq!(answer_of(at(port), "svc2", 3).await.status, "HTTP/1.1 200 OK");
    health.queued(Family::Ipv6);
    now.lock().unwrap().steady += PERIOD * 2;
    let stuck = answer_of(at(port), "svc2", 3).await;
    assert_eq!(stuck.status, "HTTP/1.1 503 Service Unavailable");
    assert!(stuck.body.ends_with("\"serviceProxyHealthy\": false\n}"), "{}", stuck.body);
}

#[tokio::test]
async fn health_check_ports_follow_what_is_wanted() {
    let (ports, shutdown, task) = start_ports(healthy());
    let (a, b) = (free_port().await, free_port().await);
    ports.sync(vec![wanted("svc1", a, 1)]);
    answer_of(at(a), "svc1", 1).await;
    let mut kept = connect(at(a)).await;
    ports.sync(vec![wanted("svc1", a, 5), wanted("svc2", b, 2)]);
    answer_of(at(b), "svc2", 2).await;
    send(&mut kept, "GET / HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
    assert!(read_answer(&mut kept).await.body.contains("\"localEndpoints\": 5,"), "no reason to close");
    // Each Service moves to the other's port.
    ports.sync(vec![wanted("svc1", b, 1), wanted("svc2", a, 2)]);
    answer_of(at(a), "svc2", 2).await;
    answer_of(at(b), "svc1", 1).await;
    ports.sync(vec![wanted("svc1", b, 1)]);
    eventually("port closed", async || is_closed(at(a)).await).await;
    assert!(ports.failures().borrow().is_empty());
    shutdown.send(true).unwrap();
    in_time(task).await.unwrap();
    assert!(is_closed(at(b)).await);
}

#[tokio::test]
async fn health_check_ports_close_when_nobody_is_left_to_sync() {
    let (ports, _shutdown, task) = start_ports(healthy());
    let port = free_port().await;
    ports.sync(vec![wanted("svc1", port, 1)]);
    answer_of(at(port), "svc1", 1).await;
    drop(ports);
    in_time(task).await.unwrap();
    assert!(is_closed(at(port)).await);
}

#[tokio::test]
async fn of_two_services_with_one_port_the_second_is_reported_until_the_first_is_gone() {
    let (ports, _shutdown, _task) = start_ports(healthy());
    let mut failures = ports.failures();
    let port = free_port().await;
    ports.sync(vec![wanted("svc2", port, 1)]);
    answer_of(at(port), "svc2", 1).await;
    // First in the list, but the port is taken.
    ports.sync(vec![wanted("svc1", port, 1), wanted("svc2", port, 2)]);
    answer_of(at(port), "svc2", 2).await;
    let reported = in_time(failures.wait_for(|all| !all.is_empty())).await.unwrap().clone();
    assert_eq!((reported.len(), reported[0].service.name(), reported[0].port), (1, "svc1", port));
    assert_eq!(reported[0].cause, "the port is that of Service ns1/svc2");
    ports.sync(vec![wanted("svc1", port, 1)]);
    answer_of(at(port), "svc1", 1).await;
    in_time(failures.wait_for(Vec::is_empty)).await.unwrap();
}

#[tokio::test]
async fn a_taken_health_check_port_is_tried_again_and_hurts_no_other() {
    let (ports, _shutdown, _task) = start_ports(healthy());
    let mut failures = ports.failures();
    let holder = tokio::net::TcpListener::bind(LOCAL).await.unwrap();
    let (taken, free) = (holder.local_addr().unwrap().port(), free_port().await);
    ports.sync(vec![wanted("svc1", taken, 1), wanted("svc2", free, 1)]);
    answer_of(at(free), "svc2", 1).await;
    let reported = in_time(failures.wait_for(|all| !all.is_empty())).await.unwrap().clone();
    assert_eq!((reported.len(), reported[0].service.name(), reported[0].port), (1, "svc1", taken));
    drop(holder);
    answer_of(at(taken), "svc1", 1).await;
    in_time(failures.wait_for(Vec::is_empty)).await.unwrap();
}

#[tokio::test]
async fn health_check_ports_follow_the_nodes_addresses() {
    let (ports, _shutdown, _task) = start_ports(healthy());
    let port = free_port().await;
    let second: SocketAddr = (Ipv4Addr::new(127, 0, 0, 2), port).into();
    ports.sync(vec![wanted("svc1", port, 1)]);
    answer_of(at(port), "svc1", 1).await;
    assert!(is_closed(second).await);
    ports.listen_on(ListenOn::These(vec![second.ip()]));
    answer_of(second, "svc1", 1).await;
    assert!(is_closed(at(port)).await);
    ports.listen_on(ListenOn::All);
    answer_of(at(port), "svc1", 1).await;
    answer_of(second, "svc1", 1).await;
    assert!(ports.failures().borrow().is_empty());
}

/// As with --nodeport-addresses of IPv4 alone: the other family has no restriction, and this one keeps its own.
#[tokio::test]
async fn health_check_ports_are_restricted_by_family() {
    let (ports, _shutdown, _task) = start_ports(healthy());
    let port = free_port().await;
    ports.listen_on(ListenOn::These(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into()]));
    ports.sync(vec![wanted("svc1", port, 1)]);
    answer_of(at(port), "svc1", 1).await;
    answer_of((Ipv6Addr::LOCALHOST, port).into(), "svc1", 1).await;
    assert!(is_closed((Ipv4Addr::new(127, 0, 0, 2), port).into()).await);
    assert!(ports.failures().borrow().is_empty());
    ports.listen_on(ListenOn::All);
    answer_of((Ipv4Addr::new(127, 0, 0, 2), port).into(), "svc1", 1).await;
    assert!(ports.failures().borrow().is_empty());
}
