//! OUT as a finished run left it: what its metadata and its graph say.

use std::path::{Path, PathBuf};

use fs_err as fs;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::AuditError;
use crate::event::{counted, thousands};
use crate::run::NodeCounts;
use crate::sink::{Rolled, shard_path};
use crate::source::Fingerprint;

/// A finished run, as its `metadata.json` and `graph.json` tell it.
///
/// ```no_run
/// use chainette::audit::Outputs;
///
/// # fn main() -> Result<(), chainette::audit::AuditError> {
/// let out = Outputs::open("out".as_ref())?;
/// for folder in out.folders() {
///     for line in out.lines(&folder)? {
///         let line = line?;
///         println!("{folder} {} {}", line.row_id, line.raw);
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Outputs {
    /// The folder.
    pub out: PathBuf,
    /// The run's name.
    pub run_id: String,
    /// The chain it ran.
    pub chain: Chain,
    /// Its `vars`, with `--set` applied.
    pub vars: Map<String, Value>,
    /// The files it read.
    pub input: Vec<Fingerprint>,
    /// How it was told to write.
    pub options: Options,
    /// Its rows.
    pub rows: RowTotals,
    /// Lines of `errors/` by kind.
    pub errors: IndexMap<String, u64>,
    /// Fates and tokens by node, in chain order.
    pub nodes: IndexMap<String, NodeCounts>,
    /// Tokens of all nodes.
    pub tokens: Tokens,
    /// Complete shards by folder, in order; a folder without any is left out.
    pub shards: IndexMap<String, Vec<Rolled>>,
    /// The value of `graph.json`.
    pub graph: Value,
    /// The extension of the files of a custom sink, where it is known.
    extension: Option<String>,
}

/// The chain of a run.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// BLAKE3 of the chain file, hexadecimal.
    pub digest: String,
    /// BLAKE3 of what the chain means: its graph with all models, hexadecimal.
    pub graph_digest: String,
}

/// How a run was told to write.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Options {
    /// `jsonl`, `parquet`, or the name of a sink of the library's user.
    pub format: String,
    /// Lines per shard.
    pub max_lines_per_file: u64,
    /// Not `--no-flattened`.
    pub flattened: bool,
    /// The `--limit` it finished under.
    pub limit: Option<u64>,
}

/// Rows of a run.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct RowTotals {
    /// Input rows.
    #[serde(rename = "in")]
    pub read: u64,
    /// Lines in `flattened/`.
    pub out: u64,
    /// Input rows that failed on the main line.
    pub failed: u64,
    /// Lines in `errors/`.
    pub errors: u64,
}

/// Tokens of a run or a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Tokens {
    /// Of all requests.
    pub prompt: u64,
    /// Of all replies.
    pub completion: u64,
}

/// What is needed of `metadata.json`.
#[derive(Deserialize)]
struct Metadata {
    run_id: String,
    chain: Chain,
    vars: Map<String, Value>,
    input: Vec<Fingerprint>,
    options: Options,
    rows: RowTotals,
    errors: IndexMap<String, u64>,
    nodes: IndexMap<String, NodeCounts>,
    tokens: Tokens,
    shards: IndexMap<String, Vec<Rolled>>,
}

/// What is needed of `.chainette/run.json`.
#[derive(Deserialize)]
struct Private {
    extension: Option<String>,
}

