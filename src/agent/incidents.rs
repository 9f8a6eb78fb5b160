//! What of this process the cluster hears of: which incidents there are, in kube-proxy's words (behaviour.md §7.4), and
//! whom they are about.
//!
//! `IPVSDeprecation` is not among them: here ipvs mode stays.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::config::{Config, Source};
use crate::serve::http::{self, BindFailure};
use crate::serve::service_health::Failure;
use crate::source::recorder::{Inbox, Incident, Recorder, Severity};
use crate::sysctl::Root;

/// What was done when the node's own incidents happened.
const START: &str = "StartKubeProxy";
/// How often what stays wrong is told of again: the API server forgets an Event after an hour.
pub const REPEAT: Duration = Duration::from_mins(5);

/// How long a process that cannot go on waits for what it told the API server about that.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A recorder where there is an API server, and a process that lives long enough to tell it anything.
pub fn recorder(config: &Config) -> (Recorder, Inbox) {
    let (heard, inbox) = Recorder::new();
    let has_listener = matches!(config.source, Source::Api { .. }) && !config.once;
    (if has_listener { heard } else { Recorder::deaf() }, inbox)
}

/// The name this machine has itself, which need not be the node's.
pub fn host_name(config: &Config) -> String {
    Root::default().sysctl("kernel.hostname").unwrap_or_else(|_| config.node_name.to_string())
}

/// The first lists are in, and rules are about to be programmed.
pub fn starting(node: &str) -> Incident {
    of_node(node, Severity::Normal, "Starting", String::new())
}

/// The process ends with an error. kube-proxy ends before anybody hears why.
pub async fn last_words(node: &str, error: &anyhow::Error, recorder: &Recorder) {
    if let Some(http::Error::Bind { server, address, source }) = error.downcast_ref() {
        let failure = BindFailure { server, address: *address, cause: source.to_string() };
        if let Some(incident) = not_listening(node, &failure) {
            recorder.record(incident);
        }
    }
    recorder.settle(LAST_WORDS).await;
}

/// A server cannot listen on its address; `None`: one of which the cluster does not hear.
pub fn not_listening(node: &str, failure: &BindFailure) -> Option<Incident> {
    let (reason, what) = match failure.server {
        "health" => ("FailedToStartProxierHealthcheck", "failed to start proxy healthz on"),
        "metrics" => ("FailedToStartMetricServer", "starting metrics server failed: listen on"),
        _ => return None,
    };
    let BindFailure { address, cause, .. } = failure;
    Some(of_node(node, Severity::Warning, reason, format!("{what} {address}: {cause}")))
}

fn of_node(name: &str, severity: Severity, reason: &'static str, note: String) -> Incident {
    let regarding = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(name.into()),
        ..ObjectReference::default()
    };
    Incident { regarding, severity, reason, action: START, note }
}

/// The health check port of a Service cannot be opened.
pub fn port_closed(node: &str, failure: &Failure) -> Incident {
    let Failure { service, port, cause } = failure;
    let regarding = ObjectReference {
        kind: Some("Service".into()),
        namespace: Some(service.namespace().into()),
        name: Some(service.name().into()),
        // Not the object's, but what kube-proxy puts there.
        uid: Some(service.to_string()),
        ..ObjectReference::default()
    };
    Incident {
        regarding,
        severity: Severity::Warning,
        reason: "FailedToStartServiceHealthcheck",
        action: "Listen",
        note: format!("node {node} failed to start healthcheck \"{service}\" on port {port}: {cause}"),
    }
}

/// Records what is wrong: what is new at once, what stays so every `period`.
pub async fn report<T>(
    mut state: watch::Receiver<T>,
    wrong: impl Fn(&T) -> Vec<Incident>,
    recorder: Recorder,
    period: Duration,
) -> anyhow::Result<()> {
    let mut told: Vec<Incident> = Vec::new();
    let mut repeat = Instant::now() + period;
    loop {
        let current = wrong(&state.borrow_and_update());
        if Instant::now() >= repeat {
            repeat = Instant::now() + period;
            told.clear();
        }
        current.iter().filter(|incident| !told.contains(incident)).for_each(|incident| recorder.record(incident.clone()));
        told = current;
        tokio::select! {
            // Whoever is reported of ends with the process, or has nothing more to say.
            changed = state.changed() => if changed.is_err() { std::future::pending().await },
            () = sleep_until(repeat) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn servers_are_told_apart_by_name() {
        let address = SocketAddr::from(([127, 0, 0, 1], 10256));
        let failure = |server| BindFailure { server, address, cause: "address in use".into() };
        let told = |server| not_listening("n", &failure(server)).map(|told| (told.reason, told.action, told.note));
        let health =
            ("FailedToStartProxierHealthcheck", START, "failed to start proxy healthz on 127.0.0.1:10256: address in use");
        assert_eq!(told("health"), Some((health.0, health.1, health.2.to_owned())));
        assert_eq!(told("metrics").unwrap().0, "FailedToStartMetricServer");
        assert_eq!(told("another"), None);
    }

    #[tokio::test]
    async fn what_stays_wrong_is_told_now_and_then_and_what_is_new_at_once() {
        let (recorder, mut inbox) = Recorder::new();
        let (ports, state) = watch::channel(Vec::new());
        let wrong = |ports: &Vec<u16>| ports.iter().map(|p| of_node("n", Severity::Warning, "R", p.to_string())).collect();
        tokio::spawn(report(state, wrong, recorder, Duration::from_secs(2)));
        let mut told = async |number| {
            let mut notes = Vec::new();
            for _ in 0..number {
                notes.push(inbox.next().await.expect("an incident").incident.note);
            }
            notes.join(" ")
        };
        ports.send_replace(vec![1, 2]);
        assert_eq!(told(2).await, "1 2");
        ports.send_replace(vec![2, 3]);
        assert_eq!(told(1).await, "3");
        assert_eq!(told(2).await, "2 3", "both are still closed");
        ports.send_replace(vec![3, 4]);
        assert_eq!(told(1).await, "4");
        ports.send_replace(vec![2, 3, 4]);
        assert_eq!(told(1).await, "2", "it was open in between");
    }
}
