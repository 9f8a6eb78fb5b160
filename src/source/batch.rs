//! What a list or a file brings, on the way to one event: values by key, and the problems met.
//!
//! A batch that is dropped half-way has changed nothing: that is how half a list is forgotten.

use std::collections::{BTreeMap, HashMap};

use tracing::warn;

use super::Watched;
use crate::model::{Event, ObjectKey, Parsed, Problem};

/// Everything there is of a kind, as far as it has come.
#[derive(Debug)]
pub(crate) struct Batch<W> {
    values: BTreeMap<ObjectKey, W>,
    problems: HashMap<ObjectKey, Vec<Problem>>,
}

impl<W> Default for Batch<W> {
    fn default() -> Self {
        Self { values: BTreeMap::new(), problems: HashMap::new() }
    }
}

impl<W: Watched> Batch<W> {
    /// Takes an object in. The later of two with one key wins.
    pub(crate) fn add(&mut self, parsed: Parsed<W>) {
        self.forget(&parsed.key);
        if !parsed.problems.is_empty() {
            self.problems.insert(parsed.key.clone(), parsed.problems);
        }
        if let Some(value) = parsed.value {
            self.values.insert(parsed.key, value);
        }
    }

    pub(crate) fn forget(&mut self, key: &ObjectKey) {
        self.values.remove(key);
        self.problems.remove(key);
    }

    /// Logs the problems that were not told before.
    pub(crate) fn tell(&mut self, complaints: &mut Complaints) {
        complaints.told.retain(|key, _| self.problems.contains_key(key));
        for (key, problems) in std::mem::take(&mut self.problems) {
            complaints.tell(W::KIND, &key, problems);
        }
    }

    /// All problems as lines of text, in the order of the objects.
    pub(crate) fn describe_problems(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.problems.iter().collect();
        lines.sort_by_key(|(key, _)| *key);
        lines.iter().flat_map(|(key, list)| list.iter().map(move |p| format!("{} {key}: {p}", W::KIND))).collect()
    }

    pub(crate) fn into_values(self) -> Vec<(ObjectKey, W)> {
        self.values.into_iter().collect()
    }

    pub(crate) fn into_event(self) -> Event {
        W::all(self.into_values())
    }
}

/// The problems already told of, so that an object that is sent again and again is complained of once.
///
/// Only objects that have a problem take memory here.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    told: HashMap<ObjectKey, Vec<Problem>>,
}

impl Complaints {
    /// Logs what is new among an object's problems and forgets those it no longer has.
    pub(crate) fn tell(&mut self, kind: &str, key: &ObjectKey, problems: Vec<Problem>) {
        for problem in self.news(key, problems) {
            warn!("{kind} {key}: {problem}");
        }
    }

    fn news(&mut self, key: &ObjectKey, problems: Vec<Problem>) -> Vec<Problem> {
        if problems.is_empty() {
            self.told.remove(key);
            return problems;
        }
        let told = self.told.entry(key.clone()).or_default();
        let news = problems.iter().filter(|problem| !told.contains(problem)).cloned().collect();
        *told = problems;
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(cause: &str) -> Problem {
        Problem { field: "spec".into(), cause: cause.into() }
    }

    #[test]
    fn a_problem_is_told_once_per_object_and_text() {
        let mut complaints = Complaints::default();
        let (web, dns) = (ObjectKey::new("default", "web"), ObjectKey::new("default", "dns"));
        assert_eq!(complaints.news(&web, vec![problem("a")]), [problem("a")]);
        assert_eq!(complaints.news(&web, vec![problem("a"), problem("b")]), [problem("b")]);
        assert_eq!(complaints.news(&dns, vec![problem("a")]), [problem("a")]);
        assert_eq!(complaints.news(&web, vec![problem("b")]), []);
        assert_eq!(complaints.news(&web, vec![]), []);
        assert_eq!(complaints.news(&web, vec![problem("b")]), [problem("b")], "mended and broken again");
    }
}
