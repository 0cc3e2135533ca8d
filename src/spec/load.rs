//! From paths and flags to one spec.

use std::path::{Path, PathBuf};

use super::Span;
use super::chain::{self, ChainSpec};
use super::problem::{Code, Problems, Sources, suggest};
use super::yaml::{self, Entry};

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
        None => read_file(&input.path, problems),
    };
    let root = chain.and_then(|text| {
        let file = sources.add(&input.path, &text);
        yaml::parse(file, &text, problems)
    });
    let mut spec = root.and_then(|root| chain::read(&root, problems));
    for path in &input.engines {
        let Some(text) = read_file(path, problems) else {
            continue;
        };
        let file = sources.add(path, &text);
        if let Some(root) = yaml::parse(file, &text, problems) {
            let engines = chain::read_engines_file(&root, problems);
            if let Some(spec) = &mut spec {
                spec.engines.extend(engines);
            }
        }
    }
    let mut spec = spec?;
    for set in &input.sets {
        apply_set(set, &mut spec.vars, sources, problems);
    }
    check_engine_names(&spec, sources, problems);
    Some(spec)
}

fn read_file(path: &Path, problems: &mut Problems) -> Option<String> {
    match std::fs::read(path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Some(text),
            Err(_) => {
                problems.add_unplaced(Code::File, format!("{}: not valid UTF-8", path.display()));
                None
            }
        },
        Err(error) => {
            let reason = match error.kind() {
                std::io::ErrorKind::NotFound => "no such file".to_owned(),
                _ => error.to_string(),
            };
            problems.add_unplaced(Code::File, format!("{}: {reason}", path.display()));
            None
        }
    }
}

fn apply_set(set: &str, vars: &mut [Entry], sources: &mut Sources, problems: &mut Problems) {
    let file = sources.add("--set", set);
    let whole = Span {
        file,
        start: 0,
        end: set.len(),
    };
    let Some((key, value)) = set.split_once('=') else {
        problems
            .add(Code::BadSet, whole, "`--set` wants K=V")
            .help("for example `--set tone=harsh`");
        return;
    };
    let Some(entry) = vars.iter().position(|e| e.key.value == key) else {
        problems
            .add(
                Code::BadSet,
                Span {
                    end: key.len(),
                    ..whole
                },
                format!("`{key}` is not in the chain's `vars`"),
            )
            .maybe_help(suggest(key, vars.iter().map(|e| e.key.value.as_str())));
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

fn check_engine_names(spec: &ChainSpec, sources: &Sources, problems: &mut Problems) {
    for (at, engine) in spec.engines.iter().enumerate() {
        let mut before = spec.engines.iter().take(at);
        if let Some(first) =
            before.rfind(|e| e.name.value == engine.name.value && e.name.span.file != engine.name.span.file)
        {
            let place = sources
                .get(first.name.span.file)
                .map_or_else(String::new, |s| s.path.display().to_string());
            problems
                .add(
                    Code::EngineClash,
                    engine.name.span,
                    format!("the engine `{}` is declared twice", engine.name.value),
                )
                .help(format!("the other one stands in {place}; rename one of them"));
        }
    }
}
