//! A kubeconfig as a test wants it.
#![allow(dead_code, reason = "each test crate uses its part")]

use std::fs;
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::certificates::{Authority, Identity};

/// One server, one user.
#[derive(Clone, Debug)]
pub struct Kubeconfig {
    cluster: Value,
    user: Value,
}

impl Kubeconfig {
    pub fn new(url: &str) -> Self {
        Self { cluster: json!({"server": url}), user: json!({}) }
    }

    /// Whom to believe that the server is the server.
    #[must_use]
    pub fn authority(mut self, authority: &Authority) -> Self {
        self.cluster["certificate-authority-data"] = BASE64.encode(authority.pem().as_bytes()).into();
        self
    }

    /// Whoever answers is believed.
    #[must_use]
    pub fn insecure(mut self) -> Self {
        self.cluster["insecure-skip-tls-verify"] = true.into();
        self
    }

    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.user["token"] = token.into();
        self
    }

    #[must_use]
    pub fn token_file(mut self, path: &Path) -> Self {
        self.user["tokenFile"] = path.display().to_string().into();
        self
    }

    #[must_use]
    pub fn client(mut self, identity: &Identity) -> Self {
        self.user["client-certificate-data"] = BASE64.encode(identity.certificate_pem().as_bytes()).into();
        self.user["client-key-data"] = BASE64.encode(identity.key_pem().as_bytes()).into();
        self
    }

    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, path: PathBuf) -> PathBuf {
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "k", "cluster": self.cluster}], "users": [{"name": "u", "user": self.user}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}]});
        fs::write(&path, config.to_string()).expect("to write a kubeconfig");
        path
    }
}
