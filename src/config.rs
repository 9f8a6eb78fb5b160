//! The resolved configuration: checked once, immutable after, printed at start.
//!
//! [`Raw`] is what the user typed, by whatever way; [`Config::resolve`] checks it. No I/O here: what the
//! environment or the kernel says is put in by the caller.

mod ipvs;
mod text;

pub use ipvs::{DRAIN_TIMEOUT, IpvsConfig, LocalAddresses, RawIpvs, Timeouts};

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::net::{Family, PerFamily, parse_cidr, parse_ip};

/// A value that cannot be used, named by the flag it came from.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{flag}: {cause}")]
pub struct Invalid {
    pub flag: &'static str,
    pub cause: String,
}

fn invalid<T>(flag: &'static str, cause: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid { flag, cause: cause.into() })
}

/// How the node's rules are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Iptables,
    Ipvs,
}

impl Mode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where Services and `EndpointSlices` come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Manifests(PathBuf),
    Api { kubeconfig: Option<PathBuf>, master: Option<String> },
}

/// How traffic of this node's pods is told from other traffic (behaviour.md §2.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    ClusterCidr(PerFamily<Option<IpNet>>),
    /// The node's own pod CIDR of each family.
    NodeCidr,
    BridgeInterface(Box<str>),
    InterfaceNamePrefix(Box<str>),
}

/// Which of the node's addresses accept node ports (behaviour.md §2.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The Node object's first address of each family.
    Primary,
    /// Those in one of these ranges; a family without a range accepts on all.
    Within(Vec<IpNet>),
}

/// What rules depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleConfig {
    pub mode: Mode,
    pub detect_local: DetectLocal,
    pub masquerade_all: bool,
    /// The bit of the packet mark that says "masquerade": `1 << --iptables-masquerade-bit`.
    pub masquerade_mark: u32,
    pub localhost_node_ports: bool,
    pub node_port_addresses: NodePortAddresses,
    /// `--bind-address`, where it names an address: it replaces the Node object's of that family.
    pub bind_address: Option<IpAddr>,
    /// Are Services reached by their `externalIPs`? (feature gate `AllowServiceExternalIPs`)
    pub external_ips: bool,
    /// What counts in [`Mode::Ipvs`] alone.
    pub ipvs: IpvsConfig,
}

/// The whole resolved configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This node's name in the API.
    pub node_name: Arc<str>,
    pub source: Source,
    pub rules: RuleConfig,
    /// Program the first complete state and exit.
    pub once: bool,
    /// Addresses the node has beside those of the Node object (`--node-ip`; for `render`).
    pub node_ips: Vec<IpAddr>,
    /// Set `nf_conntrack_tcp_be_liberal`, and so leave out the rule that drops INVALID packets.
    pub tcp_be_liberal: bool,
    /// `None`: not served.
    pub healthz_bind_address: Option<SocketAddr>,
    pub metrics_bind_address: Option<SocketAddr>,
    pub bind_address_hard_fail: bool,
    /// A sync that is late by twice this makes `/healthz` fail.
    pub sync_period: Duration,
    /// The least time between the end of one sync and the start of the next.
    pub min_sync_period: Duration,
    /// How often everything is compared with the kernel; `None`: never.
    pub audit_period: Option<Duration>,
}

/// What the user asked for, as text and numbers, not yet checked.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of kube-proxy, one field each")]
pub struct Raw {
    pub mode: String,
    pub hostname: String,
    pub manifests: Option<PathBuf>,
    pub kubeconfig: Option<PathBuf>,
    pub master: Option<String>,
    pub once: bool,
    /// Remove everything of ours, of whatever mode, and exit.
    pub cleanup: bool,
    pub node_ips: Vec<String>,
    pub bind_address: String,
    pub healthz_bind_address: String,
    pub metrics_bind_address: String,
    pub bind_address_hard_fail: bool,
    pub detect_local_mode: String,
    pub cluster_cidr: Option<String>,
    pub pod_bridge_interface: String,
    pub pod_interface_name_prefix: String,
    pub masquerade_all: bool,
    pub masquerade_bit: i64,
    pub localhost_node_ports: bool,
    pub node_port_addresses: Vec<String>,
    pub tcp_be_liberal: bool,
    pub feature_gates: String,
    /// Of iptables mode; ipvs mode has its own.
    pub sync_period: Duration,
    pub min_sync_period: Duration,
    pub audit_period: Duration,
    pub ipvs: RawIpvs,
}

