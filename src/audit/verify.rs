//! The proof that a run is complete and unaltered, from OUT alone.

mod folder;
mod graph;
mod line;
mod problems;
mod replay;
mod sealed;
mod shard;
mod strays;
mod verdict;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde_json::{Value, json};

pub use problems::{Problem, ProblemKind};
pub use verdict::Verdict;

use super::{AuditError, Outputs};
use crate::event::{counted, thousands};
use crate::row::RowId;
use crate::run::{Outcomes, OutcomesDigest, OutcomesReader, Unread};
use crate::sink::Rolled;
use folder::{Folder, Key};
use graph::Graph;
use line::{LineCheck, error_schema};
use problems::Problems;
use replay::{OUTCOMES, Replay};
use sealed::Sealed;
use shard::{Check, Form};
use strays::{strangers, strays};

/// Proves from OUT alone that a run is complete and unaltered.
///
/// - Every input ordinal has exactly one outcome on the main line and on each branch's line: the outcomes that the
///   run kept are followed over `graph.json`, and every line that they tell of is looked for in its place, in every
///   node's folder, in `flattened/` and in `errors/`. A row too many is found as well as one too few.
/// - Every shard is there with the size, the lines and the BLAKE3 that `metadata.json` has of it, and there is no
///   other file beside them.
/// - Every line matches its JSON Schema in `graph.json`. Parquet does not tell a null from a field that was left
///   out: what the schema asks for there may be either.
/// - The counts in `metadata.json` are those that were found; it, `graph.json`, the outcomes and the other private
///   files are those that were sealed.
///
/// Nothing is written and nobody is asked. Memory does not grow with the rows; every shard is read once (of
/// Parquet, once for its bytes and once for its rows).
///
/// The seals are no signatures: who changes everything, seals included, to something consistent, is not found.
///
/// ```no_run
/// let verdict = chainette::audit::verify("out".as_ref())?;
/// for problem in &verdict.problems {
///     println!("{problem}");
/// }
/// # Ok::<_, chainette::audit::AuditError>(())
/// ```
///
/// # Errors
/// There is no run in `out`, or a file cannot be read for a reason that is not of its own. What is wrong with the
/// run itself is in the [`Verdict`].
pub fn verify(out: &Path) -> Result<Verdict, AuditError> {
    let mut found = Problems::default();
    let mut verdict = Verdict {
        out: out.to_owned(),
        ..Verdict::default()
    };
    if let Some(sealed) = sealed::read(out, &mut found)? {
        verdict.run_id.clone_from(&sealed.outputs.run_id);
        match Graph::read(&sealed.outputs.graph) {
            Ok(graph) => found = follow(&sealed, &graph, found, &mut verdict)?,
            Err(problem) => found.add(Problem::of(ProblemKind::Graph, "graph.json", problem)),
        }
    }
    verdict.proven = found.is_empty();
    (verdict.problems, verdict.problem_counts) = found.into_parts();
    Ok(verdict)
}

/// Follows every row and reads every shard.
fn follow(
    sealed: &Sealed,
    graph: &Graph,
    mut found: Problems,
    verdict: &mut Verdict,
) -> Result<Problems, AuditError> {
    let outputs = &sealed.outputs;
    let form = match outputs.options.format.as_str() {
        "jsonl" => Form::Jsonl,
        "parquet" => Form::Parquet,
        sink => {
            verdict.sink = Some(sink.to_owned());
            Form::Opaque
        }
    };
    let schemas = outputs.graph.pointer("/schemas").unwrap_or(&Value::Null);
    let orders = graph.orders();
    let mut folders = Folders {
        outputs,
        found: &mut found,
    };
    let rows = |folders: &mut Folders<'_>, name: &str, schema: Option<&Value>| {
        let check = folders.check(name, schema, form == Form::Parquet);
        folders.open(name, form, Box::new(move |line| check.row(line)))
    };
    let mut nodes = Vec::new();
    for node in &graph.nodes {
        let schema = schemas.pointer(&format!("/nodes/{}", node.id));
        let folder = node.written.then(|| rows(&mut folders, &node.id, schema));
        nodes.push(folder.transpose()?);
    }
    let flattened = outputs
        .options
        .flattened
        .then(|| rows(&mut folders, "flattened", schemas.get("flattened")));
    let flattened = flattened.transpose()?;
    let check = folders.check("errors", Some(&error_schema()), false);
    let orders: &HashMap<String, usize> = &orders;
    let errors = folders.open(
        "errors",
        Form::Jsonl,
        Box::new(move |line| check.error(line, orders)),
    )?;
    let known = outputs.folders();
    for name in outputs.shards.keys().filter(|name| !known.contains(name)) {
        let text = format!("it names shards of {name}/, which this chain does not write");
        folders
            .found
            .add(Problem::of(ProblemKind::Metadata, "metadata.json", text));
    }
    strangers(&outputs.out, &known, folders.found)?;

    let mut replay = Replay::new(graph, nodes, flattened, errors, found);
    let followed = outcomes(sealed, &mut replay)?;
    let Replay {
        nodes,
        flattened,
        errors,
        counts,
        mut found,
        ..
    } = replay;
    let mut end = |folder: Folder<'_, RowId>| end(folder, followed, verdict, &mut found);
    nodes.into_iter().flatten().for_each(&mut end);
    flattened.into_iter().for_each(&mut end);
    let kinds_are_known = !errors.has_gaps;
    self::end(errors, followed, verdict, &mut found);
    if followed {
        sealed::check_counts(&sealed.metadata, &counts, kinds_are_known, &mut found);
    }
    verdict.rows = counts.rows_in;
    verdict.rows_out = counts.rows_out;
    verdict.rows_failed = counts.rows_failed;
    verdict.nodes = counts.nodes;
    verdict.branches = counts.branches;
    for (id, node) in &mut verdict.nodes {
        if let Some(said) = outputs.nodes.get(id) {
            (node.prompt_tokens, node.completion_tokens) = (said.prompt_tokens, said.completion_tokens);
        }
    }
    verdict.errors = counts.kinds;
    Ok(found)
}

