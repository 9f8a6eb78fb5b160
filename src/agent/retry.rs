//! When to try again what failed: soon at first, then after twice as long each time.

use std::time::Duration;

use tokio::time::Instant;

/// After the first failure the next try comes after this long, then twice as long, and so on.
pub const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(30);

/// How often something has failed in a row, and when it may be tried again.
#[derive(Debug, Default)]
pub struct Retry {
    failures: u32,
    not_before: Option<Instant>,
}

impl Retry {
    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// No try before this; `None`: at once.
    pub fn not_before(&self) -> Option<Instant> {
        self.not_before
    }

    /// It failed once more. Gives how long it is to wait.
    pub fn failed(&mut self) -> Duration {
        let wait = (FIRST * 2_u32.saturating_pow(self.failures)).min(LAST);
        self.failures = (self.failures + 1).min(16);
        self.not_before = Some(Instant::now() + wait);
        wait
    }

    /// It worked. Gives how often it had failed before.
    pub fn succeeded(&mut self) -> u32 {
        std::mem::take(self).failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_half_a_minute_and_begin_anew() {
        let mut retry = Retry::default();
        assert_eq!((retry.failures(), retry.not_before()), (0, None));
        let waits: Vec<_> = (0..20).map(|_| retry.failed().as_millis()).collect();
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!((waits[8], waits[9], waits[19]), (25_600, 30_000, 30_000));
        assert!(retry.not_before().is_some());
        assert_eq!((retry.succeeded(), retry.failures(), retry.not_before()), (16, 0, None));
        assert_eq!(retry.failed().as_millis(), 100);
    }
}
