//! The ledger: every answer is on file before it is used, so that none is asked for twice.
//!
//! Whoever has an answer appends it to the last segment (`answers/000000.log`, …) with one `write()`; a thread syncs within
//! 100 ms or 1,000 answers. What it could not sync stops the run: a disk that lost one answer would lose the next ones too.
//! Another thread compresses full segments (`000000.zst`). An answer is found again by its row and request; after an
//! edit also by its request alone, so that rows that moved, or a Step that got another name, are not asked again.

mod frame;
mod index;
mod sealed;
mod writing;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use fs_err::{self as fs, File};
use futures::future::BoxFuture;

use super::RunError;
use crate::failpoint;
use crate::node::answer::{Answer, AnswerKey, Answers};
use frame::Payload;
use index::{Entry, Index, Kind};
use writing::{Writing, note_highest};

/// The number of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Segment(u64);

/// Full segments that may wait to be compressed.
const UNSEALED: usize = 64;
/// Bits of a place that say where in its segment it is.
const OFFSET_BITS: u32 = 40;

impl Segment {
    /// The place of its first byte.
    fn start(self) -> u64 {
        self.0 << OFFSET_BITS
    }

    /// Its file while it is written to, and until it is compressed.
    fn log(self, dir: &Path) -> PathBuf {
        dir.join(format!("{:06}.log", self.0))
    }

    /// Its file once it is compressed.
    fn sealed(self, dir: &Path) -> PathBuf {
        dir.join(format!("{:06}.zst", self.0))
    }
}

/// The segment of a place, and the offset in it before it was compressed.
fn place_of(place: u64) -> (Segment, u64) {
    (Segment(place >> OFFSET_BITS), place & ((1 << OFFSET_BITS) - 1))
}

/// What of a ledger is needed.
#[derive(Debug, Default)]
pub(super) struct Needed {
    /// The first segment that may hold answers of rows from `ordinal` on.
    pub(super) first: u64,
    /// Answers of rows before it are not needed.
    pub(super) ordinal: u64,
    /// Answers before this place may be found by their request alone (which needs all of them).
    pub(super) edited: Option<u64>,
    /// A row that fails with answers of before this place is asked again.
    pub(super) again: Option<u64>,
    /// By Step: the digest of what its engine is. Another engine's answer to the same request is none.
    pub(super) engines: HashMap<String, [u8; 32]>,
}

/// The ledger of one OUT.
pub(super) struct Ledger {
    dir: PathBuf,
    /// Replies found that may be used again.
    found: u64,
    /// Whether anything was found: a new run looks for nothing.
    is_empty: bool,
    index: Mutex<Index>,
    /// By row at a Step: what stands before this place is not used again.
    voids: Mutex<HashMap<u64, u64>>,
    edited: Option<u64>,
    again: Option<u64>,
    engines: HashMap<String, [u8; 32]>,
    blocks: sealed::Blocks,
    reused: AtomicU64,
    writing: Arc<Writing>,
    threads: Vec<JoinHandle<()>>,
}

/// The files of a ledger, by segment: whether it is compressed.
fn segments(dir: &Path) -> Result<BTreeMap<Segment, bool>, RunError> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(RunError::io(dir))? {
        let path = entry.map_err(RunError::io(dir))?.path();
        let number = || path.file_stem()?.to_str()?.parse().ok().map(Segment);
        match (
            number(),
            path.extension().and_then(|extension| extension.to_str()),
        ) {
            (Some(segment), Some("zst")) => {
                all.insert(segment, true);
            }
            (Some(segment), Some("log")) => {
                all.entry(segment).or_insert(false);
            }
            // Half of a compressed segment.
            (Some(_), Some("tmp")) => fs::remove_file(&path).map_err(RunError::io(&path))?,
            _ => {}
        }
    }
    Ok(all)
}

/// Where the next answer of the ledger in `dir` goes; 0 if there is none.
pub(super) fn end(dir: &Path) -> Result<u64, RunError> {
    if !dir.exists() {
        return Ok(0);
    }
    Ok(match segments(dir)?.pop_last() {
        None => 0,
        Some((segment, true)) => Segment(segment.0 + 1).start(),
        Some((segment, false)) => {
            let path = segment.log(dir);
            let bytes = fs::read(&path).map_err(RunError::io(&path))?;
            // What a crash cut off will be written over.
            segment.start() + frame::scan(&bytes, segment.start(), |_, _| {}) as u64
        }
    })
}

