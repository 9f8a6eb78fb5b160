//! The configuration as an operator reads it in the log: the command line that would make it.
//!
//! Every flag that has an effect is there, also where nobody gave it; what means "not set" is left out.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use super::{
    Config, ConntrackConfig, ConntrackMax, DetectLocal, GoDuration, IpvsConfig, LogFormat, LoggingConfig, Mode,
    NodePortAddresses, RuleConfig, Source,
};
use crate::net::Family;

impl Display for Config {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "--hostname-override={}", self.node_name)?;
        match &self.source {
            Source::Manifests(path) => word(f, "manifests", &path.display())?,
            Source::Api { kubeconfig, master } => {
                kubeconfig.iter().try_for_each(|path| word(f, "kubeconfig", &path.display()))?;
                master.iter().try_for_each(|url| word(f, "master", url))?;
            }
        }
        list(f, "node-ip", &self.node_ips)?;
        word(f, "kube-api-qps", &self.client.qps)?;
        word(f, "kube-api-burst", &self.client.burst)?;
        for (flag, is_set) in [("once", self.once), ("init-only", self.init_only)] {
            if is_set {
                word(f, flag, &true)?;
            }
        }
        rules(f, &self.rules)?;
        let gates: Vec<_> = self.effective.feature_gates.iter().map(|(gate, on)| format!("{gate}={on}")).collect();
        list(f, "feature-gates", &gates)?;
        conntrack(f, &self.conntrack)?;
        word(f, "oom-score-adj", &self.oom_score_adj)?;
        let served = |address: Option<_>| address.map(|a: std::net::SocketAddr| a.to_string()).unwrap_or_default();
        word(f, "healthz-bind-address", &served(self.healthz_bind_address))?;
        word(f, "metrics-bind-address", &served(self.metrics_bind_address))?;
        word(f, "bind-address-hard-fail", &self.bind_address_hard_fail)?;
        word(f, "profiling", &self.profiling)?;
        let mode = self.rules.mode;
        word(f, &format!("{mode}-sync-period"), &Seconds(self.sync_period))?;
        word(f, &format!("{mode}-min-sync-period"), &Seconds(self.min_sync_period))?;
        word(f, "audit-period", &Seconds(self.audit_period.unwrap_or_default()))?;
        logging(f, &self.logging)
    }
}

fn logging(f: &mut Formatter<'_>, config: &LoggingConfig) -> fmt::Result {
    let format = match config.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    word(f, "logging-format", &format)?;
    if config.split_stream {
        word(f, &format!("log-{format}-split-stream"), &true)?;
    }
    word(f, "v", &config.verbosity)?;
    let modules: Vec<_> = config.modules.iter().map(|(pattern, level)| format!("{pattern}={level}")).collect();
    list(f, "vmodule", &modules)
}

fn rules(f: &mut Formatter<'_>, config: &RuleConfig) -> fmt::Result {
    word(f, "proxy-mode", &config.mode)?;
    detect_local(f, &config.detect_local)?;
    word(f, "masquerade-all", &config.masquerade_all)?;
    word(f, "iptables-masquerade-bit", &config.masquerade_mark.trailing_zeros())?;
    if config.mode == Mode::Iptables {
        word(f, "iptables-localhost-nodeports", &config.localhost_node_ports)?;
    }
    match &config.node_port_addresses {
        NodePortAddresses::Primary => word(f, "nodeport-addresses", &"primary")?,
        NodePortAddresses::Within(ranges) => list(f, "nodeport-addresses", ranges)?,
    }
    config.bind_address.iter().try_for_each(|address| word(f, "bind-address", address))?;
    list(f, "ipvs-exclude-cidrs", &config.ipvs.exclude_cidrs)?;
    if config.mode == Mode::Ipvs { ipvs(f, &config.ipvs) } else { Ok(()) }
}

fn conntrack(f: &mut Formatter<'_>, config: &ConntrackConfig) -> fmt::Result {
    let ConntrackMax { per_core, min } = config.max.unwrap_or(ConntrackMax { per_core: 0, min: 0 });
    word(f, "conntrack-max-per-core", &per_core)?;
    if per_core > 0 {
        word(f, "conntrack-min", &min)?;
    }
    word(f, "conntrack-tcp-timeout-established", &Seconds(config.tcp_established.unwrap_or_default()))?;
    word(f, "conntrack-tcp-timeout-close-wait", &Seconds(config.tcp_close_wait.unwrap_or_default()))?;
    word(f, "conntrack-tcp-be-liberal", &config.tcp_be_liberal)?;
    for (flag, timeout) in [("conntrack-udp-timeout", config.udp), ("conntrack-udp-timeout-stream", config.udp_stream)] {
        timeout.iter().try_for_each(|&timeout| word(f, flag, &Seconds(timeout)))?;
    }
    Ok(())
}

fn ipvs(f: &mut Formatter<'_>, config: &IpvsConfig) -> fmt::Result {
    word(f, "ipvs-scheduler", &config.scheduler)?;
    word(f, "ipvs-strict-arp", &config.strict_arp)?;
    let timeouts = config.timeouts;
    for (flag, timeout) in
        [("ipvs-tcp-timeout", timeouts.tcp), ("ipvs-tcpfin-timeout", timeouts.tcp_fin), ("ipvs-udp-timeout", timeouts.udp)]
    {
        timeout.iter().try_for_each(|&timeout| word(f, flag, &Seconds(timeout)))?;
    }
    word(f, "ipvs-local-addresses", &config.local_addresses.as_str())?;
    word(f, "ipvs-drain-timeout", &Seconds(config.drain_timeout))
}

fn detect_local(f: &mut Formatter<'_>, detect: &DetectLocal) -> fmt::Result {
    match detect {
        DetectLocal::ClusterCidr(cidrs) => {
            word(f, "detect-local-mode", &"ClusterCIDR")?;
            let cidrs: Vec<_> = Family::ALL.into_iter().filter_map(|family| cidrs[family]).collect();
            list(f, "cluster-cidr", &cidrs)
        }
        DetectLocal::NodeCidr => word(f, "detect-local-mode", &"NodeCIDR"),
        DetectLocal::BridgeInterface(name) => {
            word(f, "detect-local-mode", &"BridgeInterface")?;
            word(f, "pod-bridge-interface", name)
        }
        DetectLocal::InterfaceNamePrefix(prefix) => {
            word(f, "detect-local-mode", &"InterfaceNamePrefix")?;
            word(f, "pod-interface-name-prefix", prefix)
        }
    }
}

fn word(f: &mut Formatter<'_>, flag: &str, value: &dyn Display) -> fmt::Result {
    let value = value.to_string();
    let plain = !value.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"');
    if plain { write!(f, " --{flag}={value}") } else { write!(f, " --{flag}={value:?}") }
}

fn list(f: &mut Formatter<'_>, flag: &str, values: &[impl Display]) -> fmt::Result {
    if values.is_empty() {
        return Ok(());
    }
    let texts: Vec<_> = values.iter().map(ToString::to_string).collect();
    word(f, flag, &texts.join(","))
}

/// As Go writes durations: `30s`, `1.5s`, `24h0m0s`.
struct Seconds(Duration);

impl Display for Seconds {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        GoDuration::from(self.0).fmt(f)
    }
}
