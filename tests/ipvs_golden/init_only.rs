//! `--init-only` in ipvs mode: the settings of the kernel are kube-proxy's, and a proxy that may not make them starts after
//! it without a word of complaint.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::support::golden::{GOLDEN, flags_of};
use super::support::netns::Namespace;
use super::support::node::error_line;
use super::{SLUICE, settings};

/// Runs what follows, without privilege but `CAP_NET_ADMIN`, where nobody can write to /proc/sys.
const CONFINED: [&str; 7] = [
    "unshare",
    "--mount",
    "sh",
    "-c",
    "mount -o bind,ro /proc/sys /proc/sys && exec setpriv --bounding-set=-all,+net_admin --inh-caps=-all,+net_admin \"$@\"",
    "sh",
    SLUICE,
];

#[test]
#[ignore = "run in the virtual machine of what_is_programmed_is_kube_proxys"]
fn a_node_is_made_ready_for_a_confined_proxy() {
    let scenario = Path::new(GOLDEN).join("ipvs-strict-arp");
    let node = Namespace::golden("ipvs-init-only");
    let flags = flags_of("--mode=ipvs", &scenario);
    let confined = |flags: &[String]| {
        let mut command = node.command(CONFINED[0]);
        command.args(&CONFINED[1..]).args(flags).arg("--once").arg("--manifests").arg(scenario.join("objects.yaml"));
        command.output().expect("sluice")
    };
    let dump = fs::read_to_string(scenario.join("ipvs-sysctls.txt")).expect("a dump");
    let wanted: Vec<_> = dump.lines().filter_map(|line| line.rsplit(' ').next()).collect();
    let names: Vec<_> = dump.lines().filter_map(|line| line.split(' ').next()).collect();

    let error = error_line(&confined(&flags));
    let words = "error: prepare the node for ipvs mode: cannot set sysctl net.ipv4.vs.conntrack=1 (it is 0: ";
    assert!(error.starts_with(words) && error.contains("EROFS") && error.contains("--init-only"), "{error}");
    assert!(error.contains("net.ipv4.conf.all.arp_ignore=1") && error.contains("net.ipv4.ip_forward=1"), "{error}");

    let init = node.command(SLUICE).args(&flags).args(["--init-only", "--ipvs-udp-timeout=47s"]).output().expect("sluice");
    let log = String::from_utf8_lossy(&init.stderr);
    assert!(init.status.success() && log.contains("System initialized and --init-only specified"), "{log}");
    assert_eq!(settings(&node, &names), wanted, "{log}");
    assert!(node.output(&["ipvsadm", "-L", "--timeout"]).trim_end().ends_with(" 47"));
    let made = node.output(&["ipvsadm", "-Sn"]) + &node.output(&["ipset", "list", "-n"]) + &node.output(&["iptables-save"]);
    assert_eq!(made, "", "nothing is programmed");

    let ran = confined(&flags);
    let log = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && !log.contains("ERROR"), "{log}");
    assert!(!log.contains("cannot set") && !log.contains("going on without"), "{log}");
    assert!(node.output(&["ipvsadm", "-Sn"]).contains("-a -t "));
}

/// The limit of tracked connections can be set in the host's own network namespace alone, which here is the machine's.
/// kube-proxy sees the table's size in the module's parameter.
#[test]
#[ignore = "run in the virtual machine of what_is_programmed_is_kube_proxys"]
fn the_hosts_limit_of_tracked_connections_follows_the_cores() {
    let read = |file: &str| -> u64 { fs::read_to_string(file).expect("a setting").trim().parse().expect("a number") };
    let limit = || read("/proc/sys/net/netfilter/nf_conntrack_max");
    let table = || read("/sys/module/nf_conntrack/parameters/hashsize");
    let processors = u64::try_from(std::thread::available_parallelism().expect("processors").get()).expect("some");
    let initialize = |per_core: u64| {
        let per_core = format!("--conntrack-max-per-core={per_core}");
        // What it would set else is where other tests' namespaces have theirs from.
        let flags = ["--init-only", "--iptables-localhost-nodeports=false", "--conntrack-min=0", &per_core];
        let ran = Command::new(SLUICE).args(flags).output().expect("sluice");
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    };
    let large = 4 * table();
    initialize(large);
    assert_eq!(limit(), large * processors);
    let grown = table();
    assert!(grown >= large * processors / 4, "{grown} buckets");
    initialize(large / 2);
    assert_eq!((limit(), table()), (large / 2 * processors, grown), "the limit goes down, the table stays");
}
