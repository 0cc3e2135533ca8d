//! Where rows wait for an engine that is not loaded: on disk, with an index of 24 bytes a row in memory.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fs_err::{self as fs, File, OpenOptions};
use serde::{Deserialize, Serialize};

use super::RunError;
use crate::failpoint;
use crate::node::memory::{Memory, Outline};
use crate::plan::EngineIx;

/// Disk for parked rows unless `resources.spill` says otherwise.
pub const DEFAULT_BYTES: u64 = 1 << 30;
/// A row counts for as much at least: it also takes some 100 bytes of memory while it waits.
const LEAST_BYTES: u64 = 10 << 10;
/// A file is full when it is this long; it is removed when all its rows are gone.
const MOST_SEGMENT: u64 = 16 << 20;
const LEAST_SEGMENT: u64 = 64 << 10;
/// Rows that are taken together are about so long at most.
const TAKEN_BYTES: usize = 4 << 20;

/// A row that waits, and what it needs to start again.
#[derive(Debug)]
pub(super) struct ParkedRow {
    /// Its chunk, and its place there.
    pub(super) seq: u64,
    pub(super) part: usize,
    pub(super) ordinal: u64,
    /// Where it came from, for its errors.
    pub(super) file: Option<Arc<str>>,
    pub(super) line: u64,
    /// Its JSON text.
    pub(super) text: Vec<u8>,
    pub(super) memory: Arc<Memory>,
}

/// Where a parked row stands.
#[derive(Debug)]
pub(super) struct Spilled {
    pub(super) engine: EngineIx,
    place: Place,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    ordinal: u64,
    segment: u32,
    offset: u32,
    len: u32,
}

impl Spilled {
    /// Bytes on disk, which are about those in memory once it is read.
    pub(super) fn len(&self) -> usize {
        self.place.len as usize
    }
}

/// The beginning of a row on disk; its text and the texts of its answers follow.
#[derive(Serialize, Deserialize)]
struct Head {
    seq: u64,
    part: usize,
    ordinal: u64,
    file: Option<String>,
    line: u64,
    text: usize,
    memory: Outline,
}

/// Scratch files; what they hold is worth nothing after a restart.
#[derive(Debug)]
pub(super) struct Spill {
    dir: PathBuf,
    most: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    segments: BTreeMap<u32, Segment>,
    next: u32,
    /// By engine: where its next row goes.
    open: HashMap<EngineIx, u32>,
    queues: HashMap<EngineIx, Queue>,
    /// What the rows in all segments count for.
    bytes: u64,
    closed: bool,
}

#[derive(Debug)]
struct Segment {
    file: Arc<File>,
    len: u64,
    rows: u32,
}

/// The rows that wait for one engine.
#[derive(Debug, Default)]
struct Queue {
    /// The earliest row last, once it is sorted.
    rows: Vec<Place>,
    sorted: bool,
}

