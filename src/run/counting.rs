//! Counts the input rows beside a run, for those who watch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::RunConfig;
use crate::event::{Event, EventSender};

/// A count under way; dropping it ends it.
#[derive(Debug)]
pub(super) struct Counting(Arc<AtomicBool>);

impl Counting {
    /// Counts on a thread of its own what is not counted yet; nobody waits for it.
    pub(super) fn start(config: &RunConfig, counted: Option<u64>, events: &EventSender) -> Self {
        let stop = Arc::new(AtomicBool::new(counted.is_some()));
        if counted.is_none() {
            let (input, limit) = (config.input.clone(), config.limit);
            let (stop, events) = (stop.clone(), events.clone());
            let count = move || {
                let total = input.count(&stop);
                if let Some(total) = total.filter(|_| !stop.load(Ordering::Relaxed)) {
                    events.send(Event::StepTotal {
                        node: "chain_input".into(),
                        total: limit.map_or(total, |limit| limit.min(total)),
                        estimate: false,
                    });
                }
            };
            // Without a thread there is no total, which is fine.
            let _uncounted = std::thread::Builder::new().name("count".into()).spawn(count);
        }
        Self(stop)
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
