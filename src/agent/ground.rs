//! What the node offers, found out and set right once before anything is programmed.

use anyhow::Context as _;

use super::preparation::Preparation;
use super::{conntrack_ground, ipvs_ground};
use crate::config::{Config, Mode};
use crate::net::Family;
use crate::netlink::nfacct::Counters;
use crate::netlink::{self, NftKernel};
use crate::render::names::{NFACCT_INVALID, NFACCT_LOCALHOST};
use crate::render::{KernelFacts, wants_route_localnet};
use crate::serve::metrics::PacketCounters;
use crate::sysctl::{Root, Setting};

/// What there is to stand on.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The families that can be programmed; at least one.
    pub families: Vec<Family>,
    pub facts: KernelFacts,
}

fn route_localnet() -> Setting {
    let purpose = "node ports do not answer on 127.0.0.1 (--iptables-localhost-nodeports=false does without)";
    Setting { name: "net.ipv4.conf.all.route_localnet", value: "1".into(), purpose }
}

/// Looks at the node and sets what has to be set. What cannot be set is said and done without, unless the mode would not
/// work, or setting it is all that is asked for (`--init-only`).
pub fn prepare(config: &Config, kernel: &mut NftKernel, root: Root) -> anyhow::Result<Ground> {
    let families = usable_families(kernel, &root)?;
    let mode = config.rules.mode;
    let mut preparation = Preparation::new(root);
    conntrack_ground::prepare(&config.conntrack, &mut preparation);
    match mode {
        Mode::Iptables if wants_route_localnet(&config.rules) && families.contains(&Family::Ipv4) => {
            preparation.ensure(route_localnet());
        }
        Mode::Iptables => {}
        Mode::Ipvs => ipvs_ground::prepare(&config.rules.ipvs, &families, &mut preparation)?,
    }
    preparation.conclude(mode, config.init_only)?;
    // Rules of ipvs mode count nothing, and pass INVALID packets.
    let counts = mode == Mode::Iptables;
    let tcp_be_liberal = conntrack_ground::is_liberal(&preparation.root);
    let facts = KernelFacts { nfacct: counts && has_counters(), tcp_be_liberal };
    tell(mode, &families, facts);
    Ok(Ground { families, facts })
}

/// `--init-only`: everything that takes more privilege than to program rules does, for a proxy that is started without.
pub fn initialize(config: &Config, root: Root) -> anyhow::Result<()> {
    let mut kernel = NftKernel::open().context("program rules")?;
    prepare(config, &mut kernel, root)?;
    if config.rules.mode == Mode::Ipvs {
        // Loads what keeps sets.
        ipvs_ground::balancer(&config.rules.ipvs)?;
    }
    tracing::info!("System initialized and --init-only specified");
    Ok(())
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

/// A family that is switched off, or that the kernel has no rules for, is left out; none left is fatal.
fn usable_families(kernel: &mut NftKernel, root: &Root) -> anyhow::Result<Vec<Family>> {
    let mut usable = Vec::new();
    let mut refused = None;
    for family in Family::ALL {
        if family == Family::Ipv6
            && let Some(why) = ipv6_is_off(root)
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

fn ipv6_is_off(root: &Root) -> Option<&'static str> {
    if !root.exists("proc/net/if_inet6") {
        return Some("/proc/net/if_inet6 is missing");
    }
    let disabled = root.sysctl("net.ipv6.conf.all.disable_ipv6").is_ok_and(|value| value == "1");
    disabled.then_some("net.ipv6.conf.all.disable_ipv6 is 1")
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
