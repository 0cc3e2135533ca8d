//! The DAG as a tree of text, drawn like `cargo tree`.

use console::{measure_text_width, truncate_str};

use super::switches::{Switch, switches};
use super::types::type_of;
use crate::event::counted;
use crate::plan::{
    ApplyPlan, Branch, EngineIx, Group, Item, Line, Node, NodeIx, NodeKind, Plan, ProcessPlan, Program,
};
use crate::spec::{OnError, Task};

/// How the tree is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeOptions {
    /// Without emoji.
    pub no_icons: bool,
    /// Branches shown of each group; none shows all.
    pub max_branches: Option<usize>,
    /// Drawn with ASCII only, for terminals that are not UTF-8; emoji are left out.
    pub ascii: bool,
    /// Columns to fit into; none for as long as a line gets.
    pub width: Option<usize>,
}

/// Draws a plan: its lines, groups, branches and joins, then its engines.
pub fn tree(plan: &Plan, options: TreeOptions) -> String {
    tree_in_turns(plan, options, &[])
}

/// The same for engines that are loaded set by set (see [`switches`]): a line says where others are loaded.
pub fn tree_in_turns(plan: &Plan, options: TreeOptions, sets: &[Vec<EngineIx>]) -> String {
    let mut drawing = Drawing {
        plan,
        options,
        switches: switches(plan, sets),
        out: format!("{}\n", one_line(&plan.name)),
    };
    if let Some(model) = &plan.input_model {
        let arrow = drawing.arrow();
        drawing.say("", "input", &format!("{arrow} {}", type_of(model.schema())), "");
    }
    drawing.line(&plan.main, "");
    if !plan.engines.is_empty() {
        drawing.out.push_str("\nengines\n");
        let last = plan.engines.len() - 1;
        for (at, engine) in plan.engines.iter().enumerate() {
            let text = format!("{}  {} {}", engine.name, engine.backend.as_str(), engine.model);
            drawing.entry("", at == last, &Entry::new("⚙️ ", text));
        }
    }
    drawing.out
}

/// One line of the tree.
struct Entry<'a> {
    icon: &'a str,
    text: String,
    /// What it leaves, and on a second line how that can be null.
    leaves: String,
    /// Entries of its own come below it.
    goes_on: bool,
}

impl<'a> Entry<'a> {
    fn new(icon: &'a str, text: String) -> Self {
        Self {
            icon,
            text,
            leaves: String::new(),
            goes_on: false,
        }
    }
}

struct Drawing<'a> {
    plan: &'a Plan,
    options: TreeOptions,
    switches: Vec<Switch>,
    out: String,
}

