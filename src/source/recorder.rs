//! What happens to this proxy that the cluster should hear of, as Events of `events.k8s.io`.
//!
//! Best effort: recording never waits and never fails, and a queue that is full takes no more. Who posts them is
//! [`super::sink`].

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use tokio::sync::{mpsc, watch};
use tracing::debug;

/// Events that may wait to be posted.
const QUEUE: usize = 64;

/// How an Event is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Normal,
    Warning,
}

impl Severity {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Something that happened to an object. Two that are equal are one that happened twice.
#[derive(Clone, Debug, PartialEq)]
pub struct Incident {
    pub regarding: ObjectReference,
    pub severity: Severity,
    /// Why, as one word for machines.
    pub reason: &'static str,
    /// What was done or failed, as one word for machines.
    pub action: &'static str,
    /// The whole of it, for people.
    pub note: String,
}

/// Takes in what happens. Clones share one queue.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: Option<mpsc::Sender<Recorded>>,
    waiting: Arc<watch::Sender<usize>>,
}

/// The other end of recorders.
#[derive(Debug)]
pub struct Inbox {
    queue: mpsc::Receiver<Recorded>,
    waiting: Arc<watch::Sender<usize>>,
}

/// An incident and when it happened.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) incident: Incident,
    pub(crate) at: Timestamp,
}

impl Recorder {
    /// A recorder, and what it records, for the API server's part of the process.
    pub fn new() -> (Self, Inbox) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let waiting = Arc::<watch::Sender<usize>>::default();
        (Self { queue: Some(sender), waiting: Arc::clone(&waiting) }, Inbox { queue, waiting })
    }

    /// Where there is no API server nobody hears of anything.
    pub fn deaf() -> Self {
        Self { queue: None, waiting: Arc::default() }
    }

    pub fn record(&self, incident: Incident) {
        let Some(queue) = &self.queue else { return };
        self.waiting.send_modify(|waiting| *waiting += 1);
        if let Err(error) = queue.try_send(Recorded { incident, at: Timestamp::now() }) {
            self.waiting.send_modify(|waiting| *waiting -= 1);
            let (mpsc::error::TrySendError::Full(lost) | mpsc::error::TrySendError::Closed(lost)) = error;
            debug!("event {} dropped: {QUEUE} others wait to be posted", lost.incident.reason);
        }
    }

    /// Waits until all that was recorded is posted or given up, but no longer than `limit`.
    pub async fn settle(&self, limit: Duration) {
        let mut waiting = self.waiting.subscribe();
        // Who is out of time goes without.
        let _ = tokio::time::timeout(limit, waiting.wait_for(|&waiting| waiting == 0)).await;
    }
}

impl Inbox {
    /// The next incident; `None`: there are no recorders any more.
    pub(crate) async fn next(&mut self) -> Option<Recorded> {
        self.queue.recv().await
    }

    /// One incident is dealt with.
    pub(crate) fn done(&self) {
        self.waiting.send_modify(|waiting| *waiting -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incident(note: &str) -> Incident {
        let regarding = ObjectReference { kind: Some("Node".into()), ..ObjectReference::default() };
        Incident { regarding, severity: Severity::Normal, reason: "R", action: "A", note: note.into() }
    }

    #[tokio::test]
    async fn a_full_queue_holds_nobody_up() {
        let (recorder, mut inbox) = Recorder::new();
        (0..QUEUE + 5).for_each(|i| recorder.record(incident(&i.to_string())));
        let mut taken = 0;
        while let Ok(Some(recorded)) = tokio::time::timeout(Duration::from_millis(10), inbox.next()).await {
            assert_eq!(recorded.incident.note, taken.to_string());
            taken += 1;
            inbox.done();
        }
        assert_eq!(taken, QUEUE);
        tokio::time::timeout(Duration::from_secs(5), recorder.settle(Duration::MAX)).await.expect("all is dealt with");
    }

    #[tokio::test]
    async fn who_settles_waits_for_the_last_but_not_for_ever() {
        let (recorder, inbox) = Recorder::new();
        recorder.record(incident("x"));
        let limit = Duration::from_millis(50);
        let begun = tokio::time::Instant::now();
        recorder.settle(limit).await;
        assert!(begun.elapsed() >= limit);
        inbox.done();
        tokio::time::timeout(Duration::from_secs(5), recorder.settle(Duration::MAX)).await.expect("all is dealt with");
        Recorder::deaf().record(incident("unheard"));
    }
}
