//! When failing rows stop a run.

use super::RunError;
use super::counts::Counts;
use crate::event::counted;
use crate::node::output::RowFate;

/// Rows that must all fail before a run without `--max-errors` gives up.
const HOPELESS: u64 = 100;

/// How many failed rows a run bears.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ErrorLimit {
    /// Stops when the first 100 rows all fail.
    Hopeless,
    /// Stops at the first failed row (`--fail-fast`).
    FailFast,
    /// Stops when more rows failed (`--max-errors N`).
    Rows(u64),
    /// Stops when a larger part failed, looked at from the 100th row on (`--max-errors P%`).
    Percent(f64),
}

impl ErrorLimit {
    /// An error when the committed rows are over the limit; `last` are the latest of them.
    pub(super) fn check(self, counts: &Counts, last: &[(RowFate, u64)]) -> Result<(), RunError> {
        let Counts {
            rows_in,
            rows_failed,
            leading_failed,
            ..
        } = *counts;
        let message = match self {
            Self::Hopeless if leading_failed >= HOPELESS => format!(
                "the first {HOPELESS} rows all failed; look into errors/, or allow it with --max-errors"
            ),
            Self::FailFast if rows_failed > 0 => "a row failed and --fail-fast is set; see errors/".into(),
            Self::Rows(limit) if rows_failed > limit => {
                format!(
                    "{} failed, more than --max-errors {limit}; see errors/",
                    counted(rows_failed, "row")
                )
            }
            Self::Percent(limit) => match over(limit / 100.0, rows_in, rows_failed, last) {
                None => return Ok(()),
                Some((failed, rows)) => format!(
                    "{failed} of the first {rows} rows failed, more than --max-errors {limit}%; see errors/"
                ),
            },
            _ => return Ok(()),
        };
        Err(RunError::TooManyErrors { message })
    }
}

/// The first place among the latest rows where more than a part of all rows before it failed: as if each
/// row were looked at, so that the size of a chunk does not decide.
fn over(part: f64, rows_in: u64, rows_failed: u64, last: &[(RowFate, u64)]) -> Option<(u64, u64)> {
    let sum = |all: bool| {
        last.iter()
            .filter(|(fate, _)| all || fate.is_failure())
            .map(|(_, n)| n)
            .sum::<u64>()
    };
    // At the start of a run there are no latest rows: all before count as a whole.
    if last.is_empty() && rows_in >= HOPELESS && rows_failed as f64 > part * rows_in as f64 {
        return Some((rows_failed, rows_in));
    }
    let (mut rows, mut failed) = (
        rows_in.saturating_sub(sum(true)),
        rows_failed.saturating_sub(sum(false)),
    );
    for (fate, n) in last {
        // The part is largest after the last of a run of failed rows, or at the row from which it counts.
        let first = HOPELESS.saturating_sub(rows).clamp(1, *n);
        for step in [first, *n - first] {
            rows += step;
            failed += if fate.is_failure() { step } else { 0 };
            if rows >= HOPELESS && failed as f64 > part * rows as f64 {
                return Some((failed, rows));
            }
        }
    }
    None
}
