//! What the kernel has, found out: at start, and whenever it is not known for sure.

use std::collections::HashSet;
use std::net::IpAddr;

use crate::config::RuleConfig;
use crate::net::Family;
use crate::netlink::Error;
use crate::render::ipvs::SetId;
use crate::ruleset::{Member, SetHeader, SetType, VirtualAddress};

use super::ledger::{Known, Real};
use super::{ServerSync, room_of};

impl ServerSync {
    /// Reads all there is. What is not as it should be is then to be looked at.
    pub(super) fn read_everything(&mut self, config: &RuleConfig) -> Result<(), Error> {
        self.unread = true;
        self.ledger.forget_kernel();
        let outcome = self.read_all(config);
        match &outcome {
            Ok(()) => self.unread = false,
            Err(error) => self.failed(error),
        }
        outcome
    }

    fn read_all(&mut self, config: &RuleConfig) -> Result<(), Error> {
        self.read_sets()?;
        self.read_addresses()?;
        for (at, server) in self.kernel.0.servers(self.family)? {
            if self.is_ours(&at, config) {
                let reals = self.read_reals(&at)?;
                self.ledger.find_server(at, Some(Known { server, reals }));
            }
        }
        Ok(())
    }

    /// The real servers of a virtual server, in no more memory than they need.
    pub(super) fn read_reals(&mut self, at: &VirtualAddress) -> Result<Vec<Real>, Error> {
        let mut reals: Vec<_> = self.kernel.0.real_servers(at)?.into_iter().map(Real::from).collect();
        reals.shrink_to_fit();
        Ok(reals)
    }

    /// Is this virtual server ours to change? One that no Service wants is, unless the user says it is somebody else's.
    pub(super) fn is_ours(&self, at: &VirtualAddress, config: &RuleConfig) -> bool {
        let excluded = config.ipvs.exclude_cidrs.iter().any(|cidr| cidr.contains(&at.address.ip()));
        !excluded || self.ledger.wanted(at).is_some()
    }

    fn read_sets(&mut self) -> Result<(), Error> {
        let headers = self.kernel.0.sets()?;
        self.sets.clear();
        self.odd.clear();
        self.unusable.clear();
        let stale = headers.iter().filter(|header| SetId::is_larger(&header.name, self.family));
        self.stale_sets = stale.map(|header| header.name.clone()).collect();
        for set in SetId::ALL {
            if let Some(header) = find(&headers, set, self.family) {
                self.read_set(set, header)?;
            }
        }
        Ok(())
    }

    /// Reads one set of that header.
    pub(super) fn read_set(&mut self, set: SetId, header: &SetHeader) -> Result<(), Error> {
        if !is_as_ours(header, set, self.family) {
            let why = format!(
                "it is there as {} and not as {} for {}, made by somebody else: rules do without it until it is \
                 destroyed or renamed (ipset destroy, ipset rename)",
                header.type_name,
                set.kind().as_str(),
                self.family
            );
            self.unusable.insert(set, why);
            return Ok(());
        }
        let room = room_of(set.kind(), header.max_members);
        self.sets.insert(set, room);
        if header.members > 0 || header.kind == Some(SetType::BitmapPort) {
            for member in self.kernel.0.members(&header.name)? {
                self.ledger.find_member((set, member));
            }
        }
        if self.ledger.known_count(set) < header.members as usize {
            self.odd.insert(set);
            self.ground_lost = true;
        }
        Ok(())
    }

    /// Reads the local addresses. Those that are there and wanted by nobody are to be looked at.
    fn read_addresses(&mut self) -> Result<(), Error> {
        let found = self.kernel.0.addresses(self.family)?;
        self.note_addresses(found);
        Ok(())
    }

    pub(super) fn note_addresses(&mut self, found: Option<Vec<IpAddr>>) {
        let found: Option<HashSet<IpAddr>> = found.map(|found| found.into_iter().collect());
        let is_there = |address: &IpAddr| found.as_ref().is_some_and(|found| found.contains(address));
        let lost = self.addresses.iter().flatten().filter(|address| !is_there(address));
        let unwanted = found.iter().flatten().filter(|address| !self.ledger.is_address_wanted(**address));
        let dirty: Vec<_> = lost.chain(unwanted).map(|address| (SetId::IpvsIps, Member::Ip(*address))).collect();
        self.ledger.dirty.members.extend(dirty);
        self.addresses = found;
    }
}

/// The header of one of our sets.
pub(super) fn find(headers: &[SetHeader], set: SetId, family: Family) -> Option<&SetHeader> {
    let name = set.name(family);
    headers.iter().find(|header| header.name == name)
}

/// Is it a set as we make it?
pub(super) fn is_as_ours(header: &SetHeader, set: SetId, family: Family) -> bool {
    let of_family = set.kind() == SetType::BitmapPort || header.family == Some(family);
    header.kind == Some(set.kind()) && of_family
}
