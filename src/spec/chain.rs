//! The top of a chain file.

use std::path::Path;

use super::engine;
use super::fields::{Fields, wrong};
use super::problem::{Code, Problem, Problems, nearest};
use super::steps::{self, NodeSpec};
use super::yaml::{Entry, Node, Text, Yaml};
use super::{EngineSpec, Resources, Span};

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

/// Every key of an engines file.
pub(crate) const ENGINES_FILE: &[&str] = &["engines", "pools", "resources"];
/// Every key of `resources`.
pub(crate) const RESOURCES: &[&str] = &["ram", "vram", "spill"];

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
    /// What the engines may use together: the chain's own word, else that of the engines files.
    pub resources: Resources,
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

/// Reads a chain of a file in `folder`; what is wrong is noted, and what is left is read on.
pub(super) fn read(root: &Node, folder: &Path, problems: &mut Problems) -> Option<ChainSpec> {
    let fields = Fields::of(root, "a chain", KEYS, problems)?;
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
        engines: read_engines(&fields, folder, problems),
        resources: read_resources(&fields, problems),
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
    let mut unread: Vec<&'static str> = ["vars", "models", "engines"]
        .into_iter()
        .filter(|key| match root.get(key).map(|e| &e.value.kind) {
            Some(Yaml::Map(_) | Yaml::Null) => false,
            Some(_) => true,
            None => misspelled(key),
        })
        .collect();
    // Pools are engines too.
    if !unread.contains(&"engines") && pools_unread(root) {
        unread.push("engines");
    }
    unread
}

/// True when a pool there may be cannot be known by its name.
fn pools_unread(root: &Node) -> bool {
    match root.get("pools").map(|e| &e.value.kind) {
        None | Some(Yaml::Null) => false,
        Some(Yaml::Seq(items)) => items
            .iter()
            .any(|item| item.get("id").is_none_or(|id| id.value.as_text().is_none())),
        Some(_) => true,
    }
}

/// What an engines file holds.
#[derive(Debug, Default)]
pub(super) struct EnginesFile {
    /// Its engines and pools.
    pub(super) engines: Vec<EngineDecl>,
    /// Its word on what engines may use together.
    pub(super) resources: Resources,
    /// Pools whose names could not be read.
    pub(super) unread: bool,
}

/// Reads an engines file in `folder`: `engines:`, `pools:` and `resources:`.
pub(super) fn read_engines_file(root: &Node, folder: &Path, problems: &mut Problems) -> EnginesFile {
    let Some(fields) = Fields::of(root, "an engines file", ENGINES_FILE, problems) else {
        return EnginesFile::default();
    };
    if !fields.has("pools") {
        fields.need("engines", problems);
    }
    EnginesFile {
        engines: read_engines(&fields, folder, problems),
        resources: read_resources(&fields, problems),
        unread: pools_unread(root),
    }
}

/// `resources: {ram, vram, spill}`.
fn read_resources(fields: &Fields<'_>, problems: &mut Problems) -> Resources {
    let Some(node) = fields.get("resources") else {
        return Resources::default();
    };
    let Some(fields) = Fields::of(node, "`resources`", RESOURCES, problems) else {
        return Resources::default();
    };
    Resources {
        ram: fields.size("ram", problems),
        vram: fields.size("vram", problems),
        spill: fields.size("spill", problems),
    }
}

/// Reads one declaration; what is wrong with it is noted.
type ReadEngine = fn(&Text, &Node, &Path, &mut Problems) -> Option<EngineSpec>;

/// Everything below `engines` and `pools`.
fn read_engines(fields: &Fields<'_>, folder: &Path, problems: &mut Problems) -> Vec<EngineDecl> {
    let mut found = Vec::new();
    for entry in &mapping(fields, "engines", problems) {
        let (name, node) = (entry.key.clone(), &entry.value);
        found.push(declaration(name, node, engine::read, folder, problems));
    }
    let pools = match fields.get("pools").map(|node| &node.kind) {
        None | Some(Yaml::Null) => &[][..],
        Some(_) => fields.list("pools", problems).unwrap_or_default(),
    };
    for node in pools {
        match engine::pool_id(node, problems) {
            Some(name) => found.push(declaration(name, node, engine::read_pool, folder, problems)),
            // What else is wrong with it; without a name it is no engine.
            None => drop(Fields::of(node, "a pool", engine::POOL, problems)),
        }
    }
    found
}

/// One engine or pool.
fn declaration(
    name: Text,
    node: &Node,
    read: ReadEngine,
    folder: &Path,
    problems: &mut Problems,
) -> EngineDecl {
    let letters = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let good = !name.value.is_empty() && name.value.len() <= 64 && name.value.bytes().all(letters);
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
    let spec = read(&name, node, folder, &mut own);
    let (unsupported, wrong): (Vec<_>, Vec<_>) = own
        .into_sorted()
        .into_iter()
        .partition(|p| p.code == Code::Unsupported);
    for problem in wrong {
        problems.push(problem);
    }
    EngineDecl {
        name,
        span: node.span,
        spec: spec.filter(|_| good),
        unsupported,
    }
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
