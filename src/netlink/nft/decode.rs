//! A list of `nf_tables` expressions as a rule of ours, whoever wrote it: our encoder, or iptables-nft
//! in the orders and forms its versions use. What our types cannot say is `None`, never a guess.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::super::attr::{Attributes, c_string};
use super::names::Names;
#[allow(clippy::wildcard_imports, reason = "the numbers of the wire are this file's vocabulary")]
use super::wire::*;
use super::xt;
use crate::net::{Family, Protocol};
use crate::ruleset::{InterfaceMatch, Match, Negatable, Rule, Target};

/// Reads the value of `NFTA_RULE_EXPRESSIONS`.
pub fn read_rule(family: Family, expressions: Attributes<'_>, names: &mut Names) -> Option<Rule> {
    let mut reader = Reader { family, names, rule: Rule::default(), loaded: None, ports: Vec::new() };
    for element in expressions {
        let expression = element.nested();
        let name = expression.get(NFTA_EXPR_NAME)?.text()?;
        let data = expression.get(NFTA_EXPR_DATA).map(|a| a.nested()).unwrap_or_default();
        if reader.rule.target.is_some() {
            return None; // something after the verdict: no iptables rule
        }
        reader.expression(name, data)?;
    }
    reader.finish()
}

/// What a register holds.
#[derive(Clone, Copy)]
enum Source {
    Meta(u32),
    /// Base, offset, length.
    Payload(u32, u32, usize),
}

#[derive(Clone, Copy)]
struct Loaded<'a> {
    register: u32,
    source: Source,
    mask: Option<&'a [u8]>,
}

struct Reader<'a, 'n> {
    family: Family,
    names: &'n mut Names,
    rule: Rule,
    /// The value loaded last and not compared yet.
    loaded: Option<Loaded<'a>>,
    /// Places in `rule.matches` of ports compared natively: which protocol they are of may stand later.
    ports: Vec<usize>,
}

