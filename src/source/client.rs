//! The connection to the API server: where it is, who we are, and one way to ask.
//!
//! kube knows kubeconfigs, tokens and certificates; the HTTP stack below is our own, because kube's logs
//! an error for each failed try and has neither keep-alive nor a limit for the first answer. Knows
//! nothing of kinds or of watching.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::kube::client::middleware::AuthLayer;
use ::kube::client::{Body, Client, ClientBuilder, ConfigExt as _};
use ::kube::config::{Config, InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use ::kube::core::Status;
use http_body_util::{BodyExt as _, Limited};
use hyper::header::{AUTHORIZATION, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::http::uri::{Authority, InvalidUri};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower::util::MapRequestLayer;
use tower::{BoxError, ServiceBuilder, ServiceExt as _};
use tracing::{info, warn};

use super::backoff::Class;
use super::describe::describe;
use super::kube::{ApiOptions, Timing};
use super::outage::Outage;
use super::token::TokenFile;

/// A refusal's text is a Status object of a few hundred bytes; a proxy in between may send a web page.
const LONGEST_REFUSAL: usize = 64 * 1024;
/// How often credentials are read anew while the server cannot be reached.
const REBUILD_PAUSE: Duration = Duration::from_secs(10);

/// Why there is no client. All of these are found before anything is sent.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("kubeconfig {path}")]
    Kubeconfig { path: String, source: Box<KubeconfigError> },
    #[error("--master {text:?} is not a URL")]
    Master { text: String, source: InvalidUri },
    #[error("no --kubeconfig and no --master given, and this is not a pod with a service account")]
    InCluster { source: Box<InClusterError> },
    #[error("token file {path}")]
    Token { path: String, source: std::io::Error },
    #[error("client for {url}")]
    Client { url: String, source: Box<::kube::Error> },
}

/// Why a request brought nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Connection(String),
    /// Nothing came any more, but the connection stood.
    #[error("silent for {:.1} s", .0.as_secs_f32())]
    Silent(Duration),
    /// An answer came and ended, or was cut, before it was whole.
    #[error("the answer broke off: {0}")]
    BrokenOff(String),
    #[error("HTTP {status}: {message}")]
    Refused { status: u16, message: String, retry_after: Option<Duration> },
    #[error("answer is not what an API server sends: {0}")]
    Garbage(#[from] serde_json::Error),
}

impl Failure {
    pub(crate) fn class(&self) -> Class {
        match self {
            Self::Connection(_) | Self::Silent(_) | Self::BrokenOff(_) => Class::Connection,
            Self::Refused { retry_after, .. } => Class::Refusal(*retry_after),
            Self::Garbage(_) => Class::Refusal(None),
        }
    }

    /// What it means for an answer that had begun.
    pub(crate) fn in_the_middle(self) -> Self {
        match self {
            Self::Connection(_) | Self::Silent(_) => Self::BrokenOff(self.to_string()),
            other => other,
        }
    }

    /// The status of an answer that was a refusal; 0: there was none.
    pub(crate) fn status(&self) -> u16 {
        if let Self::Refused { status, .. } = self { *status } else { 0 }
    }

    /// A refusal that came inside an answer.
    pub(crate) fn from_status(status: &Status) -> Self {
        let seconds = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
        let retry_after = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
        Self::Refused { status: status.code, message: status.message.clone(), retry_after }
    }
}

/// The API server, as all watches share it.
#[derive(Debug)]
pub(crate) struct Server {
    options: ApiOptions,
    url: String,
    current: Mutex<Current>,
    outage: Mutex<Outage>,
}

struct Current {
    client: Client,
    built: Instant,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("built", &self.built).finish_non_exhaustive()
    }
}

impl Server {
    /// Reads the configuration. Nothing is sent yet: a server that is away is waited for.
    pub(crate) async fn new(options: ApiOptions) -> Result<Self, ConfigError> {
        let config = load_config(&options).await?;
        let url = without_password(&config.cluster_url);
        let client = build_client(&config, &options.timing)?;
        info!("API server: {url}");
        let current = Mutex::new(Current { client, built: Instant::now() });
        Ok(Self { options, url, current, outage: Mutex::default() })
    }

