//! Connections and requests: from a path and its query to a list, a watch or a refusal.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::selector::Selector;
use super::store::{Gone, Page, Resource};
use super::stream::{Wanted, Watch, flushed_before};
use super::{Break, Request, Shared, State, WatchList, events, rbac};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A refusal: code, reason, message.
#[derive(Debug)]
pub struct Refusal {
    code: u16,
    reason: &'static str,
    message: String,
    /// Of what and by which name, where the refusal is about a resource.
    details: Value,
    retry_after: Option<u32>,
}

impl Refusal {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: json!({}), retry_after: None }
    }

    pub fn about(self, details: Value) -> Self {
        Self { details, ..self }
    }
}

impl From<Gone> for Refusal {
    fn from(Gone: Gone) -> Self {
        Self::new(410, "Expired", "The provided continue parameter is too old to display a consistent list result.")
    }
}

/// Serves until it is dropped, and its connections with it.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let mut connections = tokio::task::JoinSet::new();
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            connections.spawn(connection(stream, Arc::clone(&shared)));
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Serves one connection until its generation is over.
async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let mut ticks = shared.ticks.subscribe();
    let born = {
        let state = shared.state();
        if state.refusing {
            return;
        }
        state.generation
    };
    let tls = shared.state().tls.clone();
    let serving = async {
        match tls {
            None => speak(stream, &shared).await,
            // Whoever the handshake displeases has been told so in it.
            Some(config) => match TlsAcceptor::from(config).accept(stream).await {
                Ok(stream) => speak(stream, &shared).await,
                Err(error) => shared.change(|state| state.handshake_failures.push(error.to_string())),
            },
        }
    };
    tokio::select! {
        () = serving => {}
        _ = ticks.wait_for(|_| shared.state().generation != born) => {}
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Arc<Shared>) {
    let service = hyper::service::service_fn(|request| async move { Ok::<_, Infallible>(answer(request, shared).await) });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: hyper::Request<Incoming>, shared: &Arc<Shared>) -> Response<Body> {
    let mut ticks = shared.ticks.subscribe();
    let header = |name| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let (authorization, content_type) = (header(AUTHORIZATION), header(CONTENT_TYPE));
    let mut seen = Request {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        query: query(request.uri().query().unwrap_or_default()),
        user_agent: header(USER_AGENT),
        status: 200,
    };
    let resource = seen.attributes().map(|attributes| attributes.resource.to_owned()).unwrap_or_default();
    // While stalled, not even a refusal is sent.
    let _ = ticks.wait_for(|_| shared.state().answers(&resource)).await;
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let admitted = admit(&mut shared.state(), &authorization);
    let result = admitted.and_then(|()| rbac::permit(&seen, &shared.state())).and_then(|()| match seen.method.as_str() {
        "GET" => route(&seen, shared),
        _ => write(&seen, &content_type, &body, shared),
    });
    let response = result.unwrap_or_else(refuse);
    seen.status = response.status().as_u16();
    shared.change(|state| state.requests.push(seen));
    response
}

/// Of all there is, Events alone are written over HTTP.
fn write(request: &Request, content_type: &str, body: &[u8], shared: &Arc<Shared>) -> Result<Response<Body>, Refusal> {
    let namespace = request.path.strip_prefix("/apis/events.k8s.io/v1/namespaces/").and_then(|rest| rest.split_once("/events"));
    let bad = |error: serde_json::Error| Refusal::new(400, "BadRequest", error.to_string());
    match (request.method.as_str(), namespace) {
        ("POST", Some((namespace, ""))) => {
            let object = serde_json::from_slice(body).map_err(bad)?;
            let created = shared.change(|state| events::create(&mut state.store, namespace, object))?;
            Ok(response(StatusCode::CREATED, full(created.to_string())))
        }
        ("PATCH", Some((namespace, name))) if content_type == "application/merge-patch+json" => {
            let patch = serde_json::from_slice(body).map_err(bad)?;
            let name = name.trim_start_matches('/');
            let patched = shared.change(|state| events::patch(&mut state.store, namespace, name, &patch))?;
            Ok(json_response(&patched))
        }
        _ => Err(Refusal::new(405, "MethodNotAllowed", format!("{} is not served here", request.method))),
    }
}

fn admit(state: &mut State, authorization: &str) -> Result<(), Refusal> {
    if state.token.as_ref().is_some_and(|token| authorization != format!("Bearer {token}")) {
        return Err(Refusal::new(401, "Unauthorized", "Unauthorized"));
    }
    let Some(failing) = state.failing.as_mut().filter(|f| f.requests > 0) else { return Ok(()) };
    failing.requests -= 1;
    let message = format!("failed on demand, {} more", failing.requests);
    Err(Refusal { retry_after: failing.retry_after, ..Refusal::new(failing.code, "OnDemand", message) })
}

