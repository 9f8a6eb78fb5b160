//! The proxy's metrics: one struct, one registry, methods named for what happened.
//!
//! `kubeproxy_*` keep kube-proxy's names, types, labels, buckets and meaning, so that dashboards and alerts
//! go on working (behaviour.md §6.1); `sluice_*` are our own. Series appear with their first use. No caller
//! sees a metric type or a label string, and nothing here is ever read back to decide something.

mod client;
mod identity;
mod repairs;
mod servers;
mod slis;
mod sources;

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family as Vector;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets, linear_buckets};
use prometheus_client::registry::{Metric, Registry};

use super::exposition;
pub use super::labels::{
    AuditResult, Code, DrainEnd, EventKind, NetlinkError, RepairCause, Table, TrafficPolicy, TransactionResult,
};
use super::labels::{ByCode, ByErrno, ByFamily, ByPolicy, ByResult, ByTable};
use super::process::Process;
use crate::net::Family;

type Counters<L> = Vector<L, Counter>;
type Counts<L> = Vector<L, Gauge<u64, AtomicU64>>;
type Timestamps = Vector<ByFamily, Gauge<f64, AtomicU64>>;
type Durations = Vector<ByFamily, Histogram>;

/// All metrics of the process. Shared behind an `Arc`; every method is cheap.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    syncs: Syncs,
    rules: Rules,
    changes: Changes,
    health: Answers,
    kernel: Kernel,
    sources: sources::Sources,
    client: client::Client,
    repairs: repairs::Repairs,
    servers: servers::Servers,
    packets: Arc<Packets>,
    features: identity::Features,
    slis: slis::Slis,
    started: f64,
}

/// How a scraper wants the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

/// Whether a sync looked at everything or at what had changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Full,
    Partial,
}

/// Packets the kernel counted for the rules that kube-proxy ties to an nfacct object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketCounters {
    pub invalid_dropped: u64,
    pub localhost_accepted: u64,
}

/// A transaction as it was handed to the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub result: TransactionResult,
    pub operations: u64,
    pub bytes: u64,
}

/// Measures one sync until it is dropped. A sync that was not said to have succeeded has failed.
#[derive(Debug)]
pub struct SyncTimer<'a> {
    metrics: &'a Metrics,
    label: ByFamily,
    scope: Scope,
    started: Instant,
    succeeded: bool,
}

#[derive(Debug)]
struct Syncs {
    duration: Durations,
    full_duration: Durations,
    partial_duration: Durations,
    last: Timestamps,
    last_queued: Timestamps,
    failures: Counters<ByFamily>,
    partial_failures: Counters<ByFamily>,
    programming: Durations,
    retries: Counters<ByFamily>,
}

#[derive(Debug)]
struct Rules {
    total: Counts<ByTable>,
    last: Counts<ByTable>,
    no_local_endpoints: Counts<ByPolicy>,
}

#[derive(Debug)]
struct Changes {
    endpoints: Counter,
    endpoints_pending: Gauge,
    services: Counter,
    services_pending: Gauge,
}

#[derive(Debug)]
struct Answers {
    healthz: Counters<ByCode>,
    livez: Counters<ByCode>,
}

