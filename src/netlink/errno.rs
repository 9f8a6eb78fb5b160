//! Error numbers of the kernel with their names and words, for messages people read.
//!
//! It decides nothing: what an error means is said where it is handled, by comparing with these constants.

use std::fmt;

/// An error number, shown with its name: `EBUSY (Device or resource busy)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Errno(pub i32);

impl Errno {
    pub const EPERM: Self = Self(1);
    pub const ENOENT: Self = Self(2);
    pub const ESRCH: Self = Self(3);
    pub const EINTR: Self = Self(4);
    pub const EAGAIN: Self = Self(11);
    pub const ENOMEM: Self = Self(12);
    pub const EACCES: Self = Self(13);
    pub const EBUSY: Self = Self(16);
    pub const EEXIST: Self = Self(17);
    pub const ENODEV: Self = Self(19);
    pub const EINVAL: Self = Self(22);
    pub const EROFS: Self = Self(30);
    pub const EMLINK: Self = Self(31);
    pub const ELOOP: Self = Self(40);
    pub const ENODATA: Self = Self(61);
    pub const ERESTART: Self = Self(85);
    pub const EMSGSIZE: Self = Self(90);
    pub const EPROTONOSUPPORT: Self = Self(93);
    pub const EOPNOTSUPP: Self = Self(95);
    pub const EAFNOSUPPORT: Self = Self(97);
    pub const EADDRNOTAVAIL: Self = Self(99);
    pub const ENOBUFS: Self = Self(105);
    pub const IPSET_ERR_PROTOCOL: Self = Self(4097);
    pub const IPSET_ERR_FIND_TYPE: Self = Self(4098);
    pub const IPSET_ERR_BUSY: Self = Self(4100);
    pub const IPSET_ERR_TYPE_MISMATCH: Self = Self(4102);
    pub const IPSET_ERR_INVALID_FAMILY: Self = Self(4106);
    pub const IPSET_ERR_HASH_FULL: Self = Self(4352);
    pub const IPSET_ERR_HASH_ELEM: Self = Self(4353);

    /// The error of the system call that just failed.
    pub(super) fn last() -> Self {
        Self(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }

    /// The symbol, such as `EBUSY`.
    pub fn name(self) -> Option<&'static str> {
        self.entry().map(|&(_, name, _)| name)
    }

    fn entry(self) -> Option<&'static (i32, &'static str, &'static str)> {
        NAMES.iter().chain(&IPSET_NAMES).find(|(number, ..)| *number == self.0)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entry() {
            Some((_, name, words)) => write!(f, "{name} ({words})"),
            None => write!(f, "errno {}", self.0),
        }
    }
}

/// Numbers of `asm-generic/errno-base.h` and `errno.h` (x86, ARM, RISC-V and the like), words of glibc.
const NAMES: [(i32, &str, &str); 48] = [
    (1, "EPERM", "Operation not permitted"),
    (2, "ENOENT", "No such file or directory"),
    (3, "ESRCH", "No such process"),
    (4, "EINTR", "Interrupted system call"),
    (5, "EIO", "Input/output error"),
    (6, "ENXIO", "No such device or address"),
    (7, "E2BIG", "Argument list too long"),
    (9, "EBADF", "Bad file descriptor"),
    (11, "EAGAIN", "Resource temporarily unavailable"),
    (12, "ENOMEM", "Cannot allocate memory"),
    (13, "EACCES", "Permission denied"),
    (14, "EFAULT", "Bad address"),
    (16, "EBUSY", "Device or resource busy"),
    (17, "EEXIST", "File exists"),
    (19, "ENODEV", "No such device"),
    (21, "EISDIR", "Is a directory"),
    (22, "EINVAL", "Invalid argument"),
    (23, "ENFILE", "Too many open files in system"),
    (24, "EMFILE", "Too many open files"),
    (28, "ENOSPC", "No space left on device"),
    (30, "EROFS", "Read-only file system"),
    (31, "EMLINK", "Too many links"),
    (32, "EPIPE", "Broken pipe"),
    (33, "EDOM", "Numerical argument out of domain"),
    (34, "ERANGE", "Numerical result out of range"),
    (36, "ENAMETOOLONG", "File name too long"),
    (38, "ENOSYS", "Function not implemented"),
    (40, "ELOOP", "Too many levels of symbolic links"),
    (61, "ENODATA", "No data available"),
    (71, "EPROTO", "Protocol error"),
    (74, "EBADMSG", "Bad message"),
    (75, "EOVERFLOW", "Value too large for defined data type"),
    (84, "EILSEQ", "Invalid or incomplete multibyte or wide character"),
    (85, "ERESTART", "Interrupted system call should be restarted"),
    (90, "EMSGSIZE", "Message too long"),
    (92, "ENOPROTOOPT", "Protocol not available"),
    (93, "EPROTONOSUPPORT", "Protocol not supported"),
    (94, "ESOCKTNOSUPPORT", "Socket type not supported"),
    (95, "EOPNOTSUPP", "Operation not supported"),
    (97, "EAFNOSUPPORT", "Address family not supported by protocol"),
    (98, "EADDRINUSE", "Address already in use"),
    (99, "EADDRNOTAVAIL", "Cannot assign requested address"),
    (100, "ENETDOWN", "Network is down"),
    (101, "ENETUNREACH", "Network is unreachable"),
    (105, "ENOBUFS", "No buffer space available"),
    (110, "ETIMEDOUT", "Connection timed out"),
    (111, "ECONNREFUSED", "Connection refused"),
    (114, "EALREADY", "Operation already in progress"),
];

