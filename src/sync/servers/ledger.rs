//! What is wanted of virtual servers, set members and addresses, summed over all Services, beside what the kernel has
//! of them. One entry for each thing, so that a change of one Service costs a look at its own things alone.
//!
//! Several Services may want the same: an address, a set member, or, by mistake, one virtual server. What one of them
//! wants no more stays for the others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use crate::model::ObjectKey;
use crate::render::ipvs::{Balanced, SetId, WantedServer};
use crate::ruleset::{Member, RealServer, VirtualAddress, VirtualServer};

/// A member and its set.
pub type SetMember = (SetId, Member);

/// What one Service wants, over all its ports.
#[derive(Debug, Default, PartialEq, Eq)]
struct Part {
    /// By address.
    servers: Box<[WantedServer]>,
    /// Sorted, each once.
    members: Box<[SetMember]>,
}

/// Things whose wanted state may be another than the kernel's.
#[derive(Debug, Default)]
pub struct Dirty {
    pub servers: BTreeSet<VirtualAddress>,
    pub members: BTreeSet<SetMember>,
}

#[derive(Debug, Default)]
pub struct Ledger {
    parts: HashMap<ObjectKey, Part>,
    servers: HashMap<VirtualAddress, Server>,
    /// Virtual servers that several Services want: all of these.
    contested: BTreeMap<VirtualAddress, BTreeSet<ObjectKey>>,
    members: HashMap<SetMember, MemberState>,
    /// Members wanted, by set; and those that are there.
    counts: [usize; SetId::ALL.len()],
    known_counts: [usize; SetId::ALL.len()],
    /// Virtual servers that are there.
    known_servers: usize,
    pub dirty: Dirty,
}

/// A virtual server that is wanted, there, or both.
#[derive(Debug, Default)]
struct Server {
    wanted_by: Option<ObjectKey>,
    known: Option<Known>,
}

/// A virtual server as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub server: VirtualServer,
    pub reals: Vec<Real>,
}

/// A real server as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Real {
    pub address: SocketAddr,
    pub weight: u32,
    pub masquerades: bool,
}

