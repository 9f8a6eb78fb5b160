//! A node of a cluster: a namespace in which the built `sluice` runs against an API server, and the judgement whether
//! the rules there are those of the server's objects.
//!
//! The judgement is `sluice render` of the same objects, which tests/golden.rs holds against kube-proxy.
#![allow(dead_code, clippy::unwrap_used, reason = "test code, of which each test crate uses its part")]

pub mod certificates;
pub mod kubeconfig;
pub mod objects;
pub mod story;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::netns::{Namespace, succeed};
use crate::support::proxy::{BINARY, Sluice, common_flags, family_rules, saved_rules};
use crate::support::{Scratch, wait_until};

const JUDGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/same-rules");
/// The addresses of the golden node's interfaces, for a render that has no kernel to ask.
const NODE_IPS: &str = "--node-ip=172.31.0.11,fd31::b,10.244.11.1,fd00:10:244:b::1";
const FAMILIES: [&str; 2] = ["ipv4", "ipv6"];

/// Fields are dropped in order.
#[derive(Debug)]
pub struct ClusterNode {
    pub namespace: Namespace,
    pub scratch: Scratch,
}

impl ClusterNode {
    /// # Panics
    /// When there can be no such namespace.
    pub fn new(test: &str) -> Self {
        Self { namespace: Namespace::golden(test), scratch: Scratch::new(test) }
    }

    /// A listener on a free port of the node's 127.0.0.1.
    ///
    /// # Panics
    /// When there is none.
    pub fn listen(&self) -> TcpListener {
        self.namespace.run(|| TcpListener::bind("127.0.0.1:0").expect("a port"))
    }

    /// Starts the proxy; `how` says where its API server is.
    pub fn start(&self, how: &[String]) -> Sluice<'_> {
        let mut command = self.namespace.command(BINARY);
        command.args(common_flags()).args(how);
        Sluice::spawn(&self.namespace, &self.scratch, command)
    }

    pub fn kubeconfig(&self, kubeconfig: &kubeconfig::Kubeconfig) -> Vec<String> {
        vec![format!("--kubeconfig={}", kubeconfig.write(self.scratch.file("kubeconfig")).display())]
    }

    pub fn rules(&self) -> String {
        saved_rules(&self.namespace)
    }

    /// # Panics
    /// When there are rules of ours.
    pub fn assert_untouched(&self) {
        assert!(!self.rules().contains("KUBE-"), "programmed too early:\n{}", self.rules());
    }

    /// Does `condition` hold of the rules of each family?
    pub fn all(&self, condition: impl Fn(&str) -> bool) -> bool {
        family_rules(&self.namespace).iter().all(|rules| condition(rules))
    }

    /// Waits until the rules are those of these objects.
    ///
    /// # Panics
    /// With the differences when that does not come.
    pub fn wait_for_rules_of(&self, what: &str, limit: Duration, objects: &[Value]) {
        let differences = self.differences_from(objects, limit);
        assert!(differences.is_empty(), "{what}: the rules are not those of the objects:\n{differences}");
    }

    /// Waits until the rules are those of these objects, and gives the differences when that does not come.
    pub fn differences_from(&self, objects: &[Value], limit: Duration) -> String {
        let wanted = self.render(objects);
        let deadline = std::time::Instant::now() + limit;
        loop {
            let differences = self.differences(&wanted);
            if differences.is_empty() || std::time::Instant::now() > deadline {
                return differences;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn render(&self, objects: &[Value]) -> [String; 2] {
        let manifest = self.scratch.file("wanted.json");
        fs::write(&manifest, json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()).unwrap();
        FAMILIES.map(|family| {
            let mut command = Command::new(BINARY);
            command.arg("render").args(common_flags()).args([NODE_IPS, "--family", family]);
            succeed(command.arg("--manifests").arg(&manifest))
        })
    }

    fn differences(&self, wanted: &[String; 2]) -> String {
        let have = family_rules(&self.namespace);
        let judge = |(wanted, have): (&String, &String)| {
            let files = [("wanted.rules", wanted), ("have.rules", have)].map(|(name, text)| {
                let file = self.scratch.file(name);
                fs::write(&file, text).unwrap();
                file
            });
            same_rules(&files[0], &files[1])
        };
        wanted.iter().zip(&have).map(judge).collect()
    }
}

fn same_rules(wanted: &Path, have: &Path) -> String {
    let judged = Command::new("python3").arg(JUDGE).arg(wanted).arg(have).output().expect("python3");
    if judged.status.success() { String::new() } else { String::from_utf8_lossy(&judged.stdout).into_owned() }
}

/// Waits until the log has a line with all of these words.
///
/// # Panics
/// With the log when it does not come.
pub fn wait_for_line(sluice: &Sluice<'_>, words: &[&str]) {
    let what = format!("a line of the log with {words:?}");
    wait_until(&what, Duration::from_secs(20), || count_lines(&sluice.log(), words) > 0);
}

/// How many lines have all of these words.
pub fn count_lines(log: &str, words: &[&str]) -> usize {
    log.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
}
