//! `sluice --cleanup`: everything of ours goes, of whatever mode. It needs no API server and no manifests, and does what
//! it can: what cannot be removed is no reason to leave the rest.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::bail;

use crate::config::{IpvsConfig, LocalAddresses as Addresses, Mode, RuleConfig};
use crate::net::Family;
use crate::netlink::address::addresses;
use crate::netlink::link::{DEVICE, LocalAddresses, Style, interface_index};
use crate::netlink::{self, NftKernel, NodeBalancer};
use crate::render::names::NFTABLES_TABLE;
use crate::serve::Metrics;
use crate::sync::cleanup::{BalancingRemoved, Bounds, remove_balancing, remove_rules};

/// Removes everything, and says what that was. Fails with all that could not be removed.
pub fn clean_up(config: &IpvsConfig) -> anyhow::Result<String> {
    let mut report = Report::default();
    let mut kernel = match NftKernel::open() {
        Ok(kernel) => Some(kernel),
        Err(error @ netlink::Error::Unsupported { .. }) => {
            tracing::info!(%error, "no rules to remove");
            None
        }
        Err(error) => {
            report.failures.push(format!("rules: {error}"));
            None
        }
    };
    if let Some(kernel) = &mut kernel {
        rules(kernel, &mut report);
    }
    match remains_of_ipvs(config) {
        Ok(removed) => {
            report.failures.extend(removed.failures());
            report.removed.push(removed.to_string());
        }
        Err(error) => report.failures.push(format!("virtual servers, addresses and sets: {error}")),
    }
    if let Some(kernel) = &mut kernel {
        let tables = nftables_tables(kernel);
        report.failures.extend(tables.failures);
        report.removed.push(format!("{} tables of nftables mode", tables.removed.len()));
    }
    if !report.failures.is_empty() {
        bail!("encountered an error while tearing down rules: {}", report.failures.join("; "));
    }
    Ok(format!("removed: {}\n", report.removed.join("; ")))
}

/// What was done, and what was not.
#[derive(Debug, Default)]
struct Report {
    removed: Vec<String>,
    failures: Vec<String>,
}

/// A set is in use for some milliseconds after its last rule is gone.
const SET_PAUSE: Duration = Duration::from_millis(10);

/// Removes what ipvs mode left beside rules, whichever way addresses were made local.
fn remains_of_ipvs(config: &IpvsConfig) -> Result<BalancingRemoved, netlink::Error> {
    // To ask for sets would load the module that keeps them.
    let may_have_sets = Path::new("/sys/module/ip_set").exists();
    if !may_have_sets && interface_index(DEVICE)?.is_none() {
        return Ok(BalancingRemoved::default());
    }
    let own: Vec<_> = addresses()?.into_iter().map(|found| found.address).collect();
    let bounds = Bounds { own: &own, excluded: &config.exclude_cidrs };
    let mut balancer = NodeBalancer::open(Style::Device)?;
    let mut removed = remove_balancing(&mut balancer, bounds, &mut || thread::sleep(SET_PAUSE))?;
    removed.addresses += LocalAddresses::open(Style::Routes)?.delete_routes()?;
    Ok(removed)
}

/// Deletes the tables of nftables mode, whole: nothing else is in them.
fn nftables_tables(kernel: &mut NftKernel) -> Report {
    let mut report = Report::default();
    for (family, name) in [(Family::Ipv4, "ip"), (Family::Ipv6, "ip6")] {
        let table = format!("{name} {NFTABLES_TABLE}");
        match kernel.delete_table(family, NFTABLES_TABLE) {
            Ok(true) => report.removed.push(table),
            // The process is about to end: the next start makes up for it.
            Ok(false) | Err(netlink::Error::Stopped) => {}
            Err(error) => report.failures.push(format!("table {table}: {error}")),
        }
    }
    report
}

/// Once the mode's own things are in force: removes what another mode had. That is the tables of nftables mode, what ipvs
/// mode had beside rules, and addresses that were made local in another way; the rules of iptables and ipvs mode are
/// removed by the sync, which knows them all.
pub fn remove_other_modes(kernel: &mut NftKernel, config: &RuleConfig) {
    let tables = nftables_tables(kernel);
    if !tables.removed.is_empty() {
        tracing::info!("removed what nftables mode left: tables {}", tables.removed.join(", "));
    }
    for failure in tables.failures {
        tracing::warn!("of what nftables mode left, this could not be removed: {failure}");
    }
    remove_other_balancing(config);
}

fn remove_other_balancing(config: &RuleConfig) {
    let removed = match (config.mode, config.ipvs.local_addresses) {
        (Mode::Iptables, _) => remains_of_ipvs(&config.ipvs).map(|removed| {
            removed.failures().for_each(|failure| tracing::warn!("of what ipvs mode left, this could not be removed: {failure}"));
            (!removed.is_nothing()).then(|| format!("what ipvs mode left: {removed}"))
        }),
        (Mode::Ipvs, Addresses::Device) => LocalAddresses::open(Style::Routes)
            .and_then(|mut routes| routes.delete_routes())
            .map(|count| (count > 0).then(|| format!("{count} routes of --ipvs-local-addresses=routes"))),
        (Mode::Ipvs, Addresses::Routes) => LocalAddresses::open(Style::Device)
            .and_then(|mut device| device.delete_device())
            .map(|deleted| deleted.then(|| format!("{DEVICE} of --ipvs-local-addresses=device"))),
    };
    match removed {
        Ok(None) => {}
        Ok(Some(what)) => tracing::info!("removed {what}"),
        Err(error) => tracing::warn!(%error, "what another mode left, other than rules, stays; sluice --cleanup removes it"),
    }
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
