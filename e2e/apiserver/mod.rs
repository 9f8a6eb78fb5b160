//! A small Kubernetes API server for tests: lists, watches and misbehaviour on demand.
//!
//! It answers as kube-apiserver does where a client can tell: pages with continue tokens, watches from a
//! position, bookmarks, watch-list, 410 after compaction, selectors that turn a mismatch into a deletion.
//! Objects are plain JSON and are not validated, so that malformed ones can be stored. They are written
//! through the [`ApiServer`] handle, but for Events: those come over HTTP and are judged as kube-apiserver
//! judges them. HTTP, or TLS where it is given certificates, on a listener that may belong to another
//! network namespace. Who asks may be held to rules as RBAC has them.
//!
//! Used by `#[path = "../e2e/apiserver/mod.rs"] mod apiserver;`. It uses nothing of sluice.

#![allow(dead_code, reason = "each test file uses its own part of it")]
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "test code: a panic is a failed test")]

mod events;
mod http;
mod rbac;
mod selector;
mod store;
mod stream;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;

pub use rbac::Rule;
use selector::Selector;
use store::Store;

/// What kube-proxy may do in a cluster: the role `system:node-proxier` of Kubernetes 1.36.
pub const NODE_PROXIER: &[Rule] = &[
    Rule { groups: &[""], resources: &["services", "endpoints"], verbs: &["list", "watch"] },
    Rule { groups: &[""], resources: &["nodes"], verbs: &["get", "list", "watch"] },
    Rule { groups: &["", "events.k8s.io"], resources: &["events"], verbs: &["create", "patch", "update"] },
    Rule { groups: &["discovery.k8s.io"], resources: &["endpointslices"], verbs: &["list", "watch"] },
    Rule { groups: &["networking.k8s.io"], resources: &["servicecidrs"], verbs: &["list", "watch"] },
];

/// What a server does with `sendInitialEvents`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchList {
    Supported,
    /// As with the feature gate off: 422.
    Refused,
    /// As before 1.27: objects, but no mark at their end.
    Ignored,
}

/// How a list ends before it is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// The connection is cut.
    Cut,
    /// The answer ends in order, as if that were all.
    End,
}

/// Refusals to come.
#[derive(Clone, Copy, Debug)]
struct Failing {
    requests: usize,
    code: u16,
    retry_after: Option<u32>,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub user_agent: String,
    /// The status that was answered.
    pub status: u16,
}

impl Request {
    pub fn parameter(&self, name: &str) -> &str {
        self.query.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    fn is_watch(&self) -> bool {
        matches!(self.parameter("watch"), "true" | "1")
    }

    fn is_of(&self, resource: &str) -> bool {
        self.attributes().is_some_and(|attributes| attributes.resource == resource)
    }
}

/// Everything the handle and the serving thread share.
struct State {
    store: Store,
    watch_list: WatchList,
    bookmark_interval: Duration,
    stalled: bool,
    refusing: bool,
    /// Resources whose requests get no answer, and those that nobody may read.
    held: BTreeSet<String>,
    forbidden: BTreeSet<String>,
    /// What may be done; `None`: everything.
    rules: Option<Vec<Rule>>,
    tls: Option<Arc<ServerConfig>>,
    failing: Option<Failing>,
    /// A list or initial list breaks off after so many items.
    break_list_after: Option<(usize, Break)>,
    /// The token a request must bear.
    token: Option<String>,
    requests: Vec<Request>,
    handshake_failures: Vec<String>,
    /// Connections of an older generation are cut.
    generation: u64,
}

impl State {
    fn answers(&self, resource: &str) -> bool {
        !self.stalled && !self.held.contains(resource)
    }
}

struct Shared {
    state: Mutex<State>,
    /// Counts changes of the state, so that whoever waits looks again.
    ticks: watch::Sender<u64>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn change<T>(&self, how: impl FnOnce(&mut State) -> T) -> T {
        let result = how(&mut self.state());
        self.ticks.send_modify(|ticks| *ticks += 1);
        result
    }
}

/// A running server. Dropping it stops it.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    running: Option<Running>,
}

