//! What the files that tell of a run say of one another: `metadata.json`, `graph.json` and the private ones.

use std::path::Path;

use fs_err as fs;
use serde::Serialize;
use serde_json::{Value, json};

use super::problems::{Problem, ProblemKind, Problems};
use crate::audit::{AuditError, Outputs};
use crate::event::{counted, thousands};
use crate::run::{Checkpoint, Counts, FILES_VERSION, Identity, is_locked, seals};

const METADATA: &str = "metadata.json";
const GRAPH: &str = "graph.json";
const RUN: &str = ".chainette/run.json";
const CHECKPOINT: &str = ".chainette/checkpoint.json";

/// A run that says of itself that it is finished.
pub(super) struct Sealed {
    pub(super) outputs: Outputs,
    /// The value of `metadata.json`.
    pub(super) metadata: Value,
    /// Bytes of the outcomes, if the checkpoint tells.
    pub(super) outcomes: Option<u64>,
}

/// Reads what a run says of itself; none, with a problem, if nothing can be proven of it.
pub(super) fn read(out: &Path, found: &mut Problems) -> Result<Option<Sealed>, AuditError> {
    let private = out.join(".chainette");
    let mut unfinished = |text: &str| {
        found.add(Problem::of(ProblemKind::Unfinished, METADATA, text));
        Ok(None)
    };
    if private.join(crate::run::SWAP).exists() {
        return unfinished(
            "the last run was interrupted while it put new outputs in place; run the same command again",
        );
    }
    let outputs = match Outputs::open(out) {
        Ok(outputs) => outputs,
        Err(AuditError::Unfinished { .. }) if is_locked(&private) => {
            return unfinished("a run is under way: wait for its end");
        }
        Err(AuditError::Unfinished { rows: Some(rows), .. }) => {
            let rows = counted(rows, "row");
            return unfinished(&format!("not finished ({rows} done): run the same command again"));
        }
        Err(AuditError::Unfinished { rows: None, .. }) => {
            return unfinished("it is not there: run the same command again");
        }
        Err(AuditError::Metadata { problem, .. }) => {
            let text = format!("it is damaged ({problem})");
            found.add(Problem::of(ProblemKind::Metadata, METADATA, text));
            return Ok(None);
        }
        Err(AuditError::Graph { problem, .. }) => {
            let text = format!("it cannot be used ({problem})");
            found.add(Problem::of(ProblemKind::Graph, GRAPH, text));
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let path = out.join(METADATA);
    let bytes = fs::read(&path).map_err(AuditError::io(&path))?;
    let metadata: Value =
        serde_json::from_slice(&bytes).map_err(|error| AuditError::damaged(&path, error.to_string()))?;
    let version = at(&metadata, "/versions/files");
    if *version != json!(FILES_VERSION) {
        let text = format!(
            "its private files are of version {version}, and this chainette reads version {FILES_VERSION}; verify it with the chainette that made it ({})",
            at(&metadata, "/versions/chainette")
        );
        found.add(Problem::of(ProblemKind::Metadata, METADATA, text));
        return Ok(None);
    }
    check_seals(&metadata, found);
    check_graph(out, &metadata, &outputs, found)?;
    check_identity(&private, &metadata, found)?;
    let checkpoint = check_checkpoint(&private, &metadata, found)?;
    Ok(Some(Sealed {
        outputs,
        metadata,
        outcomes: checkpoint.map(|checkpoint| checkpoint.outcomes),
    }))
}

/// A part of a value; null if it is not there.
fn at<'v>(value: &'v Value, pointer: &str) -> &'v Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

fn check_seals(metadata: &Value, found: &mut Problems) {
    let seals = seals(metadata);
    let text = match (
        *at(metadata, "/seal") == seals.content,
        *at(metadata, "/timings/seal") == seals.whole,
    ) {
        (true, true) => return,
        (true, false) => "`run_id`, `versions` or `timings` were changed: it does not match its seal",
        (false, _) => "it was changed: it does not match its seal",
    };
    found.add(Problem::of(ProblemKind::Metadata, METADATA, text));
}

fn check_graph(
    out: &Path,
    metadata: &Value,
    outputs: &Outputs,
    found: &mut Problems,
) -> Result<(), AuditError> {
    let path = out.join(GRAPH);
    let bytes = fs::read(&path).map_err(AuditError::io(&path))?;
    let meant = blake3::hash(outputs.graph.to_string().as_bytes());
    let same = *at(metadata, "/graph/blake3") == blake3::hash(&bytes).to_hex().as_str()
        && *at(metadata, "/graph/bytes") == json!(bytes.len())
        && outputs.chain.graph_digest == meant.to_hex().as_str();
    if !same {
        let text = "it was changed: it is not what metadata.json seals";
        found.add(Problem::of(ProblemKind::Graph, GRAPH, text));
    }
    Ok(())
}

/// Compares `run.json` with the metadata.
fn check_identity(private: &Path, metadata: &Value, found: &mut Problems) -> Result<(), AuditError> {
    let Some(identity) = private_file::<Identity>(private, "run.json", RUN, found)? else {
        return Ok(());
    };
    let engines = at(metadata, "/engines").as_object();
    let said: Vec<&Value> = engines
        .into_iter()
        .flat_map(serde_json::Map::values)
        .map(|engine| at(engine, "/identity"))
        .collect();
    let hash = |text: &String| blake3::hash(text.as_bytes()).to_hex().to_string();
    let is: Vec<String> = identity.engines.iter().map(hash).collect();
    let pairs = [
        ("run_id", at(metadata, "/run_id"), json!(identity.run_id)),
        (
            "versions.files",
            at(metadata, "/versions/files"),
            json!(identity.version),
        ),
        (
            "chain.digest",
            at(metadata, "/chain/digest"),
            json!(identity.chain),
        ),
        (
            "chain.graph_digest",
            at(metadata, "/chain/graph_digest"),
            json!(identity.graph),
        ),
        ("vars", at(metadata, "/vars"), identity.vars.clone()),
        ("input", at(metadata, "/input"), json!(identity.input)),
        ("engines", &json!(said), json!(is)),
        (
            "options.format",
            at(metadata, "/options/format"),
            json!(identity.format),
        ),
        (
            "options.max_lines_per_file",
            at(metadata, "/options/max_lines_per_file"),
            json!(identity.max_rows),
        ),
        (
            "options.flattened",
            at(metadata, "/options/flattened"),
            json!(identity.flattened),
        ),
    ];
    disagree(RUN, &pairs, found);
    Ok(())
}

/// Compares `checkpoint.json` with the metadata.
fn check_checkpoint(
    private: &Path,
    metadata: &Value,
    found: &mut Problems,
) -> Result<Option<Checkpoint>, AuditError> {
    let checkpoint = private_file::<Checkpoint>(private, "checkpoint.json", CHECKPOINT, found)?;
    let Some(checkpoint) = checkpoint else {
        return Ok(None);
    };
    let state = if checkpoint.finished {
        "finished"
    } else {
        "running"
    };
    let Counts {
        rows_in,
        rows_out,
        rows_failed,
        errors,
        ref nodes,
        ref branches,
        ref kinds,
        ..
    } = checkpoint.counts;
    let folders = checkpoint.sinks.0.iter();
    let shards: serde_json::Map<String, Value> = folders
        .filter(|(_, state)| !state.rolled.is_empty())
        .map(|(name, state)| (name.clone(), json!(state.rolled)))
        .collect();
    let pairs = [
        ("state", at(metadata, "/state"), json!(state)),
        ("rows.in", at(metadata, "/rows/in"), json!(rows_in)),
        ("rows.out", at(metadata, "/rows/out"), json!(rows_out)),
        ("rows.failed", at(metadata, "/rows/failed"), json!(rows_failed)),
        ("rows.errors", at(metadata, "/rows/errors"), json!(errors)),
        ("nodes", at(metadata, "/nodes"), json!(nodes)),
        ("branches", at(metadata, "/branches"), json!(branches)),
        ("errors", at(metadata, "/errors"), json!(kinds)),
        ("shards", at(metadata, "/shards"), Value::Object(shards)),
        (
            "options.limit",
            at(metadata, "/options/limit"),
            json!(checkpoint.limit),
        ),
    ];
    disagree(CHECKPOINT, &pairs, found);
    if checkpoint.position.ordinal != rows_in {
        let text = format!(
            "reading goes on at row {}, though {} were done",
            checkpoint.position.ordinal,
            counted(rows_in, "row")
        );
        found.add(Problem::of(ProblemKind::Private, CHECKPOINT, text));
    }
    Ok(Some(checkpoint))
}

fn disagree(file: &str, pairs: &[(&str, &Value, Value)], found: &mut Problems) {
    for (name, said, is) in pairs {
        if *said != is {
            let text = format!("it disagrees with metadata.json on `{name}`");
            found.add(Problem::of(ProblemKind::Private, file, text));
        }
    }
}

/// A private file; none, with a problem, if it is not there or cannot be read.
fn private_file<T: serde::de::DeserializeOwned>(
    private: &Path,
    name: &str,
    shown: &str,
    found: &mut Problems,
) -> Result<Option<T>, AuditError> {
    let path = private.join(name);
    let text = match fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(value) => return Ok(Some(value)),
            Err(error) => format!("it is damaged ({error})"),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => "it is missing".to_owned(),
        Err(error) => return Err(AuditError::io(&path)(error)),
    };
    found.add(Problem::of(ProblemKind::Private, shown, text));
    Ok(None)
}

