//! One kind, listed and then watched for ever.
//!
//! Written by hand instead of on `kube::runtime::watcher`, which cannot fall back from watch-list to
//! pages, forgets its position when an initial list fails, holds no answer's headers (Retry-After) and
//! ends a whole page for one undecodable object.
//!
//! The rules: a list is one event at its end or none at all; the position (resourceVersion) is kept
//! across lost connections, and only a server that no longer knows it (410) makes us list again; every
//! try after the first goes through the back-off.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::kube::api::{ListParams, WatchParams};
use ::kube::core::{Request as Requests, Status};
use tokio::sync::mpsc::Sender;
use tracing::{debug, info, warn};

use super::backoff::{self, Backoff, Class};
use super::batch::{Batch, Complaints};
use super::client::{Chunks, Failure, Purpose, Server};
use super::decode::{self, Change, Line, Page};
use super::outage::Outage;
use super::{Closed, Selectors, Watched};
use crate::model::Event;

/// A watch that lived this long, or brought something, was a working one: its end is no failure.
const WORKING: Duration = Duration::from_secs(5);
/// After this many seconds the server ends a watch by itself: less than five minutes suits what is in
/// between, and different ones keep nodes that started together apart.
const WATCH_SECONDS: std::ops::Range<u32> = 240..290;

/// Why one round ended.
#[derive(Debug)]
enum End {
    Failed(Failure),
    /// The watch ended in order, or was silent for too long: go on where we were.
    Over,
    Closed(Closed),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Closed> for End {
    fn from(closed: Closed) -> Self {
        Self::Closed(closed)
    }
}

#[derive(Debug)]
pub(crate) struct Reflector<W> {
    server: Arc<Server>,
    sender: Sender<Event>,
    selectors: Selectors,
    /// After which resourceVersion to go on; `None`: a list is needed.
    position: Option<String>,
    /// Does the server know watch-list? Assumed until it shows otherwise.
    streams: bool,
    /// Pages are asked for until a list took so long that its continue token expired.
    paged: bool,
    backoff: Backoff,
    refused: Outage,
    /// Was it told that a right is missing?
    forbidden: bool,
    complaints: Complaints,
    kind: std::marker::PhantomData<W>,
}

impl<W: Watched> Reflector<W> {
    pub(crate) fn new(server: Arc<Server>, node_name: &str, sender: Sender<Event>) -> Self {
        Self {
            server,
            sender,
            selectors: W::selectors(node_name),
            position: None,
            streams: true,
            paged: true,
            backoff: Backoff::default(),
            refused: Outage::default(),
            forbidden: false,
            complaints: Complaints::default(),
            kind: std::marker::PhantomData,
        }
    }

    /// Lists and watches until nobody takes the events any more.
    pub(crate) async fn run(mut self) -> Closed {
        let sender = self.sender.clone();
        tokio::select! {
            closed = self.rounds() => closed,
            // A quiet watch sends nothing and would not notice.
            () = sender.closed() => Closed,
        }
    }

    async fn rounds(&mut self) -> Closed {
        loop {
            let class = match self.round().await {
                End::Closed(closed) => return closed,
                End::Over => Class::Connection,
                End::Failed(failure) => {
                    self.report(&failure).await;
                    failure.class()
                }
            };
            let delay = self.backoff.next(class);
            debug!("{}: next try in {delay:?}, from {:?}", W::RESOURCE, self.position);
            tokio::time::sleep(delay).await;
        }
    }

    /// From wherever we are to the end of a watch.
    async fn round(&mut self) -> End {
        let watched = async {
            let mut lines = match self.position.clone() {
                Some(position) => self.open_watch(&position).await?,
                None if self.streams => self.stream_list().await?,
                None => {
                    let position = self.list().await?;
                    self.open_watch(&position).await?
                }
            };
            self.follow(&mut lines).await
        };
        watched.await.err().unwrap_or(End::Over)
    }

    /// Lists page by page and sends what there is. Gives the position of the list.
    async fn list(&mut self) -> Result<String, End> {
        let mut batch = Batch::default();
        let mut token = String::new();
        loop {
            let page = self.page(&token).await.inspect_err(|failure| {
                // A server too slow for its own tokens has to give everything at once.
                if failure.status() == 410 && !token.is_empty() {
                    self.paged = false;
                }
            })?;
            self.server.reachable();
            for item in page.items {
                batch.add(item);
            }
            if page.continue_token.is_empty() {
                self.deliver(batch, &page.resource_version).await?;
                return Ok(page.resource_version);
            }
            token = page.continue_token;
        }
    }