impl Config {
    /// Checks what the user asked for. The first thing that cannot be used is the error.
    pub fn resolve(raw: Raw) -> Result<Self, Invalid> {
        let mode = mode(&raw.mode)?;
        let (sync_period, min_sync_period) = periods(&raw, mode)?;
        if raw.cleanup {
            // It says what is not to be removed, so it counts whatever the mode.
            ipvs::exclude_cidrs(&raw.ipvs.exclude_cidrs)?;
        }
        Ok(Self {
            rules: RuleConfig {
                mode,
                detect_local: detect_local(&raw)?,
                masquerade_all: raw.masquerade_all,
                masquerade_mark: masquerade_mark(raw.masquerade_bit)?,
                localhost_node_ports: raw.localhost_node_ports,
                node_port_addresses: node_port_addresses(&raw.node_port_addresses)?,
                bind_address: bind_address(&raw.bind_address)?,
                external_ips: feature_gates(&raw.feature_gates)?.allow_service_external_ips,
                ipvs: IpvsConfig::resolve(&raw.ipvs, mode)?,
            },
            node_name: node_name(&raw.hostname)?,
            healthz_bind_address: listen_address("--healthz-bind-address", &raw.healthz_bind_address, 10256)?,
            metrics_bind_address: listen_address("--metrics-bind-address", &raw.metrics_bind_address, 10249)?,
            node_ips: node_ips(&raw.node_ips)?,
            source: match raw.manifests {
                Some(path) => Source::Manifests(path),
                None => Source::Api { kubeconfig: raw.kubeconfig, master: raw.master },
            },
            once: raw.once,
            tcp_be_liberal: raw.tcp_be_liberal,
            bind_address_hard_fail: raw.bind_address_hard_fail,
            sync_period,
            min_sync_period,
            audit_period: Some(raw.audit_period).filter(|period| !period.is_zero()),
        })
    }
}

fn mode(text: &str) -> Result<Mode, Invalid> {
    match text {
        "" | "iptables" => Ok(Mode::Iptables),
        "ipvs" => Ok(Mode::Ipvs),
        "nftables" => invalid("--proxy-mode", "nftables is not built into this version yet; use iptables or ipvs"),
        _ => invalid("--proxy-mode", format!("{text:?} is not one of iptables, ipvs, nftables")),
    }
}

/// The sync period and the least one, from the flags of the mode.
fn periods(raw: &Raw, mode: Mode) -> Result<(Duration, Duration), Invalid> {
    let (names, period, min) = match mode {
        Mode::Iptables => (["--iptables-sync-period", "--iptables-min-sync-period"], raw.sync_period, raw.min_sync_period),
        Mode::Ipvs => (["--ipvs-sync-period", "--ipvs-min-sync-period"], raw.ipvs.sync_period, raw.ipvs.min_sync_period),
    };
    if period.is_zero() {
        return invalid(names[0], "must be greater than 0");
    }
    if min > period {
        return invalid(names[1], format!("must not be greater than {}", names[0]));
    }
    Ok((period, min))
}

fn node_name(text: &str) -> Result<Arc<str>, Invalid> {
    let name = text.trim().to_lowercase();
    if name.is_empty() {
        return invalid("--hostname-override", "empty hostname-override is invalid");
    }
    Ok(name.into())
}

fn masquerade_mark(bit: i64) -> Result<u32, Invalid> {
    match u32::try_from(bit) {
        Ok(bit @ 0..=31) => Ok(1 << bit),
        _ => invalid("--iptables-masquerade-bit", format!("{bit} is not within the range [0, 31]")),
    }
}

