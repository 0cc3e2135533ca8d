//! The ledger: every answer is on file before it is used, so that none is asked for twice.
//!
//! Segments `answers/000000.log`, … hold frames `length u32 · checksum 8 bytes · payload`. A payload is
//! `ordinal u64 · turn u32 · request digest 32 bytes · node · row id · answer` (texts with a u16
//! length, the answer to the end). Whoever has an answer appends it with one `write()`; a thread syncs within 100 ms.
//! What it could not sync stops the run: a disk that lost one answer would lose the next ones too.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use fs_err::{self as fs, File, OpenOptions};
use futures::future::BoxFuture;

use super::RunError;
use crate::node::answer::{Answer, AnswerKey, Answers};
use crate::sink::sync_dir;

const SEGMENT_BYTES: u64 = 64 << 20;
const SYNC_EVERY: Duration = Duration::from_millis(100);
const HEAD: usize = 12;

/// The ledger of one OUT.
pub(super) struct Ledger {
    dir: PathBuf,
    found: HashMap<Key, Place>,
    shared: Arc<Shared>,
    syncing: Option<JoinHandle<()>>,
}

type Key = [u8; 16];

/// Where an answer stands.
#[derive(Clone, Copy, Debug)]
struct Place {
    segment: u64,
    offset: u64,
    len: u32,
}

/// What rows and the syncing thread share.
struct Shared {
    /// Held for one `write()`, never across an await.
    segment: Mutex<Segment>,
    /// Something was written since the last sync.
    dirty: AtomicBool,
    closed: AtomicBool,
    /// Held for a sync; what went wrong with one, until somebody takes it.
    synced: Mutex<Option<RunError>>,
    /// A sync went wrong.
    broken: AtomicBool,
}

/// The segment that is written to.
struct Segment {
    dir: PathBuf,
    number: u64,
    file: File,
    len: u64,
    /// By segment: the highest ordinal in it.
    highest: Vec<(u64, u64)>,
}

impl Ledger {
    /// Opens the ledger in `dir`, reading segments from `first` on; answers of rows before `ordinal` are
    /// not needed any more.
    pub(super) fn open(dir: &Path, first: u64, ordinal: u64) -> Result<Self, RunError> {
        fs::create_dir_all(dir).map_err(RunError::io(dir))?;
        let mut segments = Vec::new();
        for entry in fs::read_dir(dir).map_err(RunError::io(dir))? {
            let path = entry.map_err(RunError::io(dir))?.path();
            let number = path
                .file_name()
                .and_then(|name| name.to_str()?.strip_suffix(".log")?.parse::<u64>().ok());
            segments.extend(number.filter(|number| *number >= first));
        }
        segments.sort_unstable();
        let mut found = HashMap::new();
        let mut highest = Vec::new();
        let mut end = 0;
        for segment in &segments {
            end = scan(
                &segment_path(dir, *segment),
                *segment,
                ordinal,
                &mut found,
                &mut highest,
            )?;
        }
        let current = segments.last().copied().unwrap_or(first);
        let path = segment_path(dir, current);
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(RunError::io(&path))?;
        // A frame that a crash cut off is dropped: its request was in flight.
        file.set_len(end).map_err(RunError::io(&path))?;
        sync_dir(dir).map_err(RunError::io(dir))?;
        let segment = Segment {
            dir: dir.to_owned(),
            number: current,
            file,
            len: end,
            highest,
        };
        let shared = Arc::new(Shared {
            segment: Mutex::new(segment),
            dirty: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            synced: Mutex::new(None),
            broken: AtomicBool::new(false),
        });
        let own = shared.clone();
        let syncing = std::thread::Builder::new()
            .name("answers-sync".into())
            .spawn(move || own.sync_until_closed())
            .map_err(RunError::io(dir))?;
        Ok(Self {
            dir: dir.to_owned(),
            found,
            shared,
            syncing: Some(syncing),
        })
    }

    /// Answers found on file that may be used again.
    pub(super) fn len(&self) -> u64 {
        self.found.len() as u64
    }