impl Ledger {
    /// Opens the ledger in `dir`, which is made if need be.
    pub(super) fn open(dir: &Path, needed: Needed) -> Result<Self, RunError> {
        fs::create_dir_all(dir).map_err(RunError::io(dir))?;
        let all = segments(dir)?;
        let (seal, full) = sync_channel(UNSEALED);
        let mut index = Index::default();
        let mut replies = 0;
        let mut voids = HashMap::new();
        let mut highest = Vec::new();
        let mut last = (Segment(needed.first), 0);
        let newest = all.last_key_value().map(|(segment, _)| *segment);
        for (segment, is_sealed) in all {
            let is_wanted = segment.0 >= needed.first || needed.edited.is_some();
            let mut add = |expected: usize, entry: Entry| {
                note_highest(&mut highest, segment, entry.ordinal);
                if entry.kind == Kind::Void {
                    voids.insert(entry.row, entry.place);
                }
                let before_edit = needed.edited.is_some_and(|edit| entry.place < edit);
                if entry.ordinal >= needed.ordinal || needed.edited.is_some() {
                    replies += u64::from(entry.kind == Kind::Answer);
                    index.expect(expected, before_edit);
                    index.add(&entry, before_edit);
                }
            };
            let log = segment.log(dir);
            if is_sealed {
                if is_wanted {
                    let sealed = sealed::entries(dir, segment, add);
                    sealed.map_err(RunError::io(&segment.sealed(dir)))?;
                }
                // Compressed just before a kill.
                let _absent = fs::remove_file(&log);
                last = (Segment(segment.0 + 1), 0);
            } else {
                let bytes = fs::read(&log).map_err(RunError::io(&log))?;
                let end = frame::scan(&bytes, segment.start(), |entry, _| {
                    if is_wanted {
                        add(1, entry);
                    }
                });
                last = (segment, end as u64);
                if newest != Some(segment) {
                    // One that finds no place is compressed by a later process.
                    let _sent = seal.try_send(segment);
                }
            }
        }
        index.sort();
        let (segment, len) = last;
        let writing = Arc::new(Writing::open(dir, segment, len, highest, seal)?);
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.into()).spawn(body);
            thread.map_err(RunError::io(dir))
        };
        let (syncing, sealing) = (writing.clone(), writing.clone());
        let threads = vec![
            spawn("answers-sync", Box::new(move || syncing.sync_until_closed()))?,
            spawn("answers-seal", Box::new(move || sealing.seal_until_closed(&full)))?,
        ];
        Ok(Self {
            dir: dir.to_owned(),
            found: replies,
            is_empty: index.is_empty(),
            index: Mutex::new(index),
            voids: Mutex::new(voids),
            edited: needed.edited,
            again: needed.again,
            engines: needed.engines,
            blocks: sealed::Blocks::default(),
            reused: AtomicU64::new(0),
            writing,
            threads,
        })
    }

    /// Answers found on file that may be used again.
    pub(super) fn len(&self) -> u64 {
        self.found
    }

    /// Answers that were used again.
    pub(super) fn reused(&self) -> u64 {
        self.reused.load(Ordering::Relaxed)
    }

    /// An error when an answer could not be brought to the disk.
    pub(super) fn check(&self) -> Result<(), RunError> {
        self.writing.check()
    }

    /// Brings every answer to the disk.
    pub(super) fn sync(&self) -> Result<(), RunError> {
        self.writing.sync();
        self.check()
    }

    /// Takes no more answers.
    pub(super) fn close(&self) {
        self.writing.close();
    }

    /// The first segment that can hold answers of rows from `ordinal` on.
    pub(super) fn first_needed(&self, ordinal: u64) -> u64 {
        self.writing.first_needed(ordinal).0
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn voids(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        self.voids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key with the engine that is asked mixed into its digest.
    fn of_engine<'a>(&self, key: &AnswerKey<'a>) -> AnswerKey<'a> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.engines.get(key.node).unwrap_or(&[0; 32]));
        hasher.update(&key.digest);
        AnswerKey {
            digest: *hasher.finalize().as_bytes(),
            ..*key
        }
    }

    /// Whether what stands at a place was given up.
    fn is_void(&self, row: u64, place: u64) -> bool {
        self.voids().get(&row).is_some_and(|void| place < *void)
    }

    /// The payload of the frame at a place; none if it is damaged or gone.
    fn payload(&self, place: u64) -> Option<Vec<u8>> {
        let (segment, offset) = place_of(place);
        match File::open(segment.log(&self.dir)) {
            Ok(file) => {
                let mut bytes = vec![0; 12];
                file.file().read_exact_at(&mut bytes, offset).ok()?;
                bytes.resize(frame::size(&bytes)?, 0);
                file.file().read_exact_at(&mut bytes, offset).ok()?;
                frame::next(&bytes, |_| true).map(|(payload, _)| payload.to_vec())
            }
            Err(_) => self.blocks.payload(&self.dir, place),
        }
    }

    /// Reads the answer at a place, if it is one to this request: where it stands itself, the row it was given to, and it.
    fn read(&self, place: u64, key: &AnswerKey<'_>) -> Option<(u64, u64, Answer)> {
        let bytes = self.payload(place)?;
        let payload = Payload::parse(&bytes)?;
        if payload.digest != key.digest || payload.turn != key.turn {
            return None;
        }
        match payload.kind {
            // It never stands for another alias.
            Kind::Alias => self.read(payload.source().filter(|source| *source < place)?, key),
            Kind::Void => None,
            Kind::Answer | Kind::Fault => {
                let row = frame::row_hash(payload.node, payload.row_id);
                Some((place, row, Answer::decode(payload.body)?))
            }
        }
    }

    /// The latest answer that a row itself got to a request, or took, and where that stands.
    ///
    /// One of before the edit may have been taken by another row: then it is that one's. `take` says that this row takes
    /// it now.
    fn find_own(&self, key: &AnswerKey<'_>, row: u64, content: u64, take: bool) -> Option<(u64, Answer)> {
        let places: Vec<u64> = self.index().own(row, content).collect();
        let mut places = places.into_iter().filter(|place| !self.is_void(row, *place));
        places.find_map(|place| {
            let (source, _, answer) = self.read(place, key)?;
            let is_free = match self.edited {
                Some(edit) if take && place < edit => self.index().take(content, source),
                _ => true,
            };
            is_free.then_some((source, answer))
        })
    }

    /// The answer that some other row of before the edit got to the same request; nobody else takes it then.
    fn find_by_request(
        &self,
        key: &AnswerKey<'_>,
        row: u64,
        content: u64,
    ) -> std::io::Result<Option<Answer>> {
        // A row that is tried again wants nobody's old answer.
        let is_again = |void: u64| self.again.is_some_and(|again| void >= again);
        if self.edited.is_none() || self.voids().get(&row).copied().is_some_and(is_again) {
            return Ok(None);
        }
        loop {
            // Read without the index, which others wait for.
            let Some(place) = self.index().take_any(content) else {
                return Ok(None);
            };
            let read = self
                .read(place, key)
                .filter(|(_, row, _)| !self.is_void(*row, place));
            // One that does not fit now never will.
            let Some((_, _, answer)) = read else { continue };
            // After a kill this row takes the same one.
            let alias = frame::frame(Kind::Alias, key, &place.to_le_bytes())?;
            self.writing.append(&alias, key.row_id.ordinal())?;
            failpoint::hit("ledger.aliased")?;
            return Ok(Some(answer));
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.close();
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // They hold nothing that a panic could lose: what was written is written.
            let _ended = thread.join();
        }
    }
}

