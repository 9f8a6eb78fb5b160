//! What can go wrong between us and the kernel. Decisions are made on errno, never on words.

use std::fmt;

/// An error number, shown with its name: `EBUSY (Device or resource busy)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

/// One operation of a transaction that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Index into `Transaction::ops`.
    pub op: usize,
    pub errno: Errno,
    /// The operation as text, for the log.
    pub text: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rules changed while they were read; read again.
    #[error("the rules changed while they were read")]
    Interrupted,
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "errno {}", self.0)
    }
}