    /// Sends a GET and gives back an answer that is not a refusal, its body unread.
    pub(crate) async fn get(&self, request: Request<Vec<u8>>) -> Result<Response<Body>, Failure> {
        let client = lock(&self.current).client.clone();
        let limit = self.options.timing.answer;
        let answer = match tokio::time::timeout(limit, client.send(request.map(Body::from))).await {
            Ok(Ok(answer)) => answer,
            // kube's own word for it, "ServiceError", says nothing to anybody.
            Ok(Err(::kube::Error::Service(error))) => return Err(Failure::Connection(describe(&*error))),
            Ok(Err(error)) => return Err(Failure::Connection(describe(&error))),
            Err(_) => return Err(Failure::Connection(format!("no answer within {} s", limit.as_secs_f32()))),
        };
        if answer.status().is_success() {
            return Ok(answer);
        }
        match tokio::time::timeout(limit, refusal(answer)).await {
            Ok(failure) => Err(failure),
            Err(_) => Err(Failure::Silent(limit)),
        }
    }

    /// A whole answer. It may take as long as it likes, as long as it gets on.
    pub(crate) async fn get_bytes(&self, request: Request<Vec<u8>>) -> Result<Vec<u8>, Failure> {
        let mut chunks = Chunks::new(self.get(request).await?.into_body(), self.options.timing.answer);
        let mut whole = Vec::new();
        while let Some(chunk) = chunks.next().await.map_err(Failure::in_the_middle)? {
            whole.extend_from_slice(&chunk);
        }
        Ok(whole)
    }

    /// Something failed for lack of a connection: told of once for all watches.
    pub(crate) fn unreachable(&self, cause: &Failure) {
        if lock(&self.outage).begins() {
            warn!("API server {}: {cause}; the node keeps its rules, trying again until it answers", self.url);
        }
    }

    /// Something was answered.
    pub(crate) fn reachable(&self) {
        if let Some(duration) = lock(&self.outage).ends() {
            info!("API server {}: answers again after {:.1} s", self.url, duration.as_secs_f32());
        }
    }

    /// Reads configuration and credentials anew: a token or certificate may have been replaced.
    /// `refused`: the ones we have are known to be bad.
    pub(crate) async fn renew(&self, refused: bool) {
        let age = lock(&self.current).built.elapsed();
        // Three watches are refused at once, and an exec plugin may be slow or ask somebody.
        if age < if refused { Duration::from_millis(100) } else { REBUILD_PAUSE } {
            return;
        }
        let renewed = match load_config(&self.options).await {
            Ok(config) => build_client(&config, &self.options.timing),
            Err(error) => Err(error),
        };
        let mut current = lock(&self.current);
        current.built = Instant::now();
        match renewed {
            Ok(client) => current.client = client,
            Err(error) => tracing::debug!("API server {}: {}; keeping the credentials known", self.url, describe(&error)),
        }
    }

    pub(crate) fn timing(&self) -> &Timing {
        &self.options.timing
    }
}

/// A body in pieces, each of which must come within `patience`.
pub(crate) struct Chunks {
    body: Body,
    patience: Duration,
}

impl Chunks {
    pub(crate) fn new(body: Body, patience: Duration) -> Self {
        Self { body, patience }
    }

    /// The next piece; `None` at the orderly end.
    pub(crate) async fn next(&mut self) -> Result<Option<hyper::body::Bytes>, Failure> {
        loop {
            match tokio::time::timeout(self.patience, self.body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Ok(Some(Err(::kube::Error::Service(error)))) => return Err(Failure::Connection(describe(&*error))),
                Ok(Some(Err(error))) => return Err(Failure::Connection(describe(&error))),
                Ok(None) => return Ok(None),
                Err(_) => return Err(Failure::Silent(self.patience)),
            }
        }
    }

    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }
}

async fn load_config(options: &ApiOptions) -> Result<Config, ConfigError> {
    let master = options.master.as_deref().filter(|text| !text.is_empty());
    let master = master.map(|text| text.parse::<Uri>().map_err(|source| ConfigError::Master { text: text.into(), source }));
    let master = master.transpose()?;
    let mut config = match (&options.kubeconfig, &master) {
        (Some(path), _) => read_kubeconfig(path).await?,
        (None, Some(url)) => Config::new(url.clone()),
        (None, None) => Config::incluster().map_err(|source| ConfigError::InCluster { source: source.into() })?,
    };
    if let Some(url) = master {
        config.cluster_url = url;
    }
    let agent = HeaderValue::from_static(concat!("sluice/", env!("CARGO_PKG_VERSION")));
    config.headers.push((USER_AGENT, agent));
    Ok(config)
}

