//! A rule as a list of `nf_tables` expressions, in the order and encoding of iptables-nft 1.8.9: header
//! matches, extensions as they come, the counter, the verdict or target.
//!
//! `iptables-save` must print of it exactly what `ruleset::text` prints of the rule.

use std::net::IpAddr;

use ipnet::IpNet;

use super::super::attr::Writer;
#[allow(clippy::wildcard_imports, reason = "the numbers of the wire are this file's vocabulary")]
use super::wire::*;
use super::xt;
use crate::net::{Family, Protocol};
use crate::ruleset::{InterfaceMatch, Match, Negatable, Rule, SetName, Target};

/// A set that a rule names, and where in the writer its number belongs.
pub type SetPlace<'a> = (usize, &'a SetName);

/// Writes the expressions of `rule` and what xt extensions need to know of its protocol. Of sets in it only the places
/// are noted.
pub fn write_rule<'a>(w: &mut Writer, family: Family, rule: &'a Rule, sets: &mut Vec<SetPlace<'a>>) {
    if let Some(protocol) = rule.protocol {
        // nft_compat checks of extensions like tcp that the rule is for their protocol.
        w.nest(NFTA_RULE_COMPAT, |w| {
            w.be32(NFTA_RULE_COMPAT_PROTO, protocol.number().into());
            w.be32(NFTA_RULE_COMPAT_FLAGS, 0);
        });
    }
    w.nest(NFTA_RULE_EXPRESSIONS, |w| {
        write_header_matches(w, family, rule);
        for m in &rule.matches {
            write_match(w, m);
            if let Match::Set { set, .. } = m {
                sets.push((w.len() - xt::SET_INFO, set));
            }
        }
        expression(w, "counter", |_| {});
        if let Some(target) = &rule.target {
            write_target(w, family, target);
        }
    });
}

fn write_header_matches(w: &mut Writer, family: Family, rule: &Rule) {
    if let Some(interface) = &rule.in_interface {
        write_interface(w, interface);
    }
    if let Some(protocol) = rule.protocol {
        load_meta(w, NFT_META_L4PROTO);
        compare(w, NFT_CMP_EQ, &[protocol.number()]);
    }
    let (source, destination) = address_offsets(family);
    if let Some(net) = &rule.source {
        write_network(w, source, net);
    }
    if let Some(net) = &rule.destination {
        write_network(w, destination, net);
    }
}

fn write_interface(w: &mut Writer, interface: &Negatable<InterfaceMatch>) {
    let name = &interface.value.0;
    if &**name == "+" && !interface.not {
        return; // every interface
    }
    load_meta(w, NFT_META_IIFNAME);
    match name.strip_suffix('+') {
        // No interface: iptables compares with a name that cannot be.
        Some("") => compare(w, NFT_CMP_EQ, b"INVAL/D\0"),
        // A prefix: only these bytes are compared.
        Some(prefix) => compare(w, operator(interface.not), prefix.as_bytes()),
        None => {
            let mut exact = Vec::with_capacity(name.len() + 1);
            exact.extend_from_slice(name.as_bytes());
            exact.push(0);
            compare(w, operator(interface.not), &exact);
        }
    }
}

fn write_network(w: &mut Writer, offset: u32, net: &Negatable<IpNet>) {
    match net.value.trunc().network() {
        IpAddr::V4(ip) => write_prefix(w, offset, (net.not, net.value.prefix_len()), &ip.octets()),
        IpAddr::V6(ip) => write_prefix(w, offset, (net.not, net.value.prefix_len()), &ip.octets()),
    }
}

/// A prefix of whole bytes is loaded as just these, another one in full and masked.
fn write_prefix(w: &mut Writer, offset: u32, (not, prefix): (bool, u8), address: &[u8]) {
    let (bytes, bits) = (usize::from(prefix / 8), prefix % 8);
    match (bytes, bits, not) {
        (0, 0, false) => {} // every address: iptables leaves it away as well
        (1.., 0, _) => {
            load_payload(w, NFT_PAYLOAD_NETWORK_HEADER, offset, bytes);
            compare(w, operator(not), &address[..bytes]);
        }
        _ => {
            load_payload(w, NFT_PAYLOAD_NETWORK_HEADER, offset, address.len());
            let mut mask = [0; 16];
            mask[..bytes].fill(0xff);
            // Of a prefix without odd bits this writes the zero that is already there.
            mask[bytes] = 0xff_u8.unbounded_shl(u32::from(8 - bits));
            bitwise(w, &mask[..address.len()]);
            compare(w, operator(not), address);
        }
    }
}

