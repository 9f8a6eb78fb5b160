//! The `sluice` binary. Everything is in the library.

use std::process::ExitCode;

/// Its options are in `.cargo/config.toml`. With the C library's own, 20,000 Services take twice the memory for good: the
/// first load leaves its heap full of holes. That of musl, in a static binary, is slow with threads as well.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    sluice::cli::main(std::env::args_os())
}
