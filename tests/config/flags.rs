//! Every flag: what it is by default, which field it is, and how a bad value is refused.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::files::effective;
use super::support::Scratch;
use super::{at, body, refused, sluice};

/// A flag and what is expected of it.
struct Row {
    flag: &'static str,
    value: &'static str,
    path: &'static str,
    /// What the effective configuration says then.
    shown: Value,
    /// A bad value, and the beginning of the message behind the flag's name.
    bad: [&'static str; 2],
    /// Other flags that it needs.
    with: &'static [&'static str],
}

fn row(flag: &'static str, value: &'static str, path: &'static str, shown: impl Into<Value>, bad: [&'static str; 2]) -> Row {
    Row { flag, value, path, shown: shown.into(), bad, with: &[] }
}

impl Row {
    fn with(self, with: &'static [&'static str]) -> Self {
        Self { with, ..self }
    }
}

/// No text is wrong for these.
const ANY: [&str; 2] = ["", ""];
const NOT_BOOL: [&str; 2] = ["maybe", "\"maybe\" is not true or false"];
const NOT_WHOLE: [&str; 2] = ["7.5", "\"7.5\" is not a whole number"];
const NOT_DURATION: [&str; 2] = ["30", "\"30\" is not a duration such as 30s"];
const NEGATIVE: [&str; 2] = ["-1s", "-1s is below 0"];
const NOT_ADDRESS: [&str; 2] = ["localhost:80", "\"localhost:80\" is not an address such as"];
const GATE: &[&str] = &["--feature-gates=LoggingAlphaOptions=true"];
const IPVS: &[&str] = &["--mode=ipvs"];

fn general() -> Vec<Row> {
    vec![
        row("bind-address", "192.0.2.1", "bindAddress", "192.0.2.1", ["x", "\"x\" is not an IP address"]),
        row("bind-address-hard-fail", "true", "bindAddressHardFail", true, NOT_BOOL),
        row("config-sync-period", "1m", "configSyncPeriod", "1m0s", ["0s", "0s must be greater than 0"]),
        row(
            "feature-gates",
            "B=false,A=true",
            "featureGates",
            json!({"A": true, "B": false}),
            ["A=2", "A: \"2\" is not true or false"],
        ),
        row("healthz-bind-address", "127.0.0.1", "healthzBindAddress", "127.0.0.1:10256", NOT_ADDRESS),
        row("healthz-port", "8080", "healthzBindAddress", "[::1]:8080", ["x", "\"x\" is not a whole number"])
            .with(&["--healthz-bind-address=::1"]),
        row("hostname-override", " Node-A ", "hostnameOverride", "node-a", [" ", "empty hostname-override is invalid"]),
        row("kube-api-burst", "7", "clientConnection.burst", 7, ["-1", "-1 is not within the range"]),
        row("kube-api-content-type", "application/json", "clientConnection.contentType", "application/json", ANY),
        row("kube-api-qps", "7.1", "clientConnection.qps", 7.1, ["NaN", "\"NaN\" is not a number"]),
        row("kubeconfig", "/k", "clientConnection.kubeconfig", "/k", ANY),
        row("metrics-bind-address", "", "metricsBindAddress", "0", NOT_ADDRESS),
        row("metrics-port", "0", "metricsBindAddress", "0", NOT_WHOLE),
        row("oom-score-adj", "-998", "oomScoreAdj", -998, ["1001", "1001 is not within the range [-1000, 1000]"]),
        row("profiling", "true", "enableProfiling", true, NOT_BOOL),
        row(
            "show-hidden-metrics-for-version",
            "1.35",
            "showHiddenMetricsForVersion",
            "1.35",
            ["1.36", "\"1.36\" is not the previous"],
        ),
    ]
}

