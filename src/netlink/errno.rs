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
    pub const EBUSY: Self = Self(16);
    pub const EEXIST: Self = Self(17);
    pub const ENODEV: Self = Self(19);
    pub const EINVAL: Self = Self(22);
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

    /// The error of the system call that just failed.
    pub(super) fn last() -> Self {
        Self(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }

    /// The symbol, such as `EBUSY`.
    pub fn name(self) -> Option<&'static str> {
        self.entry().map(|&(_, name, _)| name)
    }

    fn entry(self) -> Option<&'static (i32, &'static str, &'static str)> {
        NAMES.iter().find(|(number, ..)| *number == self.0)
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
const NAMES: [(i32, &str, &str); 46] = [
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
    (22, "EINVAL", "Invalid argument"),
    (23, "ENFILE", "Too many open files in system"),
    (24, "EMFILE", "Too many open files"),
    (28, "ENOSPC", "No space left on device"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_show_their_name_and_words() {
        assert_eq!(Errno(16).to_string(), "EBUSY (Device or resource busy)");
        assert_eq!(Errno::ERESTART.name(), Some("ERESTART"));
        assert_eq!(Errno(4000).to_string(), "errno 4000");
    }

    #[test]
    fn the_words_are_those_of_the_system() {
        for (number, name, words) in NAMES {
            let system = std::io::Error::from_raw_os_error(number).to_string();
            assert_eq!(system, format!("{words} (os error {number})"), "{name}");
        }
    }
}
