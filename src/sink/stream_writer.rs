//! All sinks of a run, advanced together.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fs_err::{self as fs, File};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::custom::Custom;
use super::encoder::Encoder;
use super::folder::{Folder, Pending, ShardState};
use super::parquet::Table;
use super::shard::ShardWriter;
use super::spool::SpoolWriter;
use super::{Format, SinkError};
use crate::event::{Event, EventSender};
use crate::failpoint;
use crate::node::output::Output;
use crate::plan::Plan;

/// Where the outputs of a run go.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The folder OUT.
    pub out: PathBuf,
    /// By node: the folder, or none where nothing is written (`yield_output: false`).
    pub nodes: Vec<Option<String>>,
    /// Whether `flattened/` is written.
    pub flattened: bool,
    /// Lines per shard.
    pub max_rows: u64,
    /// The form of nodes and flattened records.
    pub format: Format,
}

/// How far every folder has got, by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SinkState(pub IndexMap<String, ShardState>);

/// Writes outputs in input order.
#[derive(Debug)]
pub struct StreamWriter {
    out: PathBuf,
    nodes: Vec<Option<Writer>>,
    flattened: Option<Writer>,
    errors: Writer,
}

/// A folder and its name.
#[derive(Debug)]
struct Writer {
    name: String,
    folder: Box<dyn Folder>,
}

impl StreamWriter {
    /// Takes all folders up where `state` left them.
    pub fn resume(layout: &Layout, plan: &Plan, state: &SinkState) -> Result<Self, SinkError> {
        let pool = match layout.format {
            Format::Jsonl => None,
            Format::Parquet | Format::Custom(_) => Some(Arc::new(encoding_pool()?)),
        };
        let open = |name: &str, encoder: Option<Arc<dyn Encoder>>| {
            let state = state.0.get(name).cloned().unwrap_or_default();
            let dir = layout.out.join(name);
            let folder: Box<dyn Folder> = match (encoder, &pool) {
                (Some(encoder), Some(pool)) => {
                    let spool = layout.out.join(SPOOL).join(name);
                    let (max_rows, pool) = (layout.max_rows, pool.clone());
                    Box::new(SpoolWriter::resume(dir, spool, max_rows, encoder, pool, state)?)
                }
                _ => Box::new(ShardWriter::resume(dir, layout.max_rows, state)?),
            };
            let name = name.to_owned();
            Ok::<_, SinkError>(Writer { name, folder })
        };
        let (mut encoders, flattened) = match &layout.format {
            Format::Jsonl => (Vec::new(), None),
            Format::Parquet => encoders(Table::of_nodes(plan), Table::flattened(plan)),
            Format::Custom(sink) => encoders(Custom::of_nodes(plan, sink), Custom::flattened(plan, sink)),
        };
        encoders.resize(layout.nodes.len(), None);
        let nodes = layout.nodes.iter().zip(encoders).map(|(name, encoder)| {
            let open = |name| open(name, encoder);
            name.as_deref().map(open).transpose()
        });
        let flattened = layout.flattened.then(|| open("flattened", flattened));
        Ok(Self {
            out: layout.out.clone(),
            nodes: nodes.collect::<Result<_, _>>()?,
            flattened: flattened.transpose()?,
            errors: open("errors", None)?,
        })
    }

    /// Appends the lines of an output to every folder.
    pub fn append(&mut self, output: &Output) -> Result<(), SinkError> {
        for (writer, lines) in self.nodes.iter_mut().zip(&output.nodes) {
            if let Some(writer) = writer {
                writer.folder.append(lines)?;
            }
        }
        if let Some(flattened) = &mut self.flattened {
            flattened.folder.append(&output.flattened)?;
        }
        self.errors.folder.append(&output.errors)
    }

    /// Completes every open shard at the end of a run, which may go on later if it is `resumable`.
    pub fn finish(&mut self, resumable: bool) -> Result<(), SinkError> {
        let nodes = self.nodes.iter_mut().flatten();
        for writer in nodes.chain([&mut self.errors]) {
            writer.folder.finish(false, resumable)?;
        }
        // There is always a flattened shard, even without a line.
        let flattened = self.flattened.as_mut();
        flattened.map_or(Ok(()), |writer| writer.folder.finish(true, resumable))
    }

