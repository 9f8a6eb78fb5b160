//! `e2e/kind/run` where there is nothing to run it with: each step that cannot be done is told with its reason, and passes
//! for no success. What it does in a cluster can only be seen in one.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const MODES: [&str; 2] = ["iptables", "ipvs"];

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/kind").join(name)
}

/// What the checks show, as the script has them.
fn checks() -> Vec<String> {
    let text = fs::read_to_string(script("checks")).unwrap();
    let list = text.split("\nchecks=(\n").nth(1).unwrap().split("\n)").next().unwrap();
    list.lines().map(|line| line.trim().trim_matches('"').split_once(' ').unwrap().1.to_owned()).collect()
}

/// A folder with these programs alone, gone with the test.
struct Programs(PathBuf);

impl Programs {
    fn new(test: &str, names: &[&str]) -> Self {
        let folder = std::env::temp_dir().join(format!("sluice-kind-{}-{test}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for name in names {
            let found = ["/usr/bin", "/bin"].map(|place| Path::new(place).join(name)).into_iter().find(|path| path.exists());
            symlink(found.unwrap_or_else(|| panic!("there is no {name}")), folder.join(name)).unwrap();
        }
        Self(folder)
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs it with what every machine has, and none of what it needs.
fn run(test: &str, arguments: &[&str]) -> (Output, Vec<String>) {
    let programs = Programs::new(test, &["bash", "cat", "dirname", "mktemp", "paste", "rm", "sed", "sort", "tail", "timeout"]);
    let output = Command::new("/bin/bash").arg(script("run")).args(arguments).env("PATH", &programs.0).output().unwrap();
    let told = String::from_utf8(output.stdout.clone()).unwrap().lines().map(Into::into).collect();
    (output, told)
}

#[test]
fn what_cannot_be_done_is_told_and_is_no_success() {
    let (output, told) = run("without", &[]);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<_> = told.iter().filter(|line| line.starts_with("| ") && !line.starts_with("| mode")).collect();
    // Before the modes four; in each mode the chart, the servers and the checks; a change of mode.
    assert_eq!(rows.len(), 4 + MODES.len() * (2 + checks().len()) + 1, "{told:#?}");
    for row in &rows {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [_, _, "not done", reason] = cells[..] else { panic!("{row}") };
        assert!(reason.contains("there is no kind") || reason.contains("neither docker nor podman"), "{row}");
    }
    for mode in MODES {
        for check in checks() {
            assert!(rows.iter().any(|row| row.starts_with(&format!("| {mode} | {check} | "))), "{mode}: {check}");
        }
    }
}

#[test]
fn a_dry_run_tells_the_steps_and_does_none() {
    let (output, told) = run("dry", &["--dry-run", "--mode", "ipvs"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(told.len(), 4 + 2 + checks().len(), "{told:#?}");
    assert!(told.iter().all(|line| line.contains("cannot be done") && !line.starts_with("iptables")), "{told:#?}");
}

#[test]
fn a_word_that_it_does_not_know_is_refused() {
    for arguments in [&["--dry"][..], &["--mode", "nftables"], &["--mode"]] {
        let (output, _) = run(&arguments.concat(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("usage: "), "{arguments:?}");
    }
}
