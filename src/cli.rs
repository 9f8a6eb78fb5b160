//! The command line: which command to run, and with what.
//!
//! `table` has the flags as data, `flags` reads them, `settings` makes the checked configuration of them and of the file
//! that they may name.

mod flags;
mod render;
mod settings;
mod table;
mod usage;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use clap::{ArgMatches, Command};

use crate::config::{LogFormat, LoggingConfig};
use crate::{agent, logging};
use settings::{Settings, Unusable};

/// Runs the command that `arguments` ask for. Errors are one line on stderr; the exit code is 0 for
/// done, 1 for failed, 2 for arguments that cannot be used.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = arguments.into_iter().map(flags::normalized);
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) if error.use_stderr() => return unusable(&usage::line(&error)),
        Err(help) => {
            // A reader that went away (`| head`) has seen enough.
            _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    if let Some(line) = flags::bad_version(innermost(&matches)) {
        return unusable(&line);
    }
    if flags::wants_version(innermost(&matches)) {
        return ending(&write_out(concat!("sluice ", env!("CARGO_PKG_VERSION"), "\n")), LogFormat::Text);
    }
    match prepare(&matches) {
        Ok(settings) => {
            let format = settings.config.logging.format;
            ending(&execute(&matches, settings), format)
        }
        Err(error) if error.downcast_ref().is_some_and(|unusable: &Unusable| unusable.flags_only) => {
            unusable(&format!("{error:#}"))
        }
        Err(error) => ending(&Err(error), format_of_flags(innermost(&matches))),
    }
}

fn unusable(line: &str) -> ExitCode {
    eprintln!("error: {line}");
    ExitCode::from(2)
}

/// Sets logging up as far as flags say how, where nothing else can be known.
fn format_of_flags(matches: &ArgMatches) -> LogFormat {
    let json = LoggingConfig { format: LogFormat::Json, ..LoggingConfig::default() };
    let is_json = flags::text(matches, "logging-format") == "json" && logging::init(&json).is_ok();
    if is_json { LogFormat::Json } else { LogFormat::Text }
}

/// Whoever asked for JSON lines reads the last one as that too.
fn ending(outcome: &anyhow::Result<()>, format: LogFormat) -> ExitCode {
    match (outcome, format) {
        (Ok(()), _) => return ExitCode::SUCCESS,
        (Err(error), LogFormat::Text) => eprintln!("error: {}", chain(error)),
        (Err(error), LogFormat::Json) => tracing::error!("{}", chain(error)),
    }
    ExitCode::FAILURE
}

/// An error and its causes in one line. Some libraries repeat the cause in their own text: it is said once.
fn chain(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

fn command() -> Command {
    let flags = flags::args;
    let render = Command::new("render")
        .about("Print what would be programmed, as iptables-save and the like print it; needs no privilege")
        .args(flags())
        .arg(flags::family())
        .after_help(flags::afterword());
    Command::new("sluice")
        .about("A Kubernetes service proxy for Linux nodes: a drop-in replacement for kube-proxy that programs the kernel through netlink alone")
        .args(flags())
        .after_help(flags::afterword())
        .subcommand(render)
        .disable_help_subcommand(true)
        .args_conflicts_with_subcommands(true)
}

/// The flags of the command that was asked for.
fn innermost(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, matches)| matches)
}

/// Checks everything, sets logging up, and says what does nothing.
fn prepare(matches: &ArgMatches) -> anyhow::Result<Settings> {
    if matches.subcommand().is_some() {
        refuse_with_render(innermost(matches))?;
    }
    let settings = settings::resolve(innermost(matches))?;
    logging::init(&settings.config.logging)?;
    warn(&settings.warnings);
    Ok(settings)
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}

/// Flags that ask for something else than to print.
fn refuse_with_render(matches: &ArgMatches) -> Result<(), Unusable> {
    let writes = !flags::text(matches, "write-config-to").is_empty();
    let asks = [
        ("cleanup", flags::is_set(matches, "cleanup")),
        ("init-only", flags::is_set(matches, "init-only")),
        ("write-config-to", writes),
    ];
    match asks.into_iter().find(|(_, asked)| *asked) {
        Some((flag, _)) => {
            let line = format!("--{flag}: render prints what would be made, and changes nothing on the node");
            Err(Unusable { line, flags_only: true })
        }
        None => Ok(()),
    }
}

fn execute(matches: &ArgMatches, Settings { config, warnings: told }: Settings) -> anyhow::Result<()> {
    if let Some(("render", matches)) = matches.subcommand() {
        return write_out(&render::run(matches, &config)?);
    }
    let shown = flags::shown(matches);
    if config.logging.verbosity >= 1 {
        for (name, value) in &shown {
            tracing::info!("FLAG: --{name}={value:?}");
        }
    }
    let written = PathBuf::from(flags::text(matches, "write-config-to"));
    if !written.as_os_str().is_empty() {
        return settings::write(&config, &written);
    }
    if flags::is_set(matches, "cleanup") {
        return write_out(&agent::clean_up(&config.rules.ipvs)?);
    }
    tracing::info!("sluice {} starts with {config}", env!("CARGO_PKG_VERSION"));
    agent::run(agent::Launch { config, flags: shown, file: followed(matches, told) })
}

/// The configuration file with a way to read it again, which warns of what it has not `told` the last time.
fn followed(matches: &ArgMatches, told: Vec<String>) -> Option<agent::ConfigFile> {
    let path = settings::file(matches)?;
    let matches = matches.clone();
    let told = Mutex::new(told);
    let load = move || {
        let Settings { config, warnings } = settings::resolve(&matches)?;
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if *told != warnings {
            warn(&warnings);
            *told = warnings;
        }
        Ok(config)
    };
    Some(agent::ConfigFile { path, load: Box::new(load) })
}

/// A reader that went away (`| head`) is no failure.
fn write_out(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("write to standard output"),
        _ => Ok(()),
    }
}