impl Outputs {
    /// Reads what a finished run says of itself. No shard is looked at.
    ///
    /// # Errors
    /// There is no run in `out`, it is not finished, or its metadata or graph are missing or damaged.
    pub fn open(out: &Path) -> Result<Self, AuditError> {
        match fs::metadata(out) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(foreign(out, "it is no folder")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(AuditError::Missing { out: out.to_owned() });
            }
            Err(error) => return Err(AuditError::io(out)(error)),
        }
        let private = out.join(".chainette/run.json");
        let path = out.join("metadata.json");
        let value: Value = match read(&path)? {
            Some(value) => value.map_err(|problem| damaged_metadata(&path, problem))?,
            // A run that has only just begun has none yet.
            None if private.exists() => return Err(unfinished(out, None)),
            None => return Err(foreign(out, "it has no metadata.json")),
        };
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
        match (text("/run_id"), text("/state")) {
            (Some(_), Some("finished")) => {}
            (Some(_), Some("running")) => {
                let rows = value.pointer("/rows/in").and_then(Value::as_u64);
                return Err(unfinished(out, rows));
            }
            _ => return Err(foreign(out, "its metadata.json is that of something else")),
        }
        let metadata: Metadata =
            serde_json::from_value(value).map_err(|error| damaged_metadata(&path, error.to_string()))?;
        let path = out.join("graph.json");
        let graph = match read::<Value>(&path)? {
            Some(Ok(graph)) if graph.get("nodes").is_some_and(Value::is_array) => Ok(graph),
            Some(Ok(_)) => Err("it names no nodes".to_owned()),
            Some(Err(problem)) => Err(problem),
            None => Err("it is missing".to_owned()),
        };
        let graph = graph.map_err(|problem| AuditError::Graph { path, problem })?;
        // An OUT may be handed on without its private folder.
        let extension = match metadata.options.format.as_str() {
            "jsonl" | "parquet" => Some(metadata.options.format.clone()),
            _ => {
                let private: Option<Result<Private, _>> = read(&private)?;
                private.and_then(|private| private.ok()?.extension)
            }
        };
        let Metadata {
            run_id,
            chain,
            vars,
            input,
            options,
            rows,
            errors,
            nodes,
            tokens,
            shards,
        } = metadata;
        Ok(Self {
            out: out.to_owned(),
            run_id,
            chain,
            vars,
            input,
            options,
            rows,
            errors,
            nodes,
            tokens,
            shards,
            graph,
            extension,
        })
    }

    /// The folders the run may have written to: its nodes in chain order but those without `yield_output`, then
    /// `flattened` unless it was not wanted, then `errors`. Those without a line may have no shard.
    pub fn folders(&self) -> Vec<String> {
        let nodes = self.graph.get("nodes").and_then(Value::as_array);
        let written = nodes
            .into_iter()
            .flatten()
            .filter(|node| node.get("yield_output") != Some(&Value::Bool(false)))
            .filter_map(|node| node.get("id").and_then(Value::as_str));
        let mut folders: Vec<String> = written.map(str::to_owned).collect();
        if self.options.flattened {
            folders.push("flattened".into());
        }
        folders.push("errors".into());
        folders
    }

    /// The shards of a folder, in order: where each must lie, and what the run said of it.
    ///
    /// # Errors
    /// They are files of a custom sink whose extension is not known any more.
    pub fn shards(&self, folder: &str) -> Result<Vec<(PathBuf, &Rolled)>, AuditError> {
        let Some(shards) = self.shards.get(folder) else {
            return Ok(Vec::new());
        };
        let extension = match (folder, &self.extension) {
            ("errors", _) => "jsonl",
            (_, Some(extension)) => extension,
            (_, None) => return self.check_readable().map(|()| Vec::new()),
        };
        let dir = self.out.join(folder);
        let named = shards.iter().enumerate();
        Ok(named
            .map(|(index, shard)| (shard_path(&dir, index, extension), shard))
            .collect())
    }

    /// Lines of a folder, as the run counted them.
    pub(super) fn count(&self, folder: &str) -> u64 {
        let shards = self.shards.get(folder).into_iter().flatten();
        shards.fold(0, |sum: u64, shard| sum.saturating_add(shard.rows))
    }

    /// True for a node that asks an engine.
    pub(super) fn is_step(&self, node: &str) -> bool {
        let nodes = self.graph.get("nodes").and_then(Value::as_array);
        let is =
            |found: &Value, key: &str, value: &str| found.get(key).and_then(Value::as_str) == Some(value);
        let mut nodes = nodes.into_iter().flatten();
        nodes.any(|found| is(found, "id", node) && is(found, "kind", "step"))
    }

    /// Refuses outputs that only the author of a sink can read.
    pub(super) fn check_readable(&self) -> Result<(), AuditError> {
        match self.options.format.as_str() {
            "jsonl" | "parquet" => Ok(()),
            sink => Err(AuditError::Custom {
                out: self.out.clone(),
                // OUT may come from anywhere, and this goes to a terminal.
                sink: sink.replace(char::is_control, " "),
            }),
        }
    }

    /// Looks for every shard by name and size; their content is not read.
    ///
    /// # Errors
    /// The first that is gone or has another size.
    pub fn check_present(&self) -> Result<(), AuditError> {
        for folder in self.folders() {
            for (path, shard) in self.shards(&folder)? {
                check_size(&path, shard)?;
            }
        }
        Ok(())
    }
}

/// Looks whether a shard has the size it had.
pub(super) fn check_size(path: &Path, shard: &Rolled) -> Result<(), AuditError> {
    let bytes = fs::metadata(path).map_err(AuditError::io(path))?.len();
    if bytes == shard.bytes {
        return Ok(());
    }
    Err(AuditError::Altered {
        path: path.to_owned(),
        problem: format!("{} instead of {}", counted(bytes, "byte"), thousands(shard.bytes)),
    })
}

fn foreign(out: &Path, problem: &str) -> AuditError {
    AuditError::Foreign {
        out: out.to_owned(),
        problem: problem.into(),
    }
}

fn unfinished(out: &Path, rows: Option<u64>) -> AuditError {
    AuditError::Unfinished {
        out: out.to_owned(),
        rows,
    }
}

fn damaged_metadata(path: &Path, problem: String) -> AuditError {
    AuditError::Metadata {
        path: path.to_owned(),
        problem,
    }
}

/// Reads a JSON file; none if it is not there, or what is wrong with its text.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<Result<T, String>>, AuditError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(
            serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(AuditError::io(path)(error)),
    }
}
