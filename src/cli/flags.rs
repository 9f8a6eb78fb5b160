//! The flags as a table, and how values are read off it.

use std::ffi::OsString;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, builder::PossibleValuesParser};

use crate::config::{Mode, parse_bool, parse_duration};

/// What kind of value a flag takes, as Go's pflag reads it.
#[derive(Clone, Copy)]
enum Kind {
    /// `--flag` or `--flag=true|false`, or what else Go takes for these words.
    Bool,
    Text,
    Number,
    /// `1m30s`
    Duration,
    /// Commas or repetition separate values.
    List,
}

#[derive(Clone, Copy)]
struct Flag {
    name: &'static str,
    kind: Kind,
    /// Empty: no value.
    default: &'static str,
    heading: &'static str,
    help: &'static str,
    effect: Effect,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Yes,
    /// In this mode alone; a use in another is named in a warning.
    In(Mode),
    /// Accepted so that kube-proxy's command lines start; a use is named in a warning.
    None,
}

const fn flag(name: &'static str, kind: Kind, default: &'static str, heading: &'static str, help: &'static str) -> Flag {
    Flag { name, kind, default, heading, help, effect: Effect::Yes }
}

/// The same for a flag that counts in one mode.
const fn only(mode: Mode, flag: Flag) -> Flag {
    Flag { effect: Effect::In(mode), ..flag }
}

const fn ipvs(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
    only(Mode::Ipvs, flag(name, kind, default, IPVS, help))
}

const fn idle(name: &'static str, kind: Kind) -> Flag {
    Flag { name, kind, default: "", heading: "", help: "", effect: Effect::None }
}

const SOURCE: &str = "Where Services come from";
const RULES: &str = "Rules";
const SERVING: &str = "Health and metrics";
const PACE: &str = "Pace";
const IPVS: &str = "With --proxy-mode=ipvs";
const OTHER: &str = "Other";

