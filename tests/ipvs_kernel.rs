//! IPVS, the device `kube-ipvs0` and local routes in a real kernel: Linux 6.1 in a virtual machine, as few kernels that
//! tests run on have IPVS. Each test is in a network namespace of its own; what others see is asked of ipvsadm and ip. The
//! fake balancer is held to this kernel, and the sync of ipvs mode tried with it.

#![allow(clippy::unwrap_used, reason = "where a test cannot go on it has failed")]

#[path = "ipvs_kernel/addresses.rs"]
mod addresses;
#[path = "ipvs_kernel/ground.rs"]
mod ground;
#[path = "ipvs_kernel/history.rs"]
mod history;
#[path = "ipvs_kernel/neighbours.rs"]
mod neighbours;
mod netns;
#[path = "ipvs_kernel/parity.rs"]
mod parity;
#[path = "ipvs_kernel/servers.rs"]
mod servers;
mod world;

use std::path::Path;
use std::process::Command;

use sluice::netlink::{Errno, Sent};

/// Runs a shell command line, which must succeed, and returns what it prints.
fn shell(line: &str) -> String {
    let output = Command::new("bash").args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What was refused, and why.
fn refusals(sent: &Sent) -> Vec<(usize, Errno)> {
    sent.refused.iter().map(|refusal| (refusal.op, refusal.errno)).collect()
}

/// What the guest runs: these tests, and those about ground that is not as it should be once it is so.
const IN_GUEST: &str = r#"
uname -r
# The table of virtual servers is one for all namespaces: tests that list them keep out of each other's way.
for part in servers parity history; do "$0" --ignored --test-threads 1 "$part::"; done
for part in addresses neighbours; do "$0" --ignored --test-threads 2 "$part::"; done
setpriv --bounding-set=-net_admin --inh-caps=-net_admin "$0" --ignored ground::without_privilege
echo /bin/false >/proc/sys/kernel/modprobe
/run/vmrun/busybox rmmod ip_vs_nq
"$0" --ignored ground::without_scheduler
for module in $(grep -o '^\(xt_ipvs\|ip_vs_[a-z]*\)' /proc/modules) ip_vs; do /run/vmrun/busybox rmmod $module; done
"$0" --ignored ground::without_ipvs
"#;

#[test]
fn on_linux_6_1() {
    let machine = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/vmrun");
    let tests = std::env::current_exe().unwrap();
    // It takes three minutes and more where other tests run beside it.
    let run = Command::new(machine).args(["--timeout", "600", "--", "bash", "-ec", IN_GUEST]).arg(tests).output().unwrap();
    let (out, log) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    if run.status.code() == Some(125) && std::env::var_os("CI").is_none() {
        eprintln!("not run, there is no virtual machine here (e2e/vmrun --setup makes one ready): {log}");
        return;
    }
    assert!(run.status.success(), "{}\n{out}\n{log}", run.status);
    assert!(out.starts_with("6.1."), "another kernel: {out}");
    let results: Vec<_> = out.lines().filter_map(|line| line.strip_prefix("test result: ok. ")?.split(' ').next()).collect();
    assert_eq!(results, ["10", "3", "1", "8", "3", "1", "1", "1"], "{out}");
}
