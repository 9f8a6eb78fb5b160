//! The rules against what the real kube-proxy left behind for the same objects and flags: rendered as text without
//! privilege, programmed into a namespace and printed by iptables, and step by step with one running process. And what
//! ipvs mode has beside rules, rendered.
//!
//! `e2e/same-rules` is the judge. The dumps are never edited (tests/golden/README.md).

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::golden::{
    FAMILIES, GOLDEN, NODE_IPS, Objects, differences, dumps_differ, flags, flags_of, folders, for_each, name, scenarios, steps,
};
use support::ipvs::{self, DUMPS, Origin};
use support::netns::{Namespace, Process};
use support::proxy::BINARY as SLUICE;
use support::{PATIENCE, Scratch, require_root, wait_until};

#[test]
fn rendered_rules_are_kube_proxys() {
    let scratch = Scratch::new("golden-render");
    for_each(&scenarios(), |scenario| {
        let judge = |(family, _, dump): (&str, &str, &str)| {
            let mut command = Command::new(SLUICE);
            command.arg("render").args(flags(scenario)).args([NODE_IPS, "--family", family]);
            let rendered = command.arg("--manifests").arg(scenario.join("objects.yaml")).output().expect("sluice");
            let text = String::from_utf8(rendered.stdout).expect("text");
            let found = differences(&scratch, &scenario.join(dump), &text);
            let said = String::from_utf8_lossy(&rendered.stderr);
            (!rendered.status.success() || !found.is_empty()).then(|| format!("{} {family}:\n{found}{said}", name(scenario)))
        };
        FAMILIES.into_iter().filter_map(judge).collect()
    });
}

#[test]
fn what_is_rendered_for_ipvs_is_kube_proxys() {
    let scratch = Scratch::new("golden-render-ipvs");
    let scenarios = ipvs::scenarios();
    assert_eq!(scenarios.len(), 59, "scenarios of ipvs mode");
    for_each(&scenarios, |scenario| {
        let mut command = Command::new(SLUICE);
        command.arg("render").args(flags_of("--mode=ipvs", scenario)).arg(NODE_IPS);
        let rendered = command.arg("--manifests").arg(scenario.join("objects.yaml")).output().expect("sluice");
        let said = String::from_utf8_lossy(&rendered.stderr);
        assert!(rendered.status.success(), "{}: {said}", name(scenario));
        let text = String::from_utf8(rendered.stdout).expect("text");
        let sections = ipvs::sections(&text);
        let headers: Vec<_> = text.lines().filter(|line| line.starts_with('#')).collect();
        assert!(headers.iter().zip(DUMPS).all(|(line, dump)| line.contains(dump)) && headers.len() == 5, "{headers:?}");
        let judge = |dump: &str| {
            let found = ipvs::undeliberate(&scratch, scenario, dump, &sections[dump], Origin::Rendered);
            (!found.is_empty()).then(|| format!("{} {dump}:\n{found}", name(scenario)))
        };
        DUMPS.into_iter().filter_map(judge).collect()
    });
}

#[test]
fn programmed_rules_are_kube_proxys() {
    if !require_root("programmed_rules_are_kube_proxys") {
        return;
    }
    let scratch = Scratch::new("golden-program");
    for_each(&scenarios(), |scenario| {
        let node = Namespace::golden(&format!("golden-{}", name(scenario)));
        let mut command = node.command(SLUICE);
        command.args(flags(scenario)).arg("--once").arg("--manifests").arg(scenario.join("objects.yaml"));
        let ran = command.output().expect("sluice");
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{}: {said}", name(scenario));
        // What is there is right, so a second run must not send a single operation.
        let again = command.output().expect("sluice");
        let summary = String::from_utf8_lossy(&again.stdout);
        let mut failures = Vec::new();
        if summary.matches(" 0 operations in 0 transactions").count() != 2 {
            failures.push(format!("{}: a second run was to find nothing to do: {summary}", name(scenario)));
        }
        failures.extend(dumps_differ(&node, &scratch, scenario).map(|found| format!("{}:\n{found}", name(scenario))));
        failures
    });
}

