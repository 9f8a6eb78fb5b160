//! The resolved configuration: checked once, immutable after, printed at start.
//!
//! What the user typed, in a file or as flags, is put into a [`KubeProxyConfiguration`]; [`Config::resolve`] checks it with
//! what no file says ([`Raw`]). No I/O here: what the environment or the kernel says is put in by the caller.

mod check;
mod decode;
mod defaults;
mod duration;
mod gates;
mod ipvs;
mod kube_proxy;
mod problem;
mod process;
mod quantity;
mod text;
mod tree;
mod yaml;

pub use defaults::{NOT_SERVED, with_port};
pub use duration::GoDuration;
pub use gates::{Stage, gates, gates_without_effect};
pub use ipvs::{DRAIN_TIMEOUT, IpvsConfig, LocalAddresses, Timeouts};
pub use kube_proxy::{Decoded, KubeProxyConfiguration};
pub use problem::{Invalid, Problems};
pub use process::{ClientConfig, ConntrackConfig, ConntrackMax, LogFormat, LoggingConfig};
pub use tree::Tree;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::net::PerFamily;

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
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "switches of kube-proxy's, one field each")]
pub struct Config {
    /// This node's name in the API.
    pub node_name: Arc<str>,
    pub source: Source,
    pub rules: RuleConfig,
    /// The configuration file that would make this, as `/configz` shows it.
    pub effective: Arc<KubeProxyConfiguration>,
    /// Program the first complete state and exit.
    pub once: bool,
    /// Set up what takes more privilege than to program rules does, and exit.
    pub init_only: bool,
    /// Addresses the node has beside those of the Node object (`--node-ip`; for `render`).
    pub node_ips: Vec<IpAddr>,
    pub conntrack: ConntrackConfig,
    /// What the kernel adds to this process's badness when memory runs out, -1000 (never this one) to 1000.
    pub oom_score_adj: i16,
    pub client: ClientConfig,
    /// `None`: not served.
    pub healthz_bind_address: Option<SocketAddr>,
    pub metrics_bind_address: Option<SocketAddr>,
    pub bind_address_hard_fail: bool,
    /// Answer `/debug/` on the metrics server.
    pub profiling: bool,
    /// Answer `/statusz` there (feature gate `ComponentStatusz`).
    pub statusz: bool,
    /// Answer `/flagz` there (feature gate `ComponentFlagz`).
    pub flagz: bool,
    pub logging: LoggingConfig,
    /// A sync that is late by twice this makes `/healthz` fail.
    pub sync_period: Duration,
    /// The least time between the end of one sync and the start of the next.
    pub min_sync_period: Duration,
    /// How often everything is compared with the kernel; `None`: never.
    pub audit_period: Option<Duration>,
}

/// What the user asked for, not yet checked: the fields of kube-proxy's configuration, and what is none of them.
#[derive(Clone, Debug)]
pub struct Raw {
    pub configuration: KubeProxyConfiguration,
    /// The kernel's name of this machine.
    pub host_name: String,
    pub manifests: Option<PathBuf>,
    pub master: Option<String>,
    pub once: bool,
    pub init_only: bool,
    /// Remove everything of ours, of whatever mode, and exit.
    pub cleanup: bool,
    pub node_ips: Vec<String>,
    pub audit_period: GoDuration,
    pub ipvs_local_addresses: String,
    pub ipvs_drain_timeout: GoDuration,
}

/// Reads what Go takes for a boolean.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is not true or false")),
    }
}
