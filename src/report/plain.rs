//! Plain lines on stderr: one every ten seconds, and one per change. They read well in a Slurm log.

use std::time::SystemTime;

use super::phrases::{News, node_name, not_shown, request, run_line, straggler, waits};
use super::say;
use super::style::Style;
use super::text::{percent, seconds, speed, thousands};
use crate::event::{Event, Progress, Report};

/// Seconds between progress lines.
const EVERY: f64 = 10.0;
/// Requests told per second at most (`--verbose`).
const REQUESTS: u64 = 5;
/// Nodes named in a progress line.
const NODES: usize = 6;

/// Where lines go.
pub type Lines = Box<dyn FnMut(&str) + Send>;

/// Writes plain lines.
pub struct Plain {
    style: Style,
    out: Lines,
    news: News,
    /// When the next line is due, in seconds of the run.
    due: f64,
    /// Requests told, and passed over, since the last tick.
    told: u64,
    passed: u64,
}

impl Plain {
    /// Lines for stderr.
    pub fn stderr(style: Style) -> Self {
        Self::new(style, Box::new(say))
    }

    /// Lines for anywhere.
    pub fn new(style: Style, out: Lines) -> Self {
        Self {
            style,
            out,
            news: News::default(),
            due: EVERY,
            told: 0,
            passed: 0,
        }
    }
}

impl Plain {
    /// Says how many requests were passed over since that was last said.
    fn tell_passed(&mut self) {
        if let Some(line) = not_shown(std::mem::take(&mut self.passed)) {
            (self.out)(&line);
        }
    }
}

impl Report for Plain {
    fn event(&mut self, _: SystemTime, event: &Event, progress: &Progress) {
        if let Event::Request(exchange) = event {
            if self.told < REQUESTS {
                self.told += 1;
                if let Some(line) = not_shown(exchange.missed) {
                    (self.out)(&line);
                }
                (self.out)(&request(exchange, self.style));
            } else {
                self.passed += 1 + exchange.missed;
            }
            return;
        }
        if let Event::RunFinished(_) = event {
            self.tell_passed();
        }
        if let Some(line) = self.news.line(event, progress) {
            (self.out)(&line);
        }
    }

    fn tick(&mut self, progress: &Progress) {
        self.tell_passed();
        self.told = 0;
        if progress.seconds < self.due {
            return;
        }
        self.due = progress.seconds + EVERY;
        for line in lines(progress, self.style) {
            (self.out)(&line);
        }
    }
}

/// What is said every ten seconds: the run, then its nodes where they differ.
///
/// ```text
/// [1m 10s] 12,345 of 100,000 rows (12%) · 1,234/s, last 10 s 1,180/s · about 3m 20s left · waits for a free slot of engine small
/// [1m 10s] sentiment 13,001/100,000 (13%) 1,300/s · fr/translate_fr 12,345/100,000 (12%) 1,234/s, 3 failed
/// ```
fn lines(progress: &Progress, style: Style) -> Vec<String> {
    let at = format!("[{}]", seconds(progress.seconds));
    let mut line = format!("{at} {}", run_line(progress, style));
    if let Some((waits, cause)) = waits(&progress.status) {
        line += &format!("{}{waits} {cause}", style.dot());
    }
    if let Some(text) = straggler(progress) {
        line += &format!("{}straggler: {text}", style.dot());
    }
    let mut lines = vec![line];
    let all = progress.status.nodes.iter().zip(&progress.nodes);
    let is_at_work = |node: &crate::event::NodeProgress| {
        node.traffic.came > 0 && node.total.is_none_or(|total| node.traffic.done < total.rows)
    };
    let at_work: Vec<_> = all.filter(|(_, node)| is_at_work(node)).collect();
    if progress.nodes.len() > 1 && !at_work.is_empty() {
        let mut parts: Vec<String> = at_work
            .iter()
            .take(NODES)
            .map(|(info, node)| {
                let done = thousands(node.traffic.done);
                let mut part = format!("{} {done}", node_name(info));
                if let Some(total) = node.total {
                    let about = if total.estimate { "~" } else { "" };
                    let share = percent(node.traffic.done, total.rows);
                    part += &format!("/{about}{} ({share})", thousands(total.rows));
                }
                part += &format!(" {}/s", speed(node.recent, false));
                if node.traffic.failed > 0 {
                    part += &format!(", {} failed", thousands(node.traffic.failed));
                }
                part
            })
            .collect();
        if at_work.len() > NODES {
            parts.push(format!("{} more at work", at_work.len() - NODES));
        }
        lines.push(format!("{at} {}", parts.join(style.dot())));
    }
    lines
}
