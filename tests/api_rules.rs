//! From our own API server to the rules of a node, by the built `sluice` in a namespace: when the first rules come,
//! what follows which change, what is done about objects and answers that are no good.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

#[path = "../e2e/apiserver/mod.rs"]
mod apiserver;
mod cluster;
mod scenario;
mod support;

use std::fs;
use std::time::{Duration, Instant};

use apiserver::{ApiServer, Break, WatchList};
use cluster::certificates::Authority;
use cluster::kubeconfig::Kubeconfig;
use cluster::objects::{NAMESPACE, node, service, slices, slices_with};
use cluster::{ClusterNode, count_lines, story, wait_for_line};
use scenario::Cluster;
use serde_json::{Value, json};
use sluice::source::kube::ApiOptions;
use support::proxy::{BINARY, Sluice, common_flags};
use support::{PATIENCE, require_root, wait_until};

/// More than a proxy waits for a Node that does not come, and than it waits between two tries.
const NODE_PATIENCE: Duration = Duration::from_secs(45);

/// Our server and the node it serves.
struct Ours<'a> {
    node: &'a ClusterNode,
    server: ApiServer,
}

impl<'a> Ours<'a> {
    fn new(node: &'a ClusterNode) -> Self {
        Self { node, server: ApiServer::start_on(node.listen()) }
    }

    fn put(&self, objects: impl IntoIterator<Item = Value>) {
        for object in objects {
            self.server.put(object);
        }
    }

    fn start(&self) -> Sluice<'a> {
        self.node.start(&[format!("--master={}", self.server.url())])
    }

    fn objects(&self) -> Vec<Value> {
        ["services", "endpointslices", "nodes"].into_iter().flat_map(|resource| self.server.objects(resource)).collect()
    }

    fn wait_for_rules(&self, what: &str) {
        self.node.wait_for_rules_of(what, PATIENCE, &self.objects());
    }
}

impl Cluster for Ours<'_> {
    fn options(&self) -> ApiOptions {
        unreachable!("the binary has flags")
    }

    async fn put(&self, object: Value) {
        self.server.put(object);
    }

    async fn delete(&self, resource: &str, name: &str) {
        self.server.delete(resource, NAMESPACE, name);
    }

    async fn objects(&self) -> Vec<Value> {
        Self::objects(self)
    }

    async fn stop(&mut self) {
        self.server.stop();
    }

    async fn start(&mut self) {
        self.node.namespace.run(|| self.server.restart());
    }
}

#[tokio::test]
async fn the_rules_follow_the_objects() {
    if !require_root("the_rules_follow_the_objects") {
        return;
    }
    let node = ClusterNode::new("api-story");
    let mut ours = Ours::new(&node);
    ours.server.require_token("secret");
    let token = node.scratch.file("token");
    fs::write(&token, "secret\n").unwrap();
    let kubeconfig = node.kubeconfig(&Kubeconfig::new(&ours.server.url()).token_file(&token));
    story::rules_follow(&mut ours, &node, || node.start(&kubeconfig)).await;
}

/// Starts against a server that keeps back a part of the objects in the way of `withhold`, and lets them through once
/// `tried` says that the rest has had its time.
fn withheld(test: &str, withhold: impl Fn(&ApiServer), tried: impl Fn(&ApiServer) -> bool, let_through: impl Fn(&ApiServer)) {
    if !require_root(test) {
        return;
    }
    let cluster_node = ClusterNode::new(test);
    let ours = Ours::new(&cluster_node);
    ours.put([service("web", 1, 80), service("dns", 2, 53), service("db", 3, 5432), node("z1")]);
    ours.put(slices("web", &[5, 6]));
    withhold(&ours.server);
    let sluice = ours.start();
    wait_until("the other lists are in", PATIENCE, || {
        cluster_node.assert_untouched();
        tried(&ours.server)
    });
    cluster_node.assert_untouched();
    let begun = Instant::now();
    let_through(&ours.server);
    ours.wait_for_rules("after everything came");
    println!("{test}: rules {:?} after everything could come\n{}", begun.elapsed(), sluice.stop());
}

#[test]
fn half_a_list_of_services_programs_nothing() {
    // Two of three services arrive; the other kinds have no more than two objects.
    let broken = |server: &ApiServer| server.break_lists_after(Some((2, Break::Cut)));
    withheld("api-half-services", broken, |s| s.lists("services") >= 4, |s| s.break_lists_after(None));
}

#[test]
fn half_a_list_of_services_by_pages_programs_nothing() {
    let broken = |server: &ApiServer| {
        server.set_watch_list(WatchList::Refused);
        server.break_lists_after(Some((2, Break::End)));
    };
    withheld("api-half-pages", broken, |s| s.pages("services") >= 3, |s| s.break_lists_after(None));
}

