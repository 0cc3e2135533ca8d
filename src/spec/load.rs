//! From paths and flags to one spec.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::chain::{self, ChainSpec, EngineDecl};
use super::problem::{Code, Problems, Sources, suggest};
use super::yaml::{self, Entry};
use super::{Resources, Span};

/// What the user named on the command line.
#[derive(Clone, Debug, Default)]
pub struct ChainInput {
    /// The chain file; `$ref`s are relative to its folder.
    pub path: PathBuf,
    /// The chain's text, when it is already in memory; else the file is read.
    pub text: Option<String>,
    /// Engines files (`--engines`).
    pub engines: Vec<PathBuf>,
    /// `K=V` (`--set`), V read as YAML.
    pub sets: Vec<String>,
}

impl ChainInput {
    /// A chain file.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            ..Self::default()
        }
    }
}

/// Reads the chain, the engines files and the `--set`s. Every problem is noted; `None` when there
/// is no chain to speak of.
pub fn load(input: &ChainInput, sources: &mut Sources, problems: &mut Problems) -> Option<ChainSpec> {
    let chain = match &input.text {
        Some(text) => Some(text.clone()),
        None => read_file(&input.path, "chain file", problems),
    };
    let root = chain.and_then(|text| {
        let file = sources.add(&input.path, &text);
        let root = yaml::parse(file, &text, problems)?;
        if matches!(root.kind, yaml::Yaml::Null) {
            problems
                .add(
                    Code::MissingKey,
                    root.span,
                    "this chain is empty; it needs `steps`",
                )
                .help("for example `steps: [{id: tidy, apply: {jq: '.'}}]`");
            return None;
        }
        Some(root)
    });
    let mut spec = root.and_then(|root| chain::read(&root, folder_of(&input.path), problems));
    let mut unread = false;
    for path in &input.engines {
        let Some(text) = read_file(path, "engines file", problems) else {
            unread = true;
            continue;
        };
        let file = sources.add(path, &text);
        if let Some(root) = yaml::parse(file, &text, problems) {
            let read = chain::read_engines_file(&root, folder_of(path), problems);
            unread |= read.unread;
            if let Some(spec) = &mut spec {
                spec.engines.extend(read.engines);
                spec.resources = spec.resources.or(read.resources);
            }
        } else {
            unread = true;
        }
    }
    let mut spec = spec?;
    if unread {
        spec.unread.push("engines");
    }
    for set in &input.sets {
        let known = !spec.unread.contains(&"vars");
        apply_set(set, &mut spec.vars, known, sources, problems);
    }
    check_engine_names(&spec.engines, sources, problems);
    Some(spec)
}

/// The engines of a chain file or of an engines file, and what they may use together. Every problem is noted, also what
/// this version does not serve; `None` when there is nothing to speak of.
pub fn load_engines(
    path: &Path,
    sources: &mut Sources,
    problems: &mut Problems,
) -> Option<(Vec<EngineDecl>, Resources)> {
    let text = read_file(path, "chain or engines file", problems)?;
    let file = sources.add(path, &text);
    let root = yaml::parse(file, &text, problems)?;
    if root.get("steps").is_none() {
        let read = chain::read_engines_file(&root, folder_of(path), problems);
        check_engine_names(&read.engines, sources, problems);
        return Some((read.engines, read.resources));
    }
    let spec = chain::read(&root, folder_of(path), problems)?;
    check_engine_names(&spec.engines, sources, problems);
    Some((spec.engines, spec.resources))
}

