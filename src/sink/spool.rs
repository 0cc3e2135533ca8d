//! One folder of shards in a format that is made from whole shards: the lines of a shard are gathered in
//! `.chainette/spool/<folder>/`, with the protocol of JSON shards, and converted when it is full.

use std::collections::{HashSet, VecDeque};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use fs_err::File;
use rayon::ThreadPool;
use serde_json::Value;

use super::SinkError;
use super::encoder::{Encoder, LineReader, Rescued, TOLD};
use super::folder::{
    Closed, Folder, Pending, Resumable, Rolled, ShardState, SpoolState, altered, check_rolled, cut, make_dir,
    part_path, remove_beyond, remove_where, reopen, shard_path,
};
use super::stream_writer::Unsynced;
use crate::event::{counted, thousands};
use crate::failpoint;
use crate::node::output::Lines;

/// Full shards of a folder that may wait to be converted before its writer waits for them.
const WAITING: usize = 4;
/// The extension of gathered lines.
const LINES: &str = "jsonl";

/// Writes shards by way of their JSON lines.
#[derive(Debug)]
pub(super) struct SpoolWriter {
    dir: PathBuf,
    /// Where lines are gathered.
    spool: PathBuf,
    max_rows: u64,
    encoder: Arc<dyn Encoder>,
    /// Not the pool that rows are computed on: its threads may wait for the one that waits for us.
    pool: Arc<ThreadPool>,
    stop: Arc<AtomicBool>,
    open: Option<File>,
    rolled: Vec<Rolled>,
    waiting: VecDeque<Waiting>,
    rows: u64,
    bytes: u64,
    layout: Option<Arc<Value>>,
    told: Vec<String>,
    resumable: Option<Resumable>,
    /// Conversions under way.
    running: usize,
    done: (Sender<Done>, Receiver<Done>),
    news: News,
}

/// What the next checkpoint has to do.
#[derive(Debug, Default)]
struct News {
    /// Lines that are not synced.
    closed: Vec<PathBuf>,
    /// Shards without their final names.
    rolled: Vec<Pending>,
    /// Lines that are no longer needed once the checkpoint is written.
    spent: Vec<PathBuf>,
    warnings: Vec<String>,
}

/// A full shard that is not complete.
#[derive(Debug)]
struct Waiting {
    closed: Closed,
    started: bool,
    encoded: Option<Encoded>,
}

impl Waiting {
    fn new(closed: Closed) -> Self {
        Self {
            closed,
            started: false,
            encoded: None,
        }
    }
}

#[derive(Debug)]
struct Encoded {
    bytes: u64,
    blake3: String,
    rescued: Vec<Rescued>,
}

#[derive(Debug)]
struct Done {
    index: usize,
    /// None when it was told to stop.
    result: Result<Option<Encoded>, SinkError>,
}

impl SpoolWriter {
    /// Takes a folder up where `state` left it.
    pub(super) fn resume(
        dir: PathBuf,
        spool: PathBuf,
        max_rows: u64,
        encoder: Arc<dyn Encoder>,
        pool: Arc<ThreadPool>,
        state: ShardState,
    ) -> Result<Self, SinkError> {
        let ShardState {
            mut rolled,
            mut rows,
            mut bytes,
            spool: state,
            ..
        } = state;
        let SpoolState {
            mut closed,
            mut layout,
            told,
            resumable,
        } = state.map(|state| *state).unwrap_or_default();
        if let Some(before) = resumable {
            // It ended at a --limit and goes on: as if it had not ended.
            rolled.truncate(before.rolled);
            Resumable {
                closed,
                rows,
                bytes,
                layout,
                ..
            } = before;
        }
        let mut writer = Self {
            dir,
            spool,
            max_rows,
            encoder,
            pool,
            stop: Arc::default(),
            open: None,
            rolled,
            waiting: closed.into_iter().map(Waiting::new).collect(),
            rows,
            bytes,
            layout: layout.map(Arc::new),
            told,
            resumable: None,
            running: 0,
            done: channel(),
            news: News::default(),
        };
        writer.repair()?;
        writer.convert()?;
        Ok(writer)
    }

