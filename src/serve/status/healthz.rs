//! `/healthz` of the metrics server: one check, `ping`, which passes as long as anybody answers.

use hyper::StatusCode;
use hyper::http::request::Parts;

use crate::serve::http::{self, Response, TEXT};
use crate::serve::metrics::Metrics;

const CHECK: &str = "ping";

/// `ok`, or with `?verbose` each check by name; `?exclude=NAME` leaves one out.
pub(super) fn answer(metrics: &Metrics, head: &Parts) -> Response {
    let query = head.uri.query().unwrap_or_default();
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut excluded: Vec<_> = pairs.clone().filter(|(name, _)| *name == "exclude").map(|(_, check)| check).collect();
    excluded.sort_unstable();
    excluded.dedup();
    let mut report = Vec::new();
    if excluded.contains(&CHECK) {
        excluded.retain(|check| *check != CHECK);
        report.push("[+]ping excluded: ok\n".to_owned());
    } else {
        metrics.health_checked();
        report.push("[+]ping ok\n".to_owned());
    }
    if !excluded.is_empty() {
        let unknown: Vec<_> = excluded.iter().map(|check| format!("{check:?}")).collect();
        report.push(format!("warn: some health checks cannot be excluded: no matches for {}\n", unknown.join(",")));
    }
    let mut names = pairs.map(|(name, _)| name);
    if !names.any(|name| name == "verbose") {
        return http::answer(StatusCode::OK, TEXT, "ok");
    }
    http::answer(StatusCode::OK, TEXT, report.concat() + "healthz check passed\n")
}
