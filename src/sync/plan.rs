//! The steps that bring a piece of work about, made as they are asked for.

use std::collections::{HashMap, VecDeque, btree_set};

use super::Programmed;
use super::run::Work;
use crate::model::ObjectKey;
use crate::render::{self, Context};
use crate::ruleset::{Applied, Layout, Planner, Step};

/// Renders Service after Service and gives a step whenever there is enough for one.
pub(super) struct Plan<'a> {
    context: &'a Context<'a>,
    applied: &'a Applied,
    /// What stood there for each Service before.
    before: &'a HashMap<ObjectKey, Programmed>,
    leftovers: bool,
    services: btree_set::Iter<'a, ObjectKey>,
    /// `None`: all is planned.
    planner: Option<Planner>,
    ready: VecDeque<Step>,
    /// What stands there for each Service once all steps are committed.
    pub planned: HashMap<ObjectKey, Programmed>,
}

impl<'a> Plan<'a> {
    pub fn new(
        work: &'a Work,
        context: &'a Context<'a>,
        layout: &'static Layout,
        applied: &'a Applied,
        before: &'a HashMap<ObjectKey, Programmed>,
    ) -> Self {
        let mut planner = Planner::new(applied, layout, context.family);
        if work.mode {
            let (owner, block) = render::mode(context);
            planner.want(applied, &owner, Some(block));
        }
        for owner in &work.gone {
            planner.want(applied, owner, None);
        }
        let services = work.services.iter();
        Self {
            context,
            applied,
            before,
            leftovers: work.leftovers,
            planned: HashMap::with_capacity(services.len()),
            services,
            planner: Some(planner),
            ready: VecDeque::new(),
        }
    }

    fn plan_service(&mut self, planner: &mut Planner, key: &ObjectKey) {
        let parts = render::service(self.context, key);
        let now = Programmed::of(&parts);
        let before = self.before.get(key).map(|before| before.owners.as_slice()).unwrap_or_default();
        for owner in before.iter().filter(|owner| !now.owners.contains(owner)) {
            planner.want(self.applied, owner, None);
        }
        for part in parts.into_iter().filter(|part| now.owners.contains(&part.owner)) {
            planner.want(self.applied, &part.owner, Some(part.block));
        }
        self.planned.insert(key.clone(), now);
    }
}

impl Plan<'_> {
    /// The steps that were not asked for, as far as they are made.
    pub fn into_rest(self) -> impl Iterator<Item = Step> {
        self.planner.into_iter().flat_map(Planner::finish).chain(self.ready)
    }

    /// Takes back a step that nobody commits.
    pub fn put_back(&mut self, step: Step) {
        self.ready.push_front(step);
    }
}

impl Iterator for Plan<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if let Some(mut planner) = self.planner.take() {
            loop {
                if let Some(piece) = planner.take_piece() {
                    self.planner = Some(planner);
                    return Some(piece);
                }
                let Some(key) = self.services.next() else { break };
                self.plan_service(&mut planner, key);
            }
            if self.leftovers {
                planner.want_no_leftovers(self.applied);
            }
            self.ready = planner.finish().into();
        }
        self.ready.pop_front()
    }
}
