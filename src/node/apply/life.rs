//! One process from its start to its end: what goes over its pipes, and when it is given up.

use std::io;
use std::time::Duration;

use tokio::time::Instant;

use super::hand::{Found, Hand, Held};
use super::pool::{Job, Pool};
use super::process::Process;
use super::wire::{Heard, MAX_ANSWER, Wire};

/// How long answers may take once the process has closed its input.
const UNASKED: Duration = Duration::from_secs(5);
/// How long a program may have rows in hand without having ever answered one, before the user is told.
const SILENT: Duration = Duration::from_secs(10);
/// Answers to rows that are answered already, before a worker is given up.
const MAX_REPEATED: u32 = 10_000;

/// Why a process is given up.
pub(super) enum End {
    /// It closed its output, or is gone.
    Output,
    /// It closed its input and answers no more.
    Input,
    /// It did what no worker may do.
    Wrong(String),
    /// It took too long.
    Late,
}

/// One process from its start to its end.
pub(super) struct Life {
    pub(super) process: Process,
    wire: Wire,
    pub(super) hand: Hand,
    /// The row in hand is a suspect.
    pub(super) alone: bool,
    /// The oldest row has been in hand for too long: no new ones until it is answered.
    pub(super) draining: bool,
    /// Questions on their way, and how much of them is written.
    out: Vec<u8>,
    written: usize,
    /// What was read and is not understood yet, and how much of it holds no line end.
    held: Vec<u8>,
    scanned: usize,
    block: Vec<u8>,
    pub(super) answered: u64,
    /// Of the last answer.
    pub(super) latency: Duration,
    /// Answers since the window was changed.
    pub(super) since_change: usize,
    /// When something last went forward.
    alive: Instant,
    /// When the process closed its input.
    pub(super) input_gone: Option<Instant>,
}

impl Life {
    pub(super) fn new(process: Process, wire: Wire) -> Self {
        Self {
            process,
            hand: Hand::new(wire),
            wire,
            alone: false,
            draining: false,
            out: Vec::new(),
            written: 0,
            held: Vec::new(),
            scanned: 0,
            block: vec![0; 64 << 10],
            answered: 0,
            latency: Duration::ZERO,
            since_change: 0,
            alive: Instant::now(),
            input_gone: None,
        }
    }

    pub(super) fn give(&mut self, job: Job) {
        if self.hand.len() == 0 {
            self.alive = Instant::now();
        }
        self.out.extend_from_slice(&job.question);
        self.hand.add(job);
    }

    pub(super) fn unsent(&self) -> &[u8] {
        if self.input_gone.is_some() {
            return &[];
        }
        self.out.get(self.written..).unwrap_or_default()
    }

