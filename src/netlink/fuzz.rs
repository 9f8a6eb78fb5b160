//! For the fuzzer alone (`fuzz/`): everything here that reads what the kernel sent, given arbitrary bytes.

use super::attr::Messages;
use super::{address, conntrack, ipset, ipvs, link, nft};
use crate::net::Family;
use crate::ruleset::Rule;

/// Reads a datagram as an answer to each question that there is.
///
/// # Panics
/// Where a reader does, or where a rule that was understood says something else once written and read again.
pub fn datagram(data: &[u8]) {
    for message in Messages(data) {
        let _ = (message.error_number(), message.error_text());
        let _ = (address::read(&message), link::read_link(&message));
        conntrack::fuzz(&message);
        ipset::fuzz(&message);
        ipvs::fuzz(&message);
        nft::fuzz::message(&message);
    }
    nft::fuzz::notification(data);
}

/// Writes a rule for the kernel and reads it back.
///
/// # Panics
/// When it is not the same then.
pub fn rule(family: Family, rule: &Rule) {
    nft::fuzz::round_trip(family, rule);
}
