//! What went wrong with a connection, in one line for whoever operates the node.
//!
//! The libraries' own words are kept but where they name what they were doing by their own functions' names, or name
//! what is wrong with a certificate and not whose mistake that is.

use std::error::Error;
use std::io;

use hyper_util::client::legacy;
use rustls::{AlertDescription, CertificateError};

/// An error with its causes, each said once: `cannot connect: tcp connect error: Connection refused (os error 111)`.
pub(crate) fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = one(error);
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = one(error);
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}

fn one(error: &(dyn Error + 'static)) -> String {
    if let Some(error) = error.downcast_ref::<legacy::Error>() {
        let doing = if error.is_connect() { "cannot connect" } else { "no answer to a request" };
        return doing.into();
    }
    match tls(error).and_then(meaning) {
        Some(meaning) => format!("{error} ({meaning})"),
        None => error.to_string(),
    }
}

/// An I/O error speaks with the voice of the error it holds, perhaps another of its kind, and does not give it as its
/// cause.
fn tls<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    match error.downcast_ref::<io::Error>() {
        Some(outer) => tls(outer.get_ref()?),
        None => error.downcast_ref(),
    }
}

fn meaning(error: &rustls::Error) -> Option<&'static str> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            Some("the server's certificate is signed by no authority we were given")
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            Some("the server wants a client certificate and we were given none")
        }
        rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError,
        ) => Some("the server does not accept our client certificate"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let inner = io::Error::other("x");
        assert_eq!(describe(&inner), "x");
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let text = describe(&io::Error::other(io::Error::new(io::ErrorKind::InvalidData, unknown)));
        assert!(text.ends_with("(the server's certificate is signed by no authority we were given)"), "{text}");
    }
}
