//! The checks (behaviour.md §1.4): from what was asked for to what everybody uses, or everything that is wrong with it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::defaults::{BURST, HEALTHZ_PORT, METRICS_PORT, NOT_SERVED, QPS};
use super::ipvs::exclude_cidrs;
use super::kube_proxy::{Conntrack, Logging};
use super::{
    ClientConfig, Config, ConntrackConfig, ConntrackMax, DRAIN_TIMEOUT, DetectLocal, GoDuration, IpvsConfig,
    KubeProxyConfiguration, LogFormat, LoggingConfig, Mode, NodePortAddresses, Problems, Raw, RuleConfig, Source, gates,
};
use crate::net::{Family, PerFamily, parse_cidr, parse_ip};

impl Raw {
    /// What is asked for where nothing is said, on the machine of this name.
    pub fn of_defaults(host_name: &str) -> Self {
        Self {
            configuration: KubeProxyConfiguration::of_defaults(),
            host_name: host_name.to_owned(),
            manifests: None,
            master: None,
            once: false,
            init_only: false,
            cleanup: false,
            node_ips: Vec::new(),
            audit_period: GoDuration::from_secs(15 * 60),
            ipvs_local_addresses: "device".into(),
            ipvs_drain_timeout: DRAIN_TIMEOUT.into(),
        }
    }
}

impl Config {
    /// Checks what the user asked for, or says everything that is wrong with it.
    pub fn resolve(raw: Raw) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let node_name = problems.note("hostnameOverride", node_name(&raw), Arc::default());
        let raw = Raw { configuration: raw.configuration.normalized(), ..raw };
        let fields = &raw.configuration;
        let mode = problems.note("mode", mode(&fields.mode).map(Some), None);
        let (sync_period, min_sync_period) = mode.map(|mode| periods(fields, mode, &mut problems)).unwrap_or_default();
        let mode = mode.unwrap_or(Mode::Iptables);
        if raw.cleanup && mode != Mode::Ipvs {
            // It says what is not to be removed, so it counts whatever the mode.
            exclude_cidrs(&fields.ipvs.exclude_cidrs, &mut problems);
        }
        check_what_has_no_effect(fields, &mut problems);
        let config = Self {
            rules: rules(&raw, mode, &mut problems),
            node_name,
            healthz_bind_address: listen_address(&mut problems, "healthzBindAddress", &fields.healthz_bind_address, HEALTHZ_PORT),
            metrics_bind_address: listen_address(&mut problems, "metricsBindAddress", &fields.metrics_bind_address, METRICS_PORT),
            node_ips: node_ips(&raw.node_ips, &mut problems),
            source: source(&raw),
            once: raw.once,
            init_only: raw.init_only,
            conntrack: conntrack(&fields.conntrack, &mut problems),
            oom_score_adj: problems.note("oomScoreAdj", oom_score_adj(fields.oom_score_adj.unwrap_or_default()), 0),
            client: client(fields, &mut problems),
            profiling: fields.enable_profiling,
            statusz: gates::is_enabled(&fields.feature_gates, gates::STATUSZ),
            flagz: gates::is_enabled(&fields.feature_gates, gates::FLAGZ),
            logging: logging(fields, &mut problems),
            bind_address_hard_fail: fields.bind_address_hard_fail,
            sync_period,
            min_sync_period,
            audit_period: Some(not_negative(&mut problems, "--audit-period", raw.audit_period)).filter(|p| !p.is_zero()),
            effective: Arc::new(raw.configuration),
        };
        problems.none_or_err().map(|()| config)
    }
}

fn rules(raw: &Raw, mode: Mode, problems: &mut Problems) -> RuleConfig {
    let fields = &raw.configuration;
    let bit = masquerade_mark(fields.iptables.masquerade_bit.unwrap_or_default());
    RuleConfig {
        mode,
        detect_local: detect_local(fields, problems),
        masquerade_all: fields.iptables.masquerade_all,
        masquerade_mark: problems.note("iptables.masqueradeBit", bit, 0),
        localhost_node_ports: fields.iptables.localhost_node_ports.unwrap_or(true),
        node_port_addresses: node_port_addresses(&fields.node_port_addresses, problems),
        bind_address: problems.note("bindAddress", bind_address(&fields.bind_address), None),
        external_ips: gates::is_enabled(&fields.feature_gates, gates::EXTERNAL_IPS),
        ipvs: IpvsConfig::resolve(raw, mode, problems),
    }
}

fn mode(text: &str) -> Result<Mode, String> {
    match text {
        "iptables" => Ok(Mode::Iptables),
        "ipvs" => Ok(Mode::Ipvs),
        "nftables" => Err("nftables is not built into this version yet; use iptables or ipvs".into()),
        _ => Err(format!("{text:?} is not one of iptables, ipvs, nftables")),
    }
}

