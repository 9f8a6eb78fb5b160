//! A node for tests of bad input: the proxy runs on a manifest of the test's own making, and its log, its last words
//! and the rules are looked at. And small objects to make manifests of.
#![allow(clippy::missing_panics_doc, clippy::unwrap_used, reason = "test code: a panic is a failed test")]

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use super::netns::{Namespace, Process};
use super::proxy::{BINARY, saved_rules};
use super::{PATIENCE, Scratch, require_root, wait_until};

/// A node to run the proxy on, and the file it follows.
#[derive(Debug)]
pub struct Node {
    pub namespace: Namespace,
    pub scratch: Scratch,
}

impl Node {
    pub fn new(test: &str) -> Option<Self> {
        require_root(test).then(|| Self { namespace: Namespace::new(test, "node"), scratch: Scratch::new(test) })
    }

    pub fn manifest(&self) -> PathBuf {
        self.scratch.file("objects.yaml")
    }

    /// Puts a manifest in place, at once.
    pub fn write(&self, text: &str) {
        let draft = self.scratch.file("draft");
        fs::write(&draft, text).unwrap();
        fs::rename(draft, self.manifest()).unwrap();
    }

    pub fn write_objects(&self, objects: &[Value]) {
        self.write(&json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string());
    }

    pub fn command(&self) -> Command {
        self.command_by(&[])
    }

    /// `sluice`, started by way of another program.
    pub fn command_by(&self, way: &[&str]) -> Command {
        let words = [way, &[BINARY]].concat();
        let mut command = self.namespace.command(words[0]);
        command
            .args(&words[1..])
            .arg("--manifests")
            .arg(self.manifest())
            .arg("--hostname-override=node-a")
            .arg("--conntrack-max-per-core=0");
        command
    }

    pub fn once(&self) -> Output {
        self.command().arg("--once").output().unwrap()
    }

    /// A run with `--once` that must succeed; returns its log.
    pub fn programmed(&self) -> String {
        let output = self.once();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        text(output.stderr)
    }

    pub fn run(&self, flags: &[&str]) -> Run<'_> {
        self.run_by(&[], flags)
    }

    pub fn run_by(&self, way: &[&str], flags: &[&str]) -> Run<'_> {
        let log = self.scratch.file("log");
        let mut command = self.command_by(way);
        command.args(flags).stderr(File::create(&log).unwrap());
        Run { node: self, process: Process::start(&mut command), log }
    }

    pub fn rules(&self) -> String {
        saved_rules(&self.namespace)
    }
}

/// A running proxy.
#[derive(Debug)]
pub struct Run<'a> {
    node: &'a Node,
    process: Process,
    log: PathBuf,
}

impl Run<'_> {
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    pub fn wait_for_log(&self, what: &str) {
        let found = || self.log().contains(what);
        wait_until_or(&format!("the log says {what}"), found, || self.log());
    }

    pub fn wait_for_rules(&self, what: &str) {
        let found = || self.node.rules().contains(what);
        wait_until_or(&format!("the rules say {what}"), found, || self.log());
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    pub fn stop(mut self) -> String {
        self.process.signal(Signal::TERM);
        wait_until("sluice ends", PATIENCE, || self.process.child().try_wait().unwrap().is_some());
        let status = self.process.child().wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
        self.log()
    }
}

/// As `wait_until`, with `more` to explain a failure.
pub fn wait_until_or(what: &str, mut found: impl FnMut() -> bool, more: impl Fn() -> String) {
    let end = Instant::now() + PATIENCE;
    while !found() {
        assert!(Instant::now() < end, "not in time: {what}\n{}", more());
        thread::sleep(Duration::from_millis(10));
    }
}

pub fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// The last line on stderr, which must be the error of a run that failed.
pub fn error_line(output: &Output) -> String {
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{err}");
    let errors = err.lines().filter(|line| line.starts_with("error: ")).count();
    let last = err.lines().last().unwrap_or_default();
    assert!(errors == 1 && last.starts_with("error: "), "not one error at the end: {err}");
    last.into()
}

#[allow(clippy::needless_pass_by_value, reason = "it is a literal where this is called")]
pub fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

#[allow(clippy::needless_pass_by_value, reason = "it is a literal where this is called")]
pub fn slice(name: &str, ports: Value, endpoints: &[&str]) -> Value {
    let endpoints: Vec<_> = endpoints.iter().map(|address| json!({"addresses": [address]})).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
           "metadata": {"name": format!("{name}-1"), "namespace": "shop", "labels": {"kubernetes.io/service-name": name}},
           "ports": ports, "endpoints": endpoints})
}

/// A Service that is all right, with its endpoint on port 8080.
pub fn good(name: &str, number: u8) -> [Value; 2] {
    let endpoint = format!("10.244.0.{number}");
    [
        service(name, json!({"clusterIP": format!("10.96.0.{number}"), "ports": [{"name": "web", "port": 80}]})),
        slice(name, json!([{"name": "web", "port": 8080}]), &[&endpoint]),
    ]
}
