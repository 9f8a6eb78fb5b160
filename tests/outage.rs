//! The API server goes and comes back: the rules stay as they are meanwhile, and the first change after its return
//! is programmed within two seconds. kube-proxy, which backs off without an eye on that, takes 33 to 57.
//!
//! The time is real: from the moment the server answers again to the rules in both families.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

#[path = "../e2e/apiserver/mod.rs"]
mod apiserver;
mod cluster;
mod scenario;
mod support;

use std::time::{Duration, Instant};

use apiserver::{ApiServer, Break, WatchList};
use cluster::objects::{NAMESPACE, cluster_ip, node, service, slice_names, slices};
use cluster::{ClusterNode, count_lines, wait_for_line};
use support::proxy::Sluice;
use support::{PATIENCE, require_root, wait_until};

/// What the project promises.
const PROMISED: Duration = Duration::from_secs(2);
/// Long enough for the back-off of a lost connection to be at its longest.
const OUTAGE: Duration = Duration::from_secs(4);

/// A node with rules, and its server.
struct Programmed<'a> {
    node: &'a ClusterNode,
    server: ApiServer,
    sluice: Sluice<'a>,
    rules: String,
}

impl<'a> Programmed<'a> {
    /// Services `web` and `old` with endpoints.
    fn new(node_of: &'a ClusterNode, prepare: impl FnOnce(&ApiServer)) -> Self {
        let server = ApiServer::start_on(node_of.listen());
        prepare(&server);
        for object in [service("web", 1, 80), service("old", 2, 80), node("z1")] {
            server.put(object);
        }
        for object in slices("web", &[5, 6]).into_iter().chain(slices("old", &[7])) {
            server.put(object);
        }
        let sluice = node_of.start(&[format!("--master={}", server.url())]);
        let this = Self { node: node_of, server, sluice, rules: String::new() };
        this.wait_for_rules("the start");
        Self { rules: this.node.rules(), ..this }
    }

    fn wait_for_rules(&self, what: &str) {
        let of = |resource| self.server.objects(resource);
        let objects: Vec<_> = ["services", "endpointslices", "nodes"].into_iter().flat_map(of).collect();
        self.node.wait_for_rules_of(what, PATIENCE, &objects);
    }

    /// What nobody tells the node: a Service goes, another comes.
    fn change_unseen(&self) {
        self.server.delete("services", NAMESPACE, "old");
        for name in slice_names("old") {
            self.server.delete("endpointslices", NAMESPACE, &name);
        }
        self.server.put(service("new", 3, 80));
        for object in slices("new", &[8]) {
            self.server.put(object);
        }
    }

    /// The rules are looked at again and again for the time of an outage.
    fn stays(&self, condition: impl Fn() -> bool) {
        let begun = Instant::now();
        wait_until("the outage is over", PATIENCE, || {
            assert_eq!(self.rules, self.node.rules(), "the rules changed without a server");
            begun.elapsed() > OUTAGE && condition()
        });
        assert!(self.sluice.is_healthy(), "without a server the node's rules still work");
    }

    fn restart(&mut self) {
        self.node.namespace.run(|| self.server.restart());
    }

    /// The first change after the return, and the time until it and what was missed are in the rules.
    fn returned(&self, how: &str, since: Instant) {
        self.server.put(service("first", 4, 80));
        let [old, new, first] = [2, 3, 4].map(|number| format!("-d {}/32", cluster_ip(number)));
        let has = |rules: &str| rules.contains("-A KUBE-SERVICES") && rules.contains("sluice-test/first:http");
        wait_until("the first change", PATIENCE, || {
            let rules = self.node.rules();
            has(&rules) && rules.contains(&first) && rules.contains(&new) && !rules.contains(&old)
        });
        wait_until("the first change in both families", PATIENCE, || self.node.all(|rules| rules.contains("test/first:http")));
        let took = since.elapsed();
        println!("{how}: the first change was programmed {took:.2?} after the server's return");
        assert!(took < PROMISED, "{how}: {took:.2?} from the server's return to the first change");
        self.wait_for_rules("after the return");
    }

    /// Ends the proxy; its log must tell of so many outages, each in one line for its begin and one for its end.
    fn end(self, outages: usize) -> String {
        let log = self.sluice.stop();
        println!("{log}");
        assert_eq!(count_lines(&log, &["WARN", "API server http://", "the node keeps its rules"]), outages, "{log}");
        assert_eq!(count_lines(&log, &["INFO", "API server http://", "answers again after"]), outages, "{log}");
        log
    }
}

#[test]
fn a_server_that_was_stopped() {
    if !require_root("a_server_that_was_stopped") {
        return;
    }
    let node = ClusterNode::new("outage-stopped");
    let mut it = Programmed::new(&node, |_| {});
    it.server.stop();
    it.change_unseen();
    it.stays(|| true);
    let back = Instant::now();
    it.restart();
    it.returned("stopped", back);
    assert_eq!(it.server.lists("services"), 1, "where it was is still known to the server");
    let log = it.end(1);
    assert_eq!(count_lines(&log, &["Connection refused"]), 1, "{log}");
}

