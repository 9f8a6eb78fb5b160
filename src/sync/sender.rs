//! Sends the steps of a plan, counts, and says of a refusal whose rules it was about.

use std::collections::{BTreeMap, BTreeSet};

use super::{Summary, knowledge, removal};
use crate::net::Family;
use crate::netlink::{Error, Kernel, Refusal};
use crate::render::Context;
use crate::ruleset::{Applied, ChainName, Handle, Layout, Op, Owner, Rule, Step, Table, Target, Touched, Transaction};
use crate::serve::metrics::{Metrics, Sent, TransactionResult};

/// The way to the kernel during one sync.
pub(super) struct Sender<'a> {
    kernel: &'a mut dyn Kernel,
    metrics: &'a Metrics,
    family: Family,
    pub summary: Summary,
    /// Rules added, by table.
    pub written: BTreeMap<Table, u64>,
}

/// A step that was not committed.
#[derive(Debug)]
pub(super) struct Failure {
    pub error: Error,
    /// Whose operations the kernel refused, each with the first of them; `None`: everybody's ground. Empty where it
    /// named no operation.
    pub authors: BTreeMap<Option<Owner>, Refusal>,
    /// The chains those operations are about: who refuses may know them otherwise than we do.
    pub chains: Touched,
    /// What it would have meant.
    pub step: Step,
}

/// A step that was committed, to be written down.
#[derive(Debug)]
pub(super) struct Done {
    step: Step,
    handles: Vec<Handle>,
    /// Chains that were to go and had to stay, now empty.
    pub stayed: Vec<(Table, ChainName)>,
}

impl Done {
    pub fn record(self, applied: &mut Applied) {
        applied.record(self.step, &self.handles);
        applied.keep_empty(self.stayed);
    }
}

impl<'a> Sender<'a> {
    pub fn new(kernel: &'a mut dyn Kernel, metrics: &'a Metrics, family: Family) -> Self {
        Self { kernel, metrics, family, summary: Summary::default(), written: BTreeMap::new() }
    }

    pub fn commit(&mut self, mut step: Step) -> Result<Done, Box<Failure>> {
        let transaction = step.take_transaction();
        let outcome = if transaction.is_empty() {
            Ok((Vec::new(), Vec::new()))
        } else if transaction.only_removes() {
            removal::commit(self, &transaction).map(|stayed| (Vec::new(), stayed))
        } else {
            self.send(&transaction).map(|handles| (handles, Vec::new()))
        };
        match outcome {
            Ok((handles, stayed)) => Ok(Done { step, handles, stayed }),
            Err(error) => Err(Box::new(Failure::new(step, &transaction, error))),
        }
    }

    /// Sends one transaction and counts it. Gives the handles of the rules it added.
    pub fn send(&mut self, transaction: &Transaction) -> Result<Vec<Handle>, Error> {
        self.summary.transactions += 1;
        self.summary.operations += transaction.len();
        let outcome = self.kernel.commit(transaction);
        let bytes = outcome.as_ref().map_or(0, |committed| committed.bytes);
        self.summary.bytes += bytes;
        let result = result_of(&outcome);
        self.metrics.transaction_sent(self.family, Sent { result, operations: transaction.len() as u64, bytes: bytes as u64 });
        let committed = self.counted(outcome)?;
        for op in transaction.ops.iter().filter(|op| matches!(op, Op::AddRule { .. })) {
            *self.written.entry(op.table()).or_default() += 1;
        }
        Ok(committed.handles)
    }

    /// Reads everything, and tells apart what is whose.
    pub fn read_back(&mut self, context: &Context<'_>, layout: &'static Layout) -> Result<Applied, Error> {
        let outcome = knowledge::read_back(self.kernel, context, layout);
        self.counted(outcome)
    }

    /// Reads everything for nobody: all that is ours in `layout` is a leftover.
    pub fn read_without_owners(&mut self, layout: &'static Layout) -> Result<Applied, Error> {
        let outcome = knowledge::read_all(self.kernel, self.family, layout);
        Ok(self.counted(outcome)?.adopt().finish())
    }

    /// Reads what may have changed. Gives the owners whose rules are not as remembered.
    pub fn look_again(
        &mut self,
        layout: &'static Layout,
        touched: &Touched,
        applied: &mut Applied,
    ) -> Result<BTreeSet<Owner>, Error> {
        let outcome = knowledge::look_again((self.kernel, self.family), layout, touched, applied);
        self.counted(outcome)
    }

    fn counted<T>(&self, outcome: Result<T, Error>) -> Result<T, Error> {
        if let Some(errno) = outcome.as_ref().err().and_then(Error::errno) {
            self.metrics.netlink_failed(errno.0);
        }
        outcome
    }
}

impl Failure {
    fn new(step: Step, transaction: &Transaction, error: Error) -> Self {
        let (mut chains, mut authors) = (Touched::default(), BTreeMap::new());
        if let Error::Refused(refusals) = &error {
            for refusal in refusals {
                add_chains(&mut chains, transaction.ops.get(refusal.op));
                authors.entry(step.author(refusal.op).cloned()).or_insert_with(|| refusal.clone());
            }
        }
        Self { error, authors, chains, step }
    }
}

/// The chains that a refused operation is about.
fn add_chains(chains: &mut Touched, op: Option<&Op>) {
    match op {
        // The table is gone, or somebody made the chain first, and with it rules elsewhere.
        Some(Op::AddTable(_) | Op::AddChain { .. }) => chains.merge(Touched::everything()),
        Some(op) => op.chain().into_iter().for_each(|chain| chains.add(op.table(), chain.clone())),
        None => {}
    }
    if let Some(Op::AddRule { table, rule: Rule { target: Some(Target::Jump(to)), .. }, .. }) = op {
        chains.add(*table, to.clone());
    }
}

fn result_of<T>(outcome: &Result<T, Error>) -> TransactionResult {
    match outcome {
        // The transaction is in the kernel, only its handles have to be read.
        Ok(_) | Err(Error::HandlesUnknown) => TransactionResult::Committed,
        Err(Error::Refused(_) | Error::RefusedWhole { .. }) => TransactionResult::Refused,
        Err(_) => TransactionResult::Failed,
    }
}
