//! The terminal under the live screen.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use console::{Term, measure_text_width};
use indicatif::TermLike;

/// A terminal on which a frame of lines is drawn over the last one.
///
/// indicatif fills every line with spaces up to the edge instead of ending it, and leaves the cursor there.
/// A terminal that is made wider then joins the lines, and the `^C` that it shows moves them all. Here each
/// line is ended, the cursor stands below the last one, and a frame is one write: whoever is killed at any
/// moment leaves whole lines and a cursor at the beginning of one.
#[derive(Debug)]
pub(super) struct Terminal {
    term: Term,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What the next flush writes.
    pending: String,
    /// Widths of the lines that were written since the cursor last went up.
    lines: Vec<usize>,
    /// The cursor stands below the lines that `lines` tells of.
    below: bool,
    /// Of them, how many less one are to be written over, if any are.
    over: usize,
    /// A line was written; its filling follows.
    in_line: bool,
}

impl Terminal {
    /// The one behind stderr.
    pub(super) fn stderr() -> Self {
        Self {
            term: Term::stderr(),
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        self.term.size().1.max(1)
    }

    fn height(&self) -> u16 {
        self.term.size().0.max(1)
    }

    /// indicatif goes to the first of its lines, clears them one by one, and goes there again.
    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.lock().over = n;
        Ok(())
    }

    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        let mut state = self.lock();
        if std::mem::take(&mut state.below) {
            state.lines.clear();
        }
        state.pending += text;
        state.pending += "\x1b[K\r\n";
        state.lines.push(measure_text_width(text));
        Ok(())
    }

    /// Comes twice for each line: its text, then what fills it.
    fn write_str(&self, text: &str) -> io::Result<()> {
        let is_filling = std::mem::take(&mut self.lock().in_line);
        if is_filling {
            return Ok(());
        }
        self.write_line(text)?;
        self.lock().in_line = true;
        Ok(())
    }

    /// The first of these goes to where the next frame is written over the last one; the rest of the screen
    /// is cleared at the end.
    fn clear_line(&self) -> io::Result<()> {
        let width = usize::from(self.width());
        let mut state = self.lock();
        if std::mem::take(&mut state.below) {
            // What the terminal wrapped when it was made narrower takes more than a row.
            let frame = state.lines.iter().rev().take(state.over + 1);
            let rows: usize = frame.map(|line| line.div_ceil(width).max(1)).sum();
            state.pending += &format!("\x1b[{rows}A\r");
            state.lines.clear();
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.lock();
        if state.pending.is_empty() {
            return Ok(());
        }
        state.pending += "\x1b[J";
        state.below = !state.lines.is_empty();
        let frame = std::mem::take(&mut state.pending);
        drop(state);
        io::Write::write_all(&mut io::stderr(), frame.as_bytes())
    }
}
