//! The body of a watch: what changed, bookmarks, and the end.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Bytes, Frame};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::selector::Selector;
use super::store::{Entry, Resource};
use super::{Shared, State};

/// What was asked for.
pub struct Wanted {
    pub resource: &'static Resource,
    pub selector: Selector,
    /// `None`: begin with everything there is.
    pub position: Option<u64>,
    /// Mark the end of what there is.
    pub mark_initial_end: bool,
    pub bookmarks: bool,
    pub timeout: Duration,
}

/// A watch in progress.
pub struct Watch {
    shared: Arc<Shared>,
    ticks: watch::Receiver<u64>,
    wanted: Wanted,
    position: u64,
    queue: VecDeque<io::Result<Bytes>>,
    bookmarked: Instant,
    deadline: Instant,
    over: bool,
}

impl Watch {
    pub fn new(shared: Arc<Shared>, wanted: Wanted) -> Self {
        let ticks = shared.ticks.subscribe();
        let now = Instant::now();
        let deadline = now + wanted.timeout;
        let position = wanted.position.unwrap_or_default();
        let mut watch = Self { shared, ticks, wanted, position, queue: VecDeque::new(), bookmarked: now, deadline, over: false };
        if watch.wanted.position.is_none() {
            watch.begin();
        }
        watch
    }

    /// The next piece of the body.
    pub async fn next(mut self) -> Option<(io::Result<Frame<Bytes>>, Self)> {
        loop {
            let (stalled, interval) = self.look();
            if !stalled {
                if let Some(piece) = self.queue.pop_front() {
                    return Some((piece.map(Frame::data), self));
                }
                if self.over {
                    return None;
                }
            }
            let due = self.bookmarked + interval;
            tokio::select! {
                _ = self.ticks.changed() => {}
                () = sleep_until(due), if self.wanted.bookmarks && !stalled => self.bookmark(),
                () = sleep_until(self.deadline), if !stalled => self.over = true,
            }
        }
    }

    /// Everything there is, as if it had just been added.
    fn begin(&mut self) {
        let shared = Arc::clone(&self.shared);
        let state = shared.state();
        let mut objects = state.store.all(self.wanted.resource.name, &self.wanted.selector);
        let broken = state.break_list_after.filter(|&n| n < objects.len());
        objects.truncate(broken.unwrap_or(usize::MAX));
        self.position = state.store.revision;
        for object in objects {
            self.push("ADDED", &object);
        }
        if broken.is_some() {
            self.queue.push_back(Err(io::Error::other("broken off on demand")));
            self.over = true;
        } else if self.wanted.mark_initial_end {
            let mark = self.mark(&json!({"k8s.io/initial-events-end": "true"}));
            self.push("BOOKMARK", &mark);
        }
    }

    /// Queues what changed since the last look. Tells whether we are stalled and how often to bookmark.
    fn look(&mut self) -> (bool, Duration) {
        let shared = Arc::clone(&self.shared);
        let state = shared.state();
        if !self.over && !state.stalled {
            self.take_changes(&state);
        }
        (state.stalled, state.bookmark_interval)
    }

    fn take_changes(&mut self, state: &State) {
        let Ok(entries) = state.store.since(self.position) else {
            let message = format!("too old resource version: {} ({})", self.position, state.store.revision);
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": message, "reason": "Expired", "code": 410});
            self.push("ERROR", &status);
            self.over = true;
            return;
        };
        for entry in entries.iter().filter(|entry| entry.resource == self.wanted.resource.name) {
            self.take(entry);
        }
        // All that is not for us is behind us too; whoever compacts later cannot make us old.
        self.position = state.store.revision;
    }

    /// To a watcher with a selector, an object that no longer matches is deleted.
    fn take(&mut self, entry: &Entry) {
        let selected = |object: &Option<Arc<Value>>| object.clone().filter(|o| self.wanted.selector.matches(o));
        match (selected(&entry.old), selected(&entry.new)) {
            (None, None) => {}
            (None, Some(new)) => self.push("ADDED", &new),
            (Some(_), Some(new)) => self.push("MODIFIED", &new),
            (Some(old), None) => {
                let mut last = Value::clone(&old);
                last["metadata"]["resourceVersion"] = json!(entry.revision.to_string());
                self.push("DELETED", &last);
            }
        }
    }

    fn bookmark(&mut self) {
        self.bookmarked = Instant::now();
        let mark = self.mark(&Value::Null);
        self.push("BOOKMARK", &mark);
    }

    fn mark(&self, annotations: &Value) -> Value {
        let mut metadata = json!({"resourceVersion": self.position.to_string(), "creationTimestamp": null});
        if !annotations.is_null() {
            metadata["annotations"] = annotations.clone();
        }
        json!({"kind": self.wanted.resource.kind, "apiVersion": self.wanted.resource.api_version, "metadata": metadata})
    }

    fn push(&mut self, what: &str, object: &Value) {
        let line = format!("{}\n", json!({"type": what, "object": object}));
        self.queue.push_back(Ok(line.into()));
    }
}
