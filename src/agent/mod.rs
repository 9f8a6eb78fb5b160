//! The process: which parts run, how they are joined, and how it ends.
//!
//! Wiring only. Every part is a future in one supervised set: the first that ends, well or badly, ends
//! the process with its name and cause, unless it was told to.

mod addresses;
mod ground;
mod health_ports;
mod rules;

use std::future::Future;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::config::{Config, Source};
use crate::model::Event;
use crate::netlink::NftKernel;
use crate::serve::{self, Health, Metrics, Server, ServiceHealth, status};
use crate::source::{kube, manifests};
use rules::RuleLoop;

/// Events that may wait. A source that is faster than the kernel waits too.
const EVENTS: usize = 1024;

/// Runs the proxy until it is told to stop, or until a part of it cannot go on.
pub fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("start")?;
    let outcome = runtime.block_on(supervise(Arc::new(config)));
    runtime.shutdown_background();
    outcome
}

type Parts = JoinSet<(&'static str, anyhow::Result<()>)>;

async fn supervise(config: Arc<Config>) -> anyhow::Result<()> {
    let signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut kernel = NftKernel::open().context("program rules")?;
    let ground = ground::prepare(&config, &mut kernel)?;
    let metrics = Arc::new(Metrics::new());
    if ground.facts.nfacct {
        metrics.collect_packets(ground::read_counters);
    }
    let health = Health::new(config.sync_period);
    let (service_health, health_servers) = ServiceHealth::new(health.clone());
    let (events, inbox) = mpsc::channel(EVENTS);
    let (stop, stopped) = watch::channel(false);
    let rules = RuleLoop::new(Arc::clone(&config), ground, kernel, rules::Reports { health: health.clone(), metrics: Arc::clone(&metrics), service_health });

    let mut parts = Parts::new();
    spawn(&mut parts, "source", read_objects(Arc::clone(&config), events.clone()));
    spawn(&mut parts, "addresses", addresses::follow(events));
    spawn(&mut parts, "rules", rules.run(inbox, stopped));
    if !config.once {
        let (over, _) = watch::channel(false);
        let served = |server: Server| server.hard_fail(config.bind_address_hard_fail).run(over.subscribe());
        let routes = status::health_routes(health.clone(), Arc::clone(&metrics));
        spawn(&mut parts, "health", serving(served(Server::new("health", config.healthz_bind_address, routes))));
        let routes = status::metrics_routes(metrics, config.rules.mode.as_str());
        spawn(&mut parts, "metrics", serving(served(Server::new("metrics", config.metrics_bind_address, routes))));
        let health_servers = health_servers.run(over.subscribe());
        spawn(&mut parts, "service health", async move {
            health_servers.await;
            Ok(())
        });
        return until_stopped(parts, signals, || health.begin_shutdown(), &stop).await;
    }
    until_stopped(parts, signals, || {}, &stop).await
}

fn spawn(parts: &mut Parts, name: &'static str, part: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
    parts.spawn(async move { (name, part.await) });
}

async fn serving(server: impl Future<Output = Result<(), serve::http::Error>>) -> anyhow::Result<()> {
    Ok(server.await?)
}

async fn read_objects(config: Arc<Config>, events: mpsc::Sender<Event>) -> anyhow::Result<()> {
    match &config.source {
        Source::Manifests(path) => match manifests::follow(path, events).await? {},
        Source::Api { kubeconfig, master } => {
            let node_name = config.node_name.to_string();
            let options = kube::ApiOptions { kubeconfig: kubeconfig.clone(), master: master.clone(), node_name, ..Default::default() };
            match kube::run(options, events).await? {}
        }
    }
}

/// Waits for a signal or for a part to end. After a signal the rules' part finishes what it is doing.
async fn until_stopped(
    mut parts: Parts,
    (mut terminate, mut interrupt): (Signal, Signal),
    begin_shutdown: impl Fn(),
    stop: &watch::Sender<bool>,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping; the rules stay"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping; the rules stay"),
            ended = parts.join_next() => return verdict(ended),
        }
        begin_shutdown();
        stop.send_replace(true);
    }
}

/// Only the rules' part may end well: it was told to, or `--once` is done.
fn verdict(ended: Option<Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>>) -> anyhow::Result<()> {
    match ended {
        Some(Ok(("rules", Ok(())))) => Ok(()),
        Some(Ok((name, Ok(())))) => Err(anyhow!("{name}: ended without being told to")),
        Some(Ok((_, Err(error)))) => Err(error),
        Some(Err(error)) => Err(error).context("a part of the process failed"),
        None => Err(anyhow!("nothing is left running")),
    }
}
