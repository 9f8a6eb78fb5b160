//! The virtual machine with Linux 6.1 (e2e/vmrun), for what the machine's own kernel has not. A test binary runs in it
//! once more: one test of it boots the machine, those that are ignored elsewhere run inside. What they write to the
//! folder that both sides share is there when the machine is gone.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Scratch;

/// Above what the slowest machine needs.
const TIMEOUT: &str = "900";
const MEMORY: &str = "2048";

/// What a run in the machine left behind.
#[derive(Debug)]
pub struct Machine {
    share: PathBuf,
    /// What was not as it should be inside; empty when nothing was.
    pub failures: Vec<String>,
}

impl Machine {
    /// Runs a shell script in the machine, with this test binary as `$0`. It must succeed, and every ignored test of the
    /// binary must have run in it. `None` where there is no machine, but for CI.
    ///
    /// # Panics
    /// When the machine cannot be run, and in CI where there is none.
    pub fn run(scratch: &Scratch, script: &str) -> Option<Self> {
        let share = scratch.file("share");
        fs::create_dir_all(&share).expect("a folder to share");
        let tests = env::current_exe().expect("this binary");
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/vmrun"));
        command.args(["--timeout", TIMEOUT, "--memory", MEMORY, "--share"]).arg(&share);
        command.arg("--log").arg(scratch.file("console")).args(["--", "sh", "-ec", script]).arg(&tests);
        let run = command.output().expect("to run e2e/vmrun");
        let (out, log) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        if run.status.code() == Some(125) {
            assert!(env::var_os("CI").is_none(), "there is no virtual machine, and CI must not do without: {log}");
            eprintln!("not run, there is no virtual machine here (e2e/vmrun --setup makes one ready): {log}");
            return None;
        }
        let mut failures = not_passed(&tests, &out);
        if !run.status.success() || !out.starts_with("6.1.") {
            failures.push(format!("in the machine: {}\n{out}\n{log}", run.status));
        }
        Some(Self { share, failures })
    }

    /// A file that was left in the shared folder, if it was.
    pub fn left(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.share.join(file)).ok()
    }
}

/// A complaint of each ignored test that libtest does not say `ok` of.
fn not_passed(tests: &Path, out: &str) -> Vec<String> {
    let listed = Command::new(tests).args(["--list", "--ignored"]).output().expect("this binary's tests");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let passed = out.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... ok"));
    let passed: BTreeSet<_> = passed.collect();
    let named = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    named.filter(|test| !passed.contains(test)).map(|test| format!("{test} has not passed in the machine")).collect()
}

/// Leaves a file in the folder that the machine's host sees.
///
/// # Panics
/// Outside the machine.
pub fn leave(file: &str, text: &str) {
    let share = env::var_os("VMRUN_SHARE").expect("to be in the machine");
    let path = Path::new(&share).join(file);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder for the host");
    fs::write(&path, text).expect("a file for the host");
}
