//! The one namespace of a chain: node ids, branch ids and aliases.

use std::collections::HashMap;

use indexmap::IndexMap;

use crate::expr::NameIx;
use crate::spec::{BranchSpec, Code, NodeSpec, Problems, Sources, Span, Text};

/// Names that mean something in every template or in the output folder.
pub(super) const RESERVED: [&str; 6] = ["chain_input", "row_id", "vars", "item", "flattened", "errors"];

/// Jinja's own words and globals.
pub(super) const JINJA: [&str; 47] = [
    "true",
    "false",
    "none",
    "and",
    "or",
    "not",
    "in",
    "is",
    "if",
    "elif",
    "else",
    "endif",
    "for",
    "endfor",
    "set",
    "endset",
    "block",
    "endblock",
    "extends",
    "include",
    "import",
    "from",
    "macro",
    "endmacro",
    "call",
    "endcall",
    "filter",
    "endfilter",
    "with",
    "endwith",
    "without",
    "autoescape",
    "endautoescape",
    "raw",
    "endraw",
    "do",
    "break",
    "continue",
    "loop",
    "self",
    "super",
    "caller",
    "varargs",
    "kwargs",
    "range",
    "dict",
    "namespace",
];

/// More of Jinja's globals, which minijinja does not have (yet).
pub(super) const JINJA_MORE: [&str; 7] = [
    "debug",
    "cycler",
    "joiner",
    "lipsum",
    "recursive",
    "context",
    "required",
];

/// What a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Step,
    Apply,
    Branch,
    Alias,
    /// Of an item that could not be read: there, but nothing more is known.
    Broken,
}

/// A declared name.
#[derive(Clone, Debug)]
pub(super) struct Declared {
    pub(super) kind: Kind,
    /// The branch it stands in.
    pub(super) branch: Option<String>,
    /// For nodes: is it a name later?
    pub(super) yields: bool,
    /// For branches: what it is joined under.
    pub(super) join: Option<String>,
    /// Where it is declared.
    pub(super) span: Span,
}

/// Every name of the chain.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) declared: IndexMap<String, Declared>,
    /// The table that [`NameIx`] points into.
    pub(super) table: Vec<String>,
    /// The way back from a name to its place in the table.
    places: HashMap<String, NameIx>,
}

impl Names {
    /// Collects the names of a line and of what is below it.
    pub(super) fn collect(
        &mut self,
        line: &[NodeSpec],
        branch: Option<&str>,
        sources: &Sources,
        problems: &mut Problems,
    ) {
        let mut collector = Collector {
            names: self,
            sources,
            problems,
        };
        collector.line(line, branch);
    }

    fn intern(&mut self, name: &str) {
        self.places.insert(name.to_owned(), NameIx(self.table.len()));
        self.table.push(name.to_owned());
    }

    /// The place of a name in the table.
    pub(super) fn ix(&self, name: &str) -> Option<NameIx> {
        self.places.get(name).copied()
    }
}

struct Collector<'a> {
    names: &'a mut Names,
    sources: &'a Sources,
    problems: &'a mut Problems,
}

