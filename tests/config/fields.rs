//! Every field of the file: what it is by default, where a value ends up, and how a bad one is refused.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use sluice::config::{Config, KubeProxyConfiguration};

use super::{at, load};

/// A field and what is expected of it. Values are YAML.
struct Row {
    path: &'static str,
    value: &'static str,
    /// What the effective configuration says then, if not that.
    shown: Option<&'static str>,
    /// What counts of it, by default and with the value; nothing for a field without effect.
    counts: fn(&Config) -> String,
    ends: [&'static str; 2],
    bad: &'static str,
    /// The whole message, from its beginning on.
    refusal: &'static str,
    /// What else the file says.
    with: &'static [(&'static str, &'static str)],
}

/// A field that counts.
fn row(path: &'static str, value: &'static str, counts: fn(&Config) -> String, ends: [&'static str; 2]) -> Row {
    Row { path, value, shown: None, counts, ends, bad: "", refusal: "", with: &[] }
}

/// One that does nothing.
fn idle(path: &'static str, value: &'static str) -> Row {
    row(path, value, |_| String::new(), ["", ""])
}

impl Row {
    fn bad(self, bad: &'static str, refusal: &'static str) -> Self {
        Self { bad, refusal, ..self }
    }

    fn with(self, with: &'static [(&'static str, &'static str)]) -> Self {
        Self { with, ..self }
    }

    fn shown(self, shown: &'static str) -> Self {
        Self { shown: Some(shown), ..self }
    }

    /// A file with this value, and what else it needs.
    fn file(&self, value: &str) -> String {
        file(&[self.with, &[(self.path, value)]].concat())
    }
}

fn yaml(text: &str) -> Value {
    serde_norway::from_str(text).unwrap()
}

/// A file, as JSON, that says this.
pub fn file(values: &[(&str, &str)]) -> String {
    let mut file = json!({"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"});
    for (path, value) in values {
        let place = path
            .split('.')
            .fold(&mut file, |place, key| place.as_object_mut().unwrap().entry(key).or_insert_with(|| Value::Object(Map::new())));
        *place = yaml(value);
    }
    file.to_string()
}

const GATE: &[(&str, &str)] = &[("featureGates", "{LoggingAlphaOptions: true}")];
const JSON: &[(&str, &str)] = &[("featureGates", "{LoggingAlphaOptions: true}"), ("logging.format", "json")];
const IPVS: &[(&str, &str)] = &[("mode", "ipvs")];
const BRIDGE: &[(&str, &str)] = &[("detectLocalMode", "BridgeInterface")];
const PREFIX: &[(&str, &str)] = &[("detectLocalMode", "InterfaceNamePrefix")];

fn general() -> Vec<Row> {
    vec![
        row("featureGates", "{AllowServiceExternalIPs: false}", |c| c.rules.external_ips.to_string(), ["true", "false"])
            .bad("{Gate: 1}", "featureGates.Gate: 1 is not true or false"),
        row(
            "clientConnection.kubeconfig",
            "/k",
            |c| format!("{:?}", c.source),
            ["Api { kubeconfig: None, master: None }", "Api { kubeconfig: Some(\"/k\"), master: None }"],
        )
        .bad("[k]", "clientConnection.kubeconfig: a list is not text"),
        idle("clientConnection.acceptContentTypes", "a").bad("1", "clientConnection.acceptContentTypes: 1 is not text"),
        idle("clientConnection.contentType", "application/json").bad("1", "clientConnection.contentType: 1 is not text"),
        row("clientConnection.qps", "7.1", |c| c.client.qps.to_string(), ["5", "7.1"])
            .bad("many", "clientConnection.qps: \"many\" is not a number"),
        row("clientConnection.burst", "7", |c| c.client.burst.to_string(), ["10", "7"])
            .bad("-1", "clientConnection.burst: -1 is not within the range [0, 2147483647]"),
        row("hostnameOverride", " Node-A", |c| c.node_name.to_string(), ["host", "node-a"])
            .shown("node-a")
            .bad("'  '", "hostnameOverride: empty hostname-override is invalid"),
        row("bindAddress", "192.0.2.1", |c| format!("{:?}", c.rules.bind_address), ["None", "Some(192.0.2.1)"])
            .bad("node1", "bindAddress: \"node1\" is not an IP address"),
        row(
            "healthzBindAddress",
            "127.0.0.1",
            |c| format!("{:?}", c.healthz_bind_address),
            ["Some(0.0.0.0:10256)", "Some(127.0.0.1:10256)"],
        )
        .shown("127.0.0.1:10256")
        .bad("localhost:10256", "healthzBindAddress: \"localhost:10256\" is not an address such as 0.0.0.0:10256"),
        row("metricsBindAddress", "'0'", |c| format!("{:?}", c.metrics_bind_address), ["Some(127.0.0.1:10249)", "None"])
            .bad("127.0.0.1:0", "metricsBindAddress: \"127.0.0.1:0\" is not an address such as"),
        row("bindAddressHardFail", "true", |c| c.bind_address_hard_fail.to_string(), ["false", "true"])
            .bad("1", "bindAddressHardFail: 1 is not true or false"),
        row("enableProfiling", "true", |c| c.profiling.to_string(), ["false", "true"])
            .bad("maybe", "enableProfiling: \"maybe\" is not true or false"),
        idle("showHiddenMetricsForVersion", "'1.35'")
            .bad("'1.34'", "showHiddenMetricsForVersion: \"1.34\" is not the previous minor version, 1.35"),
        row("oomScoreAdj", "-998", |c| c.oom_score_adj.to_string(), ["-999", "-998"])
            .bad("-1001", "oomScoreAdj: -1001 is not within the range [-1000, 1000]"),
        idle("configSyncPeriod", "1m0s").bad("-1s", "configSyncPeriod: -1s must be greater than 0"),
        idle("portRange", "1-2").bad("12", "portRange: 12 is not text"),
        idle("windowsRunAsService", "true").bad("x", "windowsRunAsService: \"x\" is not true or false"),
        idle("winkernel.networkName", "x").bad("1", "winkernel.networkName: 1 is not text"),
        idle("winkernel.sourceVip", "x").bad("1", "winkernel.sourceVip: 1 is not text"),
        idle("winkernel.enableDSR", "true").bad("1", "winkernel.enableDSR: 1 is not true or false"),
        idle("winkernel.rootHnsEndpointName", "x").bad("1", "winkernel.rootHnsEndpointName: 1 is not text"),
        idle("winkernel.forwardHealthCheckVip", "true").bad("1", "winkernel.forwardHealthCheckVip: 1 is not true or false"),
    ]
}

fn logging() -> Vec<Row> {
    let split: fn(&Config) -> String = |c| c.logging.split_stream.to_string();
    vec![
        row("logging.format", "json", |c| format!("{:?}", c.logging.format), ["Text", "Json"])
            .bad("xml", "logging.format: \"xml\" is not one of text, json"),
        idle("logging.flushFrequency", "7s").bad("often", "logging.flushFrequency: \"often\" is not a duration such as 30s"),
        row("logging.verbosity", "4", |c| c.logging.verbosity.to_string(), ["0", "4"])
            .bad("-1", "logging.verbosity: -1 is not within the range"),
        row(
            "logging.vmodule",
            "[{filePattern: rules, verbosity: 4}]",
            |c| format!("{:?}", c.logging.modules),
            ["[]", "[(\"rules\", 4)]"],
        )
        .bad("[{filePattern: 'a=b', verbosity: 4}]", "logging.vmodule[0].filePattern: \"a=b\" is no pattern"),
        row("logging.options.text.splitStream", "true", split, ["false", "true"])
            .with(GATE)
            .bad("x", "logging.options.text.splitStream: \"x\" is not true or false"),
        row("logging.options.json.splitStream", "true", split, ["false", "true"])
            .with(JSON)
            .bad("x", "logging.options.json.splitStream: \"x\" is not true or false"),
        idle("logging.options.text.infoBufferSize", "64Ki")
            .with(GATE)
            .bad("big", "logging.options.text.infoBufferSize: \"big\" is not a size such as 0, 64Ki or 1M"),
        idle("logging.options.json.infoBufferSize", "'5'")
            .with(GATE)
            .bad("[]", "logging.options.json.infoBufferSize: a list is not a size"),
    ]
}

fn rules() -> Vec<Row> {
    let detect: fn(&Config) -> String = |c| format!("{:?}", c.rules.detect_local);
    let none = "ClusterCidr(PerFamily { v4: None, v6: None })";
    vec![
        row("mode", "ipvs", |c| c.rules.mode.to_string(), ["iptables", "ipvs"])
            .bad("userspace", "mode: \"userspace\" is not one of iptables, ipvs, nftables"),
        row("detectLocalMode", "NodeCIDR", detect, [none, "NodeCidr"])
            .bad("Magic", "detectLocalMode: \"Magic\" is not one of ClusterCIDR, NodeCIDR, BridgeInterface"),
        row("detectLocal.bridgeInterface", "cni0", detect, ["", "BridgeInterface(\"cni0\")"])
            .with(BRIDGE)
            .bad("''", "detectLocal.bridgeInterface: must not be empty with this way to tell the node's pods"),
        row("detectLocal.interfaceNamePrefix", "veth", detect, ["", "InterfaceNamePrefix(\"veth\")"])
            .with(PREFIX)
            .bad("a/b", "detectLocal.interfaceNamePrefix: \"a/b\" is not an interface name"),
        row("clusterCIDR", "10.244.0.0/16", detect, [none, "ClusterCidr(PerFamily { v4: Some(10.244.0.0/16), v6: None })"])
            .bad("10.0.0.0/8,10.1.0.0/16", "clusterCIDR: names two ranges of one family"),
        row("nodePortAddresses", "[primary]", |c| format!("{:?}", c.rules.node_port_addresses), ["Within([])", "Primary"])
            .bad("[10.0.0.0/8, primary]", "nodePortAddresses[1]: can't use both 'primary' and CIDRs"),
        row("iptables.masqueradeBit", "7", |c| c.rules.masquerade_mark.to_string(), ["16384", "128"])
            .bad("32", "iptables.masqueradeBit: 32 is not within the range [0, 31]"),
        row("iptables.masqueradeAll", "true", |c| c.rules.masquerade_all.to_string(), ["false", "true"])
            .bad("1", "iptables.masqueradeAll: 1 is not true or false"),
        row("iptables.localhostNodePorts", "false", |c| c.rules.localhost_node_ports.to_string(), ["true", "false"])
            .bad("1", "iptables.localhostNodePorts: 1 is not true or false"),
        row("iptables.syncPeriod", "1m0s", |c| format!("{:?}", c.sync_period), ["30s", "60s"])
            .bad("-1s", "iptables.syncPeriod: -1s must be greater than 0"),
        row("iptables.minSyncPeriod", "10s", |c| format!("{:?}", c.min_sync_period), ["0ns", "10s"])
            .bad("31s", "iptables.minSyncPeriod: 31s must not be greater than the sync period, 30s"),
        idle("nftables.masqueradeBit", "7").bad("x", "nftables.masqueradeBit: \"x\" is not a whole number"),
        idle("nftables.masqueradeAll", "true").shown("false").bad("1", "nftables.masqueradeAll: 1 is not true or false"),
        idle("nftables.syncPeriod", "1m").shown("0s").bad("1", "nftables.syncPeriod: 1 is not a duration"),
        idle("nftables.minSyncPeriod", "1m").shown("0s").bad("1", "nftables.minSyncPeriod: 1 is not a duration"),
    ]
}

fn ipvs() -> Vec<Row> {
    let rows = vec![
        row("ipvs.syncPeriod", "1m0s", |c| format!("{:?}", c.sync_period), ["30s", "60s"])
            .bad("-1s", "ipvs.syncPeriod: -1s must be greater than 0"),
        row("ipvs.minSyncPeriod", "10s", |c| format!("{:?}", c.min_sync_period), ["0ns", "10s"])
            .bad("-1s", "ipvs.minSyncPeriod: -1s is below 0"),
        row("ipvs.scheduler", "mh", |c| c.rules.ipvs.scheduler.to_string(), ["rr", "mh"])
            .bad("fifo", "ipvs.scheduler: \"fifo\" is not one of rr, wrr, lc"),
        row("ipvs.excludeCIDRs", "[192.0.2.0/24]", |c| format!("{:?}", c.rules.ipvs.exclude_cidrs), ["[]", "[192.0.2.0/24]"])
            .bad("[192.0.2.1]", "ipvs.excludeCIDRs: \"192.0.2.1\" is not a CIDR"),
        row("ipvs.strictARP", "true", |c| c.rules.ipvs.strict_arp.to_string(), ["false", "true"])
            .bad("1", "ipvs.strictARP: 1 is not true or false"),
        row("ipvs.tcpTimeout", "15m0s", |c| format!("{:?}", c.rules.ipvs.timeouts.tcp), ["None", "Some(900s)"])
            .bad("-1s", "ipvs.tcpTimeout: -1s is below 0"),
        row("ipvs.tcpFinTimeout", "1s", |c| format!("{:?}", c.rules.ipvs.timeouts.tcp_fin), ["None", "Some(1s)"])
            .bad("-1s", "ipvs.tcpFinTimeout: -1s is below 0"),
        row("ipvs.udpTimeout", "1s", |c| format!("{:?}", c.rules.ipvs.timeouts.udp), ["None", "Some(1s)"])
            .bad("-1s", "ipvs.udpTimeout: -1s is below 0"),
    ];
    rows.into_iter().map(|row| row.with(IPVS)).collect()
}

fn conntrack() -> Vec<Row> {
    let max: fn(&Config) -> String = |c| c.conntrack.max.map_or("none".into(), |m| format!("{} {}", m.per_core, m.min));
    vec![
        row("conntrack.maxPerCore", "0", max, ["32768 131072", "none"])
            .bad("-1", "conntrack.maxPerCore: -1 is not within the range"),
        row("conntrack.min", "7", max, ["32768 131072", "32768 7"])
            .bad("99999999999", "conntrack.min: 99999999999 is not within the range"),
        row("conntrack.tcpEstablishedTimeout", "0s", |c| format!("{:?}", c.conntrack.tcp_established), ["Some(86400s)", "None"])
            .bad("-1s", "conntrack.tcpEstablishedTimeout: -1s is below 0"),
        row(
            "conntrack.tcpCloseWaitTimeout",
            "1m0s",
            |c| format!("{:?}", c.conntrack.tcp_close_wait),
            ["Some(3600s)", "Some(60s)"],
        )
        .bad("-1s", "conntrack.tcpCloseWaitTimeout: -1s is below 0"),
        row("conntrack.tcpBeLiberal", "true", |c| c.conntrack.tcp_be_liberal.to_string(), ["false", "true"])
            .bad("1", "conntrack.tcpBeLiberal: 1 is not true or false"),
        row("conntrack.udpTimeout", "1s", |c| format!("{:?}", c.conntrack.udp), ["None", "Some(1s)"])
            .bad("-1s", "conntrack.udpTimeout: -1s is below 0"),
        row("conntrack.udpStreamTimeout", "1s", |c| format!("{:?}", c.conntrack.udp_stream), ["None", "Some(1s)"])
            .bad("-1s", "conntrack.udpStreamTimeout: -1s is below 0"),
    ]
}

fn all() -> Vec<Row> {
    [general(), logging(), rules(), ipvs(), conntrack()].into_iter().flatten().collect()
}

#[test]
fn every_field_has_its_default_its_effect_and_its_error() {
    for row in all() {
        let path = row.path;
        if !row.ends[0].is_empty() {
            assert_eq!((row.counts)(&load(&file(row.with)).unwrap()), row.ends[0], "{path} by default");
        }
        let config = load(&row.file(row.value)).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!((row.counts)(&config), row.ends[1], "{path}");
        let effective = serde_json::to_value(&*config.effective).unwrap();
        assert_eq!(at(&effective, path), yaml(row.shown.unwrap_or(row.value)), "{path} in the effective configuration");
        // Null is as if it was not there.
        assert_eq!(load(&row.file("null")).map_err(drop), load(&file(row.with)).map_err(drop), "{path}: null");
        let error = load(&row.file(row.bad)).expect_err(path);
        assert!(error.starts_with(row.refusal), "{path}: {error}\nwanted: {}", row.refusal);
    }
}

/// The table above has all fields there are.
#[test]
fn no_field_is_left_out() {
    // With these, nothing is left out because it is empty.
    let all_there = load(&file(&[
        ("featureGates", "{LoggingAlphaOptions: true}"),
        ("logging.vmodule", "[{filePattern: x, verbosity: 1}]"),
        ("logging.options.text.splitStream", "true"),
        ("logging.options.json.splitStream", "true"),
        ("windowsRunAsService", "true"),
    ]));
    let effective = serde_json::to_value(&*all_there.unwrap().effective).unwrap();
    let mut paths = BTreeSet::new();
    leaves("", &effective, &mut paths);
    let known: BTreeSet<_> = all().iter().map(|row| row.path.to_owned()).chain(["kind".into(), "apiVersion".into()]).collect();
    assert_eq!(paths, known);
}

fn leaves(path: &str, value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) if path != "featureGates" => {
            for (key, value) in map {
                leaves(&if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, value, found);
            }
        }
        _ => drop(found.insert(path.to_owned())),
    }
}