    /// Brings the files back to what the checkpoint says.
    fn repair(&mut self) -> Result<(), SinkError> {
        let complete = self.rolled.len();
        let lines = complete..self.open_index() + usize::from(self.rows > 0);
        remove_beyond(&self.dir, complete, self.encoder.extension())?;
        remove_where(&self.spool, LINES, |index, _| !lines.contains(&index))?;
        check_rolled(&self.rolled, |index| self.path(index))?;
        for (at, waiting) in self.waiting.iter().enumerate() {
            reopen(&self.lines_path(complete + at), waiting.closed.bytes)?;
        }
        if self.rows > 0 {
            let path = self.lines_path(self.open_index());
            self.open = Some(reopen(&path, self.bytes)?);
            failpoint::hit("spool.reopened").map_err(SinkError::io(&path))?;
        }
        Ok(())
    }

    /// The number of the open shard.
    fn open_index(&self) -> usize {
        self.rolled.len() + self.waiting.len()
    }

    fn path(&self, index: usize) -> PathBuf {
        shard_path(&self.dir, index, self.encoder.extension())
    }

    fn lines_path(&self, index: usize) -> PathBuf {
        shard_path(&self.spool, index, LINES)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        let path = self.lines_path(self.open_index());
        let file = match &mut self.open {
            Some(file) => file,
            None => {
                self.spool.parent().map_or(Ok(()), make_dir)?;
                make_dir(&self.spool)?;
                let file = File::create(&path).map_err(SinkError::io(&path))?;
                failpoint::hit("spool.created").map_err(SinkError::io(&path))?;
                self.open.insert(file)
            }
        };
        file.write_all(bytes)
            .and_then(|()| failpoint::hit("spool.appended"))
            .map_err(SinkError::io(&path))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Closes the open shard, if there is one.
    fn roll(&mut self) {
        if self.open.take().is_some() {
            self.news.closed.push(self.lines_path(self.open_index()));
            self.waiting.push_back(Waiting::new(Closed {
                rows: std::mem::take(&mut self.rows),
                bytes: std::mem::take(&mut self.bytes),
            }));
        }
    }

    /// Decides the layout from the first lines.
    fn decide(&mut self) -> Result<(), SinkError> {
        // Until it is decided nothing is converted: all lines are still there, from the first shard on.
        let sizes = self.waiting.iter().map(|waiting| waiting.closed.bytes);
        let files = sizes.chain([self.bytes]).enumerate();
        let files = files.filter(|(_, bytes)| *bytes > 0);
        let mut first = LineReader::new(files.map(|(index, bytes)| (self.lines_path(index), bytes)));
        self.layout = Some(Arc::new(self.encoder.layout(&mut first)?));
        failpoint::hit("spool.decided").map_err(SinkError::io(&self.spool))
    }

    /// Starts to convert the full shards that wait, once it is known how.
    fn convert(&mut self) -> Result<(), SinkError> {
        let Some(layout) = self.layout.clone() else {
            return Ok(());
        };
        for at in 0..self.waiting.len() {
            if self.running >= WAITING {
                return Ok(());
            }
            let index = self.rolled.len() + at;
            let (path, lines) = (self.path(index), self.lines_path(index));
            let Some(waiting) = self.waiting.get_mut(at).filter(|waiting| !waiting.started) else {
                continue;
            };
            waiting.started = true;
            make_dir(&self.dir)?;
            let job = Job {
                encoder: self.encoder.clone(),
                layout: layout.clone(),
                index,
                lines,
                closed: waiting.closed.clone(),
                part: part_path(&path),
                stop: self.stop.clone(),
            };
            let done = self.done.0.clone();
            self.pool.spawn(move || {
                let result = catch_unwind(AssertUnwindSafe(|| job.run()));
                let result = result.unwrap_or_else(|_| Err(job.panicked()));
                // The writer waits for everything it started.
                let _received = done.send(Done { index, result });
            });
            self.running += 1;
        }
        Ok(())
    }

    /// Takes over what is converted; waits until at most `running` conversions are under way.
    fn settle(&mut self, running: usize) -> Result<(), SinkError> {
        while self.running > 0 {
            let done = if self.running > running {
                self.done.1.recv().ok()
            } else {
                self.done.1.try_recv().ok()
            };
            let Some(Done { index, result }) = done else { break };
            self.running -= 1;
            let Some(encoded) = result? else { continue };
            let waiting = index.checked_sub(self.rolled.len());
            if let Some(waiting) = waiting.and_then(|at| self.waiting.get_mut(at)) {
                waiting.encoded = Some(encoded);
            }
            self.take_over();
            failpoint::hit("spool.taken_over").map_err(SinkError::io(&self.dir))?;
        }
        Ok(())
    }

    /// Makes the first shards that are converted complete ones.
    fn take_over(&mut self) {
        while let Some(Waiting {
            closed: Closed { rows, .. },
            encoded: Some(encoded),
            ..
        }) = self.waiting.pop_front_if(|waiting| waiting.encoded.is_some())
        {
            let index = self.rolled.len();
            let name = self.path(index);
            let Encoded {
                bytes,
                blake3,
                rescued,
            } = encoded;
            self.news.rolled.push(Pending {
                part: part_path(&name),
                name,
                rows,
                bytes,
            });
            if self.resumable.is_none() {
                self.news.spent.push(self.lines_path(index));
            }
            self.rolled.push(Rolled { rows, bytes, blake3 });
            for Rescued { column, message } in rescued {
                if self.told.len() > TOLD || self.told.contains(&column) {
                    continue;
                }
                let folder = self.dir.file_name().unwrap_or_default().to_string_lossy();
                self.news.warnings.push(match self.told.len() {
                    TOLD => {
                        format!("{folder}/: values of more than {TOLD} columns do not fit; no more are named")
                    }
                    _ => message,
                });
                self.told.push(column);
            }
        }
    }

    /// Converts all full shards.
    fn convert_all(&mut self) -> Result<(), SinkError> {
        self.convert()?;
        while self.running > 0 {
            self.settle(self.running - 1)?;
            self.convert()?;
        }
        Ok(())
    }
}

impl Folder for SpoolWriter {
    fn append(&mut self, lines: &Lines) -> Result<(), SinkError> {
        let mut bytes = lines.bytes.as_slice();
        let mut rows = lines.count;
        while rows > 0 {
            let (now, later, n) = cut(bytes, rows, self.max_rows - self.rows);
            self.write(now)?;
            self.rows += n;
            (bytes, rows) = (later, rows - n);
            if self.layout.is_none() {
                let closed: u64 = self.waiting.iter().map(|waiting| waiting.closed.rows).sum();
                if closed + self.rows >= self.encoder.decided_by() {
                    self.decide()?;
                }
            }
            if self.rows == self.max_rows {
                failpoint::hit("spool.full").map_err(SinkError::io(&self.spool))?;
                self.roll();
                // A disk that fills with lines faster than they are converted is the slower way.
                if self.layout.is_some() && self.waiting.len() > WAITING {
                    self.settle(WAITING - 1)?;
                }
                self.convert()?;
            }
        }
        self.settle(WAITING)?;
        self.convert()
    }

