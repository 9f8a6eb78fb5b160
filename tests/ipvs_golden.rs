//! What ipvs mode leaves in the kernel, against what the real kube-proxy left behind for the same objects and flags: in
//! the virtual machine, whose kernel has IPVS. One test boots it and judges what the tests inside leave; those are here
//! too, each in network namespaces of its own. The dumps are never edited (tests/golden/README.md).

mod support;

#[path = "ipvs_golden/changes.rs"]
mod changes;
#[path = "ipvs_golden/ground.rs"]
mod ground;
#[path = "ipvs_golden/init_only.rs"]
mod init_only;
#[path = "ipvs_golden/sequence.rs"]
mod sequence;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::Scratch;
use support::golden::{FAMILIES, GOLDEN, after_ipvs, differences, flags_of, folders, for_each, name};
use support::ipvs::{self, DUMPS, Origin};
use support::machine::{Machine, leave};
use support::netns::Namespace;
use support::proxy::BINARY as SLUICE;

/// What the machine runs: first what is as it should be, then modules are taken away. They are in use for as long as a
/// namespace is that used them, and the kernel takes its time to end one.
const IN_MACHINE: &str = r#"
take_away() {
    for try in $(seq 300); do
        if /run/vmrun/busybox rmmod "$1" 2>/dev/null; then return; fi
        sleep 0.1
    done
    /run/vmrun/busybox rmmod "$1"
}
uname -r
outcome=0
"$0" --ignored --skip without_ || outcome=1
echo /bin/false >/proc/sys/kernel/modprobe
take_away ip_vs_sed
"$0" --ignored without_a_scheduler || outcome=1
for module in xt_ipvs ip_vs_rr ip_vs_wrr ip_vs_lc ip_vs_wlc ip_vs_sh ip_vs_mh ip_vs_nq ip_vs_dh ip_vs; do
    take_away $module
done
"$0" --ignored without_ipvs || outcome=1
exit $outcome
"#;

