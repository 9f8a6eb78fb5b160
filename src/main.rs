//! The `sluice` binary. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    sluice::cli::main(std::env::args_os())
}
