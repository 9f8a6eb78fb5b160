//! What `sluice` does without: other programs, all capabilities but one, a writable /proc/sys.

mod support;

use std::fs;
use std::process::Command;

use support::lab::{A1, A2, B1};
use support::netns::{Namespace, set_sysctl};
use support::objects::{Service, write_manifest};
use support::proxy::{BINARY, Sluice, arguments, saved_rules};
use support::{Scratch, require_root};

const ROUTE_LOCALNET: &str = "ipv4/conf/all/route_localnet";

#[test]
fn no_other_program_is_executed() {
    if !require_root("confined: no other program") {
        return;
    }
    let node = Namespace::golden("no-exec");
    let scratch = Scratch::new("no-exec");
    let trace = scratch.file("trace");
    // -D: the tracer is the child, and signals reach the proxy.
    let strace = ["-D", "-f", "-qq", "-e", "trace=execve,execveat", "-e", "signal=none", "-o"];
    let mut command = node.command("strace");
    command.args(strace).arg(&trace).arg(BINARY);
    whole_life(&node, &scratch, command, |_| ());
    let trace = fs::read_to_string(&trace).expect("a trace");
    let executed: Vec<_> = trace.lines().filter(|line| line.contains("exec")).collect();
    let itself = executed.first().is_some_and(|line| line.contains(BINARY));
    assert!(itself && executed.len() == 1, "executed {} times, first {:#?}", executed.len(), executed.get(..3));
}

/// Without these `setpriv` gives root all there are, and another user none.
const ONE_CAPABILITY: [&str; 2] = ["--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin"];
const NOBODY: [&str; 4] = ["--reuid=65534", "--regid=65534", "--clear-groups", "--ambient-caps=-all,+net_admin"];

#[test]
fn one_capability_is_enough_for_root() {
    if require_root("confined: root with CAP_NET_ADMIN") {
        with_one_capability("one-cap-root", &ONE_CAPABILITY);
    }
}

#[test]
fn one_capability_is_enough_for_another_user() {
    if require_root("confined: another user with CAP_NET_ADMIN") {
        with_one_capability("one-cap-user", &[&NOBODY[..], &ONE_CAPABILITY].concat());
    }
}

/// The sysctls are set beforehand, as by an init container.
fn with_one_capability(test: &str, confinement: &[&str]) {
    let node = Namespace::golden(test);
    let scratch = Scratch::new(test);
    node.run(|| set_sysctl(ROUTE_LOCALNET, "1"));
    // Where the binary was built, another user may not look.
    let binary = scratch.file("sluice");
    fs::copy(BINARY, &binary).expect("to copy the binary");
    let mut command = node.command("setpriv");
    command.args(confinement).arg(&binary);
    let log = whole_life(&node, &scratch, command, |sluice| {
        let status = fs::read_to_string(format!("/proc/{}/status", sluice.process().pid())).expect("a process");
        assert!(status.contains("CapEff:\t0000000000001000"), "{status}");
    });
    assert!(complaint(&log).is_none(), "{log}");
}

#[test]
fn a_sysctl_that_cannot_be_written_is_named() {
    if !require_root("confined: read-only /proc/sys") {
        return;
    }
    let node = Namespace::golden("read-only");
    let scratch = Scratch::new("read-only");
    node.run(|| set_sysctl(ROUTE_LOCALNET, "0"));
    let mut command = node.command("unshare");
    command.args(["--mount", "sh", "-c", "mount -o bind,ro /proc/sys /proc/sys && exec \"$@\"", "sh", BINARY]);
    let log = whole_life(&node, &scratch, command, |_| ());
    assert!(complaint(&log).is_some_and(|line| line.contains("127.0.0.")), "which sysctl, and what goes without it:\n{log}");
}

/// The warning about the sysctl, if there is one.
fn complaint(log: &str) -> Option<&str> {
    let name = ROUTE_LOCALNET.replace('/', ".");
    log.lines().find(|line| line.contains("WARN") && line.contains(&name))
}

/// Starts the proxy by way of `command`, which takes the proxy's arguments, checks what it programs and that it
/// follows a change, and ends it. Returns its log.
fn whole_life(node: &Namespace, scratch: &Scratch, mut command: Command, check: impl Fn(&Sluice)) -> String {
    let manifest = scratch.file("objects.json");
    write_manifest(&manifest, &[Service::new("web", 1, &[A1, B1])]);
    command.args(arguments(&manifest));
    let mut sluice = Sluice::spawn(node, scratch, command);
    sluice.wait_in_force();
    check(&sluice);
    let rules = saved_rules(node);
    for endpoint in ["10.244.11.33:8080", "[fd00:10:244:b::21]:8080", "[fd00:10:244:c::21]:5353"] {
        assert!(rules.contains(endpoint), "{endpoint} is missing:\n{rules}");
    }
    sluice.change(&[Service::new("web", 1, &[A2])], |rules| {
        !rules.contains("10.244.12.33:") && !rules.contains("fd00:10:244:c::21")
    });
    sluice.stop()
}
