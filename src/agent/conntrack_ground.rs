//! Limits and timeouts of connection tracking (behaviour.md §7.3), which all modes depend on. Its module is there by now:
//! the trial of the table `nat` loads it.

use std::borrow::Cow;
use std::time::Duration;

use super::preparation::Preparation;
use crate::config::{ConntrackConfig, ConntrackMax};
use crate::sysctl::{Root, Setting};

pub const BE_LIBERAL: &str = "net.netfilter.nf_conntrack_tcp_be_liberal";
const MAX: &str = "net.netfilter.nf_conntrack_max";
/// The same as `/sys/module/nf_conntrack/parameters/hashsize`, but who may not write may read it.
const BUCKETS: &str = "net.netfilter.nf_conntrack_buckets";

/// What the number of cores makes of the limit is no more than this; `--conntrack-min` may be.
const MOST_BY_CORES: u64 = 1 << 20;
/// Connections that a bucket of the table should hold at most.
const CONNECTIONS_PER_BUCKET: u64 = 4;

/// Makes the settings that are asked for.
pub fn prepare(config: &ConntrackConfig, preparation: &mut Preparation) {
    let max = config.max.map(|max| limit(max, preparation.root.processors()));
    if let Some(max) = max
        && preparation.ensure(setting(MAX, max, "at so many tracked connections new ones are dropped"))
    {
        enlarge_table(max / CONNECTIONS_PER_BUCKET, preparation);
    }
    for setting in timeouts(config) {
        preparation.ensure(setting);
    }
    if config.tcp_be_liberal {
        let purpose = "conntrack marks packets outside the TCP window INVALID, and the proxy drops those";
        preparation.ensure(Setting { name: BE_LIBERAL, value: "1".into(), purpose });
    }
}

/// A table that is larger than need be stays.
fn enlarge_table(least: u64, preparation: &mut Preparation) {
    let buckets: Option<u64> = preparation.root.sysctl(BUCKETS).ok().and_then(|text| text.parse().ok());
    if buckets.is_none_or(|buckets| buckets < least) {
        preparation.ensure(setting(BUCKETS, least, "in so few buckets it takes longer to find one of so many connections"));
    }
}

/// How many connections are tracked at most.
fn limit(ConntrackMax { per_core, min }: ConntrackMax, processors: usize) -> u64 {
    let processors = u64::try_from(processors).unwrap_or(u64::MAX);
    u64::from(per_core).saturating_mul(processors).min(MOST_BY_CORES).max(min.into())
}

fn timeouts(config: &ConntrackConfig) -> impl Iterator<Item = Setting> {
    let timeouts = [
        (
            "net.netfilter.nf_conntrack_tcp_timeout_established",
            config.tcp_established,
            "so many seconds an idle TCP connection is tracked",
        ),
        (
            "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
            config.tcp_close_wait,
            "so many seconds a half-closed TCP connection is tracked",
        ),
        ("net.netfilter.nf_conntrack_udp_timeout", config.udp, "so many seconds UDP packets that nobody answered are tracked"),
        ("net.netfilter.nf_conntrack_udp_timeout_stream", config.udp_stream, "so many seconds answered UDP packets are tracked"),
    ];
    timeouts.into_iter().filter_map(|(name, timeout, purpose)| Some(setting(name, seconds(timeout?), purpose)))
}

/// Less than a second is one: the kernel takes 0 for "forget at once".
fn seconds(timeout: Duration) -> u64 {
    timeout.as_secs().max(1)
}

fn setting(name: &'static str, value: u64, purpose: &'static str) -> Setting {
    Setting { name, value: Cow::Owned(value.to_string()), purpose }
}