#[derive(Debug)]
struct Kernel {
    transactions: Counters<ByResult>,
    operations: Counters<ByFamily>,
    bytes: Counters<ByFamily>,
    errors: Counters<ByErrno>,
    left_out: Counts<ByFamily>,
    conntrack_duration: Durations,
    conntrack_deleted: Counters<ByFamily>,
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let process = Process::read();
        let started = process.started;
        registry.register_collector(Box::new(process));
        let features = identity::register(&mut registry);
        let packets = Arc::new(Packets::default());
        registry.register_collector(Box::new(Arc::clone(&packets)));
        Self {
            syncs: Syncs::register(&mut registry),
            rules: Rules::register(&mut registry),
            changes: Changes::register(&mut registry),
            health: Answers::register(&mut registry),
            kernel: Kernel::register(&mut registry),
            sources: sources::Sources::register(&mut registry),
            client: client::Client::register(&mut registry),
            repairs: repairs::Repairs::register(&mut registry),
            servers: servers::Servers::register(&mut registry),
            packets,
            features,
            slis: slis::Slis::new(started),
            started,
            registry,
        }
    }

    /// All metrics as text. Fails when a metric cannot be written in the format, which is a mistake in it.
    pub fn encode(&self, format: Format) -> Result<String, fmt::Error> {
        written(&self.registry, format)
    }

    /// When the process started, in seconds since 1970.
    pub fn process_start(&self) -> f64 {
        self.started
    }

    /// A sync is wanted.
    pub fn sync_queued(&self, family: Family) {
        self.syncs.last_queued.get_or_create(&label(family)).set(now());
    }

    /// A sync begins; it lasts as long as the answer lives.
    pub fn sync_started(&self, family: Family, scope: Scope) -> SyncTimer<'_> {
        SyncTimer { metrics: self, label: label(family), scope, started: Instant::now(), succeeded: false }
    }

    /// A failed sync is tried again.
    pub fn sync_retried(&self, family: Family) {
        self.syncs.retries.get_or_create(&label(family)).inc();
    }

    /// A change of an EndpointSlice is in the kernel, this long after it was made.
    pub fn network_programmed(&self, family: Family, latency: Duration) {
        self.syncs.programming.get_or_create(&label(family)).observe(latency.as_secs_f64());
    }

    /// A change of an EndpointSlice waits for the next sync.
    pub fn endpoints_changed(&self) {
        self.changes.endpoints.inc();
        self.changes.endpoints_pending.inc();
    }

    /// A change of a Service waits for the next sync. kube-proxy counts one for each family of the node.
    pub fn service_changed(&self) {
        self.changes.services.inc();
        self.changes.services_pending.inc();
    }

    /// A sync takes all changes that were waiting.
    pub fn changes_taken(&self) {
        self.changes.endpoints_pending.set(0);
        self.changes.services_pending.set(0);
    }

    /// Rules we have in a table, and how many of them the last sync wrote.
    pub fn rules_counted(&self, family: Family, table: Table, total: u64, written: u64) {
        let label = ByTable { ip_family: family, table };
        self.rules.total.get_or_create(&label).set(total);
        self.rules.last.get_or_create(&label).set(written);
    }

    /// Service ports whose Local policy finds no endpoint on this node.
    pub fn without_local_endpoints(&self, family: Family, traffic_policy: TrafficPolicy, count: u64) {
        let label = ByPolicy { ip_family: family, traffic_policy };
        self.rules.no_local_endpoints.get_or_create(&label).set(count);
    }

    pub fn healthz_answered(&self, code: Code) {
        self.health.healthz.get_or_create(&ByCode { code }).inc();
    }

    pub fn livez_answered(&self, code: Code) {
        self.health.livez.get_or_create(&ByCode { code }).inc();
    }

    /// Stale tracked flows were looked for.
    pub fn conntrack_reconciled(&self, family: Family, duration: Duration, deleted: u64) {
        let label = label(family);
        self.kernel.conntrack_duration.get_or_create(&label).observe(duration.as_secs_f64());
        self.kernel.conntrack_deleted.get_or_create(&label).inc_by(deleted);
    }

    /// A transaction was sent; operations and bytes count whatever became of it.
    pub fn transaction_sent(&self, family: Family, sent: Sent) {
        self.kernel.transactions.get_or_create(&ByResult { ip_family: family, result: sent.result }).inc();
        self.kernel.operations.get_or_create(&label(family)).inc_by(sent.operations);
        self.kernel.bytes.get_or_create(&label(family)).inc_by(sent.bytes);
    }

    /// The kernel answered with an error.
    pub fn netlink_failed(&self, errno: i32) {
        self.kernel.errors.get_or_create(&ByErrno { errno: NetlinkError::from_errno(errno) }).inc();
    }

    /// Services whose rules the kernel refuses, and that are left out.
    pub fn services_left_out(&self, family: Family, count: u64) {
        self.kernel.left_out.get_or_create(&label(family)).set(count);
    }

    /// Where to read the packet counters at each scrape. Their two metrics appear with this; only the
    /// first call counts.
    pub fn collect_packets(&self, read: impl Fn() -> Option<PacketCounters> + Send + Sync + 'static) {
        // A second source would be a second proxy in this process, which the agent never starts.
        let _ = self.packets.0.set(Box::new(read));
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl SyncTimer<'_> {
    /// The sync did all it was to do.
    pub fn succeeded(mut self) {
        self.succeeded = true;
    }
}

