//! The bearer token of a file that is replaced now and then: a service account's, or a kubeconfig's `tokenFile`.
//!
//! kube would send the file as it is; a line's end behind the token, which client-go cuts off, then makes a header
//! that cannot be sent. Knows nothing of who asks the server for what.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::HeaderValue;

/// A token is replaced well before it expires; this is how often client-go looks.
const FRESH: Duration = Duration::from_mins(1);

/// A file with a token in it.
#[derive(Debug)]
pub(crate) struct TokenFile {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    header: HeaderValue,
    read: Instant,
}

impl TokenFile {
    /// Fails when there is no token to begin with.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let known = Known { header: read(path)?, read: Instant::now() };
        Ok(Self { path: path.to_owned(), known: Mutex::new(known) })
    }

    /// The value of an Authorization header, at most a minute behind the file. A file that has gone, or is being
    /// written, leaves the token that is known.
    pub(crate) fn header(&self) -> HeaderValue {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.read.elapsed() > FRESH {
            if let Ok(header) = read(&self.path) {
                known.header = header;
            }
            known.read = Instant::now();
        }
        known.header.clone()
    }
}

fn read(path: &Path) -> io::Result<HeaderValue> {
    let text = std::fs::read_to_string(path)?;
    let token = text.trim();
    if token.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty"));
    }
    let mut header = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not a token: more than one line, or odd characters"))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(name: &str, text: &str) -> io::Result<HeaderValue> {
        let path = std::env::temp_dir().join(format!("sluice-token-{name}-{}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let token = TokenFile::open(&path);
        std::fs::remove_file(&path).unwrap();
        token.map(|token| token.header())
    }

    #[test]
    fn what_surrounds_a_token_is_cut_off() {
        assert_eq!(opened("plain", "abc").unwrap(), "Bearer abc");
        assert_eq!(opened("line", " abc\r\n\n").unwrap(), "Bearer abc");
        assert_eq!(format!("{:?}", opened("secret", "abc").unwrap()), "Sensitive");
    }

    #[test]
    fn what_is_no_token_is_refused() {
        assert!(opened("empty", "\n").is_err());
        assert!(opened("lines", "abc\ndef").is_err());
    }
}
