//! `sluice --cleanup`: everything of ours goes, of whatever mode. It needs no API server and no manifests, and does what
//! it can: what cannot be removed is no reason to leave the rest.

use anyhow::{Context as _, bail};

use crate::net::Family;
use crate::netlink::{self, NftKernel};
use crate::serve::Metrics;
use crate::sync::cleanup::remove_rules;

/// Removes everything, and says what that was. Fails with all that could not be removed.
pub fn clean_up() -> anyhow::Result<String> {
    let mut report = Report::default();
    match NftKernel::open() {
        Ok(mut kernel) => rules(&mut kernel, &mut report),
        // Then there are no rules in it.
        Err(error @ netlink::Error::Unsupported { .. }) => tracing::info!(%error, "no rules to remove"),
        Err(error) => return Err(error).context("remove rules"),
    }
    if !report.failures.is_empty() {
        bail!("not everything could be removed: {}", report.failures.join("; "));
    }
    Ok(format!("removed: {}\n", report.removed.join("; ")))
}

/// What was done, and what was not.
#[derive(Debug, Default)]
struct Report {
    removed: Vec<String>,
    failures: Vec<String>,
}

fn rules(kernel: &mut NftKernel, report: &mut Report) {
    let metrics = Metrics::new();
    for family in Family::ALL {
        match remove_rules(kernel, &metrics, family) {
            Ok(removed) => {
                report.failures.extend(removed.failures().map(|failure| format!("{family} {failure}")));
                report.removed.push(format!("{family} rules: {removed}"));
            }
            Err(error) => report.failures.push(format!("{family} rules: {error}")),
        }
    }
}