#[test]
fn a_server_that_forgot_its_history() {
    if !require_root("a_server_that_forgot_its_history") {
        return;
    }
    for mode in [WatchList::Supported, WatchList::Refused] {
        let node = ClusterNode::new(&format!("outage-gone-{mode:?}").to_lowercase());
        let mut it = Programmed::new(&node, |server| server.set_watch_list(mode));
        let before = it.server.lists("services");
        it.server.stop();
        it.change_unseen();
        it.server.compact();
        it.stays(|| true);
        let back = Instant::now();
        it.restart();
        it.returned(&format!("stopped and compacted, watch-list {mode:?}"), back);
        assert_eq!(it.server.lists("services"), before + 1, "one list");
        assert_eq!(it.server.lists("endpointslices"), before + 1, "one list");
        let log = it.end(1);
        assert_eq!(count_lines(&log, &["services: ", "no longer knows position", "listing anew"]), 1, "{log}");
    }
}

#[test]
fn connections_that_are_cut() {
    if !require_root("connections_that_are_cut") {
        return;
    }
    let node = ClusterNode::new("outage-cut");
    let it = Programmed::new(&node, |_| {});
    // Cut once, the server is there all the time.
    let back = Instant::now();
    it.server.drop_connections();
    it.server.put(service("web", 1, 81));
    wait_until("the change", PATIENCE, || it.node.all(|rules| rules.contains("--dport 81 ")));
    println!("cut once: a change was programmed after {:.2?}", back.elapsed());
    assert!(back.elapsed() < PROMISED, "{:?}", back.elapsed());
    // Each connection is cut as soon as it is made.
    it.wait_for_rules("the change");
    let it = Programmed { rules: node.rules(), ..it };
    it.server.refuse(true);
    // What changes earlier may still go out on a connection that is about to be cut.
    wait_for_line(&it.sluice, &["the node keeps its rules"]);
    it.change_unseen();
    it.stays(|| true);
    let back = Instant::now();
    it.server.refuse(false);
    it.returned("cut", back);
    it.end(1);
}

#[test]
fn a_server_that_stalls() {
    if !require_root("a_server_that_stalls") {
        return;
    }
    let node = ClusterNode::new("outage-stalled");
    let it = Programmed::new(&node, |_| {});
    // Watches stay silent; half of the outage later they are cut and the new ones get no answer.
    it.server.stall(true);
    it.change_unseen();
    it.stays(|| true);
    it.server.drop_connections();
    it.stays(|| true);
    let back = Instant::now();
    it.server.stall(false);
    it.returned("stalled", back);
    it.end(0);
}

#[test]
fn a_server_that_refuses_while_it_starts() {
    if !require_root("a_server_that_refuses_while_it_starts") {
        return;
    }
    let node = ClusterNode::new("outage-starting");
    let mut it = Programmed::new(&node, |_| {});
    it.server.stop();
    it.change_unseen();
    wait_for_line(&it.sluice, &["the node keeps its rules"]);
    it.server.fail(usize::MAX, 403, None);
    it.restart();
    it.stays(|| true);
    let back = Instant::now();
    it.server.fail(0, 403, None);
    it.returned("refused everybody at first", back);
    let log = it.end(1);
    assert_eq!(count_lines(&log, &["WARN", "watch services: HTTP 403", "what is known stays"]), 1, "{log}");
}

#[test]
fn a_list_that_breaks_off_after_the_outage() {
    if !require_root("a_list_that_breaks_off_after_the_outage") {
        return;
    }
    for how in [Break::Cut, Break::End] {
        let node = ClusterNode::new(&format!("outage-half-{how:?}").to_lowercase());
        let mut it = Programmed::new(&node, |_| {});
        it.server.stop();
        it.change_unseen();
        it.server.compact();
        // Less than what there is, so that what is missing seems to be gone.
        it.server.break_lists_after(Some((1, how)));
        wait_for_line(&it.sluice, &["the node keeps its rules"]);
        it.restart();
        it.stays(|| it.server.lists("services") >= 4 && it.server.lists("endpointslices") >= 4);
        let back = Instant::now();
        it.server.break_lists_after(None);
        it.returned(&format!("lists broke off, {how:?}"), back);
        let log = it.end(1);
        assert_eq!(count_lines(&log, &["list and watch services: works again after"]), 1, "{log}");
        assert_eq!(count_lines(&log, &["list services: ", "broke off", "what is known stays"]), 1, "{log}");
    }
}

#[test]
fn sigterm_during_an_outage() {
    if !require_root("sigterm_during_an_outage") {
        return;
    }
    let node = ClusterNode::new("outage-sigterm");
    let mut it = Programmed::new(&node, |_| {});
    it.server.stop();
    wait_for_line(&it.sluice, &["the node keeps its rules"]);
    let Programmed { sluice, rules, .. } = it;
    let begun = Instant::now();
    sluice.stop();
    assert!(begun.elapsed() < PROMISED, "{:?}", begun.elapsed());
    assert_eq!(rules, node.rules());
}
