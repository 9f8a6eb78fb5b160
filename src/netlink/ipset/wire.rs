//! Numbers of `linux/netfilter/nfnetlink.h` and `linux/netfilter/ipset/ip_set.h`. Numbers only.

/// Size of `struct nfgenmsg`.
pub const NFGENMSG: usize = 4;
/// `struct nfgenmsg` of every request: ipset takes families from attributes.
pub const HEADER: [u8; NFGENMSG] = [0; NFGENMSG];

/// The protocol since which sets are found by name and listed with their numbers (Linux 4.20).
pub const IPSET_PROTOCOL: u8 = 7;

/// Message kinds, with the subsystem (`NFNL_SUBSYS_IPSET`) in the upper byte.
pub mod kind {
    const fn ipset(command: u16) -> u16 {
        6 << 8 | command
    }

    pub const PROTOCOL: u16 = ipset(1);
    pub const CREATE: u16 = ipset(2);
    pub const DESTROY: u16 = ipset(3);
    pub const SWAP: u16 = ipset(6);
    pub const LIST: u16 = ipset(7);
    pub const ADD: u16 = ipset(9);
    pub const DELETE: u16 = ipset(10);
    pub const TYPE: u16 = ipset(13);
    pub const GET_BY_NAME: u16 = ipset(14);
}

/// Of commands.
pub const IPSET_ATTR_PROTOCOL: u16 = 1;
pub const IPSET_ATTR_SETNAME: u16 = 2;
pub const IPSET_ATTR_TYPENAME: u16 = 3;
pub const IPSET_ATTR_SETNAME2: u16 = 3;
pub const IPSET_ATTR_REVISION: u16 = 4;
pub const IPSET_ATTR_FAMILY: u16 = 5;
pub const IPSET_ATTR_FLAGS: u16 = 6;
pub const IPSET_ATTR_DATA: u16 = 7;
pub const IPSET_ATTR_ADT: u16 = 8;
/// Of commands and of members alike.
pub const IPSET_ATTR_LINENO: u16 = 9;
pub const IPSET_ATTR_REVISION_MIN: u16 = 10;
pub const IPSET_ATTR_INDEX: u16 = 11;

/// Of sets and members.
pub const IPSET_ATTR_IP: u16 = 1;
pub const IPSET_ATTR_PORT: u16 = 4;
pub const IPSET_ATTR_PORT_TO: u16 = 5;
pub const IPSET_ATTR_PROTO: u16 = 7;
pub const IPSET_ATTR_INITVAL: u16 = 17;
pub const IPSET_ATTR_HASHSIZE: u16 = 18;
pub const IPSET_ATTR_MAXELEM: u16 = 19;
pub const IPSET_ATTR_BUCKETSIZE: u16 = 21;
pub const IPSET_ATTR_ELEMENTS: u16 = 24;
pub const IPSET_ATTR_REFERENCES: u16 = 25;
pub const IPSET_ATTR_MEMSIZE: u16 = 26;
pub const IPSET_ATTR_IP2: u16 = 20;
pub const IPSET_ATTR_CIDR2: u16 = 21;

pub const IPSET_ATTR_IPADDR_IPV4: u16 = 1;
pub const IPSET_ATTR_IPADDR_IPV6: u16 = 2;

/// `NLA_F_NET_BYTEORDER`: ipset takes no number of several bytes without it.
pub const BIG_ENDIAN: u16 = 1 << 14;

/// `IPSET_FLAG_LIST_HEADER`: list sets without their members.
pub const LIST_HEADER: u32 = 1 << 2;
