//! Manifests followed as they change: the first load must succeed, later ones replace what is known only
//! when they do.
//!
//! When to look is [`crate::files`]' business. Reads no document itself.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc::Sender;
use tracing::{error, info, warn};

use super::Closed;
use super::manifests::{self, Error, Loaded};
use crate::files::{Followed, Mark};
use crate::model::Event;

/// Why files are no longer followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    #[error(transparent)]
    Load(#[from] Error),
    #[error("manifests no longer followed")]
    Closed(#[from] Closed),
    #[error("manifests: reading failed")]
    Panicked(#[from] tokio::task::JoinError),
}

/// Sends everything there is, and again whenever it changed, until nobody takes it any more.
/// Only the first load's failure is an error; later ones are logged and what is known stays.
pub async fn follow(path: &Path, sender: Sender<Event>) -> Result<Infallible, FollowError> {
    let mut follower = Follower::new(path, sender);
    // Watch first, look second: what changes in between is seen.
    let mut files = Followed::new(path, |path| manifests::files(path).unwrap_or_default());
    let seen = files.marks();
    follower.load().await??.send(&mut follower).await?;
    follower.seen = seen;
    loop {
        tokio::select! {
            () = files.changed(&follower.seen, follower.broken.is_some()) => {}
            () = follower.sender.closed() => return Err(Closed.into()),
        }
        follower.look(files.marks()).await?;
    }
}

struct Follower {
    path: PathBuf,
    sender: Sender<Event>,
    /// What the files looked like when they were last read.
    seen: Vec<Mark>,
    /// The error last logged, while it lasts.
    broken: Option<String>,
    /// What kept us from reading does not show in how the files look.
    unreadable: bool,
    warned: BTreeSet<String>,
}

impl Follower {
    fn new(path: &Path, sender: Sender<Event>) -> Self {
        Self { path: path.to_owned(), sender, seen: Vec::new(), broken: None, unreadable: false, warned: BTreeSet::new() }
    }

    /// Reads the files if they changed, or could not be read.
    async fn look(&mut self, marks: Vec<Mark>) -> Result<(), FollowError> {
        if marks == self.seen && !self.unreadable {
            return Ok(());
        }
        self.seen.clone_from(&marks);
        let loaded = match empty_file(&marks) {
            Some(empty) => Err(empty),
            None => self.load().await?,
        };
        self.unreadable = matches!(loaded, Err(Error::Read { .. }));
        match loaded {
            Ok(loaded) => {
                if self.broken.take().is_some() {
                    info!("manifests: {} is whole again", self.path.display());
                }
                loaded.send(self).await?;
            }
            Err(error) => self.complain(&error),
        }
        Ok(())
    }

    async fn load(&self) -> Result<Result<Loaded, Error>, tokio::task::JoinError> {
        let path = self.path.clone();
        tokio::task::spawn_blocking(move || manifests::load(&path)).await
    }

    fn complain(&mut self, error: &Error) {
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
        let text = format!("{error}{cause}");
        if self.broken.as_ref() != Some(&text) {
            error!("{text}; the last good state stays until this is mended");
            self.broken = Some(text);
        }
    }
}

impl Loaded {
    async fn send(mut self, follower: &mut Follower) -> Result<(), Closed> {
        let warnings: BTreeSet<String> = std::mem::take(&mut self.warnings).into_iter().collect();
        for warning in warnings.difference(&follower.warned) {
            warn!("{warning}");
        }
        follower.warned = warnings;
        for event in self.into_events() {
            super::send(&follower.sender, event).await?;
        }
        Ok(())
    }
}

/// `command > file` empties the file long before it fills it; that is not meant as "no services".
fn empty_file(marks: &[Mark]) -> Option<Error> {
    let empty = marks.iter().find(|mark| mark.length == 0)?;
    Some(Error::Empty { file: empty.file.display().to_string() })
}
