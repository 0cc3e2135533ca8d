//! Branches: the same row goes down each, and what joined ones leave comes back as an alias.

use crate::engine::Stop;
use crate::plan::{Branch, BranchIx, Group};
use crate::row::{ErrorKind, Named, RowError, RowId};

use super::memory::News;
use super::output::{Entry, Output};
use super::walk::{Ends, Failure, State, Walker, side_by_side};

impl Walker {
    /// Runs the branches of a group; a failure is the row's.
    pub(super) async fn group(
        &self,
        group: &Group,
        state: &mut State,
        out: &mut Output,
        aside: &mut Vec<Failure>,
    ) -> Result<Option<Failure>, Stop> {
        let runs = match self.holds(group.when.as_ref(), state) {
            Ok(runs) => runs,
            Err(error) => {
                let Some(ix) = group.branches.first() else {
                    return Ok(None);
                };
                out.entry(ix.0, Entry::GroupFailed);
                let first = self.plan.branches.get(ix.0);
                return Ok(first.map(|branch| self.branch_failure(branch, state.id.clone(), error)));
            }
        };
        let mut failure = None;
        let here = &*state;
        let walks = group.branches.iter().map(|ix| async move {
            let mut out = self.output();
            let ends = self.branch(*ix, runs, here, &mut out).await?;
            Ok::<_, Stop>((*ix, ends, out))
        });
        let mut joined = Vec::new();
        for (ix, ends, its) in side_by_side(walks).await? {
            out.append(its);
            let Some(branch) = self.plan.branches.get(ix.0) else {
                continue;
            };
            let counts = out.tally.branches.get_mut(ix.0);
            aside.extend(ends.aside);
            let failed = match branch.join {
                None => {
                    let any = !ends.failed.is_empty();
                    aside.extend(ends.failed.into_iter().map(|mut failure| {
                        failure.branch.get_or_insert_with(|| branch.id.clone());
                        failure
                    }));
                    any
                }
                Some(name) => match self.join(branch, state, ends.rows, ends.failed) {
                    Ok(value) => {
                        joined.push((name, value));
                        false
                    }
                    Err(its) => {
                        failure.get_or_insert(*its);
                        true
                    }
                },
            };
            if let Some(counts) = counts {
                counts.failed += u64::from(failed);
            }
        }
        for (name, value) in joined {
            if let Some(slot) = state.names.get_mut(name.0) {
                *slot = value;
            }
        }
        Ok(failure)
    }

    /// Leads a row along a branch.
    async fn branch(
        &self,
        ix: BranchIx,
        group_runs: bool,
        at: &State,
        out: &mut Output,
    ) -> Result<Ends, Stop> {
        let Some(branch) = self.plan.branches.get(ix.0) else {
            return Ok(Ends::default());
        };
        let runs = if group_runs {
            self.holds(branch.when.as_ref(), at)
        } else {
            Ok(false)
        };
        let entry = match runs {
            Ok(true) => Entry::Entered,
            Ok(false) => Entry::Skipped,
            Err(_) => Entry::Failed,
        };
        out.entry(ix.0, entry);
        let skipped = runs == Ok(false);
        if self.one_by_one && at.is_news(News::Entered(ix.0, skipped)) {
            self.live.entered(ix.0, skipped);
        }
        match runs {
            Ok(true) => {
                let state = State {
                    emitted: false,
                    ..at.clone()
                };
                self.line(&branch.line.0, state, out).await
            }
            Ok(false) => Ok(Ends::default()),
            Err(error) => {
                let failed = vec![self.branch_failure(branch, at.id.clone(), error)];
                Ok(Ends {
                    failed,
                    ..Ends::default()
                })
            }
        }
    }

    /// What a joined branch leaves on the line it joins.
    pub(super) fn join(
        &self,
        branch: &Branch,
        state: &State,
        rows: Vec<State>,
        mut failed: Vec<Failure>,
    ) -> Result<Named, Box<Failure>> {
        failed.sort_by(|a, b| (&a.row_id, a.order).cmp(&(&b.row_id, b.order)));
        if let Some(first) = failed.into_iter().next() {
            let child = first.child.unwrap_or_else(|| first.row_id.clone());
            let child = Some(child).filter(|child| *child != state.id);
            return Err(Box::new(Failure {
                row_id: state.id.clone(),
                child,
                ..first
            }));
        }
        let count = rows.len();
        let mut items = rows.into_iter().filter(|row| row.emitted).map(|row| row.item);
        if branch.collect {
            return Ok(Named::List(items.collect()));
        }
        if count > 1 {
            let message = format!(
                "branch `{}` left {count} rows where one is joined; add `collect: true` to join their list",
                branch.id
            );
            let error = RowError::new(ErrorKind::JoinCardinality, message);
            return Err(Box::new(self.branch_failure(branch, state.id.clone(), error)));
        }
        Ok(items.next().map_or(Named::Null, Named::Record))
    }

    fn branch_failure(&self, branch: &Branch, row_id: RowId, error: RowError) -> Failure {
        let order = self.plan.first_node(&branch.line);
        Failure {
            row_id,
            order,
            node: branch.id.clone(),
            child: None,
            branch: None,
            error,
        }
    }
}
