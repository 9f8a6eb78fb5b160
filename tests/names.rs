//! An API server that is given by name: who is asked for its address, and what is done when nobody knows it or it
//! changes. The proxy has files of its own at /etc/hosts and /etc/resolv.conf.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

#[path = "../e2e/apiserver/mod.rs"]
mod apiserver;
mod cluster;
mod dns;
mod scenario;
mod support;

use std::fs;
use std::net::{Ipv4Addr, TcpListener};

use apiserver::ApiServer;
use cluster::kubeconfig::Kubeconfig;
use cluster::objects::{node, service, slices};
use cluster::{ClusterNode, count_lines, wait_for_line};
use dns::DnsServer;
use support::netns::Namespace;
use support::proxy::{BINARY, Sluice, common_flags};
use support::{PATIENCE, require_root, wait_until};

/// Of the names that nobody has.
const NAME: &str = "api.sluice.test";

/// A shell's words: what follows sees the first two as its hosts and resolv.conf.
const WITH_FILES: &str = "mount --bind \"$1\" /etc/hosts && mount --bind \"$2\" /etc/resolv.conf && shift 2 && exec \"$@\"";

/// A node whose API server has one Service, and the files that say where that server is.
struct Named {
    node: ClusterNode,
    server: ApiServer,
    port: u16,
}

impl Named {
    fn new(test: &str) -> Self {
        let node_of = ClusterNode::new(test);
        let listener = node_of.listen();
        let port = listener.local_addr().unwrap().port();
        let server = ApiServer::start_on(listener);
        server.put(node("z1"));
        let this = Self { node: node_of, server, port };
        this.put(80);
        this.say_hosts("");
        this.say_dns("");
        this
    }

    /// The Service at another port.
    fn put(&self, port: u16) {
        self.server.put(service("web", 1, port));
        for slice in slices("web", &[5, 6]) {
            self.server.put(slice);
        }
    }

    /// The files change in place: what is mounted is the file, not its name.
    fn say_hosts(&self, text: &str) {
        fs::write(self.node.scratch.file("hosts"), text).unwrap();
    }

    fn say_dns(&self, text: &str) {
        fs::write(self.node.scratch.file("resolv.conf"), text).unwrap();
    }

    fn wait_for_rules(&self, what: &str) {
        let of = |resource| self.server.objects(resource);
        let objects: Vec<_> = ["services", "endpointslices", "nodes"].into_iter().flat_map(of).collect();
        self.node.wait_for_rules_of(what, PATIENCE, &objects);
    }
}

/// The proxy, told that the server is `name`.
fn start<'a>(node_of: &'a ClusterNode, name: &str, port: u16) -> Sluice<'a> {
    let kubeconfig = Kubeconfig::new(&format!("http://{name}:{port}"));
    let mut command = node_of.namespace.command("unshare");
    command.args(["--mount", "sh", "-c", WITH_FILES, "sh"]);
    command.args([node_of.scratch.file("hosts"), node_of.scratch.file("resolv.conf")]);
    command.arg(BINARY).args(common_flags()).args(node_of.kubeconfig(&kubeconfig));
    Sluice::spawn(&node_of.namespace, &node_of.scratch, command)
}

fn listen(namespace: &Namespace, address: &str) -> TcpListener {
    namespace.run(|| TcpListener::bind(address).unwrap())
}

/// Nobody answers DNS here: who asked for an IPv6 address too would wait.
#[test]
fn the_hosts_file_is_enough() {
    if !require_root("names: /etc/hosts") {
        return;
    }
    let named = Named::new("names-hosts");
    named.say_hosts(&format!("127.0.0.1 localhost\n127.0.0.1 kubernetes {NAME} # the API server\n"));
    let mut sluice = start(&named.node, NAME, named.port);
    sluice.wait_in_force();
    named.wait_for_rules("by /etc/hosts");
    let log = sluice.stop();
    assert!(log.contains(&format!("API server: http://{NAME}:")) && !log.contains("WARN"), "{log}");
}

#[test]
fn dns_is_asked_as_resolv_conf_says() {
    if !require_root("names: DNS") {
        return;
    }
    let named = Named::new("names-dns");
    let dns = DnsServer::start(&named.node.namespace);
    dns.knows(NAME, Ipv4Addr::LOCALHOST);
    named.say_dns("nameserver 127.0.0.1\nsearch nowhere.test sluice.test\noptions ndots:1\n");
    let mut sluice = start(&named.node, "api", named.port);
    sluice.wait_in_force();
    named.wait_for_rules("by DNS");
    let asked = dns.asked();
    assert!(asked.iter().any(|name| name == "api.nowhere.test") && asked.iter().any(|name| name == NAME), "{asked:?}");
    assert!(!sluice.stop().contains("WARN"));
}

/// The address may be known only later, and another one later still.
#[test]
fn a_name_is_resolved_anew_until_it_leads_to_the_server() {
    if !require_root("names: changes") {
        return;
    }
    let mut named = Named::new("names-change");
    let sluice = start(&named.node, NAME, named.port);
    let unknown =
        ["WARN", "API server http://api.sluice.test:", "api.sluice.test is not in /etc/hosts", "the node keeps its rules"];
    wait_for_line(&sluice, &[&unknown[..], &["asked 127.0.0.1, of /etc/resolv.conf"]].concat());

    // A server whose address is not 127.0.0.1, in a resolv.conf that is new too.
    let dns = DnsServer::start_at(&named.node.namespace, "127.0.0.53");
    named.say_dns("nameserver 127.0.0.53\n");
    wait_until("the new server is asked", PATIENCE, || !dns.asked().is_empty());
    named.node.assert_untouched();
    dns.knows(NAME, Ipv4Addr::LOCALHOST);
    named.wait_for_rules("the name is known");
    wait_for_line(&sluice, &["API server http://api.sluice.test:", "answers again"]);

    named.server.stop();
    dns.knows(NAME, Ipv4Addr::new(127, 0, 0, 2));
    let elsewhere = listen(&named.node.namespace, &format!("127.0.0.2:{}", named.port));
    named.server.serve_on(elsewhere);
    named.put(81);
    named.wait_for_rules("the server moved");
    let log = sluice.stop();
    assert_eq!(count_lines(&log, &unknown), 1, "{log}");
}

#[test]
fn a_name_that_dns_does_not_have_is_told_as_that() {
    if !require_root("names: NXDOMAIN") {
        return;
    }
    let named = Named::new("names-none");
    let dns = DnsServer::start(&named.node.namespace);
    named.say_dns("nameserver 127.0.0.1\n");
    let sluice = start(&named.node, NAME, named.port);
    wait_for_line(&sluice, &["WARN", NAME, "asked 127.0.0.1, of /etc/resolv.conf", "no such name"]);
    assert!(dns.asked().iter().all(|name| name == NAME));
    sluice.stop();
}
