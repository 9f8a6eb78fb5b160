//! What the process asks of the node and of the API server beside rules.

use std::time::Duration;

/// Limits and timeouts of connection tracking (behaviour.md §7.3). `None`: as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConntrackConfig {
    /// Tracked connections for each CPU core, and the least in all whatever the number of cores.
    pub max: Option<ConntrackMax>,
    /// How long an idle connection that stands is remembered.
    pub tcp_established: Option<Duration>,
    /// And one of which the other side has closed its half.
    pub tcp_close_wait: Option<Duration>,
    /// Set `nf_conntrack_tcp_be_liberal`, and so leave out the rule that drops INVALID packets.
    pub tcp_be_liberal: bool,
    /// Of UDP packets that went one way only.
    pub udp: Option<Duration>,
    /// Of UDP packets that went both ways.
    pub udp_stream: Option<Duration>,
}

/// How `nf_conntrack_max` is reckoned: the number of cores times `per_core`, `min` at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackMax {
    pub per_core: u32,
    pub min: u32,
}

/// How the API server may be asked.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientConfig {
    /// Requests in a second, in the long run; negative: without a limit, 0: 5, as client-go has it.
    pub qps: f32,
    /// Requests at once; 0: 10.
    pub burst: u32,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// What is logged, and where to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoggingConfig {
    pub format: LogFormat,
    /// kube-proxy's `-v`.
    pub verbosity: u32,
    /// Patterns of module names, and the verbosity of those modules, where it is higher.
    pub modules: Vec<(String, u32)>,
    /// Lines that are no warnings and no errors go to standard output.
    pub split_stream: bool,
}
