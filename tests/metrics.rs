//! All metrics at once, every one in use: well formed, no more of them whatever happens in the cluster, and those that the
//! chart's dashboard and alerts ask for.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "serve/client.rs"]
mod client;
#[path = "serve/pages.rs"]
mod pages;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use client::{get, request};
use pages::{pages, start_pages};
use serde_json::Value;
use sluice::model::Size;
use sluice::net::{Family, PerFamily};
use sluice::serve::Metrics;
use sluice::serve::metrics::{
    AuditResult, Code, DrainEnd, EventKind, Format, PacketCounters, RepairCause, Scope, Sent, Table, TrafficPolicy,
    TransactionResult,
};

/// Everything that can happen, with this number wherever there is one.
fn everything(metrics: &Metrics, number: u32) {
    for family in Family::ALL {
        of_family(metrics, family, number);
    }
    metrics.endpoints_changed();
    metrics.service_changed();
    metrics.changes_taken();
    for code in [Code::Ok, Code::Unavailable] {
        metrics.healthz_answered(code);
        metrics.livez_answered(code);
    }
    metrics.netlink_failed(i32::try_from(number).unwrap());
    for method in ["GET", "POST", "PATCH"] {
        metrics.request_ended("192.0.2.1:6443", method, Some(200), Some(Duration::from_millis(number.into())));
    }
    for kind in [EventKind::Service, EventKind::EndpointSlice, EventKind::Node, EventKind::Addresses] {
        metrics.event_received(kind);
    }
    let many = number as usize;
    metrics.model_sized(Size { services: many, slices: many, endpoints: PerFamily { v4: many, v6: many } });
    metrics.notifications_lost();
    metrics.feature("AllowServiceExternalIPs", "", number.is_multiple_of(2));
}

fn of_family(metrics: &Metrics, family: Family, number: u32) {
    let (many, time) = (u64::from(number), Duration::from_millis(number.into()));
    metrics.sync_queued(family);
    for scope in [Scope::Full, Scope::Partial] {
        metrics.sync_started(family, scope).succeeded();
        drop(metrics.sync_started(family, scope));
    }
    metrics.sync_retried(family);
    metrics.network_programmed(family, time);
    for table in [Table::Filter, Table::Nat] {
        metrics.rules_counted(family, table, many, many);
    }
    for policy in [TrafficPolicy::Internal, TrafficPolicy::External] {
        metrics.without_local_endpoints(family, policy, many);
    }
    metrics.conntrack_reconciled(family, time, many);
    for result in [TransactionResult::Committed, TransactionResult::Refused, TransactionResult::Failed] {
        metrics.transaction_sent(family, Sent { result, operations: many, bytes: many });
    }
    metrics.services_left_out(family, many);
    metrics.drift_watched(family);
    metrics.drift_notified(family, many);
    for cause in [RepairCause::Audit, RepairCause::Notification, RepairCause::LostNotifications] {
        metrics.repaired(family, cause, many, time);
    }
    metrics.repairs_slowed(family, true);
    for result in [AuditResult::Unchanged, AuditResult::Clean, AuditResult::Repaired, AuditResult::Failed] {
        metrics.audited(family, result);
    }
    metrics.servers_kept(family);
    metrics.node_operations_sent(family, many, many);
    metrics.servers_counted(family, many, many, many);
    for end in [DrainEnd::Finished, DrainEnd::Expired] {
        metrics.drained(family, end, many);
    }
}

fn in_use() -> Metrics {
    let metrics = Metrics::new();
    metrics.collect_packets(|| Some(PacketCounters::default()));
    everything(&metrics, 105);
    metrics
}

/// The names that are announced, and those that have a sample.
fn names(openmetrics: &str) -> [BTreeSet<&str>; 2] {
    let (mut announced, mut used, mut current) = (BTreeSet::new(), BTreeSet::new(), "");
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            current = rest.split(' ').next().unwrap();
            announced.insert(current);
        } else if !line.starts_with('#') {
            assert!(line.starts_with(current), "{line} under {current}");
            used.insert(current);
        }
    }
    [announced, used]
}

#[test]
fn every_metric_is_used_here() {
    let text = in_use().encode(Format::OpenMetrics).unwrap();
    let [announced, used] = names(&text);
    assert_eq!(announced, used, "what is missing on the right is not in `everything`");
    assert!(announced.len() > 50, "{}", announced.len());
}

#[test]
fn every_metric_stands_in_the_operations() {
    let text = in_use().encode(Format::Prometheus).unwrap();
    let is_documented = |name: &&str| name.starts_with("sluice_") || name.starts_with("kubeproxy_");
    let there: BTreeSet<_> = names(&text)[0].iter().copied().filter(is_documented).collect();
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
    let named = document.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    assert_eq!(named.filter(is_documented).collect::<BTreeSet<_>>(), there);
}

#[tokio::test]
async fn metrics_are_well_formed() {
    let server = start_pages(pages(Arc::new(in_use()))).await;
    let text = get(server.address, "/metrics").await.body;
    client::check_exposition(&text);
    client::promtool(&text);
    client::promtool(&get(server.address, "/metrics/slis").await.body);
    let accept = "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2\r\n";
    let answer = request(server.address, "/metrics", accept).await;
    assert!(answer.headers["Content-Type"].starts_with("application/openmetrics-text; version=1.0.0;"));
    assert!(
        answer.body.ends_with("# EOF\n") && answer.body.contains("\n# TYPE kubeproxy_sync_proxy_rules_service_changes counter\n")
    );
}

