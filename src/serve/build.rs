//! Which version this is, in the words of those who ask for kube-proxy's.
//!
//! sluice stands for kube-proxy 1.36, so that is the version that alerts on mixed versions compare; what is not
//! kube-proxy's says so.

/// The version of kube-proxy whose interface this is.
pub(super) const BINARY_VERSION: &str = "1.36";
pub(super) const MAJOR: &str = "1";
pub(super) const MINOR: &str = "36";
/// A semantic version: what follows the plus sign does not count in comparisons.
pub(super) const GIT_VERSION: &str = concat!("v1.36.2+sluice.", env!("CARGO_PKG_VERSION"));
/// Where Go programs tell the version of Go.
pub(super) const GO_VERSION: &str = concat!("none (sluice ", env!("CARGO_PKG_VERSION"), ", Rust)");
pub(super) const COMPILER: &str = "rustc";

/// Of sluice; empty in a build that was not told (`SLUICE_COMMIT`).
pub(super) const GIT_COMMIT: &str = match option_env!("SLUICE_COMMIT") {
    Some(commit) => commit,
    None => "",
};

/// As Go names operating system and processor.
pub(super) fn platform() -> String {
    let processor = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        other => other,
    };
    format!("{}/{processor}", std::env::consts::OS)
}