struct Running {
    stop: tokio::sync::oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl ApiServer {
    /// On a free port of 127.0.0.1.
    pub fn start() -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// On a listener of whichever network namespace.
    pub fn start_on(listener: TcpListener) -> Self {
        let state = State {
            store: Store::default(),
            watch_list: WatchList::Supported,
            bookmark_interval: Duration::from_mins(1),
            stalled: false,
            refusing: false,
            held: BTreeSet::new(),
            forbidden: BTreeSet::new(),
            rules: None,
            tls: None,
            failing: None,
            break_list_after: None,
            token: None,
            requests: Vec::new(),
            handshake_failures: Vec::new(),
            generation: 0,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), ticks: watch::Sender::new(0) });
        let address = listener.local_addr().unwrap();
        let mut server = Self { shared, address, running: None };
        server.serve_on(listener);
        server
    }

    pub fn url(&self) -> String {
        let scheme = if self.shared.state().tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// From now on new connections speak TLS.
    pub fn use_tls(&self, config: Arc<ServerConfig>) {
        self.shared.change(|state| state.tls = Some(config));
    }

    /// Closes the listener and all connections; the objects stay. Connections are then refused.
    pub fn stop(&mut self) {
        if let Some(Running { stop, thread }) = self.running.take() {
            let _ = stop.send(());
            thread.join().unwrap();
        }
    }

    /// Serves again at the same address, in the network namespace of the calling thread.
    pub fn restart(&mut self) {
        self.stop();
        self.serve_on(TcpListener::bind(self.address).unwrap());
    }

    /// Serves again on another listener.
    pub fn serve_on(&mut self, listener: TcpListener) {
        self.stop();
        self.address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = http::serve(listener, shared) => {}
                    _ = stopped => {}
                }
            });
        });
        self.running = Some(Running { stop, thread });
    }

    /// Creates or replaces an object; its kind says where. Gives its resourceVersion.
    pub fn put(&self, object: Value) -> u64 {
        self.shared.change(|state| state.store.put(object))
    }

    /// All objects of a YAML or JSON text.
    pub fn put_text(&self, text: &str) {
        for document in serde_norway::Deserializer::from_str(text) {
            let object = <Value as serde::Deserialize>::deserialize(document).unwrap();
            if !object.is_null() {
                self.put(object);
            }
        }
    }

    /// Deletes an object. `resource` as in paths: `services`.
    pub fn delete(&self, resource: &str, namespace: &str, name: &str) {
        self.shared.change(|state| state.store.delete(resource, namespace, name));
    }

    /// Forgets all history: positions before now, and all continue tokens, are gone.
    pub fn compact(&self) {
        self.shared.change(|state| state.store.compact());
    }

    /// Cuts all connections; new ones are served.
    pub fn drop_connections(&self) {
        self.shared.change(|state| state.generation += 1);
    }

    /// Takes connections and requests, and says nothing.
    pub fn stall(&self, on: bool) {
        self.shared.change(|state| state.stalled = on);
    }

    /// Cuts all connections, and new ones at once.
    pub fn refuse(&self, on: bool) {
        self.shared.change(|state| {
            state.refusing = on;
            state.generation += 1;
        });
    }

    /// Requests for a resource wait until they are let through.
    pub fn hold(&self, resource: &str, on: bool) {
        self.shared.change(|state| if on { state.held.insert(resource.into()) } else { state.held.remove(resource) });
    }

    /// Requests for a resource are answered with 403; watches that run go on, as they do after a role was changed.
    pub fn forbid(&self, resource: &str, on: bool) {
        self.shared.change(|state| if on { state.forbidden.insert(resource.into()) } else { state.forbidden.remove(resource) });
    }

    /// From now on requests are held to these rules.
    pub fn authorize(&self, rules: &[Rule]) {
        self.shared.change(|state| state.rules = Some(rules.to_vec()));
    }

    /// Lists break off after so many items.
    pub fn break_lists_after(&self, items: Option<(usize, Break)>) {
        self.shared.change(|state| state.break_list_after = items);
    }

    /// The next requests are refused.
    pub fn fail(&self, requests: usize, code: u16, retry_after: Option<u32>) {
        self.shared.change(|state| state.failing = Some(Failing { requests, code, retry_after }));
    }

    pub fn set_watch_list(&self, what: WatchList) {
        self.shared.change(|state| state.watch_list = what);
    }

    pub fn set_bookmark_interval(&self, interval: Duration) {
        self.shared.change(|state| state.bookmark_interval = interval);
    }

    /// From now on requests must bear this token.
    pub fn require_token(&self, token: &str) {
        self.shared.change(|state| state.token = Some(token.into()));
    }

    /// All objects of a resource.
    pub fn objects(&self, resource: &str) -> Vec<Value> {
        let all = self.shared.state().store.all(resource, &Selector::default());
        all.into_iter().map(Arc::unwrap_or_clone).collect()
    }

    /// The current resourceVersion.
    pub fn revision(&self) -> u64 {
        self.shared.state().store.revision
    }

    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.clone()
    }

    /// Why TLS handshakes failed, as this side saw it.
    pub fn handshake_failures(&self) -> Vec<String> {
        self.shared.state().handshake_failures.clone()
    }

    fn count(&self, wanted: impl Fn(&Request) -> bool) -> usize {
        self.shared.state().requests.iter().filter(|request| wanted(request)).count()
    }

    /// How often a list of the resource was begun: by first page or by watch-list.
    pub fn lists(&self, resource: &str) -> usize {
        self.count(|r| {
            let pages = !r.is_watch() && r.parameter("continue").is_empty();
            r.is_of(resource) && (pages || r.parameter("sendInitialEvents") == "true")
        })
    }

    /// How many pages of the resource were asked for.
    pub fn pages(&self, resource: &str) -> usize {
        self.count(|r| r.is_of(resource) && !r.is_watch())
    }

    /// How many watches of the resource were asked for, watch-lists among them.
    pub fn watches(&self, resource: &str) -> usize {
        self.count(|r| r.is_of(resource) && r.is_watch())
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(Running { stop, thread }) = self.running.take() {
            let _ = stop.send(());
            // A test that is failing already must not panic again here.
            let _ = thread.join();
        }
    }
}
