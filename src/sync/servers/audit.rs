//! A cheap look at what the kernel has, as IPVS and ipset tell nobody of changes: all virtual servers and all headers of
//! sets in one dump each, the addresses, and the real servers of a few virtual servers in turn.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use super::ledger::{Known, Real};
use super::read::{find, is_as_ours};
use super::{ServerSync, room_of};
use crate::config::RuleConfig;
use crate::net::Family;
use crate::netlink::Error;
use crate::netlink::address::DeviceChange;
use crate::render::ipvs::SetId;
use crate::ruleset::{VirtualAddress, VirtualServer};

/// So many virtual servers' real servers are looked at with one audit. Each costs a dump, on an emulated machine some 0.3 ms.
const SHARE: usize = 64;

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
        Ok(self.audit_sets()? + self.audit_addresses()? + self.audit_servers(config)?)
    }

    fn audit_sets(&mut self) -> Result<usize, Error> {
        let headers = self.kernel.0.sets()?;
        let mut different = 0;
        for set in SetId::ALL {
            let header = find(&headers, set, self.family);
            let members = header.map_or(0, |header| header.members as usize);
            let is_as_known = match header {
                Some(header) if is_as_ours(header, set, self.family) => {
                    let room = room_of(set.kind(), header.max_members);
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
        let found = self.kernel.0.addresses(self.family)?;
        let is_as_known = match (&found, &self.addresses) {
            (Some(found), Some(known)) => found.len() == known.len() && found.iter().all(|address| known.contains(address)),
            (found, known) => found.is_none() && known.is_none(),
        };
        if is_as_known {
            return Ok(0);
        }
        let before = self.addresses.clone();
        self.note_addresses(found);
        self.ground_lost |= self.addresses.is_none();
        let now = self.addresses.iter().flatten().collect::<BTreeSet<_>>();
        let before = before.iter().flatten().collect::<BTreeSet<_>>();
        Ok(now.symmetric_difference(&before).count().max(1))
    }

    /// All virtual servers, and the real servers of the next few of them, in the kernel's order.
    fn audit_servers(&mut self, config: &RuleConfig) -> Result<usize, Error> {
        if self.ledger.known_server_count() == 0 {
            // The kernel lists both families together: where one has no Services it need not be asked for them again.
            return Ok(0);
        }
        let glance = self.kernel.0.servers_at_a_glance(self.family)?;
        if self.are_as_known(&glance, config) {
            return self.audit_reals(&glance);
        }
        let found = self.kernel.0.servers(self.family)?;
        let there: HashSet<_> = found.iter().map(|(at, _)| at).collect();
        let missing: Vec<_> = self.ledger.known_servers().map(|(at, _)| *at).filter(|at| !there.contains(at)).collect();
        let mut different = missing.len();
        for at in missing {
            self.ledger.find_server(at, None);
        }
        for (at, server) in &found {
            let known = self.ledger.known(at);
            if known.is_some_and(|known| known.server == *server) || (known.is_none() && !self.is_ours(at, config)) {
                continue;
            }
            let reals = self.read_reals(at)?;
            self.ledger.find_server(*at, Some(Known { server: *server, reals }));
            different += 1;
        }
        Ok(different + self.audit_reals(&found)?)
    }

    fn are_as_known(&self, servers: &[(VirtualAddress, VirtualServer)], config: &RuleConfig) -> bool {
        let mut count = 0;
        let mut is_as_known = |(at, server): &(VirtualAddress, VirtualServer)| match self.ledger.known(at) {
            Some(known) => {
                count += 1;
                known.server == *server
            }
            None => !self.is_ours(at, config),
        };
        servers.iter().all(&mut is_as_known) && count == self.ledger.known_server_count()
    }

    fn audit_reals(&mut self, servers: &[(VirtualAddress, VirtualServer)]) -> Result<usize, Error> {
        let mut different = 0;
        let share = servers.iter().skip(self.audited).take(SHARE);
        // Behind the last one it begins anew.
        self.audited = if share.len() == SHARE { self.audited + SHARE } else { 0 };
        for (at, _) in share {
            let found = self.read_reals(at)?;
            let Some(known) = self.ledger.known(at) else { continue };
            let is_known = |real: &Real| known.reals.contains(real);
            if found.len() != known.reals.len() || !found.iter().all(is_known) {
                different += 1;
                let server = known.server;
                self.ledger.find_server(*at, Some(Known { server, reals: found }));
            }
        }
        Ok(different)
    }
}

/// The kernel gives devices link-local addresses by itself; they are none of ours.
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}
