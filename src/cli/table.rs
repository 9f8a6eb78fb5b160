//! The flags as data: kube-proxy's (behaviour.md §1.2) and our own.

use crate::config::Mode;

/// What kind of value a flag takes, as Go's pflag reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `--flag` or `--flag=true|false`, or what else Go takes for these words.
    Bool,
    Text,
    Whole,
    Decimal,
    /// `1m30s`
    Duration,
    /// Commas or repetition separate values.
    List,
    /// `Gate=true,Other=false`
    Gates,
    /// `module=4,other=6`
    Modules,
    /// How much is logged.
    Level,
    /// `--version`, `--version=raw`, `--version=v1.36.2`
    Version,
}

/// When a flag does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Yes,
    /// In this mode alone; a use in another is named in a warning.
    In(Mode),
    /// Accepted so that kube-proxy's command lines start; a use is named in a warning.
    None,
}

/// Whose flag it is, and whether it counts beside `--config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// kube-proxy's: the file is in its place.
    KubeProxy,
    /// kube-proxy's, and counts beside a file too.
    BesideFile,
    /// Ours: no file says this.
    Own,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Flag {
    pub name: &'static str,
    pub kind: Kind,
    /// Empty: no value.
    pub default: &'static str,
    /// Its path in the configuration; empty: it is no part of that.
    pub field: &'static str,
    pub heading: &'static str,
    pub help: &'static str,
    pub effect: Effect,
    pub origin: Origin,
}

impl Flag {
    const fn new(name: &'static str, kind: Kind, heading: &'static str, help: &'static str) -> Self {
        Self { name, kind, default: "", field: "", heading, help, effect: Effect::Yes, origin: Origin::KubeProxy }
    }

    const fn or(self, default: &'static str) -> Self {
        Self { default, ..self }
    }

    const fn field(self, field: &'static str) -> Self {
        Self { field, ..self }
    }

    const fn only(self, mode: Mode) -> Self {
        Self { effect: Effect::In(mode), ..self }
    }

    const fn idle(self) -> Self {
        Self { effect: Effect::None, ..self }
    }

    const fn beside_file(self) -> Self {
        Self { origin: Origin::BesideFile, ..self }
    }

    const fn own(self) -> Self {
        Self { origin: Origin::Own, ..self }
    }
}

const SOURCE: &str = "Where Services come from";
const RULES: &str = "Rules";
const SERVING: &str = "Health and metrics";
const PACE: &str = "Pace";
const IPVS: &str = "With --proxy-mode=ipvs";
const NODE: &str = "The node";
const LOGGING: &str = "Logging";
const FILE: &str = "Configuration file";
const OTHER: &str = "Other";

