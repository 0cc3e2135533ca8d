//! The top of a chain file.

use super::engine;
use super::fields::{Fields, wrong};
use super::problem::{Code, Problem, Problems, nearest};
use super::steps::{self, NodeSpec};
use super::yaml::{Entry, Node, Text, Yaml};
use super::{EngineSpec, Span};

/// Every key of a chain file.
pub(crate) const KEYS: &[&str] = &[
    "name",
    "batch_size",
    "vars",
    "input_model",
    "models",
    "engines",
    "steps",
    "pools",
    "resources",
];

/// Keys of the top that this version does not act on.
pub(crate) const UNSERVED: &[&str] = &["pools", "resources"];
/// Every key of an engines file.
pub(crate) const ENGINES_FILE: &[&str] = &["engines", "pools", "resources"];

/// A chain as the user wrote it.
#[derive(Clone, Debug)]
pub struct ChainSpec {
    /// Its name; without one, the file's name without extension.
    pub name: Option<String>,
    /// Rows per chunk.
    pub batch_size: usize,
    /// Variables, before `--set`.
    pub vars: Vec<Entry>,
    /// What input rows are checked against.
    pub input_model: Option<Node>,
    /// Named models.
    pub models: Vec<Entry>,
    /// Engines of the chain and of the engines files.
    pub engines: Vec<EngineDecl>,
    /// The main line.
    pub steps: Vec<NodeSpec>,
    /// Which of `vars`, `models` and `engines` could not be read as a whole (and have been reported): what
    /// is missing there is no further problem.
    pub unread: Vec<&'static str>,
}

/// A declared engine.
#[derive(Clone, Debug)]
pub struct EngineDecl {
    /// Its name.
    pub name: Text,
    /// Its declaration, without the name.
    pub span: Span,
    /// The engine; none when its declaration has problems of its own.
    pub spec: Option<EngineSpec>,
    /// What this version does not serve; it only matters to a chain that uses the engine.
    pub unsupported: Vec<Problem>,
}

/// Reads a chain; what is wrong is noted, and what is left is read on.
pub(super) fn read(root: &Node, problems: &mut Problems) -> Option<ChainSpec> {
    let fields = Fields::of(root, "a chain", KEYS, problems)?;
    unsupported_top(root, problems);
    let steps = fields.need("steps", problems);
    if let Some(node) = steps
        && matches!(&node.kind, Yaml::Seq(items) if items.is_empty())
    {
        problems
            .add(
                Code::BadValue,
                node.span,
                "`steps` is empty; a chain needs at least one",
            )
            .help("for example `- {id: first, engine: ENGINE, user_prompt: \"...\"}`");
    }
    Some(ChainSpec {
        name: fields.text("name", problems).map(|t| t.value),
        batch_size: fields
            .int("batch_size", 1, 1_000_000, problems)
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(256),
        vars: mapping(&fields, "vars", problems),
        input_model: fields.get("input_model").cloned(),
        models: mapping(&fields, "models", problems),
        engines: read_engines(&fields, problems),
        steps: steps::read_list(&fields, "steps", problems),
        unread: unread(root),
    })
}

/// The collections that are no mapping, or whose key is misspelled.
fn unread(root: &Node) -> Vec<&'static str> {
    let misspelled = |wanted: &str| {
        let Yaml::Map(entries) = &root.kind else {
            return false;
        };
        entries.iter().any(|e| {
            let key = e.key.value.as_str();
            !KEYS.contains(&key) && nearest(key, KEYS.iter().copied()) == Some(wanted)
        })
    };
    ["vars", "models", "engines"]
        .into_iter()
        .filter(|key| match root.get(key).map(|e| &e.value.kind) {
            Some(Yaml::Map(_) | Yaml::Null) => false,
            Some(_) => true,
            None => misspelled(key),
        })
        .collect()
}

/// Reads an engines file: an `engines:` mapping and nothing else.
pub(super) fn read_engines_file(root: &Node, problems: &mut Problems) -> Vec<EngineDecl> {
    let Some(fields) = Fields::of(root, "an engines file", ENGINES_FILE, problems) else {
        return Vec::new();
    };
    unsupported_top(root, problems);
    if !fields.has("pools") {
        fields.need("engines", problems);
    }
    read_engines(&fields, problems)
}

fn unsupported_top(root: &Node, problems: &mut Problems) {
    for key in UNSERVED {
        if let Some(entry) = root.get(key) {
            problems
                .add(
                    Code::Unsupported,
                    entry.key.span,
                    format!("`{key}` is not supported in this version"),
                )
                .help("declare `engines:` that have an `endpoint`");
        }
    }
}

fn read_engines(fields: &Fields<'_>, problems: &mut Problems) -> Vec<EngineDecl> {
    mapping(fields, "engines", problems)
        .iter()
        .map(|entry| {
            let name = entry.key.clone();
            let good = !name.value.is_empty()
                && name.value.len() <= 64
                && name
                    .value
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
            if !good {
                problems
                    .add(
                        Code::BadName,
                        name.span,
                        format!("`{}` cannot name an engine", name.value),
                    )
                    .help("use letters, digits, `_`, `-` and `.`, at most 64 of them");
            }
            let mut own = Problems::default();
            let spec = engine::read(&name, &entry.value, &mut own);
            let (unsupported, wrong): (Vec<_>, Vec<_>) = own
                .into_sorted()
                .into_iter()
                .partition(|p| p.code == Code::Unsupported);
            for problem in wrong {
                problems.push(problem);
            }
            EngineDecl {
                name,
                span: entry.value.span,
                spec,
                unsupported,
            }
        })
        .collect()
}

fn mapping(fields: &Fields<'_>, key: &str, problems: &mut Problems) -> Vec<Entry> {
    match fields.get(key) {
        None => Vec::new(),
        Some(node) => match &node.kind {
            Yaml::Map(entries) => entries.clone(),
            // `models:` with everything below it commented out.
            Yaml::Null => Vec::new(),
            _ => {
                wrong(key, "a mapping", node, problems);
                problems.last().help(match key {
                    "vars" => "write `vars: {name: value}`",
                    "models" => "write `models: {Name: {field: string}}`",
                    _ => "write `engines: {name: {backend: openai, model: ..., endpoint: ...}}`",
                });
                Vec::new()
            }
        },
    }
}