/// The folder of a file.
fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// Reads a file as text; `what` it is, is for the message.
fn read_file(path: &Path, what: &str, problems: &mut Problems) -> Option<String> {
    let shown = path.display();
    let (reason, help) = match std::fs::read(path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => return Some(text),
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let before = error.as_bytes().get(..at).unwrap_or_default();
                let line = before.iter().filter(|b| **b == b'\n').count() + 1;
                (
                    format!("not valid UTF-8 at line {line} (byte {at})"),
                    "save the file as UTF-8".to_owned(),
                )
            }
        },
        Err(error) => match error.kind() {
            std::io::ErrorKind::NotFound => ("no such file".to_owned(), beside(path, what)),
            std::io::ErrorKind::IsADirectory => (
                "this is a directory".to_owned(),
                format!("give the {what} itself"),
            ),
            std::io::ErrorKind::PermissionDenied => (
                "permission denied".to_owned(),
                "make the file readable for yourself".to_owned(),
            ),
            _ => (
                error.to_string(),
                "see whether the file can be opened at all".to_owned(),
            ),
        },
    };
    problems
        .add_unplaced(Code::File, format!("{shown}: {reason}"))
        .help(help);
    None
}

/// The file that was meant, when one beside the path is named much alike.
fn beside(path: &Path, what: &str) -> String {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut there: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .take(1000)
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|n| n.ends_with(".yaml") || n.ends_with(".yml") || n.ends_with(".json"))
        .collect();
    there.sort_unstable();
    match super::problem::nearest(&name, there.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{}`?", path.with_file_name(near).display()),
        None => format!("give the path of the {what}; it is looked for from the working directory"),
    }
}

fn apply_set(set: &str, vars: &mut [Entry], known: bool, sources: &mut Sources, problems: &mut Problems) {
    let file = sources.add("--set", set);
    let whole = Span {
        file,
        start: 0,
        end: set.len(),
    };
    let Some((key, value)) = set.split_once('=') else {
        problems
            .add(Code::BadSet, whole, "`--set` wants K=V, and here is no `=`")
            .help("for example `--set tone=harsh`");
        return;
    };
    if key.is_empty() {
        problems
            .add(Code::BadSet, whole, "`--set` wants K=V, and here is no K")
            .help("for example `--set tone=harsh`");
        return;
    }
    let Some(entry) = vars.iter().position(|e| e.key.value == key) else {
        if !known {
            return;
        }
        let top = key.split(['.', '[']).next().unwrap_or(key);
        let help = if top != key && vars.iter().any(|e| e.key.value == top) {
            Some(format!(
                "only whole variables can be set: `--set {top}={{...}}` takes a YAML mapping"
            ))
        } else if vars.is_empty() {
            Some(format!(
                "the chain has no `vars`; declare it there: `vars: {{{key}: ...}}`"
            ))
        } else {
            suggest(key, vars.iter().map(|e| e.key.value.as_str()))
        };
        problems
            .add(
                Code::BadSet,
                Span {
                    end: key.len(),
                    ..whole
                },
                format!("`{key}` is not in the chain's `vars`"),
            )
            .maybe_help(help);
        return;
    };
    let mut own = Problems::default();
    let parsed = yaml::parse(file, value, &mut own);
    match (parsed, vars.get_mut(entry)) {
        (Some(node), Some(entry)) if !own.has_errors() => entry.value = node,
        _ => {
            let text = Span {
                start: key.len() + 1,
                ..whole
            };
            let reason = own
                .into_sorted()
                .into_iter()
                .next()
                .map_or_else(|| "not YAML".to_owned(), |p| p.message);
            problems
                .add(
                    Code::BadSet,
                    text,
                    format!("the value of `{key}` is not YAML: {reason}"),
                )
                .help("put quotes around text with special characters");
        }
    }
}

fn check_engine_names(engines: &[EngineDecl], sources: &Sources, problems: &mut Problems) {
    let mut seen: HashMap<&str, Span> = HashMap::new();
    for engine in engines {
        let (name, span) = (engine.name.value.as_str(), engine.name.span);
        match seen.get(name) {
            // A key that stands twice in one mapping is reported by the YAML reader and comes here once.
            Some(first) => {
                let place = sources.line(*first, span);
                problems
                    .add(
                        Code::EngineClash,
                        span,
                        format!("the engine `{name}` is declared twice"),
                    )
                    .help(format!(
                        "the other one is on {place}; rename or remove one of them"
                    ));
            }
            None => {
                seen.insert(name, span);
            }
        }
    }
}