impl Answers for Ledger {
    fn find(&self, key: &AnswerKey<'_>) -> std::io::Result<Option<Answer>> {
        if self.is_empty {
            return Ok(None);
        }
        let key = &self.of_engine(key);
        let (row, content) = hashes(key);
        let answer = match self.find_own(key, row, content, true) {
            Some((_, answer)) => Some(answer),
            None => self.find_by_request(key, row, content)?,
        };
        if matches!(answer, Some(Answer::Reply(_))) {
            self.reused.fetch_add(1, Ordering::Relaxed);
        }
        Ok(answer)
    }

    fn keep<'a>(&'a self, key: AnswerKey<'a>, answer: &'a Answer) -> BoxFuture<'a, std::io::Result<()>> {
        let kind = match answer {
            Answer::Reply(_) => Kind::Answer,
            Answer::Fault { .. } | Answer::Refused { .. } => Kind::Fault,
        };
        let frame = frame::frame(kind, &self.of_engine(&key), &answer.encode());
        let written = frame.and_then(|frame| self.writing.append(&frame, key.row_id.ordinal()));
        let written = written.and_then(|_| failpoint::hit("ledger.written"));
        Box::pin(std::future::ready(written))
    }

    fn again(&self, key: &AnswerKey<'_>) -> std::io::Result<bool> {
        let Some(again) = self.again else {
            return Ok(false);
        };
        let key = &self.of_engine(key);
        let (row, content) = hashes(key);
        // It was tried again already, or failed for the first time.
        let was_tried = self.voids().get(&row).is_some_and(|void| *void >= again);
        let is_new = || {
            self.find_own(key, row, content, false)
                .is_some_and(|(source, _)| source >= again)
        };
        if was_tried || is_new() {
            return Ok(false);
        }
        let frame = frame::frame(Kind::Void, key, &[])?;
        let place = self.writing.append(&frame, key.row_id.ordinal())?;
        self.voids().insert(row, place);
        failpoint::hit("ledger.voided")?;
        Ok(true)
    }
}

/// What a row and a request are found by.
fn hashes(key: &AnswerKey<'_>) -> (u64, u64) {
    let row = frame::row_hash(key.node, &key.row_id.to_string());
    (row, frame::content_hash(&key.digest, key.turn))
}