fn source(raw: &Raw) -> Source {
    let kubeconfig = &raw.configuration.client_connection.kubeconfig;
    match &raw.manifests {
        Some(path) => Source::Manifests(path.clone()),
        None => Source::Api {
            kubeconfig: Some(kubeconfig).filter(|path| !path.is_empty()).map(Into::into),
            master: raw.master.clone(),
        },
    }
}

/// The sync period and the least one, from the section of the mode.
fn periods(fields: &KubeProxyConfiguration, mode: Mode, problems: &mut Problems) -> (Duration, Duration) {
    let (section, period, min) = match mode {
        Mode::Iptables => ("iptables", fields.iptables.sync_period, fields.iptables.min_sync_period),
        Mode::Ipvs => ("ipvs", fields.ipvs.sync_period, fields.ipvs.min_sync_period),
    };
    greater_than_zero(problems, &format!("{section}.syncPeriod"), period);
    let field = format!("{section}.minSyncPeriod");
    if min > period {
        problems.add(&field, format!("{min} must not be greater than the sync period, {period}"));
    }
    (period.or_zero(), not_negative(problems, &field, min))
}

fn greater_than_zero(problems: &mut Problems, field: &str, value: GoDuration) {
    if value <= GoDuration::default() {
        problems.add(field, format!("{value} must be greater than 0"));
    }
}

pub(super) fn not_negative(problems: &mut Problems, field: &str, value: GoDuration) -> Duration {
    if value.is_negative() {
        problems.add(field, format!("{value} is below 0"));
    }
    value.or_zero()
}

/// Something that is not blank, where something is there; else the host's name.
fn node_name(raw: &Raw) -> Result<Arc<str>, String> {
    let given = Some(&raw.configuration.hostname_override).filter(|name| !name.is_empty());
    let name = given.unwrap_or(&raw.host_name).trim().to_lowercase();
    if name.is_empty() { Err("empty hostname-override is invalid".into()) } else { Ok(name.into()) }
}

fn masquerade_mark(bit: i32) -> Result<u32, String> {
    match u32::try_from(bit) {
        Ok(bit @ 0..=31) => Ok(1 << bit),
        _ => Err(format!("{bit} is not within the range [0, 31]")),
    }
}

/// The range is the kernel's (`OOM_SCORE_ADJ_MIN` and `_MAX`, include/uapi/linux/oom.h).
fn oom_score_adj(value: i32) -> Result<i16, String> {
    match i16::try_from(value) {
        Ok(value @ -1000..=1000) => Ok(value),
        _ => Err(format!("{value} is not within the range [-1000, 1000]")),
    }
}

/// A number that is no less than 0.
fn count(problems: &mut Problems, field: &str, value: i32) -> u32 {
    let checked = u32::try_from(value).map_err(|_| format!("{value} is not within the range [0, {}]", i32::MAX));
    problems.note(field, checked, 0)
}

fn conntrack(fields: &Conntrack, problems: &mut Problems) -> ConntrackConfig {
    let per_core = count(problems, "conntrack.maxPerCore", fields.max_per_core.unwrap_or_default());
    let min = count(problems, "conntrack.min", fields.min.unwrap_or_default());
    let mut limit = |field: &str, value: Option<GoDuration>| {
        let limit = not_negative(problems, field, value.unwrap_or_default());
        Some(limit).filter(|limit| !limit.is_zero())
    };
    ConntrackConfig {
        max: (per_core > 0).then_some(ConntrackMax { per_core, min }),
        tcp_established: limit("conntrack.tcpEstablishedTimeout", fields.tcp_established_timeout),
        tcp_close_wait: limit("conntrack.tcpCloseWaitTimeout", fields.tcp_close_wait_timeout),
        tcp_be_liberal: fields.tcp_be_liberal,
        udp: limit("conntrack.udpTimeout", Some(fields.udp_timeout)),
        udp_stream: limit("conntrack.udpStreamTimeout", Some(fields.udp_stream_timeout)),
    }
}

/// Zero by a flag is the default too, as client-go has it.
fn client(fields: &KubeProxyConfiguration, problems: &mut Problems) -> ClientConfig {
    let connection = &fields.client_connection;
    let burst = if connection.burst == 0 { BURST } else { connection.burst };
    let qps = if connection.qps == 0.0 { QPS } else { connection.qps };
    ClientConfig { qps, burst: count(problems, "clientConnection.burst", burst) }
}

