//! Failpoints: named places at which a test makes the process die, or a file operation fail. Without the feature
//! `failpoints`, which only tests have, there is nothing here.
//!
//! `CHAINETTE_FAILPOINT=<name>[:<nth>]=<action>` does something at the nth (default first) hit of a place:
//! `kill` (as `kill -9`), `term` (SIGTERM to itself), `error`, `enospc` (the operation fails), `pause:<ms>`, or
//! `wait:<file>` (until that file is there; `<file>.here` appears meanwhile); several are separated by `;`.
//! `CHAINETTE_FAILPOINT_LOG=<file>` lists the places that were hit, a line each. `CHAINETTE_CHECKPOINT_EVERY=<ms>` makes
//! checkpoints more often. `CHAINETTE_SEGMENT_BYTES=<n>` makes the ledger's segments smaller.
//! `CHAINETTE_SETS=a,b;c` lets only engines `a` and `b`, or `c`, be loaded at a time; `CHAINETTE_SPILL=<n>` gives rows that
//! wait for one of them so many bytes of disk, `CHAINETTE_PATIENCE=<ms>` lets them wait for a stream so long.
//! `CHAINETTE_CLOCK=<±seconds>@<nth>[,…]` steps the wall clock from its nth reading on.

use std::fmt::Display;
use std::io;
use std::time::Duration;

#[cfg(feature = "failpoints")]
mod armed;
#[cfg(feature = "failpoints")]
pub(crate) use armed::clock;

/// Every place, by room, in the order of a run. `<file>.…` are the steps in which a JSON file is replaced.
#[cfg(feature = "failpoints")]
pub const POINTS: &[&str] = &[
    "lock.taken",
    "outdir.forgetting",
    "run.written",
    "run.synced",
    "run.renamed",
    "run.dir_synced",
    "graph.written",
    "graph.synced",
    "graph.renamed",
    "graph.dir_synced",
    "metadata.written",
    "metadata.synced",
    "metadata.renamed",
    "metadata.dir_synced",
    "shard.removing",
    "shard.unnamed",
    "shard.reopened",
    "shard.created",
    "shard.appended",
    "shard.full",
    "spool.reopened",
    "spool.created",
    "spool.appended",
    "spool.full",
    "spool.decided",
    "spool.converting",
    "spool.converted",
    "spool.taken_over",
    "engine.awaited",
    "parking.parked",
    "spill.created",
    "spill.written",
    "spill.read",
    "stage.switched",
    "reuse.written",
    "reuse.synced",
    "reuse.renamed",
    "reuse.dir_synced",
    "ledger.opened",
    "ledger.written",
    "ledger.aliased",
    "ledger.voided",
    "ledger.synced",
    "ledger.full_synced",
    "ledger.segment_created",
    "seal.begun",
    "seal.written",
    "seal.renamed",
    "seal.removed",
    "commit.begun",
    "commit.appended",
    "commit.outcomes_written",
    "commit.limit_checked",
    "commit.finishing",
    "commit.finished",
    "sync.begun",
    "sync.open_synced",
    "sync.closed_synced",
    "sync.shard_synced",
    "sync.shard_renamed",
    "sync.dirs_synced",
    "sync.outcomes_synced",
    "checkpoint.written",
    "checkpoint.synced",
    "checkpoint.renamed",
    "checkpoint.dir_synced",
    "spent.removing",
    "spent.removed",
    "session.ended",
    "swap.written",
    "swap.synced",
    "swap.renamed",
    "swap.dir_synced",
    "swap.taken_out",
    "swap.put_in",
    "swap.lines_moved",
    "swap.private_moved",
    "swap.file_moved",
    "swap.durable",
    "swap.unmarked",
];

/// A place at which a test may let the process die, or this fail.
///
/// # Errors
/// What the test asks for; without the feature none.
#[cfg(feature = "failpoints")]
pub(crate) fn hit(place: impl Display) -> io::Result<()> {
    armed::hit(&place)
}

/// A place at which nothing happens.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(crate) fn hit(_place: impl Display) -> io::Result<()> {
    Ok(())
}

/// How many bytes a segment of the ledger holds that usually holds `usual`; a test may want fewer.
pub(crate) fn segment_bytes(usual: u64) -> u64 {
    #[cfg(feature = "failpoints")]
    return armed::segment_bytes().unwrap_or(usual);
    #[cfg(not(feature = "failpoints"))]
    usual
}

/// Bytes of disk for rows that wait for an engine, usually `usual`; a test may want fewer.
pub(crate) fn spill_bytes(usual: u64) -> u64 {
    #[cfg(feature = "failpoints")]
    return armed::spill_bytes().unwrap_or(usual);
    #[cfg(not(feature = "failpoints"))]
    usual
}

/// How long a stream is waited for while rows are parked, usually `usual`; a test may want less.
pub(crate) fn patience(usual: Duration) -> Duration {
    #[cfg(feature = "failpoints")]
    return armed::patience().unwrap_or(usual);
    #[cfg(not(feature = "failpoints"))]
    usual
}

/// The names of engines that a test wants to be loaded together, set by set; none for those that fit.
pub(crate) fn sets() -> Option<Vec<Vec<String>>> {
    #[cfg(feature = "failpoints")]
    return armed::sets();
    #[cfg(not(feature = "failpoints"))]
    None
}

/// How often something is done every `usual`; a test may want it more often.
pub(crate) fn every(usual: Duration) -> Duration {
    #[cfg(feature = "failpoints")]
    return armed::every().unwrap_or(usual);
    #[cfg(not(feature = "failpoints"))]
    usual
}
