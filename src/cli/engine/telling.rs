//! How a preparation is told of: one line, not too often.

use std::time::{Duration, Instant};

use crate::engine::broker::words;
use crate::engine::provision::Progress;

/// Between two lines about one file.
const PACE: Duration = Duration::from_secs(2);

/// Makes lines of progress.
#[derive(Debug, Default)]
pub(super) struct Telling {
    last: Option<Instant>,
}

impl Telling {
    /// The line for this progress, if it is worth one now.
    pub(super) fn line(&mut self, progress: Progress<'_>) -> Option<String> {
        let pressing = matches!(progress, Progress::Retrying { .. });
        let (what, how_far) = words(&progress);
        let due = pressing || self.last.is_none_or(|last| last.elapsed() >= PACE);
        due.then(|| {
            self.last = Some(Instant::now());
            format!("{what}{how_far}")
        })
    }
}
