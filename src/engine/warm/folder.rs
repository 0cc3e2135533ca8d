//! The folder of warm engines: its place, its names, its locks.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs_err::os::unix::fs::OpenOptionsExt as _;
use fs_err::{self as fs, File, OpenOptions};

use super::note::Note;
use crate::engine::supervise::{Handoff, Policy, Supervisor, Swept, files};
use crate::event::EventSender;

/// Between two tries to get a lock.
const AGAIN: Duration = Duration::from_millis(20);

/// `$XDG_STATE_HOME/chainette/engines`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmFolder(PathBuf);

/// What there is for a run that wants a server.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// A server that takes requests.
    Ready(Box<Handoff>),
    /// The pool of this name keeps one, which is not ready just now.
    Coming(String),
    /// None.
    None,
}

impl WarmFolder {
    /// Where `engine up` keeps its engines: in `$XDG_STATE_HOME`, else in `~/.local/state`. Nothing is made.
    ///
    /// # Errors
    /// There is no home folder.
    pub fn locate() -> Result<Self, String> {
        let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
        // A relative path in it is to be ignored, says its specification.
        let state = state.filter(|path| path.is_absolute()).or_else(|| {
            let home = std::env::home_dir().filter(|home| home.is_absolute())?;
            Some(home.join(".local/state"))
        });
        let state = state.ok_or("there is no home folder to keep engines in: set XDG_STATE_HOME")?;
        Ok(Self::at(state.join("chainette/engines")))
    }

    /// Another place.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Its path, absolute.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where facts about files of models and programs are kept: beside it, as what is in it is cleaned up.
    pub fn facts(&self) -> PathBuf {
        self.0.parent().unwrap_or(&self.0).to_owned()
    }

    /// Makes it, for us alone.
    ///
    /// # Errors
    /// It is another user's, or cannot be made.
    pub fn make(&self) -> io::Result<()> {
        files::private_folder(&self.0)
    }

