//! A small HTTP/1.1 server: binds as Go does, answers from a plain function, and lets no client hold it up.
//!
//! It knows nothing of what is answered. Handlers see the head of a request, and of the body a few bytes if they ask
//! for it; they run on the connection's task, so they must be quick and must not block.

use std::convert::Infallible;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::StatusCode;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};

pub type Response = hyper::Response<Full<Bytes>>;

/// Answers the head of a request.
pub type Handler = Arc<dyn Fn(&Parts) -> Reply + Send + Sync>;

/// What a handler makes of a request's head.
pub enum Reply {
    /// The answer. A body goes unread.
    Now(Response),
    /// The answer follows from the body, of which there may be no more than [`Limits::body`].
    AfterBody(Respond),
}

/// Makes the answer to a request with this body.
pub type Respond = Box<dyn FnOnce(&[u8]) -> Response + Send>;

impl From<Response> for Reply {
    fn from(response: Response) -> Self {
        Self::Now(response)
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Now(_) => "Now",
            Self::AfterBody(_) => "AfterBody",
        })
    }
}

/// Turns `true`, or loses its sender, when it is time to end.
pub type Shutdown = watch::Receiver<bool>;

pub(crate) const TEXT: &str = "text/plain; charset=utf-8";
pub(crate) const JSON: &str = "application/json";

const BACKLOG: i32 = 1024;
/// Pause after a failed accept, which mostly means that file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address could not be listened on, and the configuration says not to go on without it.
    #[error("{server} server: listen on {address}")]
    Bind { server: &'static str, address: SocketAddr, source: io::Error },
}

/// How much a client may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// At one more, the connection that has been quiet longest is closed: a crowd of idle clients must not
    /// keep the kubelet's probe out.
    pub connections: usize,
    /// From accepting a connection to the end of its first request head.
    pub first_request: Duration,
    /// From one request head to the end of the next, its answer taken in between.
    pub next_request: Duration,
    /// Size of a request head in bytes.
    pub head: usize,
    /// Size of a request body in bytes, where one is read at all. It may take as long as `first_request`.
    pub body: usize,
    /// Between two tries to bind an address that is taken.
    pub bind_retry: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 128,
            first_request: Duration::from_secs(5),
            next_request: Duration::from_mins(1),
            head: 16 << 10,
            body: 64,
            bind_retry: Duration::from_secs(5),
        }
    }
}

/// An address that could not be listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindFailure {
    /// The [name](Server::name) of the server.
    pub server: &'static str,
    pub address: SocketAddr,
    pub cause: String,
}

/// One address and who answers there.
pub struct Server {
    name: &'static str,
    address: Option<SocketAddr>,
    handler: Handler,
    hard_fail: bool,
    limits: Limits,
    bound: watch::Sender<Option<SocketAddr>>,
    failure: watch::Sender<Option<BindFailure>>,
}

impl Server {
    /// `name` is for the log. With no address the server is switched off: it only waits for the end.
    pub fn new(name: &'static str, address: Option<SocketAddr>, handler: Handler) -> Self {
        let (bound, _) = watch::channel(None);
        let (failure, _) = watch::channel(None);
        Self { name, address, handler, hard_fail: false, limits: Limits::default(), bound, failure }
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether an address that cannot be bound ends the server instead of being tried again.
    #[must_use]
    pub fn hard_fail(self, hard_fail: bool) -> Self {
        Self { hard_fail, ..self }
    }

    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// The address listened on, once there is one.
    pub fn bound(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.bound.subscribe()
    }

    /// Why the address is not listened on, each time that changes; also before an end by `hard_fail`. `None` once it is
    /// listened on, and before the first try.
    pub fn failure(&self) -> watch::Receiver<Option<BindFailure>> {
        self.failure.subscribe()
    }

    /// Serves until `shutdown` fires. Fails only with `hard_fail`.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), Error> {
        tokio::select! {
            result = self.serve() => result.map(|never| match never {}),
            () = fired(shutdown) => Ok(()),
        }
    }

    async fn serve(&self) -> Result<Infallible, Error> {
        let Some(address) = self.address else {
            return std::future::pending().await;
        };
        let listener = self.bind(address).await?;
        self.bound.send_replace(listener.local_addr().ok());
        Ok(serve(listener, Arc::clone(&self.handler), self.limits).await)
    }

    async fn bind(&self, address: SocketAddr) -> Result<TcpListener, Error> {
        let server = self.name;
        loop {
            let error = match bind(address) {
                Ok(listener) => {
                    tracing::info!(server, %address, "listening");
                    self.failure.send_if_modified(|failure| failure.take().is_some());
                    return Ok(listener);
                }
                Err(error) => error,
            };
            let is_new = self.failed(BindFailure { server, address, cause: error.to_string() });
            if self.hard_fail {
                return Err(Error::Bind { server, address, source: error });
            }
            // Said once per cause: the address may stay taken for days.
            if is_new {
                tracing::warn!(server, %address, %error, "cannot listen; trying again until it works");
            }
            sleep(self.limits.bind_retry).await;
        }
    }

