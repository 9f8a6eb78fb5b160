//! The API source against our own API server: lists, watches, outages and garbage.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

#[path = "../e2e/apiserver/mod.rs"]
mod apiserver;
mod scenario;

use std::time::{Duration, Instant};

use apiserver::{ApiServer, Break, WatchList};
use scenario::{Cluster, Logs, NAMESPACE, NODE, Source, node, service, slice};
use serde_json::{Value, json};
use sluice::source::kube::{ApiOptions, Rate, Timing};

fn timing() -> Timing {
    Timing {
        connect: Duration::from_millis(500),
        answer: Duration::from_secs(2),
        initial_silence: Duration::from_millis(500),
        ..Timing::default()
    }
}

fn options(server: &ApiServer) -> ApiOptions {
    ApiOptions { kubeconfig: None, master: Some(server.url()), node_name: NODE.into(), timing: timing(), ..ApiOptions::default() }
}

impl Cluster for ApiServer {
    fn options(&self) -> ApiOptions {
        options(self)
    }

    async fn put(&self, object: Value) {
        Self::put(self, object);
    }

    async fn delete(&self, resource: &str, name: &str) {
        Self::delete(self, resource, NAMESPACE, name);
    }

    async fn objects(&self) -> Vec<Value> {
        ["services", "endpointslices", "nodes"].into_iter().flat_map(|resource| Self::objects(self, resource)).collect()
    }

    async fn stop(&mut self) {
        Self::stop(self);
    }

    async fn start(&mut self) {
        self.restart();
    }
}

/// A server with a Service and a slice, and a source that has listed them.
async fn listed() -> (ApiServer, Source) {
    let server = ApiServer::start();
    server.put(service("web", 1, 80));
    server.put(slice("web-1", &["10.244.0.1"]));
    let mut source = Source::start(options(&server));
    source.listed().await;
    (server, source)
}

fn many(server: &ApiServer, count: u16) {
    for i in 0..count {
        let mut object = service(&format!("s-{i:04}"), 1, i + 1);
        object["spec"]["clusterIP"] = json!(format!("10.97.{}.{}", i / 250, i % 250 + 1));
        server.put(object);
    }
}

#[tokio::test]
async fn the_story_with_watch_list() {
    scenario::story(&mut ApiServer::start()).await;
}

#[tokio::test]
async fn the_story_with_pages() {
    let mut server = ApiServer::start();
    server.set_watch_list(WatchList::Refused);
    scenario::story(&mut server).await;
}

