//! What happens to a chunk.

pub mod answer;
mod apply;
mod branch;
mod chunk;
mod cpu;
mod dimension;
mod fates;
mod lines;
pub mod live;
pub(crate) mod memory;
pub mod output;
pub mod ahead;
pub mod reply;
pub mod retry;
pub mod step;
pub mod timing;
mod walk;

pub use apply::{WorkerError, Workers};
pub use chunk::Arrival;
pub use cpu::Cpu;
pub use walk::{Walker, preview};
