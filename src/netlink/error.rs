//! What can go wrong between us and the kernel. Decisions are made on errno, never on words.

use std::fmt;
use std::time::Duration;

use super::errno::Errno;

/// One operation of a transaction that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Index into `Transaction::ops`.
    pub op: usize,
    pub errno: Errno,
    /// The operation as text, for the log.
    pub text: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.text, self.errno)
    }
}

/// What was being done when an error came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    OpenSocket,
    BindSocket,
    SetOption,
    JoinGroup,
    Send,
    Receive,
    ProbeRules,
    ReadGeneration,
    ReadTables,
    DeleteTable,
    ReadChains,
    ReadRules,
    ReadAddresses,
    FindDevice,
    DeleteDevice,
    ReadRoutes,
    FindIpvs,
    ReadServers,
    ReadRealServers,
    ReadTimeouts,
    SetTimeouts,
    ProbeScheduler,
    MakeCounter,
    ReadCounter,
    ReadFlows,
    DeleteFlows,
    ProbeSets,
    ReadSets,
    ReadMembers,
    ChangeSets,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenSocket => "open a netlink socket",
            Self::BindSocket => "bind a netlink socket",
            Self::SetOption => "set an option of a netlink socket",
            Self::JoinGroup => "subscribe to netlink notifications",
            Self::Send => "send to the kernel",
            Self::Receive => "receive from the kernel",
            Self::ProbeRules => "try out nf_tables",
            Self::ReadGeneration => "read the generation of the rules",
            Self::ReadTables => "read the tables",
            Self::DeleteTable => "delete a table",
            Self::ReadChains => "read the chains",
            Self::ReadRules => "read the rules",
            Self::ReadAddresses => "read the addresses of the interfaces",
            Self::FindDevice => "look for a network device",
            Self::DeleteDevice => "delete the device kube-ipvs0",
            Self::ReadRoutes => "read the local routes",
            Self::FindIpvs => "look for IPVS",
            Self::ReadServers => "read the virtual servers",
            Self::ReadRealServers => "read the real servers of a virtual server",
            Self::ReadTimeouts => "read the timeouts of IPVS",
            Self::SetTimeouts => "set the timeouts of IPVS",
            Self::ProbeScheduler => "try out a scheduler of IPVS",
            Self::MakeCounter => "make an nfacct counter",
            Self::ReadCounter => "read an nfacct counter",
            Self::ReadFlows => "read the tracked flows",
            Self::DeleteFlows => "delete stale tracked flows",
            Self::ProbeSets => "ask what ipset can do",
            Self::ReadSets => "read the ipsets",
            Self::ReadMembers => "read the members of an ipset",
            Self::ChangeSets => "change ipsets",
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process is about to end: nothing was sent.
    #[error("stopped")]
    Stopped,
    /// Somebody changed what was being read: what was read is of several moments.
    #[error("somebody changed rules, servers or addresses while they were read")]
    Interrupted,
    /// The operations of a transaction that could not be done; nothing of it was applied.
    #[error("{}", RefusedText(.0))]
    Refused(Vec<Refusal>),
    /// The transaction was refused without saying for which operation; nothing of it was applied.
    #[error("the kernel refused the transaction: {errno}{}", Said(.said))]
    RefusedWhole { errno: Errno, said: Option<String> },
    /// The transaction was applied, but its answers don't tell the handles: read back.
    #[error("the transaction was applied, but the handles of its rules are unknown")]
    HandlesUnknown,
    /// Answers were lost: the transaction may or may not have been applied. Read back.
    #[error("the kernel's answers to the transaction were lost ({errno}), it may or may not have been applied")]
    AnswersLost { errno: Errno },
    #[error("cannot {step}: {errno}{}", Said(.said))]
    Failed { step: Step, errno: Errno, said: Option<String> },
    #[error("cannot {step}: no answer from the kernel within {} s", .after.as_secs())]
    NoAnswer { step: Step, after: Duration },
    #[error("cannot {step}: the capability CAP_NET_ADMIN is missing (EPERM)")]
    NoPrivilege { step: Step },
    #[error("the kernel has no {what}: {errno}")]
    Unsupported { what: &'static str, errno: Errno },
}

impl Error {
    /// `errno` at `step`; a missing privilege gets its own words.
    pub(super) fn at(step: Step, errno: Errno) -> Self {
        Self::said(step, errno, None)
    }

    /// The same with what the kernel said beside the number.
    pub(super) fn said(step: Step, errno: Errno, said: Option<String>) -> Self {
        match errno {
            Errno::EPERM => Self::NoPrivilege { step },
            errno => Self::Failed { step, errno, said },
        }
    }

    /// The error number behind it; of several refusals the first one's.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(refusals) => refusals.first().map(|r| r.errno),
            Self::RefusedWhole { errno, .. }
            | Self::AnswersLost { errno }
            | Self::Failed { errno, .. }
            | Self::Unsupported { errno, .. } => Some(*errno),
            Self::NoPrivilege { .. } => Some(Errno::EPERM),
            Self::Stopped | Self::Interrupted | Self::HandlesUnknown | Self::NoAnswer { .. } => None,
        }
    }

    /// Whether the very same may succeed when done again, after reading back where the error says so:
    /// somebody else changed the rules meanwhile, or a queue was full.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Interrupted | Self::AnswersLost { .. } => true,
            Self::RefusedWhole { errno, .. } | Self::Failed { errno, .. } => {
                [Errno::ERESTART, Errno::EINTR, Errno::EAGAIN, Errno::ENOBUFS].contains(errno)
            }
            _ => false,
        }
    }
}

struct RefusedText<'a>(&'a [Refusal]);

impl fmt::Display for RefusedText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, rest)) = self.0.split_first() else { return f.write_str("the kernel refused the transaction") };
        write!(f, "the kernel refused {first}")?;
        if !rest.is_empty() {
            write!(f, " (and {} more)", rest.len())?;
        }
        Ok(())
    }
}

struct Said<'a>(&'a Option<String>);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|text| write!(f, ": {text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_operation_and_number() {
        let refusal = |op| Refusal { op, errno: Errno::EBUSY, text: "-t nat -X KUBE-SVC-X".into() };
        let error = Error::Refused(vec![refusal(3), refusal(4)]);
        let words = "the kernel refused -t nat -X KUBE-SVC-X: EBUSY (Device or resource busy) (and 1 more)";
        assert_eq!(error.to_string(), words);
        assert_eq!(error.errno(), Some(Errno::EBUSY));
        assert!(!error.is_retryable());
    }

    #[test]
    fn what_the_kernel_says_is_kept() {
        let error = Error::said(Step::ReadRules, Errno::EINVAL, Some("bad luck".into()));
        assert_eq!(error.to_string(), "cannot read the rules: EINVAL (Invalid argument): bad luck");
        let error = Error::at(Step::ProbeRules, Errno::EPERM);
        assert_eq!(error.to_string(), "cannot try out nf_tables: the capability CAP_NET_ADMIN is missing (EPERM)");
    }

    #[test]
    fn a_stale_generation_can_be_tried_again() {
        let whole = |errno| Error::RefusedWhole { errno, said: None };
        assert!(whole(Errno::ERESTART).is_retryable());
        assert!(whole(Errno::ENOBUFS).is_retryable());
        assert!(!whole(Errno::EMSGSIZE).is_retryable());
    }
}
