//! Where log lines go: stderr, as text for people or JSON for machines.

use std::io::IsTerminal as _;

use anyhow::anyhow;
use tracing::level_filters::LevelFilter;

/// Sets the process's logging up. `verbosity` is kube-proxy's `-v`: its levels up to 3 are ours at
/// "info", 4 to 7 at "debug", from 8 "trace".
pub fn init(verbosity: u8, format: &str) -> anyhow::Result<()> {
    let level = match verbosity {
        0..4 => LevelFilter::INFO,
        4..8 => LevelFilter::DEBUG,
        8.. => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_target(false);
    let done = match format {
        "json" => builder.json().flatten_event(true).try_init(),
        _ => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
    done.map_err(|cause| anyhow!("set up logging: {cause}"))
}