/// Follows all outcomes; true if they are those that were sealed, and could be followed to their end.
fn outcomes(sealed: &Sealed, replay: &mut Replay<'_>) -> Result<bool, AuditError> {
    let path = sealed.outputs.out.join(OUTCOMES);
    let mut digest = OutcomesDigest::default();
    // What was changed is not followed: every row behind it would seem wrong.
    let whole = each_commit(&path, &mut replay.found, |outcomes, _| {
        digest.push(&outcomes);
        true
    })?;
    let Some(rows) = whole else { return Ok(false) };
    let bytes = fs::metadata(&path).map_err(AuditError::io(&path))?.len();
    let said = sealed.metadata.pointer("/outcomes");
    let problem = if said != Some(&json!({"rows": rows, "blake3": digest.finish()})) {
        Some("it was changed: it is not what metadata.json seals".to_owned())
    } else {
        let other = sealed.outcomes.filter(|said| *said != bytes);
        other.map(|said| format!("{} instead of {}", counted(bytes, "byte"), thousands(said)))
    };
    if let Some(problem) = problem {
        replay
            .found
            .add(Problem::of(ProblemKind::Outcomes, OUTCOMES, problem));
        return Ok(false);
    }
    let mut meanwhile = Problems::default();
    let followed = each_commit(&path, &mut meanwhile, |outcomes, line| {
        replay.follow(outcomes, line)
    })?;
    let (changed, _) = meanwhile.into_parts();
    changed.into_iter().for_each(|problem| replay.found.add(problem));
    Ok(followed.is_some())
}

/// Hands every commit of the outcomes on, with its line, while they are taken; gives the number of rows, or none if
/// they cannot be read to their end, which is told then, or are not taken.
fn each_commit(
    path: &Path,
    found: &mut Problems,
    mut take: impl FnMut(Outcomes, u64) -> bool,
) -> Result<Option<u64>, AuditError> {
    let tell = |line: Option<u64>, text: String| Problem {
        line,
        ..Problem::of(ProblemKind::Outcomes, OUTCOMES, text)
    };
    let mut reader = match OutcomesReader::open(path) {
        Ok(reader) => reader,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text = "it is missing: without it nobody can tell whether all rows are here";
            found.add(tell(None, text.to_owned()));
            return Ok(None);
        }
        Err(error) => return Err(AuditError::io(path)(error)),
    };
    loop {
        match reader.next() {
            Ok(Some(outcomes)) => {
                if !take(outcomes, reader.line()) {
                    return Ok(None);
                }
            }
            Ok(None) => return Ok(Some(reader.rows())),
            Err(Unread::Io(error)) => return Err(AuditError::io(path)(error)),
            Err(Unread::Damaged(line, problem)) => {
                found.add(tell(Some(line), format!("it is damaged: {problem}")));
                return Ok(None);
            }
        }
    }
}

/// Reads what is left of a folder and adds what was good.
fn end<K: Key>(mut folder: Folder<'_, K>, followed: bool, verdict: &mut Verdict, found: &mut Problems) {
    folder.finish(followed, found);
    verdict.shards += folder.good_shards;
    verdict.lines += folder.good_lines;
}

/// The folders of an OUT.
struct Folders<'a> {
    outputs: &'a Outputs,
    found: &'a mut Problems,
}

impl Folders<'_> {
    /// The check of a folder's lines.
    fn check(&mut self, name: &str, schema: Option<&Value>, nulls_are_lost: bool) -> LineCheck {
        let none = Value::Null;
        LineCheck::new(schema.unwrap_or(&none), nulls_are_lost).unwrap_or_else(|problem| {
            let text = format!("the schema of {name}/ is none: {problem}");
            self.found
                .add(Problem::of(ProblemKind::Graph, "graph.json", text));
            LineCheck::any()
        })
    }

    /// A folder with its shards, whose names and sizes add up.
    fn open<'c, K: Key>(
        &mut self,
        name: &str,
        form: Form,
        check: Box<Check<'c, K>>,
    ) -> Result<Folder<'c, K>, AuditError> {
        let Outputs { out, options, .. } = self.outputs;
        let shards: Vec<(PathBuf, Rolled)> = match self.outputs.shards(name) {
            Ok(shards) => shards
                .into_iter()
                .map(|(path, rolled)| (path, rolled.clone()))
                .collect(),
            // The extension of a custom sink's files is not known any more.
            Err(error) => {
                let text = format!("its shards cannot be named: {error}");
                self.found
                    .add(Problem::of(ProblemKind::Shard, format!("{name}/"), text));
                Vec::new()
            }
        };
        let most = options.max_lines_per_file;
        for (at, (path, rolled)) in shards.iter().enumerate() {
            let is_last = at + 1 == shards.len();
            let empty = rolled.rows == 0 && !(name == "flattened" && shards.len() == 1);
            if rolled.rows > most || (rolled.rows < most && !is_last) || empty {
                let file = path.strip_prefix(out).unwrap_or(path).display().to_string();
                let text = format!(
                    "{} in a shard, where --max-lines-per-file is {}",
                    counted(rolled.rows, "line"),
                    thousands(most)
                );
                self.found.add(Problem::of(ProblemKind::Shard, file, text));
            }
        }
        strays(out, name, &shards, self.found)?;
        Ok(Folder::new(out, name, form, shards, check))
    }
}
