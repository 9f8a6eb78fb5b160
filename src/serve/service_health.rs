//! The health check ports of Services (`spec.healthCheckNodePort`): load balancers ask each node there
//! whether it has endpoints of the Service.
//!
//! One task owns all listeners; the handle only says what is wanted. It must not count endpoints or judge
//! the proxy: the caller gives the counts, [`Health`] the verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::health::Health;
use super::http::{self, Handler, Limits, Response, Shutdown, fired};
use crate::model::ObjectKey;

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// A health check port that should be open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthPort {
    pub service: ObjectKey,
    pub port: u16,
    /// Distinct ready endpoints of the Service on this node.
    pub local_endpoints: usize,
}

/// Where health check ports listen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListenOn {
    /// All addresses of both families.
    #[default]
    All,
    /// The node's addresses that `--nodeport-addresses` selects; the unspecified address: all of its family.
    These(Vec<IpAddr>),
}

/// Where one listener listens; `None`: everywhere, in both families.
type Place = Option<IpAddr>;

/// A port that could not be opened. It is tried again until it can be or is no longer wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub service: ObjectKey,
    pub port: u16,
    pub cause: String,
}

#[derive(Clone, Debug, Default)]
struct Wanted {
    ports: Vec<HealthPort>,
    listen_on: ListenOn,
}

/// Says which ports should be open. The servers end when the last handle is gone.
#[derive(Clone, Debug)]
pub struct ServiceHealth {
    wanted: watch::Sender<Wanted>,
    failures: watch::Receiver<Vec<Failure>>,
}

/// The task's half: owns the listeners.
#[derive(Debug)]
pub struct Servers {
    wanted: watch::Receiver<Wanted>,
    failures: watch::Sender<Vec<Failure>>,
    health: Health,
    limits: Limits,
    open: BTreeMap<u16, Port>,
}

/// What is listened on for one Service.
#[derive(Debug)]
struct Port {
    service: ObjectKey,
    local_endpoints: Arc<AtomicUsize>,
    /// One task per address. Empty as long as nothing could be bound.
    listeners: BTreeMap<Place, JoinSet<std::convert::Infallible>>,
}

impl ServiceHealth {
    /// The handle, and the servers for the agent to [run](Servers::run).
    pub fn new(health: Health) -> (Self, Servers) {
        let (wanted, wishes) = watch::channel(Wanted::default());
        let (reports, failures) = watch::channel(Vec::new());
        let servers = Servers { wanted: wishes, failures: reports, health, limits: Limits::default(), open: BTreeMap::new() };
        (Self { wanted, failures }, servers)
    }

    /// These ports and no others, with these counts.
    pub fn sync(&self, ports: Vec<HealthPort>) {
        self.wanted.send_modify(|wanted| wanted.ports = ports);
    }

    /// Ports listen here from now on.
    pub fn listen_on(&self, listen_on: ListenOn) {
        self.wanted.send_if_modified(|wanted| {
            let changed = wanted.listen_on != listen_on;
            wanted.listen_on = listen_on;
            changed
        });
    }

    /// The ports that are wanted and not (everywhere) open, each time that changes.
    pub fn failures(&self) -> watch::Receiver<Vec<Failure>> {
        self.failures.clone()
    }
}

