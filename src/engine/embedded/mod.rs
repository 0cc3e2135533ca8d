//! Models in this process.
//!
//! A [`Pool`] knows nothing of any model: a [`Capability`] says what it is asked and what it answers, a [`Loader`] where
//! its models come from. Workers are threads that own a loaded model each, take requests from one bounded queue, and
//! work on several at the same time. `text` is the text generator for GGUF files.

mod adapter;
mod batch;
mod capability;
mod pool;
mod pools;
mod queue;
mod text;
mod worker;

pub(in crate::engine) use adapter::{InProcess, in_process, text_model};
pub use batch::Batch;
pub use capability::{
    Capability, Choice, Describe, Describer, Embedded, Ending, Generate, Generated, ImageBytes,
    ImageEmbedder, ImageEmbedding, LoadError, Loader, ModelError, Paint, Painted, Painter, Size,
    TextEmbedder, TextEmbedding, TextGeneration, TextGenerator, TextToImage, Vision,
};
pub use pool::{Hear, Pool, PoolConfig, PoolError, PoolNews};
pub use pools::Pools;
pub(in crate::engine) use pools::Tended;
pub use queue::Metrics;
pub use text::GgufText;