#[test]
fn the_effective_configuration_is_written_as_kube_proxy_writes_it() {
    // Read back, its own answer is the same to the letter.
    let answer = super::body("serve/m_configz.txt");
    let object = answer.strip_prefix("{\"kubeproxy.config.k8s.io\":").unwrap().strip_suffix('}').unwrap();
    assert_eq!(load(object).unwrap().effective.to_configz(), object);

    // What differs is in docs/differences.md: the least time between syncs.
    let captured = super::capture("config/write-config-to-default.yaml");
    let wanted = captured.replace(
        "iptables:\n  localhostNodePorts: true\n  masqueradeAll: false\n  masqueradeBit: 14\n  minSyncPeriod: 1s\n",
        "iptables:\n  localhostNodePorts: true\n  masqueradeAll: false\n  masqueradeBit: 14\n  minSyncPeriod: 0s\n",
    );
    assert_ne!(wanted, captured);
    assert_eq!(load(super::HEAD).unwrap().effective.to_yaml(), wanted);
    assert_eq!(load(&captured).unwrap().effective.to_yaml(), captured);
}

#[test]
fn options_that_need_a_gate_are_refused_without_it() {
    let table = [
        (("logging.options.text.splitStream", "true"), "needs the feature gate LoggingAlphaOptions"),
        (("logging.options.json.splitStream", "true"), "needs the feature gate LoggingAlphaOptions"),
        (("logging.options.text.infoBufferSize", "1"), "needs the feature gate LoggingAlphaOptions"),
        (("logging.options.json.infoBufferSize", "1Ki"), "needs the feature gate LoggingAlphaOptions"),
    ];
    for (value, cause) in table {
        assert_eq!(load(&file(&[value])).unwrap_err(), format!("{}: {cause}", value.0));
        assert!(load(&file(&[value, ("featureGates", "{AllAlpha: true}")])).is_ok(), "{}", value.0);
    }
    let json = [("logging.format", "json"), ("featureGates", "{LoggingBetaOptions: false}")];
    assert_eq!(load(&file(&json)).unwrap_err(), "logging.format: json needs the feature gate LoggingBetaOptions");
    let json = [("logging.format", "json"), ("logging.vmodule", "[{filePattern: x, verbosity: 1}]")];
    assert_eq!(load(&file(&json)).unwrap_err(), "logging.vmodule: counts with the format text only");
}

