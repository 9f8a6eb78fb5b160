//! Two programs that each put back what the other changed: recognised, and made slow instead of a busy loop.
//!
//! Somebody who flushes the tables once, or deletes this and that by hand, is none of it: what counts is that the same
//! chains must be repaired again and again.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::ruleset::Touched;

/// So many repairs of the same chains within this time are a contest. Nobody does that by hand, nor with a script that
/// looks whether the repair came; two programs that listen to each other do it in a second.
const REPAIRS: usize = 20;
const WITHIN: Duration = Duration::from_secs(10);
/// In a contest the next repair waits this long, the one after twice as long, and so on.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(30);
/// Without a repair for three times the last wait it is over, and not before this.
const QUIET: Duration = Duration::from_secs(10);

/// The repairs of one family's rules, and whether somebody undoes them.
#[derive(Debug, Default)]
pub struct Contest {
    /// When repairs were made of chains that had been repaired shortly before; and the first.
    recent: VecDeque<Instant>,
    /// The chains of those and of others in between.
    chains: Touched,
    slowed: Option<Slowed>,
}

#[derive(Clone, Copy, Debug)]
struct Slowed {
    last: Instant,
    wait: Duration,
}

impl Slowed {
    /// Longer than the wait, or it would be over while a repair waits.
    fn end(self) -> Instant {
        self.last + QUIET.max(self.wait * 3)
    }
}

impl Contest {
    /// A repair was needed and made. True when with this one a contest has begun.
    pub fn repaired(&mut self, touched: &Touched, now: Instant) -> bool {
        if let Some(slowed) = &mut self.slowed {
            *slowed = Slowed { last: now, wait: (slowed.wait * 2).min(LAST_WAIT) };
            return false;
        }
        if self.recent.back().is_none_or(|last| now.duration_since(*last) > WITHIN) {
            self.forget();
        }
        if self.recent.is_empty() || meet(&self.chains, touched) {
            self.recent.push_back(now);
        }
        self.chains.merge(touched.clone());
        self.recent.retain(|at| now.duration_since(*at) <= WITHIN);
        let begins = self.recent.len() >= REPAIRS;
        if begins {
            self.forget();
            self.slowed = Some(Slowed { last: now, wait: FIRST_WAIT });
        }
        begins
    }

    pub fn is_on(&self) -> bool {
        self.slowed.is_some()
    }

    /// No repair before this.
    pub fn not_before(&self) -> Option<Instant> {
        self.slowed.map(|slowed| slowed.last + slowed.wait)
    }

    /// When it is over unless another repair is needed before.
    pub fn end(&self) -> Option<Instant> {
        self.slowed.map(Slowed::end)
    }

    /// Ends it when it has been quiet for long enough; true when it just has.
    pub fn end_if_quiet(&mut self, now: Instant) -> bool {
        self.slowed.take_if(|slowed| now >= slowed.end()).is_some()
    }

    fn forget(&mut self) {
        self.recent.clear();
        self.chains = Touched::default();
    }
}

/// Have they a chain in common?
fn meet(one: &Touched, other: &Touched) -> bool {
    one.is_everything() || one.chains().any(|chain| other.contains(chain)) || other.is_everything()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::Table;

    fn chain(name: &str) -> Touched {
        let mut touched = Touched::default();
        touched.add(Table::Nat, name.into());
        touched
    }

    /// Repairs of these chains in turn, so many milliseconds apart; with which of them a contest began.
    fn begins(chains: &[&str], milliseconds: u64) -> Option<usize> {
        let (mut contest, start) = (Contest::default(), Instant::now());
        let step = Duration::from_millis(milliseconds);
        (0..60_u32).zip(chains.iter().cycle()).position(|(n, name)| contest.repaired(&chain(name), start + step * n))
    }

    #[test]
    fn the_same_chain_twenty_times_in_ten_seconds_is_a_contest() {
        assert_eq!(begins(&["A"], 10), Some(19));
        assert_eq!(begins(&["A"], 500), Some(19));
        assert_eq!(begins(&["A"], 600), None, "seventeen in 10 s");
        assert_eq!(begins(&["A", "B"], 10), Some(20), "the first of B is none of it");
    }

    #[test]
    fn who_deletes_this_and_that_is_no_opponent() {
        let many: Vec<_> = (0..60).map(|n| format!("KUBE-SEP-{n}")).collect();
        assert_eq!(begins(&many.iter().map(String::as_str).collect::<Vec<_>>(), 10), None);
    }

    #[test]
    fn everything_meets_everything() {
        let (mut contest, now) = (Contest::default(), Instant::now());
        let turn = (0..REPAIRS).position(|_| contest.repaired(&Touched::everything(), now));
        assert_eq!(turn, Some(REPAIRS - 1));
    }

    #[test]
    fn repairs_become_slow_until_it_is_quiet() {
        let (mut contest, start) = (Contest::default(), Instant::now());
        assert_eq!((contest.is_on(), contest.not_before(), contest.end()), (false, None, None));
        for _ in 0..REPAIRS {
            contest.repaired(&chain("A"), start);
        }
        let mut now = start;
        let mut waits = Vec::new();
        for _ in 0..7 {
            let next = contest.not_before().unwrap();
            waits.push((next - now).as_secs());
            now = next;
            assert!(!contest.end_if_quiet(now) && !contest.repaired(&chain("A"), now));
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(contest.end(), Some(now + Duration::from_secs(90)));
        assert!(!contest.end_if_quiet(now + Duration::from_secs(89)));
        assert!(contest.end_if_quiet(now + Duration::from_secs(90)) && !contest.is_on());
        assert!(!contest.end_if_quiet(now + Duration::from_secs(95)), "it ends once");
        assert!(!contest.repaired(&chain("A"), now + Duration::from_secs(91)), "and begins anew");
    }
}