/// In the order `--help` shows them.
pub(super) const FLAGS: &[Flag] = &[
    Flag::new(
        "manifests",
        Kind::Text,
        SOURCE,
        "Read Services, EndpointSlices and Nodes from this file or folder of YAML or JSON, and follow it as it changes, instead of the API server",
    )
    .own(),
    Flag::new(
        "kubeconfig",
        Kind::Text,
        SOURCE,
        "Kubeconfig of the API server; without it and --master: the pod's service account",
    )
    .field("clientConnection.kubeconfig"),
    Flag::new("master", Kind::Text, SOURCE, "URL of the API server; overrides the kubeconfig's").beside_file(),
    Flag::new("hostname-override", Kind::Text, SOURCE, "Name of this node in the API [default: the host's name]")
        .field("hostnameOverride")
        .beside_file(),
    Flag::new("node-ip", Kind::List, SOURCE, "Addresses of the node that its Node object does not tell; for render").own(),
    Flag::new("kube-api-qps", Kind::Decimal, SOURCE, "Requests to the API server in a second, in the long run; below 0: without a limit")
        .or("5")
        .field("clientConnection.qps"),
    Flag::new("kube-api-burst", Kind::Whole, SOURCE, "Requests to the API server at once").or("10").field("clientConnection.burst"),
    Flag::new("config", Kind::Text, FILE, "Read a KubeProxyConfiguration (YAML or JSON) instead of flags, and follow it as it changes. Beside it count --hostname-override, --master, the flags under Logging, and those that kube-proxy does not have")
        .beside_file(),
    Flag::new("write-config-to", Kind::Text, FILE, "Write the configuration that is in effect to this file, and exit").beside_file(),
    Flag::new("proxy-mode", Kind::Text, RULES, "How Services are made to work: iptables or ipvs (nftables is to come) [default: iptables]")
        .field("mode"),
    Flag::new(
        "cluster-cidr",
        Kind::Text,
        RULES,
        "Range of the pods' addresses; two, with a comma, for dual stack. Traffic to Services from elsewhere is masqueraded",
    )
    .field("clusterCIDR"),
    Flag::new(
        "detect-local-mode",
        Kind::Text,
        RULES,
        "How to tell this node's pods: ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix [default: ClusterCIDR]",
    )
    .field("detectLocalMode"),
    Flag::new("pod-bridge-interface", Kind::Text, RULES, "Bridge of the pods, for --detect-local-mode=BridgeInterface")
        .field("detectLocal.bridgeInterface"),
    Flag::new(
        "pod-interface-name-prefix",
        Kind::Text,
        RULES,
        "How the names of the pods' interfaces begin, for --detect-local-mode=InterfaceNamePrefix",
    )
    .field("detectLocal.interfaceNamePrefix"),
    Flag::new(
        "nodeport-addresses",
        Kind::List,
        RULES,
        "Ranges of node addresses that accept node ports, or the word primary [default: all]",
    )
    .field("nodePortAddresses"),
    Flag::new("masquerade-all", Kind::Bool, RULES, "Masquerade all traffic to ClusterIPs").or("false").field("iptables.masqueradeAll"),
    Flag::new("iptables-masquerade-bit", Kind::Whole, RULES, "Bit of the packet mark that asks for masquerading, 0 to 31")
        .or("14")
        .field("iptables.masqueradeBit"),
    Flag::new("iptables-localhost-nodeports", Kind::Bool, RULES, "Accept node ports on 127.0.0.1 too")
        .or("true")
        .field("iptables.localhostNodePorts")
        .only(Mode::Iptables),
    Flag::new("bind-address", Kind::Text, RULES, "This node's address, where it is not the Node object's")
        .or("0.0.0.0")
        .field("bindAddress"),
    Flag::new(
        "feature-gates",
        Kind::Gates,
        RULES,
        "Gate=true or Gate=false, with commas between: AllowServiceExternalIPs=false leaves externalIPs alone, ComponentStatusz=false and ComponentFlagz=false switch /statusz and /flagz off, LoggingAlphaOptions=true allows to split streams; AllAlpha and AllBeta set all gates of a stage",
    )
    .field("featureGates"),
    Flag::new("healthz-bind-address", Kind::Text, SERVING, "Where /healthz and /livez answer; empty or 0: nowhere")
        .or("0.0.0.0:10256")
        .field("healthzBindAddress"),
    Flag::new("metrics-bind-address", Kind::Text, SERVING, "Where /metrics answers; empty or 0: nowhere")
        .or("127.0.0.1:10249")
        .field("metricsBindAddress"),
    Flag::new("healthz-port", Kind::Whole, SERVING, "Port of --healthz-bind-address, if that has none; 0: nowhere; deprecated")
        .or("10256"),
    Flag::new("metrics-port", Kind::Whole, SERVING, "Port of --metrics-bind-address, if that has none; 0: nowhere; deprecated")
        .or("10249"),
    Flag::new("bind-address-hard-fail", Kind::Bool, SERVING, "End the process when one of these addresses cannot be bound")
        .or("false")
        .field("bindAddressHardFail"),
    Flag::new("profiling", Kind::Bool, SERVING, "Answer /debug/ where /metrics answers").or("false").field("enableProfiling"),
    Flag::new(
        "iptables-sync-period",
        Kind::Duration,
        PACE,
        "A change that is not programmed within twice this makes /healthz fail",
    )
    .or("30s")
    .field("iptables.syncPeriod")
    .only(Mode::Iptables),
    Flag::new("iptables-min-sync-period", Kind::Duration, PACE, "Least time between two syncs")
        .or("0s")
        .field("iptables.minSyncPeriod")
        .only(Mode::Iptables),
    Flag::new(
        "audit-period",
        Kind::Duration,
        PACE,
        "How often the node's rules are compared with what they should be, in case a change by others was missed; 0: never",
    )
    .or("15m")
    .own(),
    Flag::new(
        "conntrack-max-per-core",
        Kind::Whole,
        NODE,
        "Tracked connections for each CPU core (sets nf_conntrack_max); 0: as the kernel has it",
    )
    .or("32768")
    .field("conntrack.maxPerCore"),
    Flag::new("conntrack-min", Kind::Whole, NODE, "Tracked connections at least, whatever the number of cores")
        .or("131072")
        .field("conntrack.min"),
    Flag::new(
        "conntrack-tcp-timeout-established",
        Kind::Duration,
        NODE,
        "How long an idle TCP connection is tracked; 0: as the kernel has it",
    )
    .or("24h")
    .field("conntrack.tcpEstablishedTimeout"),
    Flag::new("conntrack-tcp-timeout-close-wait", Kind::Duration, NODE, "The same once the other side has closed its half")
        .or("1h")
        .field("conntrack.tcpCloseWaitTimeout"),
    Flag::new("conntrack-udp-timeout", Kind::Duration, NODE, "The same for UDP packets that nobody answered")
        .or("0s")
        .field("conntrack.udpTimeout"),
    Flag::new("conntrack-udp-timeout-stream", Kind::Duration, NODE, "The same for UDP packets that were answered")
        .or("0s")
        .field("conntrack.udpStreamTimeout"),
    Flag::new(
        "conntrack-tcp-be-liberal",
        Kind::Bool,
        NODE,
        "Let conntrack accept packets outside the TCP window (sets nf_conntrack_tcp_be_liberal)",
    )
    .or("false")
    .field("conntrack.tcpBeLiberal"),
    Flag::new(
        "oom-score-adj",
        Kind::Whole,
        NODE,
        "What the kernel adds to this process's badness when memory runs out, -1000 (never this one) to 1000",
    )
    .or("-999")
    .field("oomScoreAdj"),
    Flag::new(
        "ipvs-scheduler",
        Kind::Text,
        IPVS,
        "How the real server of a new connection is chosen: rr, wrr, lc, wlc, sh, dh, sed, nq or mh [default: rr]",
    )
    .field("ipvs.scheduler")
    .only(Mode::Ipvs),
    Flag::new(
        "ipvs-exclude-cidrs",
        Kind::List,
        IPVS,
        "Ranges in which virtual servers are somebody else's: those that no Service wants stay; counts with --cleanup too, and in other modes where they remove what ipvs mode left",
    )
    .field("ipvs.excludeCIDRs"),
    Flag::new(
        "ipvs-strict-arp",
        Kind::Bool,
        IPVS,
        "Let the node answer no ARP requests for the addresses of virtual servers (sets arp_ignore=1 and arp_announce=2)",
    )
    .or("false")
    .field("ipvs.strictARP")
    .only(Mode::Ipvs),
    Flag::new(
        "ipvs-tcp-timeout",
        Kind::Duration,
        IPVS,
        "Idle time after which a TCP connection is forgotten; 0: as the kernel has it",
    )
    .or("0s")
    .field("ipvs.tcpTimeout")
    .only(Mode::Ipvs),
    Flag::new("ipvs-tcpfin-timeout", Kind::Duration, IPVS, "The same after a FIN").or("0s").field("ipvs.tcpFinTimeout").only(Mode::Ipvs),
    Flag::new("ipvs-udp-timeout", Kind::Duration, IPVS, "The same for UDP").or("0s").field("ipvs.udpTimeout").only(Mode::Ipvs),
    Flag::new(
        "ipvs-local-addresses",
        Kind::Text,
        IPVS,
        "How addresses of virtual servers are made local: device puts them on kube-ipvs0, where adding many is slow; routes makes local routes, which ip address does not show",
    )
    .or("device")
    .only(Mode::Ipvs)
    .own(),
    Flag::new(
        "ipvs-drain-timeout",
        Kind::Duration,
        IPVS,
        "How long connections to a virtual server that no Service wants any more may live on; 0: they end at once, as with kube-proxy",
    )
    .or("15m")
    .only(Mode::Ipvs)
    .own(),
    Flag::new(
        "ipvs-sync-period",
        Kind::Duration,
        IPVS,
        "How often IPVS and ipsets are compared with what they should be; a change that is not programmed within twice this makes /healthz fail",
    )
    .or("30s")
    .field("ipvs.syncPeriod")
    .only(Mode::Ipvs),
    Flag::new("ipvs-min-sync-period", Kind::Duration, IPVS, "Least time between two syncs")
        .or("0s")
        .field("ipvs.minSyncPeriod")
        .only(Mode::Ipvs),
    Flag::new("v", Kind::Level, LOGGING, "0: what an operator needs; 1: the flags too; 4: each step; 8: everything")
        .or("0")
        .field("logging.verbosity")
        .beside_file(),
    Flag::new(
        "vmodule",
        Kind::Modules,
        LOGGING,
        "The same for single modules, where it is more: rules=4,watch=6; names may have * and ?. Lines name their module then, and with -v=4",
    )
    .field("logging.vmodule")
    .beside_file(),
    Flag::new("logging-format", Kind::Text, LOGGING, "How log lines look: text or json").or("text").field("logging.format").beside_file(),
    Flag::new(
        "log-text-split-stream",
        Kind::Bool,
        LOGGING,
        "Write what is no warning and no error to standard output, as text; needs --feature-gates=LoggingAlphaOptions=true",
    )
    .or("false")
    .field("logging.options.text.splitStream")
    .beside_file(),
    Flag::new("log-json-split-stream", Kind::Bool, LOGGING, "The same with --logging-format=json")
        .or("false")
        .field("logging.options.json.splitStream")
        .beside_file(),
    Flag::new("once", Kind::Bool, OTHER, "Program the first complete state, print a summary, and exit").or("false").own(),
    Flag::new("init-only", Kind::Bool, OTHER, "Set up what takes more privilege than to program rules does (sysctls, kernel modules), and exit: for an init container; needs no API server").or("false").beside_file(),
    Flag::new("cleanup", Kind::Bool, OTHER, "Remove everything that any mode made on this node, and exit").or("false").beside_file(),
    Flag::new("version", Kind::Version, OTHER, "Print the version and exit").or("false").beside_file(),
    Flag::new("config-sync-period", Kind::Duration, "", "changes are watched, and need no reading again").or("15m").field("configSyncPeriod").idle(),
    Flag::new("kube-api-content-type", Kind::Text, "", "the API server is always asked for JSON")
        .or("application/vnd.kubernetes.protobuf")
        .field("clientConnection.contentType")
        .idle(),
    Flag::new("show-hidden-metrics-for-version", Kind::Text, "", "no metrics are hidden")
        .field("showHiddenMetricsForVersion")
        .idle(),
    Flag::new("log-flush-frequency", Kind::Duration, "", "each line is written at once").or("5s").field("logging.flushFrequency").beside_file().idle(),
    Flag::new("log-text-info-buffer-size", Kind::Text, "", "the same").or("0").field("logging.options.text.infoBufferSize").beside_file().idle(),
    Flag::new("log-json-info-buffer-size", Kind::Text, "", "the same").or("0").field("logging.options.json.infoBufferSize").beside_file().idle(),
    Flag::new("boot-id-file", Kind::Text, "", "nothing asks for the machine's identity")
        .or("/proc/sys/kernel/random/boot_id")
        .beside_file()
        .idle(),
    Flag::new("machine-id-file", Kind::Text, "", "the same").or("/etc/machine-id,/var/lib/dbus/machine-id").beside_file().idle(),
];
