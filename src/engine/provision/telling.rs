//! How a preparation is told of: one line, not too often.

use std::time::{Duration, Instant};

use super::{Progress, bytes};

/// Between two lines about one file.
const PACE: Duration = Duration::from_secs(2);

/// Makes lines of progress.
#[derive(Debug, Default)]
pub struct Telling {
    last: Option<Instant>,
}

impl Telling {
    /// The line for this progress, if it is worth one now.
    pub fn line(&mut self, progress: Progress<'_>) -> Option<String> {
        let part = |done: u64, total: u64| match total {
            0 => String::new(),
            _ => format!(": {} of {}", bytes(done), bytes(total)),
        };
        let (text, pressing) = match progress {
            Progress::Downloading { file, done, total } => {
                (format!("fetching {file}{}", part(done, total)), false)
            }
            Progress::Retrying { file, why } => (format!("trying again to fetch {file}: {why}"), true),
            Progress::Waiting { file } => (format!("waiting for another process that fetches {file}"), false),
            Progress::Verifying { file, done, total } => (
                format!("verifying {}{}", file.display(), part(done, total)),
                false,
            ),
        };
        let due = pressing || self.last.is_none_or(|last| last.elapsed() >= PACE);
        due.then(|| {
            self.last = Some(Instant::now());
            text
        })
    }
}