    fn finish(&mut self, at_least_one: bool, resumable: bool) -> Result<(), SinkError> {
        self.convert_all()?;
        if resumable {
            self.resumable = Some(Resumable {
                rolled: self.rolled.len(),
                closed: self
                    .waiting
                    .iter()
                    .map(|waiting| waiting.closed.clone())
                    .collect(),
                rows: self.rows,
                bytes: self.bytes,
                layout: self.layout.as_deref().cloned(),
            });
        }
        if at_least_one && self.open_index() == 0 && self.open.is_none() {
            self.write(&[])?;
        }
        self.roll();
        if self.layout.is_none() && !self.waiting.is_empty() {
            self.decide()?;
        }
        self.convert_all()
    }

    fn unsynced(&mut self, unsynced: &mut Unsynced) -> Result<(), SinkError> {
        let News {
            closed,
            rolled,
            spent,
            warnings,
        } = std::mem::take(&mut self.news);
        if let Some(file) = &self.open {
            let clone = file.try_clone().map_err(SinkError::io(file.path()))?;
            unsynced.open.push(clone);
        }
        if self.open.is_some() || !closed.is_empty() {
            unsynced.dirs.push(self.spool.clone());
            unsynced.dirs.extend(self.spool.parent().map(Path::to_owned));
        }
        // What was converted meanwhile is not needed any more.
        let unneeded: HashSet<&PathBuf> = spent.iter().collect();
        let needed = closed.into_iter().filter(|path| !unneeded.contains(path));
        unsynced.closed.extend(needed);
        if !rolled.is_empty() {
            unsynced.dirs.push(self.dir.clone());
        }
        unsynced.rolled.extend(rolled);
        unsynced.spent.extend(spent);
        unsynced.warnings.extend(warnings);
        Ok(())
    }