    /// How far every folder has got, and what must be on disk before that may be said.
    pub(crate) fn snapshot(&mut self) -> Result<(SinkState, Unsynced), SinkError> {
        let mut unsynced = Unsynced {
            out: self.out.clone(),
            ..Unsynced::default()
        };
        let nodes = self.nodes.iter_mut().flatten();
        for writer in nodes.chain(&mut self.flattened).chain([&mut self.errors]) {
            writer.folder.unsynced(&mut unsynced)?;
        }
        Ok((self.state(), unsynced))
    }

    /// How far every folder has got.
    pub fn state(&self) -> SinkState {
        let nodes = self.nodes.iter().flatten();
        let all = nodes.chain(&self.flattened).chain([&self.errors]);
        SinkState(
            all.map(|writer| (writer.name.clone(), writer.folder.state()))
                .collect(),
        )
    }
}

type SharedEncoder = Option<Arc<dyn Encoder>>;

/// The encoders of all nodes and of the flattened records.
fn encoders<E: Encoder + 'static>(nodes: Vec<E>, flattened: E) -> (Vec<SharedEncoder>, SharedEncoder) {
    let share = |encoder: E| -> SharedEncoder { Some(Arc::new(encoder)) };
    (nodes.into_iter().map(share).collect(), share(flattened))
}

/// Below OUT: the lines of shards that are not in their format yet.
const SPOOL: &str = ".chainette/spool";
/// More do not help: one thread converts as fast as several read and compute.
const MAX_THREADS: usize = 4;

/// Threads that convert shards.
fn encoding_pool() -> Result<rayon::ThreadPool, SinkError> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS));
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("encode-{i}"))
        .build()
        .map_err(|error| SinkError::io("the threads that convert shards")(std::io::Error::other(error)))
}

/// What must reach the disk before a checkpoint names it, and what is done after that.
#[derive(Debug, Default)]
pub(crate) struct Unsynced {
    out: PathBuf,
    /// Open shards.
    pub(super) open: Vec<File>,
    /// Gathered lines of full shards.
    pub(super) closed: Vec<PathBuf>,
    /// Complete shards.
    pub(super) rolled: Vec<Pending>,
    /// Folders with new names in them.
    pub(super) dirs: Vec<PathBuf>,
    /// Files that the checkpoint no longer needs.
    pub(super) spent: Vec<PathBuf>,
    /// What the user is told once, over all resumes.
    pub(super) warnings: Vec<String>,
}

impl Unsynced {
    /// Syncs everything and gives complete shards their final names.
    pub(crate) fn sync(self, events: &EventSender) -> Result<AfterCheckpoint, SinkError> {
        let hit = |place: &str| failpoint::hit(place).map_err(SinkError::io(&self.out));
        hit("sync.begun")?;
        for file in &self.open {
            file.sync_data().map_err(SinkError::io(file.path()))?;
        }
        hit("sync.open_synced")?;
        for path in &self.closed {
            let sync = || File::open(path)?.sync_all();
            sync().map_err(SinkError::io(path))?;
        }
        hit("sync.closed_synced")?;
        for shard in self.rolled {
            let sync = || File::open(&shard.part)?.sync_all();
            sync().map_err(SinkError::io(&shard.part))?;
            hit("sync.shard_synced")?;
            fs::rename(&shard.part, &shard.name).map_err(SinkError::io(&shard.name))?;
            hit("sync.shard_renamed")?;
            let path = shard
                .name
                .strip_prefix(&self.out)
                .unwrap_or(&shard.name)
                .display()
                .to_string();
            events.send(Event::ShardRolled {
                path,
                rows: shard.rows,
                bytes: shard.bytes,
            });
        }
        for dir in self.dirs.iter().chain([&self.out]) {
            match sync_dir(dir) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                other => other.map_err(SinkError::io(dir))?,
            }
        }
        hit("sync.dirs_synced")?;
        Ok(AfterCheckpoint {
            spent: self.spent,
            warnings: self.warnings,
        })
    }
}

/// What is done once the checkpoint is written, and not before.
#[derive(Debug)]
#[must_use]
pub(crate) struct AfterCheckpoint {
    spent: Vec<PathBuf>,
    warnings: Vec<String>,
}

impl AfterCheckpoint {
    /// Removes what is no longer needed, and warns.
    pub(crate) fn run(self, events: &EventSender) -> Result<(), SinkError> {
        for message in self.warnings {
            events.send(Event::Warning { message });
        }
        for path in &self.spent {
            let removed = failpoint::hit("spent.removing").and_then(|()| fs::remove_file(path));
            removed
                .and_then(|()| failpoint::hit("spent.removed"))
                .map_err(SinkError::io(path))?;
        }
        Ok(())
    }
}

/// Makes new names in a folder durable.
pub(crate) fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}
