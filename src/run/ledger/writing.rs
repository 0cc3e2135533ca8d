//! The end of the ledger that is written to.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use fs_err::{File, OpenOptions};

use super::{RunError, Segment, sealed};
use crate::failpoint;
use crate::sink::sync_dir;

/// A segment is full when it is this long; compressing one takes as much memory.
const SEGMENT_BYTES: u64 = 4 << 20;
/// A sync is due after this time, or after so many entries.
const SYNC_EVERY: Duration = Duration::from_millis(100);
const SYNC_ENTRIES: u64 = 1000;

/// What rows, the syncing thread and the sealing thread share.
pub(super) struct Writing {
    dir: PathBuf,
    /// Held for one `write()`, never across an await.
    open: Mutex<Open>,
    /// Entries written since the last sync.
    unsynced: AtomicU64,
    closed: AtomicBool,
    /// Held for a sync; what went wrong with one, until somebody takes it.
    synced: Mutex<Option<RunError>>,
    /// A sync went wrong.
    broken: AtomicBool,
    /// Woken when enough entries wait for a sync.
    syncing: Mutex<Option<Thread>>,
}

/// The segment that is written to.
struct Open {
    segment: Segment,
    file: File,
    len: u64,
    /// By segment: the highest ordinal in it.
    highest: Vec<(Segment, u64)>,
    /// Takes full segments; none once it is closed.
    full: Option<SyncSender<Segment>>,
    /// Bytes that make it full.
    most: u64,
}

impl Writing {
    /// Goes on in a segment after its first `len` bytes: what a crash left after them is cut off.
    pub(super) fn open(
        dir: &Path,
        segment: Segment,
        len: u64,
        highest: Vec<(Segment, u64)>,
        full: SyncSender<Segment>,
    ) -> Result<Self, RunError> {
        let path = segment.log(dir);
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).open(&path);
        let file = file.map_err(RunError::io(&path))?;
        // A frame that a crash cut off is dropped: its request was in flight.
        file.set_len(len).map_err(RunError::io(&path))?;
        let ready = sync_dir(dir).and_then(|()| failpoint::hit("ledger.opened"));
        ready.map_err(RunError::io(dir))?;
        let open = Open {
            segment,
            file,
            len,
            highest,
            full: Some(full),
            most: failpoint::segment_bytes(SEGMENT_BYTES),
        };
        Ok(Self {
            dir: dir.to_owned(),
            open: Mutex::new(open),
            unsynced: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            synced: Mutex::new(None),
            broken: AtomicBool::new(false),
            syncing: Mutex::new(None),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn synced(&self) -> MutexGuard<'_, Option<RunError>> {
        self.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a frame; returns its place.
    pub(super) fn append(&self, frame: &[u8], ordinal: u64) -> std::io::Result<u64> {
        let mut open = self.lock();
        if open.full.is_none() {
            return Err(std::io::Error::other("the run has ended"));
        }
        let place = open.write(&self.dir, frame, ordinal)?;
        drop(open);
        // The first after a sync is what the thread's own clock is for.
        if self.unsynced.fetch_add(1, Ordering::AcqRel) + 1 == SYNC_ENTRIES
            && let Ok(thread) = self.syncing.lock()
            && let Some(thread) = &*thread
        {
            thread.unpark();
        }
        Ok(place)
    }

    /// The first segment that can hold answers of rows from `ordinal` on.
    pub(super) fn first_needed(&self, ordinal: u64) -> Segment {
        let open = self.lock();
        let needed = open.highest.iter().find(|(_, highest)| *highest >= ordinal);
        needed.map_or(open.segment, |(segment, _)| *segment)
    }

    /// An error when an answer could not be brought to the disk.
    pub(super) fn check(&self) -> Result<(), RunError> {
        if !self.broken.load(Ordering::Acquire) {
            return Ok(());
        }
        let error = self.synced().take();
        Err(error.unwrap_or_else(|| RunError::Bug {
            message: "the ledger was used after it could not be synced".into(),
        }))
    }

    /// Syncs what was written; whoever comes meanwhile waits for it.
    pub(super) fn sync(&self) {
        let mut synced = self.synced();
        if self.unsynced.swap(0, Ordering::AcqRel) == 0 {
            return;
        }
        let (file, path) = {
            let open = self.lock();
            (open.file.try_clone(), open.segment.log(&self.dir))
        };
        let synced_now = file.and_then(|file| file.into_file().sync_data());
        if let Err(source) = synced_now.and_then(|()| failpoint::hit("ledger.synced")) {
            tracing::error!(%source, path = %path.display(), "the ledger could not be synced");
            synced.get_or_insert(RunError::Unsynced { path, source });
            self.broken.store(true, Ordering::Release);
        }
    }

    /// The body of the syncing thread.
    pub(super) fn sync_until_closed(&self) {
        if let Ok(mut thread) = self.syncing.lock() {
            *thread = Some(std::thread::current());
        }
        loop {
            let closed = self.closed.load(Ordering::Acquire);
            self.sync();
            if closed {
                return;
            }
            std::thread::park_timeout(SYNC_EVERY);
        }
    }

    /// The body of the sealing thread.
    pub(super) fn seal_until_closed(&self, full: &Receiver<Segment>) {
        for segment in full {
            if let Err(error) = sealed::seal(&self.dir, segment) {
                // It is whole as it is, only larger.
                tracing::warn!(%error, "a full segment of the ledger could not be compressed");
            }
        }
    }

    /// Takes no more frames, and lets both threads end.
    pub(super) fn close(&self) {
        // Whoever appends after this is refused, whatever came before it is synced.
        self.lock().full = None;
        self.closed.store(true, Ordering::Release);
    }
}

impl Open {
    fn write(&mut self, dir: &Path, bytes: &[u8], ordinal: u64) -> std::io::Result<u64> {
        if self.len >= self.most {
            self.file.sync_data()?;
            failpoint::hit("ledger.full_synced")?;
            let next = Segment(self.segment.0 + 1);
            let file = OpenOptions::new().create(true).append(true).open(next.log(dir))?;
            sync_dir(dir)?;
            failpoint::hit("ledger.segment_created")?;
            let full = std::mem::replace(&mut self.segment, next);
            (self.file, self.len) = (file, 0);
            if let Some(sealing) = &self.full {
                // A disk that is too slow for it leaves it to a later process; nobody waits for that.
                let _sent = sealing.try_send(full);
            }
        }
        if let Err(error) = self.file.write_all(bytes) {
            // Half a frame must not stand between whole ones.
            self.file.set_len(self.len)?;
            return Err(error);
        }
        let place = self.segment.start() + self.len;
        self.len += bytes.len() as u64;
        note_highest(&mut self.highest, self.segment, ordinal);
        Ok(place)
    }
}

/// Notes the ordinal of an entry in a segment.
pub(super) fn note_highest(highest: &mut Vec<(Segment, u64)>, segment: Segment, ordinal: u64) {
    match highest.last_mut() {
        Some((last, seen)) if *last == segment => *seen = (*seen).max(ordinal),
        _ => highest.push((segment, ordinal)),
    }
}
