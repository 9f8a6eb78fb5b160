//! The API source over TLS, against our own API server with certificates made for the test: whom it believes, how it
//! says who it is, and what the log says when either is refused.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

#[path = "../e2e/apiserver/mod.rs"]
mod apiserver;
#[path = "cluster/certificates.rs"]
mod certificates;
#[path = "cluster/kubeconfig.rs"]
mod kubeconfig;
mod scenario;

use std::path::PathBuf;
use std::time::Duration;

use apiserver::ApiServer;
use certificates::{Authority, Identity};
use kubeconfig::Kubeconfig;
use scenario::{Logs, NODE, Source, service};
use sluice::source::kube::ApiOptions;

/// A server that speaks TLS as 127.0.0.1, signed for by `authority`.
fn server(authority: &Authority, clients: Option<&Authority>) -> ApiServer {
    let server = ApiServer::start();
    server.use_tls(authority.server(&["127.0.0.1"]).server_config(clients));
    server.put(service("web", 1, 80));
    server
}

/// A source with this kubeconfig, which has been read when the file goes.
struct Connected {
    source: Source,
    file: PathBuf,
}

impl Connected {
    fn new(test: &str, kubeconfig: &Kubeconfig) -> Self {
        let file = kubeconfig.write(std::env::temp_dir().join(format!("sluice-tls-{test}-{}", std::process::id())));
        let kubeconfig = Some(file.clone());
        let options = ApiOptions { kubeconfig, master: None, node_name: NODE.into(), ..ApiOptions::default() };
        Self { source: Source::start(options), file }
    }

    async fn listed(&mut self) {
        self.source.listed().await;
        assert_eq!(self.source.view.port_of("web"), 80);
    }

    /// Waits for the one line that tells of the refusal; nothing must have been listed, nor be repeated in the log.
    async fn refused(&mut self, logs: &Logs, words: &[&str]) {
        let told = || logs.text().lines().any(|line| words.iter().all(|word| line.contains(word)));
        let deadline = std::time::Instant::now() + Duration::from_secs(8);
        let over = || std::time::Instant::now() > deadline;
        self.source.while_not("a line of the log", || told() || over()).await;
        assert!(told(), "no line with {words:?}:\n{}", logs.text());
        assert_eq!(self.source.view.swaps, [0, 0, 0]);
        println!("{}", logs.text());
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

#[tokio::test]
async fn a_known_authority_is_believed() {
    let authority = Authority::new("cluster");
    let server = server(&authority, None);
    assert!(server.url().starts_with("https://"));
    server.require_token("secret");
    let kubeconfig = Kubeconfig::new(&server.url()).authority(&authority).token("secret");
    let mut connected = Connected::new("known", &kubeconfig);
    connected.listed().await;
    server.put(service("web", 1, 81));
    connected.source.until("a change", |view| view.port_of("web") == 81).await;
}

#[tokio::test]
async fn an_unknown_authority_is_not_believed() {
    let (logs, _guard) = Logs::capture();
    let server = server(&Authority::new("cluster"), None);
    server.require_token("secret");
    let kubeconfig = Kubeconfig::new(&server.url()).authority(&Authority::new("another")).token("secret");
    let mut connected = Connected::new("unknown", &kubeconfig);
    connected.refused(&logs, &["WARN", "API server https://127.0.0.1:", "cannot connect", "signed by no authority"]).await;
    connected.source.while_not("some tries", || server.handshake_failures().len() >= 6).await;
    assert!(server.requests().is_empty(), "a token was sent to a server that nobody vouches for");
    assert_eq!(logs.count("the node keeps its rules"), 1, "{}", logs.text());
}

#[tokio::test]
async fn who_need_not_be_believed_is_if_the_kubeconfig_says_so_and_the_log_warns() {
    let (logs, _guard) = Logs::capture();
    let server = server(&Authority::new("cluster"), None);
    let kubeconfig = Kubeconfig::new(&server.url()).insecure();
    Connected::new("insecure", &kubeconfig).listed().await;
    assert_eq!(logs.count("insecure-skip-tls-verify is set: whoever answers at https://127.0.0.1:"), 1, "{}", logs.text());
}

#[tokio::test]
async fn a_certificate_for_another_name_is_not_believed() {
    let (logs, _guard) = Logs::capture();
    let authority = Authority::new("cluster");
    let server = server(&authority, None);
    server.use_tls(authority.server(&["kubernetes.default.svc"]).server_config(None));
    let kubeconfig = Kubeconfig::new(&server.url()).authority(&authority);
    let mut connected = Connected::new("name", &kubeconfig);
    connected.refused(&logs, &["WARN", "certificate not valid for name \"127.0.0.1\"", "kubernetes.default.svc"]).await;
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_client_certificate_is_shown() {
    let (authority, clients) = (Authority::new("cluster"), Authority::new("clients"));
    let server = server(&authority, Some(&clients));
    let of = |identity: &Identity| Kubeconfig::new(&server.url()).authority(&authority).client(identity);
    Connected::new("client", &of(&clients.client("system:kube-proxy"))).listed().await;
}

#[tokio::test]
async fn a_client_certificate_that_is_not_accepted_is_told() {
    let (authority, clients) = (Authority::new("cluster"), Authority::new("clients"));
    let server = server(&authority, Some(&clients));
    let of_nobody = authority.client("system:kube-proxy");
    let cases =
        [("none", None, "wants a client certificate"), ("wrong", Some(&of_nobody), "does not accept our client certificate")];
    for (name, identity, said) in cases {
        let (logs, _guard) = Logs::capture();
        let kubeconfig = Kubeconfig::new(&server.url()).authority(&authority);
        let kubeconfig = identity.map_or(kubeconfig.clone(), |identity| kubeconfig.client(identity));
        let mut connected = Connected::new(&format!("client-{name}"), &kubeconfig);
        connected.refused(&logs, &["WARN", "API server https://127.0.0.1:", said]).await;
    }
    assert!(server.requests().is_empty());
}