/// Flags that no scenario has: prefixes that end within a byte, the longest names, the outermost marks.
const ODD_FLAGS: [&str; 7] = [
    "--cluster-cidr=10.128.0.0/14,fd00:10:244::/50",
    "--cluster-cidr=128.0.0.0/1,8000::/1 --iptables-masquerade-bit=31",
    "--cluster-cidr=10.0.0.1/31,fd00::1/127 --iptables-masquerade-bit=0",
    "--detect-local-mode=BridgeInterface --pod-bridge-interface=fifteen-chars-x",
    "--detect-local-mode=InterfaceNamePrefix --pod-interface-name-prefix=fifteen-chars-",
    "--detect-local-mode=InterfaceNamePrefix --pod-interface-name-prefix=v",
    "--nodeport-addresses=127.0.0.0/9,172.31.0.0/25 --masquerade-all",
];

/// Whatever is asked for, the kernel takes it, iptables prints it as it was rendered, and it is known again.
#[test]
fn rules_of_odd_flags_are_programmed_as_rendered() {
    if !require_root("rules_of_odd_flags_are_programmed_as_rendered") {
        return;
    }
    let scratch = Scratch::new("golden-odd");
    let objects = Path::new(GOLDEN).join("loadbalancer-source-ranges-special/objects.yaml");
    for (i, odd) in ODD_FLAGS.into_iter().enumerate() {
        let node = Namespace::golden(&format!("odd-{i}"));
        let with_flags = |command: &mut Command| {
            let odd: Vec<_> = odd.split(' ').collect();
            let output = command.arg("--hostname-override=node-a").args(odd).arg("--manifests").arg(&objects).output();
            String::from_utf8(output.expect("sluice").stdout).expect("text")
        };
        let first = with_flags(node.command(SLUICE).arg("--once"));
        assert!(first.starts_with("programmed"), "{odd}: {first}");
        let again = with_flags(node.command(SLUICE).arg("--once"));
        assert_eq!(again.matches(" 0 operations in 0 transactions").count(), 2, "{odd}: {again}");
        for (family, tool, dump) in FAMILIES {
            let rendered = with_flags(Command::new(SLUICE).args(["render", NODE_IPS, "--family", family]));
            let want = scratch.file(&format!("{i}-{dump}"));
            fs::write(&want, rendered).expect("a file");
            assert_eq!(differences(&scratch, &want, &node.output(&[tool])), "", "{odd} {family}");
        }
    }
}

#[test]
fn each_step_of_a_sequence_is_kube_proxys() {
    if !require_root("each_step_of_a_sequence_is_kube_proxys") {
        return;
    }
    let scratch = Scratch::new("golden-sequences");
    for_each(&folders(&Path::new(GOLDEN).join("sequences"), |_| true), |sequence| {
        let node = Namespace::golden(&format!("golden-{}", name(sequence)));
        let mut objects = Objects::new(scratch.file(&format!("{}.json", name(sequence))));
        let mut process: Option<Process> = None;
        for (step, file) in steps(sequence) {
            objects.take(&file);
            process.get_or_insert_with(|| {
                let mut command = node.command(SLUICE);
                command.args(flags(sequence)).arg("--manifests").arg(objects.manifest());
                Process::start(command.stderr(std::process::Stdio::null()))
            });
            let mut found = None;
            let what = format!("{} {step} is as in the dump", name(sequence));
            let reached = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                wait_until(&what, PATIENCE, || {
                    found = dumps_differ(&node, &scratch, &sequence.join(&step));
                    found.is_none()
                });
            }));
            if reached.is_err() {
                return vec![format!("{what}:\n{}", found.unwrap_or_default())];
            }
        }
        Vec::new()
    });
}