/// In the order `--help` shows them.
const FLAGS: &[Flag] = &[
    flag(
        "manifests",
        Kind::Text,
        "",
        SOURCE,
        "Read Services, EndpointSlices and Nodes from this file or folder of YAML or JSON, and follow it as it changes, instead of the API server",
    ),
    flag(
        "kubeconfig",
        Kind::Text,
        "",
        SOURCE,
        "Kubeconfig of the API server; without it and --master: the pod's service account",
    ),
    flag("master", Kind::Text, "", SOURCE, "URL of the API server; overrides the kubeconfig's"),
    flag("hostname-override", Kind::Text, "", SOURCE, "Name of this node in the API [default: the host's name]"),
    flag("node-ip", Kind::List, "", SOURCE, "Addresses of the node that its Node object does not tell; for render"),
    flag("proxy-mode", Kind::Text, "iptables", RULES, "How Services are made to work: iptables or ipvs (nftables is to come)"),
    flag(
        "cluster-cidr",
        Kind::Text,
        "",
        RULES,
        "Range of the pods' addresses; two, with a comma, for dual stack. Traffic to Services from elsewhere is masqueraded",
    ),
    flag(
        "detect-local-mode",
        Kind::Text,
        "ClusterCIDR",
        RULES,
        "How to tell this node's pods: ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix",
    ),
    flag("pod-bridge-interface", Kind::Text, "", RULES, "Bridge of the pods, for --detect-local-mode=BridgeInterface"),
    flag(
        "pod-interface-name-prefix",
        Kind::Text,
        "",
        RULES,
        "How the names of the pods' interfaces begin, for --detect-local-mode=InterfaceNamePrefix",
    ),
    flag(
        "nodeport-addresses",
        Kind::List,
        "",
        RULES,
        "Ranges of node addresses that accept node ports, or the word primary [default: all]",
    ),
    flag("masquerade-all", Kind::Bool, "false", RULES, "Masquerade all traffic to ClusterIPs"),
    flag("iptables-masquerade-bit", Kind::Number, "14", RULES, "Bit of the packet mark that asks for masquerading, 0 to 31"),
    only(Mode::Iptables, flag("iptables-localhost-nodeports", Kind::Bool, "true", RULES, "Accept node ports on 127.0.0.1 too")),
    flag("bind-address", Kind::Text, "0.0.0.0", RULES, "This node's address, where it is not the Node object's"),
    flag(
        "conntrack-tcp-be-liberal",
        Kind::Bool,
        "false",
        RULES,
        "Let conntrack accept packets outside the TCP window (sets nf_conntrack_tcp_be_liberal)",
    ),
    flag(
        "feature-gates",
        Kind::Text,
        "",
        RULES,
        "Gate=true or Gate=false, with commas between: AllowServiceExternalIPs=false leaves externalIPs alone",
    ),
    flag("healthz-bind-address", Kind::Text, "0.0.0.0:10256", SERVING, "Where /healthz and /livez answer; empty: nowhere"),
    flag("metrics-bind-address", Kind::Text, "127.0.0.1:10249", SERVING, "Where /metrics answers; empty: nowhere"),
    flag("bind-address-hard-fail", Kind::Bool, "false", SERVING, "End the process when one of these addresses cannot be bound"),
    only(
        Mode::Iptables,
        flag(
            "iptables-sync-period",
            Kind::Duration,
            "30s",
            PACE,
            "A change that is not programmed within twice this makes /healthz fail",
        ),
    ),
    only(Mode::Iptables, flag("iptables-min-sync-period", Kind::Duration, "0s", PACE, "Least time between two syncs")),
    flag(
        "audit-period",
        Kind::Duration,
        "15m",
        PACE,
        "How often the node's rules are compared with what they should be, in case a change by others was missed; 0: never",
    ),
    ipvs(
        "ipvs-scheduler",
        Kind::Text,
        "rr",
        "How the real server of a new connection is chosen: rr, wrr, lc, wlc, sh, dh, sed, nq or mh",
    ),
    flag(
        "ipvs-exclude-cidrs",
        Kind::List,
        "",
        IPVS,
        "Ranges in which virtual servers are somebody else's: those that no Service wants stay; counts with --cleanup too, and in other modes where they remove what ipvs mode left",
    ),
    ipvs(
        "ipvs-strict-arp",
        Kind::Bool,
        "false",
        "Let the node answer no ARP requests for the addresses of virtual servers (sets arp_ignore=1 and arp_announce=2)",
    ),
    ipvs(
        "ipvs-tcp-timeout",
        Kind::Duration,
        "0s",
        "Idle time after which a TCP connection is forgotten; 0: as the kernel has it",
    ),
    ipvs("ipvs-tcpfin-timeout", Kind::Duration, "0s", "The same after a FIN"),
    ipvs("ipvs-udp-timeout", Kind::Duration, "0s", "The same for UDP"),
    ipvs(
        "ipvs-local-addresses",
        Kind::Text,
        "device",
        "How addresses of virtual servers are made local: device puts them on kube-ipvs0, where adding many is slow; routes makes local routes, which ip address does not show",
    ),
    ipvs(
        "ipvs-drain-timeout",
        Kind::Duration,
        "15m",
        "How long connections to a virtual server that no Service wants any more may live on; 0: they end at once, as with kube-proxy",
    ),
    ipvs(
        "ipvs-sync-period",
        Kind::Duration,
        "30s",
        "How often IPVS and ipsets are compared with what they should be; a change that is not programmed within twice this makes /healthz fail",
    ),
    ipvs("ipvs-min-sync-period", Kind::Duration, "0s", "Least time between two syncs"),
    idle("config-sync-period", Kind::Duration),
    idle("conntrack-max-per-core", Kind::Number),
    idle("conntrack-min", Kind::Number),
    idle("conntrack-tcp-timeout-close-wait", Kind::Duration),
    idle("conntrack-tcp-timeout-established", Kind::Duration),
    idle("conntrack-udp-timeout", Kind::Duration),
    idle("conntrack-udp-timeout-stream", Kind::Duration),
    idle("healthz-port", Kind::Number),
    idle("kube-api-burst", Kind::Number),
    idle("kube-api-content-type", Kind::Text),
    idle("kube-api-qps", Kind::Text),
    idle("log-flush-frequency", Kind::Duration),
    idle("log-json-info-buffer-size", Kind::Text),
    idle("log-json-split-stream", Kind::Bool),
    idle("log-text-info-buffer-size", Kind::Text),
    idle("log-text-split-stream", Kind::Bool),
    idle("metrics-port", Kind::Number),
    idle("oom-score-adj", Kind::Number),
    idle("profiling", Kind::Bool),
    idle("show-hidden-metrics-for-version", Kind::Text),
    idle("vmodule", Kind::Text),
    idle("boot-id-file", Kind::Text),
    idle("machine-id-file", Kind::Text),
];

