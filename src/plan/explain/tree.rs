//! The DAG as a tree of text, drawn like `cargo tree`.

use crate::expr::model::Model;
use crate::plan::{ApplyPlan, Branch, Group, Item, Line, Node, NodeKind, Plan, ProcessPlan, Program};
use crate::spec::OnError;

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
    let mut drawing = Drawing {
        plan,
        options,
        out: format!("{}\n", plan.name),
    };
    if let Some(model) = &plan.input_model {
        drawing.out.push_str(&format!("input {}\n", fields(model)));
    }
    drawing.line(&plan.main, "");
    if !plan.engines.is_empty() {
        drawing.out.push_str("\nengines\n");
        let last = plan.engines.len() - 1;
        for (at, engine) in plan.engines.iter().enumerate() {
            let text = format!("{}  {} {}", engine.name, engine.backend.as_str(), engine.model);
            drawing.entry("", at == last, "⚙️ ", &text);
        }
    }
    drawing.out
}

struct Drawing<'a> {
    plan: &'a Plan,
    options: TreeOptions,
    out: String,
}

impl Drawing<'_> {
    fn entry(&mut self, prefix: &str, last: bool, icon: &str, text: &str) {
        let corner = match (self.options.ascii, last) {
            (false, true) => "└── ",
            (false, false) => "├── ",
            (true, true) => "`-- ",
            (true, false) => "|-- ",
        };
        self.out.push_str(prefix);
        self.out.push_str(corner);
        if !self.options.no_icons && !self.options.ascii && !icon.is_empty() {
            self.out.push_str(icon);
            self.out.push(' ');
        }
        self.out.push_str(text);
        self.out.push('\n');
    }

    fn line(&mut self, line: &Line, prefix: &str) {
        let end = line.0.len().saturating_sub(1);
        for (at, item) in line.0.iter().enumerate() {
            match item {
                Item::Node(ix) => {
                    if let Some(node) = self.plan.nodes.get(ix.0) {
                        self.node(node, prefix, at == end);
                    }
                }
                Item::Group(group) => self.group(group, prefix, at == end),
            }
        }
    }

    fn node(&mut self, node: &Node, prefix: &str, last: bool) {
        let (icon, what) = match &node.kind {
            NodeKind::Step(step) => {
                let engine = self.plan.engines.get(step.engine.0);
                let mut what = format!("step on {}", engine.map_or("?", |e| e.name.as_str()));
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
            text.push_str(&format!(", when {}", when.source()));
        }
        if !node.yield_output {
            text.push_str(", not written");
        }
        if let Some(model) = &node.model {
            text.push_str(&format!("  -> {}", fields(model)));
        }
        self.entry(prefix, last, node.emoji.as_deref().unwrap_or(icon), &text);
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
        let plural = if branches.len() == 1 { "" } else { "es" };
        let mut text = format!("parallel, {} branch{plural}", branches.len());
        if let Some(when) = &group.when {
            text.push_str(&format!(", when {}", when.source()));
        }
        self.entry(prefix, last, "🔀", &text);
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
            let plural = if hidden == 1 { "" } else { "es" };
            self.entry(&below, true, "", &format!("… {hidden} more branch{plural}"));
        }
    }

    fn branch(&mut self, branch: &Branch, prefix: &str, last: bool) {
        let mut text = format!("branch {}", branch.id);
        if let Some(when) = &branch.when {
            text.push_str(&format!(", when {}", when.source()));
        }
        match branch.join.and_then(|j| self.plan.names.get(j.0)) {
            Some(alias) if branch.collect => text.push_str(&format!(", joined as list {alias}")),
            Some(alias) => text.push_str(&format!(", joined as {alias}")),
            None => text.push_str(", not joined"),
        }
        self.entry(prefix, last, "🌿", &text);
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

/// The fields of a model, as many as fit on a line.
fn fields(model: &Model) -> String {
    let all = model.fields();
    let mut text = all.iter().take(8).copied().collect::<Vec<_>>().join(", ");
    if all.len() > 8 {
        text.push_str(", …");
    }
    format!("{{{text}}}")
}
