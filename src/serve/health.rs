//! Whether the proxy does its work, as load balancers and the kubelet ask it on `/healthz` and `/livez`.
//!
//! The verdicts and the JSON are kube-proxy's (behaviour.md §6.2). Nothing here listens or waits: the
//! clock is handed in, and the lock is held only to copy a few words.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use jiff::Timestamp;
use serde::Serialize;

use crate::model::Node;
use crate::net::{Family, PerFamily};

/// Go's zero time, which kube-proxy shows for an update that never was.
const NEVER: Timestamp = Timestamp::constant(-62_135_596_800, 0);

/// A moment on both clocks: verdicts follow the steady one, people read the other.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub steady: Instant,
    pub wall: Timestamp,
}

impl Now {
    pub fn read() -> Self {
        Self { steady: Instant::now(), wall: Timestamp::now() }
    }
}

/// The proxy's health, shared by those who report to it and those who answer from it.
#[derive(Clone)]
pub struct Health(Arc<Inner>);

struct Inner {
    /// How long a queued sync may stay unfinished.
    patience: Duration,
    clock: Box<dyn Fn() -> Now + Send + Sync>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    families: PerFamily<Progress>,
    node_eligible: bool,
    shutting_down: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// Since when a sync is wanted and none has succeeded.
    waiting_since: Option<Instant>,
    updated: Option<Timestamp>,
}

/// An answer to a health question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    pub body: String,
}

/// The body's fields in kube-proxy's order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: Timestamp,
    current_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "Families::is_empty")]
    status: Families,
}

#[derive(Clone, Copy, Serialize)]
struct Families {
    #[serde(rename = "IPv4", skip_serializing_if = "Option::is_none")]
    v4: Option<FamilyBody>,
    #[serde(rename = "IPv6", skip_serializing_if = "Option::is_none")]
    v6: Option<FamilyBody>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: Timestamp,
    healthy: bool,
}

impl Health {
    /// `sync_period` is the configured longest time between syncs. A family is unhealthy when a sync
    /// was queued twice that long ago and none has succeeded since.
    pub fn new(sync_period: Duration) -> Self {
        Self::with_clock(sync_period, Now::read)
    }

    pub fn with_clock(sync_period: Duration, clock: impl Fn() -> Now + Send + Sync + 'static) -> Self {
        let state = Mutex::default();
        Self(Arc::new(Inner { patience: sync_period.saturating_mul(2), clock: Box::new(clock), state }))
    }

    /// A sync of `family` is wanted. The oldest wish counts, so that failing syncs cannot renew it.
    pub fn queued(&self, family: Family) {
        let now = self.now().steady;
        self.state().families[family].waiting_since.get_or_insert(now);
    }

    /// A sync of `family` succeeded.
    pub fn updated(&self, family: Family) {
        let now = self.now().wall;
        self.state().families[family] = Progress { waiting_since: None, updated: Some(now) };
    }

    /// What is known of the Node. Before the first one the node takes no traffic; one that is deleted
    /// (`None`) leaves the last answer standing, as in kube-proxy.
    pub fn set_node(&self, node: Option<&Node>) {
        if let Some(node) = node {
            self.state().node_eligible = !node.leaving;
        }
    }

    /// From now on `/healthz` sends load balancers away, until the process ends.
    pub fn begin_shutdown(&self) {
        self.state().shutting_down = true;
    }

    /// Whether every family's rules follow what is wanted. True before the first sync.
    pub fn healthy(&self) -> bool {
        let now = self.now();
        self.families_healthy(&self.state(), now)
    }

    /// Should this node be sent traffic?
    pub fn healthz(&self) -> Answer {
        let now = self.now();
        let state = self.state();
        let healthy = self.families_healthy(&state, now) && !state.shutting_down;
        let good = healthy && state.node_eligible;
        Body { node_eligible: Some(state.node_eligible), healthy, ..self.body(&state, now, good) }.answer(good)
    }

    /// Does this process work? The kubelet restarts it if not, so neither the Node nor our own end counts.
    pub fn livez(&self) -> Answer {
        let now = self.now();
        let state = self.state();
        let healthy = self.families_healthy(&state, now);
        self.body(&state, now, healthy).answer(healthy)
    }

    fn body(&self, state: &State, now: Now, good: bool) -> Body {
        let newest = Family::ALL.into_iter().filter_map(|family| state.families[family].updated).max();
        Body {
            // A good answer speaks of this very moment; a bad one of the last time all was well.
            last_updated: if good { now.wall } else { newest.unwrap_or(NEVER) },
            current_time: now.wall,
            node_eligible: None,
            healthy: self.families_healthy(state, now),
            status: Families {
                v4: state.families.v4.body(now.steady, self.0.patience),
                v6: state.families.v6.body(now.steady, self.0.patience),
            },
        }
    }

    fn families_healthy(&self, state: &State, now: Now) -> bool {
        Family::ALL.into_iter().all(|family| state.families[family].healthy(now.steady, self.0.patience))
    }

    fn now(&self) -> Now {
        (self.0.clock)()
    }

    /// The state is a few independent words, so a panic elsewhere cannot have left it half changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").field("state", &*self.state()).finish_non_exhaustive()
    }
}

impl Progress {
    fn healthy(&self, now: Instant, patience: Duration) -> bool {
        self.waiting_since.is_none_or(|since| now.saturating_duration_since(since) < patience)
    }