impl Servers {
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Opens, moves and closes ports as told, until `shutdown` fires or nobody is left to tell.
    pub async fn run(mut self, shutdown: Shutdown) {
        let mut over = std::pin::pin!(fired(shutdown));
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            self.reconcile(&wanted).await;
            tokio::select! {
                () = &mut over => return,
                changed = self.wanted.changed() => if changed.is_err() { return },
                () = sleep(self.limits.bind_retry), if self.has_failures() => {}
            }
        }
    }

    fn has_failures(&self) -> bool {
        !self.failures.borrow().is_empty()
    }

    async fn reconcile(&mut self, wanted: &Wanted) {
        let (claims, mut failures) = claim(&wanted.ports, &self.open);
        let addresses = wanted.listen_on.addresses();
        self.close(&claims, &addresses).await;
        for port in claims.into_values() {
            if let Err(cause) = self.open(port, &addresses) {
                failures.push(Failure { service: port.service.clone(), port: port.port, cause: cause.to_string() });
            }
        }
        self.report(failures);
    }

    /// Closes what is no longer wanted, and returns when it is closed: a port may move to another Service.
    async fn close(&mut self, claims: &BTreeMap<u16, &HealthPort>, addresses: &BTreeSet<Place>) {
        for (number, port) in &mut self.open {
            let kept = claims.get(number).is_some_and(|claim| claim.service == port.service);
            for (address, listener) in &mut port.listeners {
                if !kept || !addresses.contains(address) {
                    listener.shutdown().await;
                }
            }
            port.listeners.retain(|_, listener| !listener.is_empty());
        }
        self.open.retain(|number, port| claims.get(number).is_some_and(|claim| claim.service == port.service));
    }

    /// Listens on what is missing and sets the count. An address that fails keeps none of the others closed.
    fn open(&mut self, wanted: &HealthPort, addresses: &BTreeSet<Place>) -> io::Result<()> {
        let port = self.open.entry(wanted.port).or_insert_with(|| Port::new(wanted.service.clone()));
        port.local_endpoints.store(wanted.local_endpoints, Ordering::Relaxed);
        let mut outcome = Ok(());
        for &address in addresses {
            if port.listeners.contains_key(&address) {
                continue;
            }
            let bound = match address {
                Some(address) => http::bind_family(SocketAddr::new(address, wanted.port)),
                None => http::bind((Ipv4Addr::UNSPECIFIED, wanted.port).into()),
            };
            match bound {
                Ok(listener) => {
                    let mut task = JoinSet::new();
                    task.spawn(http::serve(listener, port.handler(&self.health), self.limits));
                    port.listeners.insert(address, task);
                }
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    /// Warns of new failures; the old ones were told, and are tried every few seconds.
    fn report(&self, failures: Vec<Failure>) {
        self.failures.send_if_modified(|known| {
            for Failure { service, port, cause } in failures.iter().filter(|failure| !known.contains(failure)) {
                tracing::warn!(%service, port, cause, "cannot open the health check port; trying again until it works");
            }
            for Failure { service, port, .. } in known.iter().filter(|old| self.is_open(old, &failures)) {
                tracing::info!(%service, port, "the health check port is open now");
            }
            let changed = *known != failures;
            *known = failures;
            changed
        });
    }

    fn is_open(&self, old: &Failure, failures: &[Failure]) -> bool {
        self.open.get(&old.port).is_some_and(|port| port.service == old.service)
            && !failures.iter().any(|new| new.service == old.service && new.port == old.port)
    }
}

/// Gives each port to one Service: to the one that has it, else to the first. The others are failures.
fn claim<'a>(wanted: &'a [HealthPort], open: &BTreeMap<u16, Port>) -> (BTreeMap<u16, &'a HealthPort>, Vec<Failure>) {
    let holds = |claim: &HealthPort| open.get(&claim.port).is_some_and(|port| port.service == claim.service);
    let mut claims = BTreeMap::new();
    for claim in wanted.iter().filter(|claim| holds(claim)).chain(wanted) {
        claims.entry(claim.port).or_insert(claim);
    }
    let loses = |claim: &&HealthPort| claims[&claim.port].service != claim.service;
    let failures = wanted.iter().filter(loses).map(|claim| Failure {
        service: claim.service.clone(),
        port: claim.port,
        cause: format!("the port is that of Service {}", claims[&claim.port].service),
    });
    let failures = failures.collect();
    (claims, failures)
}

impl ListenOn {
    fn addresses(&self) -> BTreeSet<Place> {
        match self {
            Self::All => BTreeSet::from([None]),
            Self::These(addresses) => addresses.iter().copied().map(Some).collect(),
        }
    }
}

/// The body's fields in kube-proxy's order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: ServiceName<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct ServiceName<'a> {
    namespace: &'a str,
    name: &'a str,
}

impl Port {
    fn new(service: ObjectKey) -> Self {
        Self { service, local_endpoints: Arc::default(), listeners: BTreeMap::new() }
    }

    fn handler(&self, health: &Health) -> Handler {
        let (service, count, health) = (self.service.clone(), Arc::clone(&self.local_endpoints), health.clone());
        // Any path and any method, as in kube-proxy: load balancers are configured freely.
        Arc::new(move |_| answer(&service, count.load(Ordering::Relaxed), health.healthy()).into())
    }
}

fn answer(service: &ObjectKey, local_endpoints: usize, service_proxy_healthy: bool) -> Response {
    let service = ServiceName { namespace: service.namespace(), name: service.name() };
    let mut body = Vec::new();
    let tabs = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    Body { service, local_endpoints, service_proxy_healthy }
        .serialize(&mut serde_json::Serializer::with_formatter(&mut body, tabs))
        .expect("names and numbers are always JSON");
    let good = local_endpoints > 0 && service_proxy_healthy;
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = http::answer(status, http::JSON, body);
    response.headers_mut().insert(WEIGHT, HeaderValue::from(local_endpoints));
    response
}
