//! What the proxy tells about itself over HTTP: health, service health checks, metrics, status.
//!
//! It only listens and answers. It must not decide anything about rules, read the API or touch the
//! kernel's tables: the agent and the sync loop report to [`Health`], [`Metrics`] and [`ServiceHealth`],
//! and every server is a plain future for the agent's supervised set.

mod build;
mod exposition;
pub mod health;
pub mod http;
mod labels;
pub mod metrics;
mod process;
pub mod service_health;
pub mod status;

pub use health::Health;
pub use http::{BindFailure, Handler, Reply, Server, Shutdown};
pub use metrics::Metrics;
pub use service_health::{HealthPort, ListenOn, ServiceHealth};
pub use status::{Configz, Pages};
