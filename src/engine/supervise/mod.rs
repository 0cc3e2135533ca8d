//! Running servers: started under a guard, watched, and gone when we are.
//!
//! Nothing here chooses models or knows chains and rows.

mod ask;
mod exit;
mod failed;
pub(crate) mod files;
mod guard;
mod handoff;
mod hang;
mod log;
mod policy;
mod processes;
mod progress;
mod readiness;
mod ready;
mod restarts;
mod start;
mod sweep;

pub use exit::Exit;
pub use failed::{Cause, Failed};
pub use guard::guard_main;
pub use handoff::{Handoff, Model};
pub use policy::Policy;
pub use progress::{Progress, Streaming};
pub use ready::{Draining, Ready, Stopped};
pub use restarts::{Breaker, Restarts};
pub use start::Supervisor;
pub use sweep::{Running, Swept};

use guard::MARK;