impl<'a> Reader<'a, '_> {
    fn expression(&mut self, name: &str, data: Attributes<'a>) -> Option<()> {
        match name {
            "counter" => Some(()),
            "meta" => self.meta(data),
            "payload" => self.payload(data),
            "bitwise" => self.bitwise(data),
            "cmp" => self.compare(data),
            "immediate" => self.verdict(data),
            "match" => self.xt_match(data),
            "target" => self.xt_target(data),
            _ => None,
        }
    }

    fn finish(mut self) -> Option<Rule> {
        for place in self.ports {
            let Match::Port { protocol, .. } = &mut self.rule.matches[place] else { return None };
            *protocol = self.rule.protocol.filter(|p| *p != Protocol::Sctp)?;
        }
        // A value loaded and never compared would be a match we don't see.
        self.loaded.is_none().then_some(self.rule)
    }

    fn load(&mut self, register: u32, source: Source) -> Option<()> {
        let before = self.loaded.replace(Loaded { register, source, mask: None });
        before.is_none().then_some(())
    }

    fn meta(&mut self, data: Attributes<'a>) -> Option<()> {
        self.load(data.get(NFTA_META_DREG)?.be32()?, Source::Meta(data.get(NFTA_META_KEY)?.be32()?))
    }

    fn payload(&mut self, data: Attributes<'a>) -> Option<()> {
        let number = |kind| data.get(kind).and_then(|a| a.be32());
        let length = usize::try_from(number(NFTA_PAYLOAD_LEN)?).ok()?;
        let source = Source::Payload(number(NFTA_PAYLOAD_BASE)?, number(NFTA_PAYLOAD_OFFSET)?, length);
        self.load(number(NFTA_PAYLOAD_DREG)?, source)
    }

    fn bitwise(&mut self, data: Attributes<'a>) -> Option<()> {
        let number = |kind| data.get(kind).and_then(|a| a.be32());
        let loaded = self.loaded.as_mut()?;
        let plain_mask = number(NFTA_BITWISE_OP).is_none_or(|op| op == NFT_BITWISE_MASK_XOR)
            && value(data, NFTA_BITWISE_XOR)?.iter().all(|b| *b == 0);
        if !plain_mask || number(NFTA_BITWISE_SREG)? != loaded.register || loaded.mask.is_some() {
            return None;
        }
        loaded.register = number(NFTA_BITWISE_DREG)?;
        loaded.mask = Some(value(data, NFTA_BITWISE_MASK)?);
        Some(())
    }

    fn compare(&mut self, data: Attributes<'a>) -> Option<()> {
        let loaded = self.loaded.take()?;
        if data.get(NFTA_CMP_SREG)?.be32()? != loaded.register {
            return None;
        }
        let not = match data.get(NFTA_CMP_OP)?.be32()? {
            NFT_CMP_EQ => false,
            NFT_CMP_NEQ => true,
            _ => return None,
        };
        let compared = Compared { not, mask: loaded.mask, value: value(data, NFTA_CMP_DATA)? };
        match loaded.source {
            Source::Meta(NFT_META_L4PROTO) => self.protocol(compared),
            Source::Meta(NFT_META_IIFNAME) => self.interface(compared),
            Source::Meta(NFT_META_MARK) => self.mark(compared),
            Source::Payload(NFT_PAYLOAD_NETWORK_HEADER, offset, length) => self.network_header(offset, length, compared),
            Source::Payload(NFT_PAYLOAD_TRANSPORT_HEADER, offset, 2) if offset == DESTINATION_PORT.0 => self.port(compared),
            _ => None,
        }
    }

    fn protocol(&mut self, compared: Compared<'_>) -> Option<()> {
        let [number] = compared.plain()?.try_into().ok()?;
        set(&mut self.rule.protocol, Protocol::from_number(number)?)
    }

    fn interface(&mut self, compared: Compared<'_>) -> Option<()> {
        if compared.mask.is_some() {
            return None;
        }
        let text = c_string(compared.value)?;
        let behind = &compared.value[text.len()..];
        // With its NUL it is a whole name, without it the beginning of names: iptables writes a plus sign for that, and has
        // no words for a whole name that ends with one.
        let name = match text {
            "" => return None,
            _ if behind.is_empty() => format!("{text}+"),
            _ if text.ends_with('+') || behind.iter().any(|byte| *byte != 0) => return None,
            _ => text.into(),
        };
        let value = InterfaceMatch(name.into_boxed_str());
        set(&mut self.rule.in_interface, Negatable { not: compared.not, value })
    }

    fn mark(&mut self, compared: Compared<'_>) -> Option<()> {
        let mask = match compared.mask {
            Some(mask) => u32::from_ne_bytes(mask.try_into().ok()?),
            None => u32::MAX,
        };
        let value = u32::from_ne_bytes(compared.value.try_into().ok()?);
        self.rule.matches.push(Match::Mark(Negatable { not: compared.not, value: (value, mask) }));
        Some(())
    }

    fn port(&mut self, compared: Compared<'_>) -> Option<()> {
        let port = u16::from_be_bytes(compared.plain()?.try_into().ok()?);
        self.ports.push(self.rule.matches.len());
        self.rule.matches.push(Match::Port { protocol: Protocol::Tcp, destination: Some(port) });
        Some(())
    }

    fn network_header(&mut self, offset: u32, length: usize, compared: Compared<'_>) -> Option<()> {
        let (source, destination) = address_offsets(self.family);
        if offset == source {
            set(&mut self.rule.source, network(self.family, length, compared)?)
        } else if offset == destination {
            set(&mut self.rule.destination, network(self.family, length, compared)?)
        } else {
            None
        }
    }

    fn verdict(&mut self, data: Attributes<'_>) -> Option<()> {
        if data.get(NFTA_IMMEDIATE_DREG)?.be32()? != NFT_REG_VERDICT {
            return None;
        }
        let verdict = data.get(NFTA_IMMEDIATE_DATA)?.nested().get(NFTA_DATA_VERDICT)?.nested();
        let target = match verdict.get(NFTA_VERDICT_CODE)?.be32()? {
            NF_ACCEPT => Target::Accept,
            NF_DROP => Target::Drop,
            NFT_RETURN => Target::Return,
            NFT_JUMP => Target::Jump(self.names.get(verdict.get(NFTA_VERDICT_CHAIN)?.text()?)),
            _ => return None,
        };
        set(&mut self.rule.target, target)
    }

    fn xt_match(&mut self, data: Attributes<'_>) -> Option<()> {
        let (name, revision, info) = xt_fields(data)?;
        let found = xt::read_match(self.family, name, info, self.names)?;
        let mut same = false;
        xt::write_match(&found, &mut |extension, bytes| same = xt::same(self.family, (extension, bytes), name, revision, info));
        self.rule.matches.push(found);
        same.then_some(())
    }

    fn xt_target(&mut self, data: Attributes<'_>) -> Option<()> {
        let (name, revision, info) = xt_fields(data)?;
        let found = xt::read_target(self.family, name, info)?;
        let mut same = false;
        xt::write_target(self.family, &found, &mut |extension, bytes| {
            same = xt::same(self.family, (extension, bytes), name, revision, info);
        });
        same.then(|| set(&mut self.rule.target, found))?
    }
}