fn detect_local(raw: &Raw) -> Result<DetectLocal, Invalid> {
    match raw.detect_local_mode.as_str() {
        "" | "ClusterCIDR" => Ok(DetectLocal::ClusterCidr(cluster_cidrs(raw.cluster_cidr.as_deref())?)),
        "NodeCIDR" => Ok(DetectLocal::NodeCidr),
        "BridgeInterface" => {
            interface_name("--pod-bridge-interface", &raw.pod_bridge_interface).map(DetectLocal::BridgeInterface)
        }
        "InterfaceNamePrefix" => {
            interface_name("--pod-interface-name-prefix", &raw.pod_interface_name_prefix).map(DetectLocal::InterfaceNamePrefix)
        }
        other => invalid(
            "--detect-local-mode",
            format!("{other:?} is not one of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix"),
        ),
    }
}

/// At most 15 characters, as `IFNAMSIZ` allows; no `/` or blank, as the kernel demands.
fn interface_name(flag: &'static str, name: &str) -> Result<Box<str>, Invalid> {
    if name.is_empty() {
        return invalid(flag, "must not be empty in this --detect-local-mode");
    }
    if name.len() > 15 || name.contains(|c: char| c == '/' || c.is_whitespace()) {
        return invalid(flag, format!("{name:?} is not an interface name (1 to 15 characters, no blank, no slash)"));
    }
    Ok(name.into())
}

fn cluster_cidrs(text: Option<&str>) -> Result<PerFamily<Option<IpNet>>, Invalid> {
    const FLAG: &str = "--cluster-cidr";
    let mut cidrs = PerFamily::<Option<IpNet>>::default();
    for part in text.iter().flat_map(|t| t.split(',')) {
        let Some(cidr) = parse_cidr(part.trim()) else {
            return invalid(FLAG, format!("{part:?} is not a CIDR such as 10.244.0.0/16 or fd00:10:244::/56"));
        };
        if cidrs[Family::of_net(&cidr)].replace(cidr).is_some() {
            return invalid(FLAG, "names two ranges of one family; one, or one of each family, is allowed");
        }
    }
    Ok(cidrs)
}

fn node_port_addresses(texts: &[String]) -> Result<NodePortAddresses, Invalid> {
    const FLAG: &str = "--nodeport-addresses";
    if texts == ["primary"] {
        return Ok(NodePortAddresses::Primary);
    }
    let parse = |text: &String| match (text.as_str(), parse_cidr(text.trim())) {
        (_, Some(cidr)) => Ok(cidr),
        ("primary", None) => invalid(FLAG, "can't use both 'primary' and CIDRs"),
        (_, None) => invalid(FLAG, format!("{text:?} is not a CIDR such as 192.168.0.0/16, nor the single word primary")),
    };
    // An empty value is an empty list, as in `--nodeport-addresses=`.
    texts.iter().filter(|text| !text.is_empty()).map(parse).collect::<Result<_, _>>().map(NodePortAddresses::Within)
}

/// What `--feature-gates` says of the gates that change rules.
#[derive(Debug, PartialEq, Eq)]
pub struct FeatureGates {
    allow_service_external_ips: bool,
    /// Gates of other components, of nothing that is built here, or unknown ones.
    pub without_effect: Vec<String>,
}

/// Reads `Gate=true,Other=false`; the last word on a gate counts.
pub fn feature_gates(text: &str) -> Result<FeatureGates, Invalid> {
    const FLAG: &str = "--feature-gates";
    let mut gates = FeatureGates { allow_service_external_ips: true, without_effect: Vec::new() };
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let Some((name, value)) = part.split_once('=') else {
            return invalid(FLAG, format!("{part:?} is not of the form Gate=true or Gate=false"));
        };
        let value = parse_bool(value.trim()).or_else(|cause| invalid(FLAG, format!("{}: {cause}", name.trim())))?;
        match name.trim() {
            "AllowServiceExternalIPs" => gates.allow_service_external_ips = value,
            other => gates.without_effect.push(other.to_owned()),
        }
    }
    Ok(gates)
}

/// An unspecified address (the default `0.0.0.0`) leaves the choice to the Node object.
fn bind_address(text: &str) -> Result<Option<IpAddr>, Invalid> {
    match parse_ip(text) {
        Some(address) => Ok(Some(address).filter(|a| !a.is_unspecified())),
        None => invalid("--bind-address", format!("{text:?} is not an IP address")),
    }
}

