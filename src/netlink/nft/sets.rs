//! Sets in rules: the kernel's rules hold a set's number, ours its name.
//!
//! A set has its number for as long as it exists; swapping two sets exchanges what they hold, not their numbers. One that
//! was removed and made again may have another: each transaction asks anew.

use std::collections::BTreeMap;

use super::super::attr::flag;
use super::super::errno::Errno;
use super::super::error::{Error, Refusal, Step};
use super::super::ipset::wire::{IPSET_ATTR_SETNAME, kind};
use super::super::ipset::{read_index, write_header_listing, write_protocol};
use super::NftKernel;
use super::batch::Batch;
use super::wire::NFGENMSG;
use crate::ruleset::{SetName, Transaction};

impl NftKernel {
    /// Puts in the numbers of the sets that the rules of a batch name. Where one does not exist, the operations that name
    /// it are refused, and nothing was sent.
    pub(super) fn number_sets(&mut self, batch: &mut Batch, transaction: &Transaction) -> Result<(), Error> {
        let mut known: BTreeMap<SetName, Option<u16>> = BTreeMap::new();
        let mut refusals: Vec<Refusal> = Vec::new();
        for set in batch.take_sets() {
            let index = match known.get(&set.name) {
                Some(index) => *index,
                None => *known.entry(set.name.clone()).or_insert(self.set_index(&set.name)?),
            };
            match index {
                Some(index) => batch.number_set(&set, index),
                None if refusals.last().is_some_and(|last| last.op == set.op) => {}
                None => {
                    let text = format!("{} (there is no set {})", transaction.ops[set.op], set.name);
                    refusals.push(Refusal { op: set.op, errno: Errno::ENOENT, text });
                }
            }
        }
        if refusals.is_empty() { Ok(()) } else { Err(Error::Refused(refusals)) }
    }

    /// The number of a set; `None` where it does not exist.
    fn set_index(&mut self, set: &SetName) -> Result<Option<u16>, Error> {
        let request = self.request(kind::GET_BY_NAME, 0, 0, |w| {
            write_protocol(w);
            w.text(IPSET_ATTR_SETNAME, set.as_str());
        });
        match self.ask(Step::ReadSets, &request, kind::GET_BY_NAME, |message| read_index(message.attributes(NFGENMSG))) {
            Err(Error::Failed { errno: Errno::ENOENT, .. }) => Ok(None),
            other => other,
        }
    }

    /// The names of all sets, by number.
    pub(super) fn set_names(&mut self) -> Result<BTreeMap<u16, SetName>, Error> {
        let mut names = BTreeMap::new();
        let request = self.request(kind::LIST, flag::DUMP, 0, |w| {
            write_protocol(w);
            write_header_listing(w);
        });
        self.dump(Step::ReadSets, &request, &mut |message| {
            let attributes = message.attributes(NFGENMSG);
            let name = attributes.get(IPSET_ATTR_SETNAME).and_then(|a| a.text()).map(SetName::from);
            names.extend(read_index(attributes).zip(name));
        })?;
        Ok(names)
    }
}