#[test]
fn what_is_programmed_is_kube_proxys() {
    let scratch = Scratch::new("ipvs-golden");
    let Some(machine) = Machine::run(&scratch, IN_MACHINE) else { return };
    let mut failures = machine.failures.clone();
    let scenarios = ipvs::scenarios();
    assert_eq!(scenarios.len(), 59, "scenarios of ipvs mode");
    for scenario in &scenarios {
        let folder = format!("programmed/{}", name(scenario));
        failures.extend(DUMPS.into_iter().filter_map(|dump| undeliberate(&machine, &scratch, &folder, scenario, dump)));
    }
    let sequence = Path::new(GOLDEN).join(sequence::SEQUENCE);
    for step in folders(&sequence, |_| true) {
        let rules = DUMPS.into_iter().filter(|dump| dump.contains("iptables"));
        let folder = format!("sequence/{}", name(&step));
        failures.extend(rules.filter_map(|dump| undeliberate(&machine, &scratch, &folder, &step, dump)));
    }
    for scenario in changes::SCENARIOS {
        let golden = Path::new(GOLDEN).join(scenario);
        failures.extend(FAMILIES.into_iter().filter_map(|(_, _, dump)| came_from_ipvs(&machine, &scratch, &golden, dump)));
        let folder = format!("changed/{scenario}/ipvs");
        failures.extend(DUMPS.into_iter().filter_map(|dump| undeliberate(&machine, &scratch, &folder, &golden, dump)));
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// What differs between what was left in a folder and the dump, if anything does that is not deliberate.
fn undeliberate(machine: &Machine, scratch: &Scratch, folder: &str, golden: &Path, dump: &str) -> Option<String> {
    let found = match machine.left(&format!("{folder}/{dump}")) {
        Some(text) => ipvs::undeliberate(scratch, golden, dump, &text, Origin::Programmed),
        None => "the machine left none\n".into(),
    };
    (!found.is_empty()).then(|| format!("{folder}/{dump}:\n{found}"))
}

/// What differs from the golden rules of iptables mode on a node that came from ipvs mode.
fn came_from_ipvs(machine: &Machine, scratch: &Scratch, golden: &Path, dump: &str) -> Option<String> {
    let want = scratch.file("after-ipvs");
    fs::write(&want, after_ipvs(&fs::read_to_string(golden.join(dump)).expect("a dump"))).expect("a file");
    let file = format!("changed/{}/iptables/{dump}", name(golden));
    let found = differences(scratch, &want, &machine.left(&file).unwrap_or_default());
    (!found.is_empty()).then(|| format!("{file}:\n{found}"))
}

/// The proxy in a namespace, in ipvs mode with the flags of a scenario.
fn ipvs_mode(node: &Namespace, scenario: &Path) -> Command {
    in_mode("--mode=ipvs", node, scenario)
}

fn in_mode(mode: &str, node: &Namespace, scenario: &Path) -> Command {
    let mut command = node.command(SLUICE);
    command.args(flags_of(mode, scenario)).arg("--once").arg("--manifests").arg(scenario.join("objects.yaml"));
    command
}

/// Runs a command that must succeed; what is wrong otherwise.
fn succeed(command: &mut Command) -> Result<String, String> {
    let ran = command.output().expect("sluice");
    let said = String::from_utf8_lossy(&ran.stderr);
    if ran.status.success() { Ok(String::from_utf8_lossy(&ran.stdout).into_owned()) } else { Err(format!("{command:?}: {said}")) }
}

/// What is there is right, so a second run must not send a single operation.
fn succeed_without_operations(command: &mut Command) -> Result<(), String> {
    let summary = succeed(command)?;
    match summary.matches(" 0 operations in 0 transactions").count() {
        2 => Ok(()),
        _ => Err(format!("{command:?} was to find nothing to do: {summary}")),
    }
}

fn leave_dumps(folder: &str, node: &Namespace) {
    for (dump, text) in ipvs::dumps(node) {
        leave(&format!("{folder}/{dump}"), &text);
    }
}

#[test]
#[ignore = "run in the virtual machine of what_is_programmed_is_kube_proxys"]
fn every_scenario_is_programmed() {
    let program = |scenario: &Path| {
        let node = Namespace::golden(&format!("ipvs-{}", name(scenario)));
        put_there_before(&node, scenario);
        succeed(&mut ipvs_mode(&node, scenario))?;
        leave_dumps(&format!("programmed/{}", name(scenario)), &node);
        succeed_without_operations(&mut ipvs_mode(&node, scenario))
    };
    for_each(&ipvs::scenarios(), |scenario| program(scenario).err().into_iter().collect());
}

/// Virtual servers and addresses that the proxy is to find.
fn put_there_before(node: &Namespace, scenario: &Path) {
    if let Ok(servers) = fs::read_to_string(scenario.join("ipvs-before.txt")) {
        node.feed(&["ipvsadm", "-R"], &servers);
    }
    if let Ok(addresses) = fs::read_to_string(scenario.join("ipvs-before-addresses.txt")) {
        let add = |address: &str| format!("address add {address} dev kube-ipvs0\n");
        node.links(&(String::from("link add kube-ipvs0 type dummy\n") + &addresses.lines().map(add).collect::<String>()));
    }
}

/// The sysctls of a dump with their values, as the dump has those it says nothing else of.
fn settings(node: &Namespace, names: &[&str]) -> Vec<String> {
    let files: Vec<_> = names.iter().map(|name| format!("/proc/sys/{name}")).collect();
    let words: Vec<_> = ["cat"].into_iter().chain(files.iter().map(String::as_str)).collect();
    node.output(&words).lines().map(ToOwned::to_owned).collect()
}

#[test]
#[ignore = "run in the virtual machine of what_is_programmed_is_kube_proxys"]
fn settings_of_the_kernel_are_kube_proxys() {
    let golden = Path::new(GOLDEN);
    for (scenario, dump) in [
        ("basic-clusterip", golden.join("ipvs-sysctls.txt")),
        ("ipvs-strict-arp", golden.join("ipvs-strict-arp/ipvs-sysctls.txt")),
    ] {
        let dump = fs::read_to_string(dump).expect("a dump");
        let names: Vec<_> = dump.lines().filter_map(|line| line.split(' ').next()).collect();
        let node = Namespace::golden(&format!("sysctls-{scenario}"));
        let scenario = golden.join(scenario);
        let before = settings(&node, &names);
        succeed(&mut ipvs_mode(&node, &scenario)).expect("to be programmed");
        let after = settings(&node, &names);
        let of_name = |(i, name): (usize, &&str)| {
            let change = if before[i] == after[i] { String::new() } else { format!(" -> {}", after[i]) };
            format!("{name:<42} {}{change}\n", before[i])
        };
        assert_eq!(names.iter().enumerate().map(of_name).collect::<String>(), dump, "{}", scenario.display());
        succeed_without_operations(&mut ipvs_mode(&node, &scenario)).expect("nothing to do");
        assert_eq!(settings(&node, &names), after, "a second run changes nothing");
    }
}

#[test]
#[ignore = "run in the virtual machine of what_is_programmed_is_kube_proxys"]
fn timeouts_are_kube_proxys() {
    let scenario = Path::new(GOLDEN).join("ipvs-timeouts");
    let node = Namespace::golden("ipvs-timeouts-flags");
    let timeouts = || node.output(&["ipvsadm", "-L", "--timeout"]);
    let before = timeouts();
    succeed(&mut ipvs_mode(&node, &scenario)).expect("to be programmed");
    let changed = format!("before: {before}after:  {}", timeouts());
    assert_eq!(changed, fs::read_to_string(scenario.join("ipvs-timeouts.txt")).expect("a dump"));
    // A run that is told nothing of them leaves them as they are.
    succeed(&mut ipvs_mode(&node, &Path::new(GOLDEN).join("basic-clusterip"))).expect("to be programmed");
    assert_eq!(format!("before: {before}after:  {}", timeouts()), changed);
}
