//! Engines that outlive a run: where `engine up` keeps them, and how runs find and share them.
//!
//! Everything is a file of one folder: handoffs (which the supervisor writes), a note and a lock of each pool, and a
//! lease of each server. A run holds a lease as a shared lock while it has requests in flight there; whoever drains the
//! server waits for the exclusive one. The system drops the locks of whoever is killed.

mod folder;
mod lease;
mod note;

pub use folder::{Found, PoolLock, WarmFolder};
pub use lease::{Lease, Leased};
pub use note::{Note, Stage};
