//! Sinks of the library's users: what becomes of a full shard is up to them.

use std::error::Error;
use std::io::{BufWriter, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Map, Value};

use super::encoder::{Encoder, LineReader, Rescued};
use super::{Format, SinkError};
use crate::plan::Plan;
use crate::plan::explain::{flattened_schema, record_schema};
use crate::row::Record;

/// A sink of yours, in the place of `--format`: it makes a file of every shard's rows, and may hand them on.
///
/// A job gets it by [`Job::sink`](crate::chain::Job::sink). It serves every folder of outputs (each node's, and
/// `flattened/`) but `errors/`, which is always JSON lines.
///
/// - **When.** Rows are gathered until a shard is full (`config.max_rows`), or the run ends; then
///   [`Sink::write`] is called with all of them, in input order. `flattened/` has a first shard even without a row.
/// - **Where.** On threads of its own, at most one call per shard at a time, but several shards at once and in no
///   order. It may block; the run waits when a few full shards of one folder do, and ends when they are done. A run
///   that stops early says so by an error from the rows.
/// - **How often.** At least once per shard: again when the run was killed, stopped or failed before its next
///   checkpoint. The last shard of a run with a limit comes again, with more rows, when the limit is raised.
/// - **The file** (`NNN.EXTENSION`) gets its name when it is complete and synced, and its digest stands in
///   `metadata.json`. What is written to `out` must depend on nothing but the shard and its rows: then a run that
///   was killed leaves the same files as one that was not.
/// - **Elsewhere.** It is also the place to hand rows to a database. As rows can come again, do that idempotently:
///   insert or replace by folder and `row_id`. Replace, as a row may come again with another content where its answers
///   were not on disk yet (a power cut, or a run without a ledger), and when OUT is started again.
/// - **Errors** and panics stop the run ([`SinkError::Custom`]); nothing is lost, and the same job goes on at that
///   shard. Nothing is retried meanwhile: what may pass by itself is yours to try again.
///
/// ```
/// use std::error::Error;
/// use std::io::Write;
///
/// use chainette::chain::{Chain, Node};
/// use chainette::sink::{Rows, Shard, Sink};
///
/// /// One line per row: its id and its text.
/// struct Tsv;
///
/// impl Sink for Tsv {
///     fn name(&self) -> &str {
///         "texts-1"
///     }
///
///     fn extension(&self) -> &str {
///         "tsv"
///     }
///
///     fn write(
///         &self,
///         _shard: &Shard<'_>,
///         rows: &mut Rows<'_>,
///         out: &mut dyn Write,
///     ) -> Result<(), Box<dyn Error + Send + Sync>> {
///         for row in rows {
///             let row = row?.to_json();
///             let text = |field: &str| row[field].as_str().unwrap_or_default().replace(['\t', '\n'], " ");
///             writeln!(out, "{}\t{}", text("row_id"), text("text"))?;
///         }
///         Ok(())
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (input, out) = (dir.path().join("in.jsonl"), dir.path().join("out"));
/// std::fs::write(&input, "{\"text\": \"hello\"}\n{\"text\": \"world\"}\n")?;
/// let chain = Chain::builder("shout").node(Node::jq("up", "{text: (.text | ascii_upcase)}")).build()?;
/// chain.job(&input, &out).sink(Tsv).run()?.into_result()?;
/// assert_eq!(std::fs::read_to_string(out.join("up/000.tsv"))?, "0\tHELLO\n1\tWORLD\n");
/// # Ok(())
/// # }
/// ```
pub trait Sink: Send + Sync {
    /// What it writes, and in which version: lowercase letters, digits, `-`, `_` and `.`, at most 64, but neither
    /// `jsonl` nor `parquet`.
    ///
    /// It stands in `metadata.json` and belongs to the run's identity: a run is not resumed with another sink. Give
    /// it another name when its files change.
    fn name(&self) -> &str;

    /// The extension of its files without the first dot (`csv`, `csv.gz`): letters, digits and dots, at most 16.
    fn extension(&self) -> &str;

    /// Writes one shard.
    ///
    /// `out` is buffered, and flushed afterwards. Rows that are left over are passed over.
    ///
    /// # Errors
    /// Whatever keeps it from doing so; those of `rows` and `out` must be handed on (`?`). The run stops.
    fn write(
        &self,
        shard: &Shard<'_>,
        rows: &mut Rows<'_>,
        out: &mut dyn Write,
    ) -> Result<(), Box<dyn Error + Send + Sync>>;
}

impl std::fmt::Debug for dyn Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sink({})", self.name())
    }
}

/// Which shard is written.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Shard<'a> {
    /// The folder in OUT: a node's id, or `flattened`.
    pub folder: &'a str,
    /// The shard's number, from 0.
    pub index: usize,
    /// The JSON Schema of the folder's rows, as in `graph.json`: what is known of them before any is there.
    pub schema: &'a Value,
}

