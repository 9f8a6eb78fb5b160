//! The same stories against the real kube-apiserver and etcd, where `KUBEBUILDER_ASSETS` names the folder they are in
//! (as setup-envtest prints it): what the source tells, and what rules the built `sluice` makes of it in a namespace,
//! over TLS, with no more rights than kube-proxy has; that its Events are taken, and what it says without those rights.
//! Without the real ones the stories are told against our own API server only.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

mod cluster;
mod scenario;
mod support;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cluster::certificates::{Authority, pem};
use cluster::kubeconfig::Kubeconfig;
use cluster::objects::{cluster_ip, node as node_object, service, slices};
use cluster::{ClusterNode, story};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams, TypeMeta,
};
use kube::config::KubeConfigOptions;
use kube::{Client, Config};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use scenario::{Cluster, Logs, NAMESPACE, NODE, Source};
use serde::Deserialize as _;
use serde_json::Value;
use sluice::source::kube::ApiOptions;
use support::require_root;

/// Of the one who writes objects.
const ADMIN: &str = "token-of-the-admin";
/// Of `system:kube-proxy`, to whom the API server itself grants what a proxy needs (`system:node-proxier`).
const PROXY: &str = "token-of-the-proxy";
/// Of somebody whom no role is bound to.
const NOBODY: &str = "token-of-nobody";
/// A cold kube-apiserver on a small machine.
const READY: Duration = Duration::from_mins(2);

/// A process that ends with us, its output in a file of the folder.
struct Process(Child);

