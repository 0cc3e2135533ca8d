//! What happens to a chunk.

pub mod answer;
mod branch;
mod chunk;
mod cpu;
mod lines;
pub mod output;
pub mod reply;
pub mod retry;
pub mod step;
mod walk;

pub use cpu::Cpu;
pub use walk::{Walker, preview};
