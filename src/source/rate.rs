//! How many requests the API server is sent: a token bucket, filled as client-go's is.
//!
//! Tokens are taken ahead: whoever finds none is told how long to wait for the one that is now his, so that nobody is
//! overtaken. Keeps no timer.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What client-go takes where it is told 0.
const DEFAULT: Rate = Rate { per_second: 5.0, burst: 10 };

/// How fast requests may follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// In the long run; negative: without a limit, 0: 5.
    pub per_second: f32,
    /// At once; 0: 10.
    pub burst: u32,
}

impl Default for Rate {
    fn default() -> Self {
        DEFAULT
    }
}

impl Rate {
    fn resolve(self) -> Self {
        let per_second = if self.per_second == 0.0 { DEFAULT.per_second } else { self.per_second };
        let burst = if self.burst == 0 { DEFAULT.burst } else { self.burst };
        Self { per_second, burst }
    }
}

/// The tokens there are for requests.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    level: Mutex<Level>,
}

#[derive(Debug)]
struct Level {
    /// Below 0: so many are promised to those who wait.
    tokens: f64,
    at: Instant,
}

impl Bucket {
    pub(crate) fn new(rate: Rate, now: Instant) -> Self {
        let rate = rate.resolve();
        Self { rate, level: Mutex::new(Level { tokens: rate.burst.into(), at: now }) }
    }

    /// Takes a token: how long to wait before it may be used.
    pub(crate) fn take(&self, now: Instant) -> Duration {
        let per_second = f64::from(self.rate.per_second);
        if per_second < 0.0 {
            return Duration::ZERO;
        }
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = level.tokens + now.saturating_duration_since(level.at).as_secs_f64() * per_second;
        *level = Level { tokens: filled.min(self.rate.burst.into()) - 1.0, at: now };
        Duration::try_from_secs_f64(-level.tokens / per_second).unwrap_or_default()
    }

    /// The request that a token was taken for came to nobody: a server that is away is spared nothing by fewer tries,
    /// and its return should be noticed at once.
    pub(crate) fn give_back(&self) {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        level.tokens = (level.tokens + 1.0).min(self.rate.burst.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn millis(bucket: &Bucket, now: Instant) -> u128 {
        bucket.take(now).as_millis()
    }

    #[test]
    fn after_the_burst_each_waits_for_its_turn() {
        let now = Instant::now();
        let bucket = Bucket::new(Rate { per_second: 5.0, burst: 3 }, now);
        assert_eq!([(); 6].map(|()| millis(&bucket, now)), [0, 0, 0, 200, 400, 600]);
        assert_eq!(millis(&bucket, now + SECOND), 0, "five more came, three were promised");
    }

    #[test]
    fn a_quiet_hour_saves_no_more_than_the_burst() {
        let now = Instant::now();
        let bucket = Bucket::new(Rate { per_second: 1.0, burst: 2 }, now);
        let later = now + Duration::from_hours(1);
        assert_eq!([(); 3].map(|()| millis(&bucket, later)), [0, 0, 1000]);
    }

    #[test]
    fn a_token_that_was_not_used_is_the_next_ones() {
        let now = Instant::now();
        let bucket = Bucket::new(Rate { per_second: 1.0, burst: 1 }, now);
        for _ in 0..100 {
            assert_eq!(millis(&bucket, now), 0);
            bucket.give_back();
        }
        bucket.give_back();
        assert_eq!([(); 2].map(|()| millis(&bucket, now)), [0, 1000], "more than the burst was given back");
    }

    #[test]
    fn nothing_is_the_default_and_less_is_no_limit() {
        let now = Instant::now();
        let default = Bucket::new(Rate { per_second: 0.0, burst: 0 }, now);
        assert_eq!([(); 11].map(|()| millis(&default, now))[9..], [0, 200]);
        let free = Bucket::new(Rate { per_second: -1.0, burst: 1 }, now);
        assert_eq!([(); 100].map(|()| millis(&free, now)), [0; 100]);
    }
}