#[test]
fn gates_switch_pages_off_and_locked_ones_stay() {
    let pages = |gates| load(&file(&[("featureGates", gates)])).map(|config| (config.statusz, config.flagz));
    assert_eq!(pages("{}"), Ok((true, true)));
    assert_eq!(pages("{ComponentStatusz: false}"), Ok((false, true)));
    assert_eq!(pages("{AllBeta: false, ComponentStatusz: true}"), Ok((true, false)));
    let locked = "featureGates.MultiCIDRServiceAllocator: cannot be set to false: the feature is locked to true";
    assert_eq!(pages("{MultiCIDRServiceAllocator: false}"), Err(locked.into()));
}

/// The servers' addresses are of the family of the node's.
#[test]
fn defaults_follow_the_family_of_the_bind_address() {
    let config = load(&file(&[("bindAddress", "'::'")])).unwrap();
    let served = [config.healthz_bind_address, config.metrics_bind_address].map(|address| address.unwrap().to_string());
    assert_eq!(served, ["[::]:10256", "[::1]:10249"]);
}

#[test]
fn numbers_of_nanoseconds_and_words_of_yaml_are_read() {
    let text = format!("{}logging: {{flushFrequency: 1500000000}}\nenableProfiling: yes\n", super::HEAD);
    let decoded = KubeProxyConfiguration::decode(&text).unwrap().configuration;
    assert_eq!((decoded.logging.flush_frequency.0.to_string().as_str(), decoded.enable_profiling), ("1.5s", true));
}