#[test]
fn help_says_something_and_not_the_same_of_two() {
    let text = in_use().encode(Format::Prometheus).unwrap();
    let mut seen = BTreeSet::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let (name, help) = line.split_once(' ').unwrap_or((line, ""));
        let words = help.trim_start_matches("[ALPHA] ").split(' ').count();
        assert!(words >= 2 && !help.ends_with(' '), "{name}: {help:?}");
        assert!(seen.insert(help), "{name}: {help:?} is another's");
    }
}

/// The labels that each series has, and those that Prometheus puts on all.
fn labels(text: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut series = BTreeMap::<_, BTreeSet<_>>::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap());
        let own =
            rest.split_once('}').map_or("", |(labels, _)| &labels[1..]).split("\",").filter_map(|label| label.split_once('='));
        series.entry(name).or_default().extend(own.map(|(label, _)| label).chain(["job", "instance"]));
    }
    series.insert("up", BTreeSet::from(["job", "instance"]));
    series
}

/// The words of a query that stand before `{`: its series.
fn series_of(query: &str) -> impl Iterator<Item = &str> {
    let word = |part: &str| part.rfind(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').map_or(0, |at| at + 1);
    let before = query.match_indices('{').map(|(at, _)| &query[..at]);
    before.map(move |part| &part[word(part)..])
}

/// The labels that a query and its legend name: in `{}`, in `by ()` and `on ()`, and in `{{}}`.
fn labels_of<'a>(query: &'a str, legend: &'a str) -> BTreeSet<&'a str> {
    let matched = query.split('{').skip(1).map(|rest| rest.split('}').next().unwrap()).flat_map(|inner| inner.split(','));
    let matched = matched.map(|matcher| matcher.split(['=', '!']).next().unwrap());
    let grouped = ["by (", "on ("].into_iter().flat_map(|word| query.split(word).skip(1));
    let grouped = grouped.flat_map(|rest| rest.split(')').next().unwrap().split(','));
    let told = legend.split("{{").skip(1).map(|rest| rest.split("}}").next().unwrap().trim().trim_start_matches("$labels."));
    matched.chain(grouped).chain(told.filter(|word| !word.starts_with('$'))).map(str::trim).collect()
}

/// Queries with what is told of their results: of the dashboard's panels, and of the alerts.
fn queries() -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let dashboard: Value = serde_json::from_str(include_str!("../charts/sluice/dashboards/sluice.json")).unwrap();
    let targets = dashboard["panels"].as_array().unwrap().iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let targets = targets.map(|target| (text(&target["expr"]), text(&target["legendFormat"])));
    let alerts: Value = serde_norway::from_str(include_str!("../charts/sluice/alerts.yaml")).unwrap();
    let rules = alerts["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap());
    let rules = rules.map(|rule| (text(&rule["expr"]), text(&rule["annotations"]["description"])));
    targets.chain(rules).collect()
}

/// A panel of a metric that is gone or was renamed is empty, and an alert on it silent, which looks as if all was well.
#[test]
fn the_dashboard_and_the_alerts_ask_for_what_there_is() {
    let text = in_use().encode(Format::Prometheus).unwrap();
    let there = labels(&text);
    let queries = queries();
    assert!(queries.len() > 50, "{} queries", queries.len());
    for (query, legend) in &queries {
        let series: Vec<_> = series_of(query).collect();
        assert!(!series.is_empty(), "{query}");
        for name in &series {
            assert!(there.contains_key(name), "{name} of {query} is not on /metrics");
        }
        let known: BTreeSet<_> = series.iter().flat_map(|name| &there[name]).copied().collect();
        let unknown: Vec<_> = labels_of(query, legend).into_iter().filter(|label| !known.contains(label)).collect();
        assert!(unknown.is_empty(), "{unknown:?} of {query} ({legend}) is no label of {series:?}: {known:?}");
    }
    let asked: BTreeSet<_> = queries.iter().flat_map(|(query, _)| series_of(query)).collect();
    for series in ["up", "sluice_netlink_errors_total", "kubeproxy_network_programming_duration_seconds_bucket"] {
        assert!(asked.contains(series), "the test finds what is asked for: {asked:?}");
    }
}

/// What kube-proxy says of itself as every component does.
#[test]
fn what_this_is_is_told_as_by_kube_proxy() {
    let text = in_use().encode(Format::Prometheus).unwrap();
    let lines = |text: &str| {
        let ours = |line: &&str| line.starts_with("# ") && (line.contains(" process_") || line.contains(" kubernetes_"));
        text.lines().filter(ours).map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let captured = lines(include_str!("serve/kube-proxy-identity.txt"));
    assert_eq!(captured.len(), 22, "lines in the capture");
    assert_eq!(lines(&text).join("\n"), captured.join("\n"));
    for sample in [
        concat!("go_version=\"none (sluice ", env!("CARGO_PKG_VERSION"), ", Rust)\",major=\"1\",minor=\"36\",platform=\"linux/"),
        concat!("git_version=\"v1.36.2+sluice.", env!("CARGO_PKG_VERSION"), "\""),
        "kubernetes_feature_enabled{name=\"AllowServiceExternalIPs\",stage=\"\"} 0",
    ] {
        assert!(text.contains(sample), "{sample} in {text}");
    }
}

/// The series, without their values.
fn series(metrics: &Metrics) -> BTreeSet<String> {
    let text = metrics.encode(Format::Prometheus).unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
}

#[test]
fn there_are_no_more_series_whatever_happens() {
    let metrics = in_use();
    // Every error that has a name of its own, and one that has none.
    (0..256).for_each(|errno| metrics.netlink_failed(errno));
    let before = series(&metrics);
    for number in 0..2000 {
        everything(&metrics, number * 7919);
    }
    let after = series(&metrics);
    assert_eq!(after.difference(&before).collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(after.len(), before.len());
    assert!(before.len() < 1000, "{}", before.len());
}
