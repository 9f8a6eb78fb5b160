//! What `--mode=ipvs` depends on beside what all modes do.

use std::time::Duration;

use ipnet::IpNet;

use crate::net::Scheduler;

/// The settings of `--mode=ipvs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpvsConfig {
    pub scheduler: Scheduler,
    /// Virtual servers at these addresses stay though no Service wants them: they are somebody else's.
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