fn rules() -> Vec<Row> {
    vec![
        row("cluster-cidr", "10.0.0.0/8,fd00::/64", "clusterCIDR", "10.0.0.0/8,fd00::/64", ["x", "\"x\" is not a CIDR"]),
        row("detect-local-mode", "NodeCIDR", "detectLocalMode", "NodeCIDR", ["x", "\"x\" is not one of ClusterCIDR"]),
        row("iptables-localhost-nodeports", "false", "iptables.localhostNodePorts", false, NOT_BOOL),
        row("iptables-masquerade-bit", "7", "iptables.masqueradeBit", 7, ["32", "32 is not within the range [0, 31]"]),
        row("iptables-min-sync-period", "10s", "iptables.minSyncPeriod", "10s", ["31s", "31s must not be greater than"]),
        row("iptables-sync-period", "1m", "iptables.syncPeriod", "1m0s", ["0s", "0s must be greater than 0"]),
        row("masquerade-all", "true", "iptables.masqueradeAll", true, NOT_BOOL),
        row("nodeport-addresses", "primary", "nodePortAddresses", json!(["primary"]), ["x", "\"x\" is not a CIDR"]),
        row("pod-bridge-interface", "cni0", "detectLocal.bridgeInterface", "cni0", ["a/b", "\"a/b\" is not an interface name"])
            .with(&["--detect-local-mode=BridgeInterface"]),
        row("pod-interface-name-prefix", "veth", "detectLocal.interfaceNamePrefix", "veth", ["a b", "\"a b\" is not an"])
            .with(&["--detect-local-mode=InterfaceNamePrefix"]),
        row("proxy-mode", "ipvs", "mode", "ipvs", ["x", "\"x\" is not one of iptables, ipvs, nftables"]),
    ]
}

fn node() -> Vec<Row> {
    vec![
        row("conntrack-max-per-core", "0", "conntrack.maxPerCore", 0, ["-1", "-1 is not within the range"]),
        row("conntrack-min", "7", "conntrack.min", 7, ["99999999999", "99999999999 is not within the range"]),
        row("conntrack-tcp-be-liberal", "true", "conntrack.tcpBeLiberal", true, NOT_BOOL),
        row("conntrack-tcp-timeout-close-wait", "0", "conntrack.tcpCloseWaitTimeout", "0s", NEGATIVE),
        row("conntrack-tcp-timeout-established", "0s", "conntrack.tcpEstablishedTimeout", "0s", NEGATIVE),
        row("conntrack-udp-timeout", "1m", "conntrack.udpTimeout", "1m0s", NEGATIVE),
        row("conntrack-udp-timeout-stream", "90s", "conntrack.udpStreamTimeout", "1m30s", NOT_DURATION),
        row("ipvs-exclude-cidrs", "192.0.2.0/24", "ipvs.excludeCIDRs", json!(["192.0.2.0/24"]), ["x", "\"x\" is not a CIDR"])
            .with(IPVS),
        row("ipvs-min-sync-period", "10s", "ipvs.minSyncPeriod", "10s", ["31s", "31s must not be greater than"]).with(IPVS),
        row("ipvs-scheduler", "mh", "ipvs.scheduler", "mh", ["fifo", "\"fifo\" is not one of rr, wrr"]).with(IPVS),
        row("ipvs-strict-arp", "true", "ipvs.strictARP", true, NOT_BOOL).with(IPVS),
        row("ipvs-sync-period", "1m", "ipvs.syncPeriod", "1m0s", ["0", "0s must be greater than 0"]).with(IPVS),
        row("ipvs-tcp-timeout", "1m", "ipvs.tcpTimeout", "1m0s", NEGATIVE).with(IPVS),
        row("ipvs-tcpfin-timeout", "1m", "ipvs.tcpFinTimeout", "1m0s", NEGATIVE).with(IPVS),
        row("ipvs-udp-timeout", "1m", "ipvs.udpTimeout", "1m0s", NEGATIVE).with(IPVS),
    ]
}