/// A value and what it was compared with.
#[derive(Clone, Copy)]
struct Compared<'a> {
    not: bool,
    mask: Option<&'a [u8]>,
    value: &'a [u8],
}

impl<'a> Compared<'a> {
    /// The value of a comparison without negation or mask.
    fn plain(self) -> Option<&'a [u8]> {
        (!self.not && self.mask.is_none()).then_some(self.value)
    }
}

/// Sets what must not be set twice.
fn set<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.replace(value).is_none().then_some(())
}

fn value(data: Attributes<'_>, kind: u16) -> Option<&[u8]> {
    data.get(kind)?.nested().get(NFTA_DATA_VALUE).map(|a| a.data)
}

fn xt_fields(data: Attributes<'_>) -> Option<(&str, u32, &[u8])> {
    Some((data.get(NFTA_XT_NAME)?.text()?, data.get(NFTA_XT_REV)?.be32()?, data.get(NFTA_XT_INFO)?.data))
}

/// A network from the first `length` bytes of an address, with or without a mask.
fn network(family: Family, length: usize, compared: Compared<'_>) -> Option<Negatable<IpNet>> {
    let mut octets = [0; 16];
    octets.get_mut(..length)?.copy_from_slice(compared.value.get(..length)?);
    if compared.value.len() != length || length > address_length(family) {
        return None;
    }
    let prefix = match compared.mask {
        None => u8::try_from(length * 8).ok()?,
        Some(mask) => prefix_length(mask)?,
    };
    let address: IpAddr = match family {
        Family::Ipv4 => Ipv4Addr::from(*octets.first_chunk::<4>()?).into(),
        Family::Ipv6 => Ipv6Addr::from(octets).into(),
    };
    let net = IpNet::new(address, prefix).ok()?;
    // An address with bits outside its mask never matches: nobody's rule that we know.
    (net.trunc() == net).then_some(Negatable { not: compared.not, value: net })
}

/// The length of a mask's leading ones; `None` if there are ones after them.
fn prefix_length(mask: &[u8]) -> Option<u8> {
    let mut padded = [0; 16];
    padded.get_mut(..mask.len())?.copy_from_slice(mask);
    let bits = u128::from_be_bytes(padded);
    let ones = bits.leading_ones();
    (ones + bits.trailing_zeros() >= 128).then(|| u8::try_from(ones).ok())?
}

#[cfg(test)]
mod tests {
    use super::super::super::attr::{Head, Messages, Writer};
    use super::super::expression::write_rule;
    use std::collections::BTreeMap;

    use super::*;
    use crate::ruleset::{AddrType, Comment, CtStates, Direction, RecentAction};

    /// A rule with every kind of expression.
    fn sample() -> Rule {
        let matches = vec![
            Match::Comment(Comment::new("ns/svc:p80 cluster IP")),
            Match::AddrType(AddrType::DestinationLocal),
            Match::Conntrack(Negatable::is_not(CtStates::NEW)),
            Match::Mark(Negatable::is((0x4000, 0x4000))),
            Match::AddrType(AddrType::SourceNotLocal),
            Match::Ipvs { protocol: Protocol::Udp, address: "10.0.0.1".parse().unwrap(), port: 53 },
            Match::NfAcct("name".into()),
            Match::NotFromBridge,
            Match::Set { set: "KUBE-SET".into(), directions: [Direction::Destination, Direction::Source].into() },
            Match::Port { protocol: Protocol::Tcp, destination: None },
            Match::Port { protocol: Protocol::Tcp, destination: Some(80) },
            Match::Port { protocol: Protocol::Sctp, destination: Some(80) },
            Match::Recent { family: Family::Ipv4, list: "LIST".into(), action: RecentAction::Check { seconds: 3 } },
            Match::Statistic { probability: 7 },
        ];
        Rule {
            source: Some(Negatable::is_not("10.0.0.0/12".parse().unwrap())),
            destination: Some(Negatable::is("10.96.0.1/32".parse().unwrap())),
            in_interface: Some(Negatable::is(InterfaceMatch("veth+".into()))),
            protocol: Some(Protocol::Tcp),
            matches,
            target: Some(Target::Dnat("10.0.0.1:80".parse().unwrap())),
        }
    }

    fn encoded(rule: &Rule) -> Vec<u8> {
        let mut writer = Writer::default();
        let mut sets = Vec::new();
        writer.message(Head::default(), &[0; 4], |w| write_rule(w, Family::Ipv4, rule, &mut sets));
        for (place, _) in sets {
            writer.overwrite(place, &7_u16.to_ne_bytes());
        }
        let message = Messages(writer.as_bytes()).next().unwrap();
        message.attributes(NFGENMSG).get(NFTA_RULE_EXPRESSIONS).unwrap().data.to_vec()
    }

