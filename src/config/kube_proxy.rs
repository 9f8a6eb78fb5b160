//! `KubeProxyConfiguration` v1alpha1: the fields of kube-proxy's configuration file in the order in which it writes them.
//!
//! Flags are put into it too (`cli`), so that there is one thing to check. What a field means here is said in
//! [`Config`](super::Config); those of other systems, and of kube-proxy's past, are kept and do nothing.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::Problems;
use super::decode::{Field, Reader};
use super::duration::GoDuration;
use super::quantity::Quantity;
use super::tree::{self, Tree};

pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
pub const KIND: &str = "KubeProxyConfiguration";

/// A part of the configuration: its fields with the keys they have in the file.
macro_rules! section {
    ($(#[$about:meta])* pub struct $name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty = $key:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize)]
        pub struct $name {
            $($(#[$attribute])* #[serde(rename = $key)] pub $field: $type,)*
        }

        impl Field for $name {
            fn take(&mut self, tree: &Tree, reader: &mut Reader) {
                reader.section(tree, &mut |reader, key, value| {
                    match key {
                        $($key => reader.below(key, &mut self.$field, value),)*
                        _ => return false,
                    }
                    true
                });
            }
        }
    };
}

section! {
    /// The whole file. As [`Default`] has it, nothing is said: [`set_defaults`](Self::set_defaults) fills in.
    pub struct KubeProxyConfiguration {
        kind: String = "kind",
        api_version: String = "apiVersion",
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        feature_gates: BTreeMap<String, bool> = "featureGates",
        client_connection: ClientConnection = "clientConnection",
        logging: Logging = "logging",
        hostname_override: String = "hostnameOverride",
        bind_address: String = "bindAddress",
        /// [`NOT_SERVED`]: nowhere.
        healthz_bind_address: String = "healthzBindAddress",
        /// [`NOT_SERVED`]: nowhere.
        metrics_bind_address: String = "metricsBindAddress",
        bind_address_hard_fail: bool = "bindAddressHardFail",
        enable_profiling: bool = "enableProfiling",
        show_hidden_metrics_for_version: String = "showHiddenMetricsForVersion",
        mode: String = "mode",
        iptables: Iptables = "iptables",
        ipvs: Ipvs = "ipvs",
        nftables: Nftables = "nftables",
        winkernel: Winkernel = "winkernel",
        detect_local_mode: String = "detectLocalMode",
        detect_local: DetectLocalFields = "detectLocal",
        /// One range, or one of each family with a comma between.
        cluster_cidr: String = "clusterCIDR",
        #[serde(serialize_with = "list_or_null")]
        node_port_addresses: Vec<String> = "nodePortAddresses",
        oom_score_adj: Option<i32> = "oomScoreAdj",
        conntrack: Conntrack = "conntrack",
        config_sync_period: GoDuration = "configSyncPeriod",
        port_range: String = "portRange",
        #[serde(skip_serializing_if = "is_false")]
        windows_run_as_service: bool = "windowsRunAsService",
    }
}

section! {
    /// How the API server is asked.
    pub struct ClientConnection {
        kubeconfig: String = "kubeconfig",
        accept_content_types: String = "acceptContentTypes",
        content_type: String = "contentType",
        #[serde(serialize_with = "number")]
        qps: f32 = "qps",
        burst: i32 = "burst",
    }
}

section! {
    /// What is logged, and how.
    pub struct Logging {
        format: String = "format",
        flush_frequency: FlushFrequency = "flushFrequency",
        verbosity: u32 = "verbosity",
        #[serde(skip_serializing_if = "Vec::is_empty")]
        vmodule: Vec<VModule> = "vmodule",
        options: LoggingOptions = "options",
    }
}

section! {
    /// The verbosity of the modules whose name is like this.
    pub struct VModule {
        file_pattern: String = "filePattern",
        verbosity: u32 = "verbosity",
    }
}

section! {
    /// What only one format of lines has.
    pub struct LoggingOptions {
        text: StreamOptions = "text",
        json: StreamOptions = "json",
    }
}

section! {
    /// Where lines go.
    pub struct StreamOptions {
        #[serde(skip_serializing_if = "is_false")]
        split_stream: bool = "splitStream",
        info_buffer_size: Quantity = "infoBufferSize",
    }
}

section! {
    /// What counts in iptables mode; the bit in ipvs mode too, and `masqueradeAll`.
    pub struct Iptables {
        masquerade_bit: Option<i32> = "masqueradeBit",
        masquerade_all: bool = "masqueradeAll",
        localhost_node_ports: Option<bool> = "localhostNodePorts",
        sync_period: GoDuration = "syncPeriod",
        min_sync_period: GoDuration = "minSyncPeriod",
    }
}

section! {
    /// What counts in ipvs mode.
    pub struct Ipvs {
        sync_period: GoDuration = "syncPeriod",
        min_sync_period: GoDuration = "minSyncPeriod",
        scheduler: String = "scheduler",
        #[serde(serialize_with = "list_or_null")]
        exclude_cidrs: Vec<String> = "excludeCIDRs",
        strict_arp: bool = "strictARP",
        tcp_timeout: GoDuration = "tcpTimeout",
        tcp_fin_timeout: GoDuration = "tcpFinTimeout",
        udp_timeout: GoDuration = "udpTimeout",
    }
}

section! {
    /// What counts in nftables mode.
    pub struct Nftables {
        masquerade_bit: Option<i32> = "masqueradeBit",
        masquerade_all: bool = "masqueradeAll",
        sync_period: GoDuration = "syncPeriod",
        min_sync_period: GoDuration = "minSyncPeriod",
    }
}

section! {
    /// What counts on Windows.
    pub struct Winkernel {
        network_name: String = "networkName",
        source_vip: String = "sourceVip",
        enable_dsr: bool = "enableDSR",
        root_hns_endpoint_name: String = "rootHnsEndpointName",
        forward_health_check_vip: bool = "forwardHealthCheckVip",
    }
}

section! {
    /// What some ways to tell the node's pods need.
    pub struct DetectLocalFields {
        bridge_interface: String = "bridgeInterface",
        interface_name_prefix: String = "interfaceNamePrefix",
    }
}

section! {
    /// Limits and timeouts of connection tracking; zero: as the kernel has it.
    pub struct Conntrack {
        max_per_core: Option<i32> = "maxPerCore",
        min: Option<i32> = "min",
        tcp_established_timeout: Option<GoDuration> = "tcpEstablishedTimeout",
        tcp_close_wait_timeout: Option<GoDuration> = "tcpCloseWaitTimeout",
        tcp_be_liberal: bool = "tcpBeLiberal",
        udp_timeout: GoDuration = "udpTimeout",
        udp_stream_timeout: GoDuration = "udpStreamTimeout",
    }
}

/// A duration that may be written as a number of nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FlushFrequency(pub GoDuration);

impl Field for FlushFrequency {
    fn take(&mut self, tree: &Tree, reader: &mut Reader) {
        match tree {
            Tree::Whole(nanos) => self.0 = GoDuration::from_nanos(*nanos),
            _ => self.0.take(tree, reader),
        }
    }
}

/// A file as it was read.
#[derive(Debug)]
pub struct Decoded {
    /// What the file says, and defaults where it says nothing.
    pub configuration: KubeProxyConfiguration,
    /// What kube-proxy would not take strictly, in words; the last of several values counts.
    pub lenient: Vec<String>,
}

impl KubeProxyConfiguration {
    /// Reads a file's text, YAML or JSON.
    pub fn decode(text: &str) -> Result<Decoded, Problems> {
        let (tree, more) = tree::parse(text).map_err(|cause| Problems::one("", cause))?;
        let (configuration, reader) = Self::read(&tree);
        let mut problems = reader.problems;
        for (field, found, wanted) in
            [("kind", &configuration.kind, KIND), ("apiVersion", &configuration.api_version, API_VERSION)]
        {
            if found != wanted {
                problems.add(field, format!("{found:?} is not {wanted}"));
            }
        }
        problems.none_or_err()?;
        let unknown = reader.unknown.into_iter().map(|path| format!("unknown field {path:?}"));
        let duplicate =
            reader.duplicate.into_iter().map(|path| format!("field {path:?} is there more than once, the last counts"));
        let more = more.then(|| "only the first document of the file is read".to_owned());
        Ok(Decoded { configuration: configuration.with_defaults(), lenient: unknown.chain(duplicate).chain(more).collect() })
    }

    fn read(tree: &Tree) -> (Self, Reader) {
        let mut configuration = Self::default();
        let mut reader = Reader::default();
        configuration.take(tree, &mut reader);
        (configuration, reader)
    }

    /// Puts values, such as those of flags, over what is there. Their fields must be known.
    pub fn overlay(&mut self, tree: &Tree) -> Result<(), Problems> {
        let mut reader = Reader::default();
        self.take(tree, &mut reader);
        for field in reader.unknown {
            reader.problems.add(&field, "there is no such field".into());
        }
        reader.problems.none_or_err()
    }

    /// As `--write-config-to` writes it.
    #[expect(clippy::missing_panics_doc, reason = "there is nothing in it that JSON could not hold")]
    pub fn to_yaml(&self) -> String {
        super::yaml::sorted(&serde_json::to_value(self).expect("a configuration is text, numbers and lists of them"))
    }

    /// The object that `/configz` has under the name of the group.
    #[expect(clippy::missing_panics_doc, reason = "there is nothing in it that JSON could not hold")]
    pub fn to_configz(&self) -> String {
        serde_json::to_string(self).expect("a configuration is text, numbers and lists of them")
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Go has no difference between a list that is empty and none.
fn list_or_null<S: Serializer>(list: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    if list.is_empty() { serializer.serialize_none() } else { serializer.collect_seq(list) }
}

/// `5` and no `5.0`; `5.1` and no `5.099999904632568`.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn number<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    let text = value.to_string();
    match (text.parse::<i64>(), text.parse::<f64>()) {
        (Ok(whole), _) => serializer.serialize_i64(whole),
        (_, Ok(exact)) => serializer.serialize_f64(exact),
        _ => serializer.serialize_f32(*value),
    }
}