impl Process {
    fn start(folder: &Path, binary: &Path, arguments: &[String]) -> Self {
        let name = binary.file_name().unwrap().to_str().unwrap();
        let log = fs::OpenOptions::new().create(true).append(true).open(folder.join(format!("{name}.log"))).unwrap();
        let mut command = Command::new(binary);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(command.spawn().unwrap_or_else(|error| panic!("{}: {error}", binary.display())))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// etcd and kube-apiserver on free ports of 127.0.0.1, in the network namespace of the thread that makes it. Fields are
/// dropped in order: the server first.
struct RealCluster {
    apiserver: Option<Process>,
    _etcd: Process,
    authority: Authority,
    assets: PathBuf,
    folder: PathBuf,
    etcd_port: u16,
    port: u16,
}

impl RealCluster {
    async fn new(assets: PathBuf, test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("sluice-{test}-cluster-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let [etcd_port, peer_port, port] = free_ports();
        let authority = Authority::new("cluster");
        write_credentials(&folder, &authority);
        let etcd = Process::start(&folder, &assets.join("etcd"), &etcd_arguments(&folder, etcd_port, peer_port));
        let mut cluster = Self { apiserver: None, _etcd: etcd, authority, assets, folder, etcd_port, port };
        cluster.start().await;
        cluster
    }

    fn kubeconfig(&self, token: &str) -> Kubeconfig {
        Kubeconfig::new(&format!("https://127.0.0.1:{}", self.port)).authority(&self.authority).token(token)
    }

    async fn client(&self) -> Client {
        let file = self.kubeconfig(ADMIN).write(self.folder.join("admin"));
        let kubeconfig = kube::config::Kubeconfig::read_from(file).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        Client::try_from(config).unwrap()
    }

    /// All objects of a resource, in all namespaces, each saying what it is.
    async fn list(&self, resource: &str) -> Vec<Value> {
        let Resource { api, .. } = Resource::named(resource);
        let types = TypeMeta { api_version: api.api_version.clone(), kind: api.kind.clone() };
        let all: Api<DynamicObject> = Api::all_with(self.client().await, &api);
        let items = all.list(&ListParams::default()).await.unwrap().items;
        let named = items.into_iter().map(|object| DynamicObject { types: Some(types.clone()), ..object });
        named.map(|object| serde_json::to_value(object).unwrap()).collect()
    }

    async fn api(&self, object: &Resource) -> Api<DynamicObject> {
        let client = self.client().await;
        if object.namespaced { Api::namespaced_with(client, NAMESPACE, &object.api) } else { Api::all_with(client, &object.api) }
    }

    async fn wait_until_ready(&mut self) {
        let client = self.client().await;
        let deadline = Instant::now() + READY;
        loop {
            let request = hyper::Request::get("/readyz").body(Vec::new()).unwrap();
            let answer = client.request_text(request).await;
            if answer.as_deref().is_ok_and(|text| text == "ok") {
                return;
            }
            let ended = self.apiserver.as_mut().and_then(|process| process.0.try_wait().unwrap());
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.folder.join("kube-apiserver.log")).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(30).collect();
                panic!("kube-apiserver is not ready ({answer:?}, {ended:?}), last lines first:\n{}", tail.join("\n"));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Drop for RealCluster {
    fn drop(&mut self) {
        self.apiserver = None;
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

impl Cluster for RealCluster {
    fn options(&self) -> ApiOptions {
        let kubeconfig = Some(self.kubeconfig(PROXY).write(self.folder.join("proxy")));
        ApiOptions { kubeconfig, master: None, node_name: NODE.into(), ..ApiOptions::default() }
    }

    async fn put(&self, object: Value) {
        let api = self.api(&Resource::of_kind(object["kind"].as_str().unwrap())).await;
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let deadline = Instant::now() + Duration::from_secs(30);
        // A server just started may still lack what it needs, its ServiceCIDR for one.
        while let Err(error) = write(&api, &name, &object).await {
            assert!(Instant::now() < deadline, "{object}: {error}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn delete(&self, resource: &str, name: &str) {
        self.api(&Resource::named(resource)).await.delete(name, &DeleteParams::default()).await.unwrap();
    }

    async fn objects(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for resource in ["services", "endpointslices", "nodes"] {
            all.extend(self.list(resource).await);
        }
        all
    }

    async fn stop(&mut self) {
        self.apiserver = None;
    }

    async fn start(&mut self) {
        let arguments = apiserver_arguments(&self.folder, self.etcd_port, self.port);
        self.apiserver = Some(Process::start(&self.folder, &self.assets.join("kube-apiserver"), &arguments));
        self.wait_until_ready().await;
    }
}

/// Applying creates, replaces and takes away labels that are no longer given. It refuses a Node with two addresses of
/// one type, as each of two families has (kubernetes/kubernetes#121896): that is created, as the kubelet does it.
async fn write(api: &Api<DynamicObject>, name: &str, object: &Value) -> Result<(), kube::Error> {
    if object["kind"] != "Node" {
        let applied = api.patch(name, &PatchParams::apply("sluice-test").force(), &Patch::Apply(object)).await;
        return applied.map(drop);
    }
    let node = serde_json::from_value(object.clone()).map_err(kube::Error::SerdeError)?;
    match api.create(&PostParams::default(), &node).await {
        Err(kube::Error::Api(refusal)) if refusal.code == 409 => {
            api.patch(name, &PatchParams::default(), &Patch::Merge(object)).await.map(drop)
        }
        created => created.map(drop),
    }
}

struct Resource {
    api: ApiResource,
    namespaced: bool,
}

impl Resource {
    const ALL: [(&'static str, &'static str, &'static str, bool); 5] = [
        ("", "Namespace", "namespaces", false),
        ("", "Node", "nodes", false),
        ("", "Service", "services", true),
        ("discovery.k8s.io", "EndpointSlice", "endpointslices", true),
        ("events.k8s.io", "Event", "events", true),
    ];

    fn find(wanted: impl Fn(&str, &str) -> bool) -> Self {
        let (group, kind, plural, namespaced) = Self::ALL.into_iter().find(|r| wanted(r.1, r.2)).unwrap();
        let api = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural);
        Self { api, namespaced }
    }

    fn of_kind(kind: &str) -> Self {
        Self::find(|k, _| k == kind)
    }

    fn named(name: &str) -> Self {
        Self::find(|_, plural| plural == name)
    }
}

/// All three are held until all are known, so that they differ.
fn free_ports() -> [u16; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn write_credentials(folder: &Path, authority: &Authority) {
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new()).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &SystemRandom::new()).unwrap();
    // SubjectPublicKeyInfo of a P-256 key: a constant head and the point.
    let head = data_encoding::HEXLOWER.decode(b"3059301306072a8648ce3d020106082a8648ce3d030107034200").unwrap();
    let public = [head.as_slice(), pair.public_key().as_ref()].concat();
    let server = authority.server(&["127.0.0.1"]);
    let tokens = format!("{ADMIN},admin,admin,\"system:masters\"\n{PROXY},system:kube-proxy,proxy\n{NOBODY},nobody,nobody\n");
    let files = [
        ("sa.key", pem("PRIVATE KEY", pkcs8.as_ref())),
        ("sa.pub", pem("PUBLIC KEY", &public)),
        ("server.crt", server.certificate_pem()),
        ("server.key", server.key_pem()),
        ("tokens.csv", tokens),
    ];
    for (name, text) in files {
        fs::write(folder.join(name), text).unwrap();
    }
}

fn etcd_arguments(folder: &Path, port: u16, peer_port: u16) -> Vec<String> {
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    vec![
        "--name=default".into(),
        format!("--data-dir={}", folder.join("etcd").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        "--unsafe-no-fsync".into(),
    ]
}

fn apiserver_arguments(folder: &Path, etcd_port: u16, port: u16) -> Vec<String> {
    let file = |name: &str| folder.join(name).display().to_string();
    vec![
        format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
        format!("--secure-port={port}"),
        "--bind-address=127.0.0.1".into(),
        "--advertise-address=127.0.0.1".into(),
        // 127.0.0.1 may not be an endpoint of the service `kubernetes`, which nobody here needs.
        "--endpoint-reconciler-type=none".into(),
        format!("--tls-cert-file={}", file("server.crt")),
        format!("--tls-private-key-file={}", file("server.key")),
        // Unused, but it wants to be able to write there.
        format!("--cert-dir={}", file("certificates")),
        format!("--token-auth-file={}", file("tokens.csv")),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-signing-key-file={}", file("sa.key")),
        format!("--service-account-key-file={}", file("sa.pub")),
        "--authorization-mode=RBAC".into(),
        "--disable-admission-plugins=ServiceAccount".into(),
        "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112".into(),
        "--allow-privileged=true".into(),
    ]
}

fn assets() -> Option<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    if assets.is_none() {
        eprintln!("KUBEBUILDER_ASSETS is not set: the real API server is not tested");
    }
    assets
}

#[tokio::test]
async fn the_story_with_the_real_api_server() {
    if let Some(assets) = assets() {
        scenario::story(&mut RealCluster::new(assets, "real-source").await).await;
    }
}

#[test]
fn the_rules_follow_the_real_api_server() {
    let Some(assets) = assets() else { return };
    if !require_root("the_rules_follow_the_real_api_server") {
        return;
    }
    let node = ClusterNode::new("real-rules");
    // All of it in the namespace of the node: the programs, and the sockets of this thread's client.
    node.namespace.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut cluster = RealCluster::new(assets, "real-rules").await;
            let how = node.kubeconfig(&cluster.kubeconfig(PROXY));
            // Shown when the test fails: a server that starts may well refuse for a moment.
            println!("{}", story::rules_follow(&mut cluster, &node, || node.start(&how)).await);
        });
    });
}

/// A Service of a load balancer that asks for its health on `port`, which cannot change afterwards.
fn with_health_port(port: u16) -> Value {
    let mut web = service("web", 1, 80);
    web["spec"]["type"] = "LoadBalancer".into();
    web["spec"]["externalTrafficPolicy"] = "Local".into();
    web["spec"]["healthCheckNodePort"] = port.into();
    web
}

/// The Event with this reason, once there is one that `is_wanted`.
async fn event(cluster: &RealCluster, reason: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + READY;
    loop {
        let events = cluster.list("events").await;
        if let Some(event) = events.iter().find(|event| event["reason"] == reason && is_wanted(event)) {
            return event.clone();
        }
        assert!(Instant::now() < deadline, "no such event {reason}: {events:#?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Of one Service, whose port another process has: told of, and counted when it happens again.
async fn events_of_a_node(node: &ClusterNode) -> String {
    let mut cluster = RealCluster::new(assets().unwrap(), "real-events").await;
    let _taken = TcpListener::bind("0.0.0.0:31999").unwrap();
    cluster.put(serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})).await;
    cluster.put(node_object("z1")).await;
    cluster.put(with_health_port(31999)).await;
    for slice in slices("web", &[5]) {
        cluster.put(slice).await;
    }
    let mut sluice = node.start(&node.kubeconfig(&cluster.kubeconfig(PROXY)));
    let starting = event(&cluster, "Starting", |_| true).await;
    assert_eq!(starting["regarding"], serde_json::json!({"apiVersion": "v1", "kind": "Node", "name": "node-a"}));
    assert_eq!((&starting["metadata"]["namespace"], &starting["type"]), (&"default".into(), &"Normal".into()));
    assert_eq!((&starting["action"], &starting["reportingController"]), (&"StartKubeProxy".into(), &"kube-proxy".into()));
    let reason = "FailedToStartServiceHealthcheck";
    let closed = event(&cluster, reason, |_| true).await;
    assert!(closed["series"].is_null() && closed["metadata"]["namespace"] == NAMESPACE, "{closed:#}");
    assert!(closed["note"].as_str().unwrap().starts_with("node node-a failed to start healthcheck"), "{closed:#}");
    cluster.delete("services", "web").await;
    let deadline = Instant::now() + READY;
    while node.rules().contains(&format!("{}/32", cluster_ip(1))) {
        assert!(Instant::now() < deadline, "the Service stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Its port is given up after its rules have gone.
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.put(with_health_port(31999)).await;
    let again = event(&cluster, reason, |event| event["series"]["count"] == 2).await;
    assert_eq!(again["metadata"]["uid"], closed["metadata"]["uid"]);
    assert!(sluice.is_running());
    cluster.stop().await;
    sluice.stop()
}

#[test]
fn the_real_api_server_takes_events_from_a_node_proxier() {
    if assets().is_none() || !require_root("the_real_api_server_takes_events_from_a_node_proxier") {
        return;
    }
    let node = ClusterNode::new("real-events");
    node.namespace.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let log = runtime.block_on(events_of_a_node(&node));
        assert!(!log.contains("HTTP 403"), "{log}");
    });
}

#[tokio::test]
async fn a_role_that_is_not_bound_is_named() {
    let Some(assets) = assets() else { return };
    let (logs, _guard) = Logs::capture();
    let cluster = RealCluster::new(assets, "real-nobody").await;
    let kubeconfig = Some(cluster.kubeconfig(NOBODY).write(cluster.folder.join("nobody")));
    let mut source = Source::start(ApiOptions { kubeconfig, node_name: NODE.into(), ..ApiOptions::default() });
    for resource in ["services", "endpointslices", "nodes"] {
        let hint = format!("the verbs list and watch on {resource} are needed");
        source.while_not("the right that is missing", || logs.count(&hint) == 1).await;
        let told = format!("cannot watch resource {resource:?}");
        assert_eq!(logs.count(&told), 1, "{}", logs.text());
    }
    assert_eq!(source.view.swaps, [0, 0, 0]);
}

/// As `kubectl apply --server-side --validate=strict` does.
async fn apply_strictly(client: &Client, object: &Value) -> Result<(), kube::Error> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let types = TypeMeta { api_version: text(&object["apiVersion"]), kind: text(&object["kind"]) };
    let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(types).unwrap());
    let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let how = PatchParams::apply("sluice-test").force().validation_strict();
    api.patch(&text(&object["metadata"]["name"]), &how, &Patch::Apply(object)).await.map(drop)
}

/// Those that the chart makes, with the defaults of the server's own admission.
#[tokio::test]
async fn the_real_api_server_takes_the_manifests() {
    let Some(assets) = assets() else { return };
    let cluster = RealCluster::new(assets, "real-manifests").await;
    let client = cluster.client().await;
    for text in [include_str!("../deploy/sluice-iptables.yaml"), include_str!("../deploy/sluice-ipvs.yaml")] {
        let objects: Vec<Value> = serde_norway::Deserializer::from_str(text).map(|it| Value::deserialize(it).unwrap()).collect();
        let objects: Vec<_> = objects.into_iter().filter(|object| !object.is_null()).collect();
        assert_eq!(objects.len(), 4, "{objects:#?}");
        for object in &objects {
            let deadline = Instant::now() + Duration::from_secs(30);
            // A server just started still makes kube-system and its priority classes.
            while let Err(error) = apply_strictly(&client, object).await {
                assert!(Instant::now() < deadline, "{object:#}: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        let mut mistaken = objects.iter().find(|object| object["kind"] == "DaemonSet").unwrap().clone();
        mistaken["spec"]["template"]["spec"]["hostNetwrk"] = true.into();
        assert!(apply_strictly(&client, &mistaken).await.is_err(), "it is strict");
    }
}