fn logging(fields: &KubeProxyConfiguration, problems: &mut Problems) -> LoggingConfig {
    let Logging { verbosity, vmodule, options, .. } = &fields.logging;
    let format = match fields.logging.format.as_str() {
        "text" => Ok(LogFormat::Text),
        "json" if !gates::is_enabled(&fields.feature_gates, gates::LOGGING_BETA) => {
            Err(format!("json needs the feature gate {}", gates::LOGGING_BETA))
        }
        "json" => Ok(LogFormat::Json),
        other => Err(format!("{other:?} is not one of text, json")),
    };
    let format = problems.note("logging.format", format, LogFormat::Text);
    if *verbosity > i32::MAX.unsigned_abs() {
        problems.add("logging.verbosity", format!("{verbosity} is not within the range [0, {}]", i32::MAX));
    }
    if format == LogFormat::Json && !vmodule.is_empty() {
        problems.add("logging.vmodule", "counts with the format text only".into());
    }
    for (index, module) in vmodule.iter().enumerate() {
        if module.file_pattern.is_empty() || module.file_pattern.contains(['=', ',']) {
            let cause = format!("{:?} is no pattern of module names", module.file_pattern);
            problems.add(&format!("logging.vmodule[{index}].filePattern"), cause);
        }
    }
    let may_split = gates::is_enabled(&fields.feature_gates, gates::LOGGING_ALPHA);
    for (name, options) in [("text", &options.text), ("json", &options.json)] {
        let needs_gate = [("splitStream", options.split_stream), ("infoBufferSize", !options.info_buffer_size.is_zero())];
        for (field, _) in needs_gate.into_iter().filter(|(_, set)| *set && !may_split) {
            let cause = format!("needs the feature gate {}", gates::LOGGING_ALPHA);
            problems.add(&format!("logging.options.{name}.{field}"), cause);
        }
    }
    let options = if format == LogFormat::Json { &options.json } else { &options.text };
    let modules = vmodule.iter().map(|module| (module.file_pattern.clone(), module.verbosity)).collect();
    LoggingConfig { format, verbosity: *verbosity, modules, split_stream: options.split_stream }
}

/// The minor before that of the kube-proxy whose flags and metrics are these.
const PREVIOUS_MINOR: &str = "1.35";

/// What changes nothing here, and is refused where kube-proxy refuses it.
fn check_what_has_no_effect(fields: &KubeProxyConfiguration, problems: &mut Problems) {
    gates::check(&fields.feature_gates, problems);
    greater_than_zero(problems, "configSyncPeriod", fields.config_sync_period);
    let version = &fields.show_hidden_metrics_for_version;
    if !version.is_empty() && version != PREVIOUS_MINOR {
        let cause = format!("{version:?} is not the previous minor version, {PREVIOUS_MINOR}");
        problems.add("showHiddenMetricsForVersion", cause);
    }
}

fn detect_local(fields: &KubeProxyConfiguration, problems: &mut Problems) -> DetectLocal {
    let mut interface = |field, name: &str| problems.note(field, interface_name(name), Box::default());
    match fields.detect_local_mode.as_str() {
        "ClusterCIDR" => {
            DetectLocal::ClusterCidr(problems.note("clusterCIDR", cluster_cidrs(&fields.cluster_cidr), PerFamily::default()))
        }
        "NodeCIDR" => DetectLocal::NodeCidr,
        "BridgeInterface" => {
            DetectLocal::BridgeInterface(interface("detectLocal.bridgeInterface", &fields.detect_local.bridge_interface))
        }
        "InterfaceNamePrefix" => DetectLocal::InterfaceNamePrefix(interface(
            "detectLocal.interfaceNamePrefix",
            &fields.detect_local.interface_name_prefix,
        )),
        other => {
            let known = "ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix";
            problems.add("detectLocalMode", format!("{other:?} is not one of {known}"));
            DetectLocal::NodeCidr
        }
    }
}

/// At most 15 characters, as `IFNAMSIZ` allows; no `/` or blank, as the kernel demands.
fn interface_name(name: &str) -> Result<Box<str>, String> {
    if name.is_empty() {
        return Err("must not be empty with this way to tell the node's pods".into());
    }
    if name.len() > 15 || name.contains(|c: char| c == '/' || c.is_whitespace()) {
        return Err(format!("{name:?} is not an interface name (1 to 15 characters, no blank, no slash)"));
    }
    Ok(name.into())
}

fn cluster_cidrs(text: &str) -> Result<PerFamily<Option<IpNet>>, String> {
    let mut cidrs = PerFamily::<Option<IpNet>>::default();
    if text.is_empty() {
        return Ok(cidrs);
    }
    for part in text.split(',') {
        let Some(cidr) = parse_cidr(part.trim()) else {
            return Err(format!("{part:?} is not a CIDR such as 10.244.0.0/16 or fd00:10:244::/56"));
        };
        if cidrs[Family::of_net(&cidr)].replace(cidr).is_some() {
            return Err("names two ranges of one family; one, or one of each family, is allowed".into());
        }
    }
    Ok(cidrs)
}

