//! Running servers: started under a guard, watched, and gone when we are.
//!
//! Nothing here chooses models or knows chains and rows.

mod handoff;
mod policy;

pub use handoff::{Handoff, Model};
pub use policy::Policy;
