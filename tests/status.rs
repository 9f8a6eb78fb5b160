//! The pages of the metrics server beside `/metrics`, over real sockets: compared with those captured from kube-proxy
//! (`tests/serve/`) header by header; with times, and what is not Go's, made equal by rule.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod serve {
    pub mod client;
    pub mod pages;
}

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use serve::client::{Answer, captured, connect, get, in_time, is_hung_up, put, read_answer, receive, request, send};
use serve::pages::{Running, pages, start, start_pages};
use sluice::serve::http::Limits;
use sluice::serve::status::metrics_routes;
use sluice::serve::{Configz, Metrics, Pages};

const CURL: &str = "User-Agent: curl/8.5.0\r\n";

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new())
}

fn accept(kind: &str, encoding: &str, version: &str) -> String {
    format!("Accept: application/{encoding};v={version};g=config.k8s.io;as={kind}\r\n")
}

/// The capture with the length of what it shows: a path in it was replaced when it was taken over.
fn captured_configz() -> Answer {
    let mut answer = captured("m_configz");
    let length = answer.headers.insert("Content-Length".into(), answer.body.len().to_string());
    assert_eq!((length.as_deref(), answer.body.len()), (Some("1507"), 1516));
    answer
}

/// The configuration that the capture shows, without what is around it.
fn captured_config() -> String {
    let body = captured_configz().body;
    body.strip_prefix("{\"kubeproxy.config.k8s.io\":").unwrap().strip_suffix('}').unwrap().to_owned()
}

