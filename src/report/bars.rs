//! Live bars on a terminal: the screen, drawn over itself.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use console::{Term, measure_text_width};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::phrases::{News, not_shown, request};
use super::screen::render;
use super::style::{Style, Tint};
use super::terminal::Terminal;
use crate::event::{Event, Progress, Report};

/// How often the screen is drawn: often enough to look alive, seldom enough to be read.
const EVERY: Duration = Duration::from_millis(200);
/// indicatif draws at most this often per second.
const MOST_PER_SECOND: u8 = 10;
/// Requests kept for the panel.
const REQUESTS: usize = 16;

/// Draws the run's screen until it ends.
pub struct Bars {
    style: Style,
    bar: ProgressBar,
    news: News,
    requests: VecDeque<String>,
    size: Term,
    over: bool,
}

impl Bars {
    /// Draws to stderr.
    pub fn new(style: Style) -> Self {
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(Terminal::stderr()), MOST_PER_SECOND);
        let bar = ProgressBar::with_draw_target(None, target);
        // A template without braces of its own cannot be wrong.
        if let Ok(whole) = ProgressStyle::with_template("{msg}") {
            bar.set_style(whole);
        }
        Self {
            style,
            bar,
            news: News::default(),
            requests: VecDeque::new(),
            size: Term::stderr(),
            over: false,
        }
    }

    fn draw(&mut self, progress: &Progress) {
        let (height, width) = self.size.size();
        let size = (usize::from(width), usize::from(height));
        let requests = self.requests.make_contiguous();
        let lines = render(progress, self.style, size, requests);
        self.bar.set_message(lines.join("\n"));
    }

    fn note(&mut self, line: String) {
        if self.requests.len() == REQUESTS {
            self.requests.pop_front();
        }
        self.requests.push_back(line);
    }
}

impl Report for Bars {
    fn event(&mut self, _: SystemTime, event: &Event, progress: &Progress) {
        match event {
            Event::RunFinished(_) => {
                self.over = true;
                self.bar.finish_and_clear();
                return;
            }
            Event::Request(exchange) => {
                if let Some(line) = not_shown(exchange.missed) {
                    self.note(line);
                }
                return self.note(request(exchange, self.style));
            }
            _ if self.over => return,
            _ => {}
        }
        let Some(line) = self.news.line(event, progress) else {
            return;
        };
        let line = wrap(&line, usize::from(self.size.size().1).saturating_sub(1));
        match event {
            // The screen says so where it matters, for as long as it is so.
            Event::EngineWaiting { .. }
            | Event::EngineReady { .. }
            | Event::EngineStarting { .. }
            | Event::EngineDraining { .. }
            | Event::EngineReleased { .. } => self.note(line),
            Event::RowsFailed { .. } => self.bar.println(self.style.paint(Tint::Red, &line)),
            Event::Warning { .. } => self.bar.println(self.style.paint(Tint::Yellow, &line)),
            _ => self.bar.println(line),
        }
    }

    fn every(&self) -> Duration {
        EVERY
    }

    fn tick(&mut self, progress: &Progress) {
        if !self.over {
            self.draw(progress);
        }
    }
}

impl Drop for Bars {
    /// A run that ends otherwise leaves no bars behind.
    fn drop(&mut self) {
        if !self.over {
            self.bar.finish_and_clear();
        }
    }
}

/// Breaks a text into lines of a width, at spaces where it can. A line that the terminal breaks itself moves
/// the cursor in ways of its own when the terminal is resized.
fn wrap(text: &str, width: usize) -> String {
    let width = width.max(20);
    let mut lines: Vec<String> = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for mut word in paragraph.split(' ') {
            if !line.is_empty() && measure_text_width(&line) + 1 + measure_text_width(word) > width {
                lines.push(std::mem::take(&mut line));
            }
            while measure_text_width(word) > width {
                let head = word.char_indices().map(|(at, _)| at).filter(|at| *at > 0);
                let fits =
                    head.take_while(|at| word.get(..*at).is_some_and(|h| measure_text_width(h) <= width));
                let (head, rest) = word.split_at(fits.last().unwrap_or(word.len()));
                lines.push(head.to_owned());
                word = rest;
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line += word;
        }
        lines.push(line);
    }
    lines.join("\n")
}
