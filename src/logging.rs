//! Log lines: how they look, where they go, and which are written.
//!
//! Levels are kube-proxy's `-v`: up to 3 "info" is written, from 4 "debug" too, from 8 everything; `--vmodule` says more for
//! single modules. Both can be changed at any time. Each line is written at once: there is nothing to flush.

use std::io::{self, IsTerminal as _, Stderr, Stdout};
use std::sync::OnceLock;

use anyhow::anyhow;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Filter, SubscriberExt as _};
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::{LogFormat, LoggingConfig};

static FILTER: OnceLock<reload::Handle<Verbosity, Registry>> = OnceLock::new();

/// Sets the process's logging up, once.
pub fn init(config: &LoggingConfig) -> anyhow::Result<()> {
    let streams = Streams { split: config.split_stream };
    let (filter, handle) = reload::Layer::new(Verbosity::new(config));
    // Names of modules are for those who look for one.
    let named = config.verbosity >= 4 || !config.modules.is_empty();
    let lines = tracing_subscriber::fmt::layer().with_writer(streams).with_target(named);
    let lines = match config.format {
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal() && !config.split_stream).with_filter(filter).boxed(),
    };
    let done: Result<(), TryInitError> = tracing_subscriber::registry().with(lines).try_init();
    done.map_err(|cause| anyhow!("set up logging: {cause}"))?;
    _ = FILTER.set(handle);
    Ok(())
}

/// What is written from now on, after a change of the configuration. How lines look, and where they go, stays: whoever
/// reads them expects it.
pub fn change(config: &LoggingConfig) {
    modify(|filter| *filter = Verbosity::new(config));
}

/// From now on as much is logged as with this `-v`.
pub fn set_verbosity(level: impl Into<u32>) {
    let level = level.into();
    modify(|filter| filter.all = of_verbosity(level));
    tracing::info!("log verbosity is {level} now");
}

fn modify(change: impl FnOnce(&mut Verbosity)) {
    // Without logging there is nothing to change.
    if let Some(handle) = FILTER.get() {
        _ = handle.modify(change);
    }
}

fn of_verbosity(level: u32) -> LevelFilter {
    match level {
        0..4 => LevelFilter::INFO,
        4..8 => LevelFilter::DEBUG,
        8.. => LevelFilter::TRACE,
    }
}

/// Which lines are written.
#[derive(Clone, Debug)]
struct Verbosity {
    all: LevelFilter,
    modules: Vec<(String, LevelFilter)>,
}

impl Verbosity {
    fn new(config: &LoggingConfig) -> Self {
        let modules = config.modules.iter().map(|(pattern, level)| (pattern.clone(), of_verbosity(*level)));
        Self { all: of_verbosity(config.verbosity), modules: modules.collect() }
    }

    fn writes(&self, level: Level, module: &str) -> bool {
        let named = || self.modules.iter().filter(|(_, most)| level <= *most).any(|(pattern, _)| names(pattern, module));
        level <= self.all || named()
    }
}

impl<S: Subscriber> Filter<S> for Verbosity {
    fn enabled(&self, line: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.writes(*line.level(), line.target()) && (!is_told_already(line) || self.writes(Level::DEBUG, line.target()))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        self.modules.iter().map(|(_, level)| *level).chain([self.all]).max()
    }
}

/// With each connection kube says that it did not check the server's certificate: `source::client` has said so once, and
/// of which kubeconfig. The module's other line has a path.
fn is_told_already(line: &Metadata<'_>) -> bool {
    line.target() == "kube_client::client::tls" && line.fields().field("path").is_none()
}

/// Does the pattern fit the path of a module, `sluice::agent::rules`: all of it, or its last name?
fn names(pattern: &str, module: &str) -> bool {
    let last = module.rsplit("::").next().unwrap_or(module);
    fits(pattern.as_bytes(), last.as_bytes()) || fits(pattern.as_bytes(), module.as_bytes())
}

/// `*` is for any text, `?` for any letter.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=text.len()).any(|skipped| fits(rest, &text[skipped..])),
        ([b'?', pattern @ ..], [_, text @ ..]) => fits(pattern, text),
        ([wanted, pattern @ ..], [found, text @ ..]) => wanted == found && fits(pattern, text),
        _ => false,
    }
}

/// Where lines go: to stderr, or, if the streams are split, there only if they are warnings and errors.
#[derive(Clone, Copy, Debug)]
struct Streams {
    split: bool,
}

/// One of the two.
#[derive(Debug)]
enum Stream {
    Out(Stdout),
    Err(Stderr),
}

impl io::Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Out(stream) => stream.write(bytes),
            Self::Err(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Out(stream) => stream.flush(),
            Self::Err(stream) => stream.flush(),
        }
    }
}

impl MakeWriter<'_> for Streams {
    type Writer = Stream;

    fn make_writer(&self) -> Stream {
        Stream::Err(io::stderr())
    }

    fn make_writer_for(&self, line: &Metadata<'_>) -> Stream {
        let is_trouble = *line.level() <= Level::WARN;
        if self.split && !is_trouble { Stream::Out(io::stdout()) } else { self.make_writer() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing::Event;

    use super::*;

    #[test]
    fn patterns_name_modules() {
        for pattern in ["rules", "r*s", "ru??s", "*", "sluice::agent::rules", "sluice::agent::*"] {
            assert!(names(pattern, "sluice::agent::rules"), "{pattern}");
        }
        for pattern in ["rule", "agent", "rules?", "", "sluice", "Rules"] {
            assert!(!names(pattern, "sluice::agent::rules"), "{pattern}");
        }
    }

    #[test]
    fn a_module_may_say_more_and_never_less() {
        let config =
            LoggingConfig { verbosity: 4, modules: vec![("watch".into(), 8), ("rules".into(), 0)], ..Default::default() };
        let verbosity = Verbosity::new(&config);
        assert!(
            verbosity.writes(Level::TRACE, "sluice::source::watch") && verbosity.writes(Level::DEBUG, "sluice::agent::rules")
        );
        assert!(!verbosity.writes(Level::TRACE, "sluice::agent::rules"));
        let hint = Filter::<Registry>::max_level_hint(&verbosity);
        assert_eq!(hint, Some(LevelFilter::TRACE));
    }

    /// Counts the lines that are written.
    struct Count(Arc<AtomicUsize>);

    impl<S: Subscriber> Layer<S> for Count {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn what_was_told_once_is_not_told_with_each_connection() {
        let written = |verbosity| {
            let count = Arc::new(AtomicUsize::new(0));
            let filter = Verbosity::new(&LoggingConfig { verbosity, ..Default::default() });
            let layer = Count(Arc::clone(&count)).with_filter(filter);
            tracing::subscriber::with_default(Registry::default().with(layer), || {
                tracing::warn!(target: "kube_client::client::tls", "Server cert bypassed");
                let bypassed = count.swap(0, Ordering::Relaxed);
                tracing::warn!(target: "kube_client::client::tls", path = ?"/ca.crt", "failed to reload CA bundle");
                [bypassed, count.load(Ordering::Relaxed)]
            })
        };
        assert_eq!([written(3), written(4)], [[0, 1], [1, 1]]);
    }
}