fn write_match(w: &mut Writer, m: &Match) {
    let written = xt::write_match(m, &mut |extension, info| write_xt(w, "match", extension, info));
    match m {
        _ if written => {}
        Match::Mark(Negatable { not, value: (value, mask) }) => {
            load_meta(w, NFT_META_MARK);
            if *mask != u32::MAX {
                bitwise(w, &mask.to_ne_bytes());
            }
            compare(w, operator(*not), &value.to_ne_bytes());
        }
        Match::Port { protocol: Protocol::Tcp | Protocol::Udp, destination: Some(port) } => {
            let (offset, length) = DESTINATION_PORT;
            load_payload(w, NFT_PAYLOAD_TRANSPORT_HEADER, offset, length as usize);
            compare(w, NFT_CMP_EQ, &port.to_be_bytes());
        }
        _ => unreachable!("xt writes every match but these two"),
    }
}

fn write_target(w: &mut Writer, family: Family, target: &Target) {
    let written = xt::write_target(family, target, &mut |extension, info| write_xt(w, "target", extension, info));
    match target {
        _ if written => {}
        Target::Accept => verdict(w, NF_ACCEPT, None),
        Target::Drop => verdict(w, NF_DROP, None),
        Target::Return => verdict(w, NFT_RETURN, None),
        Target::Jump(chain) => verdict(w, NFT_JUMP, Some(chain.as_str())),
        _ => unreachable!("xt writes every target but verdicts"),
    }
}

fn operator(not: bool) -> u32 {
    if not { NFT_CMP_NEQ } else { NFT_CMP_EQ }
}

fn expression(w: &mut Writer, name: &str, data: impl FnOnce(&mut Writer)) {
    w.nest(NFTA_LIST_ELEM, |w| {
        w.text(NFTA_EXPR_NAME, name);
        w.nest(NFTA_EXPR_DATA, data);
    });
}

fn load_meta(w: &mut Writer, key: u32) {
    expression(w, "meta", |w| {
        w.be32(NFTA_META_KEY, key);
        w.be32(NFTA_META_DREG, NFT_REG_1);
    });
}

fn load_payload(w: &mut Writer, base: u32, offset: u32, length: usize) {
    expression(w, "payload", |w| {
        w.be32(NFTA_PAYLOAD_DREG, NFT_REG_1);
        w.be32(NFTA_PAYLOAD_BASE, base);
        w.be32(NFTA_PAYLOAD_OFFSET, offset);
        w.be32(NFTA_PAYLOAD_LEN, small(length));
    });
}

fn bitwise(w: &mut Writer, mask: &[u8]) {
    expression(w, "bitwise", |w| {
        w.be32(NFTA_BITWISE_SREG, NFT_REG_1);
        w.be32(NFTA_BITWISE_DREG, NFT_REG_1);
        w.be32(NFTA_BITWISE_LEN, small(mask.len()));
        w.nest(NFTA_BITWISE_MASK, |w| w.bytes(NFTA_DATA_VALUE, mask));
        w.nest(NFTA_BITWISE_XOR, |w| w.bytes(NFTA_DATA_VALUE, &[0; 16][..mask.len()]));
    });
}

fn small(length: usize) -> u32 {
    u32::try_from(length).expect("lengths of header fields are at most 16")
}

fn compare(w: &mut Writer, operator: u32, value: &[u8]) {
    expression(w, "cmp", |w| {
        w.be32(NFTA_CMP_SREG, NFT_REG_1);
        w.be32(NFTA_CMP_OP, operator);
        w.nest(NFTA_CMP_DATA, |w| w.bytes(NFTA_DATA_VALUE, value));
    });
}

fn verdict(w: &mut Writer, code: u32, chain: Option<&str>) {
    expression(w, "immediate", |w| {
        w.be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
        w.nest(NFTA_IMMEDIATE_DATA, |w| {
            w.nest(NFTA_DATA_VERDICT, |w| {
                w.be32(NFTA_VERDICT_CODE, code);
                if let Some(chain) = chain {
                    w.text(NFTA_VERDICT_CHAIN, chain);
                }
            });
        });
    });
}

fn write_xt(w: &mut Writer, name: &str, extension: xt::Extension, info: &[u8]) {
    expression(w, name, |w| {
        w.text(NFTA_XT_NAME, extension.name);
        w.be32(NFTA_XT_REV, extension.revision);
        w.bytes(NFTA_XT_INFO, info);
    });
}
