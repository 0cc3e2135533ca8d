//! Models in this process.
//!
//! A [`Pool`] knows nothing of any model: a [`Capability`] says what it is asked and what it answers, a [`Loader`] where
//! its models come from. Workers are threads that own a loaded model each, take requests from one bounded queue, and
//! work on several at the same time. `text` is the text generator for GGUF files, `embedding` turns texts into vectors
//! with safetensors folders.

mod adapter;
mod batch;
mod capability;
mod embedding;
mod linear;
mod math;
mod pool;
mod pools;
mod queue;
mod shared;
mod text;
mod worker;

pub(in crate::engine) use adapter::{InProcess, in_process, size};
pub use batch::Batch;
pub use capability::{
    Capability, Choice, Describe, Describer, Embedded, Ending, Generate, Generated, ImageBytes,
    ImageEmbedder, ImageEmbedding, LoadError, Loader, ModelError, Paint, Painted, Painter, Size,
    TextEmbedder, TextEmbedding, TextGeneration, TextGenerator, TextToImage, Vision,
};
pub use embedding::BertEmbedding;
pub use pool::{Hear, Pool, PoolConfig, PoolError, PoolNews};
pub use pools::Pools;
pub(in crate::engine) use pools::Tended;
pub use queue::Metrics;
pub use text::GgufText;

/// Most workers of a small model.
const WORKERS: usize = 4;
/// A model of more bytes is worth one worker: its passes are bound by memory, and each takes all rows with it.
const SMALL: u64 = 64 << 20;

/// Workers that a model with so many bytes of weights is worth.
fn workers(weights: u64) -> usize {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    match weights {
        0..SMALL => threads.min(WORKERS),
        _ => 1,
    }
}