impl From<RealServer> for Real {
    fn from(real: RealServer) -> Self {
        Self { address: real.address, weight: real.weight, masquerades: real.masquerades }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct MemberState {
    /// How many want it.
    wanted: u32,
    known: bool,
}

impl Part {
    fn of(ports: impl Iterator<Item = Balanced>) -> Self {
        let (mut servers, mut members) = (Vec::new(), Vec::new());
        for port in ports {
            servers.extend(port.servers);
            members.extend(port.members);
        }
        // Of two ports with one number, which the API does not allow, the first counts.
        servers.sort_by_key(|server: &WantedServer| server.at);
        servers.dedup_by_key(|server| server.at);
        members.sort_unstable();
        members.dedup();
        Self { servers: servers.into(), members: members.into() }
    }

    fn server(&self, at: &VirtualAddress) -> Option<&WantedServer> {
        self.servers.binary_search_by_key(at, |server| server.at).ok().map(|index| &self.servers[index])
    }

    fn is_empty(&self) -> bool {
        self.servers.is_empty() && self.members.is_empty()
    }
}

impl Ledger {
    /// Notes that the Service wants this, and nothing else any more.
    pub fn want(&mut self, service: &ObjectKey, ports: impl Iterator<Item = Balanced>) {
        let part = Part::of(ports);
        let before = self.parts.remove(service).unwrap_or_default();
        for server in before.servers.iter().filter(|server| part.server(&server.at) != Some(server)) {
            self.dirty.servers.insert(server.at);
            if part.server(&server.at).is_none() {
                self.disclaim(service, server.at);
            }
        }
        for server in part.servers.iter().filter(|server| before.server(&server.at) != Some(server)) {
            self.dirty.servers.insert(server.at);
            if before.server(&server.at).is_none() {
                self.claim(service, server.at);
            }
        }
        for member in before.members.iter().filter(|member| part.members.binary_search(member).is_err()) {
            self.release(*member);
        }
        for member in part.members.iter().filter(|member| before.members.binary_search(member).is_err()) {
            self.hold(*member);
        }
        if !part.is_empty() {
            self.parts.insert(service.clone(), part);
        }
    }

    /// The Services that want anything.
    pub fn services(&self) -> impl Iterator<Item = &ObjectKey> {
        self.parts.keys()
    }

    fn claim(&mut self, service: &ObjectKey, at: VirtualAddress) {
        let server = self.servers.entry(at).or_default();
        match &server.wanted_by {
            None => server.wanted_by = Some(service.clone()),
            Some(first) => {
                let rivals = self.contested.entry(at).or_default();
                rivals.extend([first.clone(), service.clone()]);
                server.wanted_by = rivals.first().cloned();
            }
        }
    }

    fn disclaim(&mut self, service: &ObjectKey, at: VirtualAddress) {
        let Some(server) = self.servers.get_mut(&at) else { return };
        server.wanted_by = match self.contested.get_mut(&at) {
            None => None,
            Some(rivals) => {
                rivals.remove(service);
                let first = rivals.first().cloned();
                if rivals.len() < 2 {
                    self.contested.remove(&at);
                }
                first
            }
        };
        self.forget_if_nothing(at);
    }

    /// The virtual servers that several Services want, with those Services; the first of them has it.
    pub fn contested(&self) -> &BTreeMap<VirtualAddress, BTreeSet<ObjectKey>> {
        &self.contested
    }

    /// One more wants this member.
    pub fn hold(&mut self, member: SetMember) {
        let state = self.members.entry(member).or_default();
        state.wanted += 1;
        if state.wanted == 1 {
            self.counts[member.0 as usize] += 1;
            self.dirty.members.insert(member);
        }
    }

    /// One less does.
    pub fn release(&mut self, member: SetMember) {
        let Some(state) = self.members.get_mut(&member) else { return };
        state.wanted -= 1;
        if state.wanted == 0 {
            self.counts[member.0 as usize] -= 1;
            self.dirty.members.insert(member);
        }
    }

    /// How many members a set is to have.
    pub fn count(&self, set: SetId) -> usize {
        self.counts[set as usize]
    }

    /// What is wanted of a virtual server, and who wants it.
    pub fn wanted(&self, at: &VirtualAddress) -> Option<(&ObjectKey, &WantedServer)> {
        let service = self.servers.get(at)?.wanted_by.as_ref()?;
        Some((service, self.parts.get(service)?.server(at)?))
    }

    pub fn known(&self, at: &VirtualAddress) -> Option<&Known> {
        self.servers.get(at)?.known.as_ref()
    }

    /// How many virtual servers the kernel has.
    pub fn known_server_count(&self) -> usize {
        self.known_servers
    }

    /// The virtual servers that the kernel has.
    pub fn known_servers(&self) -> impl Iterator<Item = (&VirtualAddress, &Known)> {
        self.servers.iter().filter_map(|(at, server)| Some((at, server.known.as_ref()?)))
    }

    /// The kernel was found to have this virtual server: whether it should is to be looked at.
    pub fn find_server(&mut self, at: VirtualAddress, known: Option<Known>) {
        self.dirty.servers.insert(at);
        self.learn_server(at, known);
    }

    /// The kernel has this virtual server now; `None`: it has it no more.
    pub fn learn_server(&mut self, at: VirtualAddress, known: Option<Known>) {
        let server = self.servers.entry(at).or_default();
        self.known_servers = self.known_servers + usize::from(known.is_some()) - usize::from(server.known.is_some());
        server.known = known;
        self.forget_if_nothing(at);
    }

    /// The real servers of a virtual server, to be corrected.
    pub fn reals_mut(&mut self, at: &VirtualAddress) -> Option<&mut Vec<Real>> {
        self.servers.get_mut(at)?.known.as_mut().map(|known| &mut known.reals)
    }

    fn forget_if_nothing(&mut self, at: VirtualAddress) {
        if self.servers.get(&at).is_some_and(|server| server.wanted_by.is_none() && server.known.is_none()) {
            self.servers.remove(&at);
        }
    }

    pub fn is_member_wanted(&self, member: &SetMember) -> bool {
        self.members.get(member).is_some_and(|state| state.wanted > 0)
    }

    pub fn is_member_known(&self, member: &SetMember) -> bool {
        self.members.get(member).is_some_and(|state| state.known)
    }

    /// The addresses that are to be local.
    pub fn is_address_wanted(&self, address: IpAddr) -> bool {
        self.is_member_wanted(&(SetId::IpvsIps, Member::Ip(address)))
    }

    /// A Service that wants a member. Looks through all of them: for what is told of failures.
    pub fn who_wants(&self, member: &SetMember) -> Option<&ObjectKey> {
        self.parts.iter().find(|(_, part)| part.members.binary_search(member).is_ok()).map(|(service, _)| service)
    }

    /// The kernel was found to have this member: whether it should is to be looked at.
    pub fn find_member(&mut self, member: SetMember) {
        self.dirty.members.insert(member);
        self.learn_member(member, true);
    }

    /// The kernel has this member, or has it no more.
    pub fn learn_member(&mut self, member: SetMember, known: bool) {
        let state = self.members.entry(member).or_default();
        let count = &mut self.known_counts[member.0 as usize];
        *count = *count + usize::from(known) - usize::from(state.known);
        state.known = known;
        if !known && state.wanted == 0 {
            self.members.remove(&member);
        }
    }

    /// How many members of a set the kernel has.
    pub fn known_count(&self, set: SetId) -> usize {
        self.known_counts[set as usize]
    }

    /// The members of a set that the kernel has.
    pub fn known_members(&self, set: SetId) -> impl Iterator<Item = Member> + '_ {
        self.members.iter().filter(move |((of, _), state)| *of == set && state.known).map(|((_, member), _)| *member)
    }

    /// Forgets what the kernel has, and looks at everything with the next plan.
    pub fn forget_kernel(&mut self) {
        self.servers.retain(|_, server| {
            server.known = None;
            server.wanted_by.is_some()
        });
        self.members.retain(|_, state| {
            state.known = false;
            state.wanted > 0
        });
        self.known_counts = Default::default();
        self.known_servers = 0;
        self.dirty.servers = self.servers.keys().copied().collect();
        self.dirty.members = self.members.keys().copied().collect();
    }

    /// Forgets what the kernel has of one set, and looks at all of it with the next plan.
    pub fn forget_set(&mut self, set: SetId) {
        self.members.retain(|(of, _), state| {
            state.known &= *of != set;
            state.known || state.wanted > 0
        });
        self.known_counts[set as usize] = 0;
        self.dirty.members.extend(self.members.keys().filter(|(of, _)| *of == set));
    }
}
