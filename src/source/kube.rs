//! The API server as a source: all watched kinds, and the Events we post, as one supervised set.
//!
//! How one kind is listed and watched is [`super::watch`]'s business, how the server is reached
//! [`super::client`]'s. Losing the server sends nothing: what is known stays.

use std::convert::Infallible;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;

pub use super::client::ConfigError;
use super::client::Server;
pub use super::rate::Rate;
use super::recorder::{Inbox, Recorder};
use super::sink::Sink;
use super::watch::Reflector;
use super::{Closed, Watched};
use crate::model::{EndpointSlice, Event, Node, Service};

/// Where the API server is and whom we watch for.
#[derive(Clone, Debug, Default)]
pub struct ApiOptions {
    /// `None`: the service account of the pod we run in, unless `master` is given.
    pub kubeconfig: Option<PathBuf>,
    /// URL of the server; overrides the kubeconfig's.
    pub master: Option<String>,
    /// The one Node that is watched.
    pub node_name: String,
    /// The name this machine has itself, by which Events tell who reported them.
    pub host_name: String,
    pub timing: Timing,
    pub rate: Rate,
    /// Who is told of each request.
    pub observer: Option<Arc<dyn Observer>>,
}

/// Somebody who counts requests to the API server. What it does must be quick and must not block.
pub trait Observer: Debug + Send + Sync {
    fn request_ended(&self, request: &RequestEnd<'_>);
}

/// A request that was answered, up to the head of the answer, or was not.
#[derive(Clone, Copy, Debug)]
pub struct RequestEnd<'a> {
    /// The server's host and port.
    pub host: &'a str,
    pub method: &'a str,
    /// `None`: there was no answer.
    pub status: Option<u16>,
    /// From the request to its answer or failure; `None`: a watch, of which it says nothing.
    pub latency: Option<Duration>,
}

/// How long what may take. The defaults are for production; tests are less patient.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// For a TCP connection to come about.
    pub connect: Duration,
    /// For an answer to begin, and between the pieces of a list.
    pub answer: Duration,
    /// A watch that says nothing for this long is begun anew where it was. The API server sends a
    /// bookmark about each minute.
    pub silence: Duration,
    /// A watch-list that says nothing for this long before its end mark was not understood.
    pub initial_silence: Duration,
    /// Objects per page of a list.
    pub page: u32,
    /// Between the first two tries to post an Event; then twice as long.
    pub event_retry: Duration,
    /// For which no Event is posted after the server did not permit one.
    pub event_pause: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            answer: Duration::from_secs(15),
            silence: Duration::from_secs(90),
            initial_silence: Duration::from_secs(10),
            page: 500,
            event_retry: Duration::from_secs(1),
            event_pause: Duration::from_mins(10),
        }
    }
}

/// Why the API server is no longer watched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("API server: cannot be used")]
    Config(#[from] ConfigError),
    #[error("watch of {resource} ended")]
    Closed { resource: &'static str, source: Closed },
    #[error("watch failed")]
    Panicked(#[from] tokio::task::JoinError),
}

/// Watches everything there is to watch until nobody takes the events any more or something is wrong
/// that no retry mends. A server that is away, or refuses, is waited for.
pub async fn run(options: ApiOptions, sender: Sender<Event>) -> Result<Infallible, Error> {
    let (_, inbox) = Recorder::new();
    run_reporting(options, sender, inbox).await
}

/// The same, and posts what is recorded.
pub async fn run_reporting(options: ApiOptions, sender: Sender<Event>, inbox: Inbox) -> Result<Infallible, Error> {
    let (node_name, host_name) = (options.node_name.clone(), options.host_name.clone());
    let server = Arc::new(Server::new(options).await?);
    let mut parts = JoinSet::new();
    parts.spawn(watch::<Service>(Arc::clone(&server), node_name.clone(), sender.clone()));
    parts.spawn(watch::<EndpointSlice>(Arc::clone(&server), node_name.clone(), sender.clone()));
    parts.spawn(watch::<Node>(Arc::clone(&server), node_name, sender));
    parts.spawn(async move {
        Sink::new(server, inbox, &host_name).run().await;
        // Nobody records any more; the watches go on.
        std::future::pending().await
    });
    match parts.join_next().await {
        Some(ended) => Err(ended?),
        None => unreachable!("the set was just filled"),
    }
}

async fn watch<W: Watched>(server: Arc<Server>, node_name: String, sender: Sender<Event>) -> Error {
    let source = Reflector::<W>::new(server, &node_name, sender).run().await;
    Error::Closed { resource: W::RESOURCE, source }
}
