//! The process: which parts run, how they are joined, and how it ends.
//!
//! Wiring only. Every part is a future in one supervised set: the first that ends, well or badly, ends
//! the process with its name and cause, unless it was told to.

mod addresses;
mod cleanup;
mod config_file;
mod conntrack_ground;
mod contest;
mod drift;
mod family;
mod flows;
mod ground;
mod health_ports;
mod incidents;
mod ipvs_ground;
mod latency;
mod legacy;
mod oom_score;
mod pace;
mod preparation;
mod repair;
mod retry;
mod rules;
mod signals;
#[cfg(test)]
mod testing;
mod upkeep;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, anyhow};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};

pub use cleanup::clean_up;

use crate::config::{Config, Mode, Source, gates};
use crate::logging;
use crate::model::Event;
use crate::net::Family;
use crate::netlink::NftKernel;
use crate::render;
use crate::serve::http::{BindFailure, Shutdown};
use crate::serve::service_health::Failure as PortFailure;
use crate::serve::service_health::Servers;
use crate::serve::{Configz, Health, Metrics, Pages, Server, ServiceHealth, status};
use crate::source::recorder::{Inbox, Recorder};
use crate::source::{kube, manifests};
use crate::sync::FamilySync;
use crate::sysctl::Root;
use rules::{Reports, RuleLoop, Site};

/// Events that may wait. A source that is faster than the kernel waits too.
const EVENTS: usize = 1024;

/// What the process is started with.
#[derive(Debug)]
pub struct Launch {
    pub config: Config,
    /// The flags of the command line with their values, sorted by name: what `/flagz` shows.
    pub flags: Vec<(String, String)>,
    /// Where the configuration came from, if from a file.
    pub file: Option<ConfigFile>,
}

/// A configuration file that is followed as it changes.
pub struct ConfigFile {
    pub path: PathBuf,
    /// Reads it, with what the command line says beside it.
    pub load: Box<dyn Fn() -> anyhow::Result<Config> + Send + Sync>,
}

impl fmt::Debug for ConfigFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Runs the proxy until it is told to stop, or until a part of it cannot go on. A configuration that changed is taken up
/// by starting all parts anew in the same process: the rules stay, and are adopted as after any start.
pub fn run(launch: Launch) -> anyhow::Result<()> {
    let Launch { mut config, flags, file } = launch;
    if config.init_only {
        return ground::initialize(&config, Root::default());
    }
    let file = file.filter(|_| !config.once).map(Arc::new);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("start")?;
    let lasting = Lasting { flags, file, signals: runtime.block_on(async { signals::listen() })? };
    let outcome = loop {
        match runtime.block_on(supervise(Arc::new(config), &lasting)) {
            Ok(End::Changed(next)) => config = *next,
            Ok(End::Done(summary)) => break Ok(summary),
            Err(error) => break Err(error),
        }
    };
    runtime.shutdown_background();
    if let Some(summary) = outcome? {
        println!("{summary}");
    }
    Ok(())
}

/// What stays when the configuration changes.
struct Lasting {
    flags: Vec<(String, String)>,
    file: Option<Arc<ConfigFile>>,
    signals: signals::Told,
}

/// Why the parts ended, where nothing is wrong.
enum End {
    /// With `--once`, a line that sums up what was done.
    Done(Option<String>),
    /// There is another configuration.
    Changed(Box<Config>),
}

async fn supervise(config: Arc<Config>, lasting: &Lasting) -> anyhow::Result<End> {
    let mut kernel = NftKernel::open().context("program rules")?;
    let ground = ground::prepare(&config, &mut kernel, Root::default())?;
    if !config.once {
        oom_score::adjust(&Root::default(), config.oom_score_adj);
    }
    legacy::warn_if_used();
    let mut parts = Parts::new(&config);
    if ground.facts.nfacct {
        parts.metrics.collect_packets(ground::read_counters);
    }
    let (service_health, health_servers) = ServiceHealth::new(parts.health.clone());
    let stopped = parts.signals(&mut kernel, lasting.signals.clone());
    let next = parts.configuration(lasting.file.clone());
    // Before anything is read: what is changed after the reading is heard.
    let drift = parts.drift(&mut kernel);
    let (events, device) = parts.events();
    if !config.once {
        parts.report_ports(service_health.failures());
        parts.servers(health_servers, lasting.flags.clone());
    }
    let families = ground.families.iter();
    let syncs = families.map(|&family| sync_of(family, &config, &parts.metrics)).collect::<anyhow::Result<_>>()?;
    let site = Site { ground, kernel, drift, device, syncs };
    let reports = Reports {
        health: parts.health.clone(),
        metrics: Arc::clone(&parts.metrics),
        service_health,
        recorder: parts.recorder.clone(),
    };
    let rules = RuleLoop::new(config, site, reports);
    parts.run_with(rules.run(events, stopped), next).await
}

