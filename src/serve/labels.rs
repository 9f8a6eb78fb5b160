//! The label sets of the metrics. Each is a closed set: no object name, address or error text may become a
//! label, or a busy cluster would grow the metrics without end.
//!
//! Fields stand in the order of kube-proxy's output, which is alphabetical.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use crate::model::Event;
use crate::net::Family;

impl EncodeLabelValue for Family {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        encoder.write_str(self.as_str())
    }
}

/// An enum whose variants are written as the words given.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_meta])* $variant),* }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
                encoder.write_str(match self { $(Self::$variant => $word),* })
            }
        }
    };
}

words! {
    /// A table of iptables, as far as kube-proxy counts rules in it.
    Table { Filter = "filter", Nat = "nat" }
}
words! {
    TrafficPolicy { Internal = "internal", External = "external" }
}
words! {
    /// The two answers the health server has.
    Code { Ok = "200", Unavailable = "503" }
}
words! {
    /// What became of a transaction.
    TransactionResult {
        Committed = "committed",
        /// The kernel said which operation it does not take.
        Refused = "refused",
        /// The kernel did not answer, or the message could not be sent.
        Failed = "failed",
    }
}
words! {
    EventKind { Service = "service", EndpointSlice = "endpoint_slice", Node = "node", Addresses = "addresses" }
}

words! {
    /// How it became known that others had changed something.
    #[derive(PartialOrd, Ord)]
    RepairCause {
        Audit = "audit",
        Notification = "notification",
        /// The kernel had more to tell than there was room for.
        LostNotifications = "lost_notifications",
    }
}
words! {
    AuditResult {
        /// Nobody else committed since it was last read: nothing had to be.
        Unchanged = "unchanged",
        Clean = "clean",
        Repaired = "repaired",
        Failed = "failed",
    }
}

words! {
    /// How a real server's draining ended.
    DrainEnd {
        /// With its last connection.
        Finished = "finished",
        /// Its time was up.
        Expired = "expired",
    }
}

impl EventKind {
    pub fn of(event: &Event) -> Self {
        match event {
            Event::Service(..) | Event::Services(_) => Self::Service,
            Event::Slice(..) | Event::Slices(_) => Self::EndpointSlice,
            Event::Node(..) | Event::Nodes(_) => Self::Node,
            Event::Addresses(_) => Self::Addresses,
        }
    }
}

/// What became of a request to the API server: a status that HTTP knows, another, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum StatusCode {
    Known(u16),
    Other,
    Error,
}

impl StatusCode {
    pub(super) fn of(status: Option<u16>) -> Self {
        let is_known = |code: u16| hyper::StatusCode::from_u16(code).is_ok_and(|status| status.canonical_reason().is_some());
        match status {
            Some(code) if is_known(code) => Self::Known(code),
            Some(_) => Self::Other,
            None => Self::Error,
        }
    }
}

impl EncodeLabelValue for StatusCode {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        match self {
            Self::Known(code) => write!(encoder, "{code}"),
            Self::Other => encoder.write_str("other"),
            Self::Error => encoder.write_str("<error>"),
        }
    }
}

words! {
    /// The methods that requests to the API server have.
    Method { Get = "GET", Post = "POST", Patch = "PATCH", Other = "other" }
}

impl Method {
    pub(super) fn named(name: &str) -> Self {
        match name {
            "GET" => Self::Get,
            "POST" => Self::Post,
            "PATCH" => Self::Patch,
            _ => Self::Other,
        }
    }
}

/// Error numbers by name, from the kernel's asm-generic list.
macro_rules! errnos {
    ($($variant:ident = $number:literal $word:literal),* $(,)?) => {
        words! {
            /// The errors netlink is known to give; everything else is `other`.
            NetlinkError { $($variant = $word,)* Other = "other" }
        }

        impl NetlinkError {
            pub fn from_errno(errno: i32) -> Self {
                match errno { $($number => Self::$variant,)* _ => Self::Other }
            }
        }
    };
}

errnos! {
    Perm = 1 "EPERM",
    NoEnt = 2 "ENOENT",
    Intr = 4 "EINTR",
    Io = 5 "EIO",
    Again = 11 "EAGAIN",
    NoMem = 12 "ENOMEM",
    Access = 13 "EACCES",
    Busy = 16 "EBUSY",
    Exist = 17 "EEXIST",
    NoDev = 19 "ENODEV",
    Inval = 22 "EINVAL",
    MFile = 24 "EMFILE",
    NoSpc = 28 "ENOSPC",
    MLink = 31 "EMLINK",
    Range = 34 "ERANGE",
    NameTooLong = 36 "ENAMETOOLONG",
    Loop = 40 "ELOOP",
    Proto = 71 "EPROTO",
    Overflow = 75 "EOVERFLOW",
    Restart = 85 "ERESTART",
    MsgSize = 90 "EMSGSIZE",
    ProtoNoSupport = 93 "EPROTONOSUPPORT",
    OpNotSupp = 95 "EOPNOTSUPP",
    AfNoSupport = 97 "EAFNOSUPPORT",
    AddrNotAvail = 99 "EADDRNOTAVAIL",
    NoBufs = 105 "ENOBUFS",
    TimedOut = 110 "ETIMEDOUT",
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByFamily {
    pub(super) ip_family: Family,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByTable {
    pub(super) ip_family: Family,
    pub(super) table: Table,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByPolicy {
    pub(super) ip_family: Family,
    pub(super) traffic_policy: TrafficPolicy,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByCode {
    pub(super) code: Code,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByResult {
    pub(super) ip_family: Family,
    pub(super) result: TransactionResult,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByErrno {
    pub(super) errno: NetlinkError,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByKind {
    pub(super) kind: EventKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByCause {
    pub(super) cause: RepairCause,
    pub(super) ip_family: Family,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByDrainEnd {
    pub(super) end: DrainEnd,
    pub(super) ip_family: Family,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByAudit {
    pub(super) ip_family: Family,
    pub(super) result: AuditResult,
}

/// The host is that of the one API server that is configured.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByRequest {
    pub(super) code: StatusCode,
    pub(super) host: Arc<str>,
    pub(super) method: Method,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByVerb {
    pub(super) host: Arc<str>,
    pub(super) verb: Method,
}
