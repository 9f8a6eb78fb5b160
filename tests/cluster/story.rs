//! The life of a few objects as the node's rules tell it, on an API server of any make.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::ClusterNode;
use super::objects::{NAMESPACE, cluster_ip, labelled, node, service, slice_names, slices};
use crate::scenario::Cluster;
use crate::support::proxy::Sluice;

/// The real API server may refuse everybody for some seconds after its start; the longest pause between two tries is
/// half a minute.
const LIMIT: Duration = Duration::from_mins(1);

/// The rules follow: objects there before the start, updates, labels, deletions, an outage.
pub async fn rules_follow<'a>(
    cluster: &mut impl Cluster,
    node_of: &'a ClusterNode,
    start: impl FnOnce() -> Sluice<'a>,
) -> String {
    cluster.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})).await;
    cluster.put(node("z1")).await;
    cluster.put(service("web", 1, 80)).await;
    put_all(cluster, slices("web", &[5, 6])).await;
    cluster.put(service("empty", 2, 80)).await;

    let mut sluice = start();
    sluice.wait_in_force();
    check(cluster, node_of, "what there was").await;
    assert!(node_of.all(|rules| rules.contains(":8080") && rules.contains("has no endpoints")), "{}", node_of.rules());

    cluster.put(service("web", 1, 81)).await;
    check(cluster, node_of, "another port").await;
    put_all(cluster, slices("web", &[6, 7, 8])).await;
    check(cluster, node_of, "other endpoints").await;
    put_all(cluster, slices("empty", &[9])).await;
    check(cluster, node_of, "a first endpoint").await;
    labels(cluster, node_of).await;

    for name in slice_names("web") {
        cluster.delete("endpointslices", &name).await;
    }
    check(cluster, node_of, "slices deleted").await;
    cluster.delete("services", "empty").await;
    check(cluster, node_of, "a service deleted").await;
    assert!(!node_of.rules().contains(&format!("{}/32", cluster_ip(2))));

    let before = node_of.rules();
    cluster.stop().await;
    assert_eq!(before, node_of.rules(), "an outage changes nothing");
    cluster.start().await;
    put_all(cluster, slices("web", &[5])).await;
    cluster.put(service("after", 3, 90)).await;
    check(cluster, node_of, "changes after an outage").await;
    assert!(sluice.is_running());
    sluice.stop()
}

async fn labels(cluster: &impl Cluster, node_of: &ClusterNode) {
    let there = |address: &str| node_of.rules().contains(address);
    let address = format!("{}/32", cluster_ip(1));
    cluster.put(labelled(service("web", 1, 81), "service.kubernetes.io/service-proxy-name", "else")).await;
    check(cluster, node_of, "a service given to another proxy").await;
    assert!(!there(&address));
    cluster.put(service("web", 1, 81)).await;
    check(cluster, node_of, "a service given back").await;
    assert!(there(&address));
    for slice in slices("web", &[6, 7, 8]) {
        cluster.put(labelled(slice, "service.kubernetes.io/headless", "")).await;
    }
    check(cluster, node_of, "slices made headless").await;
    assert!(!there("10.244.11.6:8080"));
    put_all(cluster, slices("web", &[6, 7, 8])).await;
    check(cluster, node_of, "slices given back").await;
    assert!(there("10.244.11.6:8080"));
}

async fn put_all(cluster: &impl Cluster, objects: impl IntoIterator<Item = Value>) {
    for object in objects {
        cluster.put(object).await;
    }
}

/// Looks at the objects again and again: the real API server makes some of its own, in its own time.
async fn check(cluster: &impl Cluster, node_of: &ClusterNode, what: &str) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let differences = node_of.differences_from(&cluster.objects().await, Duration::from_secs(2));
        if differences.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: the rules are not those of the objects:\n{differences}");
    }
}
