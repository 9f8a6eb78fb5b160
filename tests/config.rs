//! The configuration as a contract: every field of kube-proxy's file and every flag, its default, what it does, and how a
//! bad value is refused; what is written back; the files and command lines that people have.
//!
//! Needs no privilege but where it says so. What the real kube-proxy wrote and answered is never edited.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

mod support;

#[path = "config/distributions.rs"]
mod distributions;
#[path = "config/fields.rs"]
mod fields;
#[path = "config/files.rs"]
mod files;
#[path = "config/flags.rs"]
mod flags;
#[path = "config/running.rs"]
mod running;

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use sluice::config::{Config, KubeProxyConfiguration, Raw};
use support::proxy::BINARY;

/// What every file has to say.
const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn capture(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(path)).unwrap()
}

/// What was captured of an answer, without its head.
fn body(path: &str) -> String {
    capture(path).replace("\r\n", "\n").split_once("\n\n").unwrap().1.to_owned()
}

/// Reads a file and checks it, on a machine called host.
fn load(text: &str) -> Result<Config, String> {
    let decoded = KubeProxyConfiguration::decode(text).map_err(|problems| problems.to_string())?;
    assert!(decoded.lenient.is_empty(), "{:?}: {text}", decoded.lenient);
    Config::resolve(Raw { configuration: decoded.configuration, ..Raw::of_defaults("host") }).map_err(|p| p.to_string())
}

/// What stands at a path in a configuration; nothing is null.
fn at(configuration: &Value, path: &str) -> Value {
    let pointer = format!("/{}", path.replace('.', "/"));
    configuration.pointer(&pointer).cloned().unwrap_or_default()
}

/// What a run of the proxy said.
#[derive(Debug)]
struct Outcome {
    code: Option<i32>,
    out: String,
    err: String,
}

fn sluice(arguments: &[&str]) -> Outcome {
    let output = Command::new(BINARY).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Outcome { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// The one line with which these arguments are refused.
fn refused(arguments: &[&str], code: i32) -> String {
    let outcome = sluice(arguments);
    let lines: Vec<_> = outcome.err.lines().collect();
    let ([line], Some(ended), "") = (lines.as_slice(), outcome.code, outcome.out.as_str()) else {
        panic!("{arguments:?}: {outcome:?}")
    };
    assert_eq!(ended, code, "{arguments:?}: {line}");
    line.strip_prefix("error: ").unwrap_or_else(|| panic!("{line}")).to_owned()
}
