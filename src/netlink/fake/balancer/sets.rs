//! ipsets in memory, with the errors of `net/netfilter/ipset`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use super::super::super::errno::Errno;
use crate::net::Family;
use crate::ruleset::{Member, SetHeader, SetName, SetSpec, SetType};

/// Of `linux/netfilter/ipset/ip_set.h`: negative where errors of the system would be.
const BUSY: Errno = Errno(4100);
const EXIST_SETNAME2: Errno = Errno(4101);
const TYPE_MISMATCH: Errno = Errno(4102);
const INVALID_CIDR: Errno = Errno(4104);
const HASH_FULL: Errno = Errno(4352);

#[derive(Debug, Default)]
pub(super) struct FakeSets(BTreeMap<SetName, FakeSet>);

#[derive(Debug)]
struct FakeSet {
    /// `None`: of a type that ours never have.
    kind: Option<SetType>,
    type_name: Box<str>,
    family: Option<Family>,
    max_members: u32,
    members: BTreeSet<Member>,
    references: u32,
}

impl FakeSets {
    pub fn create(&mut self, spec: &SetSpec) -> Result<(), Errno> {
        if self.0.contains_key(&spec.name) {
            return Err(Errno::EEXIST);
        }
        let is_bitmap = spec.kind == SetType::BitmapPort;
        let set = FakeSet {
            kind: Some(spec.kind),
            type_name: spec.kind.as_str().into(),
            family: (!is_bitmap).then_some(spec.family),
            max_members: if is_bitmap { 1 << 16 } else { spec.max_members },
            members: BTreeSet::new(),
            references: 0,
        };
        self.0.insert(spec.name.clone(), set);
        Ok(())
    }

    pub fn add(&mut self, name: &SetName, member: Member) -> Result<(), Errno> {
        let set = self.0.get_mut(name).ok_or(Errno::ENOENT)?;
        let member = set.taken(&member)?;
        if set.members.len() >= set.max_members as usize && !set.members.contains(&member) {
            return Err(HASH_FULL);
        }
        set.members.insert(member);
        Ok(())
    }

    pub fn delete(&mut self, name: &SetName, member: &Member) -> Result<(), Errno> {
        let set = self.0.get_mut(name).ok_or(Errno::ENOENT)?;
        let member = set.taken(member)?;
        set.members.remove(&member);
        Ok(())
    }

    /// Exchanges all but the names, and the references, which are to the names.
    pub fn swap(&mut self, one: &SetName, other: &SetName) -> Result<(), Errno> {
        let first = self.0.get(one).ok_or(Errno::ENOENT)?;
        let second = self.0.get(other).ok_or(EXIST_SETNAME2)?;
        if (&first.type_name, first.family) != (&second.type_name, second.family) {
            return Err(TYPE_MISMATCH);
        }
        if one == other {
            return Ok(());
        }
        let [Some(first), Some(second)] = [one, other].map(|name| self.0.remove(name)) else { return Err(Errno::ENOENT) };
        let (of_first, of_second) = (first.references, second.references);
        self.0.insert(one.clone(), FakeSet { references: of_first, ..second });
        self.0.insert(other.clone(), FakeSet { references: of_second, ..first });
        Ok(())
    }

    pub fn destroy(&mut self, name: &SetName) -> Result<(), Errno> {
        if self.0.get(name).ok_or(Errno::ENOENT)?.references > 0 {
            return Err(BUSY);
        }
        self.0.remove(name);
        Ok(())
    }

    pub fn add_foreign(&mut self, name: &str, type_name: &str) {
        let (kind, family, members) = (None, Some(Family::Ipv4), BTreeSet::new());
        let set = FakeSet { kind, type_name: type_name.into(), family, max_members: 1 << 16, members, references: 0 };
        self.0.insert(name.into(), set);
    }

    pub fn refer_to(&mut self, name: &str, references: u32) {
        let Some(set) = self.0.get_mut(&SetName::from(name)) else { panic!("no set {name}") };
        set.references = references;
    }

    pub fn headers(&self) -> Vec<SetHeader> {
        let header = |(name, set): (&SetName, &FakeSet)| SetHeader {
            name: name.clone(),
            kind: set.kind,
            type_name: set.type_name.clone(),
            family: set.family,
            max_members: set.max_members,
            members: u32::try_from(set.members.len()).expect("no more than max_members"),
            references: set.references,
        };
        self.0.iter().map(header).collect()
    }

    pub fn members(&self, name: &SetName) -> Vec<Member> {
        self.0.get(name).into_iter().flat_map(|set| &set.members).copied().collect()
    }

    pub fn save(&self, out: &mut String) {
        for (name, set) in &self.0 {
            let family = set.family.map(|family| format!(" {family}")).unwrap_or_default();
            writeln!(out, "set {name} {}{family} maxelem {}", set.type_name, set.max_members).expect("a String takes everything");
            for member in &set.members {
                writeln!(out, "  {member}").expect("a String takes everything");
            }
        }
    }
}