/// A URL as it may be logged: one of a proxy often has a user and a password in it.
fn without_password(url: &Uri) -> String {
    let text = url.to_string();
    let Some(authority) = url.authority().map(Authority::as_str) else { return text };
    match authority.rsplit_once('@') {
        Some((_, host)) => text.replacen(authority, host, 1),
        None => text,
    }
}

async fn read_kubeconfig(path: &std::path::Path) -> Result<Config, ConfigError> {
    let failed = |source| ConfigError::Kubeconfig { path: path.display().to_string(), source: Box::new(source) };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)?;
    if let Some(proxy) = &config.proxy_url {
        let proxy = without_password(proxy);
        warn!("kubeconfig {}: HTTP proxy {proxy} is not supported, connecting directly", path.display());
    }
    Ok(config)
}

fn build_client(config: &Config, timing: &Timing) -> Result<Client, ConfigError> {
    let failed = |source| ConfigError::Client { url: without_password(&config.cluster_url), source: Box::new(source) };
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(timing.connect));
    // A peer that vanished without a word is noticed within half a minute, also where nothing is sent.
    tcp.set_keepalive(Some(Duration::from_secs(10)));
    tcp.set_keepalive_interval(Some(Duration::from_secs(5)));
    tcp.set_keepalive_retries(Some(3));
    tcp.set_tcp_user_timeout(Some(Duration::from_secs(25)));
    let token = token_file(config)?;
    let tls = config.rustls_https_connector_with_connector(tcp).map_err(failed)?;
    let http = HttpClient::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build::<_, Body>(tls);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(token.map(bearer))
        .option_layer(other_auth(config).map_err(failed)?)
        .layer(config.extra_headers_layer().map_err(failed)?)
        .map_err(BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service.map_err(BoxError::from), config.default_namespace.clone()).build())
}

/// A token in the kubeconfig itself is preferred to a file with one, as kube has it.
fn token_file(config: &Config) -> Result<Option<TokenFile>, ConfigError> {
    let path = config.auth_info.token_file.as_ref().filter(|_| config.auth_info.token.is_none());
    let open = |path: &String| TokenFile::open(path.as_ref()).map_err(|source| ConfigError::Token { path: path.clone(), source });
    path.map(open).transpose()
}

/// Puts the token on each request.
fn bearer(file: TokenFile) -> MapRequestLayer<impl Fn(Request<Body>) -> Request<Body> + Clone> {
    let file = Arc::new(file);
    MapRequestLayer::new(move |mut request: Request<Body>| {
        request.headers_mut().insert(AUTHORIZATION, file.header());
        request
    })
}

/// All that kube knows of saying who we are, but for the file.
fn other_auth(config: &Config) -> Result<Option<AuthLayer>, ::kube::Error> {
    let mut config = config.clone();
    config.auth_info.token_file = None;
    config.auth_layer()
}

async fn refusal(answer: Response<Body>) -> Failure {
    let status = answer.status();
    let retry_after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let body = Limited::new(answer.into_body(), LONGEST_REFUSAL).collect().await;
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let failure = serde_json::from_slice::<Status>(&body).ok().map(|status| Failure::from_status(&status));
    let (message, asked) = match failure {
        Some(Failure::Refused { message, retry_after, .. }) => (message, retry_after),
        _ => (String::new(), None),
    };
    let message = if message.is_empty() { reason_of(status, &body) } else { message };
    Failure::Refused { status: status.as_u16(), message, retry_after: retry_after.map(Duration::from_secs).or(asked) }
}

/// The first line of what a server said that is not an API server, or what the status means.
fn reason_of(status: StatusCode, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    line.map_or_else(|| status.canonical_reason().unwrap_or("no reason given").into(), |line| line.chars().take(200).collect())
}

/// A panic elsewhere while the lock was held leaves nothing half-done here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
