//! Preparing a server: from its declaration to everything that is needed to start it.
//!
//! Nothing here spawns, waits for a server, or writes PID and handoff files.

mod prepared;

pub use prepared::{Mode, Need, PreparedEngine};
