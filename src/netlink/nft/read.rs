//! Reading tables, chains and rules back. Of everything in the kernel only the three tables that
//! iptables users share are looked at.

use std::collections::BTreeSet;

use super::super::attr::{Attributes, Message, flag};
use super::super::errno::Errno;
use super::super::error::{Error, Step};
use super::decode;
use super::names::Names;
#[allow(clippy::wildcard_imports, reason = "the numbers of the wire are this file's vocabulary")]
use super::wire::*;
use super::{NftKernel, Seen};
use crate::net::Family;
use crate::ruleset::{ChainName, Handle, Table};

impl NftKernel {
    /// Reads all, and gives the generation of the rules that was read.
    pub(super) fn read_rules(&mut self, family: Family, visit: &mut dyn FnMut(Seen)) -> Result<u32, Error> {
        let before = self.generation()?;
        let mut names = Names::default();
        for table in consistent(Step::ReadTables, Vec::clone, || self.read_tables(family))? {
            visit(Seen::Table(table));
        }
        let chains = consistent(Step::ReadChains, Vec::clone, || self.read_chains(family, &mut names))?;
        for (table, chain) in &chains {
            visit(Seen::Chain { table: *table, chain: chain.clone() });
        }
        // Chain by chain: for each 32 KiB of a table's dump the kernel walks the table from its start
        // (nf_tables_dump_rules), which takes 40 s for 160,000 rules; a chain it finds by its name.
        for (table, chain) in &chains {
            self.go_on()?;
            let seen = self.read_whole_chain((family, *table), chain, &mut names)?;
            seen.into_iter().for_each(&mut *visit);
        }
        // Each dump is consistent in itself; this says whether they belong together.
        if self.generation()? == before { Ok(before) } else { Err(Error::Interrupted) }
    }

    pub(super) fn read_named_chains(
        &mut self,
        family: Family,
        chains: &mut dyn Iterator<Item = &(Table, ChainName)>,
        visit: &mut dyn FnMut(Seen),
    ) -> Result<(), Error> {
        let mut names = Names::default();
        for (table, chain) in chains {
            self.go_on()?;
            if self.chain_exists((family, *table), chain)? {
                visit(Seen::Chain { table: *table, chain: chain.clone() });
                let seen = self.read_whole_chain((family, *table), chain, &mut names)?;
                seen.into_iter().for_each(&mut *visit);
            }
        }
        Ok(())
    }

