//! What an Apply runs: a jq program, a closure, a Python function, a command.

use std::time::Duration;

use super::fields::{Fields, text};
use super::problem::{Code, Problems};
use super::yaml::{Node, Text, Yaml};

/// What an Apply can run.
pub(crate) const KINDS: [&str; 4] = ["jq", "python", "command", "closure"];
/// That, and how.
pub(crate) const KEYS: &[&str] = &[
    "jq",
    "python",
    "command",
    "closure",
    "workers",
    "timeout",
    "interpreter",
];

/// Workers beyond this are a typing mistake.
const MAX_WORKERS: i64 = 1024;

/// What an Apply runs.
#[derive(Clone, Debug)]
pub enum ApplyKind {
    /// A jq program.
    Jq(Text),
    /// The name of a registered Rust closure.
    Closure(Text),
    /// A Python function.
    Python {
        /// `file.py:function`, the file relative to the chain file.
        function: Text,
        /// The interpreter; none takes the active virtual environment's, else `python3`.
        interpreter: Option<Text>,
        /// Its workers.
        process: ProcessSpec,
    },
    /// A program that answers JSON lines: its name and arguments, at least the name.
    Command {
        /// The program, and its arguments.
        program: Text,
        /// Its arguments.
        arguments: Vec<String>,
        /// Its workers.
        process: ProcessSpec,
    },
}

/// What Python functions and commands have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessSpec {
    /// Long-lived processes. Default 1.
    pub workers: usize,
    /// How long one row may take. Default 300 s.
    pub timeout: Duration,
}

impl Default for ProcessSpec {
    fn default() -> Self {
        Self {
            workers: 1,
            timeout: Duration::from_secs(300),
        }
    }
}

/// Reads the value of `apply`.
pub(super) fn read_apply_kind(node: &Node, problems: &mut Problems) -> Option<ApplyKind> {
    let fields = Fields::of(node, "`apply`", KEYS, problems)?;
    let mut kinds = KINDS.into_iter().filter(|kind| fields.has(kind));
    let Some(kind) = kinds.next() else {
        // A key that was misspelt has been reported.
        if matches!(&node.kind, Yaml::Map(entries) if entries.iter().any(|e| !KEYS.contains(&e.key.value.as_str())))
        {
            return None;
        }
        problems
            .add(Code::MissingKey, fields.span(), "`apply` says nothing to run")
            .help("write `apply: {jq: '...'}`, `{python: \"file.py:function\"}` or `{command: [program, argument]}`");
        return None;
    };
    if let Some(second) = kinds.next() {
        let message = format!("`apply` is one of `{kind}` and `{second}`");
        problems
            .add(Code::BadValue, node.span, message)
            .help("keep one of them, or write two Applies, one after the other");
        return None;
    }
    let belongs: &[(&str, &str)] = match kind {
        "python" => &[],
        "command" => &[("interpreter", "`python:`")],
        _ => &[
            ("interpreter", "`python:`"),
            ("workers", "`python:` and `command:`"),
            ("timeout", "`python:` and `command:`"),
        ],
    };
    for (key, owner) in belongs {
        if let Some(entry) = node.get(key) {
            let message = format!("`{key}` belongs to {owner}");
            problems
                .add(Code::UnknownKey, entry.key.span, message)
                .help("remove it");
        }
    }
    match kind {
        "jq" => fields.text("jq", problems).map(ApplyKind::Jq),
        "closure" => fields.text("closure", problems).map(ApplyKind::Closure),
        "python" => {
            let process = read_process(&fields, problems);
            let interpreter = fields.text("interpreter", problems);
            let function = fields.text("python", problems)?;
            Some(ApplyKind::Python {
                function: check_function(function, problems)?,
                interpreter,
                process,
            })
        }
        _ => {
            let process = read_process(&fields, problems);
            let listed = fields.list("command", problems)?;
            let mut words: Vec<Text> = listed
                .iter()
                .filter_map(|n| text(n, "command", problems))
                .collect();
            if listed.is_empty() || words.len() < listed.len() || words.iter().any(|w| w.value.contains('\0'))
            {
                if listed.len() == words.len() {
                    let span = fields.get("command").map_or(node.span, |n| n.span);
                    problems
                        .add(Code::BadValue, span, "`command` must name a program")
                        .help("write the program and its arguments as a list: `command: [./tag.sh, --fast]`");
                }
                return None;
            }
            let program = words.remove(0);
            Some(ApplyKind::Command {
                program,
                arguments: words.into_iter().map(|word| word.value).collect(),
                process,
            })
        }
    }
}

fn read_process(fields: &Fields<'_>, problems: &mut Problems) -> ProcessSpec {
    let default = ProcessSpec::default();
    let workers = fields.int("workers", 1, MAX_WORKERS, problems);
    ProcessSpec {
        workers: workers
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(default.workers),
        timeout: fields.duration("timeout", problems).unwrap_or(default.timeout),
    }
}

/// Checks that a text reads `file.py:function`.
fn check_function(function: Text, problems: &mut Problems) -> Option<Text> {
    let good = function.value.rsplit_once(':').is_some_and(|(file, name)| {
        let mut letters = name.chars();
        let first = letters.next().is_some_and(|c| c.is_alphabetic() || c == '_');
        file.len() > 3 && file.ends_with(".py") && first && letters.all(|c| c.is_alphanumeric() || c == '_')
    });
    if good {
        return Some(function);
    }
    problems
        .add(
            Code::BadValue,
            function.span,
            "`python` must be a file and a function in it",
        )
        .help("write `python: \"file.py:function\"`, the file relative to the chain file");
    None
}
