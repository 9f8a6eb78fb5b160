//! Numbers of `linux/netfilter/nfnetlink.h`, `nf_tables.h` and `nf_tables_compat.h` that encoder and
//! decoder share. Numbers only.

use crate::net::Family;

pub const NFNL_SUBSYS_NFTABLES: u16 = 10;
pub const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
pub const NFNL_MSG_BATCH_END: u16 = 0x11;
/// The multicast group that is told of every change of `nf_tables`.
pub const NFNLGRP_NFTABLES: i32 = 7;
/// Size of `struct nfgenmsg`.
pub const NFGENMSG: usize = 4;

/// Message kinds, with the subsystem in the upper byte.
pub mod kind {
    use super::NFNL_SUBSYS_NFTABLES;

    const fn nft(message: u16) -> u16 {
        NFNL_SUBSYS_NFTABLES << 8 | message
    }

    pub const NEW_TABLE: u16 = nft(0);
    pub const GET_TABLE: u16 = nft(1);
    pub const DELETE_TABLE: u16 = nft(2);
    pub const NEW_CHAIN: u16 = nft(3);
    pub const GET_CHAIN: u16 = nft(4);
    pub const DELETE_CHAIN: u16 = nft(5);
    pub const NEW_RULE: u16 = nft(6);
    pub const GET_RULE: u16 = nft(7);
    pub const DELETE_RULE: u16 = nft(8);
    pub const NEW_GENERATION: u16 = nft(15);
    pub const GET_GENERATION: u16 = nft(16);
}

pub const NFTA_LIST_ELEM: u16 = 1;
pub const NFTA_TABLE_NAME: u16 = 1;
pub const NFTA_GEN_ID: u16 = 1;
pub const NFTA_GEN_PROC_PID: u16 = 2;
pub const NFTA_GEN_PROC_NAME: u16 = 3;

pub const NFTA_CHAIN_TABLE: u16 = 1;
pub const NFTA_CHAIN_NAME: u16 = 3;
pub const NFTA_CHAIN_HOOK: u16 = 4;
pub const NFTA_CHAIN_TYPE: u16 = 7;
pub const NFTA_HOOK_HOOKNUM: u16 = 1;
pub const NFTA_HOOK_PRIORITY: u16 = 2;

pub const NFTA_RULE_TABLE: u16 = 1;
pub const NFTA_RULE_CHAIN: u16 = 2;
pub const NFTA_RULE_HANDLE: u16 = 3;
pub const NFTA_RULE_EXPRESSIONS: u16 = 4;
pub const NFTA_RULE_COMPAT: u16 = 5;
pub const NFTA_RULE_POSITION: u16 = 6;
pub const NFTA_RULE_COMPAT_PROTO: u16 = 1;
pub const NFTA_RULE_COMPAT_FLAGS: u16 = 2;

pub const NFTA_EXPR_NAME: u16 = 1;
pub const NFTA_EXPR_DATA: u16 = 2;
pub const NFTA_DATA_VALUE: u16 = 1;
pub const NFTA_DATA_VERDICT: u16 = 2;
pub const NFTA_VERDICT_CODE: u16 = 1;
pub const NFTA_VERDICT_CHAIN: u16 = 2;
pub const NFTA_IMMEDIATE_DREG: u16 = 1;
pub const NFTA_IMMEDIATE_DATA: u16 = 2;
pub const NFTA_META_DREG: u16 = 1;
pub const NFTA_META_KEY: u16 = 2;
pub const NFTA_PAYLOAD_DREG: u16 = 1;
pub const NFTA_PAYLOAD_BASE: u16 = 2;
pub const NFTA_PAYLOAD_OFFSET: u16 = 3;
pub const NFTA_PAYLOAD_LEN: u16 = 4;
pub const NFTA_BITWISE_SREG: u16 = 1;
pub const NFTA_BITWISE_DREG: u16 = 2;
pub const NFTA_BITWISE_LEN: u16 = 3;
pub const NFTA_BITWISE_MASK: u16 = 4;
pub const NFTA_BITWISE_XOR: u16 = 5;
pub const NFTA_BITWISE_OP: u16 = 6;
pub const NFTA_CMP_SREG: u16 = 1;
pub const NFTA_CMP_OP: u16 = 2;
pub const NFTA_CMP_DATA: u16 = 3;
/// `NFTA_MATCH_*`; those of targets (`NFTA_TARGET_*`) are the same.
pub const NFTA_XT_NAME: u16 = 1;
pub const NFTA_XT_REV: u16 = 2;
pub const NFTA_XT_INFO: u16 = 3;

pub const NFT_REG_VERDICT: u32 = 0;
pub const NFT_REG_1: u32 = 1;
pub const NFT_CMP_EQ: u32 = 0;
pub const NFT_CMP_NEQ: u32 = 1;
pub const NFT_BITWISE_MASK_XOR: u32 = 0;
pub const NFT_META_MARK: u32 = 3;
pub const NFT_META_IIFNAME: u32 = 6;
pub const NFT_META_L4PROTO: u32 = 16;
pub const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
pub const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;

/// Verdicts: `NF_*` of `linux/netfilter.h`, and the negative ones of `enum nft_verdicts`.
pub const NF_DROP: u32 = 0;
pub const NF_ACCEPT: u32 = 1;
pub const NFT_JUMP: u32 = (-3i32).cast_unsigned();
pub const NFT_RETURN: u32 = (-5i32).cast_unsigned();

/// Destination port in the header of TCP and UDP: offset and length.
pub const DESTINATION_PORT: (u32, u32) = (2, 2);

/// `NFPROTO_*`.
pub fn family_number(family: Family) -> u8 {
    match family {
        Family::Ipv4 => 2,
        Family::Ipv6 => 10,
    }
}

/// The family of a number, if it is one of ours.
pub fn family_of(number: u8) -> Option<Family> {
    Family::ALL.into_iter().find(|family| family_number(*family) == number)
}

/// `struct nfgenmsg` with its resource id, which only batch messages use.
pub fn nfgenmsg(family: u8, resource: u16) -> [u8; NFGENMSG] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

/// Where the addresses stand in the header of a family: source, destination.
pub fn address_offsets(family: Family) -> (u32, u32) {
    match family {
        Family::Ipv4 => (12, 16),
        Family::Ipv6 => (8, 24),
    }
}

/// Length of an address in bytes.
pub fn address_length(family: Family) -> usize {
    usize::from(family.host_prefix()) / 8
}
