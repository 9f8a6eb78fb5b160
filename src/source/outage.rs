//! A stretch of failures, told of twice: when it begins and when it ends. Not at each try.

use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub(crate) struct Outage {
    since: Option<Instant>,
}

impl Outage {
    /// A try failed. Is it the first, the one to tell of?
    pub(crate) fn begins(&mut self) -> bool {
        let first = self.since.is_none();
        self.since.get_or_insert_with(Instant::now);
        first
    }

    /// A try succeeded. If it ended an outage, how long was that?
    pub(crate) fn ends(&mut self) -> Option<Duration> {
        self.since.take().map(|since| since.elapsed())
    }
}