    /// Reads where there is one set, number 7.
    fn read(bytes: &[u8]) -> Option<Rule> {
        let mut names = Names::default();
        names.know_sets(BTreeMap::from([(7, "KUBE-SET".into())]));
        read_rule(Family::Ipv4, Attributes(bytes), &mut names)
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(read(&encoded(&sample())), Some(sample()));
        let jump = Rule { target: Some(Target::Jump("KUBE-SERVICES".into())), ..Rule::default() };
        assert_eq!(read(&encoded(&jump)), Some(jump));
    }

    #[test]
    fn a_rule_with_an_unknown_set_is_not_understood() {
        let bytes = encoded(&sample());
        let mut names = Names::default();
        assert_eq!(read_rule(Family::Ipv4, Attributes(&bytes), &mut names), None);
        assert!(names.lacks_sets(), "whoever reads must ask for them");
        names.know_sets(BTreeMap::from([(8, "KUBE-SET".into())]));
        assert_eq!(read_rule(Family::Ipv4, Attributes(&bytes), &mut names), None);
        assert!(!names.lacks_sets());
    }

    #[test]
    fn cut_off_or_garbled_bytes_are_never_a_panic() {
        let good = encoded(&sample());
        for length in 0..good.len() {
            assert_ne!(read(&good[..length]), Some(sample()), "cut at {length}");
        }
        for place in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[place] ^= 1 << bit;
                read(&bad);
                read_rule(Family::Ipv6, Attributes(&bad), &mut Names::default());
            }
        }
    }

    /// Rules that compare other bytes than iptables would for the same words are nobody's of ours.
    #[test]
    fn an_interface_is_what_iptables_would_compare() {
        let with = |name: &str, old: &[u8], new: &[u8]| {
            let interface = Some(Negatable::is(InterfaceMatch(name.into())));
            let mut bytes = encoded(&Rule { in_interface: interface, ..Rule::default() });
            let places: Vec<_> = (0..bytes.len()).filter(|place| bytes[*place..].starts_with(old)).collect();
            let [place] = places[..] else { panic!("{old:?} stands at {places:?}") };
            bytes[place..place + new.len()].copy_from_slice(new);
            read(&bytes).map(|rule| rule.in_interface.unwrap().value.0)
        };
        assert_eq!(with("vethX", b"vethX", b"veth1").as_deref(), Some("veth1"));
        assert_eq!(with("vethX", b"vethX\0", b"veth\0\0").as_deref(), Some("veth"), "nft pads names");
        assert_eq!(with("vethX", b"vethX", b"veth+"), None, "a whole name that ends as a pattern does");
        assert_eq!(with("ethX0", b"ethX0", b"eth\x000"), None, "something behind the name's end");
        assert_eq!(with("v+", b"\x05\0\x01\0v", b"\x04\0\x01\0v"), None, "nothing compared");
    }

    #[test]
    fn the_protocol_may_stand_anywhere() {
        let rule = Rule {
            protocol: Some(Protocol::Udp),
            matches: vec![Match::Port { protocol: Protocol::Udp, destination: Some(53) }],
            ..Rule::default()
        };
        let bytes = encoded(&rule);
        let elements: Vec<&[u8]> = split(&bytes);
        assert_eq!(elements.len(), 5, "load protocol, compare, load port, compare, count");
        let turned = [elements[2], elements[3], elements[4], elements[0], elements[1]].concat();
        assert_eq!(read(&turned), Some(rule));
        assert_eq!(read(&elements[2..].concat()), None, "a port of an unknown protocol");
        assert_eq!(read(&elements[..1].concat()), None, "loaded and never compared");
    }

    /// The attributes of a list, each with its header.
    fn split(mut bytes: &[u8]) -> Vec<&[u8]> {
        let mut parts = Vec::new();
        while bytes.len() >= 4 {
            let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]])).next_multiple_of(4);
            let (part, rest) = bytes.split_at(length);
            parts.push(part);
            bytes = rest;
        }
        parts
    }

    #[test]
    fn masks_with_holes_are_no_prefix() {
        assert_eq!(prefix_length(&[255, 240, 0, 0]), Some(12));
        assert_eq!(prefix_length(&[255; 16]), Some(128));
        assert_eq!(prefix_length(&[0; 4]), Some(0));
        assert_eq!(prefix_length(&[255, 0, 255, 0]), None);
        assert_eq!(prefix_length(&[0; 17]), None);
    }
}
