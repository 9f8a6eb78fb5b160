//! What the node offers, found out and set right once before anything is programmed.

use std::path::Path;

use anyhow::Context as _;

use super::ipvs_ground;
use crate::config::{Config, Mode};
use crate::net::Family;
use crate::netlink::nfacct::Counters;
use crate::netlink::{self, NftKernel};
use crate::render::names::{NFACCT_INVALID, NFACCT_LOCALHOST};
use crate::render::{KernelFacts, wants_route_localnet};
use crate::serve::metrics::PacketCounters;
use crate::sysctl::{self, Setting};

/// What there is to stand on.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The families that can be programmed; at least one.
    pub families: Vec<Family>,
    pub facts: KernelFacts,
}

const ROUTE_LOCALNET: Setting = Setting {
    name: "net.ipv4.conf.all.route_localnet",
    value: "1",
    purpose: "node ports do not answer on 127.0.0.1 (--iptables-localhost-nodeports=false does without)",
};

const BE_LIBERAL: &str = "net.netfilter.nf_conntrack_tcp_be_liberal";

/// Looks at the node and sets what has to be set. What cannot be set is said and done without.
pub fn prepare(config: &Config, kernel: &mut NftKernel) -> anyhow::Result<Ground> {
    let families = usable_families(kernel)?;
    let mode = config.rules.mode;
    match mode {
        Mode::Iptables if wants_route_localnet(&config.rules) && families.contains(&Family::Ipv4) => ensure(ROUTE_LOCALNET),
        Mode::Iptables => {}
        Mode::Ipvs => ipvs_ground::prepare(&config.rules.ipvs, &families)?,
    }
    if config.tcp_be_liberal {
        let purpose = "conntrack marks packets outside the TCP window INVALID, and the proxy drops those";
        ensure(Setting { name: BE_LIBERAL, value: "1", purpose });
    }
    // Rules of ipvs mode count nothing, and pass INVALID packets.
    let counts = mode == Mode::Iptables;
    let facts = KernelFacts { nfacct: counts && has_counters(), tcp_be_liberal: is_liberal() };
    tell(mode, &families, facts);
    Ok(Ground { families, facts })
}

/// What rules will be like on this node, in a line.
fn tell(mode: Mode, families: &[Family], facts: KernelFacts) {
    let families: Vec<_> = families.iter().map(|family| family.as_str()).collect();
    if mode == Mode::Ipvs {
        tracing::info!("this node's kernel takes {} rules", families.join(" and "));
        return;
    }
    let counters = if facts.nfacct { "with" } else { "without" };
    let invalid = if facts.tcp_be_liberal { "forwarded (nf_conntrack_tcp_be_liberal is on)" } else { "dropped" };
    let families = families.join(" and ");
    tracing::info!("this node's kernel takes {families} rules; {counters} nfacct counters; INVALID packets are {invalid}");
}

pub(super) fn ensure(setting: Setting) {
    if let Err(error) = setting.ensure() {
        tracing::warn!("{:#}", anyhow::Error::new(error));
    }
}

/// A family that is switched off, or that the kernel has no rules for, is left out; none left is fatal.
fn usable_families(kernel: &mut NftKernel) -> anyhow::Result<Vec<Family>> {
    let mut usable = Vec::new();
    let mut refused = None;
    for family in Family::ALL {
        if family == Family::Ipv6
            && let Some(why) = ipv6_is_off()
        {
            tracing::info!("IPv6 is switched off on this node ({why}): IPv4 alone is programmed");
            continue;
        }
        match kernel.probe(family) {
            Ok(()) => usable.push(family),
            Err(error) => {
                tracing::warn!(%family, %error, "cannot program rules of this family, going on without it");
                refused = Some(error);
            }
        }
    }
    match refused {
        Some(error) if usable.is_empty() => Err(error).context("program rules: no family can be used"),
        _ => Ok(usable),
    }
}

fn ipv6_is_off() -> Option<&'static str> {
    if !Path::new("/proc/net/if_inet6").exists() {
        return Some("/proc/net/if_inet6 is missing");
    }
    let disabled = sysctl::read("net.ipv6.conf.all.disable_ipv6").is_ok_and(|value| value == "1");
    disabled.then_some("net.ipv6.conf.all.disable_ipv6 is 1")
}

/// Unreadable (conntrack is not there yet): as good as off, which only means one more rule.
fn is_liberal() -> bool {
    sysctl::read(BE_LIBERAL).is_ok_and(|value| value != "0")
}

/// Makes the packet counters that rules feed, where the kernel has such a thing.
fn has_counters() -> bool {
    let make = || -> Result<(), netlink::Error> {
        let mut counters = Counters::open()?;
        [NFACCT_INVALID, NFACCT_LOCALHOST].into_iter().try_for_each(|name| counters.ensure(name))
    };
    match make() {
        Ok(()) => true,
        Err(error) => {
            tracing::info!(%error, "rules do without packet counters");
            false
        }
    }
}

/// The packet counters' values, for a scrape.
pub fn read_counters() -> Option<PacketCounters> {
    let mut counters = Counters::open().ok()?;
    let mut read = |name| Some(counters.read(name).ok()??.packets);
    Some(PacketCounters { invalid_dropped: read(NFACCT_INVALID)?, localhost_accepted: read(NFACCT_LOCALHOST)? })
}
