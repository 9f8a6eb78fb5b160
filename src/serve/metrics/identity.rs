//! What this is, as metrics: the version it stands for, its own, and the feature gates in force.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family as Vector;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::super::build::{COMPILER, GIT_COMMIT, GIT_VERSION, GO_VERSION, MAJOR, MINOR, platform};
use super::Metrics;

pub(super) type Features = Vector<ByFeature, Gauge>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByFeature {
    name: String,
    stage: &'static str,
}

impl Metrics {
    /// A feature gate that this program knows is on or off. `stage` is `ALPHA`, `BETA`, `DEPRECATED` or, when it is
    /// generally available, empty.
    pub fn feature(&self, name: &str, stage: &'static str, enabled: bool) {
        self.features.get_or_create(&ByFeature { name: name.into(), stage }).set(enabled.into());
    }
}

pub(super) fn register(registry: &mut Registry) -> Features {
    registry.register("sluice_build", "The program", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    let labels = [
        ("build_date", String::new()),
        ("compiler", COMPILER.into()),
        ("git_commit", GIT_COMMIT.into()),
        ("git_tree_state", String::new()),
        ("git_version", GIT_VERSION.into()),
        ("go_version", GO_VERSION.into()),
        ("major", MAJOR.into()),
        ("minor", MINOR.into()),
        ("platform", platform()),
    ];
    let help = "[BETA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, \
                build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.";
    registry.register("kubernetes_build", help, Info::new(labels));
    let features = Features::default();
    let help = "[BETA] This metric records the data about the stage and enablement of a k8s feature.";
    registry.register("kubernetes_feature_enabled", help, features.clone());
    features
}