#[test]
fn slices_that_are_late_are_waited_for() {
    // The request stands unanswered while the others have their answers and keep being served.
    let quiet = |server: &ApiServer| {
        server.hold("endpointslices", true);
        server.set_bookmark_interval(Duration::from_millis(50));
    };
    let begun = Instant::now();
    let others = |s: &ApiServer| s.watches("services") > 0 && s.watches("nodes") > 0;
    let tried = |s: &ApiServer| others(s) && begun.elapsed() > Duration::from_secs(3);
    withheld("api-late-slices", quiet, tried, |s| s.hold("endpointslices", false));
}

#[test]
fn services_that_may_not_be_read_program_nothing() {
    let refused = |s: &ApiServer| s.requests().iter().filter(|r| r.status == 403).count() >= 3;
    withheld("api-no-services", |s| s.forbid("services", true), refused, |s| s.forbid("services", false));
}

#[test]
fn a_node_list_that_is_refused_is_waited_for() {
    let refused = |s: &ApiServer| s.requests().iter().filter(|r| r.status == 403).count() >= 3;
    withheld("api-no-nodes", |s| s.forbid("nodes", true), refused, |s| s.forbid("nodes", false));
}

#[test]
fn a_node_that_may_not_be_read_is_done_without_and_taken_in_later() {
    if !require_root("a_node_that_may_not_be_read_is_done_without_and_taken_in_later") {
        return;
    }
    let cluster_node = ClusterNode::new("api-node-forbidden");
    let ours = Ours::new(&cluster_node);
    let mut web = service("web", 1, 80);
    web["spec"]["trafficDistribution"] = json!("PreferSameZone");
    ours.put([web, node("z1")]);
    ours.put(hinted());
    ours.server.forbid("nodes", true);
    let sluice = ours.start();
    wait_for_line(&sluice, &["WARN", "nodes: HTTP 403", "this node's zone", "list and watch on nodes", "system:node-proxier"]);
    cluster_node.assert_untouched();
    wait_until("rules without a node", NODE_PATIENCE, || cluster_node.all(|rules| rules.contains("-j KUBE-SERVICES")));
    let without_node: Vec<_> = ours.objects().into_iter().filter(|object| object["kind"] != "Node").collect();
    cluster_node.wait_for_rules_of("without a node", PATIENCE, &without_node);
    wait_for_line(&sluice, &["WARN", "wait for Node node-a: it did not come"]);
    ours.server.forbid("nodes", false);
    // The longest pause between two tries.
    cluster_node.wait_for_rules_of("with its node", NODE_PATIENCE, &ours.objects());
    let log = sluice.stop();
    assert_eq!(count_lines(&log, &["HTTP 403"]), 1, "{log}");
    assert_eq!(count_lines(&log, &["nodes: works again"]), 1, "{log}");
}

#[test]
fn a_malformed_object_does_not_hold_up_the_others() {
    if !require_root("a_malformed_object_does_not_hold_up_the_others") {
        return;
    }
    let cluster_node = ClusterNode::new("api-malformed");
    let ours = Ours::new(&cluster_node);
    let mut bad = service("bad", 9, 80);
    bad["spec"]["ports"][0]["port"] = json!("eighty");
    ours.put([service("web", 1, 80), bad.clone(), node("z1")]);
    ours.put(slices("web", &[5, 6]));
    let sluice = ours.start();
    let good = || ours.objects().into_iter().filter(|object| object["metadata"]["name"] != "bad").collect::<Vec<_>>();
    let check = |what| cluster_node.wait_for_rules_of(what, PATIENCE, &good());
    check("the good ones at the start");
    ours.put([bad]);
    ours.put([service("late", 2, 81)]);
    check("a good one after a bad one");
    ours.put([service("bad", 9, 80)]);
    ours.wait_for_rules("the bad one made good");
    let log = sluice.stop();
    assert_eq!(count_lines(&log, &["Service sluice-test/bad: ", "eighty", "left out"]), 1, "{log}");
}

/// Endpoints of two zones, each for its own.
fn hinted() -> [Value; 2] {
    let of_zone = |zone: &str| json!({"zone": zone, "hints": {"forZones": [{"name": zone}]}});
    slices_with("web", &[(5, of_zone("z1")), (6, of_zone("z2"))])
}