/// A flag that would do something else than what was asked for, if it were passed over.
pub(super) struct NotBuilt {
    pub name: &'static str,
    kind: Kind,
    /// What to do instead.
    pub hint: &'static str,
}

const NOT_BUILT: &[NotBuilt] = &[
    NotBuilt { name: "config", kind: Kind::Text, hint: "give the settings as flags" },
    NotBuilt { name: "init-only", kind: Kind::Bool, hint: "set net.ipv4.conf.all.route_localnet=1 beforehand" },
    NotBuilt { name: "write-config-to", kind: Kind::Text, hint: "see --help for the flags and their defaults" },
];

/// The first flag that asks for what is not built.
pub(super) fn not_built(matches: &ArgMatches) -> Option<&'static NotBuilt> {
    NOT_BUILT.iter().find(|flag| match flag.kind {
        Kind::Bool => is_set(matches, flag.name),
        _ => !text(matches, flag.name).is_empty(),
    })
}

/// The flags that `sluice` and `sluice render` share.
pub(super) fn args() -> Vec<Arg> {
    FLAGS.iter().map(arg).collect()
}

/// The flags of the running proxy alone.
pub(super) fn run_args() -> Vec<Arg> {
    let once = flag("once", Kind::Bool, "false", PACE, "Program the first complete state, print a summary, and exit");
    let cleanup = flag("cleanup", Kind::Bool, "false", OTHER, "Remove everything that any mode made on this node, and exit");
    let refused = NOT_BUILT.iter().map(|f| arg(&flag(f.name, f.kind, "", "", "")).hide(true));
    let format =
        Arg::new("logging-format").long("logging-format").help_heading("Logging").value_name("FORMAT").help("How log lines look");
    let verbosity = Arg::new("verbosity").short('v').long("v").help_heading("Logging").value_name("LEVEL");
    let own = [
        arg(&once),
        arg(&cleanup),
        format.default_value("text").overrides_with("logging-format").value_parser(PossibleValuesParser::new(["text", "json"])),
        version(),
        verbosity
            .help("0: what an operator needs; 4: each step; 8: everything")
            .default_value("0")
            .allow_hyphen_values(true)
            .overrides_with("verbosity")
            .value_parser(parse_verbosity),
    ];
    own.into_iter().chain(refused).collect()
}

/// `--version`, and `--version=raw` as kube-proxy has it.
fn version() -> Arg {
    let arg = Arg::new("version").long("version").short('V').help_heading(OTHER).help("Print the version and exit");
    arg.num_args(0..=1).require_equals(true).default_missing_value("true").hide_possible_values(true).value_name("true|raw")
}

/// Is the version asked for?
pub(super) fn wants_version(matches: &ArgMatches) -> bool {
    matches.get_one::<String>("version").is_some_and(|text| parse_bool(text) != Ok(false))
}

/// What `--help` says below the flags.
pub(super) fn afterword() -> String {
    let names = |list: Vec<&str>| list.iter().map(|name| format!("--{name}")).collect::<Vec<_>>().join(" ");
    let idle = names(FLAGS.iter().filter(|flag| flag.effect == Effect::None).map(|flag| flag.name).collect());
    let refused = names(NOT_BUILT.iter().map(|flag| flag.name).collect());
    format!(
        "Accepted for kube-proxy's sake, without effect in this version (a use is named in the log):\n{idle}\n\n\
         Not built into this version yet:\n{refused}\n\n\
         Exit codes: 0 done, 1 failed, 2 arguments that cannot be used."
    )
}

/// `render --family`.
pub(super) fn family() -> Arg {
    let arg = Arg::new("family").long("family").help("Print one family only [default: both]");
    arg.value_parser(PossibleValuesParser::new(["ipv4", "ipv6"]))
}

