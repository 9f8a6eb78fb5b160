//! What is wrong with a configuration, all of it at once.

use std::fmt::{self, Display, Formatter};

/// A value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Its path in the configuration, `conntrack.maxPerCore`; a flag that is no field there, with its dashes; or empty,
    /// where it is about the whole.
    pub field: String,
    pub cause: String,
}

impl Display for Invalid {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() { f.write_str(&self.cause) } else { write!(f, "{}: {}", self.field, self.cause) }
    }
}

/// Everything that cannot be used. An error only if there is something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Invalid>);

impl Problems {
    pub fn one(field: &str, cause: String) -> Self {
        Self(vec![Invalid { field: field.to_owned(), cause }])
    }

    pub(super) fn add(&mut self, field: &str, cause: String) {
        self.0.push(Invalid { field: field.to_owned(), cause });
    }

    /// The value, or what is wrong with it noted and `stand_in` used until the end.
    pub(super) fn note<T>(&mut self, field: &str, checked: Result<T, String>, stand_in: T) -> T {
        checked.unwrap_or_else(|cause| {
            self.add(field, cause);
            stand_in
        })
    }

    pub(super) fn none_or_err(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }
}

/// In one line.
impl Display for Problems {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let texts: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&texts.join("; "))
    }
}

impl std::error::Error for Problems {}
