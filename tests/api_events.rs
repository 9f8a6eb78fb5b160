//! What the cluster hears of the proxy: Events as the API server takes them, by the source alone and by the built
//! `sluice` in a namespace, with exactly the rights of `system:node-proxier`.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

#[path = "../e2e/apiserver/mod.rs"]
mod apiserver;
mod cluster;
mod scenario;
mod support;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use apiserver::{ApiServer, NODE_PROXIER, Rule, WatchList};
use cluster::objects::{node, service, slices};
use cluster::{ClusterNode, count_lines, wait_for_line};
use k8s_openapi::api::core::v1::ObjectReference;
use scenario::{Logs, NODE, Source};
use serde_json::{Value, json};
use sluice::source::kube::{ApiOptions, Timing};
use sluice::source::recorder::{Incident, Recorder, Severity};
use support::proxy::BINARY;
use support::{PATIENCE, require_root, wait_until};

/// Of Events that `kubectl get events -A -o yaml` showed of a kube-proxy 1.36.2 on a machine called `vm`.
const CAPTURE: &str = include_str!("api_events/events.yaml");

fn options(server: &ApiServer) -> ApiOptions {
    let timing = Timing {
        connect: Duration::from_millis(500),
        event_retry: Duration::from_millis(50),
        event_pause: Duration::from_secs(2),
        ..Timing::default()
    };
    let (master, host_name) = (Some(server.url()), "vm".into());
    ApiOptions { master, host_name, node_name: NODE.into(), timing, ..ApiOptions::default() }
}

async fn started(server: &ApiServer) -> (Source, Recorder) {
    let (mut source, recorder) = Source::start_reporting(options(server));
    source.listed().await;
    (source, recorder)
}

fn of_node(name: &str) -> Incident {
    let regarding = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(name.into()),
        ..ObjectReference::default()
    };
    Incident { regarding, severity: Severity::Normal, reason: "Starting", action: "StartKubeProxy", note: String::new() }
}

fn of_service(note: &str) -> Incident {
    let regarding = ObjectReference {
        kind: Some("Service".into()),
        namespace: Some("shop".into()),
        name: Some("web".into()),
        ..ObjectReference::default()
    };
    Incident { regarding, severity: Severity::Warning, reason: "FailedToX", action: "Listen", note: note.into() }
}

/// An Event of `events.k8s.io` as the API server shows it in core/v1.
fn core_view(event: &Value) -> Value {
    let mut core = event.clone();
    let fields = core.as_object_mut().unwrap();
    fields.insert("apiVersion".into(), json!("v1"));
    for (new, old) in [("regarding", "involvedObject"), ("reportingController", "reportingComponent"), ("note", "message")] {
        if let Some(value) = fields.remove(new) {
            fields.insert(old.into(), value);
        }
    }
    fields.insert("firstTimestamp".into(), Value::Null);
    fields.insert("lastTimestamp".into(), Value::Null);
    fields.insert("source".into(), json!({}));
    core
}

/// Numbers and times made equal, where they are of the same form.
fn like_the_captured(mut event: Value, captured: &Value) -> Value {
    let form = |text: &Value| -> String {
        let digit = |c: char| if c.is_ascii_hexdigit() && !c.is_ascii_uppercase() { '0' } else { c };
        text.as_str().unwrap_or_default().chars().map(digit).collect()
    };
    assert_eq!(form(&event["eventTime"]), form(&captured["eventTime"]));
    event["eventTime"] = captured["eventTime"].clone();
    let suffix = |event: &Value| event["metadata"]["name"].as_str().unwrap().rsplit_once('.').map(|(_, hex)| json!(hex)).unwrap();
    assert_eq!(form(&suffix(&event)), form(&suffix(captured)));
    for field in ["name", "uid", "resourceVersion", "creationTimestamp"] {
        if field != "name" || event["metadata"]["name"].as_str().unwrap().starts_with("node1.") {
            event["metadata"][field] = captured["metadata"][field].clone();
        }
    }
    event
}

