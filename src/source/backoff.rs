//! How long to wait before the next try.
//!
//! Two kinds of failure, two growths: a server that cannot be reached is tried often, because its return
//! should be noticed within a second or two and a refused connection costs nobody anything; a server that
//! answers and refuses is starting, loaded or of another opinion. It is asked each second at first, since a
//! starting one refuses for some seconds, and then given ever more time. Where it says when to come back, that
//! is when. Keeps no clock.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Nobody may send a node away for longer than this.
const LONGEST_RETRY_AFTER: Duration = Duration::from_mins(2);

/// How often a server that refuses is asked each second: longer than an API server takes from its first
/// answer to its first good one.
const PATIENT_TRIES: u32 = 12;

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
        let second = Duration::from_secs(1);
        let doubled = |first: Duration, tries: u32| first.saturating_mul(1 << tries.min(16));
        let full = match class {
            Class::Connection => doubled(Duration::from_millis(100), self.tries).min(second),
            Class::Refusal(Some(asked)) => {
                // All nodes were told the same: they come back spread over half as long again.
                let asked = asked.clamp(Duration::from_millis(200), LONGEST_RETRY_AFTER);
                return asked + (asked / 2).mul_f64(random_fraction());
            }
            Class::Refusal(None) if self.tries < PATIENT_TRIES => doubled(Duration::from_millis(200), self.tries).min(second),
            Class::Refusal(None) => doubled(second, self.tries - PATIENT_TRIES + 1).min(Duration::from_secs(30)),
        };
        full / 2 + (full / 2).mul_f64(random_fraction())
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
    fn refusals_are_patient_first_and_then_grow_to_half_a_minute() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.next(Class::Connection);
        }
        assert!(millis(&mut backoff, Class::Refusal(None)) <= 200, "another kind of failure starts anew");
        for _ in 1..PATIENT_TRIES {
            assert!(millis(&mut backoff, Class::Refusal(None)) <= 1000);
        }
        assert!((1000..=2000).contains(&millis(&mut backoff, Class::Refusal(None))));
        for _ in 0..10 {
            backoff.next(Class::Refusal(None));
        }
        assert!((15_000..=30_000).contains(&millis(&mut backoff, Class::Refusal(None))));
    }

    #[test]
    fn a_server_that_says_when_is_asked_then() {
        let mut backoff = Backoff::default();
        for _ in 0..30 {
            assert!((1000..=1500).contains(&millis(&mut backoff, Class::Refusal(Some(Duration::from_secs(1))))));
        }
        let day = Duration::from_hours(24);
        assert!((LONGEST_RETRY_AFTER..=LONGEST_RETRY_AFTER * 3 / 2).contains(&backoff.next(Class::Refusal(Some(day)))));
    }
}
