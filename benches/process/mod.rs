//! The binary itself on manifests of many Services: its memory, and what it does when there is nothing to do.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long the process is left alone before it is looked at, and how long it is watched doing nothing.
const REST: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(5);

/// What was seen of a process.
pub struct Seen {
    /// In kB.
    pub steady: u64,
    /// In kB.
    pub peak: u64,
    /// CPU time while idle, in clock ticks of 10 ms, over [`IDLE`].
    pub idle_ticks: u64,
}

impl Seen {
    pub fn idle_percent(&self) -> f64 {
        let ticks = u32::try_from(self.idle_ticks).unwrap_or(u32::MAX);
        f64::from(ticks) / IDLE.as_secs_f64() // 100 ticks a second
    }
}

/// Runs the binary in the thread's namespace until its rules are in force and it has come to rest.
pub fn run(services: u32, endpoints: u32) -> Seen {
    let file = std::env::temp_dir().join(format!("sluice-bench-{}.yaml", std::process::id()));
    std::fs::write(&file, manifests(services, endpoints)).expect("a temporary file");
    let mut process = start(&file);
    wait_for_rules(&mut process);
    std::thread::sleep(REST);
    let before = ticks(&process);
    std::thread::sleep(IDLE);
    let seen =
        Seen { steady: kilobytes(&process, "VmRSS:"), peak: kilobytes(&process, "VmHWM:"), idle_ticks: ticks(&process) - before };
    process.kill().and_then(|()| process.wait()).expect("a child of ours");
    std::fs::remove_file(&file).expect("our own file");
    seen
}

fn start(manifests: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command.arg("--manifests").arg(manifests).args(["--hostname-override", "node-0"]);
    command.args(["--detect-local-mode", "ClusterCIDR", "--cluster-cidr", "10.128.0.0/9"]);
    command.stderr(Stdio::piped()).spawn().expect("the binary")
}

/// Until both families say so.
fn wait_for_rules(process: &mut Child) {
    let log = BufReader::new(process.stderr.take().expect("it is piped"));
    let in_force = log.lines().map_while(Result::ok).filter(|line| line.contains("rules are in force"));
    assert_eq!(in_force.take(2).count(), 2, "the process ended before its rules were in force");
}

fn kilobytes(process: &Child, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the kernel tells");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// User and system time, the 14th and 15th field.
fn ticks(process: &Child) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).expect("it runs");
    let (_, fields) = stat.rsplit_once(')').expect("the name stands in brackets");
    fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum()
}

/// A Node, and Services with a slice each.
fn manifests(services: u32, endpoints: u32) -> String {
    let mut text = String::from("apiVersion: v1\nkind: Node\nmetadata: {name: node-0}\n");
    for i in 0..services {
        let ip = std::net::Ipv4Addr::from(0x0a60_0000 + i);
        let (name, namespace) = (format!("web-{i}"), format!("team-{}", i % 100));
        write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
             type: ClusterIP\n  clusterIP: {ip}\n  clusterIPs: [{ip}]\n  ipFamilies: [IPv4]\n  ports:\n    \
             - {{name: http, protocol: TCP, port: 80, targetPort: 8080}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-x7k2p\n  \
             namespace: {namespace}\n  labels: {{kubernetes.io/service-name: {name}}}\naddressType: IPv4\nports:\n  \
             - {{name: http, protocol: TCP, port: 8080}}\nendpoints:\n",
        )
        .expect("a String takes everything");
        for k in 0..endpoints {
            let (ip, node) = (std::net::Ipv4Addr::from(0x0a80_0000 + i * 64 + k), (i * 7 + k) % 500);
            let conditions = "{ready: true, serving: true, terminating: false}";
            writeln!(text, "  - {{addresses: [{ip}], conditions: {conditions}, nodeName: node-{node}}}").expect("as above");
        }
    }
    text
}