    /// `None` for a family nobody ever asked for: one the node does not have.
    fn body(&self, now: Instant, patience: Duration) -> Option<FamilyBody> {
        (self.waiting_since.is_some() || self.updated.is_some())
            .then(|| FamilyBody { last_updated: self.updated.unwrap_or(NEVER), healthy: self.healthy(now, patience) })
    }
}

impl Families {
    fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }
}

impl Body {
    fn answer(&self, good: bool) -> Answer {
        let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let body = serde_json::to_string(self).expect("a struct of strings and booleans is always JSON");
        Answer { status, body }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(30);

    /// A health whose clock the test moves.
    struct Lab {
        health: Health,
        now: Arc<Mutex<Now>>,
    }

    impl Lab {
        fn new() -> Self {
            let start = Now { steady: Instant::now(), wall: "2026-11-22T03:25:12.5Z".parse().unwrap() };
            let now = Arc::new(Mutex::new(start));
            let shared = Arc::clone(&now);
            Self { health: Health::with_clock(PERIOD, move || *shared.lock().unwrap()), now }
        }

        fn pass(&self, time: Duration) {
            let mut now = self.now.lock().unwrap();
            *now = Now { steady: now.steady + time, wall: now.wall + time };
        }
    }

    fn node(leaving: bool) -> Node {
        Node { leaving, ..Node::default() }
    }

    #[test]
    fn start_up_is_healthy_but_an_unknown_node_takes_no_traffic() {
        let lab = Lab::new();
        lab.pass(PERIOD * 10);
        assert!(lab.health.healthy());
        let body = r#"{"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"2026-11-22T03:30:12.5Z","nodeEligible":false,"healthy":true}"#;
        assert_eq!(lab.health.healthz(), Answer { status: StatusCode::SERVICE_UNAVAILABLE, body: body.into() });
        let body = r#"{"lastUpdated":"2026-11-22T03:30:12.5Z","currentTime":"2026-11-22T03:30:12.5Z","healthy":true}"#;
        assert_eq!(lab.health.livez(), Answer { status: StatusCode::OK, body: body.into() });
    }

    #[test]
    fn a_family_is_unhealthy_from_two_periods_after_its_oldest_unfinished_sync() {
        let lab = Lab::new();
        lab.health.queued(Family::Ipv4);
        lab.pass(PERIOD);
        lab.health.queued(Family::Ipv4);
        lab.pass(Duration::from_nanos(29_999_999_999));
        assert!(lab.health.healthy());
        lab.pass(Duration::from_nanos(1));
        assert!(!lab.health.healthy());
        lab.health.updated(Family::Ipv6);
        assert!(!lab.health.healthy(), "the other family does not help");
        lab.health.updated(Family::Ipv4);
        assert!(lab.health.healthy());
        lab.pass(PERIOD * 10);
        assert!(lab.health.healthy(), "idle is healthy");
    }

    #[test]
    fn bodies_tell_the_request_time_when_good_and_the_newest_update_when_not() {
        let lab = Lab::new();
        lab.health.set_node(Some(&node(false)));
        lab.health.updated(Family::Ipv4);
        lab.pass(Duration::from_millis(75));
        lab.health.updated(Family::Ipv6);
        lab.health.queued(Family::Ipv4);
        lab.pass(Duration::from_millis(425));
        let good = r#"{"lastUpdated":"2026-11-22T03:25:13Z","currentTime":"2026-11-22T03:25:13Z","nodeEligible":true,"healthy":true,"status":{"IPv4":{"lastUpdated":"2026-11-22T03:25:12.5Z","healthy":true},"IPv6":{"lastUpdated":"2026-11-22T03:25:12.575Z","healthy":true}}}"#;
        assert_eq!(lab.health.healthz(), Answer { status: StatusCode::OK, body: good.into() });
        lab.pass(PERIOD * 2);
        let bad = r#"{"lastUpdated":"2026-11-22T03:25:12.575Z","currentTime":"2026-11-22T03:26:13Z","healthy":false,"status":{"IPv4":{"lastUpdated":"2026-11-22T03:25:12.5Z","healthy":false},"IPv6":{"lastUpdated":"2026-11-22T03:25:12.575Z","healthy":true}}}"#;
        assert_eq!(lab.health.livez(), Answer { status: StatusCode::SERVICE_UNAVAILABLE, body: bad.into() });
    }

    #[test]
    fn a_queued_family_appears_before_its_first_update() {
        let lab = Lab::new();
        lab.health.queued(Family::Ipv6);
        let body = lab.health.livez().body;
        assert!(body.ends_with(r#","status":{"IPv6":{"lastUpdated":"0001-01-01T00:00:00Z","healthy":true}}}"#), "{body}");
    }

    #[test]
    fn a_leaving_node_takes_no_traffic_and_a_deleted_one_keeps_its_last_answer() {
        let lab = Lab::new();
        lab.health.set_node(Some(&node(false)));
        lab.health.set_node(None);
        assert_eq!(lab.health.healthz().status, StatusCode::OK);
        lab.health.set_node(Some(&node(true)));
        lab.health.set_node(None);
        assert_eq!(lab.health.healthz().status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(lab.health.livez().status, StatusCode::OK);
    }

    #[test]
    fn from_the_signal_on_healthz_sends_load_balancers_away() {
        let lab = Lab::new();
        lab.health.set_node(Some(&node(false)));
        lab.health.begin_shutdown();
        assert_eq!(lab.health.healthz().status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(lab.health.livez().status, StatusCode::OK, "the kubelet must not count it as a failure");
        assert!(lab.health.healthy(), "the rules stay, so service health checks do not change");
    }
}