    async fn page(&self, token: &str) -> Result<Page<W>, Failure> {
        let params = ListParams {
            label_selector: some(&self.selectors.labels),
            field_selector: some(&self.selectors.fields),
            limit: self.paged.then_some(self.server.timing().page),
            continue_token: some(token),
            ..ListParams::default()
        };
        let request = Requests::new(W::PATH).list(&params).map_err(|e| Failure::Connection(e.to_string()))?;
        let purpose = if token.is_empty() { Purpose::List } else { Purpose::Page };
        let body = self.server.send_for_bytes(request, purpose).await?;
        Ok(decode::page(&body)?)
    }

    /// Lists by a watch that begins with everything there is, and goes on as a watch.
    async fn stream_list(&mut self) -> Result<Lines, End> {
        let mut lines = match self.open(&self.watch_params().initial_events(), "").await {
            Err(failure @ Failure::Refused { status: 400 | 422, .. }) => return Err(self.list_by_pages(&failure.to_string())),
            opened => opened?,
        };
        self.server.reachable();
        lines.chunks.set_patience(self.server.timing().initial_silence);
        let begun = Instant::now();
        let mut batch = Batch::default();
        loop {
            let text = match lines.next().await {
                Ok(Some(text)) => text,
                Ok(None) => return Err(Failure::BrokenOff("it ended before the list did".into()).into()),
                Err(Failure::Silent(_)) => return Err(self.list_by_pages("the end of the list was never marked")),
                Err(failure) => return Err(failure.in_the_middle().into()),
            };
            let line = decode::line::<W>(&text).map_err(Failure::from)?;
            match line.change {
                Change::Applied(parsed) => batch.add(parsed),
                Change::Deleted(key) => batch.forget(&key),
                Change::Error(status) => return Err(self.refused_inside(&status).into()),
                Change::Bookmark(true) => {
                    self.deliver(batch, &line.resource_version).await?;
                    lines.chunks.set_patience(self.server.timing().silence);
                    return Ok(lines);
                }
                // Each minute or so also while others keep the watch busy.
                Change::Bookmark(false) if begun.elapsed() > 2 * self.server.timing().initial_silence => {
                    return Err(self.list_by_pages("a bookmark came, but not at the end of the list"));
                }
                Change::Bookmark(false) => {}
            }
        }
    }

    /// The server is an older one. It either refuses the parameter of a watch-list, or ignores it: then
    /// it sends objects, perhaps, but never the mark at their end.
    fn list_by_pages(&mut self, sign: &str) -> End {
        info!("{}: the API server does not know watch-list ({sign}), listing by pages", W::RESOURCE);
        self.streams = false;
        End::Over
    }

    async fn open_watch(&mut self, position: &str) -> Result<Lines, End> {
        let opened = self.open(&self.watch_params(), position).await;
        opened.map_err(|failure| {
            self.forget_position_if_gone(&failure);
            End::Failed(failure)
        })
    }

    async fn open(&self, params: &WatchParams, position: &str) -> Result<Lines, Failure> {
        let request = Requests::new(W::PATH).watch(params, position).map_err(|e| Failure::Connection(e.to_string()))?;
        let body = self.server.send(request, Purpose::Watch).await?.into_body();
        Ok(Lines::new(Chunks::new(body, self.server.timing().silence)))
    }

    fn watch_params(&self) -> WatchParams {
        WatchParams {
            label_selector: some(&self.selectors.labels),
            field_selector: some(&self.selectors.fields),
            timeout: Some(backoff::random_in(WATCH_SECONDS)),
            ..WatchParams::default()
        }
    }

    /// Sends on what a watch says, until it ends.
    async fn follow(&mut self, lines: &mut Lines) -> Result<(), End> {
        self.server.reachable();
        let begun = Instant::now();
        let ended = loop {
            match lines.next().await {
                Ok(Some(text)) => self.take(decode::line(&text).map_err(Failure::from)?).await?,
                Ok(None) => break Ok(()),
                Err(failure) => break Err(failure),
            }
            self.backoff.reset();
            self.works();
        };
        if begun.elapsed() > WORKING {
            self.backoff.reset();
            self.works();
        }
        // A connection that breaks is no outage yet: the next try tells.
        debug!("{}: watch ended: {}", W::RESOURCE, ended.err().map_or("in order".into(), |failure| failure.to_string()));
        Ok(())
    }

