//! What ipvs mode stands on: IPVS itself with the scheduler that is asked for, its timeouts, and the settings of the kernel
//! (behaviour.md §4.1). Those in `/proc/sys/net/ipv4/vs` are there only once IPVS is.

use std::borrow::Cow;

use anyhow::Context as _;

use super::preparation::Preparation;
use crate::config::{IpvsConfig, LocalAddresses, Timeouts};
use crate::net::Family;
use crate::netlink::ipvs::VirtualServers;
use crate::netlink::link::Style;
use crate::netlink::{Balancer, NodeBalancer};
use crate::sysctl::{Root, Setting};

/// Without it nothing that goes through IPVS comes by POSTROUTING's rules: to go on would be a node where some Services
/// answer and others do not.
const CONNTRACK: Setting = setting(
    "net.ipv4.vs.conntrack",
    "1",
    "connections through IPVS are not tracked, so none is masqueraded and answers do not find back",
);

const CONN_REUSE_MODE: Setting = setting(
    "net.ipv4.vs.conn_reuse_mode",
    "0",
    "a connection from a port that its client used shortly before loses its first packet, and waits a second",
);

const EXPIRE_NODEST_CONN: Setting = setting(
    "net.ipv4.vs.expire_nodest_conn",
    "1",
    "clients go on sending to an endpoint that is gone until their connection times out",
);

const EXPIRE_QUIESCENT_TEMPLATE: Setting = setting(
    "net.ipv4.vs.expire_quiescent_template",
    "1",
    "session affinity sends new connections to endpoints that are being removed",
);

const IP_FORWARD: Setting =
    setting("net.ipv4.ip_forward", "1", "IPv4 packets from and to pods and outside clients are not forwarded");

const ARP_IGNORE: Setting = setting(
    "net.ipv4.conf.all.arp_ignore",
    "1",
    "the node answers ARP requests for the addresses of virtual servers (--ipvs-strict-arp=false lets it)",
);

const ARP_ANNOUNCE: Setting = setting(
    "net.ipv4.conf.all.arp_announce",
    "2",
    "the node's ARP requests may name addresses of virtual servers as its own (--ipvs-strict-arp=false lets them)",
);

const fn setting(name: &'static str, value: &'static str, purpose: &'static str) -> Setting {
    Setting { name, value: Cow::Borrowed(value), purpose }
}

const IPV6_FORWARDING: &str = "net.ipv6.conf.all.forwarding";
const RELEASE: &str = "kernel.osrelease";

/// Looks whether IPVS is there, and sets what has to be set.
pub fn prepare(config: &IpvsConfig, families: &[Family], preparation: &mut Preparation) -> anyhow::Result<()> {
    const WHAT: &str = "prepare the node for ipvs mode";
    let mut ipvs = VirtualServers::open().context(WHAT)?;
    ipvs.probe_scheduler(config.scheduler).context(WHAT)?;
    set_timeouts(&mut ipvs, config.timeouts, preparation);
    preparation.require(CONNTRACK);
    reuse_connections(preparation);
    for setting in settings(config, families) {
        preparation.ensure(setting);
    }
    if families.contains(&Family::Ipv6) {
        warn_of_ipv6_forwarding(&preparation.root);
    }
    Ok(())
}

fn set_timeouts(ipvs: &mut VirtualServers, timeouts: Timeouts, preparation: &mut Preparation) {
    let Timeouts { tcp, tcp_fin, udp } = timeouts;
    if [tcp, tcp_fin, udp].iter().all(Option::is_none) {
        return;
    }
    if let Err(error) = ipvs.set_timeouts(tcp, tcp_fin, udp) {
        let flags = "--ipvs-tcp-timeout, --ipvs-tcpfin-timeout and --ipvs-udp-timeout";
        preparation.complain(format!("{flags} are not in force, the kernel's are: {error}"));
    }
}

/// What IPVS, ipset and local addresses of one family are reached by.
pub fn balancer(config: &IpvsConfig) -> anyhow::Result<Box<dyn Balancer>> {
    let style = match config.local_addresses {
        LocalAddresses::Device => Style::Device,
        LocalAddresses::Routes => Style::Routes,
    };
    Ok(Box::new(NodeBalancer::open(style).context("balance with IPVS")?))
}

fn settings(config: &IpvsConfig, families: &[Family]) -> Vec<Setting> {
    let mut settings = vec![EXPIRE_NODEST_CONN, EXPIRE_QUIESCENT_TEMPLATE];
    if families.contains(&Family::Ipv4) {
        settings.push(IP_FORWARD);
    }
    if config.strict_arp {
        settings.extend([ARP_IGNORE, ARP_ANNOUNCE]);
    }
    settings
}

