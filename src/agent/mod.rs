//! The process: which parts run, how they are joined, and how it ends.
//!
//! Wiring only. Every part is a future in one supervised set: the first that ends, well or badly, ends
//! the process with its name and cause, unless it was told to.

mod addresses;
mod cleanup;
mod contest;
mod drift;
mod family;
mod flows;
mod ground;
mod health_ports;
mod ipvs_ground;
mod legacy;
mod pace;
mod repair;
mod retry;
mod rules;
#[cfg(test)]
mod testing;
mod upkeep;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, anyhow};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};

pub use cleanup::clean_up;

use crate::config::{Config, Mode, Source};
use crate::model::Event;
use crate::net::Family;
use crate::netlink::NftKernel;
use crate::render;
use crate::serve::http::Shutdown;
use crate::serve::{Health, Metrics, Server, ServiceHealth, status};
use crate::source::{kube, manifests};
use crate::sync::FamilySync;
use rules::{Reports, RuleLoop, Site};

/// Events that may wait. A source that is faster than the kernel waits too.
const EVENTS: usize = 1024;

/// Runs the proxy until it is told to stop, or until a part of it cannot go on.
pub fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("start")?;
    let outcome = runtime.block_on(supervise(Arc::new(config)));
    runtime.shutdown_background();
    if let Some(summary) = outcome? {
        println!("{summary}");
    }
    Ok(())
}

type Parts = JoinSet<(&'static str, anyhow::Result<()>)>;

async fn supervise(config: Arc<Config>) -> anyhow::Result<Option<String>> {
    let signals = Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
    let mut kernel = NftKernel::open().context("program rules")?;
    let ground = ground::prepare(&config, &mut kernel)?;
    legacy::warn_if_used();
    let metrics = Arc::new(Metrics::new());
    if ground.facts.nfacct {
        metrics.collect_packets(ground::read_counters);
    }
    let health = Health::new(config.sync_period);
    let (service_health, health_servers) = ServiceHealth::new(health.clone());
    let reports = Reports { health: health.clone(), metrics: Arc::clone(&metrics), service_health };
    let changes_of_others = Arc::<drift::Changes>::default();
    // Before anything is read: what is changed after the reading is heard.
    let monitor = if config.once { None } else { drift::listen(&mut kernel, config.audit_period) };
    let halt = Arc::<AtomicBool>::default();
    kernel.stop_when(Arc::clone(&halt));
    let syncs = ground.families.iter().map(|&family| sync_of(family, &config, &metrics)).collect::<anyhow::Result<_>>()?;
    let device_news = Arc::<addresses::DeviceNews>::default();
    let site = Site { ground, kernel, drift: Arc::clone(&changes_of_others), device: Arc::clone(&device_news), syncs };
    let rules = RuleLoop::new(Arc::clone(&config), site, reports);

    let (events, inbox) = mpsc::channel(EVENTS);
    // Nobody fires it: servers answer until the process ends, with 503 once it is about to.
    let (_over, open) = watch::channel(false);
    let mut parts = Parts::new();
    let (stop, stopped) = watch::channel(false);
    spawn(&mut parts, "signals", signals.follow(health.clone(), halt, stop));
    spawn(&mut parts, "source", read_objects(Arc::clone(&config), events.clone()));
    let device = (config.rules.mode == Mode::Ipvs).then(|| Arc::clone(&device_news));
    spawn(&mut parts, "addresses", addresses::follow(events, device));
    if let Some(monitor) = monitor {
        let layout = render::layout(&config.rules);
        spawn(&mut parts, "drift", drift::follow(monitor, layout, changes_of_others, Arc::clone(&metrics)));
    }
    if !config.once {
        for server in servers(&config, &health, &metrics) {
            let open = open.clone();
            spawn(&mut parts, server.name(), async move { Ok(server.run(open).await?) });
        }
        spawn(&mut parts, "service health", async move {
            health_servers.run(open).await;
            Ok(())
        });
    }
    until_stopped((rules, inbox), parts, stopped).await
}

/// What programs one family, in the mode that is asked for.
fn sync_of(family: Family, config: &Config, metrics: &Arc<Metrics>) -> anyhow::Result<FamilySync> {
    let sync = FamilySync::new(family, Arc::clone(metrics));
    match config.rules.mode {
        Mode::Iptables => Ok(sync),
        Mode::Ipvs => Ok(sync.with_servers(ipvs_ground::balancer(&config.rules.ipvs)?)),
    }
}

fn servers(config: &Config, health: &Health, metrics: &Arc<Metrics>) -> [Server; 2] {
    let of_health = status::health_routes(health.clone(), Arc::clone(metrics));
    let of_metrics = status::metrics_routes(Arc::clone(metrics), config.rules.mode.as_str());
    let servers = [
        Server::new("health", config.healthz_bind_address, of_health),
        Server::new("metrics", config.metrics_bind_address, of_metrics),
    ];
    servers.map(|server| server.hard_fail(config.bind_address_hard_fail))
}

fn spawn(parts: &mut Parts, name: &'static str, part: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
    parts.spawn(async move { (name, part.await) });
}

async fn read_objects(config: Arc<Config>, events: mpsc::Sender<Event>) -> anyhow::Result<()> {
    match &config.source {
        Source::Manifests(path) => match manifests::follow(path, events).await? {},
        Source::Api { kubeconfig, master } => {
            let node_name = config.node_name.to_string();
            let options =
                kube::ApiOptions { kubeconfig: kubeconfig.clone(), master: master.clone(), node_name, ..Default::default() };
            match kube::run(options, events).await? {}
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// Stops the loop, also where it is busy with the kernel: a transaction that is under way is finished (it does not
    /// wait inside one), and `halt` keeps the next one from being sent.
    async fn follow(mut self, health: Health, halt: Arc<AtomicBool>, stop: watch::Sender<bool>) -> anyhow::Result<()> {
        loop {
            let signal = self.next().await;
            tracing::info!("{signal}: stopping; the rules stay");
            health.begin_shutdown();
            halt.store(true, Ordering::Relaxed);
            stop.send_replace(true);
        }
    }
}

/// Runs the loop until it is done, a signal has stopped it, or one of the parts it needs has ended.
async fn until_stopped(
    (rules, mut inbox): (RuleLoop, mpsc::Receiver<Event>),
    mut parts: Parts,
    stopped: Shutdown,
) -> anyhow::Result<Option<String>> {
    tokio::select! {
        outcome = rules.run(&mut inbox, stopped) => outcome,
        ended = parts.join_next() => Err(too_early(ended)),
    }
}

/// No part ends before the process does, unless it cannot go on.
fn too_early(ended: Option<Result<(&'static str, anyhow::Result<()>), JoinError>>) -> anyhow::Error {
    match ended {
        Some(Ok((name, Ok(())))) => anyhow!("{name}: ended without being told to"),
        Some(Ok((_, Err(error)))) => error,
        Some(Err(error)) => anyhow!(error).context("a part of the process failed"),
        None => anyhow!("nothing is left running"),
    }
}