    /// An error when an answer could not be brought to the disk.
    pub(super) fn check(&self) -> Result<(), RunError> {
        if !self.shared.broken.load(Ordering::Acquire) {
            return Ok(());
        }
        let error = self.shared.synced().take();
        Err(error.unwrap_or_else(|| RunError::Bug {
            message: "the ledger was used after it could not be synced".into(),
        }))
    }

    /// Brings every answer to the disk.
    pub(super) fn sync(&self) -> Result<(), RunError> {
        self.shared.sync();
        self.check()
    }

    /// The first segment that can hold answers of rows from `ordinal` on.
    pub(super) fn first_needed(&self, ordinal: u64) -> u64 {
        let segment = self.shared.segment();
        let highest = &segment.highest;
        let needed = highest.iter().find(|(_, highest)| *highest >= ordinal);
        needed.or(highest.last()).map_or(0, |(segment, _)| *segment)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        if let Some(thread) = self.syncing.take() {
            thread.thread().unpark();
            // It holds nothing that a panic could lose: what was written is written.
            let _synced = thread.join();
        }
    }
}

impl Answers for Ledger {
    fn find(&self, key: &AnswerKey<'_>) -> Option<Answer> {
        let place = self
            .found
            .get(&hash(key.node, &key.row_id.to_string(), key.turn, &key.digest))?;
        let file = File::open(segment_path(&self.dir, place.segment)).ok()?;
        let mut payload = vec![0; usize::try_from(place.len).ok()?];
        file.file().read_exact_at(&mut payload, place.offset).ok()?;
        Answer::decode(Payload::parse(&payload)?.answer)
    }

    fn keep<'a>(&'a self, key: AnswerKey<'a>, answer: &'a Answer) -> BoxFuture<'a, std::io::Result<()>> {
        let written = frame(&key, answer).and_then(|frame| {
            let mut segment = self.shared.segment();
            segment.write(&frame, key.row_id.ordinal())?;
            self.shared.dirty.store(true, Ordering::Release);
            Ok(())
        });
        Box::pin(std::future::ready(written))
    }
}

impl Segment {
    fn write(&mut self, bytes: &[u8], ordinal: u64) -> std::io::Result<()> {
        if self.len >= SEGMENT_BYTES {
            self.file.sync_data()?;
            let path = segment_path(&self.dir, self.number + 1);
            let next = OpenOptions::new().create(true).append(true).open(&path)?;
            sync_dir(&self.dir)?;
            (self.file, self.number, self.len) = (next, self.number + 1, 0);
        }
        if let Err(error) = self.file.write_all(bytes) {
            // Half a frame must not stand between whole ones.
            self.file.set_len(self.len)?;
            return Err(error);
        }
        self.len += bytes.len() as u64;
        note_highest(&mut self.highest, self.number, ordinal);
        Ok(())
    }
}

impl Shared {
    fn segment(&self) -> MutexGuard<'_, Segment> {
        self.segment.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn synced(&self) -> MutexGuard<'_, Option<RunError>> {
        self.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Syncs what was written; whoever comes meanwhile waits for it.
    fn sync(&self) {
        let mut synced = self.synced();
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return;
        }
        let (file, path) = {
            let segment = self.segment();
            (
                segment.file.try_clone(),
                segment_path(&segment.dir, segment.number),
            )
        };
        if let Err(source) = file.and_then(|file| file.into_file().sync_data()) {
            tracing::error!(%source, path = %path.display(), "the ledger could not be synced");
            synced.get_or_insert(RunError::Unsynced { path, source });
            self.broken.store(true, Ordering::Release);
        }
    }

    fn sync_until_closed(&self) {
        loop {
            let closed = self.closed.load(Ordering::Acquire);
            self.sync();
            if closed {
                return;
            }
            std::thread::park_timeout(SYNC_EVERY);
        }
    }
}

fn segment_path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("{segment:06}.log"))
}

fn note_highest(highest: &mut Vec<(u64, u64)>, segment: u64, ordinal: u64) {
    match highest.last_mut() {
        Some((last, seen)) if *last == segment => *seen = (*seen).max(ordinal),
        _ => highest.push((segment, ordinal)),
    }
}

