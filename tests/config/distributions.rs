//! The command lines and files that distributions start kube-proxy with. They start unchanged.

use std::fs;
use std::path::Path;

use super::sluice;
use super::support::Scratch;

/// Objects to render: one Service with an endpoint.
const MANIFEST: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{name: http, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.1.7]}]
";

/// What `sluice render` prints and says with these flags.
fn rendered(scratch: &Scratch, flags: &str) -> (String, String) {
    let manifest = scratch.file("objects.yaml");
    fs::write(&manifest, MANIFEST).unwrap();
    let path = format!("--manifests={}", manifest.display());
    let flags: Vec<_> = ["render", &path].into_iter().chain(flags.split_whitespace()).collect();
    let outcome = sluice(&flags);
    assert_eq!(outcome.code, Some(0), "{flags:?}: {outcome:?}");
    assert!(outcome.out.contains("10.96.0.10"), "{flags:?}: {}", outcome.out);
    (outcome.out, outcome.err)
}

/// What `kubeadm init` puts into the `ConfigMap` kube-proxy, and the command of its `DaemonSet`.
#[test]
fn kubeadm() {
    let scratch = Scratch::new("config-kubeadm");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/kubeadm.yaml");
    let (rules, said) = rendered(&scratch, &format!("--config={} --hostname-override=node-1", file.display()));
    assert_eq!(said, "");
    assert!(rules.contains("! -s 10.244.0.0/16"), "{rules}");
    let as_by_flags = rendered(&scratch, "--cluster-cidr=10.244.0.0/16 --hostname-override=node-1");
    assert_eq!((rules, said), as_by_flags, "zero values are the defaults");
}

/// kind appends its own document to kubeadm's: `mode`, `clusterCIDR` and no change of the host's conntrack limit.
#[test]
fn kind() {
    let scratch = Scratch::new("config-kind");
    let kubeadm = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/kubeadm.yaml")).unwrap();
    for (mode, dual) in [("iptables", "10.244.0.0/16"), ("ipvs", "10.244.0.0/16,fd00:10:244::/56")] {
        let file = scratch.file("config.conf");
        let text = kubeadm
            .replace("maxPerCore: null", "maxPerCore: 0")
            .replace("mode: \"\"", &format!("mode: {mode}"))
            .replace("clusterCIDR: 10.244.0.0/16", &format!("clusterCIDR: {dual}"))
            .replace("strictARP: false", "strictARP: true");
        fs::write(&file, text).unwrap();
        let (_, said) = rendered(&scratch, &format!("--config={} --hostname-override=kind-control-plane", file.display()));
        assert_eq!(said, "", "{mode}");
    }
}

/// As the log of k3s and RKE2 shows it: "Running kube-proxy ...".
#[test]
fn k3s() {
    let scratch = Scratch::new("config-k3s");
    let flags = "--cluster-cidr=10.42.0.0/16 --conntrack-max-per-core=0 --conntrack-tcp-timeout-close-wait=0s \
                 --conntrack-tcp-timeout-established=0s --healthz-bind-address=127.0.0.1 --hostname-override=node-1 \
                 --kubeconfig=/var/lib/rancher/k3s/agent/kubeproxy.kubeconfig --proxy-mode=iptables";
    assert_eq!(rendered(&scratch, flags).1, "");
}

/// As configure-helper.sh of GCE and the static pods of GKE have it. The flags of other modes are named, and so are
/// gates of other components.
#[test]
fn gce() {
    let scratch = Scratch::new("config-gce");
    let flags = "--master=https://192.0.2.1 --kubeconfig=/var/lib/kube-proxy/kubeconfig --cluster-cidr=10.4.0.0/14 \
                 --oom-score-adj=-998 --v=2 --feature-gates=RotateKubeletServerCertificate=true,ExecProbeTimeout=false \
                 --iptables-sync-period=1m --iptables-min-sync-period=10s --ipvs-sync-period=1m --ipvs-min-sync-period=10s \
                 --detect-local-mode=NodeCIDR";
    let (_, said) = rendered(&scratch, flags);
    let lines: Vec<_> = said.lines().collect();
    let [gates, modes] = lines[..] else { panic!("not two lines: {said}") };
    assert!(gates.ends_with("in this version: --feature-gates=ExecProbeTimeout --feature-gates=RotateKubeletServerCertificate"));
    assert!(modes.ends_with("with --proxy-mode=iptables: --ipvs-sync-period --ipvs-min-sync-period"), "{modes}");
}

/// A file of old tutorials that are still followed: fields that are gone are named, and the rest counts.
#[test]
fn an_old_file_by_hand() {
    let scratch = Scratch::new("config-old");
    let file = scratch.file("config.conf");
    let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nbindAddress: 192.0.2.7\nclientConnection:\n  burst: 10\n  \
                kubeconfig: /k8s/cfg/kube-proxy.kubeconfig\n  qps: 5\nclusterCIDR: 10.100.0.0/16\nconntrack:\n  max: null\n  \
                maxPerCore: 32768\nhostnameOverride: \"192.0.2.7\"\nipvs:\n  masqueradeAll: true\n  minSyncPeriod: 5s\n  \
                scheduler: \"rr\"\n  syncPeriod: 30s\nkind: KubeProxyConfiguration\nmode: \"ipvs\"\nudpIdleTimeout: 250ms\n";
    fs::write(&file, text).unwrap();
    let (_, said) = rendered(&scratch, &format!("--config={} --v=2", file.display()));
    assert_eq!(said.lines().count(), 1, "{said}");
    for field in ["\"conntrack.max\"", "\"ipvs.masqueradeAll\"", "\"udpIdleTimeout\""] {
        assert!(said.contains(field), "{field}: {said}");
    }
}
