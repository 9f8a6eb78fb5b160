//! What the tests with a real kernel share: network namespaces, a laboratory of nodes and pods, traffic, and the
//! built `sluice` running in one of them. Knows nothing of the code under test but its binary.
#![allow(dead_code, reason = "each test crate uses the part it needs")]

pub mod crowd;
pub mod golden;
pub mod ipvs;
pub mod lab;
pub mod machine;
pub mod netns;
pub mod node;
pub mod objects;
pub mod proxy;
pub mod random;
pub mod traffic;
pub mod trial;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for a busy machine; a test that meets it has failed. In the virtual machine it counts `slowness` times.
pub const PATIENCE: Duration = Duration::from_secs(15);

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// Whether `test` may make network namespaces. A plain user's run goes on without it; a run in CI fails, so that the
/// test cannot vanish unseen.
///
/// # Panics
/// In CI without the privilege.
pub fn require_root(test: &str) -> bool {
    if has_capability(CAP_NET_ADMIN) && has_capability(CAP_SYS_ADMIN) {
        return true;
    }
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(!in_ci, "{test} needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN) to make network namespaces, and CI must not skip it");
    eprintln!("{test} not run: it needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN) to make network namespaces");
    false
}

fn has_capability(number: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|bits| bits >> number & 1 == 1)
}

/// By how much everything takes longer here: the virtual machine of `e2e/vmrun` may have an emulated processor.
pub fn slowness() -> u32 {
    if Path::new("/run/vmrun").exists() { 10 } else { 1 }
}

/// Asks again and again until `condition` holds.
///
/// # Panics
/// With `what` when it does not within `patience`.
pub fn wait_until(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) {
    let patience = patience * slowness();
    let deadline = Instant::now() + patience;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A directory of one test, readable by every user, removed when dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// # Panics
    /// When the directory cannot be made.
    pub fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sluice-{test}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory for the test");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