    fn chain_exists(&mut self, (family, table): (Family, Table), chain: &ChainName) -> Result<bool, Error> {
        let request = self.request(kind::GET_CHAIN, 0, family_number(family), |w| {
            w.text(NFTA_CHAIN_TABLE, table.as_str());
            w.text(NFTA_CHAIN_NAME, chain.as_str());
        });
        match self.ask(Step::ReadChains, &request, kind::NEW_CHAIN, |_| ()) {
            Ok(()) => Ok(true),
            Err(Error::Failed { errno: Errno::ENOENT, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn read_tables(&mut self, family: Family) -> Result<Dumped<Vec<Table>>, Error> {
        let mut tables = Vec::new();
        let request = self.request(kind::GET_TABLE, flag::DUMP, family_number(family), |_| {});
        let undisturbed = self.dump(Step::ReadTables, &request, &mut |message| {
            tables.extend(table(message.attributes(NFGENMSG), NFTA_TABLE_NAME));
        })?;
        Ok((tables, undisturbed))
    }

    pub(super) fn read_chains(&mut self, family: Family, names: &mut Names) -> Result<Dumped<Vec<(Table, ChainName)>>, Error> {
        let mut chains = Vec::new();
        let request = self.request(kind::GET_CHAIN, flag::DUMP, family_number(family), |_| {});
        let undisturbed = self.dump(Step::ReadChains, &request, &mut |message| {
            let attributes = message.attributes(NFGENMSG);
            let name = attributes.get(NFTA_CHAIN_NAME).and_then(|a| a.text());
            if let (Some(table), Some(name)) = (table(attributes, NFTA_CHAIN_TABLE), name) {
                chains.push((table, names.get(name)));
            }
        })?;
        Ok((chains, undisturbed))
    }

    fn read_whole_chain(&mut self, at: (Family, Table), chain: &ChainName, names: &mut Names) -> Result<Vec<Seen>, Error> {
        // A rule never changes: another in its place has another handle.
        let handle = |seen: &Seen| if let Seen::Rule { handle, .. } = seen { Some(*handle) } else { None };
        let handles = |found: &Vec<Seen>| found.iter().map(handle).collect::<Vec<_>>();
        let found = consistent(Step::ReadRules, handles, || self.read_chain_rules(at, chain, names))?;
        if !names.lacks_sets() {
            return Ok(found);
        }
        // The first rule with a set in it. A set that a rule refers to keeps its number.
        names.know_sets(self.set_names()?);
        consistent(Step::ReadRules, handles, || self.read_chain_rules(at, chain, names))
    }

    fn read_chain_rules(
        &mut self,
        (family, table): (Family, Table),
        chain: &ChainName,
        names: &mut Names,
    ) -> Result<Dumped<Vec<Seen>>, Error> {
        let mut found = Vec::new();
        let request = self.request(kind::GET_RULE, flag::DUMP, family_number(family), |w| {
            w.text(NFTA_RULE_TABLE, table.as_str());
            w.text(NFTA_RULE_CHAIN, chain.as_str());
        });
        let undisturbed = self.dump(Step::ReadRules, &request, &mut |message| found.extend(rule(family, message, names)))?;
        Ok((found, undisturbed))
    }
}

/// What was found, and whether nobody committed anything meanwhile.
pub(super) type Dumped<T> = (T, bool);

/// A dump that takes several messages can be overtaken by somebody's change; most are not.
const MAX_TRIES: usize = 20;

/// Dumps until nobody came in between, or until two dumps in a row found the same, told by `essence`: a program that
/// commits all the time interrupts each dump of a long chain, whatever table it is about. One that tells something twice
/// is of two moments, and agrees with none.
fn consistent<T, E: Ord>(
    step: Step,
    essence: impl Fn(&T) -> Vec<E>,
    mut dump: impl FnMut() -> Result<Dumped<T>, Error>,
) -> Result<T, Error> {
    let mut before = None;
    for _ in 0..MAX_TRIES {
        match dump() {
            Ok((found, true)) => return Ok(found),
            Ok((found, false)) => {
                let now = Some(essence(&found)).filter(|now| now.iter().collect::<BTreeSet<_>>().len() == now.len());
                if now.is_some() && now == before {
                    return Ok(found);
                }
                before = now;
            }
            Err(Error::Interrupted) => before = None,
            Err(error) => return Err(error),
        }
    }
    Err(Error::at(step, Errno::EINTR))
}

/// The table an attribute names, if it is one of the shared ones.
pub(super) fn table(attributes: Attributes<'_>, kind: u16) -> Option<Table> {
    let name = attributes.get(kind)?.text()?;
    Table::ALL.into_iter().find(|table| table.as_str() == name)
}

fn rule(family: Family, message: &Message<'_>, names: &mut Names) -> Option<Seen> {
    let attributes = message.attributes(NFGENMSG);
    let table = table(attributes, NFTA_RULE_TABLE)?;
    let chain = names.get(attributes.get(NFTA_RULE_CHAIN)?.text()?);
    let handle = Handle(attributes.get(NFTA_RULE_HANDLE)?.be64()?);
    let expressions = attributes.get(NFTA_RULE_EXPRESSIONS).map(|a| a.nested()).unwrap_or_default();
    Some(Seen::Rule { table, chain, handle, rule: decode::read_rule(family, expressions, names) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of dumps that are all interrupted.
    fn read(dumps: &[&[u8]]) -> Option<Vec<u8>> {
        let mut dumps = dumps.iter();
        let next = || dumps.next().map(|found| (found.to_vec(), false)).ok_or(Error::HandlesUnknown);
        consistent(Step::ReadChains, Vec::clone, next).ok()
    }

    #[test]
    fn two_dumps_that_agree_are_right() {
        assert_eq!(read(&[&[1, 2, 3], &[1, 3], &[1, 2, 3], &[1, 2, 3]]), Some(vec![1, 2, 3]));
        assert_eq!(read(&[&[1, 2, 3], &[1, 3]]), None);
    }

    /// The kernel goes on by number: when something is put in before it comes back, it tells the last once more. That can
    /// happen at the same place again, and a rule that is there twice would be deleted for nobody's.
    #[test]
    fn a_dump_that_tells_something_twice_is_never_right() {
        assert_eq!(read(&[&[1, 2, 2, 3], &[1, 2, 2, 3]]), None);
        assert_eq!(read(&[&[1, 2, 2, 3], &[1, 2, 2, 3], &[1, 2, 3], &[1, 2, 3]]), Some(vec![1, 2, 3]));
    }
}
