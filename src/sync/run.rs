//! One sync under way: work is planned and committed, and when the kernel refuses it, taken apart until the Service
//! that it will not have is alone.
//!
//! A refusal has two causes. Either somebody changed what we remember: then the chains it is about are read again, and
//! the plan is made anew. Or the rules themselves are not to the kernel's liking: then the Service they belong to is left
//! out with what it had before, and the others go on without it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::resume_unwind;
use std::sync::mpsc::{self, SendError};
use std::{iter, mem, thread};

use super::plan::Plan;
use super::sender::{Done, Failure, Sender};
use super::{Known, LeftOut, Programmed};
use crate::model::ObjectKey;
use crate::netlink::{Errno, Error, Refusal};
use crate::render::{self, Context};
use crate::ruleset::{Applied, Layout, Owner, Step};

/// So many refusals in one sync are no longer about single Services.
const MAX_REFUSALS: usize = 64;
/// Who changes our rules so often between two attempts is not to be outrun: that is for later.
const MAX_OVERTAKEN: usize = 5;

/// From so many operations in the first step on, the next step is made while one is committed: the kernel needs longer
/// than we do, and there is another core.
const PIPED: usize = 5000;

/// A part of what is to be done.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// The mode's own rules.
    pub mode: bool,
    /// Owners that are to have nothing any more.
    pub gone: BTreeSet<Owner>,
    /// What belongs to nobody.
    pub leftovers: bool,
    pub services: BTreeSet<ObjectKey>,
}

impl Work {
    /// Two parts to be tried one after the other; the whole again where it cannot be divided. What nobody wants goes
    /// last: a Service may come to want it.
    fn divided(mut self) -> Result<[Self; 2], Self> {
        if self.services.is_empty() {
            return Err(self);
        }
        if self.mode || !self.gone.is_empty() {
            let (leftovers, services) = (self.leftovers, mem::take(&mut self.services));
            return Ok([Self { leftovers: false, ..self }, Self { leftovers, services, ..Self::default() }]);
        }
        let middle = self.services.iter().nth(self.services.len() / 2).cloned();
        match middle.filter(|_| self.services.len() > 1) {
            Some(middle) => {
                let second = self.services.split_off(&middle);
                Ok([Self { leftovers: false, ..self }, Self { services: second, leftovers: self.leftovers, ..Self::default() }])
            }
            None => Err(self),
        }
    }
}

pub(super) struct Run<'a, 'k> {
    pub sender: Sender<'k>,
    pub context: &'a Context<'a>,
    pub layout: &'static Layout,
    pub applied: Applied,
    pub adopted: bool,
    /// What stood there for each Service before.
    pub before: &'a HashMap<ObjectKey, Programmed>,
    pub planned: HashMap<ObjectKey, Programmed>,
    pub left_out: BTreeMap<ObjectKey, LeftOut>,
    /// Services that were refused once already: what is refused for a passing reason is not refused twice.
    suspects: BTreeSet<ObjectKey>,
    refusals: usize,
    /// How often somebody else's changes were the cause.
    overtaken: usize,
}

impl<'a, 'k> Run<'a, 'k> {
    pub fn new(
        sender: Sender<'k>,
        context: &'a Context<'a>,
        layout: &'static Layout,
        known: Known,
        before: &'a HashMap<ObjectKey, Programmed>,
    ) -> Self {
        Self {
            sender,
            context,
            layout,
            applied: known.applied,
            adopted: known.adopted,
            before,
            planned: HashMap::new(),
            left_out: BTreeMap::new(),
            suspects: BTreeSet::new(),
            refusals: 0,
            overtaken: 0,
        }
    }

    /// Does all of `work`, or as much of it as the kernel takes.
    pub fn program(&mut self, work: Work) -> Result<(), Error> {
        let mut waiting = vec![work];
        while let Some(work) = waiting.pop() {
            if let Err(failure) = self.attempt(&work) {
                let mut instead = self.after_failure(work, failure)?;
                if let Some(last) = instead.first_mut() {
                    last.leftovers |= self.applied.has_leftovers();
                }
                waiting.extend(instead);
            }
        }
        Ok(())
    }

    fn attempt(&mut self, work: &Work) -> Result<(), Box<Failure>> {
        let mut plan = Plan::new(work, self.context, self.layout, &self.applied, self.before);
        let first = plan.next();
        let (done, outcome) = match first {
            Some(first) if first.len() >= PIPED => commit_beside(&mut self.sender, first, &mut plan),
            first => commit_all(&mut self.sender, first.into_iter().chain(&mut plan)),
        };
        self.planned.extend(mem::take(&mut plan.planned));
        let rest: Vec<_> = plan.into_rest().collect();
        for done in done {
            done.record(&mut self.applied);
        }
        // What the steps before made superfluous was to go with the last.
        outcome.inspect_err(|failure| self.applied.keep_in_mind(iter::once(&failure.step).chain(&rest)))
    }

