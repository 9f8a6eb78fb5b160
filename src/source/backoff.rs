//! How long to wait before the next try.
//!
//! Two kinds of failure, two growths: a server that cannot be reached is tried often, because its return
//! should be noticed within a second or two and a refused connection costs nobody anything; a server that
//! answers and refuses may just have started (kube-apiserver then knows of nobody's rights for some seconds) and
//! is tried as often at first, but then it is loaded or of another opinion and is given ever more time. Keeps no
//! clock.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Nobody may send a node away for longer than this.
const LONGEST_RETRY_AFTER: Duration = Duration::from_mins(2);

/// At most this long between tries of a server that may be back any moment.
const SOON: Duration = Duration::from_secs(1);
/// So many refusals in a row may be those of a server that starts: six to ten seconds.
const STARTING: u32 = 12;

/// What kind of failure is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// No answer: refused, reset, timed out, or an answer that ended.
    Connection,
    /// An answer that was a refusal, with the time after which the server wants to be asked again.
    Refusal(Option<Duration>),
}

/// Delays that double from one failure to the next of the same kind, with jitter of a half.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    last: Option<Class>,
    tries: u32,
}

impl Backoff {
    /// The delay before the next try.
    pub(crate) fn next(&mut self, class: Class) -> Duration {
        let same = self.last.is_some_and(|last| std::mem::discriminant(&last) == std::mem::discriminant(&class));
        self.tries = if same { self.tries.saturating_add(1) } else { 0 };
        self.last = Some(class);
        let doubled = |first: Duration, times: u32| first.saturating_mul(1 << times.min(16));
        let full = match class {
            Class::Connection => doubled(Duration::from_millis(100), self.tries).min(SOON),
            Class::Refusal(_) if self.tries < STARTING => doubled(Duration::from_millis(200), self.tries).min(SOON),
            Class::Refusal(_) => doubled(SOON, self.tries - STARTING + 1).min(Duration::from_secs(30)),
        };
        let delay = full / 2 + (full / 2).mul_f64(random_fraction());
        match class {
            Class::Refusal(Some(asked)) => delay.max(asked.min(LONGEST_RETRY_AFTER)),
            _ => delay,
        }
    }

    /// It worked: the next failure is a first one.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// A number of `range`, which must not be empty.
pub(crate) fn random_in(range: std::ops::Range<u32>) -> u32 {
    range.start + random() % (range.end - range.start)
}

/// Between 0 and 1.
fn random_fraction() -> f64 {
    f64::from(random()) / f64::from(u32::MAX)
}

/// The standard library's hasher keys are random enough to spread nodes over time.
fn random() -> u32 {
    let [a, b, c, d, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(backoff: &mut Backoff, class: Class) -> u128 {
        backoff.next(class).as_millis()
    }

    #[test]
    fn a_lost_server_is_tried_at_least_each_second() {
        let mut backoff = Backoff::default();
        assert!((50..=100).contains(&millis(&mut backoff, Class::Connection)));
        assert!((100..=200).contains(&millis(&mut backoff, Class::Connection)));
        for _ in 0..100 {
            assert!(millis(&mut backoff, Class::Connection) <= 1000);
        }
        assert!(millis(&mut backoff, Class::Connection) >= 500);
        backoff.reset();
        assert!(millis(&mut backoff, Class::Connection) <= 100);
    }

    #[test]
    fn a_server_that_starts_is_tried_for_some_seconds_at_least_each_second() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..STARTING).map(|_| backoff.next(Class::Refusal(None))).collect();
        assert!(delays.iter().all(|&delay| delay <= SOON), "{delays:?}");
        assert!(delays.iter().sum::<Duration>() >= Duration::from_secs(5), "{delays:?}");
        assert!(backoff.next(Class::Refusal(None)) >= SOON);
    }

    #[test]
    fn refusals_grow_to_half_a_minute_and_keep_to_retry_after() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.next(Class::Connection);
        }
        assert!(millis(&mut backoff, Class::Refusal(None)) <= 200, "another kind of failure starts anew");
        let asked = Duration::from_secs(7);
        assert_eq!(backoff.next(Class::Refusal(Some(asked))), asked);
        for _ in 0..20 {
            backoff.next(Class::Refusal(None));
        }
        assert!((15_000..=30_000).contains(&millis(&mut backoff, Class::Refusal(None))));
        assert_eq!(backoff.next(Class::Refusal(Some(Duration::from_hours(24)))), LONGEST_RETRY_AFTER);
    }
}
