//! What the kernel holds, found out: everything at start and after a failure, single chains after somebody's change.

use std::collections::BTreeSet;

use crate::net::Family;
use crate::netlink::{Error, Kernel, Seen};
use crate::render::{self, Context};
use crate::ruleset::{Adoption, Applied, Found, Layout, Owner, Touched};

/// How often the rules are read in the hope that nobody changes any meanwhile.
const READINGS: usize = 2;

/// Reads what the kernel holds and hands it to those who want it.
pub(super) fn read_back(kernel: &mut dyn Kernel, context: &Context<'_>, layout: &'static Layout) -> Result<Applied, Error> {
    let found = read_all(kernel, context.family, layout)?;
    let nothing = found.is_nothing();
    let mut adoption: Adoption = found.adopt();
    let (owner, block) = render::mode(context);
    adoption.take(&owner, &block);
    // On a node that never had such rules there is nothing to hand out, and nothing to render for it.
    if !nothing {
        let parts = context.state.services().flat_map(|(key, _)| render::service(context, key));
        parts.for_each(|part| adoption.take(&part.owner, &part.block));
    }
    Ok(adoption.finish())
}

/// Looks at the chains `touched` and corrects what is remembered. Gives the owners whose rules are not right.
pub(super) fn look_again(
    (kernel, family): (&mut dyn Kernel, Family),
    layout: &'static Layout,
    touched: &Touched,
    applied: &mut Applied,
) -> Result<BTreeSet<Owner>, Error> {
    let found = if touched.is_everything() {
        read_all(kernel, family, layout)?
    } else {
        let mut found = Found::new(layout);
        kernel.read_chains(family, &mut touched.chains(), &mut |seen| note(&mut found, seen))?;
        found
    };
    Ok(applied.refresh(touched, found))
}

/// Everything, told apart by what a chain is in `layout`.
pub(super) fn read_all(kernel: &mut dyn Kernel, family: Family, layout: &'static Layout) -> Result<Found, Error> {
    let mut found = Found::new(layout);
    for _ in 0..READINGS {
        found = Found::new(layout);
        match kernel.read(family, &mut |seen| note(&mut found, seen)) {
            Ok(()) => break,
            // Some programs change rules of theirs all the time, and waiting for them to end may be waiting for
            // ever. What they changed of ours meanwhile they are seen to have changed, and it is looked at again.
            Err(Error::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn note(found: &mut Found, seen: Seen) {
    match seen {
        Seen::Table(table) => found.table(table),
        Seen::Chain { table, chain } => found.chain(table, chain),
        Seen::Rule { table, chain, handle, rule } => found.rule(table, chain, handle, rule.as_ref()),
    }
}