    /// Writes as much as the pipe takes.
    pub(super) fn write(&mut self) -> Result<(), End> {
        while !self.unsent().is_empty() {
            let Some(input) = &self.process.input else {
                return Err(End::Input);
            };
            match input.try_write(self.unsent()) {
                Ok(written) => self.written += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => {
                    // What it has taken it may still answer.
                    self.input_gone = Some(Instant::now());
                    self.process.input = None;
                }
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// Reads once.
    fn fill(&mut self) -> Result<bool, End> {
        match self.process.output.try_read(&mut self.block) {
            Ok(0) => Err(End::Output),
            Ok(read) => {
                self.held
                    .extend_from_slice(self.block.get(..read).unwrap_or_default());
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(_) => Err(End::Output),
        }
    }

    /// The first line that the process writes; none if it ends without one.
    pub(super) async fn first_line(&mut self) -> Option<Vec<u8>> {
        loop {
            self.process.output.readable().await.ok()?;
            self.fill().ok()?;
            if let Some(end) = memchr::memchr(b'\n', &self.held) {
                return Some(self.held.drain(..=end).take(end).collect());
            }
            if self.held.len() > MAX_ANSWER {
                return None;
            }
        }
    }

    /// Reads once, and hands on the answers that are complete.
    pub(super) fn read(&mut self, pool: &Pool) -> Result<(), End> {
        if !self.fill()? {
            return Ok(());
        }
        let held = std::mem::take(&mut self.held);
        let now = Instant::now();
        // Answers that come together share the time since the one before them.
        let lines = memchr::memchr_iter(b'\n', held.get(self.scanned..).unwrap_or_default()).count();
        let share = self.quiet() / u32::try_from(lines).unwrap_or(u32::MAX).max(1);
        let mut from = 0;
        let mut result = Ok(());
        while let Some(len) = memchr::memchr(b'\n', held.get(from.max(self.scanned)..).unwrap_or_default()) {
            let end = from.max(self.scanned) + len;
            let line = held.get(from..end).unwrap_or_default();
            from = end + 1;
            result = self.line(line, pool, (now, share));
            if result.is_err() {
                break;
            }
        }
        self.held = held;
        self.held.drain(..from);
        self.scanned = self.held.len();
        result?;
        if self.held.len() > MAX_ANSWER {
            let what = format!("wrote a line longer than {} MiB", MAX_ANSWER >> 20);
            return Err(End::Wrong(what));
        }
        Ok(())
    }

    /// Understands one line and hands on its answer, with the time that its row took: at most `share`, as the
    /// rows in hand before it are not its own affair.
    fn line(&mut self, line: &[u8], pool: &Pool, (now, share): (Instant, Duration)) -> Result<(), End> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if self.wire == Wire::Command && line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let (job, answer) = match self.wire.hear(line).map_err(End::Wrong)? {
            Heard::Next(answer) => (self.hand.next(), answer),
            Heard::Row(id, answer) => match self.hand.find(&id) {
                Found::Job(job) => (Some(job), answer),
                Found::Repeated(times) if times <= MAX_REPEATED => {
                    if times == 1 {
                        pool.warn(&format!(
                            "the program answered row {id} more than once; the first answer counts"
                        ));
                    }
                    return Ok(());
                }
                Found::Repeated(_) => {
                    return Err(End::Wrong(format!(
                        "repeated itself more than {MAX_REPEATED} times"
                    )));
                }
                Found::Unknown => {
                    let what = format!(
                        "answered for row_id `{}`, which it was not given",
                        id.escape_debug()
                    );
                    return Err(End::Wrong(what));
                }
            },
        };
        let Some(Held { job, since }) = job else {
            return Err(End::Wrong("answered more rows than it was given".to_owned()));
        };
        self.answered += 1;
        self.since_change += 1;
        self.latency = now.duration_since(since);
        self.alive = now;
        pool.answered();
        // Nobody waits for it when the run was abandoned.
        let _unwanted = job.reply.send((answer, share.min(self.latency)));
        Ok(())
    }

    /// Time since the last answer, or since the first row was given.
    pub(super) fn quiet(&self) -> Duration {
        self.alive.elapsed()
    }

    /// Tells the user of a program that takes rows and has never answered one: most keep their answers in a
    /// buffer. A function's answers cannot get stuck like that; it may well be slow.
    pub(super) fn tell_if_silent(&self, pool: &Pool) {
        let rows = self.hand.len();
        if self.wire == Wire::Command && self.answered == 0 && rows > 0 && self.quiet() >= SILENT {
            pool.warn_of_silence(rows as u64, SILENT);
        }
    }

    /// Looks at the clocks.
    pub(super) fn late(&mut self, limit: Duration) -> Option<End> {
        if self.hand.len() == 0 {
            self.draining = false;
            return self.input_gone.map(|_| End::Input);
        }
        self.draining = self.hand.oldest().is_some_and(|since| since.elapsed() > limit);
        if let Some(gone) = self.input_gone {
            let quiet = gone.max(self.alive).elapsed();
            return (quiet > UNASKED.min(limit)).then_some(End::Input);
        }
        (self.quiet() > limit).then_some(End::Late)
    }
}
