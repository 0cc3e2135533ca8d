//! Groups, branches and what their joins leave.

use super::{Builder, guarded};
use crate::plan::check::{Known, Place};
use crate::plan::shape::Shape;
use crate::plan::{ApplyPlan, Branch, BranchIx, Group, Item, Line, Node, NodeKind};
use crate::spec::{ApplyKind, BranchSpec, Code, GroupSpec, NodeSpec, Text};

impl Builder<'_> {
    pub(super) fn group(&mut self, spec: &GroupSpec, place: &mut Place, parent: Option<BranchIx>) -> Group {
        let owner = spec.branches.first().map_or("", |b| b.id.value.as_str());
        let when = self.when(spec.when.as_ref(), owner, place);
        let fork = guarded(place, when.as_ref());
        let mut group = Group {
            when,
            branches: Vec::new(),
        };
        for branch in &spec.branches {
            let ix = self.branch(branch, &fork, spec.when.is_some(), place, parent);
            group.branches.push(ix);
        }
        group
    }

    /// Compiles a branch that starts at `fork`, and adds its alias to what is visible after the group.
    fn branch(
        &mut self,
        spec: &BranchSpec,
        fork: &Place,
        group_skips: bool,
        after: &mut Place,
        parent: Option<BranchIx>,
    ) -> BranchIx {
        self.branches.push(None);
        let ix = BranchIx(self.branches.len() - 1);
        let when = self.when(spec.when.as_ref(), &spec.id.value, fork);
        let mut inner = guarded(fork, when.as_ref());
        inner.own = Shape::none();
        let line = self.line(&spec.steps, &mut inner, Some(ix));
        let mut nullable = None;
        let join = spec
            .join
            .as_ref()
            .and_then(|alias| self.checker.names.ix(&alias.value));
        if let (Some(alias), Some(join)) = (&spec.join, join) {
            if !spec.collect {
                let skips = spec.when.is_some() || group_skips;
                nullable = skips
                    .then(|| "a `when` may skip its branch".to_owned())
                    .or_else(|| {
                        self.leaves_nothing(&line)
                            .filter(|_| line.0.len() == spec.steps.len())
                    });
                self.check_rows(spec, alias);
            }
            let known = Known {
                shape: inner.own.clone(),
                list: spec.collect,
                text: false,
                nullable: nullable.clone(),
            };
            self.checker.known.insert(join, known);
            after.visible.push((alias.value.clone(), join));
        }
        let branch = Branch {
            id: spec.id.value.clone(),
            when,
            join,
            collect: spec.collect,
            line,
            parent,
            leaves: inner.own.declared().cloned(),
            nullable,
        };
        if let Some(slot) = self.branches.get_mut(ix.0) {
            *slot = Some(branch);
        }
        ix
    }

    /// The nodes on a line that compiled, in order.
    fn on<'s>(&'s self, line: &'s Line) -> impl Iterator<Item = &'s Node> {
        line.0.iter().filter_map(|item| match item {
            Item::Node(ix) => self.nodes.get(ix.0)?.as_ref(),
            Item::Group(_) => None,
        })
    }

    /// Why a joined branch can leave nothing, when it can.
    fn leaves_nothing(&self, line: &Line) -> Option<String> {
        let mut emits = false;
        for node in self.on(line) {
            let filters = match &node.kind {
                NodeKind::Step(_) => false,
                NodeKind::Apply(ApplyPlan::Jq(program)) => program.outputs().none,
                NodeKind::Apply(_) => true,
            };
            if filters {
                return Some(format!("`{}` may filter the row out", node.id));
            }
            emits |= node.nullable.is_none();
        }
        // Nodes that did not compile have been reported; nothing is known about them.
        let all_known = line.0.iter().all(|item| match item {
            Item::Node(ix) => self.nodes.get(ix.0).is_some_and(Option::is_some),
            Item::Group(_) => true,
        });
        (!emits && all_known && !line.0.is_empty())
            .then(|| "every node of its branch may be skipped".to_owned())
    }

    /// Warns of a jq program that plainly makes several rows in a branch that is joined as one.
    fn check_rows(&mut self, spec: &BranchSpec, alias: &Text) {
        for step in &spec.steps {
            let NodeSpec::Apply(apply) = step else { continue };
            let ApplyKind::Jq(text) = &apply.kind else {
                continue;
            };
            let id = apply.head.id.value.as_str();
            let made = self
                .checker
                .names
                .ix(id)
                .and_then(|name| self.nodes.iter().flatten().find(|node| node.name == name));
            let many = made.is_some_and(|node| match &node.kind {
                NodeKind::Apply(ApplyPlan::Jq(program)) => program.outputs().many,
                _ => false,
            });
            if many {
                let (branch, alias) = (spec.id.value.as_str(), alias.value.as_str());
                self.problems
                    .add(
                        Code::JoinCardinality,
                        text.span,
                        format!(
                            "`{id}` can emit more than one row, and branch `{branch}` is joined as one (`join: {alias}`): such rows fail"
                        ),
                    )
                    .help(format!(
                        "add `collect: true` to the branch, which makes `{alias}` the list of its rows, or emit one row: `[...]` or `first(...)`"
                    ));
            }
        }
    }
}
