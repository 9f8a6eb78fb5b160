//! The binary itself on manifests of many Services: its memory, and what it does when there is nothing to do.

use std::fmt::{self, Write as _};
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long the process is left alone before it is looked at.
const REST: Duration = Duration::from_secs(2);

/// What the binary is run with.
#[derive(Clone, Copy)]
pub struct Sample {
    pub services: u32,
    /// Of each Service, in each family it has.
    pub endpoints: u32,
    /// Have Services IPv6 too?
    pub dual_stack: bool,
    pub arguments: &'static [&'static str],
    /// How long it is watched doing nothing.
    pub idle: Duration,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let families = if self.dual_stack { ", in each of two families" } else { "" };
        write!(f, "{} × {}{families}", self.services, self.endpoints)
    }
}

/// What was seen of a process.
pub struct Seen {
    /// In kB.
    steady: u64,
    peak: u64,
    idle_percent: f64,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = |kilobytes: u64| format!("{}.{}", kilobytes / 1000, kilobytes % 1000 / 100);
        write!(f, "{} | {} | {:.2}", megabytes(self.steady), megabytes(self.peak), self.idle_percent)
    }
}

/// Runs the binary in the thread's namespace until its rules are in force and it has come to rest.
pub fn run(sample: &Sample) -> Seen {
    let file = std::env::temp_dir().join(format!("sluice-bench-{}.yaml", std::process::id()));
    std::fs::write(&file, manifests(sample)).expect("a temporary file");
    let mut process = start(&file, sample.arguments);
    wait_for_rules(&mut process);
    std::thread::sleep(REST);
    let before = ticks(&process);
    std::thread::sleep(sample.idle);
    let seen = Seen {
        steady: kilobytes(&process, "VmRSS:"),
        peak: kilobytes(&process, "VmHWM:"),
        idle_percent: f64::from(ticks(&process) - before) / sample.idle.as_secs_f64(), // 100 ticks a second
    };
    process.kill().and_then(|()| process.wait()).expect("a child of ours");
    std::fs::remove_file(&file).expect("our own file");
    seen
}

fn start(manifests: &Path, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command.arg("--manifests").arg(manifests).args(["--hostname-override", "node-0"]);
    command.args(["--detect-local-mode", "ClusterCIDR", "--cluster-cidr", "10.128.0.0/9"]);
    command.args(arguments);
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
fn ticks(process: &Child) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).expect("it runs");
    let (_, fields) = stat.rsplit_once(')').expect("the name stands in brackets");
    fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u32>().expect("a number")).sum()
}

/// A Node, and Services with a slice for each family.
fn manifests(sample: &Sample) -> String {
    let mut text = String::from("apiVersion: v1\nkind: Node\nmetadata: {name: node-0}\n");
    for i in 0..sample.services {
        write_service(&mut text, i, sample.dual_stack);
        write_slice(&mut text, i, (sample.endpoints, "IPv4"), &|host| Ipv4Addr::from(0x0a80_0000 + host).into());
        if sample.dual_stack {
            let v6 = |host| Ipv6Addr::from((0xfd01 << 112) + u128::from(host)).into();
            write_slice(&mut text, i, (sample.endpoints, "IPv6"), &v6);
        }
    }
    text
}

fn names(i: u32) -> (String, String) {
    (format!("web-{i}"), format!("team-{}", i % 100))
}

fn write_service(text: &mut String, i: u32, dual_stack: bool) {
    let (name, namespace) = names(i);
    let (v4, v6) = (Ipv4Addr::from(0x0a60_0000 + i), Ipv6Addr::from((0xfd00 << 112) + 1 + u128::from(i)));
    let (more_ips, more_families) = if dual_stack { (format!(", \"{v6}\""), ", IPv6") } else { (String::new(), "") };
    write!(
        text,
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
         type: ClusterIP\n  clusterIP: {v4}\n  clusterIPs: [{v4}{more_ips}]\n  ipFamilies: [IPv4{more_families}]\n  \
         ports:\n    - {{name: http, protocol: TCP, port: 80, targetPort: 8080}}\n",
    )
    .expect("a String takes everything");
}

fn write_slice(text: &mut String, i: u32, (endpoints, family): (u32, &str), address: &dyn Fn(u32) -> IpAddr) {
    let (name, namespace) = names(i);
    write!(
        text,
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-{}\n  \
         namespace: {namespace}\n  labels: {{kubernetes.io/service-name: {name}}}\naddressType: {family}\nports:\n  \
         - {{name: http, protocol: TCP, port: 8080}}\nendpoints:\n",
        family.to_lowercase(),
    )
    .expect("a String takes everything");
    for k in 0..endpoints {
        let (ip, node) = (address(i * 64 + k), (i * 7 + k) % 500);
        let conditions = "{ready: true, serving: true, terminating: false}";
        writeln!(text, "  - {{addresses: [\"{ip}\"], conditions: {conditions}, nodeName: node-{node}}}").expect("as above");
    }
}