impl Drawing<'_> {
    fn entry(&mut self, prefix: &str, last: bool, entry: &Entry<'_>) {
        let corner = match (self.options.ascii, last) {
            (false, true) => "└── ",
            (false, false) => "├── ",
            (true, true) => "`-- ",
            (true, false) => "|-- ",
        };
        let icon = if self.options.no_icons || self.options.ascii || entry.icon.is_empty() {
            String::new()
        } else {
            format!("{} ", entry.icon)
        };
        let mut below = self.deeper(prefix, last);
        if entry.goes_on {
            below.push(if self.options.ascii { '|' } else { '│' });
        }
        self.say(
            &format!("{prefix}{corner}{icon}"),
            &entry.text,
            &entry.leaves,
            &below,
        );
    }

    /// A line, with its type (and, as a second line, how it can be null) behind it, or below it where the
    /// line would get too long.
    fn say(&mut self, before: &str, text: &str, leaves: &str, below: &str) {
        let width = self.options.width.unwrap_or(usize::MAX);
        let first = format!("{before}{text}");
        let whole = format!("{first}  {}", leaves.replace('\n', " "));
        if leaves.is_empty() || measure_text_width(&whole) <= width {
            let line = if leaves.is_empty() { first } else { whole };
            self.put(&line);
            return;
        }
        self.put(&first);
        for part in leaves.lines() {
            self.put(&format!("{below}    {part}"));
        }
    }

    /// One line, cut where the screen ends.
    fn put(&mut self, line: &str) {
        let line = match self.options.width {
            Some(width) => truncate_str(line, width, if self.options.ascii { "..." } else { "…" }),
            None => line.into(),
        };
        let line = if self.options.ascii {
            line.replace('…', "...")
        } else {
            line.into_owned()
        };
        self.out.push_str(line.trim_end());
        self.out.push('\n');
    }

    fn arrow(&self) -> &'static str {
        if self.options.ascii { "->" } else { "→" }
    }

    fn line(&mut self, line: &Line, prefix: &str) {
        let end = line.0.len().saturating_sub(1);
        for (at, item) in line.0.iter().enumerate() {
            match item {
                Item::Node(ix) => {
                    self.switch(*ix, prefix);
                    if let Some(node) = self.plan.nodes.get(ix.0) {
                        self.node(node, prefix, at == end);
                    }
                }
                Item::Group(group) => self.group(group, prefix, at == end),
            }
        }
    }

    /// Says which engines are loaded before a node, if others are.
    fn switch(&mut self, node: NodeIx, prefix: &str) {
        let Some(switch) = self.switches.iter().find(|switch| switch.before == node) else {
            return;
        };
        let (to, from) = switch.names(self.plan);
        let mark = if self.options.ascii { "|~~ " } else { "├╌╌ " };
        self.put(&format!("{prefix}{mark}switch: {to} in the place of {from}"));
    }

    fn node(&mut self, node: &Node, prefix: &str, last: bool) {
        let (icon, what) = match &node.kind {
            NodeKind::Step(step) => {
                let engine = self.plan.engines.get(step.engine.0);
                let does = match step.task {
                    Task::Generate => "step",
                    Task::Embed => "embed",
                };
                let mut what = format!("{does} on {}", engine.map_or("?", |e| e.name.as_str()));
                if step.on_error == OnError::Null {
                    what.push_str(", null on error");
                }
                ("🤖", what)
            }
            NodeKind::Apply(ApplyPlan::Jq(_)) => ("🔧", "apply jq".to_owned()),
            NodeKind::Apply(ApplyPlan::Closure(c)) => ("🔧", format!("apply closure {}", c.name)),
            NodeKind::Apply(ApplyPlan::Process(process)) => ("🔧", applied(process)),
        };
        let mut text = format!("{}  {what}", node.id);
        if let Some(when) = &node.when {
            text.push_str(&format!(", when {}", one_line(when.source())));
        }
        if !node.yield_output {
            text.push_str(", not written");
        }
        let declared = node.model.as_ref().map(|model| model.schema());
        let known = declared.or(node.inferred.as_ref());
        let mut leaves = known.map_or_else(|| "any".to_owned(), type_of);
        if let Some(why) = &node.nullable {
            leaves.push_str(&format!("\nor null ({why})"));
        }
        let leaves = format!("{} {leaves}", self.arrow());
        let icon = node.emoji.as_deref().unwrap_or(icon);
        self.entry(
            prefix,
            last,
            &Entry {
                leaves,
                ..Entry::new(icon, text)
            },
        );
    }

    fn deeper(&self, prefix: &str, last: bool) -> String {
        let bar = if self.options.ascii { "|   " } else { "│   " };
        format!("{prefix}{}", if last { "    " } else { bar })
    }

    fn group(&mut self, group: &Group, prefix: &str, last: bool) {
        let branches: Vec<&Branch> = group
            .branches
            .iter()
            .filter_map(|ix| self.plan.branches.get(ix.0))
            .collect();
        // A lone branch needs no group around it.
        if let ([branch], None) = (branches.as_slice(), &group.when) {
            self.branch(branch, prefix, last);
            return;
        }
        let mut text = format!("parallel, {}", counted(branches.len() as u64, "branch"));
        if let Some(when) = &group.when {
            text.push_str(&format!(", when {}", one_line(when.source())));
        }
        self.entry(prefix, last, &Entry::new("🔀", text));
        let below = self.deeper(prefix, last);
        let shown = self
            .options
            .max_branches
            .unwrap_or(usize::MAX)
            .min(branches.len());
        let hidden = branches.len() - shown;
        for (at, branch) in branches.iter().take(shown).enumerate() {
            self.branch(branch, &below, hidden == 0 && at + 1 == shown);
        }
        if hidden > 0 {
            let text = format!("… {}", counted(hidden as u64, "more branch"));
            self.entry(&below, true, &Entry::new("", text));
        }
    }

    fn branch(&mut self, branch: &Branch, prefix: &str, last: bool) {
        let mut text = format!("branch {}", branch.id);
        if let Some(when) = &branch.when {
            text.push_str(&format!(", when {}", one_line(when.source())));
        }
        match branch.join.and_then(|j| self.plan.names.get(j.0)) {
            Some(alias) if branch.collect => text.push_str(&format!(", joined as list {alias}")),
            Some(alias) => text.push_str(&format!(", joined as {alias}")),
            None => text.push_str(", not joined"),
        }
        let null = branch
            .nullable
            .as_ref()
            .map_or_else(String::new, |why| format!("or null ({why})"));
        self.entry(
            prefix,
            last,
            &Entry {
                leaves: null,
                goes_on: true,
                ..Entry::new("🌿", text)
            },
        );
        let below = self.deeper(prefix, last);
        self.line(&branch.line, &below);
    }
}

/// `apply python clean.py:main, 4 workers`.
fn applied(process: &ProcessPlan) -> String {
    let mut text = match &process.program {
        Program::Python { source, .. } => format!("apply python {source}"),
        Program::Command { source, .. } => format!("apply command {source}"),
    };
    if process.workers > 1 {
        text.push_str(&format!(", {} workers", process.workers));
    }
    text
}

/// A condition on one line.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
