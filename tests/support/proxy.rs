//! The built `sluice` running in a namespace: started on a manifest, waited for by what it programmed, ended as an
//! operator ends it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use rustix::process::Signal;

use super::netns::{Namespace, Process};
use super::objects::{Service, write_manifest};
use super::{PATIENCE, Scratch, wait_until};

pub const BINARY: &str = env!("CARGO_BIN_EXE_sluice");

const HEALTH: &str = "127.0.0.1:10256";
const METRICS: &str = "127.0.0.1:10249";

/// A running proxy for node-a.
#[derive(Debug)]
pub struct Sluice<'lab> {
    node: &'lab Namespace,
    process: Process,
    manifest: PathBuf,
    log: PathBuf,
}

impl<'lab> Sluice<'lab> {
    /// Starts the proxy on these Services and waits until its rules are in force.
    ///
    /// # Panics
    /// When they are not in time.
    pub fn start(node: &'lab Namespace, scratch: &Scratch, services: &[Service]) -> Self {
        Self::start_with(node, scratch, services, &[])
    }

    /// With flags that take the place of the usual ones.
    ///
    /// # Panics
    /// When the rules are not in force in time.
    pub fn start_with(node: &'lab Namespace, scratch: &Scratch, services: &[Service], flags: &[&str]) -> Self {
        let manifest = scratch.file("objects.json");
        write_manifest(&manifest, services);
        let mut command = node.command(BINARY);
        command.args(arguments(&manifest)).args(flags);
        let mut sluice = Self::spawn(node, scratch, command);
        sluice.wait_in_force();
        sluice
    }

    /// Starts `command`, some way to run the proxy, with its log in a file; the manifest is the caller's to write.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(node: &'lab Namespace, scratch: &Scratch, mut command: Command) -> Self {
        let (manifest, log) = (scratch.file("objects.json"), scratch.file("log"));
        command.stderr(File::create(&log).expect("a log file"));
        Self { node, process: Process::start(&mut command), manifest, log }
    }

    /// Waits until the built-in chains lead to the proxy's own, the last thing of a first load, and the proxy says it
    /// is healthy: the rules may be those of an earlier one.
    ///
    /// # Panics
    /// When that does not come, or the proxy ends.
    pub fn wait_in_force(&mut self) {
        wait_until("the rules are in force", PATIENCE, || {
            let ended = self.process.child().try_wait().expect("a child");
            assert!(ended.is_none(), "sluice ended early ({ended:?}):\n{}", self.log());
            let leads = |rules: &String| rules.contains("-j KUBE-SERVICES") && rules.contains("-j KUBE-POSTROUTING");
            healthy(self.node) && family_rules(self.node).iter().all(leads)
        });
    }

    /// Replaces the objects and waits until `done` holds of the rules of each family.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn change(&self, services: &[Service], done: impl Fn(&str) -> bool) {
        self.write(services);
        wait_until("the change is in force", PATIENCE, || family_rules(self.node).iter().all(|rules| done(rules)));
    }

    /// Replaces the objects.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn write(&self, services: &[Service]) {
        write_manifest(&self.manifest, services);
    }

    /// The values of a metric, by its labels as they are written.
    ///
    /// # Panics
    /// When the metrics cannot be had.
    pub fn metric(&self, name: &str) -> BTreeMap<String, u64> {
        let text = self.node.run(|| get(METRICS, "/metrics")).expect("the metrics");
        let values = text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
        values.map(|(labels, value)| (labels.to_owned(), value.parse().expect("a number"))).collect()
    }

    /// # Panics
    /// When nobody can tell.
    pub fn is_running(&mut self) -> bool {
        self.process.child().try_wait().expect("a child").is_none()
    }

    pub fn is_healthy(&self) -> bool {
        healthy(self.node)
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Ends the proxy with SIGKILL.
    pub fn kill(self) {
        drop(self);
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends the proxy with SIGTERM and returns its log.
    ///
    /// # Panics
    /// When it does not end well and in time.
    pub fn stop(mut self) -> String {
        self.process.signal(Signal::TERM);
        wait_until("sluice ends", PATIENCE, || self.process.child().try_wait().expect("a child").is_some());
        let status = self.process.child().wait().expect("a child");
        assert!(status.success(), "sluice ended with {status}:\n{}", self.log());
        self.log()
    }
}

impl Drop for Sluice<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the log of sluice:\n{}", self.log());
        }
    }
}

/// The flags of every run in the lab.
pub fn arguments(manifest: &Path) -> Vec<String> {
    common_flags().chain([format!("--manifests={}", manifest.display())]).collect()
}

/// The flags that do not say where objects come from.
pub fn common_flags() -> impl Iterator<Item = String> {
    let flags = "--mode=iptables --hostname-override=node-a --cluster-cidr=10.244.0.0/16,fd00:10:244::/56 \
                 --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0";
    let servers = [format!("--healthz-bind-address={HEALTH}"), format!("--metrics-bind-address={METRICS}")];
    flags.split_whitespace().map(str::to_owned).chain(servers)
}

fn healthy(node: &Namespace) -> bool {
    let is_good = |answer: String| answer.lines().next().is_some_and(|status| status.contains(" 200 "));
    node.run(|| get(HEALTH, "/healthz").is_ok_and(is_good))
}

/// Asks an HTTP server from the calling thread's namespace; gives the whole answer.
pub fn get(server: &str, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node-a\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The rules of both families as `iptables-save` prints them.
pub fn family_rules(node: &Namespace) -> [String; 2] {
    ["iptables-save", "ip6tables-save"].map(|tool| node.output(&[tool]))
}

/// All rules of both families, without what changes by itself: comments and the counters of the built-in chains.
pub fn saved_rules(node: &Namespace) -> String {
    let dumps = family_rules(node).concat();
    let lines = dumps.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.split_once(" [").filter(|_| line.starts_with(':')).map_or(line, |(chain, _)| chain))
        .fold(String::new(), |all, line| all + line + "\n")
}