    fn state(&self) -> ShardState {
        let state = SpoolState {
            closed: self
                .waiting
                .iter()
                .map(|waiting| waiting.closed.clone())
                .collect(),
            layout: self.layout.as_deref().cloned(),
            told: self.told.clone(),
            resumable: self.resumable.clone(),
        };
        ShardState {
            rolled: self.rolled.clone(),
            rows: self.rows,
            bytes: self.bytes,
            blake3: None,
            spool: (state != SpoolState::default()).then(|| Box::new(state)),
        }
    }
}

impl Drop for SpoolWriter {
    /// Nobody writes into OUT any more when this is over.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while self.running > 0 && self.done.1.recv().is_ok() {
            self.running -= 1;
        }
    }
}

/// One conversion.
struct Job {
    encoder: Arc<dyn Encoder>,
    layout: Arc<Value>,
    index: usize,
    lines: PathBuf,
    closed: Closed,
    part: PathBuf,
    stop: Arc<AtomicBool>,
}

impl Job {
    fn run(&self) -> Result<Option<Encoded>, SinkError> {
        if self.stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut lines = LineReader::new([(self.lines.clone(), self.closed.bytes)]);
        let mut out = Hashed::create(&self.part)?;
        failpoint::hit("spool.converting").map_err(SinkError::io(&self.part))?;
        let rescued = self
            .encoder
            .encode(&self.layout, self.index, &mut lines, &mut out, &self.stop);
        if let Some(source) = out.failed {
            let path = self.part.clone();
            return Err(SinkError::Io { path, source });
        }
        let Some(rescued) = rescued? else {
            return Ok(None);
        };
        if lines.lines != self.closed.rows {
            let problem = format!(
                "{} instead of {}",
                counted(lines.lines, "line"),
                thousands(self.closed.rows)
            );
            return Err(altered(self.lines.clone(), &problem));
        }
        failpoint::hit("spool.converted").map_err(SinkError::io(&self.part))?;
        Ok(Some(Encoded {
            bytes: out.bytes,
            blake3: out.hasher.finalize().to_hex().to_string(),
            rescued,
        }))
    }

    fn panicked(&self) -> SinkError {
        SinkError::Encode {
            folder: self.part.parent().unwrap_or(Path::new("")).display().to_string(),
            message: "the conversion panicked".into(),
        }
    }
}

/// A file whose digest is taken on the way.
struct Hashed {
    file: File,
    hasher: blake3::Hasher,
    bytes: u64,
    /// The error of the file system, whatever the encoder makes of it.
    failed: Option<std::io::Error>,
}

impl Hashed {
    fn create(path: &Path) -> Result<Self, SinkError> {
        Ok(Self {
            file: File::create(path).map_err(SinkError::io(path))?,
            hasher: blake3::Hasher::new(),
            bytes: 0,
            failed: None,
        })
    }
}

impl Write for Hashed {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        match self.file.write(buf) {
            Ok(n) => {
                self.hasher.update(buf.get(..n).unwrap_or_default());
                self.bytes += n as u64;
                Ok(n)
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                self.failed.get_or_insert(error);
                Err(kind.into())
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}
