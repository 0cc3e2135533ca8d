//! Applies: jq programs and closures on the CPU pool, Python functions and commands in processes of their own.

mod hand;
mod life;
mod pool;
mod process;
mod wire;
mod worker;

pub(super) use pool::Pool;
pub use pool::Workers;

use crate::expr::Scope;
use crate::plan::{ApplyPlan, Node};
use crate::row::{ErrorKind, Record, RowError};

/// The workers of an Apply cannot be started: bad usage, nothing was run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{node}`: {message}")]
pub struct WorkerError {
    /// The Apply's id.
    pub node: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// Runs an Apply that needs nobody else, and checks what it emits.
pub(super) fn apply(node: &Node, apply: &ApplyPlan, scope: &Scope<'_>) -> Result<Vec<Record>, RowError> {
    let emitted = match apply {
        ApplyPlan::Jq(program) => {
            let mut records = Vec::new();
            program.run(scope, &mut records).map(|()| records)
        }
        ApplyPlan::Closure(closure) => {
            let run = std::panic::AssertUnwindSafe(|| (closure.run)(scope.item));
            std::panic::catch_unwind(run)
                .unwrap_or_else(|_| Err(format!("the closure `{}` panicked on this row", closure.name)))
        }
        ApplyPlan::Process(_) => Err("its workers were not started".to_owned()),
    };
    checked(node, emitted)
}

/// Checks what an Apply emitted against its output model; a message becomes the row's error.
pub(super) fn checked(node: &Node, emitted: Result<Vec<Record>, String>) -> Result<Vec<Record>, RowError> {
    let records = emitted.map_err(|message| RowError::new(ErrorKind::Apply, message))?;
    if let Some(model) = &node.model {
        for record in &records {
            let checked = model.validate(&record.to_json());
            checked.map_err(|message| RowError::new(ErrorKind::InvalidOutput, message))?;
        }
    }
    Ok(records)
}
