//! A cheap look at what the kernel has, as IPVS and ipset tell nobody of changes: all virtual servers and all headers of
//! sets in one dump each, the addresses, and the real servers of a few virtual servers in turn.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::ServerSync;
use super::ledger::{Known, Real};
use super::read::{find, is_as_ours};
use crate::config::RuleConfig;
use crate::net::Family;
use crate::netlink::Error;
use crate::netlink::address::DeviceChange;
use crate::render::ipvs::SetId;
use crate::ruleset::{SetType, VirtualAddress};

/// So many virtual servers' real servers are looked at with one audit. Each costs a dump of some 10 µs.
const SHARE: usize = 256;

impl ServerSync {
    /// Looks whether others changed something. What is not as it was is put right with the next sync: gives how many
    /// things that is.
    pub fn audit(&mut self, config: &RuleConfig) -> Result<usize, Error> {
        if self.unread {
            return Ok(0); // the next sync reads everything
        }
        let outcome = self.audit_all(config);
        outcome.inspect_err(|error| self.failed(error))
    }

    fn audit_all(&mut self, config: &RuleConfig) -> Result<usize, Error> {
        Ok(self.audit_sets()? + self.audit_addresses()? + self.audit_servers(config)? + self.audit_reals()?)
    }

    fn audit_sets(&mut self) -> Result<usize, Error> {
        let headers = self.kernel.0.sets()?;
        let mut different = 0;
        for set in SetId::ALL {
            let header = find(&headers, set, self.family);
            let members = header.map_or(0, |header| header.members as usize);
            let is_as_known = match header {
                Some(header) if is_as_ours(header, set, self.family) => {
                    let room = if set.kind() == SetType::BitmapPort { usize::MAX } else { header.max_members as usize };
                    self.sets.get(&set) == Some(&room) && members == self.ledger.known_count(set)
                }
                Some(_) => self.unusable.contains_key(&set),
                None => !self.sets.contains_key(&set) && !self.unusable.contains_key(&set),
            };
            if !is_as_known {
                different += 1;
                self.ground_lost = true;
                self.sets.remove(&set);
                self.unusable.remove(&set);
                self.ledger.forget_set(set);
                header.map_or(Ok(()), |header| self.read_set(set, header))?;
            }
        }
        Ok(different)
    }

    /// The kernel told of changes on the device. Gives how many addresses are not as they were: what we did ourselves is
    /// known already.
    pub fn told(&mut self, changes: &[DeviceChange]) -> Result<usize, Error> {
        let is_news = |change: &DeviceChange| match change {
            DeviceChange::Lost => true,
            DeviceChange::Link { exists } => *exists != self.addresses.is_some(),
            DeviceChange::Address { address, exists } => {
                let known = self.addresses.as_ref().is_some_and(|known| known.contains(address));
                Family::of(*address) == self.family && !is_link_local(*address) && *exists != known
            }
        };
        if self.unread || !changes.iter().any(is_news) {
            return Ok(0);
        }
        let outcome = self.audit_addresses();
        outcome.inspect_err(|error| self.failed(error))
    }

    /// The addresses that the device has, compared with what is known of it.
    fn audit_addresses(&mut self) -> Result<usize, Error> {
        let before = self.addresses.clone();
        self.read_addresses()?;
        if self.addresses == before {
            return Ok(0);
        }
        self.ground_lost |= self.addresses.is_none();
        let now = self.addresses.iter().flatten().collect::<BTreeSet<_>>();
        let before = before.iter().flatten().collect::<BTreeSet<_>>();
        Ok(now.symmetric_difference(&before).count().max(1))
    }

    fn audit_servers(&mut self, config: &RuleConfig) -> Result<usize, Error> {
        let found: BTreeMap<_, _> = self.kernel.0.servers(self.family)?.into_iter().collect();
        let missing: Vec<_> = self.ledger.known_servers().map(|(at, _)| *at).filter(|at| !found.contains_key(at)).collect();
        let mut different = missing.len();
        for at in missing {
            self.ledger.find_server(at, None);
        }
        for (at, server) in found {
            let known = self.ledger.known(&at);
            if known.is_some_and(|known| known.server == server) || (known.is_none() && !self.is_ours(&at, config)) {
                continue;
            }
            let reals = self.kernel.0.real_servers(&at)?.into_iter().map(Real::from).collect();
            self.ledger.find_server(at, Some(Known { server, reals }));
            different += 1;
        }
        Ok(different)
    }

    /// The real servers of the next virtual servers in turn.
    fn audit_reals(&mut self) -> Result<usize, Error> {
        let mut different = 0;
        for at in self.next_share() {
            let mut found: Vec<_> = self.kernel.0.real_servers(&at)?.into_iter().map(Real::from).collect();
            let Some(known) = self.ledger.known(&at).cloned() else { continue };
            let mut reals = known.reals;
            found.sort_by_key(|real| real.address);
            reals.sort_by_key(|real| real.address);
            if found != reals {
                different += 1;
                self.ledger.find_server(at, Some(Known { server: known.server, reals: found }));
            }
        }
        Ok(different)
    }

    fn next_share(&mut self) -> Vec<VirtualAddress> {
        let mut all: Vec<_> = self.ledger.known_servers().map(|(at, _)| *at).collect();
        all.sort_unstable();
        let from = self.audited.map_or(0, |last| all.partition_point(|at| *at <= last));
        let share: Vec<_> = all.into_iter().skip(from).take(SHARE).collect();
        // Behind the last one it begins anew.
        self.audited = share.last().copied().filter(|_| share.len() == SHARE);
        share
    }
}

/// The kernel gives devices link-local addresses by itself; they are none of ours.
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}