    /// True when it is there and ours; what others left there is not read.
    ///
    /// # Errors
    /// It is another user's, or others can write to it.
    pub fn is_ours(&self) -> io::Result<bool> {
        if !files::owned_folder(&self.0)? {
            return Ok(false);
        }
        if fs::metadata(&self.0)?.mode() & 0o022 != 0 {
            let path = self.0.display();
            let wrong = format!("{path}: others can write there; `chmod 700` it if you know what is in it");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, wrong));
        }
        Ok(true)
    }

    /// The supervisor of the servers here.
    pub fn supervisor(&self, events: EventSender) -> Supervisor {
        Supervisor::new(&self.0, Policy::default(), events)
    }

    /// A file of a pool, or of one of its servers; names that would lead elsewhere are an error.
    ///
    /// # Errors
    /// The name cannot be a file's.
    pub fn file(&self, name: &str, kind: &str) -> io::Result<PathBuf> {
        files::check_label(name)?;
        Ok(self.0.join(format!("{name}.{kind}")))
    }

    /// A server's log.
    ///
    /// # Errors
    /// As [`WarmFolder::file`].
    pub fn log(&self, pool: &str, replica: u32) -> io::Result<PathBuf> {
        self.file(&format!("{pool}-{replica}"), "log")
    }

    /// The names of pools that have a note, a lock or a socket here.
    pub fn pools(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let pool = |name: String| {
            let (pool, kind) = name.rsplit_once('.')?;
            let known = matches!(kind, "pool" | "lock" | "sock");
            (known && !pool.is_empty()).then(|| pool.to_owned())
        };
        names.filter_map(pool).collect()
    }

    /// What a pool's process says of itself; none when there is none.
    pub fn note(&self, pool: &str) -> Option<Note> {
        let note: Note = files::read(&self.file(pool, "pool").ok()?).ok()?;
        (note.pool == pool && note.is_of_a_living()).then_some(note)
    }

    /// Writes what a pool's process says of itself.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_note(&self, note: &Note) -> io::Result<()> {
        files::replace(&self.file(&note.pool, "pool")?, note)
    }

    /// The notes of all pools whose processes live.
    pub fn notes(&self) -> Vec<Note> {
        self.pools().iter().filter_map(|pool| self.note(pool)).collect()
    }

    /// The server `replica` of a pool whose digest is this one. Blocks for a few file operations.
    pub fn find(&self, digest: &str, replica: u32) -> Found {
        if !self.is_ours().unwrap_or(false) {
            return Found::None;
        }
        let running = self.supervisor(EventSender::none()).running().unwrap_or_default();
        let fits = |handoff: &Handoff| {
            handoff.spec_digest == digest && handoff.replica_id == replica && !handoff.draining
        };
        // Without an owner it is about to end.
        let ready = running.into_iter().filter(|it| it.owner.is_some());
        let ready = ready.filter_map(|it| it.handoff.filter(fits)).next();
        if let Some(handoff) = ready {
            return Found::Ready(Box::new(handoff));
        }
        let mut notes = self.notes().into_iter();
        match notes.find(|note| note.will_serve(digest, replica)) {
            Some(note) => Found::Coming(note.pool),
            None => Found::None,
        }
    }

    /// What is on disk of a server now, if it is still this one.
    pub fn still(&self, known: &Handoff) -> Option<Handoff> {
        let label = format!("{}-{}", known.pool_id, known.replica_id);
        let now: Handoff = files::read(&self.file(&label, "json").ok()?).ok()?;
        let same = now.pid == known.pid && now.start_time == known.start_time && now.url == known.url;
        (same && files::lives(now.pid, now.start_time)).then_some(now)
    }

    /// Takes the lock of a pool; none when another process has it.
    ///
    /// # Errors
    /// The folder or the file cannot be made.
    pub fn lock(&self, pool: &str) -> io::Result<Option<PoolLock>> {
        let path = self.file(pool, "lock")?;
        loop {
            let file = open_to_lock(&path)?;
            match file.file().try_lock() {
                Ok(()) => {}
                Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
                Err(std::fs::TryLockError::Error(error)) => return Err(error),
            }
            // Whoever had it may have removed it just before it let it go.
            let same = fs::metadata(&path).is_ok_and(|meta| {
                let own = file.metadata();
                own.is_ok_and(|own| (own.dev(), own.ino()) == (meta.dev(), meta.ino()))
            });
            if same {
                return Ok(Some(PoolLock { path, _file: file }));
            }
        }
    }

    /// True while a process has the lock of a pool.
    pub fn is_locked(&self, pool: &str) -> bool {
        let file = self.file(pool, "lock").and_then(|path| {
            let mut options = OpenOptions::new();
            files::open_own(&path, options.read(true))
        });
        file.is_ok_and(|file| is_locked(&file))
    }

    /// Cleans up what others left: servers whose guards or owners are gone, files of pools whose process is gone. Blocks
    /// while a server ends whose owner was killed.
    ///
    /// # Errors
    /// The folder is another user's.
    pub fn sweep(&self) -> io::Result<Vec<Swept>> {
        let swept = self.supervisor(EventSender::none()).sweep()?;
        for pool in self.pools() {
            // One whose process is only just starting has no file but its lock.
            let left = ["pool", "sock"].map(|kind| self.file(&pool, kind));
            let left = left.into_iter().flatten().any(|path| path.exists());
            if left && let Some(lock) = self.lock(&pool)? {
                self.remove_files_of(&lock, &pool);
            }
        }
        Ok(swept)
    }

    /// Removes what a pool's process left, but logs. Only for who has its lock.
    pub fn remove_files_of(&self, lock: &PoolLock, pool: &str) {
        let _held = lock;
        let leases = (0..MOST_LEASES).map(|replica| self.file(&format!("{pool}-{replica}"), "lease"));
        let leases = leases.take_while(|path| path.as_ref().is_ok_and(|path| path.exists()));
        let own = ["pool", "sock"].map(|kind| self.file(pool, kind));
        for path in leases.chain(own).flatten() {
            // It may never have been made.
            let _none = fs::remove_file(path);
        }
    }

    /// True while somebody has requests in flight at a server.
    pub fn is_leased(&self, label: &str) -> bool {
        let file = self.file(label, "lease").and_then(|path| {
            let mut options = OpenOptions::new();
            files::open_own(&path, options.read(true))
        });
        file.is_ok_and(|file| is_locked(&file))
    }

    /// Waits until nobody has requests in flight at a server, and keeps others out until what it gives is dropped.
    ///
    /// # Errors
    /// The file of its lease cannot be made.
    pub async fn hold(&self, label: &str) -> io::Result<File> {
        let path = self.file(label, "lease")?;
        let file = open_to_lock(&path)?;
        loop {
            match file.file().try_lock() {
                Ok(()) => return Ok(file),
                Err(std::fs::TryLockError::WouldBlock) => tokio::time::sleep(AGAIN).await,
                Err(std::fs::TryLockError::Error(error)) => return Err(error),
            }
        }
    }
}

/// Replicas whose leases are looked for.
const MOST_LEASES: u32 = 4096;

/// Opens a file whose lock counts, made if need be.
pub(super) fn open_to_lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    files::open_own(path, &mut options)
}

fn is_locked(file: &File) -> bool {
    let locked = file.file().try_lock();
    matches!(locked, Err(std::fs::TryLockError::WouldBlock))
}

/// The right to run a pool. Given back when it is dropped, or the process ends; its file is removed.
#[derive(Debug)]
pub struct PoolLock {
    path: PathBuf,
    _file: File,
}

impl Drop for PoolLock {
    fn drop(&mut self) {
        // Before it is let go: who opens it now finds that it is gone, and makes another.
        let _gone = fs::remove_file(&self.path);
    }
}