fn reuse_connections(preparation: &mut Preparation) {
    let release = preparation.root.sysctl(RELEASE);
    match release.as_ref().map(|release| (release, reuse_mode(release))) {
        Ok((_, Some(ReuseMode::Unneeded))) => {}
        Ok((_, Some(ReuseMode::Off))) => {
            preparation.ensure(CONN_REUSE_MODE);
        }
        Ok((release, Some(ReuseMode::Missing))) => tracing::error!(
            "kernel {release} is older than 4.1: a connection from a port that its client used shortly before goes where \
             the one before went, also to an endpoint that is gone"
        ),
        Ok((release, None)) => tracing::warn!(
            "sysctl {RELEASE}: {release:?} names no version of Linux, {} is left as it is; before Linux 5.9 it should be 0",
            CONN_REUSE_MODE.name
        ),
        Err(error) => tracing::warn!(
            "sysctl {RELEASE}: cannot read it: {error}; {} is left as it is, before Linux 5.9 it should be 0",
            CONN_REUSE_MODE.name
        ),
    }
}

/// What a kernel does with a connection from a port that its client used shortly before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReuseMode {
    /// From 5.9 on it costs nothing to choose an endpoint anew.
    Unneeded,
    /// Before that the first packet was dropped for it, unless `conn_reuse_mode` is 0.
    Off,
    /// Before 4.1 there was no choice.
    Missing,
}

/// `None`: who can tell what kernel that is?
fn reuse_mode(release: &str) -> Option<ReuseMode> {
    match version(release)? {
        (5, 9..) | (6.., _) => Some(ReuseMode::Unneeded),
        (4, 1..) | (5, _) => Some(ReuseMode::Off),
        _ => Some(ReuseMode::Missing),
    }
}

/// The first two numbers of a release such as `6.1.0-56-amd64`. Distributions' kernels are told by them too, whatever
/// was ported back.
fn version(release: &str) -> Option<(u32, u32)> {
    let (major, rest) = release.split_once('.')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Some((major.parse().ok()?, rest[..digits].parse().ok()?))
}

/// To set it is the operator's decision: with it the node takes no more addresses and routes from router advertisements.
fn warn_of_ipv6_forwarding(root: &Root) {
    if root.sysctl(IPV6_FORWARDING).is_ok_and(|value| value == "0") {
        tracing::warn!(
            "sysctl {IPV6_FORWARDING} is 0, and is left so: IPv6 answers of pods are not forwarded to clients outside of this node"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_off_releases() {
        for (release, wanted) in [
            ("6.1.0-56-amd64", (6, 1)),
            ("5.4.0-1024-gke", (5, 4)),
            ("5.15.0-1051-azure", (5, 15)),
            ("4.18.0-553.el8_10.x86_64", (4, 18)),
            ("3.10.0-1160.119.1.el7.x86_64", (3, 10)),
            ("6.18.44", (6, 18)),
            ("6.13-rc1", (6, 13)),
            ("10.0+", (10, 0)),
        ] {
            assert_eq!(version(release), Some(wanted), "{release}");
        }
        for release in ["", "6", "linux", "six.one", "6.", "6.x", ".1"] {
            assert_eq!(version(release), None, "{release}");
        }
    }

    #[test]
    fn the_reuse_mode_is_set_from_4_1_to_5_8() {
        for (release, wanted) in [
            ("3.10.0-1160.el7.x86_64", ReuseMode::Missing),
            ("4.0.9", ReuseMode::Missing),
            ("4.1.0", ReuseMode::Off),
            ("4.18.0-553.el8_10.x86_64", ReuseMode::Off),
            ("5.4.0-1024-gke", ReuseMode::Off),
            ("5.8.18", ReuseMode::Off),
            ("5.9.0-rc1", ReuseMode::Unneeded),
            ("5.14.0-427.13.1.el9_4.x86_64", ReuseMode::Unneeded),
            ("6.1.0-56-amd64", ReuseMode::Unneeded),
        ] {
            assert_eq!(reuse_mode(release), Some(wanted), "{release}");
        }
    }

    #[test]
    fn settings_are_those_of_the_families_and_of_strict_arp() {
        let names = |strict_arp, families: &[Family]| -> Vec<_> {
            let config = IpvsConfig { strict_arp, ..IpvsConfig::default() };
            settings(&config, families).iter().map(|setting| setting.name).collect()
        };
        let always = [EXPIRE_NODEST_CONN.name, EXPIRE_QUIESCENT_TEMPLATE.name];
        assert_eq!(names(false, &[Family::Ipv6]), always);
        assert_eq!(names(false, &Family::ALL), [always[0], always[1], IP_FORWARD.name]);
        let strict = names(true, &[Family::Ipv4]);
        assert_eq!(strict, [always[0], always[1], IP_FORWARD.name, ARP_IGNORE.name, ARP_ANNOUNCE.name]);
    }
}