/// The flags that the capture shows.
fn captured_flags() -> Vec<(String, String)> {
    let body = captured("m_flagz").body;
    let pairs = body.lines().skip(3).map(|line| line.split_once(':').unwrap());
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[tokio::test]
async fn configz_is_kube_proxys_and_follows_the_configuration() {
    let configz = Configz::default();
    let server = start_pages(Pages { configz: configz.clone(), ..pages(metrics()) }).await;
    assert_eq!(get(server.address, "/configz").await.body, "{}", "nothing is known yet");
    configz.set(captured_config());
    assert_eq!(get(server.address, "/configz").await.timeless(), captured_configz().timeless());
    configz.set("{\"mode\":\"ipvs\"}");
    assert_eq!(get(server.address, "/configz").await.body, "{\"kubeproxy.config.k8s.io\":{\"mode\":\"ipvs\"}}");
}

#[tokio::test]
async fn flagz_is_kube_proxys() {
    let flags = captured_flags();
    assert_eq!(flags.len(), 59, "flags in the capture");
    let server = start_pages(Pages { flags: flags.clone(), ..pages(metrics()) }).await;
    for headers in ["", "Accept: */*\r\n", "Accept: text/plain\r\n"] {
        let answer = request(server.address, "/flagz", headers).await;
        assert_eq!(answer.timeless(), captured("m_flagz").timeless(), "{headers}");
    }
    let answer = request(server.address, "/flagz", &accept("Flagz", "json", "v1beta1")).await;
    assert_eq!(answer.headers["Content-Type"], "application/json;g=config.k8s.io;v=v1beta1;as=Flagz");
    let start = r#"{"kind":"Flagz","apiVersion":"config.k8s.io/v1beta1","metadata":{"name":"kube-proxy"},"flags":{"bind-address":"0.0.0.0","#;
    assert!(answer.body.starts_with(start) && answer.body.ends_with("\"write-config-to\":\"\"}}\n"), "{}", answer.body);
    let object: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(object["flags"].as_object().unwrap().len(), flags.len());
    assert_eq!(object["flags"]["conntrack-min"], "131072");
}

/// With what is different at any time and in any program made equal.
fn without_times(mut answer: Answer) -> Answer {
    let fields = ["Started", "Up", "Go version"].map(|name| format!("{name}  "));
    let members = ["startTime", "uptimeSeconds", "goVersion"].map(|name| format!("  \"{name}\": "));
    let name = |line: &str| fields.iter().chain(&members).find(|name| line.starts_with(*name)).cloned();
    let lines = answer.body.split('\n').map(|line| name(line).unwrap_or_else(|| line.to_owned()));
    answer.body = lines.collect::<Vec<_>>().join("\n");
    answer.headers.insert("Content-Length".into(), answer.body.len().to_string());
    answer.timeless()
}

#[tokio::test]
async fn statusz_is_kube_proxys() {
    let server = start_pages(pages(metrics())).await;
    let text = request(server.address, "/statusz", CURL).await;
    assert_eq!(without_times(text.clone()), without_times(captured("m_statusz")));
    let go = concat!("\nGo version  none (sluice ", env!("CARGO_PKG_VERSION"), ", Rust)\n");
    assert!(text.body.contains(go) && text.body.contains("\nUp  0 hr 0"), "{}", text.body);
    let headers = format!("{CURL}{}", accept("Statusz", "json", "v1beta1"));
    let object = request(server.address, "/statusz", &headers).await;
    assert_eq!(without_times(object.clone()), without_times(captured("m_statusz_json")));
    let object: Value = serde_json::from_str(&object.body).unwrap();
    let seconds = object["uptimeSeconds"].as_i64().unwrap();
    assert!((0..600).contains(&seconds), "{object}");
    let start = object["startTime"].as_str().unwrap();
    assert!(start.len() == 20 && start.ends_with('Z'), "{start}");
}

#[tokio::test]
async fn structured_pages_come_in_what_is_asked_for() {
    let flags = vec![("v".into(), "2".into())];
    let server = start_pages(Pages { flags, ..pages(metrics()) }).await;
    let yaml = request(server.address, "/flagz", &accept("Flagz", "yaml", "v1beta1")).await;
    assert_eq!(yaml.headers["Content-Type"], "application/yaml;g=config.k8s.io;v=v1beta1;as=Flagz");
    let wanted = "apiVersion: config.k8s.io/v1beta1\nflags:\n  v: '2'\nkind: Flagz\nmetadata:\n  name: kube-proxy\n";
    assert_eq!(yaml.body, wanted);
    for (path, kind) in [("/flagz", "Flagz"), ("/statusz", "Statusz")] {
        let new = request(server.address, path, &accept(kind, "json", "v1beta1")).await;
        assert!(!new.headers.contains_key("Warning"), "{new:?}");
        let old = request(server.address, path, &accept(kind, "json", "v1alpha1")).await;
        let warning =
            format!("299 - \"This version of the {} endpoint is deprecated. Please use a newer version.\"", kind.to_lowercase());
        assert_eq!(old.headers["Warning"], warning);
        assert!(old.body.contains("\"apiVersion\":\"config.k8s.io/v1alpha1\""), "{}", old.body);
    }
}

#[tokio::test]
async fn what_nobody_can_give_is_not_acceptable() {
    let server = start_pages(pages(metrics())).await;
    let other = accept("Flagz", "json", "v1beta1");
    for headers in ["Accept: application/json\r\n", "Accept: application/xml\r\n", &other] {
        let answer = request(server.address, "/statusz", headers).await;
        assert_eq!(answer.status, "HTTP/1.1 406 Not Acceptable", "{headers}");
        assert_eq!(answer.headers["Content-Type"], "application/json");
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 406, "reason": "NotAcceptable",
            "message": "only the following media types are accepted: application/json, application/yaml, text/plain"});
        assert_eq!(serde_json::from_str::<Value>(&answer.body).unwrap(), status);
    }
}

#[tokio::test]
async fn pages_that_are_off_are_not_there() {
    let server = start_pages(Pages { flagz: false, ..pages(metrics()) }).await;
    assert_eq!(get(server.address, "/flagz").await.timeless(), captured("hz_readyz").timeless());
    let status = get(server.address, "/statusz").await;
    assert!(status.body.ends_with("\nPaths  /configz /healthz /metrics /proxyMode\n"), "{}", status.body);
    let server = start_pages(Pages { statusz: false, ..pages(metrics()) }).await;
    assert_eq!(get(server.address, "/statusz").await.timeless(), captured("hz_readyz").timeless());
}

#[tokio::test]
async fn checks_can_be_named_and_left_out() {
    let server = start_pages(pages(metrics())).await;
    for (query, body) in [
        ("verbose=1", "[+]ping ok\nhealthz check passed\n"),
        ("verbose&exclude=ping", "[+]ping excluded: ok\nhealthz check passed\n"),
        ("exclude=ping", "ok"),
        (
            "verbose&exclude=b&exclude=a&exclude=ping&exclude=a",
            "[+]ping excluded: ok\nwarn: some health checks cannot be excluded: no matches for \"a\",\"b\"\nhealthz check passed\n",
        ),
    ] {
        let answer = get(server.address, &format!("/healthz?{query}")).await;
        assert_eq!((answer.status.as_str(), answer.body.as_str()), ("HTTP/1.1 200 OK", body), "{query}");
    }
}

