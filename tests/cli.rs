//! The command line as a contract: what is accepted, what is refused and in which words, and how a run ends.
//!
//! Needs no privilege: `render` takes the flags of the proxy and touches nothing.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

const BINARY: &str = env!("CARGO_BIN_EXE_sluice");

/// One Service without endpoints, of both families.
const MANIFEST: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  clusterIPs: [10.96.0.10, 'fd00:10:96::a']\n  clusterIP: 10.96.0.10\n  ipFamilies: [IPv4, IPv6]\n  type: NodePort\n  ports:\n  - {port: 80, nodePort: 30080}\n";

/// A file of one test, gone with it.
struct Manifest(PathBuf);

impl Manifest {
    fn new(text: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("sluice-cli-{}-{}.yaml", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Manifest {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    code: Option<i32>,
    out: String,
    err: String,
}

fn sluice<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Outcome {
    let output = Command::new(BINARY).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Outcome { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// `sluice render` with these flags on [`MANIFEST`].
fn render(flags: &[&str]) -> Outcome {
    let manifest = Manifest::new(MANIFEST);
    let path = format!("--manifests={}", manifest.path().display());
    sluice(["render", &path].into_iter().chain(flags.iter().copied()))
}

/// What is printed with these flags, which must all be fine.
fn rendered(flags: &[&str]) -> String {
    let outcome = render(flags);
    assert!(outcome.code == Some(0) && outcome.err.is_empty(), "{flags:?}: {outcome:?}");
    outcome.out
}

/// The line with which these flags are refused.
fn refused(flags: &[&str]) -> String {
    let Outcome { code, out, err } = render(flags);
    assert_eq!((code, out.as_str()), (Some(2), ""), "{flags:?}: {err}");
    one_line(&err)
}

/// `error: ...`, one line and nothing else.
fn one_line(err: &str) -> String {
    let lines: Vec<_> = err.lines().collect();
    let [line] = lines[..] else { panic!("not one line: {err}") };
    assert!(line.starts_with("error: ") && !line.contains("os error 2)\n"), "{line}");
    line.into()
}

#[test]
fn values_that_cannot_be_used_are_refused_by_flag_and_cause() {
    let table: &[(&[&str], &str)] = &[
        (&["--cluster-cidr=10.0.0.0"], "--cluster-cidr: \"10.0.0.0\" is not a CIDR"),
        (&["--cluster-cidr=10.0.0.0/33"], "--cluster-cidr: "),
        (&["--cluster-cidr=10.0.0.0/8,"], "--cluster-cidr: "),
        (&["--cluster-cidr=10.0.0.0/8,10.1.0.0/16"], "--cluster-cidr: names two ranges of one family"),
        (&["--cluster-cidr=fd00::/8,fd01::/16"], "--cluster-cidr: names two ranges of one family"),
        (&["--proxy-mode=userspace"], "--proxy-mode: \"userspace\" is not one of iptables, ipvs, nftables"),
        (&["--mode=nftables"], "--proxy-mode: nftables is not built into this version yet; use iptables or ipvs"),
        (&["--iptables-masquerade-bit=32"], "--iptables-masquerade-bit: 32 is not within the range [0, 31]"),
        (&["--iptables-masquerade-bit=-1"], "--iptables-masquerade-bit: -1 is not within"),
        (&["--iptables-masquerade-bit", "-1"], "--iptables-masquerade-bit: -1 is not within"),
        (&["--iptables-masquerade-bit=x"], "--iptables-masquerade-bit: \"x\" is not a whole number"),
        (&["--iptables-masquerade-bit="], "--iptables-masquerade-bit: "),
        (&["--iptables-sync-period=30"], "--iptables-sync-period: \"30\" is not a duration such as 30s"),
        (&["--iptables-sync-period=soon"], "--iptables-sync-period: \"soon\" is not a duration"),
        (&["--iptables-sync-period=0s"], "--iptables-sync-period: 0s must be greater than 0"),
        (&["--iptables-sync-period", "-1s"], "--iptables-sync-period: -1s must be greater than 0"),
        (&["--iptables-min-sync-period=31s"], "--iptables-min-sync-period: 31s must not be greater than the sync period, 30s"),
        (&["--hostname-override= "], "--hostname-override: empty hostname-override is invalid"),
        (&["--bind-address=node1"], "--bind-address: \"node1\" is not an IP address"),
        (&["--bind-address=10.0.0.999"], "--bind-address: "),
        (&["--healthz-bind-address=localhost:10256"], "--healthz-bind-address: \"localhost:10256\" is not an address"),
        (&["--metrics-bind-address=10.0.0.1:99999"], "--metrics-bind-address: "),
        (&["--nodeport-addresses=primary,10.0.0.0/8"], "--nodeport-addresses: can't use both 'primary' and CIDRs"),
        (&["--nodeport-addresses=10.0.0.1"], "--nodeport-addresses: \"10.0.0.1\" is not a CIDR"),
        (&["--node-ip=node1"], "--node-ip: \"node1\" is not an IP address"),
        (&["--detect-local-mode=Magic"], "--detect-local-mode: \"Magic\" is not one of ClusterCIDR, NodeCIDR, BridgeInterface"),
        (&["--detect-local-mode=BridgeInterface"], "--pod-bridge-interface: must not be empty with this way"),
        (&["--detect-local-mode=InterfaceNamePrefix"], "--pod-interface-name-prefix: must not be empty"),
        (
            &["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=an-interface-name"],
            "--pod-bridge-interface: \"an-interface-name\" is not an interface name",
        ),
        (&["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=a/b"], "--pod-bridge-interface: "),
        (&["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=a b"], "--pod-interface-name-prefix: "),
        (&["--masquerade-all=yes"], "--masquerade-all: \"yes\" is not true or false"),
        (&["--ipvs-strict-arp=maybe"], "--ipvs-strict-arp: \"maybe\" is not true or false"),
        (&["--conntrack-min=many"], "--conntrack-min: \"many\" is not a whole number"),
        (&["--config-sync-period=never"], "--config-sync-period: \"never\" is not a duration"),
        (&["--logging-format=xml"], "--logging-format: \"xml\" is not one of text, json"),
        (&["--family=ipx"], "--family: \"ipx\" is not one of ipv4, ipv6"),
        (&["-v=high"], "--v: \"high\" is not a whole number"),
        (&["-v=-1"], "--v: -1 is below 0"),
        (&["--proxy-mode"], "--proxy-mode: a value is missing"),
    ];
    assert_refused(table);
}

#[test]
fn values_of_ipvs_mode_are_checked_in_it_and_ranges_with_cleanup() {
    assert_refused(&[
        (
            &["--mode=ipvs", "--ipvs-scheduler=fifo"],
            "--ipvs-scheduler: \"fifo\" is not one of rr, wrr, lc, wlc, sh, dh, sed, nq, mh",
        ),
        (
            &["--mode=ipvs", "--ipvs-exclude-cidrs=10.0.0.0/8,192.0.2.1"],
            "--ipvs-exclude-cidrs: \"192.0.2.1\" is not a CIDR such as 192.0.2.0/24",
        ),
        (&["--mode=ipvs", "--ipvs-sync-period=0s"], "--ipvs-sync-period: 0s must be greater than 0"),
        (
            &["--mode=ipvs", "--ipvs-min-sync-period=31s"],
            "--ipvs-min-sync-period: 31s must not be greater than the sync period, 30s",
        ),
        (&["--mode=ipvs", "--ipvs-udp-timeout=-1s"], "--ipvs-udp-timeout: -1s is below 0"),
        (&["--mode=ipvs", "--ipvs-local-addresses=lo"], "--ipvs-local-addresses: \"lo\" is not one of device, routes"),
        (&["--mode=ipvs", "--ipvs-drain-timeout=long"], "--ipvs-drain-timeout: \"long\" is not a duration"),
        (&["--cleanup"], "--cleanup: render prints what would be made, and changes nothing on the node"),
        (&["--init-only"], "--init-only: render prints what would be made, and changes nothing on the node"),
        (&["--write-config-to=x"], "--write-config-to: render prints what would be made, and changes nothing on the node"),
    ]);
}

fn assert_refused(table: &[(&[&str], &str)]) {
    for (flags, want) in table {
        let line = refused(flags);
        assert!(line.starts_with(&format!("error: {want}")), "{flags:?}: {line}\nwanted: {want}");
    }
}

#[test]
fn what_is_no_flag_is_named() {
    assert_eq!(refused(&["--bogus"]), "error: --bogus: there is no such flag (sluice --help lists them)");
    assert!(refused(&["--bogus=7"]).starts_with("error: --bogus: "));
    assert!(refused(&["-x"]).starts_with("error: -x: there is no such flag"));
    let line = refused(&["--cluster-cidrs=10.0.0.0/8"]);
    assert!(line.contains("--cluster-cidrs: there is no such flag; did you mean --cluster-cidr?"), "{line}");
    for arguments in [&["web"][..], &["--masquerade-all", "true"], &["render", "web"], &["--mode=iptables", "start"]] {
        let Outcome { code, err, .. } = sluice(arguments.iter().copied());
        let word = arguments.last().unwrap();
        assert_eq!(code, Some(2), "{arguments:?}: {err}");
        assert!(one_line(&err).starts_with(&format!("error: {word:?}: ")), "{arguments:?}: {err}");
    }
}

#[test]
fn flags_that_ask_for_nothing_change_nothing() {
    rendered(&["--cleanup=false", "--init-only=false", "--config=", "--write-config-to=", "--feature-gates=", "--vmodule="]);
}

/// What is not to be removed counts in any mode, and is checked before anything is.
#[test]
fn ranges_are_checked_before_anything_is_removed() {
    let Outcome { code, err, .. } = sluice(["--cleanup", "--ipvs-exclude-cidrs=x"]);
    assert_eq!(code, Some(2), "{err}");
    assert!(one_line(&err).starts_with("error: --ipvs-exclude-cidrs: \"x\" is not a CIDR"), "{err}");
}

#[test]
fn values_are_read_as_pflag_reads_them() {
    let plain = rendered(&[]);
    let masquerading = rendered(&["--masquerade-all"]);
    assert_ne!(plain, rendered(&["--iptables-masquerade-bit=7"]));
    for yes in ["1", "t", "T", "true", "TRUE", "True"] {
        assert_eq!(rendered(&[&format!("--iptables-localhost-nodeports={yes}")]), plain);
        assert_eq!(rendered(&[&format!("--masquerade-all={yes}")]), masquerading);
    }
    let without = rendered(&["--iptables-localhost-nodeports=false"]);
    assert_ne!(without, plain);
    for no in ["0", "f", "F", "false", "FALSE", "False"] {
        assert_eq!(rendered(&[&format!("--iptables-localhost-nodeports={no}")]), without);
    }
    let seven = rendered(&["--iptables-masquerade-bit=7"]);
    assert!(seven.contains("0x80/0x80"), "{seven}");
    for flags in [
        &["--iptables-masquerade-bit", "7"][..],
        &["--iptables_masquerade_bit=7"],
        &["--iptables-masquerade_bit", "7"],
        &["--iptables-masquerade-bit=8", "--iptables-masquerade-bit=7"],
    ] {
        assert_eq!(rendered(flags), seven, "{flags:?}");
    }
    for flags in [&["-v=4"][..], &["-v", "4"], &["-v4"], &["--v=4"], &["--v", "4"], &["--v=300"], &["--v=2", "-v=4"]] {
        assert_eq!(rendered(flags), plain, "{flags:?}");
    }
    // Not given, for kube-proxy as for us.
    assert_eq!(rendered(&["--hostname-override=", "--proxy-mode=", "--detect-local-mode=", "--nodeport-addresses="]), plain);
}

#[test]
fn the_last_of_a_repeated_flag_counts_and_lists_grow() {
    let last = rendered(&["--proxy-mode=iptables", "--mode=iptables", "--masquerade-all=true", "--masquerade-all=false"]);
    assert_eq!(last, rendered(&[]));
    let addresses = "--node-ip=192.0.2.1,192.0.2.2,198.51.100.1";
    let both = rendered(&[addresses, "--nodeport-addresses=192.0.2.0/24,198.51.100.0/24"]);
    assert!(both.contains("-d 192.0.2.2/32") && both.contains("-d 198.51.100.1/32"), "{both}");
    assert_eq!(rendered(&[addresses, "--nodeport-addresses=192.0.2.0/24", "--nodeport-addresses", "198.51.100.0/24"]), both);
}

/// Every flag of kube-proxy 1.36 on Linux (behaviour.md §1.2) that does not ask for another kind of run.
const ALL_OF_KUBE_PROXY: &str = "\
    --feature-gates=AllowServiceExternalIPs=true --kubeconfig=/var/lib/kube-proxy/kubeconfig.conf \
    --master=https://192.0.2.1:6443 --kube-api-content-type=application/json --kube-api-qps=5.5 --kube-api-burst=10 \
    --hostname-override=Node-A --bind-address=0.0.0.0 --healthz-bind-address=0.0.0.0:10256 \
    --metrics-bind-address=127.0.0.1:10249 --bind-address-hard-fail=false --profiling=false \
    --show-hidden-metrics-for-version=1.35 --proxy-mode=iptables --iptables-masquerade-bit=14 --masquerade-all=false \
    --iptables-localhost-nodeports=true --iptables-sync-period=30s --iptables-min-sync-period=1s --ipvs-sync-period=30s \
    --ipvs-min-sync-period=1s --ipvs-scheduler=rr --ipvs-exclude-cidrs=10.0.0.0/8,192.0.2.0/24 --ipvs-strict-arp=true \
    --ipvs-tcp-timeout=0s --ipvs-tcpfin-timeout=0s --ipvs-udp-timeout=1m30s --detect-local-mode=ClusterCIDR \
    --pod-bridge-interface= --pod-interface-name-prefix= --cluster-cidr=10.244.0.0/16,fd00:10:244::/56 \
    --nodeport-addresses=192.0.2.0/24 --oom-score-adj=-999 --conntrack-max-per-core=32768 --conntrack-min=131072 \
    --conntrack-tcp-timeout-established=24h0m0s --conntrack-tcp-timeout-close-wait=1h --conntrack-tcp-be-liberal=false \
    --conntrack-udp-timeout=0s --conntrack-udp-timeout-stream=0 --config-sync-period=15m0s --healthz-port=10256 \
    --metrics-port=10249 -v=2 --vmodule=proxier=4 --logging-format=text --log-flush-frequency=5s \
    --log-text-split-stream=false --log-text-info-buffer-size=0 --log-json-split-stream=false \
    --log-json-info-buffer-size=0 --boot-id-file=/proc/sys/kernel/random/boot_id --machine-id-file=/etc/machine-id";

#[test]
fn every_flag_of_kube_proxy_is_accepted() {
    let flags: Vec<_> = ALL_OF_KUBE_PROXY.split_whitespace().collect();
    let Outcome { code, out, err } = render(&flags);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("10.96.0.10"), "{out}");
    let lines: Vec<_> = err.lines().collect();
    let [idle, other_mode] = lines[..] else { panic!("not two lines: {err}") };
    let none =
        ["--config-sync-period", "--log-flush-frequency", "--kube-api-content-type", "--boot-id-file", "--machine-id-file"];
    assert_names(idle, "without effect in this version", &none);
    let of_ipvs = ["--ipvs-scheduler", "--ipvs-strict-arp", "--ipvs-min-sync-period", "--ipvs-tcpfin-timeout"];
    assert_names(other_mode, "without effect with --proxy-mode=iptables", &of_ipvs);
    for real in
        ["--cluster-cidr", "--hostname-override", "--vmodule", "--oom-score-adj", "--metrics-port", "--ipvs-exclude-cidrs"]
    {
        assert!(!err.contains(real), "{real}: {err}");
    }
}

/// Is it a warning with these words and flags?
fn assert_names(line: &str, words: &str, flags: &[&str]) {
    assert!(line.contains("WARN") && line.contains(words), "{words}: {line}");
    for flag in flags {
        assert!(line.contains(flag), "{flag}: {line}");
    }
}

/// What counts in one mode is not even looked at in the other.
#[test]
fn flags_of_the_other_mode_are_named_and_not_checked() {
    let bad = ["--ipvs-scheduler=fifo", "--ipvs-sync-period=0s", "--ipvs-exclude-cidrs=x", "--ipvs-local-addresses=lo"];
    let Outcome { code, err, .. } = render(&bad);
    assert_eq!(code, Some(0), "{err}");
    assert_names(
        &err,
        "without effect with --proxy-mode=iptables",
        &["--ipvs-scheduler", "--ipvs-sync-period", "--ipvs-local-addresses"],
    );
    let Outcome { code, err, .. } = render(&["--mode=ipvs", "--iptables-sync-period=0s", "--iptables-localhost-nodeports=false"]);
    assert_eq!(code, Some(0), "{err}");
    let idle = ["--iptables-sync-period", "--iptables-localhost-nodeports"];
    assert_names(&err, "without effect with --proxy-mode=ipvs", &idle);
    rendered(&[
        "--mode=ipvs",
        "--ipvs-scheduler=",
        "--ipvs-strict-arp",
        "--ipvs-drain-timeout=0s",
        "--iptables-masquerade-bit=7",
    ]);
}

#[test]
fn help_and_version_are_answers_and_no_errors() {
    let version = concat!("sluice ", env!("CARGO_PKG_VERSION"), "\n");
    for flags in [&["--version"][..], &["-V"], &["--version=true"], &["--version=raw"], &["render", "--version"]] {
        let wanted = Outcome { code: Some(0), out: version.into(), err: String::new() };
        assert_eq!(sluice(flags.iter().copied()), wanted, "{flags:?}");
    }
    rendered(&["--version=false"]);
    for flags in [&["--help"][..], &["-h"], &["render", "--help"]] {
        let Outcome { code, out, err } = sluice(flags.iter().copied());
        assert!(code == Some(0) && err.is_empty(), "{flags:?}: {err}");
        for heading in
            ["Where Services come from:", "Rules:", "With --proxy-mode=ipvs:", "Health and metrics:", "Pace:", "Logging:"]
        {
            assert!(out.contains(heading), "{flags:?}: {heading}\n{out}");
        }
        for default in [
            "[default: 14]",
            "[default: 0.0.0.0:10256]",
            "[default: 127.0.0.1:10249]",
            "[default: 30s]",
            "[default: rr]",
            "[default: 15m]",
        ] {
            assert!(out.contains(default), "{flags:?}: {default}\n{out}");
        }
        let words: Vec<_> = out.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').collect();
        let names = ALL_OF_KUBE_PROXY.split_whitespace().filter_map(|flag| flag.split('=').next());
        for name in names.chain(["--config", "--cleanup", "--init-only", "--write-config-to", "--manifests", "--once", "--mode"])
        {
            assert!(words.contains(&name), "{flags:?}: {name} is not there:\n{out}");
        }
        assert!(out.lines().all(|line| line.chars().count() <= 100), "{flags:?}: too wide:\n{out}");
    }
}

#[test]
fn render_needs_manifests_that_can_be_read() {
    let failed = |manifests: &[&str]| {
        let Outcome { code, out, err } = sluice(["render"].into_iter().chain(manifests.iter().copied()));
        assert_eq!((code, out.as_str()), (Some(1), ""), "{manifests:?}: {err}");
        one_line(&err)
    };
    assert_eq!(failed(&[]), "error: render: --manifests is missing");
    assert_eq!(failed(&["--manifests="]), "error: render: --manifests is missing");
    let line = failed(&["--manifests=/nowhere/at/all"]);
    assert!(line.starts_with("error: manifests: /nowhere/at/all cannot be read: No such file"), "{line}");
    let broken = Manifest::new(&format!("{MANIFEST}---\nkind: Service\napiVersion: v1\nmetadata: {{name: b"));
    let path = broken.path().to_str().unwrap();
    let line = failed(&["--manifests", path]);
    assert!(line.starts_with(&format!("error: manifests: {path}: document 2 (line ")), "{line}");
}

#[test]
fn render_prints_one_family_or_both() {
    let both = rendered(&[]);
    let (v4, v6) = (rendered(&["--family=ipv4"]), rendered(&["--family", "ipv6"]));
    assert!(both.contains("10.96.0.10") && both.contains("fd00:10:96::a"), "{both}");
    assert!(v4.contains("10.96.0.10") && !v4.contains("fd00:10:96::a"), "{v4}");
    assert!(v6.contains("fd00:10:96::a") && !v6.contains("10.96.0.10"), "{v6}");
    assert_eq!(both, v4 + &v6);
}

#[test]
fn render_says_what_it_left_out() {
    let manifest = Manifest::new(&format!("{MANIFEST}  externalIPs: [x]\n---\napiVersion: v1\nkind: Namespace\n"));
    let Outcome { code, out, err } = sluice(["render", "--manifests", manifest.path().to_str().unwrap()]);
    assert!(code == Some(0) && out.contains("10.96.0.10"), "{err}");
    assert!(err.contains("Service default/web: spec.externalIPs[0]: \"x\""), "{err}");
    assert!(err.contains("kind Namespace (v1) are skipped"), "{err}");
}

/// `sluice render | head`: more is printed than a pipe holds, and nobody reads it.
#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let service = |n: usize| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web-{n}}}\nspec:\n  clusterIP: 10.96.{}.{}\n  ports: [{{port: 80}}]\n",
            n / 250,
            n % 250 + 1
        )
    };
    let manifest = Manifest::new(&(0..1000).map(service).collect::<String>());
    for arguments in [&["render", "--manifests", manifest.path().to_str().unwrap()][..], &["--help"]] {
        let mut command = Command::new(BINARY);
        let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success() && err.is_empty(), "{arguments:?}: {status}: {err}");
    }
}
