//! Signs that a server gets on with its work, as its clients see them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Counts what clients see of a server's work. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Events of streams, and replies.
    seen: AtomicU64,
    /// Streams under way.
    streams: AtomicUsize,
}

/// A stream under way; it ends when this is dropped.
#[derive(Debug)]
pub struct Streaming(Progress);

impl Progress {
    /// An event of a stream, or a reply, came.
    pub fn seen(&self) {
        self.0.seen.fetch_add(1, Ordering::Relaxed);
    }

    /// The first event of a stream came. As long as streams are under way their events are awaited, and a server that
    /// sends none for `between_bytes` hangs, even if it has no counters that could be asked.
    pub fn streaming(&self) -> Streaming {
        self.seen();
        self.0.streams.fetch_add(1, Ordering::Relaxed);
        Streaming(self.clone())
    }

    /// How many signs there were.
    pub(super) fn count(&self) -> u64 {
        self.0.seen.load(Ordering::Relaxed)
    }

    /// True while a stream is under way.
    pub(super) fn is_streaming(&self) -> bool {
        self.0.streams.load(Ordering::Relaxed) > 0
    }
}

impl Streaming {
    /// Another event came.
    pub fn seen(&self) {
        self.0.seen();
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.0.seen();
        self.0.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}