    /// What is to be tried instead; the last first.
    fn after_failure(&mut self, work: Work, failure: Box<Failure>) -> Result<Vec<Work>, Error> {
        self.refusals += 1;
        if !is_about_contents(&failure.error) || self.refusals > MAX_REFUSALS {
            return Err(failure.error);
        }
        if !failure.chains.is_empty() {
            let strangers = self.sender.look_again(self.layout, &failure.chains, &mut self.applied)?;
            if !strangers.is_empty() {
                self.overtaken += 1;
                if self.overtaken > MAX_OVERTAKEN {
                    return Err(failure.error);
                }
                return Ok(vec![self.with_owners(work, &strangers)]);
            }
        }
        if let Some(culprits) = self.culprits(&failure.authors) {
            return Ok(vec![self.suspect(work, culprits)]);
        }
        match work.divided() {
            Ok([first, then]) => Ok(vec![then, first]),
            Err(work) if work.services.is_empty() => Err(failure.error),
            Err(work) => {
                let alone = work.services.iter().map(|key| (key.clone(), failure.error.to_string())).collect();
                Ok(vec![self.suspect(work, alone)])
            }
        }
    }

    /// Once more with them; when they are refused again, without them.
    fn suspect(&mut self, work: Work, culprits: Culprits) -> Work {
        if culprits.keys().all(|key| self.suspects.contains(key)) {
            return self.without(work, culprits);
        }
        self.suspects.extend(culprits.into_keys());
        work
    }

    /// The Services that these refused operations belong to; `None` if one of them is not a Service's.
    fn culprits(&self, authors: &BTreeMap<Option<Owner>, Refusal>) -> Option<Culprits> {
        let is_service = |author: &Option<Owner>| matches!(author, Some(Owner::ServicePort(_)));
        let mut found = Culprits::new();
        for (key, programmed) in self.planned.iter().chain(self.before) {
            let refusal = programmed.owners.iter().find_map(|owner| authors.get(&Some(owner.clone())));
            found.extend(refusal.map(|refusal| (key.clone(), format!("the kernel refused {refusal}"))));
        }
        (!found.is_empty() && authors.keys().all(is_service)).then_some(found)
    }

    /// The same work, and what else these owners need.
    fn with_owners(&self, mut work: Work, owners: &BTreeSet<Owner>) -> Work {
        work.mode |= owners.contains(&Owner::Mode);
        let keys = keys_of(&owners.iter().collect(), self.planned.iter().chain(self.before));
        work.services.extend(keys.into_iter().filter(|key| !self.left_out.contains_key(key)));
        work
    }

    /// The same work without these Services. What they had stays as it was; if nobody knows what that was, as after
    /// a start, nothing of it stays: half of it would be worse.
    fn without(&mut self, mut work: Work, culprits: Culprits) -> Work {
        for (key, why) in culprits {
            work.services.remove(&key);
            self.planned.remove(&key);
            for part in render::service(self.context, &key) {
                let chains = part.block.chains.into_iter().map(|chain| (chain.table, chain.name));
                self.applied.abandon(&part.owner, chains);
                if self.adopted {
                    work.gone.insert(part.owner);
                }
            }
            self.left_out.insert(key, LeftOut { why });
        }
        work
    }
}

/// Services, and why the kernel refuses each.
type Culprits = BTreeMap<ObjectKey, String>;

type Outcome = (Vec<Done>, Result<(), Box<Failure>>);

fn commit_all(sender: &mut Sender<'_>, steps: impl Iterator<Item = Step>) -> Outcome {
    let mut done = Vec::new();
    for step in steps {
        match sender.commit(step) {
            Ok(committed) => done.push(committed),
            Err(failure) => return (done, Err(failure)),
        }
    }
    (done, Ok(()))
}

/// The same with a thread that commits, while this one makes the next step.
fn commit_beside(sender: &mut Sender<'_>, first: Step, rest: &mut Plan<'_>) -> Outcome {
    thread::scope(|scope| {
        // One step on its way and one in the making: memory stays bounded.
        let (queue, steps) = mpsc::sync_channel(0);
        let committer = scope.spawn(move || commit_all(sender, steps.into_iter()));
        for step in iter::once(first).chain(&mut *rest) {
            // Nobody takes it: the committer has met a failure, and says so.
            if let Err(SendError(step)) = queue.send(step) {
                rest.put_back(step);
                break;
            }
        }
        drop(queue);
        committer.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// The Services that these owners are parts of. Looks through all Services, but for no owners.
pub(super) fn keys_of<'a>(
    owners: &BTreeSet<&Owner>,
    services: impl Iterator<Item = (&'a ObjectKey, &'a Programmed)>,
) -> BTreeSet<ObjectKey> {
    if owners.is_empty() {
        return BTreeSet::new();
    }
    let hit = |(_, programmed): &(&ObjectKey, &Programmed)| programmed.owners.iter().any(|owner| owners.contains(owner));
    services.filter(hit).map(|(key, _)| key.clone()).collect()
}

/// Was the transaction refused for what is in it, so that a part of it may be taken?
fn is_about_contents(error: &Error) -> bool {
    match error {
        Error::Refused(_) | Error::RefusedWhole { .. } => !error.is_retryable() && error.errno() != Some(Errno::ENOMEM),
        Error::Failed { errno, .. } => *errno == Errno::EMSGSIZE,
        _ => false,
    }
}