#[tokio::test]
async fn a_watch_list_needs_no_page() {
    let server = ApiServer::start();
    many(&server, 1200);
    let mut source = Source::start(options(&server));
    source.listed().await;
    assert_eq!((source.view.services.len(), source.view.swaps, source.view.changes), (1200, [1, 1, 1], 0));
    assert_eq!((server.pages("services"), server.lists("services")), (0, 1));
    let request = server.requests().into_iter().find(|r| r.path == "/api/v1/services").unwrap();
    assert_eq!(request.parameter("labelSelector"), "!service.kubernetes.io/service-proxy-name");
    assert_eq!(request.parameter("fieldSelector"), "spec.clusterIP!=None");
    assert_eq!(request.user_agent, format!("sluice/{}", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn an_older_server_is_listed_by_pages() {
    for old in [WatchList::Refused, WatchList::Ignored] {
        let server = ApiServer::start();
        server.set_watch_list(old);
        many(&server, 1200);
        let mut source = Source::start(options(&server));
        source.listed().await;
        assert_eq!((source.view.services.len(), source.view.swaps), (1200, [1, 1, 1]), "{old:?}");
        assert_eq!(server.pages("services"), 3, "{old:?}");
        server.put(service("web", 1, 80));
        source.until("a change", |view| view.port_of("web") == 80).await;
    }
}

#[tokio::test]
async fn an_expired_page_token_begins_the_list_anew() {
    let server = ApiServer::start();
    server.set_watch_list(WatchList::Refused);
    many(&server, 30);
    let options = ApiOptions { timing: Timing { page: 1, ..timing() }, ..options(&server) };
    let mut source = Source::start(options);
    source.while_not("some pages", || server.pages("services") >= 3).await;
    server.compact();
    source.listed().await;
    assert_eq!((source.view.services.len(), source.view.swaps[0]), (30, 1));
}

#[tokio::test]
async fn a_dropped_watch_goes_on_where_it_was() {
    let (server, mut source) = listed().await;
    server.put(service("web", 1, 81));
    source.until("a change", |view| view.port_of("web") == 81).await;
    for port in 82..85 {
        server.drop_connections();
        server.put(service("web", 1, port));
        source.until("a change after a drop", |view| view.port_of("web") == port).await;
    }
    for resource in ["services", "endpointslices", "nodes"] {
        assert_eq!(server.lists(resource), 1, "{resource}");
    }
    assert_eq!(source.view.swaps, [1, 1, 1]);
}

#[tokio::test]
async fn bookmarks_keep_a_quiet_watch_from_growing_old() {
    let (server, mut source) = listed().await;
    server.set_bookmark_interval(Duration::from_millis(20));
    // The slices do not change while the revision does. Whoever reconnects shows how far bookmarks have brought it.
    let revision = server.put(service("web", 1, 81));
    let position = |r: &apiserver::Request| r.parameter("resourceVersion").parse::<u64>().unwrap_or_default();
    let arrived = || server.requests().iter().any(|r| r.path.ends_with("endpointslices") && position(r) >= revision);
    for _ in 0..20 {
        if arrived() {
            break;
        }
        server.drop_connections();
        let begun = Instant::now();
        source.while_not("a reconnect or not", || arrived() || begun.elapsed() > Duration::from_millis(300)).await;
    }
    assert!(arrived(), "bookmarks do not move the position: {:#?}", server.requests());
    // From where they last changed, there would be no going on now.
    server.compact();
    server.drop_connections();
    server.put(slice("web-2", &["10.244.0.2"]));
    source.until("a slice", |view| view.slice("web-2").is_some()).await;
    assert_eq!((server.lists("endpointslices"), source.view.swaps[1]), (1, 1));
}

#[tokio::test]
async fn a_position_that_is_gone_means_one_list_and_one_swap() {
    let (mut server, mut source) = listed().await;
    server.put(service("old", 2, 90));
    source.until("a second service", |view| view.port_of("old") == 90).await;
    let changes = source.view.changes;
    server.stop();
    server.delete("services", NAMESPACE, "old");
    server.put(service("new", 3, 91));
    server.compact();
    server.restart();
    source.until("the swap", |view| view.swaps[0] == 2).await;
    assert!(source.view.service("old").is_none() && source.view.port_of("new") == 91 && source.view.port_of("web") == 80);
    assert_eq!(source.view.changes, changes, "a relist is no series of changes");
    server.put(service("web", 1, 81));
    source.until("a change", |view| view.port_of("web") == 81).await;
    assert_eq!((server.lists("services"), source.view.swaps[0]), (2, 2));
}

#[tokio::test]
async fn half_a_list_changes_nothing() {
    for (mode, how) in [
        (WatchList::Supported, Break::Cut),
        (WatchList::Supported, Break::End),
        (WatchList::Refused, Break::Cut),
        (WatchList::Refused, Break::End),
    ] {
        let (mut server, mut source) = listed().await;
        server.set_watch_list(mode);
        many(&server, 20);
        source.until("all", |view| view.services.len() == 21).await;
        server.stop();
        server.delete("services", NAMESPACE, "web");
        server.compact();
        server.break_lists_after(Some((5, how)));
        server.restart();
        source.while_not("three broken lists", || server.lists("services") >= 4).await;
        assert_eq!((source.view.services.len(), source.view.swaps[0]), (21, 1), "{mode:?} {how:?}");
        server.break_lists_after(None);
        source.until("the whole list", |view| view.swaps[0] == 2).await;
        assert_eq!(source.view.services.len(), 20, "{mode:?} {how:?}");
    }
}

#[tokio::test]
async fn a_stalled_watch_is_begun_anew_without_a_list() {
    let server = ApiServer::start();
    server.set_bookmark_interval(Duration::from_millis(100));
    let timing = Timing { silence: Duration::from_millis(500), answer: Duration::from_millis(500), ..timing() };
    let mut source = Source::start(ApiOptions { timing, ..options(&server) });
    source.listed().await;
    // Bookmarks keep a healthy watch alive for longer than the silence allowed.
    let watches = server.watches("services");
    let begun = Instant::now();
    source.while_not("two silences", || begun.elapsed() > Duration::from_secs(1)).await;
    assert_eq!(server.watches("services"), watches);
    server.stall(true);
    server.put(service("web", 1, 80));
    let begun = Instant::now();
    source.while_not("the stall", || begun.elapsed() > Duration::from_millis(700)).await;
    assert!(source.view.service("web").is_none());
    server.stall(false);
    source.within(Duration::from_secs(2), "the change", |view| view.port_of("web") == 80).await;
    assert!(server.watches("services") > watches, "the stalled watch was kept");
    assert_eq!((server.lists("services"), source.view.swaps), (1, [1, 1, 1]));
}

#[tokio::test]
async fn a_malformed_object_is_left_out_and_named_once() {
    for mode in [WatchList::Supported, WatchList::Refused] {
        let (logs, _guard) = Logs::capture();
        let server = ApiServer::start();
        server.set_watch_list(mode);
        let mut bad = service("bad", 2, 1);
        bad["spec"]["ports"][0]["port"] = json!("abc");
        server.put(bad.clone());
        server.put(service("web", 1, 80));
        let mut source = Source::start(options(&server));
        source.listed().await;
        assert!(source.view.port_of("web") == 80 && source.view.services.len() == 1);
        server.put(bad.clone());
        let mut worse = service("worse", 3, 1);
        worse["spec"]["externalIPs"] = json!(["x"]);
        server.put(worse);
        server.put(service("last", 4, 82));
        source.until("those after it", |view| view.port_of("last") == 82).await;
        assert_eq!(logs.count("Service sluice-test/bad: "), 1, "{}", logs.text());
        assert!(logs.text().contains("cannot be decoded, left out"), "{}", logs.text());
        assert!(logs.text().contains(r#"Service sluice-test/worse: spec.externalIPs[0]: "x""#), "{}", logs.text());
        server.put(service("bad", 2, 83));
        source.until("the object mended", |view| view.port_of("bad") == 83).await;
        server.put(bad);
        source.until("the object broken again", |view| view.service("bad").is_none()).await;
    }
}

#[tokio::test]
async fn the_first_change_after_an_outage_comes_within_two_seconds() {
    let (logs, _guard) = Logs::capture();
    let (mut server, mut source) = listed().await;
    server.stop();
    let begun = Instant::now();
    source.while_not("an outage", || begun.elapsed() > Duration::from_secs(3)).await;
    server.put(service("web", 1, 81));
    server.restart();
    source.within(Duration::from_secs(2), "the change", |view| view.port_of("web") == 81).await;
    source.while_not("all watches", || server.watches("nodes") == 2 && server.watches("endpointslices") == 2).await;
    assert_eq!(source.view.swaps, [1, 1, 1]);
    assert_eq!(logs.count("the node keeps its rules"), 1, "{}", logs.text());
    assert_eq!(logs.count("answers again after "), 1, "{}", logs.text());
}

#[tokio::test]
async fn a_low_rate_is_kept_to_and_does_not_delay_a_return() {
    let mut server = ApiServer::start();
    server.put(service("web", 1, 80));
    let begun = Instant::now();
    let rate = Rate { per_second: 1.0, burst: 1 };
    let mut source = Source::start(ApiOptions { rate, ..options(&server) });
    source.listed().await;
    // Three requests: the first at once.
    assert!(begun.elapsed() > Duration::from_millis(1900), "{:?}", begun.elapsed());
    server.stop();
    let begun = Instant::now();
    source.while_not("an outage", || begun.elapsed() > Duration::from_secs(3)).await;
    server.put(service("web", 1, 81));
    server.restart();
    // The watches share what the rate has left: that of Services may be the third.
    source.within(Duration::from_secs(4), "the change", |view| view.port_of("web") == 81).await;
    assert_eq!(source.view.swaps, [1, 1, 1]);
}

#[tokio::test]
async fn pages_of_a_list_cost_nothing() {
    let server = ApiServer::start();
    server.set_watch_list(WatchList::Refused);
    many(&server, 300);
    let (rate, timing) = (Rate { per_second: 1.0, burst: 20 }, Timing { page: 5, ..timing() });
    let begun = Instant::now();
    Source::start(ApiOptions { rate, timing, ..options(&server) }).listed().await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?} for {} pages", begun.elapsed(), server.pages("services"));
    assert_eq!(server.pages("services"), 60);
}

#[tokio::test]
async fn a_server_that_is_away_at_first_is_waited_for() {
    let mut server = ApiServer::start();
    server.put(node(NODE, "z1"));
    server.stop();
    let mut source = Source::start(options(&server));
    let begun = Instant::now();
    source.while_not("some tries", || begun.elapsed() > Duration::from_millis(400)).await;
    assert_eq!(source.view.swaps, [0, 0, 0]);
    server.restart();
    source.listed().await;
    assert!(source.view.node(NODE).is_some());
}

#[tokio::test]
async fn connections_that_are_cut_at_once_are_an_outage() {
    let (server, mut source) = listed().await;
    server.refuse(true);
    server.put(service("web", 1, 81));
    let begun = Instant::now();
    source.while_not("an outage", || begun.elapsed() > Duration::from_millis(500)).await;
    server.refuse(false);
    source.within(Duration::from_secs(2), "the change", |view| view.port_of("web") == 81).await;
    assert_eq!(server.lists("services"), 1);
}

#[tokio::test]
async fn refusals_are_told_once_and_tried_again() {
    for code in [401, 403, 500, 503] {
        let (logs, _guard) = Logs::capture();
        let server = ApiServer::start();
        server.set_watch_list(WatchList::Refused);
        server.put(service("web", 1, 80));
        // Everybody is refused until enough was: whoever gets through then meets no further refusal.
        server.fail(1000, code, None);
        let mut source = Source::start(options(&server));
        let refused = || server.requests().iter().filter(|r| r.status == code).count();
        source.while_not("refusals", || refused() >= 9).await;
        server.fail(0, code, None);
        source.listed().await;
        assert_eq!(source.view.port_of("web"), 80);
        let line = format!("services: HTTP {code}: failed on demand");
        assert_eq!(logs.count(&line), 1, "{}", logs.text());
        source.while_not("recovery told", || logs.count("list and watch services: works again after") == 1).await;
    }
}

#[tokio::test]
async fn retry_after_is_kept_to() {
    let server = ApiServer::start();
    server.fail(3, 429, Some(1));
    let begun = Instant::now();
    let mut source = Source::start(options(&server));
    source.listed().await;
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    let refused = server.requests().iter().filter(|r| r.status == 429).count();
    assert_eq!(refused, 3, "{:?}", server.requests());
}

/// A kubeconfig in a folder of its own.
struct Kubeconfig(std::path::PathBuf);

impl Kubeconfig {
    fn new(name: &str, server: &ApiServer, token: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("sluice-api-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "k", "cluster": {"server": server.url()}}],
            "users": [{"name": "u", "user": {"tokenFile": folder.join("token")}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}]});
        std::fs::write(folder.join("config"), config.to_string()).unwrap();
        let kubeconfig = Self(folder);
        kubeconfig.set_token(token);
        kubeconfig
    }

    fn set_token(&self, token: &str) {
        std::fs::write(self.0.join("token"), token).unwrap();
    }
}

impl Drop for Kubeconfig {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn a_token_that_was_rotated_is_read_anew() {
    let server = ApiServer::start();
    server.require_token("first");
    let kubeconfig = Kubeconfig::new("rotation", &server, "first");
    let options = ApiOptions { kubeconfig: Some(kubeconfig.0.join("config")), master: None, ..options(&server) };
    let mut source = Source::start(options);
    source.listed().await;
    kubeconfig.set_token("second");
    server.require_token("second");
    server.drop_connections();
    server.put(service("web", 1, 80));
    source.within(Duration::from_secs(3), "a change", |view| view.port_of("web") == 80).await;
    assert_eq!(source.view.swaps, [1, 1, 1]);
}

#[tokio::test]
async fn a_token_file_is_preferred_to_a_token_if_it_can_be_read() {
    let server = ApiServer::start();
    let kubeconfig = Kubeconfig::new("both", &server, "of-the-file");
    let file = kubeconfig.0.join("config");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config["users"][0]["user"]["token"] = "of-the-kubeconfig".into();
    std::fs::write(&file, config.to_string()).unwrap();
    let options = ApiOptions { kubeconfig: Some(file), master: None, ..options(&server) };
    server.require_token("of-the-file");
    Source::start(options.clone()).listed().await;
    std::fs::remove_file(kubeconfig.0.join("token")).unwrap();
    server.require_token("of-the-kubeconfig");
    Source::start(options).listed().await;
    assert!(server.requests().iter().all(|request| request.status != 401), "{:#?}", server.requests());
}

#[tokio::test]
async fn master_overrides_the_kubeconfig() {
    let (server, elsewhere) = (ApiServer::start(), ApiServer::start());
    server.require_token("secret");
    let kubeconfig = Kubeconfig::new("master", &elsewhere, "secret");
    let mut source = Source::start(ApiOptions { kubeconfig: Some(kubeconfig.0.join("config")), ..options(&server) });
    source.listed().await;
    assert!(elsewhere.requests().is_empty());
}

#[tokio::test]
async fn passwords_in_urls_are_not_logged() {
    let (logs, _guard) = Logs::capture();
    let server = ApiServer::start();
    let kubeconfig = Kubeconfig::new("password", &server, "token");
    let file = kubeconfig.0.join("config");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config["clusters"][0]["cluster"]["proxy-url"] = "http://user:hunter2@proxy.example:3128".into();
    std::fs::write(&file, config.to_string()).unwrap();
    let master = Some(server.url().replace("://", "://user:hunter3@"));
    Source::start(ApiOptions { kubeconfig: Some(file), master, ..options(&server) }).listed().await;
    let text = logs.text();
    assert!(text.contains("proxy.example:3128") && !text.contains("hunter"), "{text}");
}

#[tokio::test]
async fn no_way_to_a_server_is_an_error() {
    let none = ApiOptions { kubeconfig: None, master: None, ..options(&ApiServer::start()) };
    let missing = ApiOptions { kubeconfig: Some("/nowhere/config".into()), ..none.clone() };
    let no_url = ApiOptions { master: Some("a b".into()), ..none.clone() };
    for (options, said) in [(none, "no --kubeconfig and no --master"), (missing, "/nowhere/config"), (no_url, "\"a b\" is not")] {
        let (sender, _events) = tokio::sync::mpsc::channel(1);
        let error = sluice::source::kube::run(options, sender).await.unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains(said), "{cause}");
    }
}