fn logging() -> Vec<Row> {
    let modules = json!([{"filePattern": "rules", "verbosity": 4}, {"filePattern": "w*", "verbosity": 6}]);
    vec![
        row("log-flush-frequency", "7s", "logging.flushFrequency", "7s", NOT_DURATION),
        row("log-json-info-buffer-size", "64Ki", "logging.options.json.infoBufferSize", "64Ki", ["x", "\"x\" is not a size"])
            .with(GATE),
        row("log-json-split-stream", "true", "logging.options.json.splitStream", true, NOT_BOOL).with(GATE),
        row("log-text-info-buffer-size", "1", "logging.options.text.infoBufferSize", "1", ["1kb", "\"1kb\" is not a size"])
            .with(GATE),
        row("log-text-split-stream", "true", "logging.options.text.splitStream", true, NOT_BOOL).with(GATE),
        row("logging-format", "json", "logging.format", "json", ["xml", "\"xml\" is not one of text, json"]),
        row("v", "3", "logging.verbosity", 3, ["-1", "-1 is below 0"]),
        row("vmodule", "rules=4,w*=6", "logging.vmodule", modules, ["rules", "\"rules\" is not of the form module=4"]),
    ]
}

fn all() -> Vec<Row> {
    [general(), rules(), node(), logging()].into_iter().flatten().collect()
}

/// Flags that are no field. What they do is tested where that is.
const NO_FIELD: [(&str, [&str; 2]); 15] = [
    ("audit-period", ["-1s", "-1s is below 0"]),
    ("boot-id-file", ANY),
    ("cleanup", NOT_BOOL),
    ("config", ANY),
    ("help", ANY),
    ("init-only", NOT_BOOL),
    ("ipvs-drain-timeout", NOT_DURATION),
    ("ipvs-local-addresses", ["lo", "\"lo\" is not one of device, routes"]),
    ("machine-id-file", ANY),
    ("manifests", ANY),
    ("master", ANY),
    ("node-ip", ["node1", "\"node1\" is not an IP address"]),
    ("once", NOT_BOOL),
    ("version", ["x", "\"x\" is not true, false, raw, or a version such as v1.36.2"]),
    ("write-config-to", ANY),
];

#[test]
fn every_flag_is_a_field_and_has_its_error() {
    let scratch = Scratch::new("config-flags");
    for row in all() {
        let given = format!("--{}={}", row.flag, row.value);
        let (configuration, _) = effective(&scratch, &[row.with, &[given.as_str()]].concat());
        assert_eq!(at(&configuration, row.path), row.shown, "{given}");
        let (without, _) = effective(&scratch, &[]);
        assert_ne!(at(&without, row.path), row.shown, "{given} is another value than the default");
        assert_refused(row.flag, row.bad, row.with);
    }
    for (flag, bad) in NO_FIELD {
        assert_refused(flag, bad, IPVS);
    }
}

fn assert_refused(flag: &str, [bad, cause]: [&str; 2], with: &[&str]) {
    if cause.is_empty() {
        return;
    }
    let given = format!("--{flag}={bad}");
    let line = refused(&[with, &[given.as_str()]].concat(), 2);
    assert!(line.starts_with(&format!("--{flag}: {cause}")), "{given}: {line}\nwanted: {cause}");
}

/// What a start tells of its flags with -v=1.
fn told(arguments: &[&str]) -> BTreeMap<String, String> {
    let scratch = Scratch::new("config-told");
    let path = scratch.file("effective.yaml");
    let outcome = sluice(&[arguments, &["--write-config-to", path.to_str().unwrap()]].concat());
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let lines = outcome.err.lines().filter_map(|line| line.split_once("FLAG: --")).map(|(_, flag)| flag.split_once('=').unwrap());
    lines.map(|(name, value)| (name.to_owned(), serde_json::from_str(value).unwrap())).collect()
}

