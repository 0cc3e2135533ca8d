//! Preparing a server: from its declaration to everything that is needed to start it.
//!
//! [`Machine::look`] sees what there is, [`plan_all`] says what will be done and what is missing, [`prepare`] does it: it
//! fetches and verifies the model, and chooses flags and a port. Nothing here starts a server, waits for one, or writes
//! PID and handoff files.

mod abilities;
mod checksum;
mod download;
mod flags;
mod gguf;
mod hub;
mod machine;
mod need;
mod outside;
mod plan;
mod port;
mod prepare;
mod prepared;
mod reference;
mod remembered;
mod telling;
mod transfer;
mod weights;
mod whole;

pub use gguf::{Gguf, GgufError};
pub use machine::{Gpu, HubSettings, Machine};
pub use need::bytes;
pub use plan::{Missing, Plan, plan, plan_all};
pub use port::free_port;
pub use prepare::{PrepareError, Progress, Tell, attach, prepare, verify};
pub use prepared::{Mode, Need, PreparedEngine};
#[cfg(feature = "embedded")]
pub(in crate::engine) use reference::is_inside;
pub use reference::{HubReference, Reference};
pub use telling::Telling;
pub(crate) use weights::task_in_process;
