//! What the API source must do with any API server, ours or the real one: events taken in as the State
//! would, and one story told through whatever can store objects.

#![allow(dead_code, clippy::unwrap_used, reason = "test code, of which each file uses a part")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use serde_json::{Value, json};
use sluice::model::{EndpointSlice, Event, Node, ObjectKey, Service};
use sluice::source::kube::{self, ApiOptions};
use sluice::source::recorder::Recorder;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::JoinHandle;

pub const NODE: &str = "node-1";
pub const NAMESPACE: &str = "sluice-test";
/// More than the longest pause between two tries (half a minute): the real API server refuses everybody for some
/// seconds after its start, on a small machine for longer than we ask it each second.
const PATIENCE: Duration = Duration::from_mins(1);

/// What is known after the events so far.
#[derive(Debug, Default)]
pub struct View {
    pub services: BTreeMap<ObjectKey, Service>,
    pub slices: BTreeMap<ObjectKey, EndpointSlice>,
    /// `None`: not listed yet.
    pub nodes: Option<BTreeMap<ObjectKey, Node>>,
    /// How many complete lists came: services, slices, nodes.
    pub swaps: [usize; 3],
    /// How many single changes came.
    pub changes: usize,
}

impl View {
    fn take(&mut self, event: Event) {
        match event {
            Event::Services(all) => {
                self.services = all.into_iter().collect();
                self.swaps[0] += 1;
            }
            Event::Slices(all) => {
                self.slices = all.into_iter().collect();
                self.swaps[1] += 1;
            }
            Event::Nodes(all) => {
                self.nodes = Some(all.into_iter().collect());
                self.swaps[2] += 1;
            }
            single => {
                self.changes += 1;
                match single {
                    Event::Service(key, value) => set(&mut self.services, key, value),
                    Event::Slice(key, value) => set(&mut self.slices, key, value),
                    Event::Node(key, value) => set(self.nodes.as_mut().expect("listed first"), key, value),
                    other => panic!("unexpected {other:?}"),
                }
            }
        }
    }

    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.get(&ObjectKey::new(NAMESPACE, name))
    }

    pub fn slice(&self, name: &str) -> Option<&EndpointSlice> {
        self.slices.get(&ObjectKey::new(NAMESPACE, name))
    }

    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.as_ref()?.get(&ObjectKey::new("", name))
    }

    pub fn port_of(&self, name: &str) -> u16 {
        self.service(name).map_or(0, |service| service.ports[0].port)
    }

    pub fn complete(&self) -> bool {
        self.swaps.iter().all(|&count| count > 0)
    }
}

fn set<T>(map: &mut BTreeMap<ObjectKey, T>, key: ObjectKey, value: Option<T>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

/// The source under test, running.
pub struct Source {
    events: Receiver<Event>,
    task: JoinHandle<kube::Error>,
    pub view: View,
}

impl Source {
    pub fn start(options: ApiOptions) -> Self {
        Self::start_reporting(options).0
    }

    /// A source, and what records Events for the server.
    pub fn start_reporting(options: ApiOptions) -> (Self, Recorder) {
        let_nothing_be_unheard();
        let (sender, events) = channel(64);
        let (recorder, inbox) = Recorder::new();
        let task = tokio::spawn(async move { kube::run_reporting(options, sender, inbox).await.unwrap_err() });
        (Self { events, task, view: View::default() }, recorder)
    }

    /// Takes events in until the view is as wanted; fails the test if that takes longer than `limit`.
    pub async fn within(&mut self, limit: Duration, what: &str, wanted: impl Fn(&View) -> bool) {
        let deadline = tokio::time::Instant::now() + limit;
        while !wanted(&self.view) {
            match tokio::time::timeout_at(deadline, self.events.recv()).await {
                Ok(Some(event)) => self.view.take(event),
                Ok(None) => panic!("{what}: the source ended"),
                Err(tokio::time::error::Elapsed { .. }) => panic!("{what}: not within {limit:?}; known is {:#?}", self.view),
            }
        }
    }

    pub async fn until(&mut self, what: &str, wanted: impl Fn(&View) -> bool) {
        self.within(PATIENCE, what, wanted).await;
    }

    pub async fn listed(&mut self) {
        self.until("the first lists", View::complete).await;
    }

    /// Takes in what has come already.
    pub fn drain(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            self.view.take(event);
        }
    }

    /// Takes in events for as long as `condition`, which the events do not decide, does not hold.
    pub async fn while_not(&mut self, what: &str, condition: impl Fn() -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while !condition() {
            assert!(tokio::time::Instant::now() < deadline, "{what}: did not come");
            tokio::time::sleep(Duration::from_millis(5)).await;
            self.drain();
        }
        self.drain();
    }

    /// Stops listening and gives what the source then says.
    pub async fn end(self) -> kube::Error {
        drop(self.events);
        tokio::time::timeout(Duration::from_secs(10), self.task).await.expect("the source goes on").unwrap()
    }
}