/// What identifies an answer, in 16 bytes.
fn hash(node: &str, row_id: &str, turn: u32, digest: &[u8; 32]) -> Key {
    let mut hasher = blake3::Hasher::new();
    hasher.update(node.as_bytes());
    hasher.update(format!("\0{row_id}\0{turn}\0").as_bytes());
    hasher.update(digest);
    let mut short = Key::default();
    hasher.finalize_xof().fill(&mut short);
    short
}

fn frame(key: &AnswerKey<'_>, answer: &Answer) -> std::io::Result<Vec<u8>> {
    let row_id = key.row_id.to_string();
    let text = |out: &mut Vec<u8>, text: &str| {
        let len = u16::try_from(text.len()).map_err(std::io::Error::other)?;
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(text.as_bytes());
        Ok::<_, std::io::Error>(())
    };
    let mut out = vec![0; HEAD];
    out.extend_from_slice(&key.row_id.ordinal().to_le_bytes());
    out.extend_from_slice(&key.turn.to_le_bytes());
    out.extend_from_slice(&key.digest);
    text(&mut out, key.node)?;
    text(&mut out, &row_id)?;
    out.extend_from_slice(&answer.encode());
    let payload = out.get(HEAD..).unwrap_or_default();
    let len = u32::try_from(payload.len()).map_err(std::io::Error::other)?;
    let sum = checksum(payload);
    let head: Vec<u8> = len.to_le_bytes().into_iter().chain(sum).collect();
    if let Some(place) = out.get_mut(..HEAD) {
        place.copy_from_slice(&head);
    }
    Ok(out)
}

fn checksum(payload: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    blake3::Hasher::new()
        .update(payload)
        .finalize_xof()
        .fill(&mut sum);
    sum
}

/// A frame's content.
struct Payload<'a> {
    ordinal: u64,
    turn: u32,
    digest: [u8; 32],
    node: &'a str,
    row_id: &'a str,
    answer: &'a [u8],
}

impl<'a> Payload<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (ordinal, rest) = bytes.split_first_chunk::<8>()?;
        let (turn, rest) = rest.split_first_chunk::<4>()?;
        let (digest, rest) = rest.split_first_chunk::<32>()?;
        let text = |bytes: &'a [u8]| {
            let (len, rest) = bytes.split_first_chunk::<2>()?;
            let (text, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
            Some((std::str::from_utf8(text).ok()?, rest))
        };
        let (node, rest) = text(rest)?;
        let (row_id, answer) = text(rest)?;
        Some(Self {
            ordinal: u64::from_le_bytes(*ordinal),
            turn: u32::from_le_bytes(*turn),
            digest: *digest,
            node,
            row_id,
            answer,
        })
    }

    fn key(&self) -> Key {
        hash(self.node, self.row_id, self.turn, &self.digest)
    }
}

/// Reads a segment; returns where its last whole frame ends.
fn scan(
    path: &Path,
    segment: u64,
    from: u64,
    found: &mut HashMap<Key, Place>,
    highest: &mut Vec<(u64, u64)>,
) -> Result<u64, RunError> {
    let bytes = fs::read(path).map_err(RunError::io(path))?;
    let (mut at, mut end) = (0_usize, 0);
    while let Some((head, rest)) = bytes.get(at..).and_then(|rest| rest.split_first_chunk::<HEAD>()) {
        let (len, sum) = head.split_at(4);
        let len = <[u8; 4]>::try_from(len).map_or(0, u32::from_le_bytes);
        let Some(payload) = rest.get(..len as usize) else {
            break;
        };
        let start = at + HEAD;
        at = start + payload.len();
        // A frame that the disk damaged costs its own answer, not those after it.
        if checksum(payload) != sum {
            continue;
        }
        let Some(read) = Payload::parse(payload) else {
            continue;
        };
        note_highest(highest, segment, read.ordinal);
        if read.ordinal >= from {
            found.insert(
                read.key(),
                Place {
                    segment,
                    offset: start as u64,
                    len,
                },
            );
        }
        end = at;
    }
    Ok(end as u64)
}