impl Drop for SyncTimer<'_> {
    fn drop(&mut self) {
        let syncs = &self.metrics.syncs;
        let (scoped, failures) = match self.scope {
            Scope::Full => (&syncs.full_duration, &syncs.failures),
            Scope::Partial => (&syncs.partial_duration, &syncs.partial_failures),
        };
        let seconds = self.started.elapsed().as_secs_f64();
        syncs.duration.get_or_create(&self.label).observe(seconds);
        scoped.get_or_create(&self.label).observe(seconds);
        if self.succeeded {
            syncs.last.get_or_create(&self.label).set(now());
        } else {
            failures.get_or_create(&self.label).inc();
        }
    }
}

fn written(registry: &Registry, format: Format) -> Result<String, fmt::Error> {
    let mut openmetrics = String::new();
    text::encode(&mut openmetrics, registry)?;
    Ok(match format {
        Format::Prometheus => exposition::to_prometheus(&openmetrics),
        Format::OpenMetrics => openmetrics,
    })
}

fn label(ip_family: Family) -> ByFamily {
    ByFamily { ip_family }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// 1 ms to about 16 s, doubling.
fn sync_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// Fine up to a minute, coarse up to five.
fn programming_histogram() -> Histogram {
    let seconds = linear_buckets(1.0, 1.0, 59).chain(linear_buckets(60.0, 5.0, 12)).chain(linear_buckets(120.0, 30.0, 7));
    Histogram::new([0.25, 0.5].into_iter().chain(seconds))
}

fn durations(make: fn() -> Histogram) -> Durations {
    Vector::new_with_constructor(make)
}

/// Registers a metric of kube-proxy's. Counters are named without `_total`, which the format adds.
fn theirs<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(format!("kubeproxy_{name}"), format!("[ALPHA] {help}"), metric.clone());
    metric
}

fn ours<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(format!("sluice_{name}"), help, metric.clone());
    metric
}

impl Syncs {
    fn register(registry: &mut Registry) -> Self {
        let mut histogram = |name, help, make| theirs(registry, name, help, durations(make));
        let duration = histogram("sync_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds", sync_histogram);
        let full_duration = histogram(
            "sync_full_proxy_rules_duration_seconds",
            "SyncProxyRules latency in seconds for full resyncs",
            sync_histogram,
        );
        let partial_duration = histogram(
            "sync_partial_proxy_rules_duration_seconds",
            "SyncProxyRules latency in seconds for partial resyncs",
            sync_histogram,
        );
        let programming = histogram(
            "network_programming_duration_seconds",
            "In Cluster Network Programming Latency in seconds",
            programming_histogram,
        );
        let mut timestamp = |name, help| theirs(registry, name, help, Timestamps::default());
        let last = timestamp("sync_proxy_rules_last_timestamp_seconds", "The last time proxy rules were successfully synced");
        let last_queued =
            timestamp("sync_proxy_rules_last_queued_timestamp_seconds", "The last time a sync of proxy rules was queued");
        let mut counter = |name, help| theirs(registry, name, help, Counters::default());
        let failures = counter("sync_proxy_rules_iptables_restore_failures", "Cumulative proxy iptables restore failures");
        let partial_failures =
            counter("sync_proxy_rules_iptables_partial_restore_failures", "Cumulative proxy iptables partial restore failures");
        let retries = ours(registry, "sync_retries", "Syncs that were tried again after a failure");
        Self { duration, full_duration, partial_duration, last, last_queued, failures, partial_failures, programming, retries }
    }
}

impl Rules {
    fn register(registry: &mut Registry) -> Self {
        let total = "Total number of iptables rules owned by kube-proxy";
        let last = "Number of iptables rules written by kube-proxy in last sync";
        let no_local = "Number of services with a Local traffic policy and no endpoints";
        Self {
            total: theirs(registry, "sync_proxy_rules_iptables_total", total, Counts::default()),
            last: theirs(registry, "sync_proxy_rules_iptables_last", last, Counts::default()),
            no_local_endpoints: theirs(registry, "sync_proxy_rules_no_local_endpoints_total", no_local, Counts::default()),
        }
    }
}

impl Changes {
    fn register(registry: &mut Registry) -> Self {
        let name = |rest: &str| format!("sync_proxy_rules_{rest}");
        let mut counter = |rest, help| theirs(registry, &name(rest), help, Counter::default());
        let endpoints = counter("endpoint_changes", "Cumulative proxy rules Endpoint changes");
        let services = counter("service_changes", "Cumulative proxy rules Service changes");
        let mut gauge = |rest, help| theirs(registry, &name(rest), help, Gauge::default());
        let endpoints_pending = gauge("endpoint_changes_pending", "Pending proxy rules Endpoint changes");
        let services_pending = gauge("service_changes_pending", "Pending proxy rules Service changes");
        Self { endpoints, endpoints_pending, services, services_pending }
    }
}