/// The rows of a shard, in input order: JSON objects whose first field is `row_id`.
#[derive(Debug)]
pub struct Rows<'a> {
    lines: &'a mut LineReader,
    stop: &'a AtomicBool,
    /// Why there are no more.
    ended: Option<Ended>,
}

/// Why rows ended before their time.
#[derive(Debug)]
enum Ended {
    /// The run stops.
    Stopped,
    Failed(SinkError),
}

impl Rows<'_> {
    fn row(&mut self) -> Result<Option<Record>, Ended> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Ended::Stopped);
        }
        let line = self.lines.next_line().map_err(Ended::Failed)?;
        let Some(row) = line.map(Record::parse) else {
            return Ok(None);
        };
        row.map(Some)
            .map_err(|error| Ended::Failed(self.lines.altered(&error)))
    }
}

impl Iterator for Rows<'_> {
    /// An error (the run stops, or gathered rows cannot be read) is the last item.
    type Item = std::io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended.is_some() {
            return None;
        }
        self.row().transpose().map(|row| {
            row.map_err(|ended| {
                let told = match &ended {
                    Ended::Stopped => std::io::Error::other("the run stops"),
                    Ended::Failed(error) => std::io::Error::other(error.to_string()),
                };
                self.ended = Some(ended);
                told
            })
        })
    }
}

/// One folder that is written by a sink of the user's.
#[derive(Debug)]
pub(super) struct Custom {
    sink: Arc<dyn Sink>,
    folder: String,
    schema: Value,
}

impl Custom {
    /// The outputs of every node.
    pub(super) fn of_nodes(plan: &Plan, sink: &Arc<dyn Sink>) -> Vec<Self> {
        let nodes = plan.nodes.iter();
        nodes
            .map(|node| Self {
                sink: sink.clone(),
                folder: node.id.clone(),
                schema: record_schema(node),
            })
            .collect()
    }

    /// The flattened records.
    pub(super) fn flattened(plan: &Plan, sink: &Arc<dyn Sink>) -> Self {
        Self {
            sink: sink.clone(),
            folder: "flattened".to_owned(),
            schema: flattened_schema(plan),
        }
    }

    fn write(
        &self,
        index: usize,
        rows: &mut Rows<'_>,
        out: &mut (dyn Write + Send),
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let shard = Shard {
            folder: &self.folder,
            index,
            schema: &self.schema,
        };
        let mut out = BufWriter::with_capacity(1 << 17, out);
        self.sink.write(&shard, rows, &mut out)?;
        Ok(out.flush()?)
    }
}

impl Encoder for Custom {
    fn extension(&self) -> &str {
        self.sink.extension()
    }

    fn decided_by(&self) -> u64 {
        0
    }

    fn layout(&self, _first: &mut LineReader) -> Result<Value, SinkError> {
        Ok(Value::Object(Map::new()))
    }

    fn encode(
        &self,
        _layout: &Value,
        index: usize,
        lines: &mut LineReader,
        out: &mut (dyn Write + Send),
        stop: &AtomicBool,
    ) -> Result<Option<Vec<Rescued>>, SinkError> {
        let mut rows = Rows {
            lines,
            stop,
            ended: None,
        };
        let written = catch_unwind(AssertUnwindSafe(|| self.write(index, &mut rows, out)))
            .unwrap_or_else(|_| Err("it panicked".into()));
        match rows.ended {
            Some(Ended::Stopped) => return Ok(None),
            Some(Ended::Failed(error)) => return Err(error),
            None => {}
        }
        written.map_err(|cause| SinkError::Custom {
            sink: self.sink.name().to_owned(),
            shard: format!("{}/{index:03}.{}", self.folder, self.extension()),
            cause,
        })?;
        // All lines must be there, also those it did not ask for.
        while lines.next_line()?.is_some() {}
        Ok(Some(Vec::new()))
    }
}

/// Checks what a sink says of itself.
pub(super) fn check(sink: &dyn Sink) -> Result<(), SinkError> {
    let (name, extension) = (sink.name(), sink.extension());
    let built_in = [Format::Jsonl, Format::Parquet].iter().any(|f| f.name() == name);
    let in_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    let good = (1..=64).contains(&name.len()) && name.bytes().all(in_name);
    if !good || built_in {
        let name = name.to_owned();
        return Err(SinkError::BadName { name });
    }
    let part = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric());
    let good = extension.len() <= 16 && extension.split('.').all(part);
    if !good || extension.rsplit('.').next() == Some("part") {
        return Err(SinkError::BadExtension {
            name: name.to_owned(),
            extension: extension.to_owned(),
        });
    }
    Ok(())
}
