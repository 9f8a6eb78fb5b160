//! A network namespace for a test: empty, its own, gone when the test is over.
//!
//! Not for tests that need no privilege. Such tests are skipped with a message for a plain user and
//! fail where CI is set, so that they cannot vanish quietly.

use std::io::Write as _;
use std::process::{Command, Stdio};

use rustix::thread::UnshareFlags;

/// Runs `test` on a thread in a new namespace: its sockets and the programs it starts are in there.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        #[expect(deprecated, reason = "its replacement is unsafe for UnshareFlags::FILES only")]
        let moved = rustix::thread::unshare(UnshareFlags::NEWNET);
        match moved {
            Ok(()) => test(),
            Err(error) if std::env::var_os("CI").is_some() => panic!("no network namespace: {error}"),
            Err(error) => eprintln!("skipped, this needs CAP_SYS_ADMIN: {error}"),
        }
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a program with `input` and returns what it prints; it must succeed.
pub fn run(program: &str, arguments: &[&str], input: &str) -> String {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().expect("it is piped");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    let written = writer.join().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{errors}", output.status);
    written.unwrap();
    String::from_utf8(output.stdout).unwrap()
}
