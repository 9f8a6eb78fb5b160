//! What `--mode=ipvs` depends on beside what all modes do.

use std::time::Duration;

use ipnet::IpNet;

use super::check::not_negative;
use super::{Mode, Problems, Raw};
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

impl IpvsConfig {
    /// Checks what the user asked for, if it counts in this mode. Else it is as by default, but for the ranges that are
    /// somebody else's: those of them that are ranges.
    pub(super) fn resolve(raw: &Raw, mode: Mode, problems: &mut Problems) -> Self {
        let fields = &raw.configuration.ipvs;
        if mode != Mode::Ipvs {
            let exclude_cidrs = fields.exclude_cidrs.iter().filter_map(|text| parse_cidr(text.trim())).collect();
            return Self { exclude_cidrs, ..Self::default() };
        }
        let mut timeout = |field, value| Some(not_negative(problems, field, value)).filter(|timeout| !timeout.is_zero());
        let timeouts = Timeouts {
            tcp: timeout("ipvs.tcpTimeout", fields.tcp_timeout),
            tcp_fin: timeout("ipvs.tcpFinTimeout", fields.tcp_fin_timeout),
            udp: timeout("ipvs.udpTimeout", fields.udp_timeout),
        };
        Self {
            scheduler: problems.note("ipvs.scheduler", scheduler(&fields.scheduler), Scheduler::default()),
            exclude_cidrs: exclude_cidrs(&fields.exclude_cidrs, problems),
            strict_arp: fields.strict_arp,
            timeouts,
            local_addresses: problems.note(
                "--ipvs-local-addresses",
                local_addresses(&raw.ipvs_local_addresses),
                LocalAddresses::Device,
            ),
            drain_timeout: not_negative(problems, "--ipvs-drain-timeout", raw.ipvs_drain_timeout),
        }
    }
}

fn scheduler(text: &str) -> Result<Scheduler, String> {
    if text.is_empty() {
        return Ok(Scheduler::default());
    }
    let known = Scheduler::ALL.map(Scheduler::as_str).join(", ");
    Scheduler::from_name(text).ok_or_else(|| format!("{text:?} is not one of {known}"))
}

pub(super) fn exclude_cidrs(texts: &[String], problems: &mut Problems) -> Vec<IpNet> {
    let parse = |text: &String| {
        let cidr = parse_cidr(text.trim());
        if cidr.is_none() {
            problems.add("ipvs.excludeCIDRs", format!("{text:?} is not a CIDR such as 192.0.2.0/24 or fd00::/64"));
        }
        cidr
    };
    texts.iter().filter_map(parse).collect()
}

fn local_addresses(text: &str) -> Result<LocalAddresses, String> {
    let known = LocalAddresses::ALL.map(LocalAddresses::as_str).join(", ");
    let found = LocalAddresses::ALL.into_iter().find(|way| way.as_str() == text);
    found.ok_or_else(|| format!("{text:?} is not one of {known}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GoDuration;

    fn resolve(raw: &Raw, mode: Mode) -> Result<IpvsConfig, Problems> {
        let mut problems = Problems::default();
        let config = IpvsConfig::resolve(raw, mode, &mut problems);
        problems.none_or_err().map(|()| config)
    }

    #[test]
    fn nothing_given_is_the_default() {
        assert_eq!(resolve(&Raw::of_defaults("node"), Mode::Ipvs), Ok(IpvsConfig::default()));
    }

    #[test]
    fn values_are_taken_over() {
        let mut raw = Raw::of_defaults("node");
        let ipvs = &mut raw.configuration.ipvs;
        ipvs.scheduler = "mh".into();
        ipvs.exclude_cidrs = vec!["192.0.2.0/24".into(), " fd00::/64".into()];
        ipvs.strict_arp = true;
        ipvs.udp_timeout = GoDuration::from_secs(7);
        raw.ipvs_local_addresses = "routes".into();
        raw.ipvs_drain_timeout = GoDuration::default();
        let wanted = IpvsConfig {
            scheduler: Scheduler::Mh,
            exclude_cidrs: vec!["192.0.2.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
            strict_arp: true,
            timeouts: Timeouts { tcp: None, tcp_fin: None, udp: Some(Duration::from_secs(7)) },
            local_addresses: LocalAddresses::Routes,
            drain_timeout: Duration::ZERO,
        };
        assert_eq!(resolve(&raw, Mode::Ipvs), Ok(wanted));
    }

    #[test]
    fn in_another_mode_nothing_is_checked_and_only_ranges_count() {
        let mut raw = Raw::of_defaults("node");
        raw.configuration.ipvs.scheduler = "fifo".into();
        raw.configuration.ipvs.exclude_cidrs = vec!["192.0.2.0".into(), "198.51.100.0/24".into()];
        raw.configuration.ipvs.strict_arp = true;
        let config = IpvsConfig { exclude_cidrs: vec!["198.51.100.0/24".parse().unwrap()], ..IpvsConfig::default() };
        assert_eq!(resolve(&raw, Mode::Iptables), Ok(config));
        let problems = resolve(&raw, Mode::Ipvs).unwrap_err();
        let fields: Vec<_> = problems.0.iter().map(|invalid| invalid.field.as_str()).collect();
        assert_eq!(fields, ["ipvs.scheduler", "ipvs.excludeCIDRs"]);
    }
}