impl Collector<'_> {
    fn line(&mut self, line: &[NodeSpec], branch: Option<&str>) {
        for item in line {
            match item {
                NodeSpec::Step(step) => {
                    self.declare(&step.head.id, Kind::Step, branch, step.head.yield_output, None);
                }
                NodeSpec::Apply(apply) => {
                    self.declare(&apply.head.id, Kind::Apply, branch, apply.head.yield_output, None);
                }
                NodeSpec::Group(group) => {
                    for one in &group.branches {
                        self.branch(one, branch);
                    }
                    self.broken(&group.broken, branch);
                }
                NodeSpec::Broken(names) => self.broken(names, branch),
            }
        }
    }

    fn broken(&mut self, names: &[Text], branch: Option<&str>) {
        for name in names {
            self.declare(name, Kind::Broken, branch, true, None);
        }
    }

    fn branch(&mut self, spec: &BranchSpec, outer: Option<&str>) {
        match &spec.join {
            // Joined under its own id: one name, and it is the alias.
            Some(alias) if alias.value == spec.id.value => {
                self.declare(alias, Kind::Alias, outer, true, None);
            }
            join => {
                let joined = join.as_ref().map(|alias| alias.value.clone());
                self.declare(&spec.id, Kind::Branch, outer, false, joined);
                if let Some(alias) = join {
                    self.declare(alias, Kind::Alias, outer, true, None);
                }
            }
        }
        self.line(&spec.steps, Some(&spec.id.value));
    }

    fn declare(&mut self, name: &Text, kind: Kind, branch: Option<&str>, yields: bool, join: Option<String>) {
        check(name, self.problems);
        if let Some(first) = self.names.declared.get(&name.value) {
            let what = match first.kind {
                Kind::Step => "a Step",
                Kind::Apply => "an Apply",
                Kind::Branch => "a branch",
                Kind::Alias => "an alias (`join`)",
                Kind::Broken => "something",
            };
            let place = match &first.branch {
                Some(branch) => format!(" in branch `{branch}`"),
                None => String::new(),
            };
            let line = self.sources.line(first.span, name.span);
            let help = match (first.kind, kind) {
                (Kind::Alias, Kind::Step | Kind::Apply) => format!(
                    "rename one of them; a branch can be joined under its own id: `join: {}`",
                    branch.unwrap_or("NAME")
                ),
                _ => "rename one of them; node ids, branch ids and aliases are one namespace".to_owned(),
            };
            self.problems
                .add(
                    Code::DuplicateId,
                    name.span,
                    format!("`{}` already names {what}{place}, on {line}", name.value),
                )
                .help(help);
            return;
        }
        if kind != Kind::Branch {
            self.names.intern(&name.value);
        }
        if kind == Kind::Step {
            self.names.intern(&reasoning(&name.value));
        }
        self.names.declared.insert(
            name.value.clone(),
            Declared {
                kind,
                branch: branch.map(str::to_owned),
                yields,
                join,
                span: name.span,
            },
        );
    }
}

/// The name of a Step's reasoning text.
pub(super) fn reasoning(id: &str) -> String {
    format!("{id}_reasoning")
}

fn check(name: &Text, problems: &mut Problems) {
    let value = name.value.as_str();
    let good = value.starts_with(|c: char| c.is_ascii_lowercase())
        && value
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !good || value.len() > 64 {
        let rule = "a lowercase letter, then lowercase letters, digits and `_`, at most 64 of them";
        problems
            .add(Code::BadName, name.span, format!("`{value}` is no valid name"))
            .help(match valid(value) {
                Some(name) => format!("write `{name}`; a name is {rule}"),
                None => format!("a name is {rule}"),
            });
        return;
    }
    let why = if RESERVED.contains(&value) {
        "it means something else in templates or in the output folder"
    } else if value.ends_with("_reasoning") {
        "names ending in `_reasoning` hold an engine's reasoning text"
    } else if JINJA.contains(&value) || JINJA_MORE.contains(&value) {
        "it is a word of Jinja, the language of templates"
    } else {
        return;
    };
    let other = match value.strip_suffix("_reasoning") {
        Some(rest) => format!("{rest}_thoughts"),
        None => format!("{value}_1"),
    };
    problems
        .add(
            Code::ReservedName,
            name.span,
            format!("`{value}` is reserved: {why}"),
        )
        .help(format!("choose another name, for example `{other}`"));
}

/// The valid name that comes nearest to an invalid one.
fn valid(value: &str) -> Option<String> {
    let name: String = value
        .chars()
        .map(|c| match c.to_ascii_lowercase() {
            c if c.is_ascii_lowercase() || c.is_ascii_digit() => c,
            _ => '_',
        })
        .skip_while(|c| !c.is_ascii_lowercase())
        .take(64)
        .collect();
    let name = name.trim_end_matches('_');
    (name.len() > 1 && value.is_ascii()).then(|| name.to_owned())
}
