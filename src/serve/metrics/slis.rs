//! `/metrics/slis`: what became of the checks behind `/healthz`, apart from the other metrics, as every component of
//! Kubernetes has it.

use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Vector;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Format, Metrics, written};

#[derive(Debug)]
pub(super) struct Slis {
    registry: Registry,
    last: Vector<ByCheck, Gauge>,
    results: Vector<ByResult, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCheck {
    name: &'static str,
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    name: &'static str,
    status: &'static str,
    r#type: &'static str,
}

const NAME: &str = "ping";
const TYPE: &str = "healthz";

impl Metrics {
    /// The only check of `/healthz`, which cannot fail, was asked for.
    pub fn health_checked(&self) {
        self.slis.last.get_or_create(&ByCheck { name: NAME, r#type: TYPE }).set(1);
        self.slis.results.get_or_create(&ByResult { name: NAME, status: "success", r#type: TYPE }).inc();
    }

    /// What `/metrics/slis` shows. Fails as [`encode`](Self::encode) does.
    pub fn encode_slis(&self, format: Format) -> Result<String, fmt::Error> {
        written(&self.slis.registry, format)
    }
}

impl Slis {
    pub(super) fn new(started: f64) -> Self {
        let mut registry = Registry::default();
        let (last, results) = (Vector::default(), Vector::default());
        let help = "[STABLE] This metric records the result of a single healthcheck.";
        registry.register("kubernetes_healthcheck", help, last.clone());
        registry.register(
            "kubernetes_healthchecks",
            "[STABLE] This metric records the results of all healthcheck.",
            results.clone(),
        );
        let start = Gauge::<f64, AtomicU64>::default();
        start.set(started);
        let help = "[ALPHA] Start time of the process since unix epoch in seconds.";
        registry.register("process_start_time_seconds", help, start);
        Self { registry, last, results }
    }
}