    /// Tells whoever follows; true when it is another failure than the last.
    fn failed(&self, failure: BindFailure) -> bool {
        self.failure.send_if_modified(|known| {
            let is_new = known.as_ref() != Some(&failure);
            *known = Some(failure);
            is_new
        })
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("name", &self.name).field("address", &self.address).finish_non_exhaustive()
    }
}

/// Waits for the signal to end.
pub async fn fired(mut shutdown: Shutdown) {
    // An error means that the sender is gone, and with it whoever would have told us to go on.
    let _ = shutdown.wait_for(|&over| over).await;
}

/// Listens as Go's `net.Listen("tcp", address)` does: the unspecified address of either family means all
/// addresses of both, as far as the kernel has them. Needs a tokio runtime.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_unspecified() {
        return bind_family(address);
    }
    match listen((Ipv6Addr::UNSPECIFIED, address.port()).into(), false) {
        Ok(listener) => Ok(listener),
        Err(error) if matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::PermissionDenied) => Err(error),
        // The kernel has no IPv6.
        Err(_) => bind_family(address),
    }
}

/// Listens for the address's own family alone: its unspecified address means all addresses of that family.
pub fn bind_family(address: SocketAddr) -> io::Result<TcpListener> {
    listen(address, true)
}

fn listen(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    // Connections of a predecessor that are still closing must not keep us from its port.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts and answers for ever. Dropping the future closes the listener and every connection.
pub async fn serve(listener: TcpListener, handler: Handler, limits: Limits) -> Infallible {
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connections.add(stream, &handler, limits),
            // The client gave up before we came to it.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The open connections of one listener; they end with it.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    open: Vec<(AbortHandle, Arc<Activity>)>,
}

impl Connections {
    fn add(&mut self, stream: TcpStream, handler: &Handler, limits: Limits) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|(task, _)| !task.is_finished());
        if self.open.len() >= limits.connections
            && let Some(quietest) = (0..self.open.len()).min_by_key(|&i| self.open[i].1.since())
        {
            self.open.swap_remove(quietest).0.abort();
        }
        let activity = Arc::new(Activity::new(limits.first_request));
        let task = self.tasks.spawn(converse(stream, Arc::clone(handler), limits, Arc::clone(&activity)));
        self.open.push((task, activity));
    }
}

/// When a connection last did something, and how long it may now be quiet.
struct Activity(Mutex<(Instant, Duration)>);

impl Activity {
    fn new(allowed: Duration) -> Self {
        Self(Mutex::new((Instant::now(), allowed)))
    }

    fn renew(&self, allowed: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), allowed);
    }

    fn since(&self) -> Instant {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    fn deadline(&self) -> Instant {
        let (since, allowed) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since + allowed
    }
}

/// One connection, until either side closes it or the client is too slow.
async fn converse(stream: TcpStream, handler: Handler, limits: Limits, activity: Arc<Activity>) {
    let service = service_fn(|request: hyper::Request<Incoming>| {
        activity.renew(limits.next_request);
        let (head, body) = request.into_parts();
        let reply = handler(&head);
        async move {
            Ok::<_, Infallible>(match reply {
                // hyper closes the connection if there is a body.
                Reply::Now(response) => response,
                Reply::AfterBody(respond) => match read(body, limits).await {
                    Ok(body) => respond(&body),
                    Err(refusal) => refusal,
                },
            })
        }
    });
    let connection = http1::Builder::new()
        // hyper's own limit would cut idle connections as soon as slow ones, between two probes of a load balancer.
        .header_read_timeout(None)
        .max_header_size(limits.head)
        .max_buf_size(limits.head.saturating_mul(2).max(8 << 10))
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    loop {
        let deadline = activity.deadline();
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            () = sleep_until(deadline) => if activity.deadline() <= deadline { return },
        }
    }
}

/// A small body that comes in time, or the answer to one that does not.
async fn read(body: Incoming, limits: Limits) -> Result<Bytes, Response> {
    let refusal = |status, why: &str| answer(status, TEXT, format!("request body: {why}\n"));
    match timeout(limits.first_request, Limited::new(body, limits.body).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, &format!("more than {} bytes", limits.body)))
        }
        Ok(Err(error)) => Err(refusal(StatusCode::BAD_REQUEST, &error.to_string())),
        Err(_) => Err(refusal(StatusCode::REQUEST_TIMEOUT, &format!("not there within {:?}", limits.first_request))),
    }
}

/// An answer with the two headers most of kube-proxy's have.
pub(crate) fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = plain(status, content_type, body);
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The same without `X-Content-Type-Options`, as some of Go's handlers write.
pub(crate) fn plain(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub(crate) fn not_found() -> Response {
    answer(StatusCode::NOT_FOUND, TEXT, "404 page not found\n")
}
