//! The golden dumps (tests/golden/README.md): which scenarios there are, the flags of each, and the judge.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use serde_json::{Value, json};

use super::Scratch;
use super::netns::Namespace;

const JUDGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/same-rules");
pub const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

/// What kube-proxy was started with in every scenario, beside its mode.
const COMMON: [&str; 5] = [
    "--hostname-override=node-a",
    "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
    "--conntrack-max-per-core=0",
    "--conntrack-tcp-timeout-established=0",
    "--conntrack-tcp-timeout-close-wait=0",
];

/// The addresses of the golden node's interfaces, for a render that has no kernel to ask.
pub const NODE_IPS: &str = "--node-ip=172.31.0.11,fd31::b,10.244.11.1,fd00:10:244:b::1";

pub const FAMILIES: [(&str, &str, &str); 2] =
    [("ipv4", "iptables-save", "iptables-v4.save"), ("ipv6", "ip6tables-save", "iptables-v6.save")];

/// Every folder below `parent` that `belongs`, sorted.
pub fn folders(parent: &Path, belongs: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).expect("the goldens").map(|entry| entry.expect("an entry").path());
    let mut found: Vec<_> = entries.filter(|path| path.is_dir() && belongs(path)).collect();
    found.sort();
    assert!(!found.is_empty(), "no scenario in {}", parent.display());
    found
}

pub fn scenarios() -> Vec<PathBuf> {
    folders(Path::new(GOLDEN), |path| path.join("iptables-v4.save").exists())
}

pub fn name(path: &Path) -> &str {
    path.file_name().and_then(|n| n.to_str()).expect("a name")
}

/// The flags of iptables mode.
pub fn flags(scenario: &Path) -> Vec<String> {
    flags_of("--mode=iptables", scenario)
}

/// `mode` and the common flags with the scenario's own; a line `!--flag` takes a common one away.
pub fn flags_of(mode: &str, scenario: &Path) -> Vec<String> {
    let own = fs::read_to_string(scenario.join("args")).unwrap_or_default();
    let mut flags: Vec<_> = [mode].iter().chain(&COMMON).map(ToString::to_string).collect();
    for line in own.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match line.strip_prefix('!') {
            Some(unwanted) => flags.retain(|flag| !flag.starts_with(unwanted)),
            None => flags.push(line.to_owned()),
        }
    }
    flags
}

/// What differs between the golden dump and `have`, in the judge's words; empty when nothing does.
pub fn differences(scratch: &Scratch, want: &Path, have: &str) -> String {
    let thread = format!("{:?}", thread::current().id());
    let file = scratch.file(&format!("have-{}", thread.replace(|c: char| !c.is_ascii_digit(), "")));
    fs::write(&file, have).expect("a file");
    let judged = Command::new("python3").arg(JUDGE).arg(want).arg(&file).output().expect("python3");
    if judged.status.success() { String::new() } else { String::from_utf8_lossy(&judged.stdout).into_owned() }
}

/// Judges each scenario on one of two threads and tells all that failed at once.
pub fn for_each(scenarios: &[PathBuf], judge: impl Fn(&Path) -> Vec<String> + Sync) {
    let (even, odd): (Vec<_>, Vec<_>) = scenarios.iter().enumerate().partition(|(i, _)| i % 2 == 0);
    let failures = thread::scope(|scope| {
        let halves = [even, odd].map(|half| scope.spawn(|| half.into_iter().flat_map(|(_, s)| judge(s)).collect::<Vec<_>>()));
        halves.map(|half| half.join().expect("a judge")).concat()
    });
    assert!(failures.is_empty(), "{} differences in {} scenarios:\n{}", failures.len(), scenarios.len(), failures.join("\n"));
}

/// What differs between the golden dumps in `folder` and the rules of `node`.
///
/// # Panics
/// When nobody can tell.
pub fn dumps_differ(node: &Namespace, scratch: &Scratch, folder: &Path) -> Option<String> {
    let judge = |(_, tool, dump): (&str, &str, &str)| differences(scratch, &folder.join(dump), &node.output(&[tool]));
    Some(FAMILIES.map(judge).concat()).filter(|found| !found.is_empty())
}

/// The files of a sequence's steps in their order, each with the name of its step.
///
/// # Panics
/// When there is none.
pub fn steps(sequence: &Path) -> Vec<(String, PathBuf)> {
    let step = |path: PathBuf| {
        let (number, _) = name(&path).split_once('.')?;
        number.starts_with("step-").then(|| (number.to_owned(), path.clone()))
    };
    let entries = fs::read_dir(sequence).expect("a sequence").map(|entry| entry.expect("an entry").path());
    let mut steps: Vec<_> = entries.filter(|path| path.is_file()).filter_map(step).collect();
    steps.sort();
    assert!(!steps.is_empty(), "no step in {}", sequence.display());
    steps
}

/// The objects that there are after a step of a sequence, in a file for the proxy to follow.
#[derive(Debug)]
pub struct Objects {
    manifest: PathBuf,
    /// By what they are: kind, namespace and name.
    objects: BTreeMap<String, Value>,
}

impl Objects {
    pub fn new(manifest: PathBuf) -> Self {
        Self { manifest, objects: BTreeMap::new() }
    }

    pub fn manifest(&self) -> &Path {
        &self.manifest
    }

    /// Creates, replaces or deletes what is in a step's file, and puts the new manifest in place at once.
    ///
    /// # Panics
    /// When a file cannot be read or written.
    pub fn take(&mut self, step: &Path) {
        let deletes = name(step).ends_with(".delete.yaml");
        for (key, object) in documents(step) {
            if deletes { drop(self.objects.remove(&key)) } else { drop(self.objects.insert(key, object)) }
        }
        let list = json!({"apiVersion": "v1", "kind": "List", "items": self.objects.values().collect::<Vec<_>>()});
        let new = self.manifest.with_extension("new");
        fs::write(&new, list.to_string()).expect("a manifest");
        fs::rename(&new, &self.manifest).expect("a manifest");
    }
}

/// The documents of a step's file by what they are.
fn documents(file: &Path) -> Vec<(String, Value)> {
    let text = fs::read_to_string(file).expect("a step");
    let parsed = text.split("\n---\n").map(|document| serde_norway::from_str::<Value>(document).expect("YAML"));
    let parsed = parsed.filter(|object| !object.is_null());
    parsed
        .map(|object| (format!("{} {} {}", object["kind"], object["metadata"]["namespace"], object["metadata"]["name"]), object))
        .collect()
}

/// The golden rules as they are on a node that came from ipvs mode: the jump that both modes have stays where it was,
/// behind those that are put in front of it. Of kube-proxy it would stay too.
///
/// # Panics
/// When it is not among them.
pub fn after_ipvs(golden: &str) -> String {
    let is_it = |line: &&str| line.starts_with("-A FORWARD ") && line.ends_with("-j KUBE-FORWARD");
    let kept = golden.lines().find(is_it).expect("the jump");
    let last = golden.lines().rfind(|line| line.starts_with("-A FORWARD ")).expect("a jump");
    let mut out = String::new();
    for line in golden.lines().filter(|line| !is_it(line)) {
        out.extend([line, "\n"]);
        if line == last {
            out.extend([kept, "\n"]);
        }
    }
    out
}