impl Answers {
    fn register(registry: &mut Registry) -> Self {
        let mut counter = |name, help| theirs(registry, name, help, Counters::default());
        let healthz = counter("proxy_healthz", "Cumulative proxy healthz HTTP status");
        let livez = counter("proxy_livez", "Cumulative proxy livez HTTP status");
        Self { healthz, livez }
    }
}

impl Kernel {
    fn register(registry: &mut Registry) -> Self {
        let duration = "ReconcileConntrackFlowsLatency latency in seconds";
        let deleted = "Cumulative conntrack flows deleted by conntrack reconciler";
        let histogram = durations(sync_histogram);
        let counters = Counters::default();
        Self {
            transactions: ours(registry, "transactions", "Transactions sent to the kernel"),
            operations: ours(registry, "operations", "Operations in the transactions sent to the kernel"),
            bytes: ours(registry, "transaction_bytes", "Bytes of the transactions sent to the kernel"),
            errors: ours(registry, "netlink_errors", "Errors the kernel answered with"),
            left_out: ours(registry, "services_left_out", "Services whose rules the kernel refuses"),
            conntrack_duration: theirs(registry, "conntrack_reconciler_sync_duration_seconds", duration, histogram),
            conntrack_deleted: theirs(registry, "conntrack_reconciler_deleted_entries", deleted, counters),
        }
    }
}

type ReadPackets = Box<dyn Fn() -> Option<PacketCounters> + Send + Sync>;

/// Collects the packet counters at each scrape, once it is known where from.
#[derive(Default)]
struct Packets(OnceLock<ReadPackets>);

impl fmt::Debug for Packets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packets").finish_non_exhaustive()
    }
}