#[tokio::test]
async fn the_event_of_a_start_is_kube_proxys() {
    let captured: Value = serde_norway::from_str(CAPTURE).unwrap();
    let captured = captured["items"].as_array().unwrap().iter().find(|e| e["reportingComponent"] == "kube-proxy").unwrap();
    let server = ApiServer::start();
    let (mut source, recorder) = started(&server).await;
    recorder.record(of_node("node1"));
    source.while_not("the event", || server.objects("events").len() == 1).await;
    let event = &server.objects("events")[0];
    assert_eq!(like_the_captured(core_view(event), captured), *captured);
    let created = server.requests().into_iter().find(|request| request.method == "POST").unwrap();
    assert_eq!((created.path.as_str(), created.status), ("/apis/events.k8s.io/v1/namespaces/default/events", 201));
    let nanoseconds = i128::from_str_radix(event["metadata"]["name"].as_str().unwrap().rsplit_once('.').unwrap().1, 16).unwrap();
    let at: jiff::Timestamp = event["eventTime"].as_str().unwrap().parse().unwrap();
    assert_eq!(nanoseconds / 1000, at.as_nanosecond() / 1000, "the name tells the time");
}

#[tokio::test]
async fn the_same_again_is_counted_and_another_cause_is_another_event() {
    let server = ApiServer::start();
    let (mut source, recorder) = started(&server).await;
    for cause in ["address in use", "address in use", "address in use", "not permitted"] {
        recorder.record(of_service(cause));
    }
    recorder.settle(Duration::from_secs(10)).await;
    source.drain();
    let told: Vec<_> = server.requests().into_iter().filter(|request| request.method != "GET").collect();
    let told: Vec<_> = told.iter().map(|request| (request.method.as_str(), request.status)).collect();
    assert_eq!(told, [("POST", 201), ("PATCH", 200), ("POST", 201)]);
    let events = server.objects("events");
    let of = |note: &str| events.iter().find(|event| event["note"] == note).unwrap();
    let (repeated, single) = (of("address in use"), of("not permitted"));
    assert_eq!(repeated["series"]["count"], 2);
    assert!(repeated["series"]["lastObservedTime"].as_str() > repeated["eventTime"].as_str(), "{repeated}");
    assert!(single["series"].is_null() && single["type"] == "Warning", "{single}");
    assert_eq!((&single["metadata"]["namespace"], &single["regarding"]["name"]), (&json!("shop"), &json!("web")));
}

#[tokio::test]
async fn a_count_of_an_event_that_has_expired_is_an_event() {
    let server = ApiServer::start();
    let (_source, recorder) = started(&server).await;
    recorder.record(of_service("x"));
    recorder.settle(Duration::from_secs(10)).await;
    let name = server.objects("events")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    server.delete("events", "shop", &name);
    recorder.record(of_service("x"));
    recorder.settle(Duration::from_secs(10)).await;
    let [event] = &server.objects("events")[..] else { panic!("{:?}", server.objects("events")) };
    assert_eq!((&event["metadata"]["name"], &event["series"]["count"]), (&json!(name), &json!(2)));
}

#[tokio::test]
async fn a_server_that_is_not_up_to_it_is_tried_again() {
    let server = ApiServer::start();
    let (mut source, recorder) = started(&server).await;
    server.fail(3, 503, None);
    recorder.record(of_node("node1"));
    recorder.settle(Duration::from_secs(10)).await;
    assert_eq!(server.objects("events").len(), 1);
    // And is given up, while the watches go on.
    server.fail(usize::MAX, 500, None);
    recorder.record(of_service("lost"));
    server.put(scenario::service("web", 1, 81));
    source.until("a change beside it", |view| view.port_of("web") == 81).await;
    recorder.settle(Duration::from_secs(20)).await;
    server.fail(0, 500, None);
    let posts = || server.requests().iter().filter(|request| request.method == "POST").count();
    assert_eq!((posts(), server.objects("events").len()), (4 + 7, 1));
    recorder.record(of_service("lost"));
    recorder.settle(Duration::from_secs(10)).await;
    assert_eq!((posts(), server.objects("events").len()), (12, 2), "what was lost begins anew");
}