/// As the real one showed them at /flagz.
fn captured() -> BTreeMap<String, String> {
    let body = body("serve/m_flagz.txt");
    let pairs = body.lines().skip(3).filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn flags_are_told_with_kube_proxys_defaults_and_in_its_form() {
    let mut wanted = captured();
    assert_eq!(wanted.len(), 59, "kube-proxy's flags");
    // What was given then, or is given now.
    wanted.insert("config".into(), String::new());
    let told = told(&["-v=2"]);
    wanted.insert("write-config-to".into(), told["write-config-to"].clone());
    // What differs is in docs/differences.md.
    for flag in ["iptables-min-sync-period", "ipvs-min-sync-period"] {
        assert_eq!(wanted.insert(flag.into(), "0s".into()).as_deref(), Some("1s"));
    }
    let own = [
        ("audit-period", "15m0s"),
        ("ipvs-drain-timeout", "15m0s"),
        ("ipvs-local-addresses", "device"),
        ("manifests", ""),
        ("node-ip", "[]"),
        ("once", "false"),
    ];
    wanted.extend(own.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert_eq!(told, wanted);

    let values = told_of(&["-v=1", "--node-ip=192.0.2.1,192.0.2.2", "--feature-gates=B=true,A=false", "--vmodule=a=1,b=2"]);
    assert_eq!(values, ["[192.0.2.1,192.0.2.2]", "A=false,B=true", "a=1,b=2"]);
    assert!(self::told(&[]).is_empty(), "nothing is told with -v=0");
}

fn told_of(arguments: &[&str]) -> [String; 3] {
    let told = told(arguments);
    ["node-ip", "feature-gates", "vmodule"].map(|flag| told[flag].clone())
}

/// The tables above have all flags there are.
#[test]
fn no_flag_is_left_out() {
    let known: BTreeSet<_> = all().iter().map(|row| row.flag).chain(NO_FIELD.map(|(flag, _)| flag)).map(str::to_owned).collect();
    assert_eq!(told(&["-v=1"]).into_keys().collect::<BTreeSet<_>>(), known);
}

#[test]
fn everything_wrong_is_named_at_once_by_flag() {
    let line = refused(
        &[
            "--iptables-masquerade-bit=32",
            "--feature-gates=NFTablesProxyMode=false",
            "--node-ip=x",
            "--nodeport-addresses=primary,y",
        ],
        2,
    );
    let wanted = [
        "--iptables-masquerade-bit: 32 is not",
        "--feature-gates: NFTablesProxyMode: cannot be set to false: the feature is locked to true",
        "--node-ip: \"x\" is not an IP address",
        "--nodeport-addresses: can't use both 'primary' and CIDRs",
        "--nodeport-addresses: \"y\" is not a CIDR",
    ];
    for wanted in wanted {
        assert!(line.contains(wanted), "{wanted}: {line}");
    }
}

#[test]
fn gates_that_change_nothing_are_named() {
    let scratch = Scratch::new("config-gates");
    let gates = "--feature-gates=Unknown=true,GracefulNodeShutdown=true,NativeHistograms=true,WatchListClient=true,AllowServiceExternalIPs=false";
    let (_, err) = effective(&scratch, &[gates]);
    let names = ["Unknown", "GracefulNodeShutdown", "NativeHistograms"].map(|gate| format!("--feature-gates={gate}"));
    assert!(names.iter().all(|name| err.contains(name)), "{err}");
    assert!(!err.contains("WatchListClient") && !err.contains("AllowServiceExternalIPs"), "{err}");
}

/// Zero is the default, as client-go has it; port 0 of the deprecated flags is none.
#[test]
fn values_that_mean_another() {
    let scratch = Scratch::new("config-zero");
    let flags =
        ["--healthz-bind-address=192.0.2.1", "--healthz-port=0", "--metrics-bind-address=192.0.2.1:99", "--metrics-port=7"];
    let (configuration, err) = effective(&scratch, &flags);
    let served = ["healthzBindAddress", "metricsBindAddress"].map(|path| at(&configuration, path));
    assert_eq!((served, err.as_str()), (["0".into(), "192.0.2.1:99".into()], ""));
}
