//! A network namespace for a test: empty, its own, gone when the test is over.
//!
//! Not for tests that need no privilege. Such tests are skipped with a message for a plain user and
//! fail where CI is set, so that they cannot vanish quietly.

use rustix::thread::UnshareFlags;

/// Runs `test` on a thread in a new namespace: its sockets and the programs it starts are in there.
pub fn in_namespace(test: impl FnOnce() + Send) {
    let in_thread = || {
        #[expect(deprecated, reason = "its replacement is unsafe for UnshareFlags::FILES only")]
        let moved = rustix::thread::unshare(UnshareFlags::NEWNET);
        match moved {
            Ok(()) => test(),
            Err(error) if std::env::var_os("CI").is_some() => panic!("no network namespace: {error}"),
            Err(error) => eprintln!("skipped, this needs CAP_SYS_ADMIN: {error}"),
        }
    };
    if let Err(panic) = std::thread::scope(|scope| scope.spawn(in_thread).join()) {
        std::panic::resume_unwind(panic);
    }
}