impl Spill {
    /// Uses the folder `dir`, which is made when it is first needed, for about so many bytes.
    pub(super) fn new(dir: &Path, most: u64) -> Self {
        // Left over from a killed run, if there at all.
        let _absent = fs::remove_dir_all(dir);
        Self {
            dir: dir.to_owned(),
            most,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the rows are.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether so many rows more may come to wait.
    pub(super) fn has_room(&self, rows: usize) -> bool {
        let more = (rows as u64).saturating_mul(LEAST_BYTES);
        self.state().bytes.saturating_add(more) < self.most
    }

    /// Writes a row to disk, to wait for an engine. False when nobody will ever ask for it again.
    pub(super) fn park(&self, engine: EngineIx, row: &ParkedRow) -> Result<bool, RunError> {
        let bytes = encode(row)?;
        let Some((segment, file, offset)) = self.reserve(engine, bytes.len() as u64)? else {
            return Ok(false);
        };
        file.file()
            .write_all_at(&bytes, offset)
            .and_then(|()| failpoint::hit("spill.written"))
            .map_err(RunError::io(file.path()))?;
        let too_long = |_| RunError::Bug {
            message: format!("row {} is too long to be parked", row.ordinal),
        };
        let place = Place {
            ordinal: row.ordinal,
            segment,
            offset: u32::try_from(offset).map_err(too_long)?,
            len: u32::try_from(bytes.len()).map_err(too_long)?,
        };
        let mut state = self.state();
        let queue = state.queues.entry(engine).or_default();
        queue.rows.push(place);
        queue.sorted = false;
        Ok(true)
    }

    /// A place for so many bytes among the rows of an engine; none once this is closed.
    fn reserve(&self, engine: EngineIx, len: u64) -> Result<Option<(u32, Arc<File>, u64)>, RunError> {
        let mut state = self.state();
        if state.closed {
            return Ok(None);
        }
        let full = (self.most / 16).clamp(LEAST_SEGMENT, MOST_SEGMENT);
        let open = state.open.get(&engine).copied();
        let open = open.filter(|ix| state.segments.get(ix).is_some_and(|segment| segment.len < full));
        let ix = match open {
            Some(ix) => ix,
            None => {
                let ix = state.next;
                let path = self.path(ix);
                fs::create_dir_all(&self.dir).map_err(RunError::io(&self.dir))?;
                let mut options = OpenOptions::new();
                let file = options
                    .create(true)
                    .truncate(true)
                    .read(true)
                    .write(true)
                    .open(&path);
                let file = file.and_then(|file| failpoint::hit("spill.created").map(|()| file));
                let segment = Segment {
                    file: Arc::new(file.map_err(RunError::io(&path))?),
                    len: 0,
                    rows: 0,
                };
                state.segments.insert(ix, segment);
                state.open.insert(engine, ix);
                state.next += 1;
                ix
            }
        };
        state.bytes += len.max(LEAST_BYTES);
        let segment = state.segments.get_mut(&ix).map(|segment| {
            let offset = segment.len;
            segment.len += len;
            segment.rows += 1;
            (ix, segment.file.clone(), offset)
        });
        Ok(segment)
    }

    fn path(&self, segment: u32) -> PathBuf {
        self.dir.join(format!("{segment:06}"))
    }

    /// Up to `most` of the rows that wait for these engines, the earliest first, and not many bytes of them. Each is to be
    /// fetched.
    pub(super) fn take(&self, engines: &[EngineIx], most: usize) -> Vec<Spilled> {
        let mut state = self.state();
        let mut taken = Vec::with_capacity(most);
        for engine in engines {
            if let Some(queue) = state.queues.get_mut(engine).filter(|queue| !queue.sorted) {
                queue.rows.sort_unstable_by_key(|place| Reverse(place.ordinal));
                queue.sorted = true;
            }
        }
        let mut bytes = 0;
        while taken.len() < most && bytes < TAKEN_BYTES {
            let first = |engine: &EngineIx| Some((state.queues.get(engine)?.rows.last()?.ordinal, *engine));
            let Some((_, engine)) = engines.iter().filter_map(first).min() else {
                break;
            };
            let place = state.queues.get_mut(&engine).and_then(|queue| queue.rows.pop());
            bytes += place.map_or(0, |place| place.len as usize);
            taken.extend(place.map(|place| Spilled { engine, place }));
        }
        for engine in engines {
            if state
                .queues
                .get(engine)
                .is_some_and(|queue| queue.rows.is_empty())
            {
                state.queues.remove(engine);
            }
        }
        taken
    }

    /// Reads a row back, and gives its place free; none once this is closed.
    pub(super) fn fetch(&self, spilled: &Spilled) -> Result<Option<ParkedRow>, RunError> {
        let Place {
            segment, offset, len, ..
        } = spilled.place;
        let path = self.path(segment);
        let damaged = || RunError::Damaged {
            path: path.clone(),
            problem: "a parked row is gone".into(),
        };
        let file = {
            let state = self.state();
            if state.closed {
                return Ok(None);
            }
            let segment = state.segments.get(&segment);
            segment.map(|segment| segment.file.clone()).ok_or_else(damaged)?
        };
        let mut bytes = vec![0; len as usize];
        file.file()
            .read_exact_at(&mut bytes, u64::from(offset))
            .and_then(|()| failpoint::hit("spill.read"))
            .map_err(RunError::io(&path))?;
        let row = decode(&bytes).ok_or_else(damaged)?;
        let mut state = self.state();
        state.bytes = state.bytes.saturating_sub(u64::from(len).max(LEAST_BYTES));
        let is_empty = state.segments.get_mut(&segment).is_some_and(|segment| {
            segment.rows -= 1;
            segment.rows == 0
        });
        if is_empty {
            state.segments.remove(&segment);
            state.open.retain(|_, open| *open != segment);
            fs::remove_file(&path).map_err(RunError::io(&path))?;
        }
        Ok(Some(row))
    }

    /// Takes no more rows and gives the disk space back.
    pub(super) fn close(&self) {
        let mut state = self.state();
        *state = State {
            closed: true,
            ..State::default()
        };
        // Only scratch: the next run removes it if we cannot.
        let _scratch = fs::remove_dir_all(&self.dir);
    }
}

fn encode(row: &ParkedRow) -> Result<Vec<u8>, RunError> {
    let (memory, answers) = row.memory.encode();
    let head = Head {
        seq: row.seq,
        part: row.part,
        ordinal: row.ordinal,
        file: row.file.as_deref().map(str::to_owned),
        line: row.line,
        text: row.text.len(),
        memory,
    };
    let head = serde_json::to_vec(&head).map_err(|error| RunError::Bug {
        message: error.to_string(),
    })?;
    Ok([
        &(head.len() as u64).to_le_bytes(),
        head.as_slice(),
        &row.text,
        &answers,
    ]
    .concat())
}

fn decode(bytes: &[u8]) -> Option<ParkedRow> {
    let (len, rest) = bytes.split_first_chunk::<8>()?;
    let (head, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
    let head: Head = serde_json::from_slice(head).ok()?;
    let (text, answers) = rest.split_at_checked(head.text)?;
    Some(ParkedRow {
        seq: head.seq,
        part: head.part,
        ordinal: head.ordinal,
        file: head.file.map(Into::into),
        line: head.line,
        text: text.to_vec(),
        memory: Arc::new(Memory::decode(head.memory, answers)?),
    })
}
