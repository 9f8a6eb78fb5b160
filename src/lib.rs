//! sluice: a Kubernetes service proxy for Linux nodes that programs the kernel through netlink alone.
//!
//! Data flows in one direction; each module knows only those it may (ARCHITECTURE.md, tests/layers.rs):
//!
//! ```text
//! source → model::Event → model::State → render → ruleset → netlink
//! ```

pub mod agent;
pub mod cli;
pub mod config;
pub mod files;
pub mod logging;
pub mod model;
pub mod net;
pub mod netlink;
pub mod render;
pub mod ruleset;
pub mod serve;
pub mod source;
pub mod sync;
pub mod sysctl;
