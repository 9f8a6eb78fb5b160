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
use tracing::{debug, info, warn};

use super::backoff::Class;
use super::describe::describe;
use super::kube::{ApiOptions, RequestEnd, Timing};
use super::outage::Outage;
use super::rate::Bucket;
use super::resolver::Resolver;
use super::token::TokenFile;

/// A refusal's text is a Status object of a few hundred bytes; a proxy in between may send a web page.
const LONGEST_REFUSAL: usize = 64 * 1024;
/// How often credentials are read anew while the server cannot be reached.
const REBUILD_PAUSE: Duration = Duration::from_secs(10);

/// A request that its rate holds up for longer than this is told of.
const TOLD_WAIT: Duration = Duration::from_secs(1);

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

/// What is asked for, as far as limits and measurements tell requests apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A list, or its first page.
    List,
    /// A further page of a list that was begun. client-go has no pages, so a list costs one token.
    Page,
    /// Its answer takes minutes by nature, so nobody measures it.
    Watch,
    Write,
}

/// The API server, as all that ask it share it.
#[derive(Debug)]
pub(crate) struct Server {
    options: ApiOptions,
    url: String,
    bucket: Bucket,
    current: Mutex<Current>,
    outage: Mutex<Outage>,
}

struct Current {
    client: Client,
    /// The server's host and port, as measurements name it.
    host: Arc<str>,
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
        let current = Mutex::new(Current { client, host: host_of(&config.cluster_url), built: Instant::now() });
        let bucket = Bucket::new(options.rate, Instant::now());
        Ok(Self { options, url, bucket, current, outage: Mutex::default() })
    }

    /// Sends a request when its turn has come, and gives back an answer that is not a refusal, its body unread.
    pub(crate) async fn send(&self, request: Request<Vec<u8>>, purpose: Purpose) -> Result<Response<Body>, Failure> {
        if purpose != Purpose::Page {
            let wait = self.bucket.take(Instant::now());
            if wait > TOLD_WAIT {
                debug!(
                    "{} {}: waits {wait:.1?}, as --kube-api-qps and --kube-api-burst say",
                    request.method(),
                    request.uri().path()
                );
            }
            tokio::time::sleep(wait).await;
        }
        let answer = self.exchange(request, purpose).await;
        if answer.is_err() && purpose != Purpose::Page {
            self.bucket.give_back();
        }
        let (answer, limit) = (answer?, self.options.timing.answer);
        if answer.status().is_success() {
            return Ok(answer);
        }
        match tokio::time::timeout(limit, refusal(answer)).await {
            Ok(failure) => Err(failure),
            Err(_) => Err(Failure::Silent(limit)),
        }
    }

    /// One request and whatever is answered, told to the observer.
    async fn exchange(&self, request: Request<Vec<u8>>, purpose: Purpose) -> Result<Response<Body>, Failure> {
        let (client, host) = {
            let current = lock(&self.current);
            (current.client.clone(), Arc::clone(&current.host))
        };
        let (method, begun, limit) = (request.method().clone(), Instant::now(), self.options.timing.answer);
        let answer = match tokio::time::timeout(limit, client.send(request.map(Body::from))).await {
            Ok(Ok(answer)) => Ok(answer),
            // kube's own word for it, "ServiceError", says nothing to anybody.
            Ok(Err(::kube::Error::Service(error))) => Err(Failure::Connection(describe(&*error))),
            Ok(Err(error)) => Err(Failure::Connection(describe(&error))),
            Err(_) => Err(Failure::Connection(format!("no answer within {} s", limit.as_secs_f32()))),
        };
        if let Some(observer) = &self.options.observer {
            let status = answer.as_ref().ok().map(|answer| answer.status().as_u16());
            let latency = (purpose != Purpose::Watch).then(|| begun.elapsed());
            observer.request_ended(&RequestEnd { host: &host, method: method.as_str(), status, latency });
        }
        answer
    }

    /// A whole answer. It may take as long as it likes, as long as it gets on.
    pub(crate) async fn send_for_bytes(&self, request: Request<Vec<u8>>, purpose: Purpose) -> Result<Vec<u8>, Failure> {
        let mut chunks = Chunks::new(self.send(request, purpose).await?.into_body(), self.options.timing.answer);
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
            Ok(config) => build_client(&config, &self.options.timing).map(|client| (client, host_of(&config.cluster_url))),
            Err(error) => Err(error),
        };
        let mut current = lock(&self.current);
        current.built = Instant::now();
        match renewed {
            Ok((client, host)) => (current.client, current.host) = (client, host),
            Err(error) => debug!("API server {}: {}; keeping the credentials known", self.url, describe(&error)),
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

/// The host and port of a URL, as Go's `URL.Host` has them.
fn host_of(url: &Uri) -> Arc<str> {
    let authority = url.authority().map_or("", Authority::as_str);
    authority.rsplit_once('@').map_or(authority, |(_, host)| host).into()
}

async fn read_kubeconfig(path: &std::path::Path) -> Result<Config, ConfigError> {
    let failed = |source| ConfigError::Kubeconfig { path: path.display().to_string(), source: Box::new(source) };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)?;
    if config.accept_invalid_certs {
        warn!(
            "kubeconfig {}: insecure-skip-tls-verify is set: whoever answers at {} is believed to be the API server",
            path.display(),
            without_password(&config.cluster_url),
        );
    }
    if let Some(proxy) = &config.proxy_url {
        let proxy = without_password(proxy);
        warn!("kubeconfig {}: HTTP proxy {proxy} is not supported, connecting directly", path.display());
    }
    Ok(config)
}

fn build_client(config: &Config, timing: &Timing) -> Result<Client, ConfigError> {
    let failed = |source| ConfigError::Client { url: without_password(&config.cluster_url), source: Box::new(source) };
    let mut tcp = HttpConnector::new_with_resolver(Resolver);
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
        .option_layer(other_auth(config, token.is_some()).map_err(failed)?)
        .option_layer(token.map(bearer))
        .layer(config.extra_headers_layer().map_err(failed)?)
        .map_err(BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service.map_err(BoxError::from), config.default_namespace.clone()).build())
}

/// A file with a token is preferred to a token in the kubeconfig itself, as client-go has it; that one serves where
/// there is no file to read.
fn token_file(config: &Config) -> Result<Option<TokenFile>, ConfigError> {
    let Some(path) = &config.auth_info.token_file else { return Ok(None) };
    match TokenFile::open(path.as_ref()) {
        Ok(file) => Ok(Some(file)),
        Err(source) if config.auth_info.token.is_some() => {
            warn!("token file {path}: {source}; the token of the kubeconfig is used");
            Ok(None)
        }
        Err(source) => Err(ConfigError::Token { path: path.clone(), source }),
    }
}

/// Puts the token on each request.
fn bearer(file: TokenFile) -> MapRequestLayer<impl Fn(Request<Body>) -> Request<Body> + Clone> {
    let file = Arc::new(file);
    MapRequestLayer::new(move |mut request: Request<Body>| {
        request.headers_mut().insert(AUTHORIZATION, file.header());
        request
    })
}

/// All that kube knows of saying who we are, but for a token where there is a file with one.
fn other_auth(config: &Config, has_token: bool) -> Result<Option<AuthLayer>, ::kube::Error> {
    let mut config = config.clone();
    config.auth_info.token_file = None;
    if has_token {
        config.auth_info.token = None;
    }
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