fn route(request: &Request, shared: &Arc<Shared>) -> Result<Response<Body>, Refusal> {
    let not_found = || Refusal::new(404, "NotFound", "the server could not find the requested resource");
    let parts: Vec<_> = request.path.split('/').skip(1).collect();
    let (api_version, rest) = match &parts[..] {
        ["version"] => return Ok(json_response(&json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0-sluice-test"}))),
        ["readyz" | "livez" | "healthz"] => return Ok(response(StatusCode::OK, full("ok"))),
        ["api", version, rest @ ..] => ((*version).to_owned(), rest),
        ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
        _ => return Err(not_found()),
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
        rest => (None, rest),
    };
    let resource = |name| Resource::named(&api_version, name).ok_or_else(not_found);
    match rest {
        [name] => collection(request, resource(name)?, namespace, shared),
        [name, object] => {
            let found = shared.state().store.get(resource(name)?.name, namespace.unwrap_or_default(), object);
            found.map(|object| json_response(&object)).ok_or_else(not_found)
        }
        _ => Err(not_found()),
    }
}

fn collection(
    request: &Request,
    resource: &'static Resource,
    namespace: Option<&str>,
    shared: &Arc<Shared>,
) -> Result<Response<Body>, Refusal> {
    let selector = Selector::new(request.parameter("labelSelector"), request.parameter("fieldSelector"));
    let selector = match namespace {
        Some(namespace) => selector.within(namespace),
        None => selector,
    };
    if request.is_watch() {
        let wanted = wanted(request, resource, selector, shared.state().watch_list)?;
        let watch = Watch::new(Arc::clone(shared), wanted);
        return Ok(response(StatusCode::OK, StreamBody::new(stream::unfold(watch, Watch::next)).boxed_unsync()));
    }
    let limit = request.parameter("limit").parse().ok().filter(|&limit| limit > 0);
    let mut state = shared.state();
    let page = match request.parameter("continue") {
        "" => state.store.first_page(resource.name, &selector, limit),
        token => state.store.next_page(token, limit)?,
    };
    Ok(list(page, resource, state.break_list_after))
}

fn wanted(request: &Request, resource: &'static Resource, selector: Selector, mode: WatchList) -> Result<Wanted, Refusal> {
    let initial = request.parameter("sendInitialEvents") == "true";
    let bookmarks = matches!(request.parameter("allowWatchBookmarks"), "true" | "1");
    let invalid =
        |why: &str| Refusal::new(422, "Invalid", format!("ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: {why}"));
    if initial && mode == WatchList::Refused {
        return Err(invalid("Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"));
    }
    if initial && mode == WatchList::Supported && request.parameter("resourceVersionMatch") != "NotOlderThan" {
        return Err(invalid("Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"));
    }
    let position = match request.parameter("resourceVersion") {
        "" | "0" => None,
        text => Some(text.parse().map_err(|_| Refusal::new(400, "BadRequest", format!("invalid resource version {text:?}")))?),
    };
    Ok(Wanted {
        resource,
        selector,
        position: position.filter(|_| !initial),
        mark_initial_end: initial && bookmarks && mode == WatchList::Supported,
        bookmarks,
        timeout: Duration::from_secs(request.parameter("timeoutSeconds").parse().unwrap_or(1800)),
    })
}

/// A list is sent in pieces, so that it can break off in the middle.
fn list(page: Page, resource: &Resource, broken: Option<(usize, Break)>) -> Response<Body> {
    let Page { revision, items, continue_token } = page;
    let metadata = json!({"resourceVersion": revision.to_string(), "continue": continue_token});
    let mut pieces = vec![Ok(format!(
        r#"{{"kind":"{}List","apiVersion":"{}","metadata":{metadata},"items":["#,
        resource.kind, resource.api_version
    ))];
    let whole = items.len();
    let broken = broken.filter(|&(count, _)| count < whole);
    let sent = broken.map_or(whole, |(count, _)| count);
    for (number, item) in items.iter().take(sent).enumerate() {
        let mut item = Value::clone(item);
        if let Some(fields) = item.as_object_mut() {
            // As in a typed list.
            fields.remove("kind");
            fields.remove("apiVersion");
        }
        pieces.push(Ok(if number == 0 { item.to_string() } else { format!(",{item}") }));
    }
    match broken {
        Some((_, Break::Cut)) => pieces.push(Err(io::Error::other("broken off on demand"))),
        Some((_, Break::End)) => {}
        None => pieces.push(Ok("]}".into())),
    }
    let frames = stream::iter(pieces).then(async |piece: io::Result<String>| {
        flushed_before(&piece).await;
        piece.map(|text| Frame::data(Bytes::from(text)))
    });
    response(StatusCode::OK, StreamBody::new(frames).boxed_unsync())
}

fn refuse(refusal: Refusal) -> Response<Body> {
    let Refusal { code, reason, message, details, retry_after } = refusal;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "details": details, "code": code});
    let mut response = response(StatusCode::from_u16(code).unwrap(), full(status.to_string()));
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn json_response(value: &Value) -> Response<Body> {
    response(StatusCode::OK, full(value.to_string()))
}

fn response(status: StatusCode, body: Body) -> Response<Body> {
    Response::builder().status(status).header(CONTENT_TYPE, "application/json").body(body).unwrap()
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// The parameters of a query, decoded.
fn query(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (unescape(k), unescape(v))).collect()
}

fn unescape(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next().unwrap_or(b'0'), bytes.next().unwrap_or(b'0')];
                u8::from_str_radix(&String::from_utf8_lossy(&digits), 16).unwrap_or(b'?')
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&plain).into_owned()
}
