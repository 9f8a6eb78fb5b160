//! What the metrics server shows in tests, and a server in the background.
#![allow(dead_code, reason = "each test crate uses the part it needs")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use sluice::serve::http::{Error, Limits};
use sluice::serve::status::metrics_routes;
use sluice::serve::{Configz, Handler, Metrics, Pages, Server};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::client::in_time;

pub const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A server in the background; it ends with the test.
pub struct Running {
    pub address: SocketAddr,
    pub shutdown: watch::Sender<bool>,
    pub task: JoinHandle<Result<(), Error>>,
}

pub async fn start(handler: Handler, limits: Limits) -> Running {
    let server = Server::new("test", Some(LOCAL), handler).limits(limits);
    let mut bound = server.bound();
    let (shutdown, fired) = watch::channel(false);
    let task = tokio::spawn(server.run(fired));
    let address = in_time(bound.wait_for(Option::is_some)).await.unwrap().unwrap();
    Running { address, shutdown, task }
}

/// Pages as of a plain start.
pub fn pages(metrics: Arc<Metrics>) -> Pages {
    Pages {
        metrics,
        mode: "iptables",
        configz: Configz::default(),
        flags: Vec::new(),
        flagz: true,
        statusz: true,
        profiling: false,
        set_verbosity: Box::new(|_| {}),
    }
}

pub async fn start_pages(pages: Pages) -> Running {
    start(metrics_routes(pages), Limits::default()).await
}
