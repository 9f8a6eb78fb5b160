//! The Helm chart, its manifests, alerts and dashboard, to Helm's own engine, Kubernetes' schemas and this binary:
//! `e2e/chart/test_chart.py` says what is tried, this runs it. Then the pod of a manifest, without a container: what it is
//! started with and may do is enough for a node. What the dashboard and the alerts ask of `/metrics` is tried in
//! `tests/metrics.rs`.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

#[path = "../e2e/apiserver/mod.rs"]
mod apiserver;
mod cluster;
mod scenario;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use apiserver::ApiServer;
use cluster::ClusterNode;
use cluster::certificates::Authority;
use cluster::objects::{node, service, slices};
use serde::Deserialize as _;
use serde_json::{Value, json};
use support::proxy::{BINARY, Sluice, get};
use support::{PATIENCE, require_root};

/// Is Python there with its packages? A run in CI fails without.
fn is_there(python: &Path) -> bool {
    let there = Command::new(python).args(["-c", "import helm_python"]).output().is_ok_and(|output| output.status.success());
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(there || !in_ci, "Helm's engine is missing, and CI must not skip it: e2e/install.sh --machine");
    if !there {
        eprintln!("not run: Helm's engine is missing (e2e/install.sh --machine)");
    }
    there
}

#[test]
fn the_chart_is_what_the_api_server_the_binary_and_the_node_take() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("e2e/python");
    if !is_there(&python) {
        return;
    }
    let mut command = Command::new(python);
    command.args(["-m", "unittest", "--verbose", "test_chart"]).current_dir(root.join("e2e/chart"));
    // No folder of compiled files in the sources.
    command.env("SLUICE", BINARY).env("PYTHONDONTWRITEBYTECODE", "1");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stdout));
    let ran = said.lines().filter(|line| line.ends_with("... ok")).count();
    assert!(ran > 20, "{ran} tests:\n{said}");
}

/// The pod of a manifest on this node, beside an API server on `port` that knows it by this token.
struct Pod<'a> {
    node: &'a ClusterNode,
    spec: Value,
    /// Where the `ConfigMap` and the service account are instead of where the pod mounts them.
    config: PathBuf,
    account: PathBuf,
}

impl<'a> Pod<'a> {
    fn new(node: &'a ClusterNode, manifest: &str, port: &str, authority: &Authority) -> Self {
        let text = manifest.replace("API_SERVER_HOST", "127.0.0.1").replace("\"6443\"", &format!("{port:?}"));
        let objects: Vec<Value> = serde_norway::Deserializer::from_str(&text).map(|it| Value::deserialize(it).unwrap()).collect();
        let of_kind = |kind: &str| objects.iter().find(|object| object["kind"] == kind).unwrap();
        let (config, account) = (node.scratch.file("etc-sluice"), node.scratch.file("serviceaccount"));
        for (folder, files) in [
            (&config, vec![("config.yaml", configuration(of_kind("ConfigMap")))]),
            (&account, vec![("ca.crt", authority.pem()), ("token", "of-the-pod".into()), ("namespace", "kube-system".into())]),
        ] {
            fs::create_dir(folder).unwrap();
            for (name, text) in files {
                fs::write(folder.join(name), text).unwrap();
            }
        }
        Self { node, spec: of_kind("DaemonSet")["spec"]["template"]["spec"].clone(), config, account }
    }

    /// What runs a container: in a mount namespace of its own, with its arguments and environment, after these words.
    fn command(&self, container: &Value, confinement: &[&str]) -> Command {
        // `ip netns exec` makes a mount namespace; what is mounted there is seen by nobody else.
        let script = r#"set -e; account=$1; shift
            mount -t tmpfs tmpfs /run; mkdir -p /var/run/secrets/kubernetes.io
            cp -r "$account" /var/run/secrets/kubernetes.io/serviceaccount; exec "$@""#;
        let mut command = self.node.namespace.command("sh");
        command.args(["-c", script, "sh"]).arg(&self.account).args(confinement).arg(BINARY);
        for argument in container["args"].as_array().unwrap() {
            let argument = argument.as_str().unwrap().replace("$(NODE_NAME)", "node-a");
            command.arg(argument.replace("/etc/sluice", self.config.to_str().unwrap()));
        }
        for variable in container["env"].as_array().unwrap() {
            if let Some(value) = variable["value"].as_str() {
                command.env(variable["name"].as_str().unwrap(), value);
            }
        }
        command
    }
}

/// With the cluster's ranges, and without the machine's limit of tracked connections, which no namespace can set.
fn configuration(config_map: &Value) -> String {
    let text = config_map["data"]["config.yaml"].as_str().unwrap();
    let mut fields: Value = serde_norway::from_str(text).unwrap();
    fields["clusterCIDR"] = "10.244.0.0/16,fd00:10:244::/56".into();
    fields["conntrack"] = json!({"maxPerCore": 0});
    fields.to_string()
}

/// A shell's words: runs what follows where `/proc/sys` is read-only, as in a container, and with the capability it has.
const CONFINEMENT: [&str; 9] = [
    "sh",
    "-c",
    "mount -o bind,ro /proc/sys /proc/sys && exec \"$0\" \"$@\"",
    "setpriv",
    "--no-new-privs",
    "--bounding-set=-all,+net_admin",
    "--inh-caps=-all,+net_admin",
    "--ambient-caps=-all",
    "--",
];

#[test]
fn the_pod_of_the_manifest_serves_its_node() {
    if !require_root("the_pod_of_the_manifest_serves_its_node") {
        return;
    }
    let on = ClusterNode::new("chart-pod");
    let server = ApiServer::start_on(on.listen());
    let authority = Authority::new("cluster");
    server.use_tls(authority.server(&["127.0.0.1"]).server_config(None));
    server.require_token("of-the-pod");
    let objects: Vec<_> = [node("z1"), service("web", 1, 80)].into_iter().chain(slices("web", &[5, 6])).collect();
    for object in &objects {
        server.put(object.clone());
    }
    let url = server.url();
    let port = url.rsplit(':').next().unwrap();
    let pod = Pod::new(&on, include_str!("../deploy/sluice-iptables.yaml"), port, &authority);

    let [init] = &pod.spec["initContainers"].as_array().unwrap()[..] else { panic!("one init container") };
    let ended = pod.command(init, &[]).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));

    let [container] = &pod.spec["containers"].as_array().unwrap()[..] else { panic!("one container") };
    let allowed = &container["securityContext"]["capabilities"];
    assert_eq!(allowed, &json!({"drop": ["ALL"], "add": ["NET_ADMIN"]}), "it is run with this one");
    let sluice = Sluice::spawn(&on.namespace, &on.scratch, pod.command(container, &CONFINEMENT));
    on.wait_for_rules_of("the pod", PATIENCE, &objects);
    let ports = container["ports"].as_array().unwrap();
    for probe in ["livenessProbe", "readinessProbe"] {
        let asked = &container[probe]["httpGet"];
        let port = ports.iter().find(|port| port["name"] == asked["port"]).unwrap();
        let address = format!("127.0.0.1:{}", port["containerPort"]);
        let answer = on.namespace.run(|| get(&address, asked["path"].as_str().unwrap())).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{probe}: {answer}");
    }
    let log = sluice.stop();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}