/// What programs one family, in the mode that is asked for.
fn sync_of(family: Family, config: &Config, metrics: &Arc<Metrics>) -> anyhow::Result<FamilySync> {
    let sync = FamilySync::new(family, Arc::clone(metrics));
    match config.rules.mode {
        Mode::Iptables => Ok(sync),
        Mode::Ipvs => Ok(sync.with_servers(ipvs_ground::balancer(&config.rules.ipvs)?)),
    }
}

async fn read_objects(
    config: Arc<Config>,
    events: mpsc::Sender<Event>,
    told: Inbox,
    metrics: Arc<Metrics>,
) -> anyhow::Result<()> {
    match &config.source {
        Source::Manifests(path) => match manifests::follow(path, events).await? {},
        Source::Api { kubeconfig, master } => {
            let options = kube::ApiOptions {
                kubeconfig: kubeconfig.clone(),
                master: master.clone(),
                node_name: config.node_name.to_string(),
                host_name: incidents::host_name(&config),
                rate: kube::Rate { per_second: config.client.qps, burst: config.client.burst },
                observer: Some(metrics),
                ..Default::default()
            };
            match kube::run_reporting(options, events, told).await? {}
        }
    }
}

impl kube::Observer for Metrics {
    fn request_ended(&self, request: &kube::RequestEnd<'_>) {
        Self::request_ended(self, request.host, request.method, request.status, request.latency);
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

/// What runs beside the rule loop, and what all of it reports to.
struct Parts {
    running: JoinSet<(&'static str, anyhow::Result<()>)>,
    config: Arc<Config>,
    health: Health,
    metrics: Arc<Metrics>,
    configz: Configz,
    /// Of what the cluster should hear.
    recorder: Recorder,
    /// Nobody fires it: servers answer until they are ended.
    open: watch::Sender<bool>,
}

impl Parts {
    fn new(config: &Arc<Config>) -> Self {
        let (health, metrics) = (Health::new(config.sync_period), Arc::new(Metrics::new()));
        let configz = Configz::default();
        configz.set(config.effective.to_configz());
        let (running, open) = (JoinSet::new(), watch::channel(false).0);
        Self { running, config: Arc::clone(config), health, metrics, configz, recorder: Recorder::deaf(), open }
    }

    fn add(&mut self, name: &'static str, part: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.running.spawn(async move { (name, part.await) });
    }

    /// Fires when the process is told to end.
    fn signals(&mut self, kernel: &mut NftKernel, told: signals::Told) -> Shutdown {
        let halt = Arc::<AtomicBool>::default();
        kernel.stop_when(Arc::clone(&halt));
        let (stop, stopped) = watch::channel(false);
        self.add("signals", signals::follow(told, self.health.clone(), halt, stop));
        stopped
    }

    /// Gives the next configuration; none comes without a file.
    fn configuration(&mut self, file: Option<Arc<ConfigFile>>) -> oneshot::Receiver<Box<Config>> {
        let (changed, next) = oneshot::channel();
        if let Some(file) = file {
            self.add("configuration", config_file::follow(file, Arc::clone(&self.config), self.configz.clone(), changed));
        }
        next
    }

    /// What others change in the rules from now on.
    fn drift(&mut self, kernel: &mut NftKernel) -> Arc<drift::Changes> {
        let changes = Arc::<drift::Changes>::default();
        let monitor = if self.config.once { None } else { drift::listen(kernel, self.config.audit_period) };
        if let Some(monitor) = monitor {
            let layout = render::layout(&self.config.rules);
            self.add("drift", drift::follow(monitor, layout, Arc::clone(&changes), Arc::clone(&self.metrics)));
        }
        changes
    }

    /// Objects and addresses as events; apart from them, what becomes of the device of virtual servers' addresses.
    fn events(&mut self) -> (mpsc::Receiver<Event>, Arc<addresses::DeviceNews>) {
        let (events, inbox) = mpsc::channel(EVENTS);
        let (recorder, told) = incidents::recorder(&self.config);
        self.recorder = recorder;
        self.add("source", read_objects(Arc::clone(&self.config), events.clone(), told, Arc::clone(&self.metrics)));
        let news = Arc::<addresses::DeviceNews>::default();
        let device = (self.config.rules.mode == Mode::Ipvs).then(|| Arc::clone(&news));
        self.add("addresses", addresses::follow(events, device));
        (inbox, news)
    }

    fn pages(&self, flags: Vec<(String, String)>) -> Pages {
        let config = &self.config;
        for (gate, stage, enabled) in gates(config) {
            self.metrics.feature(gate, stage.as_str(), enabled);
        }
        Pages {
            metrics: Arc::clone(&self.metrics),
            mode: config.rules.mode.as_str(),
            configz: self.configz.clone(),
            flags,
            flagz: config.flagz,
            statusz: config.statusz,
            profiling: config.profiling,
            set_verbosity: Box::new(logging::set_verbosity),
        }
    }

    /// They answer until the parts end, with 503 once the process is told to.
    fn servers(&mut self, health_ports: Servers, flags: Vec<(String, String)>) {
        let of_health = status::health_routes(self.health.clone(), Arc::clone(&self.metrics));
        let of_metrics = status::metrics_routes(self.pages(flags));
        for (name, address, routes) in
            [("health", self.config.healthz_bind_address, of_health), ("metrics", self.config.metrics_bind_address, of_metrics)]
        {
            let server = Server::new(name, address, routes).hard_fail(self.config.bind_address_hard_fail);
            self.report_server(&server);
            let open = self.open.subscribe();
            self.add(name, async move { Ok(server.run(open).await?) });
        }
        let open = self.open.subscribe();
        self.add("service health", async move {
            health_ports.run(open).await;
            Ok(())
        });
    }

    /// The cluster hears of a server that cannot listen. That the process ends with it are its last words.
    fn report_server(&mut self, server: &Server) {
        if !self.config.bind_address_hard_fail {
            let node = Arc::clone(&self.config.node_name);
            let incidents = move |failure: &Option<BindFailure>| {
                failure.iter().filter_map(|failure| incidents::not_listening(&node, failure)).collect()
            };
            self.add("incidents", incidents::report(server.failure(), incidents, self.recorder.clone(), incidents::REPEAT));
        }
    }

    fn report_ports(&mut self, failures: watch::Receiver<Vec<PortFailure>>) {
        let node = Arc::clone(&self.config.node_name);
        let incidents = move |failures: &Vec<_>| failures.iter().map(|failure| incidents::port_closed(&node, failure)).collect();
        self.add("incidents", incidents::report(failures, incidents, self.recorder.clone(), incidents::REPEAT));
    }

    /// Waits until the rule loop is done, a signal has stopped it, there is another configuration, or one of the parts,
    /// all of which are needed, has ended. Then all end.
    async fn run_with(
        mut self,
        rules: impl Future<Output = anyhow::Result<Option<String>>>,
        next: oneshot::Receiver<Box<Config>>,
    ) -> anyhow::Result<End> {
        // Not gone before the last words: with the loop all sources end.
        let mut rules = std::pin::pin!(rules);
        let end = tokio::select! {
            outcome = &mut rules => outcome.map(End::Done),
            ended = self.running.join_next() => Err(too_early(ended)),
            Ok(next) = next => Ok(End::Changed(next)),
        };
        if let Err(error) = &end {
            incidents::last_words(&self.config.node_name, error, &self.recorder).await;
        }
        // What takes over must find all ports free.
        self.running.shutdown().await;
        end
    }
}
