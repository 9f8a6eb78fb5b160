//! Files as the binary reads them: what is warned of, what is refused and how, what counts beside a file, and what is
//! written.

use std::fs;
use std::path::Path;

use super::support::Scratch;
use super::support::random::Random;
use super::{HEAD, Outcome, at, refused, sluice};

/// A file of this text.
fn written(scratch: &Scratch, text: &str) -> String {
    let path = scratch.file("config.conf");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// What `--write-config-to` writes with these arguments, and what was said on the way.
pub fn effective(scratch: &Scratch, arguments: &[&str]) -> (serde_json::Value, String) {
    let path = scratch.file("effective.yaml");
    let outcome = sluice(&[arguments, &["--write-config-to", path.to_str().unwrap()]].concat());
    assert!(outcome.code == Some(0) && outcome.out.is_empty(), "{arguments:?}: {outcome:?}");
    let text = fs::read_to_string(&path).unwrap();
    fs::remove_file(&path).unwrap();
    (serde_norway::from_str(&text).unwrap(), outcome.err)
}

#[test]
fn what_is_written_is_read_back_as_the_same() {
    let scratch = Scratch::new("config-round-trip");
    let lines: [&[&str]; 5] = [
        &[],
        &["--mode=ipvs", "--ipvs-sync-period=1m", "--ipvs-scheduler=mh", "--ipvs-exclude-cidrs=192.0.2.0/24,fd00::/64"],
        &["--healthz-bind-address=", "--metrics-port=0", "--kube-api-qps=5.1", "--hostname-override= Node-A"],
        &["--bind-address=::", "--healthz-bind-address=::1", "--nodeport-addresses=primary", "--v=300", "--vmodule=a*=4,b=2"],
        &["--feature-gates=AllowServiceExternalIPs=false,Other=true", "--conntrack-tcp-timeout-established=1h1.5s"],
    ];
    for line in lines {
        let first = scratch.file("first.yaml");
        let outcome = sluice(&[line, &["--write-config-to", first.to_str().unwrap()]].concat());
        assert_eq!(outcome.code, Some(0), "{line:?}: {outcome:?}");
        let second = scratch.file("second.yaml");
        let outcome = sluice(&["--config", first.to_str().unwrap(), "--write-config-to", second.to_str().unwrap()]);
        assert_eq!(outcome.code, Some(0), "{line:?}: {outcome:?}");
        let [first, second] = [first, second].map(|path| fs::read_to_string(path).unwrap());
        assert_eq!(first, second, "{line:?}");
    }
}

#[test]
fn fields_that_are_not_known_or_there_twice_are_named_in_one_warning() {
    let scratch = Scratch::new("config-lenient");
    let text = format!(
        "{HEAD}mode: iptables\nmode: ipvs\nudpIdleTimeout: 250ms\nconntrack: {{max: null, min: 7}}\nipvs:\n  masqueradeAll: true\n"
    );
    let path = written(&scratch, &text);
    let (effective, err) = effective(&scratch, &["--config", &path]);
    assert_eq!((at(&effective, "mode"), at(&effective, "conntrack.min")), ("ipvs".into(), 7.into()));
    let lines: Vec<_> = err.lines().collect();
    let [line] = lines[..] else { panic!("not one line: {err}") };
    assert!(line.contains("WARN") && line.contains("Using lenient decoding as strict decoding failed"), "{line}");
    let named = ["\"udpIdleTimeout\"", "\"conntrack.max\"", "\"ipvs.masqueradeAll\"", "\"mode\" is there more than once", &path];
    for named in named {
        assert!(line.contains(named), "{named}: {line}");
    }
}

#[test]
fn only_the_first_document_counts() {
    let scratch = Scratch::new("config-documents");
    let path = written(&scratch, &format!("---\n{HEAD}mode: ipvs\n---\nmode: iptables\n"));
    let (effective, err) = effective(&scratch, &["--config", &path]);
    assert_eq!(at(&effective, "mode"), "ipvs");
    assert!(err.contains("only the first document of the file is read"), "{err}");
}

#[test]
fn a_file_that_cannot_be_used_is_refused_before_anything_is_touched() {
    let scratch = Scratch::new("config-refused");
    let table = [
        ("", "kind: \"\" is not KubeProxyConfiguration; apiVersion: \"\" is not kubeproxy.config.k8s.io/v1alpha1"),
        ("kind: Pod\napiVersion: v1\n", "kind: \"Pod\" is not KubeProxyConfiguration; apiVersion: \"v1\" is not"),
        ("mode: [\n", "cannot be read as YAML: "),
        ("just words\n", "\"just words\" is not a mapping"),
        (&format!("{HEAD}iptables: []\n"), "iptables: a list is not a mapping"),
        (
            &format!("{HEAD}iptables: {{masqueradeBit: x}}\nmode: 7\n"),
            "iptables.masqueradeBit: \"x\" is not a whole number; mode: 7 is not text",
        ),
        (&format!("{HEAD}iptables: {{masqueradeBit: 32}}\n"), "iptables.masqueradeBit: 32 is not within the range [0, 31]"),
        (
            &format!("{HEAD}nodePortAddresses: [primary, 10.0.0.0/8]\n"),
            "nodePortAddresses[0]: can't use both 'primary' and CIDRs",
        ),
        (&format!("{HEAD}mode: nftables\n"), "mode: nftables is not built into this version yet; use iptables or ipvs"),
        (&format!("{HEAD}bindAddress: x\noomScoreAdj: 7000\nclusterCIDR: y\n"), "bindAddress: \"x\" is not an IP address"),
    ];
    for (text, wanted) in table {
        let path = written(&scratch, text);
        let target = scratch.file("untouched");
        let line = refused(&["--config", &path, "--write-config-to", target.to_str().unwrap()], 1);
        assert!(!target.exists(), "{text}");
        let told = line.strip_prefix(&format!("{path}: ")).unwrap_or_else(|| panic!("no name of the file: {line}"));
        assert!(told.contains(wanted), "{text}: {told}\nwanted: {wanted}");
    }
    // All at once.
    let path = written(&scratch, &format!("{HEAD}bindAddress: x\noomScoreAdj: 7000\nclusterCIDR: y\n"));
    let line = refused(&["--config", &path, "--node-ip=z", "--hostname-override= "], 1);
    for named in ["bindAddress: ", "oomScoreAdj: ", "clusterCIDR: ", "; --node-ip: ", "; --hostname-override: "] {
        assert!(line.contains(named), "{named}: {line}");
    }
    assert_eq!(line.matches(&path).count(), 1, "{line}");
}

/// What may change the sense of a file.
const LETTERS: &[u8] = b"{}[]:-.0189eE\"'&*<|>#\n sxKi\xff";

fn pick(random: &mut Random, end: usize) -> usize {
    usize::try_from(random.below(end.try_into().unwrap())).unwrap()
}

/// Whatever a file holds, it is read or refused.
#[test]
fn no_text_ends_in_a_panic() {
    let whole = super::capture("config/kubeadm.yaml");
    for end in whole.char_indices().map(|(index, _)| index) {
        drop(super::KubeProxyConfiguration::decode(&whole[..end]));
    }
    let mut random = Random::new(1);
    for _ in 0..2000 {
        let mut bytes = whole.clone().into_bytes();
        for _ in 0..=random.below(3) {
            let place = pick(&mut random, bytes.len());
            bytes[place] = LETTERS[pick(&mut random, LETTERS.len())];
        }
        if let Ok(decoded) = super::KubeProxyConfiguration::decode(&String::from_utf8_lossy(&bytes)) {
            let raw = super::Raw { configuration: decoded.configuration, ..super::Raw::of_defaults("host") };
            drop(super::Config::resolve(raw));
        }
    }
}

/// Whoever asked for JSON lines gets the last one as that too.
#[test]
fn what_is_wrong_is_told_as_json_if_that_is_asked_for() {
    let outcome = sluice(&["--config=/nowhere/config.conf", "--logging-format=json"]);
    let line: serde_json::Value = serde_json::from_str(&outcome.err).unwrap();
    assert_eq!((outcome.code, line["level"].as_str()), (Some(1), Some("ERROR")), "{outcome:?}");
    assert!(line["message"].as_str().unwrap().starts_with("--config: /nowhere/config.conf cannot be read: "), "{outcome:?}");
}

#[test]
fn files_that_cannot_be_read_or_written_are_named() {
    let line = refused(&["--config=/nowhere/config.conf"], 1);
    assert_eq!(line, "--config: /nowhere/config.conf cannot be read: ENOENT (No such file or directory)");
    let line = refused(&["--write-config-to=/nowhere/config.conf"], 1);
    assert_eq!(line, "--write-config-to: /nowhere/config.conf cannot be written: ENOENT (No such file or directory)");
    let line = refused(&["--config=/"], 1);
    assert!(line.starts_with("--config: / cannot be read: "), "{line}");
}

#[test]
fn beside_a_file_few_flags_count_and_the_others_are_named() {
    let scratch = Scratch::new("config-beside");
    let file = format!(
        "{HEAD}hostnameOverride: of-the-file\nmode: ipvs\nlogging: {{verbosity: 2, vmodule: [{{filePattern: a, verbosity: 1}}]}}\n"
    );
    let path = written(&scratch, &file);
    let flags = [
        "--hostname-override=Of-The-Flag",
        "--vmodule=b=4",
        "--master=https://192.0.2.1",
        "--boot-id-file=/x",
        "--proxy-mode=iptables",
        "--cluster-cidr=not-even-a-range",
        "--ipvs-scheduler=fifo",
        "--feature-gates=A=true",
        "--audit-period=1h",
    ];
    let (effective, err) = effective(&scratch, &[&["--config", path.as_str()][..], &flags].concat());
    assert_eq!((at(&effective, "mode"), at(&effective, "hostnameOverride")), ("ipvs".into(), "of-the-flag".into()));
    assert_eq!((at(&effective, "logging.verbosity"), at(&effective, "featureGates")), (2.into(), serde_json::Value::Null));
    let modules = at(&effective, "logging.vmodule");
    let modules: Vec<_> = modules.as_array().unwrap().iter().map(|module| module["filePattern"].as_str().unwrap()).collect();
    assert_eq!(modules, ["b", "a"], "the flag's first");
    let ignored: Vec<_> = err.lines().filter(|line| line.contains("without effect beside --config")).collect();
    let [ignored] = ignored[..] else { panic!("not one warning: {err}") };
    let told: Vec<_> = ignored.split("--config: ").nth(1).unwrap().split(' ').collect();
    assert_eq!(told, ["--proxy-mode", "--cluster-cidr", "--feature-gates", "--ipvs-scheduler"]);
    assert!(err.contains("in this version: --boot-id-file\n"), "{err}");

    // An empty name is none, and the level of the flag wins.
    let (effective, _) = super::files::effective(&scratch, &["--config", &path, "--hostname-override=", "-v=0"]);
    assert_eq!((at(&effective, "hostnameOverride"), at(&effective, "logging.verbosity")), ("of-the-file".into(), 0.into()));
}

#[test]
fn what_is_not_to_be_removed_is_read_from_a_file_too() {
    let scratch = Scratch::new("config-cleanup");
    let path = written(&scratch, &format!("{HEAD}ipvs: {{excludeCIDRs: [x]}}\n"));
    let line = refused(&["--cleanup", "--config", &path], 1);
    assert_eq!(line, format!("{path}: ipvs.excludeCIDRs: \"x\" is not a CIDR such as 192.0.2.0/24 or fd00::/64"));
}

#[test]
fn render_takes_a_file_too() {
    let scratch = Scratch::new("config-render");
    let path = written(&scratch, &format!("{HEAD}iptables: {{masqueradeBit: 7}}\n"));
    let manifest = scratch.file("objects.yaml");
    fs::write(
        &manifest,
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}\n",
    )
    .unwrap();
    let Outcome { code, out, err } = sluice(&["render", "--config", &path, "--manifests", manifest.to_str().unwrap()]);
    assert!(code == Some(0) && err.is_empty() && out.contains("0x80/0x80"), "{err}{out}");
    assert!(Path::new(&path).exists());
}
