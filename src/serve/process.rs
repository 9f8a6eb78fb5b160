//! What `/proc/self` tells of this process, under the names every Prometheus client library uses.
//!
//! Read at each scrape. What cannot be read is left out; a missing number must not cost the others.

use std::fmt;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Kernel ticks in `/proc/self/stat` are hundredths of a second on every architecture Kubernetes runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Collects the `process_*` metrics.
#[derive(Debug)]
pub(super) struct Process {
    /// Seconds since 1970.
    pub(super) started: f64,
}

impl Process {
    pub(super) fn read() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let age = age().unwrap_or_default();
        Self { started: now - age }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut show = |name: &str, help: &str, value: Option<f64>| match value {
            Some(value) => gauge(&mut encoder, name, help, value),
            None => Ok(()),
        };
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let start_help = "Start time of the process since unix epoch in seconds.";
        show("process_start_time_seconds", start_help, Some(self.started))?;
        show("process_resident_memory_bytes", "Resident memory size in bytes.", kilobytes(&status, "VmRSS:"))?;
        show("process_virtual_memory_bytes", "Virtual memory size in bytes.", kilobytes(&status, "VmSize:"))?;
        show("process_open_fds", "Number of open file descriptors.", open_fds())?;
        show("process_max_fds", "Maximum number of open file descriptors.", limit("Max open files"))?;
        let help = "Maximum amount of virtual memory available in bytes.";
        show("process_virtual_memory_max_bytes", help, limit("Max address space"))?;
        let mut count = |name: &str, help: &str, value: Option<f64>| match value {
            Some(value) => counter(&mut encoder, name, help, value),
            None => Ok(()),
        };
        count("process_cpu_seconds", "Total user and system CPU time spent in seconds.", cpu_seconds())?;
        let netstat = fs::read_to_string("/proc/self/net/netstat").unwrap_or_default();
        let help = "Number of bytes received by the process over the network.";
        count("process_network_receive_bytes", help, ip_octets(&netstat, "InOctets"))?;
        let help = "Number of bytes sent by the process over the network.";
        count("process_network_transmit_bytes", help, ip_octets(&netstat, "OutOctets"))
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> fmt::Result {
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, &stopped(help), None, gauge.metric_type())?)
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> fmt::Result {
    let counter = ConstCounter::new(value);
    counter.encode(encoder.encode_descriptor(name, &stopped(help), None, counter.metric_type())?)
}

/// Help texts end with a full stop of the library's own, which the text format leaves out; a collector has to set it.
fn stopped(help: &str) -> String {
    format!("{help}.")
}

/// Fields of `/proc/self/stat` from the third on: the second, the program's name, may hold spaces.
fn stat_field(stat: &str, number: usize) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    Some((stat_field(&stat, 14)? + stat_field(&stat, 15)?) / TICKS_PER_SECOND)
}

/// Seconds since this process started.
fn age() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let uptime: f64 = fs::read_to_string("/proc/uptime").ok()?.split_ascii_whitespace().next()?.parse().ok()?;
    Some((uptime - stat_field(&stat, 22)? / TICKS_PER_SECOND).max(0.0))
}

fn kilobytes(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|kilobytes| kilobytes * 1024.0)
}

fn open_fds() -> Option<f64> {
    // One of them is the directory being read.
    let count = fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1);
    u32::try_from(count).ok().map(f64::from)
}

/// The limit in force; without one, the greatest number there is, as Go's library has it.
fn limit(name: &str) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "as large as it gets")]
    const UNLIMITED: f64 = u64::MAX as f64;
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    match limits.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()? {
        "unlimited" => Some(UNLIMITED),
        number => number.parse().ok(),
    }
}

/// A number of the `IpExt` lines: one names the columns, the next has their values. They are those of the network
/// namespace, which is the node's: so it is with every Go program.
fn ip_octets(netstat: &str, column: &str) -> Option<f64> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("IpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let place = names.split_ascii_whitespace().position(|name| name == column)?;
    values.split_ascii_whitespace().nth(place)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_spaces_and_brackets_do_not_shift_the_fields() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 12 34 0 0 20 0 1 0 5600 1 2";
        assert_eq!(stat_field(stat, 14), Some(12.0));
        assert_eq!(stat_field(stat, 15), Some(34.0));
        assert_eq!(stat_field(stat, 22), Some(5600.0));
    }

    #[test]
    fn octets_are_found_by_the_name_of_their_column() {
        let netstat = "TcpExt: A B\nTcpExt: 1 2\nIpExt: X InOctets OutOctets\nIpExt: 0 700 800\n";
        assert_eq!(ip_octets(netstat, "InOctets"), Some(700.0));
        assert_eq!(ip_octets(netstat, "OutOctets"), Some(800.0));
        assert_eq!(ip_octets(netstat, "A"), None);
    }

    #[test]
    fn the_kernel_tells_all_of_this_process() {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        assert!(kilobytes(&status, "VmRSS:").unwrap() > 100_000.0);
        assert!(kilobytes(&status, "VmSize:") >= kilobytes(&status, "VmRSS:"));
        assert!(open_fds().unwrap() >= 3.0);
        assert!(limit("Max open files") >= open_fds());
        assert!(limit("Max address space") >= kilobytes(&status, "VmSize:"));
        let netstat = fs::read_to_string("/proc/self/net/netstat").unwrap();
        assert!(ip_octets(&netstat, "InOctets").is_some() && ip_octets(&netstat, "OutOctets").is_some(), "{netstat}");
        assert!(cpu_seconds().is_some());
        assert!(age().unwrap() < 600.0);
    }
}