impl FakeSet {
    /// The member that such a set takes a request for; `IPSET_ATTR_*` that it does not know are refused.
    fn taken(&self, member: &Member) -> Result<Member, Errno> {
        match (self.kind, *member) {
            (Some(SetType::HashIp), Member::Ip(ip)) if self.has(ip) => {
                if ip.is_unspecified() {
                    Err(Errno::IPSET_ERR_HASH_ELEM)
                } else {
                    Ok(*member)
                }
            }
            (Some(SetType::HashIpPort), Member::IpPort(ip, ..)) if self.has(ip) => Ok(*member),
            (Some(SetType::HashIpPortIp), Member::IpPortIp(ip, _, _, other)) if self.has(ip) && self.has(other) => Ok(*member),
            (Some(SetType::HashIpPortNet), Member::IpPortNet(ip, protocol, port, net))
                if self.has(ip) && self.has(net.addr()) =>
            {
                if net.prefix_len() == 0 {
                    Err(INVALID_CIDR)
                } else {
                    Ok(Member::IpPortNet(ip, protocol, port, net.trunc()))
                }
            }
            // Without its length the network is one host.
            (Some(SetType::HashIpPortNet), Member::IpPortIp(ip, protocol, port, other)) if self.has(ip) && self.has(other) => {
                Ok(Member::IpPortNet(ip, protocol, port, other.into()))
            }
            (Some(SetType::BitmapPort), Member::Port(_)) => Ok(*member),
            _ => Err(Errno::IPSET_ERR_PROTOCOL),
        }
    }

    fn has(&self, address: IpAddr) -> bool {
        self.family == Some(Family::of(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Protocol;

    fn spec(name: &str, kind: SetType, max_members: u32) -> SetSpec {
        SetSpec { name: name.into(), kind, family: Family::Ipv4, max_members }
    }

    fn member(host: u8) -> Member {
        Member::IpPort([10, 96, 0, host].into(), Protocol::Tcp, 80)
    }

    #[test]
    fn sets_are_refused_as_ipset_does() {
        let (mut sets, a, b) = (FakeSets::default(), SetName::from("A"), SetName::from("B"));
        assert_eq!(sets.add(&a, member(1)), Err(Errno::ENOENT));
        sets.create(&spec("A", SetType::HashIpPort, 1)).unwrap();
        assert_eq!(sets.create(&spec("A", SetType::HashIp, 1)), Err(Errno::EEXIST));
        assert_eq!(sets.add(&a, Member::Port(80)), Err(Errno::IPSET_ERR_PROTOCOL));
        let of_ipv6 = Member::IpPort("fd00::1".parse().unwrap(), Protocol::Tcp, 80);
        assert_eq!(sets.add(&a, of_ipv6), Err(Errno::IPSET_ERR_PROTOCOL));
        assert_eq!([1, 1, 2].map(|host| sets.add(&a, member(host))), [Ok(()), Ok(()), Err(HASH_FULL)]);
        assert_eq!([2, 1, 1].map(|host| sets.delete(&a, &member(host))), [Ok(()); 3]);
        assert_eq!(sets.swap(&a, &b), Err(EXIST_SETNAME2));
        assert_eq!(sets.swap(&b, &a), Err(Errno::ENOENT));
        sets.create(&spec("B", SetType::BitmapPort, 0)).unwrap();
        assert_eq!(sets.swap(&a, &b), Err(TYPE_MISMATCH));
        sets.refer_to("B", 1);
        assert_eq!(sets.destroy(&b), Err(BUSY));
    }

    #[test]
    fn members_are_taken_for_what_the_set_holds() {
        let (mut sets, ips, nets) = (FakeSets::default(), SetName::from("IPS"), SetName::from("NETS"));
        sets.create(&spec("IPS", SetType::HashIp, 9)).unwrap();
        sets.create(&spec("NETS", SetType::HashIpPortNet, 9)).unwrap();
        assert_eq!(sets.add(&ips, Member::Ip([0; 4].into())), Err(Errno::IPSET_ERR_HASH_ELEM));
        assert_eq!(sets.add(&ips, member(1)), Err(Errno::IPSET_ERR_PROTOCOL), "it has a port");
        let ip = IpAddr::from([10, 96, 0, 1]);
        let net = |text: &str| Member::IpPortNet(ip, Protocol::Tcp, 80, text.parse().unwrap());
        assert_eq!(sets.add(&nets, net("0.0.0.0/0")), Err(INVALID_CIDR));
        sets.add(&nets, net("10.1.2.3/8")).unwrap();
        sets.add(&nets, Member::IpPortIp(ip, Protocol::Tcp, 80, ip)).unwrap();
        assert_eq!(sets.members(&nets), [net("10.0.0.0/8"), net("10.96.0.1/32")]);
    }

    #[test]
    fn what_a_swap_exchanges_is_not_the_references() {
        let (mut sets, a, b) = (FakeSets::default(), SetName::from("A"), SetName::from("B"));
        sets.create(&spec("A", SetType::HashIpPort, 1)).unwrap();
        sets.create(&spec("B", SetType::HashIpPort, 4)).unwrap();
        sets.refer_to("A", 2);
        for host in [1, 2] {
            sets.add(&b, member(host)).unwrap();
        }
        sets.swap(&a, &b).unwrap();
        let headers: Vec<_> = sets.headers().into_iter().map(|h| (h.max_members, h.members, h.references)).collect();
        assert_eq!(headers, [(4, 2, 2), (1, 0, 0)]);
        let mut saved = String::new();
        sets.save(&mut saved);
        let wanted =
            "set A hash:ip,port IPv4 maxelem 4\n  10.96.0.1,tcp:80\n  10.96.0.2,tcp:80\nset B hash:ip,port IPv4 maxelem 1\n";
        assert_eq!(saved, wanted);
    }
}
