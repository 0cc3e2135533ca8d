//! What a finished run left, read again.
//!
//! Nothing here runs a chain, asks an engine or writes: `Outputs` is an OUT as it lies on the disk, and its
//! lines can be read in flat memory, whatever their format. `diff` compares two of them.

mod diff;
mod equal;
mod error;
mod outputs;
mod shards;
mod verify;

pub use diff::{
    Changed, Diff, Failure, FailureDiff, FieldDiff, FieldPair, FolderDiff, InputDiff, Made, Pair, Sample,
    SampleRow, Side, TokenDiff, Which, diff,
};
pub use error::AuditError;
pub use outputs::{Chain, Options, Outputs, RowTotals, Tokens};
pub use shards::{Line, Lines};
pub use verify::{Problem, ProblemKind, Verdict, verify};
