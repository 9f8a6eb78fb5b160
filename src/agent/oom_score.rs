//! How ready the kernel is to end this process when memory runs out.

use crate::netlink::IoCause;
use crate::sysctl::Root;

const FILE: &str = "proc/self/oom_score_adj";

/// Sets it. That it cannot be lowered without privilege is usual, and no reason to worry anybody.
pub fn adjust(root: &Root, wanted: i16) {
    match set(root, &wanted.to_string()) {
        Ok(()) => tracing::debug!(wanted, "oom score"),
        Err(why) => tracing::info!("--oom-score-adj={wanted}: {why}"),
    }
}

fn set(root: &Root, wanted: &str) -> Result<(), String> {
    let before = root.read(FILE).unwrap_or_default();
    if before == wanted {
        return Ok(());
    }
    // As often as kube-proxy.
    let Err(error) = root.write(FILE, wanted).or_else(|_| root.write(FILE, wanted)) else { return Ok(()) };
    Err(format!("cannot write /{FILE}: {}; it stays {before} (to lower it takes CAP_SYS_RESOURCE)", IoCause(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysctl::fake::FakeRoot;

    #[test]
    fn it_is_written_where_it_differs() {
        let root = FakeRoot::new("oom", &[(FILE, "0\n")]);
        set(&root.root(), "-999").unwrap();
        assert_eq!(root.text(FILE), "-999");
        root.put(FILE, "-999\n");
        set(&root.root(), "-999").unwrap();
        assert_eq!(root.text(FILE), "-999\n", "not written again");
    }

    #[test]
    fn what_stays_is_told() {
        let root = FakeRoot::new("oom-fails", &[("proc/self/oom_score_adj/file", "")]);
        let why = set(&root.root(), "-999").unwrap_err();
        assert!(why.starts_with("cannot write /proc/self/oom_score_adj: EISDIR (Is a directory); it stays "), "{why}");
    }
}