fn node_port_addresses(texts: &[String], problems: &mut Problems) -> NodePortAddresses {
    if texts == ["primary"] {
        return NodePortAddresses::Primary;
    }
    let mut ranges = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let cause = match (text.as_str(), parse_cidr(text.trim())) {
            (_, Some(cidr)) => {
                ranges.push(cidr);
                continue;
            }
            ("primary", None) => "can't use both 'primary' and CIDRs".into(),
            (_, None) => format!("{text:?} is not a CIDR such as 192.168.0.0/16, nor the single word primary"),
        };
        problems.add(&format!("nodePortAddresses[{index}]"), cause);
    }
    NodePortAddresses::Within(ranges)
}

/// An unspecified address (the default `0.0.0.0`) leaves the choice to the Node object.
fn bind_address(text: &str) -> Result<Option<IpAddr>, String> {
    match parse_ip(text) {
        Some(address) => Ok(Some(address).filter(|a| !a.is_unspecified())),
        None => Err(format!("{text:?} is not an IP address")),
    }
}

fn listen_address(problems: &mut Problems, field: &str, text: &str, default_port: u16) -> Option<SocketAddr> {
    if text == NOT_SERVED {
        return None;
    }
    let parsed = socket_address(text);
    if parsed.is_none() {
        let example = format!("0.0.0.0:{default_port} or [::]:{default_port}");
        problems.add(field, format!("{text:?} is not an address such as {example}, nor {NOT_SERVED} for none"));
    }
    parsed
}

/// An address with a port that is not 0.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let ip = parse_ip(bare.unwrap_or(host)).filter(|_| bare.is_some() || !host.contains(':'))?;
    Some(SocketAddr::new(ip, port.parse().ok().filter(|port| *port > 0)?))
}

fn node_ips(texts: &[String], problems: &mut Problems) -> Vec<IpAddr> {
    let parse = |text: &String| {
        let address = parse_ip(text.trim());
        if address.is_none() {
            problems.add("--node-ip", format!("{text:?} is not an IP address"));
        }
        address
    };
    texts.iter().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_cidrs_are_none_one_or_a_pair() {
        assert_eq!(cluster_cidrs(""), Ok(PerFamily::default()));
        let pair = cluster_cidrs("10.244.0.0/16,fd00:10:244::/56").unwrap();
        assert_eq!((pair.v4, pair.v6), ("10.244.0.0/16".parse().ok(), "fd00:10:244::/56".parse().ok()));
        for bad in [",", "10.0.0.0", "10.0.0.0/8,10.1.0.0/16", "10.0.0.0/8,", "fd00::/8,fd01::/16"] {
            assert!(cluster_cidrs(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn listen_addresses_are_an_address_and_a_port() {
        assert_eq!(socket_address("127.0.0.1:80"), Some(SocketAddr::from(([127, 0, 0, 1], 80))));
        assert_eq!(socket_address("127.000.000.001:80"), Some(SocketAddr::from(([127, 0, 0, 1], 80))));
        assert_eq!(socket_address("[::1]:80"), "[::1]:80".parse().ok());
        for bad in ["", "0", "localhost:80", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "::1:80", "[::1]", ":80", "1.2.3.4:"]
        {
            assert_eq!(socket_address(bad), None, "{bad}");
        }
    }

    #[test]
    fn node_port_addresses_are_ranges_or_primary() {
        let parse = |texts: &[&str]| {
            let mut problems = Problems::default();
            let texts: Vec<_> = texts.iter().map(ToString::to_string).collect();
            let addresses = node_port_addresses(&texts, &mut problems);
            problems.none_or_err().map(|()| addresses)
        };
        assert_eq!(parse(&["primary"]), Ok(NodePortAddresses::Primary));
        assert_eq!(parse(&[]), Ok(NodePortAddresses::Within(vec![])));
        let both = "nodePortAddresses[0]: can't use both 'primary' and CIDRs".to_owned();
        assert_eq!(parse(&["primary", "10.0.0.0/8"]).map_err(|problems| problems.to_string()), Err(both));
        assert!(parse(&["10.0.0.1"]).is_err());
    }

    #[test]
    fn everything_wrong_is_named_at_once() {
        let mut raw = Raw::of_defaults("node");
        raw.configuration.iptables.masquerade_bit = Some(32);
        raw.configuration.conntrack.udp_timeout = GoDuration::from_secs(-1);
        raw.node_ips = vec!["x".into()];
        let wanted = "iptables.masqueradeBit: 32 is not within the range [0, 31]; --node-ip: \"x\" is not an IP address; \
                      conntrack.udpTimeout: -1s is below 0";
        assert_eq!(Config::resolve(raw).map_err(|problems| problems.to_string()), Err(wanted.into()));
    }
}