    async fn take(&mut self, line: Line<W>) -> Result<(), End> {
        match line.change {
            Change::Applied(parsed) => {
                self.complaints.tell(W::KIND, &parsed.key, parsed.problems);
                super::send(&self.sender, W::one(parsed.key, parsed.value)).await?;
            }
            Change::Deleted(key) => {
                self.complaints.tell(W::KIND, &key, Vec::new());
                super::send(&self.sender, W::one(key, None)).await?;
            }
            Change::Bookmark(_) => {}
            Change::Error(status) => return Err(self.refused_inside(&status).into()),
        }
        if !line.resource_version.is_empty() {
            self.position = Some(line.resource_version);
        }
        Ok(())
    }

    async fn deliver(&mut self, mut batch: Batch<W>, resource_version: &str) -> Result<(), End> {
        batch.tell(&mut self.complaints);
        self.works();
        super::send(&self.sender, batch.into_event()).await?;
        self.position = some(resource_version);
        Ok(())
    }

    /// An error that came as a line of a watch.
    fn refused_inside(&mut self, status: &Status) -> Failure {
        let failure = Failure::from_status(status);
        self.forget_position_if_gone(&failure);
        if status.details.iter().flat_map(|d| &d.causes).any(|cause| cause.reason == "ResourceVersionTooLarge") {
            self.position = None; // the server's store was set back to an older state
        }
        failure
    }

    fn forget_position_if_gone(&mut self, failure: &Failure) {
        if failure.status() == 410 {
            info!("{}: the API server no longer knows position {:?}, listing anew", W::RESOURCE, self.position);
            self.position = None;
        }
    }

    /// Not only an answer, but one with something in it.
    fn works(&mut self) {
        self.server.reachable();
        self.forbidden = false;
        if let Some(duration) = self.refused.ends() {
            info!("list and watch {}: works again after {:.1} s", W::RESOURCE, duration.as_secs_f32());
        }
    }

    async fn report(&mut self, failure: &Failure) {
        // A watch that is to bring a list needs the right to watch; what it failed to bring is a list.
        let broke_off = matches!(failure, Failure::BrokenOff(_));
        let verb = if self.position.is_none() && (!self.streams || broke_off) { "list" } else { "watch" };
        match failure {
            Failure::Connection(_) | Failure::Silent(_) => {
                self.server.unreachable(failure);
                self.server.renew(false).await;
            }
            Failure::Refused { status: 410, .. } => self.server.reachable(),
            Failure::Refused { .. } | Failure::Garbage(_) | Failure::BrokenOff(_) => {
                self.server.reachable();
                let forbidden = failure.status() == 403;
                // Whatever was told before: that the right is missing is something an operator can mend.
                let news = forbidden && !self.forbidden;
                self.forbidden |= forbidden;
                if self.refused.begins() || news {
                    let hint = if forbidden { missing_right::<W>() } else { String::new() };
                    warn!("{verb} {}: {failure}; what is known stays, trying again{hint}", W::RESOURCE);
                }
                if failure.status() == 401 {
                    self.server.renew(true).await;
                }
            }
        }
    }
}

/// A body, line by line.
struct Lines {
    chunks: Chunks,
    buffer: Vec<u8>,
    /// Where the next line begins in `buffer`.
    start: usize,
    /// How much of `buffer` is known to hold no further end of line.
    scanned: usize,
}

impl Lines {
    fn new(chunks: Chunks) -> Self {
        Self { chunks, buffer: Vec::new(), start: 0, scanned: 0 }
    }

    /// The next whole line. What follows the last end of line was cut off and is nothing.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            if let Some(length) = self.buffer[self.scanned..].iter().position(|&byte| byte == b'\n') {
                let end = self.scanned + length;
                let line = self.buffer[self.start..end].to_vec();
                self.start = end + 1;
                self.scanned = self.start;
                return Ok(Some(line));
            }
            let Some(chunk) = self.chunks.next().await? else { return Ok(None) };
            // Only here, not at each line: a chunk may hold hundreds of them.
            self.buffer.drain(..self.start);
            self.start = 0;
            self.scanned = self.buffer.len();
            self.buffer.extend_from_slice(&chunk);
        }
    }
}

/// What to do about a refusal for lack of a right, and what does not work before.
fn missing_right<W: Watched>() -> String {
    let resource = W::RESOURCE;
    format!(
        " ({}; the verbs list and watch on {resource} are needed, as ClusterRole system:node-proxier grants them)",
        W::WITHOUT
    )
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