#[tokio::test]
async fn an_event_the_server_does_not_want_is_dropped_at_once() {
    let server = ApiServer::start();
    let (_source, recorder) = started(&server).await;
    recorder.record(Incident { action: "", ..of_node("node1") });
    recorder.record(of_node("node1"));
    recorder.settle(Duration::from_secs(10)).await;
    let statuses: Vec<_> = server.requests().iter().filter(|r| r.method == "POST").map(|r| r.status).collect();
    assert_eq!(statuses, [422, 201]);
}

#[tokio::test]
async fn a_namespace_that_is_being_deleted_is_no_missing_right() {
    let (logs, _guard) = Logs::capture();
    let server = ApiServer::start();
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}, "status": {"phase": "Terminating"}});
    server.put(namespace);
    let (_source, recorder) = started(&server).await;
    recorder.record(of_service("too late"));
    recorder.record(of_node("node1"));
    recorder.settle(Duration::from_secs(10)).await;
    let statuses: Vec<_> = server.requests().iter().filter(|r| r.method == "POST").map(|r| r.status).collect();
    assert_eq!((statuses, logs.count("WARN")), (vec![403, 201], 0), "{}", logs.text());
}

#[tokio::test]
async fn who_may_not_post_says_so_once_and_tries_rarely() {
    let (logs, _guard) = Logs::capture();
    let server = ApiServer::start();
    let without_events: Vec<Rule> = NODE_PROXIER.iter().copied().filter(|rule| !rule.resources.contains(&"events")).collect();
    server.authorize(&without_events);
    let (mut source, recorder) = started(&server).await;
    let posts = || server.requests().iter().filter(|request| request.method == "POST").count();
    for number in 0..10 {
        recorder.record(of_service(&number.to_string()));
    }
    recorder.settle(Duration::from_secs(10)).await;
    assert_eq!(posts(), 1);
    server.put(scenario::service("web", 1, 80));
    source.until("the watches go on", |view| view.port_of("web") == 80).await;
    let begun = Instant::now();
    source.while_not("the pause is over", || begun.elapsed() > Duration::from_millis(2100)).await;
    recorder.record(of_service("still"));
    recorder.settle(Duration::from_secs(10)).await;
    assert_eq!((posts(), logs.count("WARN")), (2, 1), "{}", logs.text());
    let told =
        ["create events: HTTP 403", r#"cannot create resource "events" in API group "events.k8s.io""#, "system:node-proxier"];
    assert!(told.iter().all(|part| logs.text().contains(part)), "{}", logs.text());
    server.authorize(NODE_PROXIER);
    source.while_not("the pause is over", || begun.elapsed() > Duration::from_millis(4300)).await;
    recorder.record(of_service("now"));
    recorder.settle(Duration::from_secs(10)).await;
    assert_eq!((server.objects("events").len(), logs.count("create events: permitted again")), (1, 1), "{}", logs.text());
}

#[tokio::test]
async fn rights_that_are_given_back_are_noticed() {
    let (logs, _guard) = Logs::capture();
    let server = ApiServer::start();
    server.put(scenario::service("web", 1, 80));
    server.authorize(&NODE_PROXIER[1..]);
    let mut source = Source::start(options(&server));
    let refused = || server.requests().iter().filter(|r| r.status == 403).count();
    source.while_not("refusals", || refused() >= 3).await;
    assert!(source.view.swaps[0] == 0 && server.requests().iter().all(|r| (r.status == 403) == r.path.ends_with("/services")));
    server.authorize(NODE_PROXIER);
    source.listed().await;
    assert_eq!(source.view.port_of("web"), 80);
    source.while_not("recovery told", || logs.count("list and watch services: works again after") == 1).await;
    assert_eq!(logs.count("WARN"), 1, "{}", logs.text());
    let told = r#"services is forbidden: User "system:serviceaccount:kube-system:sluice" cannot watch resource "services""#;
    let meant = "no change of a Service reaches this node; the verbs list and watch on services are needed";
    assert!(logs.text().contains(told) && logs.text().contains(meant), "{}", logs.text());
}

#[tokio::test]
async fn a_refusal_for_another_reason_does_not_hide_a_missing_right() {
    let (logs, _guard) = Logs::capture();
    let server = ApiServer::start();
    server.fail(1000, 503, None);
    let mut source = Source::start(options(&server));
    let refused = |code| server.requests().iter().filter(|r| r.status == code).count();
    source.while_not("a start", || refused(503) >= 6).await;
    server.authorize(&NODE_PROXIER[1..]);
    server.fail(0, 503, None);
    source.while_not("a missing right", || refused(403) >= 2).await;
    assert_eq!(logs.count("services: HTTP 503"), 1, "{}", logs.text());
    assert_eq!(logs.count("services: HTTP 403"), 1, "{}", logs.text());
}

/// A Service whose health a load balancer asks for on `port`.
fn with_health_port(port: u16) -> Value {
    let mut web = service("web", 1, 80);
    web["spec"]["type"] = json!("LoadBalancer");
    web["spec"]["externalTrafficPolicy"] = json!("Local");
    web["spec"]["healthCheckNodePort"] = json!(port);
    web
}

/// Method and path without the names of Events.
fn asked(server: &ApiServer) -> BTreeSet<(String, String)> {
    let of = |request: apiserver::Request| {
        let path = match request.path.split_once("/events/") {
            Some((events, _)) => format!("{events}/events/NAME"),
            None => request.path,
        };
        (request.method, path)
    };
    server.requests().into_iter().map(of).collect()
}

#[test]
fn node_proxiers_rights_are_enough_and_no_other_is_asked_for() {
    if !require_root("node_proxiers_rights_are_enough_and_no_other_is_asked_for") {
        return;
    }
    for mode in [WatchList::Supported, WatchList::Refused] {
        let cluster_node = ClusterNode::new(&format!("events-rights-{mode:?}").to_lowercase());
        let server = ApiServer::start_on(cluster_node.listen());
        server.set_watch_list(mode);
        server.authorize(NODE_PROXIER);
        // The port is another process's.
        let taken = cluster_node.namespace.run(|| TcpListener::bind("0.0.0.0:31999").unwrap());
        server.put(node("z1"));
        server.put(with_health_port(31999));
        for slice in slices("web", &[5]) {
            server.put(slice);
        }
        let sluice = cluster_node.start(&[format!("--master={}", server.url())]);
        let of = |reason: &str| server.objects("events").into_iter().find(|event| event["reason"] == reason);
        wait_until("both events", PATIENCE, || of("Starting").is_some() && of("FailedToStartServiceHealthcheck").is_some());
        let closed = of("FailedToStartServiceHealthcheck").unwrap();
        assert_eq!(
            closed["note"],
            r#"node node-a failed to start healthcheck "sluice-test/web" on port 31999: Address already in use (os error 98)"#
        );
        assert_eq!((&closed["type"], &closed["action"]), (&json!("Warning"), &json!("Listen")));
        assert_eq!(
            closed["regarding"],
            json!({"kind": "Service", "namespace": "sluice-test", "name": "web", "uid": "sluice-test/web"})
        );
        let starting = of("Starting").unwrap();
        assert_eq!(starting["regarding"], json!({"apiVersion": "v1", "kind": "Node", "name": "node-a"}));
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        assert_eq!(starting["reportingInstance"], format!("kube-proxy-{}", host.trim()));
        // The same failure once more, after the Service had another port.
        server.put(with_health_port(31998));
        wait_for_line(&sluice, &["WARN", "31999"]);
        wait_until("the other port is open", PATIENCE, || {
            cluster_node.namespace.run(|| std::net::TcpStream::connect("127.0.0.1:31998").is_ok())
        });
        server.put(with_health_port(31999));
        let count = || of("FailedToStartServiceHealthcheck").unwrap()["series"]["count"].clone();
        wait_until("the repeat is counted", PATIENCE, || count() == json!(2));
        drop(taken);
        let metric = sluice.metric("rest_client_requests_total");
        let host = server.url().replace("http://", "");
        assert_eq!(metric.get(&format!(r#"{{code="201",host="{host}",method="POST"}}"#)), Some(&2), "{metric:?}");
        assert_eq!(metric.get(&format!(r#"{{code="200",host="{host}",method="PATCH"}}"#)), Some(&1), "{metric:?}");
        let log = sluice.stop();
        let refused: Vec<_> = server.requests().into_iter().filter(|request| matches!(request.status, 401 | 403)).collect();
        assert!(refused.is_empty(), "{refused:#?}");
        let paths = [
            ("GET", "/api/v1/nodes"),
            ("GET", "/api/v1/services"),
            ("GET", "/apis/discovery.k8s.io/v1/endpointslices"),
            ("PATCH", "/apis/events.k8s.io/v1/namespaces/sluice-test/events/NAME"),
            ("POST", "/apis/events.k8s.io/v1/namespaces/default/events"),
            ("POST", "/apis/events.k8s.io/v1/namespaces/sluice-test/events"),
        ];
        assert_eq!(asked(&server), paths.map(|(method, path)| (method.to_owned(), path.to_owned())).into(), "{log}");
        assert_eq!(count_lines(&log, &["HTTP 403"]), 0, "{log}");
    }
}

#[test]
fn an_address_that_is_taken_is_told_of_before_the_end() {
    if !require_root("an_address_that_is_taken_is_told_of_before_the_end") {
        return;
    }
    let cluster_node = ClusterNode::new("events-hard-fail");
    let server = ApiServer::start_on(cluster_node.listen());
    server.authorize(NODE_PROXIER);
    for (address, reason) in [("10256", "FailedToStartProxierHealthcheck"), ("10249", "FailedToStartMetricServer")] {
        let _taken = cluster_node.namespace.run(|| TcpListener::bind(format!("127.0.0.1:{address}")).unwrap());
        let mut command = cluster_node.namespace.command(BINARY);
        command.args(support::proxy::common_flags()).arg("--bind-address-hard-fail").arg(format!("--master={}", server.url()));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let event = server.objects("events").into_iter().find(|event| event["reason"] == reason);
        let event = event.unwrap_or_else(|| panic!("no event {reason}\n{said}"));
        assert_eq!((&event["type"], &event["action"]), (&json!("Warning"), &json!("StartKubeProxy")));
        let note = event["note"].as_str().unwrap();
        assert!(note.contains(&format!("127.0.0.1:{address}: ")) && note.contains("in use"), "{note}");
    }
}

#[test]
fn an_address_that_is_taken_is_told_of_while_it_is_tried_again() {
    if !require_root("an_address_that_is_taken_is_told_of_while_it_is_tried_again") {
        return;
    }
    let cluster_node = ClusterNode::new("events-retry");
    let server = ApiServer::start_on(cluster_node.listen());
    server.authorize(NODE_PROXIER);
    let taken = cluster_node.namespace.run(|| TcpListener::bind("127.0.0.1:10256").unwrap());
    let mut sluice = cluster_node.start(&[format!("--master={}", server.url())]);
    let reasons = || server.objects("events").iter().map(|event| event["reason"].clone()).collect::<Vec<_>>();
    wait_until("the event", PATIENCE, || reasons().contains(&json!("FailedToStartProxierHealthcheck")));
    drop(taken);
    server.put(node("z1"));
    // Tried again every five seconds, and told of once.
    sluice.wait_in_force();
    wait_until("the start", PATIENCE, || reasons().contains(&json!("Starting")));
    assert_eq!(server.requests().iter().filter(|request| request.method != "GET").count(), 2, "{:#?}", reasons());
    sluice.stop();
}

#[test]
fn manifests_have_nobody_to_tell() {
    if !require_root("manifests_have_nobody_to_tell") {
        return;
    }
    let cluster_node = ClusterNode::new("events-manifests");
    let manifest = cluster_node.scratch.file("objects.json");
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [service("web", 1, 80)]});
    std::fs::write(&manifest, objects.to_string()).unwrap();
    let mut sluice = cluster_node.start(&[format!("--manifests={}", manifest.display())]);
    sluice.wait_in_force();
    assert!(sluice.metric("rest_client_requests_total").is_empty());
    let log = sluice.stop();
    assert_eq!(count_lines(&log, &["WARN"]), 0, "{log}");
}
