//! Plain lines on stderr: one every ten seconds, and one per change. They read well in a Slurm log.

use std::collections::HashSet;
use std::time::SystemTime;

use super::{duration, say, thousands};
use crate::event::{Event, Progress, Report};

/// Writes plain lines.
#[derive(Debug, Default)]
pub struct Plain {
    /// Failures are shown once per place and kind; the rest is in errors/.
    shown: HashSet<(String, &'static str)>,
}

impl Report for Plain {
    fn event(&mut self, _: SystemTime, event: &Event, _: &Progress) {
        match event {
            Event::Resumed { rows, answers } => {
                say(&format!(
                    "resuming: {} rows are done, {} answers on file are not asked again",
                    thousands(*rows),
                    thousands(*answers)
                ));
            }
            Event::RowsFailed {
                node, kind, example, ..
            } if self.shown.insert((node.clone(), kind.as_str())) => {
                say(&format!(
                    "row failed at {node} ({kind}): {example}; more of these go to errors/ silently"
                ));
            }
            Event::EngineWaiting {
                engine,
                reason,
                retry_in_s,
            } => {
                say(&format!(
                    "engine {engine}: waiting ({reason}); next try in {}",
                    duration(*retry_in_s)
                ));
            }
            Event::EngineReady { engine } => say(&format!("engine {engine}: answers again")),
            Event::Warning { message } => say(&format!("warning: {message}")),
            _ => {}
        }
    }

    fn tick(&mut self, progress: &Progress) {
        say(&progress_line(progress));
    }
}

/// `12,345 of 100,000 rows · 1,234/s (last 10 s: 1,300/s) · 3 failed · engine small: 64 of 64 busy`.
fn progress_line(progress: &Progress) -> String {
    let waiting = progress.status.rows_waiting;
    let done = progress.rows_before + progress.rows + waiting;
    let rate = (progress.rows + waiting) as f64 / progress.seconds.max(0.001);
    let mut line = match progress.total {
        Some(total) => format!("{} of {} rows", thousands(done), thousands(total)),
        None => format!("{} rows", thousands(done)),
    };
    line += &format!(
        " · {}/s (last 10 s: {}/s)",
        thousands(rate.round() as u64),
        thousands(progress.recent.round() as u64)
    );
    if progress.failed > 0 {
        line += &format!(" · {} failed", thousands(progress.failed));
    }
    if let (Some(row), true) = (progress.status.behind, waiting > 0) {
        line += &format!(" · written up to row {row}, which is still out");
    }
    for engine in &progress.status.engines {
        line += &format!(" · {engine}");
    }
    line
}
