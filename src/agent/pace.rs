//! When the next sync may begin. An idle node's change goes out at once; under load, what comes while a sync runs and
//! for as long again as it took shares the next one, so the kernel is busy with us half of the time at most.

use std::time::Duration;

use tokio::time::Instant;

/// The longest pause after a sync: a first load may take many seconds.
const LONGEST: Duration = Duration::from_secs(1);
/// The same before a repair, which has 100 ms from the notification to the commit.
const LONGEST_BEFORE_REPAIR: Duration = Duration::from_millis(20);

/// What a sync is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Services or the node changed.
    Change,
    /// Somebody else changed rules.
    Repair,
}

#[derive(Debug)]
pub struct Pace {
    /// What the user demands between two syncs.
    floor: Duration,
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    ended: Instant,
    took: Duration,
    /// Was anything sent? Who only looked used up nothing of what the user allows.
    sent: bool,
}

impl Pace {
    pub fn new(floor: Duration) -> Self {
        Self { floor, last: None }
    }

    /// No sync before this; `None`: at once.
    pub fn earliest(&self, work: Work) -> Option<Instant> {
        let Last { ended, took, sent } = self.last.as_ref()?;
        let longest = if work == Work::Change { LONGEST } else { LONGEST_BEFORE_REPAIR };
        let floor = if *sent { self.floor } else { Duration::ZERO };
        Some(*ended + floor.max(longest.min(*took)))
    }

    /// A sync ran, of all families that were due.
    pub fn synced(&mut self, started: Instant, ended: Instant, sent: bool) {
        self.last = Some(Last { ended, took: ended.saturating_duration_since(started), sent });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn after(floor: Duration, took: Duration, sent: bool) -> [Duration; 2] {
        let mut pace = Pace::new(floor);
        let started = Instant::now();
        pace.synced(started, started + took, sent);
        [Work::Change, Work::Repair].map(|work| pace.earliest(work).unwrap() - (started + took))
    }

    #[test]
    fn who_is_idle_sends_at_once() {
        assert_eq!(Pace::new(Duration::from_secs(1)).earliest(Work::Change), None);
        assert_eq!(after(Duration::ZERO, Duration::ZERO, true), [Duration::ZERO; 2]);
    }

    #[test]
    fn a_pause_is_as_long_as_what_went_before_but_bounded() {
        assert_eq!(after(Duration::ZERO, 8 * MS, true), [8 * MS, 8 * MS]);
        assert_eq!(after(Duration::ZERO, 150 * MS, true), [150 * MS, LONGEST_BEFORE_REPAIR]);
        assert_eq!(after(Duration::ZERO, 5_000 * MS, true), [LONGEST, LONGEST_BEFORE_REPAIR]);
    }

    #[test]
    fn the_users_floor_holds_after_what_was_sent() {
        assert_eq!(after(2_000 * MS, 8 * MS, true), [2_000 * MS; 2]);
        assert_eq!(after(2 * MS, 8 * MS, true), [8 * MS; 2]);
        assert_eq!(after(2_000 * MS, 8 * MS, false), [8 * MS; 2], "nothing was");
    }
}