#[test]
fn a_node_that_comes_late_brings_rules_at_once_and_the_right_ones() {
    if !require_root("a_node_that_comes_late_brings_rules_at_once_and_the_right_ones") {
        return;
    }
    let cluster_node = ClusterNode::new("api-late-node");
    let ours = Ours::new(&cluster_node);
    let mut web = service("web", 1, 80);
    web["spec"]["trafficDistribution"] = json!("PreferSameZone");
    ours.put([web]);
    ours.put(hinted());
    let started = Instant::now();
    let sluice = ours.start();
    let listed = || ["services", "endpointslices", "nodes"].iter().all(|resource| ours.server.watches(resource) > 0);
    wait_until("all is listed, but no node", PATIENCE, || listed() && started.elapsed() > Duration::from_secs(3));
    cluster_node.assert_untouched();
    wait_for_line(&sluice, &["WARN", "wait for Node node-a: there is no such object"]);
    let begun = Instant::now();
    ours.put([node("z1")]);
    wait_until("the rules", Duration::from_secs(5), || {
        let rules = cluster_node.rules();
        assert!(!rules.contains("10.244.11.6:8080"), "an endpoint of another zone:\n{rules}");
        assert!(!rules.contains("[fd00:10:244:b::6]:8080"), "an endpoint of another zone:\n{rules}");
        rules.contains("10.244.11.5:8080") && rules.contains("[fd00:10:244:b::5]:8080")
    });
    println!("rules {:?} after the node came", begun.elapsed());
    assert!(started.elapsed() < Duration::from_secs(25), "that was the end of the patience, not the node");
    ours.wait_for_rules("with a node");
    ours.put([node("z2")]);
    ours.wait_for_rules("the node moved to another zone");
    let log = sluice.stop();
    assert_eq!(count_lines(&log, &[" rules are in force"]), 2, "{log}");
    assert_eq!(count_lines(&log, &["wait for Node"]), 1, "{log}");
}

#[test]
fn what_may_not_be_read_is_named_and_heals() {
    if !require_root("what_may_not_be_read_is_named_and_heals") {
        return;
    }
    let cluster_node = ClusterNode::new("api-forbidden");
    let ours = Ours::new(&cluster_node);
    ours.put([service("web", 1, 80), node("z1")]);
    ours.put(slices("web", &[5, 6]));
    let mut sluice = ours.start();
    ours.wait_for_rules("before");
    let before = cluster_node.rules();
    ours.server.forbid("endpointslices", true);
    ours.server.drop_connections();
    wait_for_line(&sluice, &["watch endpointslices", "403", "cannot watch resource \"endpointslices\" in API group"]);
    let known = ours.objects();
    ours.put(slices("web", &[7]));
    assert_eq!(before, cluster_node.rules());
    // What may be read is still followed.
    let port = service("web", 1, 81);
    ours.put([port.clone()]);
    let known: Vec<_> = known.into_iter().filter(|o| o["kind"] != "Service").chain([port]).collect();
    cluster_node.wait_for_rules_of("a service while slices are forbidden", PATIENCE, &known);
    assert!(sluice.is_running() && sluice.is_healthy());
    ours.server.forbid("endpointslices", false);
    ours.wait_for_rules("permitted again");
    wait_for_line(&sluice, &["endpointslices", "works again"]);
    let log = sluice.stop();
    assert_eq!(count_lines(&log, &["HTTP 403"]), 1, "{log}");
    println!("{log}");
}

#[test]
fn a_pod_finds_its_server_by_its_service_account() {
    if !require_root("a_pod_finds_its_server_by_its_service_account") {
        return;
    }
    let cluster_node = ClusterNode::new("api-in-cluster");
    let ours = Ours::new(&cluster_node);
    let authority = Authority::new("cluster");
    ours.server.use_tls(authority.server(&["127.0.0.1"]).server_config(None));
    ours.server.require_token("of-the-pod");
    ours.put([service("web", 1, 80), node("z1")]);
    ours.put(slices("web", &[5, 6]));
    let account = cluster_node.scratch.file("serviceaccount");
    fs::create_dir(&account).unwrap();
    for (name, text) in [("ca.crt", authority.pem()), ("token", "of-the-pod".into()), ("namespace", "kube-system".into())] {
        fs::write(account.join(name), text).unwrap();
    }
    // `ip netns exec` makes a mount namespace; what is mounted there is seen by nobody else.
    let script = r#"set -e; account=$1; shift
        mount -t tmpfs tmpfs /run; mkdir -p /var/run/secrets/kubernetes.io
        cp -r "$account" /var/run/secrets/kubernetes.io/serviceaccount; exec "$@""#;
    let url = ours.server.url();
    let port = url.rsplit(':').next().unwrap();
    let mut command = cluster_node.namespace.command("sh");
    command.args(["-c", script, "sh"]).arg(&account).arg(BINARY).args(common_flags());
    command.env("KUBERNETES_SERVICE_HOST", "127.0.0.1").env("KUBERNETES_SERVICE_PORT", port);
    let sluice = Sluice::spawn(&cluster_node.namespace, &cluster_node.scratch, command);
    ours.wait_for_rules("in a pod");
    sluice.stop();
}