fn arg(flag: &Flag) -> Arg {
    let arg = Arg::new(flag.name).long(flag.name).help_heading(flag.heading).help(flag.help);
    let arg = match flag.kind {
        Kind::Bool => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("true|false")
            .value_parser(parse_bool),
        Kind::Text => arg.value_name("TEXT"),
        // A value that begins with a minus is a bad value and no other flag.
        Kind::Number => arg.value_name("N").allow_hyphen_values(true).value_parser(parse_number),
        Kind::Duration => arg.value_name("DURATION").allow_hyphen_values(true).value_parser(parse_duration),
        Kind::List => arg.value_name("LIST").value_delimiter(',').action(ArgAction::Append),
    };
    let arg = if flag.default.is_empty() { arg } else { arg.default_value(flag.default) };
    // pflag lets the last one count where a flag is repeated; lists grow.
    let arg = if matches!(flag.kind, Kind::List) { arg } else { arg.overrides_with(flag.name) };
    let arg = if flag.name == "proxy-mode" { arg.visible_alias("mode") } else { arg };
    arg.hide(flag.effect == Effect::None)
}

fn parse_number(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| format!("{text:?} is not a whole number"))
}

/// Levels above the highest are the highest, as in klog.
fn parse_verbosity(text: &str) -> Result<u8, String> {
    let level = parse_number(text)?;
    u8::try_from(level.min(i64::from(u8::MAX))).map_err(|_| format!("{level} is below 0"))
}

/// kube-proxy takes `_` for `-` in the names of flags.
pub(super) fn normalized(argument: OsString) -> OsString {
    let Some(flag) = argument.to_str().and_then(|text| text.strip_prefix("--")) else { return argument };
    let name = flag.split('=').next().unwrap_or_default();
    if !name.contains('_') {
        return argument;
    }
    format!("--{}{}", name.replace('_', "-"), &flag[name.len()..]).into()
}

/// The long names of the flags that do something, or would.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FLAGS.iter().map(|flag| flag.name).chain(NOT_BUILT.iter().map(|flag| flag.name)).chain([
        "mode",
        "once",
        "cleanup",
        "logging-format",
    ])
}

/// The values of a list; `--flag=` adds none.
pub(super) fn list(matches: &ArgMatches, name: &str) -> Vec<String> {
    matches.get_many::<String>(name).into_iter().flatten().filter(|value| !value.is_empty()).cloned().collect()
}

fn is_given(matches: &ArgMatches, name: &str) -> bool {
    matches.value_source(name) == Some(ValueSource::CommandLine)
}

/// The flags that were given and do nothing in any mode.
pub(super) fn without_effect(matches: &ArgMatches) -> impl Iterator<Item = &'static str> + '_ {
    let idle = FLAGS.iter().filter(|flag| flag.effect == Effect::None).map(|flag| flag.name);
    idle.filter(|name| is_given(matches, name))
}

/// The flags that were given and do nothing in this mode.
pub(super) fn of_other_modes(matches: &ArgMatches, mode: Mode) -> impl Iterator<Item = &'static str> + '_ {
    let others = FLAGS.iter().filter(move |flag| matches!(flag.effect, Effect::In(other) if other != mode));
    others.map(|flag| flag.name).filter(|name| is_given(matches, name))
}

pub(super) fn text(matches: &ArgMatches, name: &str) -> String {
    matches.get_one::<String>(name).cloned().unwrap_or_default()
}

pub(super) fn is_set(matches: &ArgMatches, name: &str) -> bool {
    matches.try_get_one::<bool>(name).ok().flatten().copied().unwrap_or_default()
}

pub(super) fn verbosity(matches: &ArgMatches) -> u8 {
    matches.get_one::<u8>("verbosity").copied().unwrap_or_default()
}

pub(super) fn number(matches: &ArgMatches, name: &str) -> i64 {
    matches.get_one::<i64>(name).copied().unwrap_or_default()
}

pub(super) fn duration(matches: &ArgMatches, name: &str) -> Duration {
    matches.get_one::<Duration>(name).copied().unwrap_or_default()
}
