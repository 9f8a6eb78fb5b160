//! The configuration file, followed: a change is read and checked, and taken up if it can be.
//!
//! kube-proxy exits when its file is written to, and misses what Kubernetes does to a mounted `ConfigMap`, whose files are
//! links that are swapped.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::ConfigFile;
use crate::config::{Config, LogFormat};
use crate::files::Followed;
use crate::logging;
use crate::serve::Configz;

/// Tells of the first configuration that differs from `current` in more than what is logged and can be used, and then of
/// nothing any more. What is logged changes at once; what cannot be used is told, and the current one stays in force.
pub async fn follow(
    file: Arc<ConfigFile>,
    current: Arc<Config>,
    configz: Configz,
    changed: oneshot::Sender<Box<Config>>,
) -> anyhow::Result<()> {
    let path = file.path.display();
    let mut files = Followed::new(&file.path, |path| vec![path.to_owned()]);
    let (mut known, mut is_broken) = ((*current).clone(), false);
    loop {
        // Looked at first, read second: what changes in between is seen. Read at once, for it may have changed since
        // the process read it.
        let seen = files.marks();
        let reader = Arc::clone(&file);
        match tokio::task::spawn_blocking(move || (reader.load)()).await? {
            Ok(next) if next == known => {
                if is_broken {
                    tracing::info!("configuration {path}: is as before again");
                }
                is_broken = false;
            }
            Ok(next) if same_but_for_logging(&next, &known) => {
                log_as(&next, &known);
                configz.set(next.effective.to_configz());
                tracing::info!("configuration {path}: nothing changes but for what is logged, at once");
                if of_start(&next) != of_start(&known) {
                    tracing::warn!(
                        "configuration {path}: how log lines look and where they go changes when the process is started again"
                    );
                }
                (known, is_broken) = (next, false);
            }
            Ok(next) => {
                let difference = difference(&known, &next);
                tracing::info!("configuration {path}: {difference}; starting anew with it, the rules stay");
                log_as(&next, &known);
                // Whoever waits for it has ended, and says why.
                let _ = changed.send(Box::new(next));
                return std::future::pending().await;
            }
            Err(error) => {
                is_broken = true;
                tracing::error!("{error:#}; the configuration in force stays until this is mended");
            }
        }
        while files.marks() == seen {
            files.changed(&seen, false).await;
        }
    }
}

fn same_but_for_logging(a: &Config, b: &Config) -> bool {
    Config { logging: b.logging.clone(), effective: Arc::clone(&b.effective), ..a.clone() } == *b
}

/// What was set by hand meanwhile stays, unless the file says something new of it.
fn log_as(next: &Config, known: &Config) {
    if next.logging != known.logging {
        logging::change(&next.logging);
    }
}

/// What is set up once, with the process.
fn of_start(config: &Config) -> (LogFormat, bool) {
    (config.logging.format, config.logging.split_stream)
}

/// The settings that change, as an operator gives them.
fn difference(old: &Config, new: &Config) -> String {
    let words = |config: &Config| format!(" {config}").split(" --").skip(1).map(str::to_owned).collect::<Vec<_>>();
    let (old, new) = (words(old), words(new));
    let only = |these: &[String], others: &[String]| {
        let only: Vec<_> = these.iter().filter(|word| !others.contains(word)).map(|word| format!("--{word}")).collect();
        if only.is_empty() { "what is as by default".to_owned() } else { only.join(" ") }
    };
    format!("{} instead of {}", only(&new, &old), only(&old, &new))
}