/// Compares the counts of the metadata with those that were found by following every row; without the kinds of
/// failures where not all lines of `errors/` could be read.
pub(super) fn check_counts(metadata: &Value, counts: &Counts, kinds: bool, found: &mut Problems) {
    let mut counts = counts.clone();
    for (id, node) in &mut counts.nodes {
        // What requests cost, nothing else in OUT tells.
        let tokens = |key: &str| at(metadata, &format!("/nodes/{id}/{key}")).as_u64().unwrap_or(0);
        (node.prompt_tokens, node.completion_tokens) = (tokens("prompt_tokens"), tokens("completion_tokens"));
    }
    let usage = counts.usage();
    let rows = json!({
        "in": counts.rows_in, "out": counts.rows_out, "failed": counts.rows_failed, "errors": counts.errors,
    });
    for (name, is) in [
        ("rows", rows),
        ("errors", value(&counts.kinds)),
        ("nodes", value(&counts.nodes)),
        ("branches", value(&counts.branches)),
        (
            "tokens",
            json!({"prompt": usage.prompt_tokens, "completion": usage.completion_tokens}),
        ),
    ] {
        if name == "errors" && !kinds {
            continue;
        }
        compare(name, at(metadata, &format!("/{name}")), &is, found);
    }
}

fn value(counts: &impl Serialize) -> Value {
    serde_json::to_value(counts).unwrap_or_default()
}

/// Tells every number that differs.
fn compare(place: &str, said: &Value, is: &Value, found: &mut Problems) {
    if said == is {
        return;
    }
    if let (Value::Object(said), Value::Object(is)) = (said, is) {
        for (key, is) in is {
            let said = said.get(key).unwrap_or(&Value::Null);
            compare(&format!("{place}.{key}"), said, is, found);
        }
        for (key, said) in said.iter().filter(|(key, _)| !is.contains_key(*key)) {
            compare(&format!("{place}.{key}"), said, &Value::Null, found);
        }
        return;
    }
    let shown = |value: &Value| match value {
        Value::Null => "not there".to_owned(),
        value => value.as_u64().map_or_else(|| value.to_string(), thousands),
    };
    let text = format!(
        "`{place}` is {}; by the outcomes and the lines it is {}",
        shown(said),
        shown(is)
    );
    found.add(Problem::of(ProblemKind::Count, METADATA, text));
}