/// A place of the code that logs for the first time decides whether anybody listens. Another test's thread, to which
/// nobody listens, may decide so for all just while this one begins to; with somebody for all threads it cannot.
fn let_nothing_be_unheard() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let nowhere = tracing_subscriber::fmt().with_writer(std::io::sink).finish();
        tracing::subscriber::set_global_default(nowhere).unwrap();
    });
}

/// What is logged by this thread from now on.
#[derive(Clone, Default)]
pub struct Logs(Arc<Mutex<Vec<u8>>>);

impl Logs {
    pub fn capture() -> (Self, tracing::subscriber::DefaultGuard) {
        let_nothing_be_unheard();
        let logs = Self::default();
        let builder = tracing_subscriber::fmt()
            .with_writer({
                let logs = logs.clone();
                move || logs.clone()
            })
            .with_ansi(false)
            .without_time();
        let guard = tracing::subscriber::set_default(builder.with_target(false).finish());
        (logs, guard)
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    pub fn count(&self, text: &str) -> usize {
        self.text().lines().filter(|line| line.contains(text)).count()
    }
}

impl std::io::Write for Logs {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(text)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub fn service(name: &str, last: u8, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"clusterIP": format!("10.96.100.{last}"), "ports": [{"port": port, "protocol": "TCP"}]},
    })
}

pub fn slice(name: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<_> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
    })
}

pub fn node(name: &str, zone: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}}})
}

pub fn labelled(mut object: Value, label: &str, value: &str) -> Value {
    object["metadata"]["labels"][label] = json!(value);
    object
}

/// An API server of any make.
pub trait Cluster {
    fn options(&self) -> ApiOptions;
    /// Creates or replaces.
    async fn put(&self, object: Value);
    async fn delete(&self, resource: &str, name: &str);
    /// All Services, slices and Nodes.
    async fn objects(&self) -> Vec<Value>;
    async fn stop(&mut self);
    /// Comes back when the server answers.
    async fn start(&mut self);
}

/// The life of a few objects, and of the server, as the source tells it.
pub async fn story(cluster: &mut impl Cluster) {
    cluster.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})).await;
    cluster.put(service("web", 1, 80)).await;
    cluster.put(slice("web-1", &["10.244.0.1"])).await;
    cluster.put(node("another", "z")).await;

    let mut source = Source::start(cluster.options());
    source.listed().await;
    assert_eq!((source.view.port_of("web"), source.view.nodes.as_ref().map(BTreeMap::len)), (80, Some(0)));
    assert_eq!(source.view.slice("web-1").map(|slice| slice.endpoints.len()), Some(1));

    cluster.put(node(NODE, "z1")).await;
    source.until("our node", |view| view.node(NODE).is_some_and(|node| node.zone.as_deref() == Some("z1"))).await;
    assert!(source.view.node("another").is_none());
    cluster.put(service("web", 1, 81)).await;
    source.until("a port changed", |view| view.port_of("web") == 81).await;
    cluster.put(slice("web-1", &["10.244.0.1", "10.244.0.2"])).await;
    source.until("an endpoint more", |view| view.slice("web-1").is_some_and(|slice| slice.endpoints.len() == 2)).await;

    labels(cluster, &mut source).await;

    cluster.delete("endpointslices", "web-1").await;
    source.until("the slice deleted", |view| view.slice("web-1").is_none()).await;

    cluster.stop().await;
    cluster.start().await;
    cluster.put(service("after", 2, 90)).await;
    source.until("a change after the outage", |view| view.port_of("after") == 90).await;
    assert_eq!(source.view.port_of("web"), 81, "an outage loses nothing");
    cluster.delete("services", "web").await;
    source.until("a deletion after the outage", |view| view.service("web").is_none()).await;
    let ended = source.end().await;
    assert!(ended.to_string().starts_with("watch of "), "{ended}");
}

/// Objects that are labelled away from us, and back.
async fn labels(cluster: &impl Cluster, source: &mut Source) {
    let other_proxy = "service.kubernetes.io/service-proxy-name";
    cluster.put(labelled(service("web", 1, 81), other_proxy, "else")).await;
    source.until("the service given to another proxy", |view| view.service("web").is_none()).await;
    cluster.put(service("web", 1, 81)).await;
    source.until("the service given back", |view| view.port_of("web") == 81).await;
    let two = ["10.244.0.1", "10.244.0.2"];
    cluster.put(labelled(slice("web-1", &two), "service.kubernetes.io/headless", "")).await;
    source.until("the slice made headless", |view| view.slice("web-1").is_none()).await;
    cluster.put(slice("web-1", &two)).await;
    source.until("the slice given back", |view| view.slice("web-1").is_some()).await;
}
