//! What ends the process from outside: SIGTERM and SIGINT.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::serve::Health;

/// The last signal that came, if any.
pub type Told = watch::Receiver<Option<&'static str>>;

/// Listens for as long as the process lives, so that none is lost while parts are started anew.
pub fn listen() -> io::Result<Told> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (tell, told) = watch::channel(None);
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            tell.send_replace(Some(name));
        }
    });
    Ok(told)
}

/// Stops the loop, also where it is busy with the kernel: a transaction that is under way is finished (it does not
/// wait inside one), and `halt` keeps the next one from being sent.
pub async fn follow(mut told: Told, health: Health, halt: Arc<AtomicBool>, stop: watch::Sender<bool>) -> anyhow::Result<()> {
    loop {
        let signal = *told.wait_for(Option::is_some).await?;
        tracing::info!("{}: stopping; the rules stay", signal.unwrap_or_default());
        health.begin_shutdown();
        halt.store(true, Ordering::Relaxed);
        stop.send_replace(true);
        told.changed().await?;
    }
}
