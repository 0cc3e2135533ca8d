//! All sinks of a run, advanced together.

use std::path::{Path, PathBuf};

use fs_err::{self as fs, File};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::SinkError;
use super::shard::{Pending, ShardState, ShardWriter};
use crate::event::{Event, EventSender};
use crate::node::output::Output;

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
}

/// How far every folder has got, by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SinkState(pub IndexMap<String, ShardState>);

/// Writes outputs in input order.
#[derive(Debug)]
pub struct StreamWriter {
    out: PathBuf,
    nodes: Vec<Option<ShardWriter>>,
    flattened: Option<ShardWriter>,
    errors: ShardWriter,
}

impl StreamWriter {
    /// Takes all folders up where `state` left them.
    pub fn resume(layout: &Layout, state: &SinkState) -> Result<Self, SinkError> {
        let open = |name: &str| {
            let state = state.0.get(name).cloned().unwrap_or_default();
            ShardWriter::resume(layout.out.join(name), layout.max_rows, state)
        };
        let nodes = layout
            .nodes
            .iter()
            .map(|name| name.as_deref().map(open).transpose());
        Ok(Self {
            out: layout.out.clone(),
            nodes: nodes.collect::<Result<_, _>>()?,
            flattened: if layout.flattened {
                Some(open("flattened")?)
            } else {
                None
            },
            errors: open("errors")?,
        })
    }

    /// Appends the lines of an output to every folder.
    pub fn append(&mut self, output: &Output) -> Result<(), SinkError> {
        for (writer, lines) in self.nodes.iter_mut().zip(&output.nodes) {
            if let Some(writer) = writer {
                writer.append(lines)?;
            }
        }
        if let Some(flattened) = &mut self.flattened {
            flattened.append(&output.flattened)?;
        }
        self.errors.append(&output.errors)
    }

    /// Closes every open shard at the end of a run.
    pub fn finish(&mut self) -> Result<(), SinkError> {
        if let Some(flattened) = &mut self.flattened {
            flattened.ensure_one()?;
        }
        self.writers_mut().for_each(ShardWriter::roll);
        Ok(())
    }

    /// How far every folder has got, and what must be on disk before that may be said.
    pub(crate) fn snapshot(&mut self) -> Result<(SinkState, Unsynced), SinkError> {
        let mut unsynced = Unsynced {
            out: self.out.clone(),
            open: Vec::new(),
            rolled: Vec::new(),
            dirs: Vec::new(),
        };
        for writer in self.writers_mut() {
            unsynced.open.extend(writer.open_file()?);
            unsynced.rolled.extend(writer.take_pending());
            if writer.state().total_rows() > 0 || writer.dir().ends_with("flattened") {
                unsynced.dirs.push(writer.dir().to_owned());
            }
        }
        Ok((self.state(), unsynced))
    }

    /// How far every folder has got.
    pub fn state(&self) -> SinkState {
        let name = |writer: &ShardWriter| {
            writer
                .dir()
                .strip_prefix(&self.out)
                .unwrap_or(writer.dir())
                .to_string_lossy()
                .into_owned()
        };
        SinkState(
            self.writers()
                .map(|writer| (name(writer), writer.state().clone()))
                .collect(),
        )
    }

    fn writers(&self) -> impl Iterator<Item = &ShardWriter> {
        self.nodes
            .iter()
            .flatten()
            .chain(&self.flattened)
            .chain([&self.errors])
    }

    fn writers_mut(&mut self) -> impl Iterator<Item = &mut ShardWriter> {
        self.nodes
            .iter_mut()
            .flatten()
            .chain(&mut self.flattened)
            .chain([&mut self.errors])
    }
}

/// Files whose content must reach the disk before a checkpoint names it.
#[derive(Debug)]
pub(crate) struct Unsynced {
    out: PathBuf,
    open: Vec<File>,
    rolled: Vec<Pending>,
    dirs: Vec<PathBuf>,
}

impl Unsynced {
    /// Syncs them and gives complete shards their final names.
    pub(crate) fn sync(self, events: &EventSender) -> Result<(), SinkError> {
        for file in &self.open {
            file.sync_data().map_err(SinkError::io(file.path()))?;
        }
        for shard in self.rolled {
            let sync = || File::open(&shard.part)?.sync_all();
            sync().map_err(SinkError::io(&shard.part))?;
            fs::rename(&shard.part, &shard.name).map_err(SinkError::io(&shard.name))?;
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
        Ok(())
    }
}

/// Makes new names in a folder durable.
pub(crate) fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}
