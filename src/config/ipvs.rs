//! What `--mode=ipvs` depends on beside what all modes do.

use std::time::Duration;

use ipnet::IpNet;

use super::{Invalid, Mode, invalid};
use crate::net::{Scheduler, parse_cidr};

/// The settings of `--mode=ipvs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpvsConfig {
    pub scheduler: Scheduler,
    /// Virtual servers at these addresses stay though no Service wants them: they are somebody else's. The one setting
    /// that counts in other modes too, where remains of this one are removed.
    pub exclude_cidrs: Vec<IpNet>,
    /// Set `arp_ignore` and `arp_announce`, so that the node does not answer for virtual addresses.
    pub strict_arp: bool,
    pub timeouts: Timeouts,
    pub local_addresses: LocalAddresses,
    /// How long the connections to a virtual server that no Service wants any more may live on; zero: not at all.
    pub drain_timeout: Duration,
}

/// Idle time after which IPVS forgets connections; `None`: as the kernel has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    pub tcp: Option<Duration>,
    pub tcp_fin: Option<Duration>,
    pub udp: Option<Duration>,
}

/// How the addresses of virtual servers are made local to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalAddresses {
    /// As addresses of `kube-ipvs0`, where `ip address` shows them. The kernel needs time quadratic in their number.
    Device,
    /// As routes of type local: the same to packets, and each costs the same; `ip route show table local` shows them.
    Routes,
}

impl LocalAddresses {
    const ALL: [Self; 2] = [Self::Device, Self::Routes];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Routes => "routes",
        }
    }
}

/// How long connections to a removed Service live on, unless told otherwise. Longer than that only idle ones would:
/// 15 minutes is what IPVS itself gives an idle TCP connection.
pub const DRAIN_TIMEOUT: Duration = Duration::from_mins(15);

/// As the flags have it by default.
impl Default for IpvsConfig {
    fn default() -> Self {
        Self {
            scheduler: Scheduler::default(),
            exclude_cidrs: Vec::new(),
            strict_arp: false,
            timeouts: Timeouts::default(),
            local_addresses: LocalAddresses::Device,
            drain_timeout: DRAIN_TIMEOUT,
        }
    }
}

/// What the user asked for, as text, not yet checked.
#[derive(Clone, Debug)]
pub struct RawIpvs {
    pub scheduler: String,
    pub exclude_cidrs: Vec<String>,
    pub strict_arp: bool,
    pub sync_period: Duration,
    pub min_sync_period: Duration,
    pub tcp_timeout: Duration,
    pub tcp_fin_timeout: Duration,
    pub udp_timeout: Duration,
    pub local_addresses: String,
    pub drain_timeout: Duration,
}

impl IpvsConfig {
    /// Checks what the user asked for, if it counts in this mode. Else it is as by default, but for the ranges that are
    /// somebody else's: those of them that are ranges.
    pub(super) fn resolve(raw: &RawIpvs, mode: Mode) -> Result<Self, Invalid> {
        if mode != Mode::Ipvs {
            let exclude_cidrs = raw.exclude_cidrs.iter().filter_map(|text| parse_cidr(text.trim())).collect();
            return Ok(Self { exclude_cidrs, ..Self::default() });
        }
        let set = |timeout: Duration| Some(timeout).filter(|timeout| !timeout.is_zero());
        Ok(Self {
            scheduler: scheduler(&raw.scheduler)?,
            exclude_cidrs: exclude_cidrs(&raw.exclude_cidrs)?,
            strict_arp: raw.strict_arp,
            timeouts: Timeouts { tcp: set(raw.tcp_timeout), tcp_fin: set(raw.tcp_fin_timeout), udp: set(raw.udp_timeout) },
            local_addresses: local_addresses(&raw.local_addresses)?,
            drain_timeout: raw.drain_timeout,
        })
    }
}

fn scheduler(text: &str) -> Result<Scheduler, Invalid> {
    if text.is_empty() {
        return Ok(Scheduler::default());
    }
    let known = Scheduler::ALL.map(Scheduler::as_str).join(", ");
    Scheduler::from_name(text).map_or_else(|| invalid("--ipvs-scheduler", format!("{text:?} is not one of {known}")), Ok)
}

pub(super) fn exclude_cidrs(texts: &[String]) -> Result<Vec<IpNet>, Invalid> {
    let parse = |text: &String| match parse_cidr(text.trim()) {
        Some(cidr) => Ok(cidr),
        None => invalid("--ipvs-exclude-cidrs", format!("{text:?} is not a CIDR such as 192.0.2.0/24 or fd00::/64")),
    };
    texts.iter().map(parse).collect()
}

fn local_addresses(text: &str) -> Result<LocalAddresses, Invalid> {
    let known = LocalAddresses::ALL.map(LocalAddresses::as_str).join(", ");
    let found = LocalAddresses::ALL.into_iter().find(|way| way.as_str() == text);
    found.map_or_else(|| invalid("--ipvs-local-addresses", format!("{text:?} is not one of {known}")), Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the flags have it by default.
    fn raw() -> RawIpvs {
        RawIpvs {
            scheduler: String::new(),
            exclude_cidrs: Vec::new(),
            strict_arp: false,
            sync_period: Duration::from_secs(30),
            min_sync_period: Duration::ZERO,
            tcp_timeout: Duration::ZERO,
            tcp_fin_timeout: Duration::ZERO,
            udp_timeout: Duration::ZERO,
            local_addresses: "device".into(),
            drain_timeout: DRAIN_TIMEOUT,
        }
    }

    #[test]
    fn nothing_given_is_the_default() {
        assert_eq!(IpvsConfig::resolve(&raw(), Mode::Ipvs), Ok(IpvsConfig::default()));
    }

    #[test]
    fn values_are_taken_over() {
        let (timeout, drain_timeout) = (Duration::from_secs(7), Duration::ZERO);
        let exclude_cidrs = vec!["192.0.2.0/24".into(), " fd00::/64".into()];
        let given = RawIpvs { scheduler: "mh".into(), exclude_cidrs, strict_arp: true, udp_timeout: timeout, ..raw() };
        let config = IpvsConfig::resolve(&RawIpvs { local_addresses: "routes".into(), drain_timeout, ..given }, Mode::Ipvs);
        let wanted = IpvsConfig {
            scheduler: Scheduler::Mh,
            exclude_cidrs: vec!["192.0.2.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
            strict_arp: true,
            timeouts: Timeouts { tcp: None, tcp_fin: None, udp: Some(timeout) },
            local_addresses: LocalAddresses::Routes,
            drain_timeout,
        };
        assert_eq!(config, Ok(wanted));
    }

    #[test]
    fn in_another_mode_nothing_is_checked_and_only_ranges_count() {
        let exclude_cidrs = vec!["192.0.2.0".into(), "198.51.100.0/24".into()];
        let bad = RawIpvs { scheduler: "fifo".into(), exclude_cidrs, strict_arp: true, ..raw() };
        let config = IpvsConfig { exclude_cidrs: vec!["198.51.100.0/24".parse().unwrap()], ..IpvsConfig::default() };
        assert_eq!(IpvsConfig::resolve(&bad, Mode::Iptables), Ok(config));
        assert!(IpvsConfig::resolve(&bad, Mode::Ipvs).is_err_and(|error| error.flag == "--ipvs-scheduler"));
    }
}