/// Are packets outside the TCP window passed on? Unreadable: as good as not, which only means one more rule.
pub fn is_liberal(root: &Root) -> bool {
    root.sysctl(BE_LIBERAL).is_ok_and(|value| value != "0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysctl::fake::FakeRoot;

    const NOTHING: ConntrackConfig = ConntrackConfig {
        max: None,
        tcp_established: None,
        tcp_close_wait: None,
        tcp_be_liberal: false,
        udp: None,
        udp_stream: None,
    };

    #[test]
    fn the_limit_grows_with_the_cores_between_bounds() {
        for (per_core, min, processors, wanted) in [
            (32_768, 131_072, 1, 131_072),
            (32_768, 131_072, 4, 131_072),
            (32_768, 131_072, 8, 262_144),
            (32_768, 131_072, 32, 1_048_576),
            (32_768, 131_072, 96, 1_048_576),
            (32_768, 2_000_000, 96, 2_000_000),
            (1, 0, 3, 3),
            (u32::MAX, 0, usize::MAX, 1_048_576),
        ] {
            let max = ConntrackMax { per_core, min };
            assert_eq!(limit(max, processors), wanted, "{max:?} with {processors}");
        }
    }

    const FOLDER: &str = "proc/sys/net/netfilter/";

    /// A node with 8 processors and the kernel's own settings.
    fn node(test: &str, buckets: &str) -> FakeRoot {
        let root = FakeRoot::new(test, &[("sys/devices/system/cpu/online", "0-7\n")]);
        for (name, value) in [
            ("nf_conntrack_max", "65536\n"),
            ("nf_conntrack_buckets", buckets),
            ("nf_conntrack_tcp_timeout_established", "432000\n"),
            ("nf_conntrack_tcp_timeout_close_wait", "3600\n"),
            ("nf_conntrack_tcp_be_liberal", "0\n"),
            ("nf_conntrack_udp_timeout", "30\n"),
            ("nf_conntrack_udp_timeout_stream", "120\n"),
        ] {
            root.put(&format!("{FOLDER}{name}"), value);
        }
        root
    }

    fn prepared(root: &FakeRoot, config: &ConntrackConfig) -> Preparation {
        let mut preparation = Preparation::new(root.root());
        prepare(config, &mut preparation);
        preparation
    }

    /// With kube-proxy's defaults; what is right already is not written, as one sees by the line's end.
    #[test]
    fn what_is_asked_for_is_set_and_nothing_else() {
        let root = node("conntrack-defaults", "16384\n");
        let config = ConntrackConfig {
            max: Some(ConntrackMax { per_core: 32_768, min: 131_072 }),
            tcp_established: Some(Duration::from_hours(24)),
            tcp_close_wait: Some(Duration::from_hours(1)),
            ..NOTHING
        };
        let set = ["max=262144 (it was 65536)", "buckets=65536 (it was 16384)", "tcp_timeout_established=86400 (it was 432000)"];
        let set = set.map(|text| format!("net.netfilter.nf_conntrack_{text}"));
        assert_eq!(prepared(&root, &config).changed(), set);
        for (name, text) in [
            ("max", "262144"),
            ("buckets", "65536"),
            ("tcp_timeout_established", "86400"),
            ("tcp_timeout_close_wait", "3600\n"),
            ("tcp_be_liberal", "0\n"),
            ("udp_timeout", "30\n"),
            ("udp_timeout_stream", "120\n"),
        ] {
            assert_eq!(root.text(&format!("{FOLDER}nf_conntrack_{name}")), text, "{name}");
        }
        assert!(prepared(&root, &config).changed().is_empty(), "once is enough");
    }

    #[test]
    fn the_rest_is_set_where_it_is_asked_for() {
        let root = node("conntrack-rest", "16384\n");
        let config = ConntrackConfig {
            tcp_be_liberal: true,
            udp: Some(Duration::from_millis(300)),
            udp_stream: Some(Duration::from_millis(61_900)),
            ..NOTHING
        };
        let set = ["udp_timeout=1 (it was 30)", "udp_timeout_stream=61 (it was 120)", "tcp_be_liberal=1 (it was 0)"];
        assert_eq!(prepared(&root, &config).changed(), set.map(|text| format!("net.netfilter.nf_conntrack_{text}")));
        assert!(is_liberal(&root.root()));
        assert!(prepared(&root, &NOTHING).changed().is_empty());
    }

    #[test]
    fn a_limit_goes_down_and_a_table_stays_large() {
        let root = node("conntrack-lower", "4096\n");
        let config = ConntrackConfig { max: Some(ConntrackMax { per_core: 1_000, min: 0 }), ..NOTHING };
        assert_eq!(prepared(&root, &config).changed(), ["net.netfilter.nf_conntrack_max=8000 (it was 65536)"]);
    }
}