#[tokio::test]
async fn results_of_checks_are_kube_proxys() {
    let server = start_pages(pages(metrics())).await;
    let before = get(server.address, "/metrics/slis").await.body;
    assert!(!before.contains("kubernetes_healthcheck") && before.contains("process_start_time_seconds"), "{before}");
    // As in the capture's time; what is left out is not counted.
    for path in ["/healthz", "/healthz?verbose", "/healthz?exclude=ping"] {
        get(server.address, path).await;
    }
    let numberless = |mut answer: Answer| {
        let start = answer.body.find("\nprocess_start_time_seconds ").expect("the start") + 28;
        answer.body.truncate(start);
        answer.headers.insert("Content-Length".into(), start.to_string());
        assert!(answer.headers.insert("Process-Start-Time-Unix".into(), "T".into()).unwrap().parse::<u64>().is_ok());
        answer.timeless()
    };
    let ours = get(server.address, "/metrics/slis").await;
    assert_eq!(numberless(ours), numberless(captured("m_metrics_slis")));
    let accept = "Accept: application/openmetrics-text;version=1.0.0\r\n";
    assert!(request(server.address, "/metrics/slis", accept).await.body.ends_with("# EOF\n"));
}

/// A server with what `--profiling` adds, and the level that was set.
async fn profiled(limits: Limits) -> (Running, Arc<AtomicU8>) {
    let level = Arc::new(AtomicU8::new(99));
    let set = Arc::clone(&level);
    let set_verbosity = Box::new(move |level| set.store(level, Ordering::Relaxed));
    let pages = Pages { profiling: true, set_verbosity, ..pages(metrics()) };
    (start(metrics_routes(pages), limits).await, level)
}

#[tokio::test]
async fn without_profiling_there_is_nothing_to_debug() {
    let server = start_pages(pages(metrics())).await;
    for path in ["/debug/pprof/", "/debug/pprof/heap", "/debug/flags", "/debug/flags/v"] {
        assert_eq!(get(server.address, path).await.timeless(), captured("hz_readyz").timeless(), "{path}");
    }
    assert_eq!(put(server.address, "/debug/flags/v", "4").await.status, "HTTP/1.1 404 Not Found");
}