impl Collector for Packets {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Some(packets) = self.0.get().and_then(|read| read()) else { return Ok(()) };
        let invalid = "[ALPHA] packets dropped by iptables to work around conntrack problems.";
        let localhost = "[ALPHA] Number of packets accepted on nodeports of loopback interface.";
        for (name, help, value) in [
            ("kubeproxy_iptables_ct_state_invalid_dropped_packets", invalid, packets.invalid_dropped),
            ("kubeproxy_iptables_localhost_nodeports_accepted_packets", localhost, packets.localhost_accepted),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The announcements and samples of kube-proxy's own metrics, with every number made `_`.
    fn shape(text: &str) -> Vec<String> {
        let relevant = |line: &&str| line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ").starts_with("kubeproxy_");
        let mut lines: Vec<_> = text.lines().filter(relevant).map(without_value).collect();
        lines.sort();
        lines
    }

    fn without_value(line: &str) -> String {
        if line.starts_with('#') {
            return line.into();
        }
        let (sample, _) = line.rsplit_once(' ').unwrap();
        format!("{sample} _")
    }

    /// The `kubeproxy_` lines of a kube-proxy 1.36.2 in iptables mode with six Services.
    const CAPTURE: &str = include_str!("../../tests/serve/kube-proxy-metrics.txt");

    #[test]
    fn names_types_labels_buckets_and_help_are_kube_proxys() {
        let metrics = Metrics::new();
        metrics.collect_packets(|| Some(PacketCounters::default()));
        for family in Family::ALL {
            metrics.sync_queued(family);
            metrics.sync_started(family, Scope::Full).succeeded();
            for policy in [TrafficPolicy::Internal, TrafficPolicy::External] {
                metrics.without_local_endpoints(family, policy, 0);
            }
            for table in [Table::Filter, Table::Nat] {
                metrics.rules_counted(family, table, 84, 9);
            }
        }
        metrics.conntrack_reconciled(Family::Ipv4, Duration::from_millis(9), 0);
        metrics.healthz_answered(Code::Ok);
        metrics.livez_answered(Code::Ok);
        assert_eq!(shape(CAPTURE).len(), 149, "lines in the capture");
        assert_eq!(shape(&metrics.encode(Format::Prometheus).unwrap()).join("\n"), shape(CAPTURE).join("\n"));
    }

    fn value(metrics: &Metrics, sample: &str) -> Option<String> {
        let text = metrics.encode(Format::Prometheus).unwrap();
        text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ').map(Into::into))
    }

    #[test]
    fn vectors_show_nothing_before_their_first_use() {
        let text = Metrics::new().encode(Format::Prometheus).unwrap();
        assert!(!text.contains("ip_family"), "{text}");
        assert!(!text.contains("kubeproxy_iptables_ct_state_invalid_dropped_packets_total"), "{text}");
        assert!(text.contains("\nkubeproxy_sync_proxy_rules_service_changes_total 0\n"), "{text}");
        assert!(text.contains(concat!("sluice_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1\n")), "{text}");
    }

    #[test]
    fn a_sync_that_ends_early_has_failed() {
        let metrics = Metrics::new();
        drop(metrics.sync_started(Family::Ipv6, Scope::Partial));
        metrics.sync_started(Family::Ipv6, Scope::Full).succeeded();
        let sample = |name: &str| value(&metrics, &format!("kubeproxy_sync_{name}{{ip_family=\"IPv6\"}}"));
        assert_eq!(sample("proxy_rules_duration_seconds_count").as_deref(), Some("2"));
        assert_eq!(sample("partial_proxy_rules_duration_seconds_count").as_deref(), Some("1"));
        assert_eq!(sample("full_proxy_rules_duration_seconds_count").as_deref(), Some("1"));
        assert_eq!(sample("proxy_rules_iptables_partial_restore_failures_total").as_deref(), Some("1"));
        assert_eq!(sample("proxy_rules_iptables_restore_failures_total"), None);
        assert!(sample("proxy_rules_last_timestamp_seconds").unwrap().parse::<f64>().unwrap() > 1.7e9);
    }

    #[test]
    fn pending_changes_are_counted_until_a_sync_takes_them() {
        let metrics = Metrics::new();
        metrics.endpoints_changed();
        metrics.service_changed();
        metrics.service_changed();
        assert_eq!(value(&metrics, "kubeproxy_sync_proxy_rules_service_changes_pending").as_deref(), Some("2"));
        metrics.changes_taken();
        for (name, count) in [("service_changes_pending", "0"), ("service_changes_total", "2"), ("endpoint_changes_total", "1")] {
            assert_eq!(value(&metrics, &format!("kubeproxy_sync_proxy_rules_{name}")).as_deref(), Some(count), "{name}");
        }
    }

    #[test]
    fn our_own_metrics_have_closed_labels() {
        let metrics = Metrics::new();
        metrics.transaction_sent(Family::Ipv4, Sent { result: TransactionResult::Refused, operations: 3, bytes: 400 });
        for errno in [105, 16, 9999, -1] {
            metrics.netlink_failed(errno);
        }
        metrics.event_received(EventKind::EndpointSlice);
        metrics.sync_retried(Family::Ipv4);
        for (sample, count) in [
            (r#"transactions_total{ip_family="IPv4",result="refused"}"#, "1"),
            (r#"operations_total{ip_family="IPv4"}"#, "3"),
            (r#"transaction_bytes_total{ip_family="IPv4"}"#, "400"),
            (r#"netlink_errors_total{errno="ENOBUFS"}"#, "1"),
            (r#"netlink_errors_total{errno="EBUSY"}"#, "1"),
            (r#"netlink_errors_total{errno="other"}"#, "2"),
            (r#"events_total{kind="endpoint_slice"}"#, "1"),
            (r#"sync_retries_total{ip_family="IPv4"}"#, "1"),
        ] {
            assert_eq!(value(&metrics, &format!("sluice_{sample}")).as_deref(), Some(count), "{sample}");
        }
    }

    #[test]
    fn the_programming_latency_has_kube_proxys_buckets() {
        let metrics = Metrics::new();
        metrics.network_programmed(Family::Ipv4, Duration::from_secs(70));
        let text = metrics.encode(Format::Prometheus).unwrap();
        let bounds: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("kubeproxy_network_programming_duration_seconds_bucket"))
            .filter_map(|line| line.split("le=\"").nth(1)?.split('"').next())
            .collect();
        assert_eq!(
            (bounds.len(), bounds[..4].join(" "), bounds[60..].join(" ")),
            (81, "0.25 0.5 1 2".into(), "59 60 65 70 75 80 85 90 95 100 105 110 115 120 150 180 210 240 270 300 +Inf".into())
        );
    }
}