/// Empty: not served. (kube-proxy's help says the same of its flag, which then does nothing.)
fn listen_address(flag: &'static str, text: &str, default_port: u16) -> Result<Option<SocketAddr>, Invalid> {
    if text.is_empty() {
        return Ok(None);
    }
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    let parsed = text.parse().ok().or_else(|| parse_ip(bare).map(|ip| SocketAddr::new(ip, default_port)));
    match parsed {
        Some(address) => Ok(Some(address)),
        None => invalid(flag, format!("{text:?} is not an address such as 0.0.0.0:{default_port} or [::]:{default_port}")),
    }
}

fn node_ips(texts: &[String]) -> Result<Vec<IpAddr>, Invalid> {
    let parse = |text: &String| match parse_ip(text.trim()) {
        Some(address) => Ok(address),
        None => invalid("--node-ip", format!("{text:?} is not an IP address")),
    };
    texts.iter().map(parse).collect()
}

/// Reads what Go takes for a boolean.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is not true or false")),
    }
}

/// Reads a duration as Go writes them: `30s`, `1m30s`, `1.5h`, `100ms`, `0`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let fail = || format!("{text:?} is not a duration such as 30s, 1m30s or 100ms");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut seconds = 0.0;
    if rest.is_empty() {
        return Err(fail());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(fail)?;
        let value: f64 = rest[..digits].parse().map_err(|_| fail())?;
        rest = &rest[digits..];
        let (unit, factor) = UNITS.into_iter().find(|(unit, _)| rest.starts_with(unit)).ok_or_else(fail)?;
        rest = &rest[unit.len()..];
        seconds += value * factor;
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| fail())
}

/// Go's units with their seconds; longer spellings before their own beginnings.
const UNITS: [(&str, f64); 7] = [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, millis) in [("30s", 30_000), ("1m30s", 90_000), ("1.5h", 5_400_000), ("100ms", 100), ("0", 0), ("0s", 0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "30", "s", "1x", "-1s", "1..5s", "1s "] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cluster_cidrs_are_none_one_or_a_pair() {
        assert_eq!(cluster_cidrs(None), Ok(PerFamily::default()));
        let pair = cluster_cidrs(Some("10.244.0.0/16,fd00:10:244::/56")).unwrap();
        assert_eq!((pair.v4, pair.v6), ("10.244.0.0/16".parse().ok(), "fd00:10:244::/56".parse().ok()));
        for bad in ["", "10.0.0.0", "10.0.0.0/8,10.1.0.0/16", "10.0.0.0/8,", "fd00::/8,fd01::/16"] {
            assert!(cluster_cidrs(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn listen_addresses_get_their_default_port() {
        let port = |text| listen_address("--healthz-bind-address", text, 10256);
        assert_eq!(port(""), Ok(None));
        assert_eq!(port("127.0.0.1"), Ok(Some(SocketAddr::from(([127, 0, 0, 1], 10256)))));
        assert_eq!(port("[::1]:80"), Ok("[::1]:80".parse().ok()));
        assert_eq!(port("::"), Ok("[::]:10256".parse().ok()));
        assert!(port("localhost:80").is_err());
    }

    #[test]
    fn feature_gates_are_read_and_the_last_word_counts() {
        let allowed = |text| feature_gates(text).map(|gates| gates.allow_service_external_ips);
        assert_eq!(allowed(""), Ok(true));
        assert_eq!(allowed("AllowServiceExternalIPs=false"), Ok(false));
        assert_eq!(allowed("AllowServiceExternalIPs=false, AllowServiceExternalIPs=T"), Ok(true));
        assert!(allowed("AllowServiceExternalIPs").is_err() && allowed("AllowServiceExternalIPs=off").is_err());
        assert_eq!(feature_gates("Other=true").map(|gates| gates.without_effect), Ok(vec!["Other".into()]));
    }

    #[test]
    fn node_port_addresses_are_ranges_or_primary() {
        let parse = |texts: &[&str]| node_port_addresses(&texts.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(parse(&["primary"]), Ok(NodePortAddresses::Primary));
        assert_eq!(parse(&[]), Ok(NodePortAddresses::Within(vec![])));
        assert_eq!(parse(&[""]), Ok(NodePortAddresses::Within(vec![])));
        assert!(parse(&["primary", "10.0.0.0/8"]).is_err_and(|e| e.cause.contains("both")));
        assert!(parse(&["10.0.0.1"]).is_err());
    }
}
