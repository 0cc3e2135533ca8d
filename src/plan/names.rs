//! The one namespace of a chain: node ids, branch ids and aliases.

use indexmap::IndexMap;

use crate::expr::NameIx;
use crate::spec::{BranchSpec, Code, NodeSpec, Problems, Text};

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
}

/// A declared name.
#[derive(Clone, Debug)]
pub(super) struct Declared {
    pub(super) kind: Kind,
    /// The branch it stands in.
    pub(super) branch: Option<String>,
    /// For nodes: is it a name later?
    pub(super) yields: bool,
}

/// Every name of the chain.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) declared: IndexMap<String, Declared>,
    /// The table that [`NameIx`] points into.
    pub(super) table: Vec<String>,
}

impl Names {
    /// Collects the names of a line and of what is below it.
    pub(super) fn collect(&mut self, line: &[NodeSpec], branch: Option<&str>, problems: &mut Problems) {
        for item in line {
            match item {
                NodeSpec::Step(step) => {
                    let yields = step.head.yield_output;
                    self.declare(&step.head.id, Kind::Step, branch, yields, problems);
                }
                NodeSpec::Apply(apply) => {
                    let yields = apply.head.yield_output;
                    self.declare(&apply.head.id, Kind::Apply, branch, yields, problems);
                }
                NodeSpec::Group(group) => {
                    for one in &group.branches {
                        self.branch(one, branch, problems);
                    }
                }
            }
        }
    }

    fn branch(&mut self, spec: &BranchSpec, outer: Option<&str>, problems: &mut Problems) {
        match &spec.join {
            // Joined under its own id: one name, and it is the alias.
            Some(alias) if alias.value == spec.id.value => {
                self.declare(alias, Kind::Alias, outer, true, problems);
            }
            join => {
                self.declare(&spec.id, Kind::Branch, outer, false, problems);
                if let Some(alias) = join {
                    self.declare(alias, Kind::Alias, outer, true, problems);
                }
            }
        }
        self.collect(&spec.steps, Some(&spec.id.value), problems);
    }

    fn declare(
        &mut self,
        name: &Text,
        kind: Kind,
        branch: Option<&str>,
        yields: bool,
        problems: &mut Problems,
    ) {
        check(name, problems);
        if let Some(first) = self.declared.get(&name.value) {
            let what = match first.kind {
                Kind::Step => "a Step",
                Kind::Apply => "an Apply",
                Kind::Branch => "a branch",
                Kind::Alias => "an alias",
            };
            let place = match &first.branch {
                Some(branch) => format!(" in branch `{branch}`"),
                None => String::new(),
            };
            problems
                .add(
                    Code::DuplicateId,
                    name.span,
                    format!("`{}` already names {what}{place}", name.value),
                )
                .help("node ids, branch ids and aliases are one namespace");
            return;
        }
        if kind != Kind::Branch {
            self.intern(&name.value);
        }
        if kind == Kind::Step {
            self.intern(&reasoning(&name.value));
        }
        self.declared.insert(
            name.value.clone(),
            Declared {
                kind,
                branch: branch.map(str::to_owned),
                yields,
            },
        );
    }

    fn intern(&mut self, name: &str) {
        self.table.push(name.to_owned());
    }

    /// The place of a name in the table.
    pub(super) fn ix(&self, name: &str) -> Option<NameIx> {
        self.table.iter().position(|n| n == name).map(NameIx)
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
        problems
            .add(Code::BadName, name.span, format!("`{value}` is no valid name"))
            .help("use a lowercase letter, then lowercase letters, digits and `_`, at most 64 of them");
    } else if RESERVED.contains(&value) {
        problems.add(
            Code::ReservedName,
            name.span,
            format!("`{value}` is reserved: it means something else in templates or in the output folder"),
        );
    } else if value.ends_with("_reasoning") {
        problems.add(
            Code::ReservedName,
            name.span,
            format!("`{value}` is reserved: names ending in `_reasoning` hold reasoning text"),
        );
    } else if JINJA.contains(&value) || JINJA_MORE.contains(&value) {
        problems.add(
            Code::ReservedName,
            name.span,
            format!("`{value}` is reserved: it is a word of Jinja"),
        );
    }
}
