//! Posts Events to the API server, one after the other.
//!
//! Nothing depends on them: what cannot be posted within some tries is dropped, and where we may not post, nothing is
//! tried for a while.

use std::sync::Arc;
use std::time::Instant;

use ::kube::api::{Patch, PatchParams, PostParams};
use ::kube::core::Request as Requests;
use hyper::Request;
use k8s_openapi::api::events::v1::Event;
use serde_json::json;
use tokio::time::{sleep, sleep_until};
use tracing::{debug, info, warn};

use super::client::{Failure, Purpose, Server};
use super::outage::Outage;
use super::recorder::Inbox;
use super::series::{Series, Write};

/// How often one Event is tried: with pauses of 1 s, 2 s and so on, a minute in all.
const TRIES: u32 = 7;

/// What became of a write.
#[derive(Debug)]
enum End {
    Written,
    /// The server does not want it, or was not there for too long.
    Dropped(Failure),
    Forbidden(Failure),
}

#[derive(Debug)]
pub(crate) struct Sink {
    server: Arc<Server>,
    inbox: Inbox,
    series: Series,
    forbidden: Outage,
    /// Until then nothing is tried.
    paused_until: Option<Instant>,
}

impl Sink {
    /// `host`: the name this machine has itself.
    pub(crate) fn new(server: Arc<Server>, inbox: Inbox, host: &str) -> Self {
        Self { server, inbox, series: Series::new(host), forbidden: Outage::default(), paused_until: None }
    }

    /// Posts until there are no recorders any more.
    pub(crate) async fn run(mut self) {
        loop {
            let due = self.series.due();
            tokio::select! {
                recorded = self.inbox.next() => {
                    let Some(recorded) = recorded else { return };
                    if let Some(write) = self.series.take(recorded, Instant::now()) {
                        self.write(write).await;
                    }
                    self.inbox.done();
                }
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                    for write in self.series.end(Instant::now()) {
                        self.write(write).await;
                    }
                }
            }
        }
    }

    async fn write(&mut self, write: Write) {
        if self.paused_until.is_some_and(|until| Instant::now() < until) {
            debug!("event {} dropped: there was no permission a while ago", label(write.event()));
            self.series.forget(write.event());
            return;
        }
        match self.try_write(&write).await {
            End::Written => {
                self.paused_until = None;
                if let Some(duration) = self.forbidden.ends() {
                    info!("create events: permitted again after {:.1} s", duration.as_secs_f32());
                }
                return;
            }
            End::Dropped(failure) => debug!("event {} dropped: {failure}", label(write.event())),
            End::Forbidden(failure) => {
                let pause = self.server.timing().event_pause;
                self.paused_until = Some(Instant::now() + pause);
                if self.forbidden.begins() {
                    warn!(
                        "{} events: {failure}; no events are sent for {pause:?} (only `kubectl get events` shows less; the verbs create \
                         and patch on events of group events.k8s.io are needed, as ClusterRole system:node-proxier grants them)",
                        verb(&write)
                    );
                }
            }
        }
        self.series.forget(write.event());
    }

    async fn try_write(&self, write: &Write) -> End {
        let mut pause = self.server.timing().event_retry;
        for tries in 1.. {
            let failure = match self.send(write).await {
                Ok(()) => return End::Written,
                Err(failure) => failure,
            };
            match &failure {
                // An answer that was lost: it had been written.
                Failure::Refused { status: 409, .. } => return End::Written,
                Failure::Refused { status: 403, message, .. } if is_terminating(message) => return End::Dropped(failure),
                Failure::Refused { status: 403, .. } => return End::Forbidden(failure),
                Failure::Refused { status: 401, .. } => self.server.renew(true).await,
                Failure::Refused { status: 429 | 500.., .. } => {}
                Failure::Refused { .. } => return End::Dropped(failure),
                _ => {}
            }
            if tries == TRIES {
                return End::Dropped(failure);
            }
            sleep(pause).await;
            pause *= 2;
        }
        unreachable!("there is a last try")
    }

    /// A count is patched in; where the Event has expired, it is created anew with its count.
    async fn send(&self, write: &Write) -> Result<(), Failure> {
        let event = write.event();
        if let Write::Count(event) = write {
            match self.server.send_for_bytes(patch(event)?, Purpose::Write).await {
                Err(Failure::Refused { status: 404, .. }) => {}
                written => return written.map(drop),
            }
        }
        self.server.send_for_bytes(create(event)?, Purpose::Write).await.map(drop)
    }
}

fn requests(event: &Event) -> Requests {
    let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
    Requests::new(format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"))
}

fn create(event: &Event) -> Result<Request<Vec<u8>>, Failure> {
    let body = serde_json::to_vec(event)?;
    requests(event).create(&PostParams::default(), body).map_err(|e| Failure::Connection(e.to_string()))
}

fn patch(event: &Event) -> Result<Request<Vec<u8>>, Failure> {
    let series = Patch::Merge(json!({ "series": event.series }));
    let name = event.metadata.name.as_deref().unwrap_or_default();
    requests(event).patch(name, &PatchParams::default(), &series).map_err(|e| Failure::Connection(e.to_string()))
}

/// As RBAC calls what was tried.
fn verb(write: &Write) -> &'static str {
    match write {
        Write::Create(_) => "create",
        Write::Count(_) => "patch",
    }
}

/// Not for lack of a right: the namespace is being deleted.
fn is_terminating(message: &str) -> bool {
    message.contains("because it is being terminated")
}

fn label(event: &Event) -> String {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{} ({})", part(&event.metadata.namespace), part(&event.metadata.name), part(&event.reason))
}
