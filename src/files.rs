//! Files that are followed: tells when they may have changed and nobody is writing any more.
//!
//! inotify says when to look, a fingerprint of the files whether there is anything new. Reads no file itself.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

/// Writers of several files, or of one in several steps, are let finish.
const QUIET: Duration = Duration::from_millis(75);
/// But not for ever.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How often we look without being told to: while the files are broken, or where inotify is not to be had.
/// A look costs a few system calls.
const POLL: Duration = Duration::from_secs(1);
/// And how often otherwise: inotify says nothing of what a link of the folder leads to, of other machines' writes, or
/// of a folder above that is renamed.
const SLOW_POLL: Duration = Duration::from_secs(5);

/// A file, or a folder with files, that is followed.
pub struct Followed {
    path: PathBuf,
    list: List,
    signal: Arc<Signal>,
    /// `None`: not possible, so we poll.
    watcher: Option<notify::RecommendedWatcher>,
}

/// Which files there are at a path; none: nothing is there, or it cannot be read.
pub type List = fn(&Path) -> Vec<PathBuf>;

impl Followed {
    /// Follows from now on what `list` finds at `path`.
    pub fn new(path: &Path, list: List) -> Self {
        let mut followed = Self { path: path.to_owned(), list, signal: Arc::default(), watcher: None };
        followed.watcher = followed.watch();
        followed
    }

    /// What the files look like.
    pub fn marks(&self) -> Vec<Mark> {
        let files = (self.list)(&self.path).into_iter();
        files.filter_map(|file| Some(mark(&fs::metadata(&file).ok()?, file))).collect()
    }

    /// Returns when the files may look otherwise than `seen`, and it has been quiet for a moment; with `eager` after a
    /// second at the latest, for what keeps a file from being read need not show in how it looks.
    pub async fn changed(&mut self, seen: &[Mark], eager: bool) {
        let pause = if eager || self.watcher.is_none() { POLL } else { SLOW_POLL };
        loop {
            tokio::select! {
                () = self.signal.changed.notified() => self.signal.settle().await,
                () = sleep(pause) => match self.marks() == seen {
                    true if pause == SLOW_POLL => continue,
                    true => {}
                    false => self.rest().await,
                },
            }
            break;
        }
        // Folders come and go, and a watch is of the folder it was set on, not of its name.
        self.watcher = self.watch();
    }

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
                tracing::debug!("{} cannot be watched, looking each second: {error}", self.path.display());
                None
            }
        }
    }

    /// Waits until the files have looked the same for a moment: where nobody tells of writers, one may still be at it.
    async fn rest(&self) {
        let limit = Instant::now() + LONGEST_WAIT;
        let mut before = self.marks();
        while Instant::now() < limit {
            sleep(QUIET).await;
            let now = self.marks();
            if now == before {
                return;
            }
            before = now;
        }
    }
}

impl fmt::Debug for Followed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Followed").field("path", &self.path).finish_non_exhaustive()
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

/// A file as the file system describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub file: PathBuf,
    inode: u64,
    pub length: u64,
    modified: (i64, i64),
    /// Of the metadata: who may read it.
    changed: (i64, i64),
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