/// What ipset alone answers, above the numbers that the kernel keeps for everybody (`MAX_ERRNO`, 4095):
/// `linux/netfilter/ipset/ip_set.h` and, from 4352 on, `ip_set_hash.h`: the first two mean other things of bitmaps, whose
/// ports ours cannot miss.
const IPSET_NAMES: [(i32, &str, &str); 20] = [
    (4097, "IPSET_ERR_PROTOCOL", "a malformed request, or a member of another kind than the set takes"),
    (4098, "IPSET_ERR_FIND_TYPE", "no such type of set"),
    (4099, "IPSET_ERR_MAX_SETS", "too many sets"),
    (4100, "IPSET_ERR_BUSY", "a rule or another set still refers to the set"),
    (4101, "IPSET_ERR_EXIST_SETNAME2", "the other set does not exist, or the new name is taken"),
    (4102, "IPSET_ERR_TYPE_MISMATCH", "the sets are of different types or families"),
    (4103, "IPSET_ERR_EXIST", "the member is there already, or is not there"),
    (4104, "IPSET_ERR_INVALID_CIDR", "invalid prefix length"),
    (4105, "IPSET_ERR_INVALID_NETMASK", "invalid netmask"),
    (4106, "IPSET_ERR_INVALID_FAMILY", "the type of set does not know this address family"),
    (4107, "IPSET_ERR_TIMEOUT", "the set has no timeouts"),
    (4108, "IPSET_ERR_REFERENCED", "the set is referred to"),
    (4109, "IPSET_ERR_IPADDR_IPV4", "not an IPv4 address"),
    (4110, "IPSET_ERR_IPADDR_IPV6", "not an IPv6 address"),
    (4352, "IPSET_ERR_HASH_FULL", "the set is full"),
    (4353, "IPSET_ERR_HASH_ELEM", "a set cannot hold the zero address"),
    (4354, "IPSET_ERR_INVALID_PROTO", "invalid protocol"),
    (4355, "IPSET_ERR_MISSING_PROTO", "protocol missing"),
    (4356, "IPSET_ERR_HASH_RANGE_UNSUPPORTED", "the type of set takes no ranges"),
    (4357, "IPSET_ERR_HASH_RANGE", "invalid range"),
];

/// What a file operation failed with, by the number's name where it has one here.
#[derive(Debug)]
pub struct IoCause<'a>(pub &'a std::io::Error);

impl fmt::Display for IoCause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.raw_os_error().map(Errno).filter(|errno| errno.name().is_some()) {
            Some(errno) => write!(f, "{errno}"),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_show_their_name_and_words() {
        assert_eq!(Errno(16).to_string(), "EBUSY (Device or resource busy)");
        assert_eq!(Errno::ERESTART.name(), Some("ERESTART"));
        assert_eq!(Errno::IPSET_ERR_HASH_FULL.to_string(), "IPSET_ERR_HASH_FULL (the set is full)");
        assert_eq!(Errno(4000).to_string(), "errno 4000");
    }

    #[test]
    fn the_constants_are_named_as_they_are_told() {
        let constants = [
            (Errno::IPSET_ERR_FIND_TYPE, "IPSET_ERR_FIND_TYPE"),
            (Errno::IPSET_ERR_BUSY, "IPSET_ERR_BUSY"),
            (Errno::IPSET_ERR_TYPE_MISMATCH, "IPSET_ERR_TYPE_MISMATCH"),
            (Errno::IPSET_ERR_INVALID_FAMILY, "IPSET_ERR_INVALID_FAMILY"),
            (Errno::IPSET_ERR_HASH_FULL, "IPSET_ERR_HASH_FULL"),
            (Errno::IPSET_ERR_HASH_ELEM, "IPSET_ERR_HASH_ELEM"),
        ];
        for (errno, name) in constants {
            assert_eq!(errno.name(), Some(name));
        }
        assert!(IPSET_NAMES.iter().all(|(number, ..)| *number > 4095), "the kernel's numbers for everybody end at 4095");
    }

    #[test]
    fn the_words_are_those_of_the_system() {
        for (number, name, words) in NAMES {
            let system = std::io::Error::from_raw_os_error(number).to_string();
            assert_eq!(system, format!("{words} (os error {number})"), "{name}");
        }
    }
}
