//! Manifests followed as they change: the first load must succeed, later ones replace what is known only
//! when they do.
//!
//! inotify says when to look, a fingerprint of the files whether there is anything new. Reads no
//! document itself.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, error, info, warn};

use super::Closed;
use super::manifests::{self, Error, Loaded};
use crate::model::Event;

/// Writers of several files, or of one in several steps, are let finish.
const QUIET: Duration = Duration::from_millis(75);
/// But not for ever.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How often we look without being told to: while the files are broken, or where inotify is not to be had.
/// A look costs a few system calls; files are read when they look different only.
const POLL: Duration = Duration::from_secs(1);
/// And how often otherwise: inotify says nothing of what a link of the folder leads to, of other machines' writes, or
/// of a folder above that is renamed.
const SLOW_POLL: Duration = Duration::from_secs(5);

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
    let mut watcher = follower.watch();
    let seen = fingerprint(path);
    follower.load().await??.send(&mut follower).await?;
    follower.seen = seen;
    loop {
        let pause = if follower.broken.is_some() || watcher.is_none() { POLL } else { SLOW_POLL };
        tokio::select! {
            () = follower.signal.changed.notified() => follower.signal.settle().await,
            () = sleep(pause) => match fingerprint(path) == follower.seen {
                true if pause == SLOW_POLL => continue,
                true => {}
                false => rest(path).await,
            },
            () = follower.sender.closed() => return Err(Closed.into()),
        }
        // Folders come and go, and a watch is of the folder it was set on, not of its name.
        watcher = follower.watch();
        follower.look().await?;
    }
}

struct Follower {
    path: PathBuf,
    sender: Sender<Event>,
    signal: Arc<Signal>,
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
        Self {
            path: path.to_owned(),
            sender,
            signal: Arc::default(),
            seen: Vec::new(),
            broken: None,
            unreadable: false,
            warned: BTreeSet::new(),
        }
    }

    /// Reads the files if they changed, or could not be read.
    async fn look(&mut self) -> Result<(), FollowError> {
        let marks = fingerprint(&self.path);
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

    /// `None`: not possible, so we poll.
    fn watch(&self) -> Option<notify::RecommendedWatcher> {
        let signal = Arc::clone(&self.signal);
        let interest = Interest::new(&self.path);
        let handler = move |event: notify::Result<notify::Event>| {
            if event.as_ref().map_or(true, |event| interest.covers(event)) {
                signal.take(event.as_ref());
            }
        };
        let set = |mut watcher: notify::RecommendedWatcher| {
            for folder in folders(&self.path) {
                watcher.watch(&folder, RecursiveMode::NonRecursive)?;
            }
            Ok(watcher)
        };
        match notify::recommended_watcher(handler).and_then(set) {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                debug!("manifests: {} cannot be watched, looking each second: {error}", self.path.display());
                None
            }
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

/// Which events may concern us. A followed folder's parent is watched for the folder's sake alone.
struct Interest {
    /// `None`: a file is followed, and links may lead to it by way of any name next to it.
    folder: Option<PathBuf>,
    name: Option<OsString>,
}

impl Interest {
    fn new(path: &Path) -> Self {
        let folder = path.canonicalize().ok().filter(|target| target.is_dir());
        Self { folder, name: path.file_name().map(ToOwned::to_owned) }
    }

    fn covers(&self, event: &notify::Event) -> bool {
        let Some(folder) = &self.folder else { return true };
        let mut paths = event.paths.iter();
        event.paths.is_empty() || paths.any(|path| path.starts_with(folder) || path.file_name() == self.name.as_deref())
    }
}

/// What inotify's thread tells us.
#[derive(Debug, Default)]
struct Signal {
    changed: Notify,
    /// Somebody wrote and has not closed the file yet.
    writing: AtomicBool,
}

impl Signal {
    fn take(&self, event: Result<&notify::Event, &notify::Error>) {
        match event.map(|event| event.kind) {
            Ok(EventKind::Access(AccessKind::Close(AccessMode::Write))) => self.writing.store(false, Ordering::Relaxed),
            Ok(EventKind::Access(_)) => return, // among them our own reading
            Ok(EventKind::Modify(ModifyKind::Data(_))) => self.writing.store(true, Ordering::Relaxed),
            Ok(_) | Err(_) => {}
        }
        self.changed.notify_one();
    }

    /// Waits until it has been quiet for a moment, and while a writer is at it for longer.
    async fn settle(&self) {
        let limit = Instant::now() + LONGEST_WAIT;
        loop {
            let quiet = Instant::now() + QUIET;
            let until = if self.writing.load(Ordering::Relaxed) { limit } else { quiet.min(limit) };
            if timeout_at(until, self.changed.notified()).await.is_err() {
                self.writing.store(false, Ordering::Relaxed);
                return;
            }
            if Instant::now() >= limit {
                return;
            }
        }
    }
}

/// Waits until the files have looked the same for a moment: where nobody tells of writers, one may still be at it.
async fn rest(path: &Path) {
    let limit = Instant::now() + LONGEST_WAIT;
    let mut before = fingerprint(path);
    while Instant::now() < limit {
        sleep(QUIET).await;
        let now = fingerprint(path);
        if now == before {
            return;
        }
        before = now;
    }
}

/// A file as the file system describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    file: PathBuf,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    /// Of the metadata: who may read it.
    changed: (i64, i64),
}

/// Nothing for a path that is not there.
fn fingerprint(path: &Path) -> Vec<Mark> {
    let files = manifests::files(path).unwrap_or_default().into_iter();
    files.filter_map(|file| Some(mark(&fs::metadata(&file).ok()?, file))).collect()
}

fn mark(data: &fs::Metadata, file: PathBuf) -> Mark {
    Mark {
        file,
        inode: data.ino(),
        length: data.len(),
        modified: (data.mtime(), data.mtime_nsec()),
        changed: (data.ctime(), data.ctime_nsec()),
    }
}

/// `command > file` empties the file long before it fills it; that is not meant as "no services".
fn empty_file(marks: &[Mark]) -> Option<Error> {
    let empty = marks.iter().find(|mark| mark.length == 0)?;
    Some(Error::Empty { file: empty.file.display().to_string() })
}

/// The folders in which something may happen to `path`: itself, the one it is in, and where links lead.
fn folders(path: &Path) -> BTreeSet<PathBuf> {
    let target = path.canonicalize().ok();
    let places = [Some(path), target.as_deref()];
    let parent = |place: &Path| match place.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => place.to_owned(),
    };
    let both = places.iter().flatten().flat_map(|place| [place.to_path_buf(), parent(place)]);
    both.filter_map(|folder| folder.canonicalize().ok()).filter(|folder| folder.is_dir()).collect()
}