#[tokio::test]
async fn the_log_level_is_set_by_put() {
    let (server, level) = profiled(Limits::default()).await;
    for (body, wanted) in [("4", 4), ("0", 0), ("1000", 255), ("-3", 0), ("+7", 7)] {
        let answer = put(server.address, "/debug/flags/v", body).await;
        assert_eq!((answer.status.as_str(), answer.headers["Content-Type"].as_str()), ("HTTP/1.1 200 OK", "text/plain"));
        assert_eq!(answer.body, format!("successfully set klog.logging.verbosity to {body}\n"));
        assert_eq!(level.load(Ordering::Relaxed), wanted, "{body}");
    }
    for (body, cause) in [
        ("", r#"parsing "": invalid syntax"#),
        ("x", r#"parsing "x": invalid syntax"#),
        ("4\n", r#"parsing "4\n": invalid syntax"#),
        ("3000000000", r#"parsing "3000000000": value out of range"#),
    ] {
        let answer = put(server.address, "/debug/flags/v", body).await;
        assert_eq!(answer.status, "HTTP/1.1 400 Bad Request", "{body}");
        assert_eq!(answer.body, format!("failed set klog.logging.verbosity {body}: strconv.ParseInt: {cause}\n"));
    }
    assert_eq!(level.load(Ordering::Relaxed), 7, "as it was");
    let answer = get(server.address, "/debug/flags/v").await;
    assert_eq!((answer.status.as_str(), answer.body.as_str()), ("HTTP/1.1 406 Not Acceptable", "unsupported http method\n"));
}

#[tokio::test]
async fn profiles_are_gos_and_the_answer_says_what_there_is() {
    let (server, _) = profiled(Limits::default()).await;
    for path in ["/debug/pprof", "/debug/pprof/", "/debug/pprof/heap?seconds=3"] {
        let answer = get(server.address, path).await;
        assert_eq!(answer.status, "HTTP/1.1 501 Not Implemented", "{path}");
        assert!(
            ["/metrics", "/statusz", "/debug/flags/v", "perf"].iter().all(|word| answer.body.contains(word)),
            "{}",
            answer.body
        );
    }
    for path in ["/debug/flags", "/debug/flags/", "/debug/flags/x"] {
        let answer = get(server.address, path).await;
        let kind = answer.headers["Content-Type"].as_str();
        assert_eq!((answer.status.as_str(), kind), ("HTTP/1.1 200 OK", "text/html; charset=utf-8"), "{path}");
    }
    assert_eq!(get(server.address, "/debug/other").await.status, "HTTP/1.1 404 Not Found");
    assert_eq!(get(server.address, "/debug/pprofx").await.status, "HTTP/1.1 404 Not Found");
}

#[tokio::test]
async fn bodies_are_read_where_they_are_asked_for_and_only_small_ones() {
    let (server, level) = profiled(Limits::default()).await;
    let answer = put(server.address, "/debug/flags/v", &"1".repeat(65)).await;
    assert_eq!(
        (answer.status.as_str(), answer.body.as_str()),
        ("HTTP/1.1 413 Payload Too Large", "request body: more than 64 bytes\n")
    );
    // Announced, and never sent: nothing of it is waited for.
    let mut stream = connect(server.address).await;
    send(&mut stream, "PUT /debug/flags/v HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n80\r\n").await.unwrap();
    send(&mut stream, &"1".repeat(0x80)).await.unwrap();
    assert_eq!(read_answer(&mut stream).await.status, "HTTP/1.1 413 Payload Too Large");
    assert!(is_hung_up(&mut stream).await, "the rest would be taken for a request");
    assert_eq!(level.load(Ordering::Relaxed), 99);
    // In pieces it comes to the same.
    let mut stream = connect(server.address).await;
    send(&mut stream, "PUT /debug/flags/v HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    send(&mut stream, "1\r\n1\r\n1\r\n2\r\n0\r\n\r\n").await.unwrap();
    assert_eq!(read_answer(&mut stream).await.body, "successfully set klog.logging.verbosity to 12\n");
    send(&mut stream, "GET /proxyMode HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
    assert_eq!(read_answer(&mut stream).await.body, "iptables", "the connection goes on");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let limits = Limits { first_request: Duration::from_millis(300), ..Limits::default() };
    let (server, level) = profiled(limits).await;
    let mut stream = connect(server.address).await;
    send(&mut stream, "PUT /debug/flags/v HTTP/1.1\r\nHost: n\r\nContent-Length: 2\r\n\r\n1").await.unwrap();
    assert_eq!(get(server.address, "/proxyMode").await.status, "HTTP/1.1 200 OK");
    assert_eq!(read_answer(&mut stream).await.status, "HTTP/1.1 408 Request Timeout");
    assert!(is_hung_up(&mut stream).await);
    assert_eq!(level.load(Ordering::Relaxed), 99);
}

/// Asks for this page, and gives what comes before the server closes the connection.
async fn until_closed(server: &Running, requests: &str) -> Vec<u8> {
    let mut stream = connect(server.address).await;
    // The server may close in the middle of the requests.
    let _ = in_time(send(&mut stream, requests)).await;
    let mut bytes = Vec::new();
    while in_time(receive(&mut stream, &mut bytes)).await.unwrap_or(false) {}
    bytes
}

#[tokio::test]
async fn requests_in_one_go_are_answered_in_order() {
    let server = start_pages(pages(metrics())).await;
    let once = "GET /proxyMode HTTP/1.1\r\nHost: n\r\n\r\nGET /healthz HTTP/1.1\r\nHost: n\r\n\r\n";
    let last = "GET /nowhere HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n";
    let text = String::from_utf8(until_closed(&server, &(once.repeat(200) + last)).await).unwrap();
    let bodies: Vec<_> = text.split("HTTP/1.1 ").skip(1).map(|answer| answer.split_once("\r\n\r\n").unwrap().1).collect();
    assert_eq!(bodies.len(), 401);
    assert!(bodies[..400].chunks(2).all(|pair| pair == ["iptables", "ok"]), "{bodies:?}");
    assert_eq!(bodies[400], "404 page not found\n");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let short = Duration::from_millis(500);
    let limits = Limits { first_request: short, next_request: short, ..Limits::default() };
    let server = start(metrics_routes(pages(metrics())), limits).await;
    let mut stream = connect(server.address).await;
    // More answers than sockets have room for; the server stops reading requests while it cannot write.
    let requests = "GET /metrics HTTP/1.1\r\nHost: n\r\n\r\n".repeat(4000);
    let cut = async { while send(&mut stream, &requests).await.is_ok() {} };
    in_time(cut).await;
    assert_eq!(get(server.address, "/proxyMode").await.status, "HTTP/1.1 200 OK");
}
