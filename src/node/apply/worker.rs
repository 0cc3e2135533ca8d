//! One worker's lives: rows in, answers out, and which row it was when a process dies.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, interval, sleep, timeout};

use super::pool::{Job, Pool};
use super::process::Process;
use super::wire::{self, Heard, MAX_ANSWER, Wire};
use crate::plan::Program;

/// Rows in a worker's hand, at most.
const MAX_WINDOW: usize = 1024;
/// Rows in a worker's hand at first.
const FIRST_WINDOW: usize = 16;
/// Bytes of questions in a worker's hand, beyond which it gets no more.
const MAX_IN_HAND: usize = 4 << 20;
/// A window whose rows are answered sooner is too small, later too large.
const PACE: std::ops::Range<Duration> = Duration::from_millis(20)..Duration::from_millis(100);
/// How long a function may take to load.
const START: Duration = Duration::from_secs(600);
/// How long a command is watched before it is first asked: one that cannot run ends at once.
const FIRST_LOOK: Duration = Duration::from_millis(100);
/// The same for one whose last life brought no answer.
const LONG_LOOK: Duration = Duration::from_secs(1);
/// Starts that may fail one after another.
const STARTS: u32 = 3;
/// How long a process may take to end once it has closed a pipe.
const CLOSING: Duration = Duration::from_secs(1);
/// How long answers may take once the process has closed its input.
const UNASKED: Duration = Duration::from_secs(5);
/// Rows that killed their worker one after another, from where on all others in hand are asked alone.
const MANY: u32 = 3;
/// Answers to rows that are answered already, before a worker is given up.
const MAX_REPEATED: u32 = 10_000;

/// One of a pool's workers: a process at a time.
pub(super) struct Worker {
    pool: Arc<Pool>,
    /// Rows that were in hand when a process died, to be asked one at a time.
    suspects: VecDeque<Job>,
    /// Rows that may be in hand.
    window: usize,
}

/// Why a process is given up.
enum End {
    /// It closed its output, or is gone.
    Output,
    /// It closed its input and answers no more.
    Input,
    /// It did what no worker may do.
    Wrong(String),
    /// It took too long.
    Late,
}

impl Worker {
    pub(super) fn new(pool: Arc<Pool>) -> Self {
        Self {
            pool,
            suspects: VecDeque::new(),
            window: FIRST_WINDOW,
        }
    }

    /// Starts the pool's first process.
    ///
    /// # Errors
    /// What is wrong with the program or the function.
    pub(super) async fn first_start(&mut self) -> Result<Process, String> {
        self.start(FIRST_LOOK).await
    }

    /// Works until the pool is closed.
    pub(super) async fn run(mut self, first: Option<Process>) {
        let pool = self.pool.clone();
        let mut next = first;
        let mut look = Duration::ZERO;
        loop {
            let process = match next.take() {
                Some(process) => process,
                None => {
                    let started = tokio::select! {
                        biased;
                        () = pool.closed.cancelled() => return,
                        started = self.restart(look) => started,
                    };
                    match started {
                        Ok(process) => process,
                        Err(message) => return pool.fail(message),
                    }
                }
            };
            let mut life = Life::new(process, pool.wire.get().copied().unwrap_or(Wire::Command));
            let Some(end) = self.live(&mut life).await else {
                // One that is busy with a row nobody waits for is not waited for either.
                if life.hand.len() == 0 {
                    life.process.farewell().await;
                }
                return;
            };
            let proven = life.answered > 0 || pool.proven.load(Ordering::Relaxed);
            look = if proven { Duration::ZERO } else { LONG_LOOK };
            self.end(life, end).await;
        }
    }

    async fn restart(&self, look: Duration) -> Result<Process, String> {
        let mut tries = 1;
        loop {
            match self.start(look).await {
                Err(message) if tries == STARTS => return Err(message),
                Err(message) => {
                    self.pool.warn(&format!("a worker does not start: {message}"));
                    sleep(Duration::from_secs(1)).await;
                    tries += 1;
                }
                started => return started,
            }
        }
    }

    /// Starts a process; Python greets once the function is loaded, a command is watched for a while.
    async fn start(&self, look: Duration) -> Result<Process, String> {
        let pool = &self.pool;
        let shown = match &pool.plan.program {
            Program::Python { interpreter, .. } => interpreter.display().to_string(),
            Program::Command { source, .. } => source.clone(),
        };
        let process = Process::start(wire::launch(&pool.plan), &pool.node, &pool.plan.folder)
            .map_err(|error| format!("cannot start `{shown}`: {error}"))?;
        if let Program::Command { .. } = pool.plan.program {
            if look.is_zero() || !process.ends_within(look).await {
                // One that outlives the long look is not what keeps it from answering.
                pool.proven.fetch_or(look == LONG_LOOK, Ordering::Relaxed);
                pool.wire.get_or_init(|| Wire::Command);
                return Ok(process);
            }
            let words = process.last_words.clone();
            let how = process.how_it_ended(CLOSING).await.unwrap_or_default();
            return Err(format!(
                "`{shown}` {how} before it was asked anything{}",
                words.as_cause()
            ));
        }
        let mut life = Life::new(process, Wire::Command);
        match timeout(START, life.first_line()).await {
            Err(_) => Err(format!(
                "`{shown}` did not load the function within {} s",
                START.as_secs()
            )),
            Ok(Some(line)) => {
                let wire = wire::greeting(&line)?;
                pool.wire.get_or_init(|| wire);
                Ok(life.process)
            }
            Ok(None) => {
                let words = life.process.last_words.clone();
                let how = life.process.how_it_ended(CLOSING).await;
                let how = how.unwrap_or_else(|| "closed its output".to_owned());
                Err(format!(
                    "`{shown}` {how} while it loaded the function{}",
                    words.as_cause()
                ))
            }
        }
    }

    /// Leads a process through its life; none when the pool was closed.
    async fn live(&mut self, life: &mut Life) -> Option<End> {
        let pool = self.pool.clone();
        let limit = pool.plan.timeout;
        let mut tick = interval((limit / 4).clamp(Duration::from_millis(10), Duration::from_secs(1)));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.feed(life);
            if let Err(end) = life.write() {
                return Some(end);
            }
            let writing = !life.unsent().is_empty();
            let input = life.process.input.as_ref().filter(|_| writing);
            tokio::select! {
                biased;
                () = pool.closed.cancelled() => return None,
                readable = life.process.output.readable() => {
                    if readable.is_err() {
                        return Some(End::Output);
                    }
                    if let Err(end) = life.read(&pool) {
                        return Some(end);
                    }
                    self.pace(life);
                }
                _ = async {
                    match input {
                        Some(input) => input.writable().await,
                        None => std::future::pending().await,
                    }
                } => {}
                () = pool.ready.notified(), if self.has_room(life) => {}
                _ = tick.tick() => {
                    if let Some(end) = life.late(limit) {
                        return Some(end);
                    }
                }
            }
        }
    }

    fn has_room(&self, life: &Life) -> bool {
        life.input_gone.is_none()
            && !life.draining
            && self.suspects.is_empty()
            && !life.alone
            && life.hand.len() < self.window
            && life.hand.bytes < MAX_IN_HAND
    }

    /// Hands rows to the process: suspects one at a time, others as the window allows.
    fn feed(&mut self, life: &mut Life) {
        if life.input_gone.is_some() || life.draining {
            return;
        }
        if life.hand.len() == 0 {
            life.alone = false;
            while let Some(job) = self.suspects.pop_front() {
                if !job.reply.is_closed() {
                    life.alone = true;
                    life.give(job);
                    return;
                }
            }
        }
        if !self.has_room(life) {
            return;
        }
        let window = self.window;
        self.pool.take(|job| {
            life.give(job);
            life.hand.len() < window && life.hand.bytes < MAX_IN_HAND
        });
    }

    /// Fits the window to the speed of the answers, so that slow rows spread over all workers.
    fn pace(&mut self, life: &mut Life) {
        if life.since_change < self.window || life.alone {
            return;
        }
        life.since_change = 0;
        if life.latency < PACE.start {
            self.window = (self.window * 2).min(MAX_WINDOW);
        } else if life.latency > PACE.end {
            self.window = (self.window / 2).max(1);
        }
    }

    /// Buries a process, and finds out which row it was.
    async fn end(&mut self, life: Life, end: End) {
        let pool = self.pool.clone();
        // A process may also die of what came before: only the first row of its life is condemned for that.
        let fresh = life.alone && life.answered == 0;
        let mut in_hand = life.hand.into_jobs();
        let words = life.process.last_words.clone();
        let how = match &end {
            End::Output => life.process.how_it_ended(CLOSING).await,
            End::Input => life.process.how_it_ended(CLOSING).await,
            End::Wrong(_) | End::Late => {
                drop(life.process);
                None
            }
        };
        let how = match (how, &end) {
            (Some(how), _) => how,
            (None, End::Output) => "closed its output".to_owned(),
            (None, End::Input) => "closed its input".to_owned(),
            (None, End::Wrong(what)) => what.clone(),
            (None, End::Late) => format!("gave no answer within {}", shown(pool.plan.timeout)),
        };
        pool.warn(&format!(
            "a worker {how}{}; another takes its place",
            words.as_cause()
        ));
        let certain = fresh || matches!(end, End::Late);
        match in_hand.pop_front() {
            Some(job) if certain && in_hand.is_empty() => {
                // Nobody waits for it when the run was abandoned.
                let _unwanted = job.reply.send(Err(format!("the worker {how} on this row")));
                if pool.condemned(&how) < MANY {
                    // The rows behind it have nothing to answer for.
                    pool.put_back(std::mem::take(&mut self.suspects).into_iter());
                }
            }
            Some(first) => {
                in_hand.push_front(first);
                for mut job in in_hand.into_iter().rev() {
                    job.suspect = true;
                    self.suspects.push_front(job);
                }
            }
            None => {}
        }
    }
}

/// One process from its start to its end.
struct Life {
    process: Process,
    wire: Wire,
    hand: Hand,
    /// The row in hand is a suspect.
    alone: bool,
    /// The oldest row has been in hand for too long: no new ones until it is answered.
    draining: bool,
    /// Questions on their way, and how much of them is written.
    out: Vec<u8>,
    written: usize,
    /// What was read and is not understood yet, and how much of it holds no line end.
    held: Vec<u8>,
    scanned: usize,
    block: Vec<u8>,
    answered: u64,
    /// Of the last answer.
    latency: Duration,
    /// Answers since the window was changed.
    since_change: usize,
    /// When something last went forward.
    alive: Instant,
    /// When the process closed its input.
    input_gone: Option<Instant>,
}

impl Life {
    fn new(process: Process, wire: Wire) -> Self {
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

    fn give(&mut self, job: Job) {
        if self.hand.len() == 0 {
            self.alive = Instant::now();
        }
        self.out.extend_from_slice(&job.question);
        self.hand.add(job);
    }

    fn unsent(&self) -> &[u8] {
        if self.input_gone.is_some() {
            return &[];
        }
        self.out.get(self.written..).unwrap_or_default()
    }

    /// Writes as much as the pipe takes.
    fn write(&mut self) -> Result<(), End> {
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
    async fn first_line(&mut self) -> Option<Vec<u8>> {
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
    fn read(&mut self, pool: &Pool) -> Result<(), End> {
        if !self.fill()? {
            return Ok(());
        }
        let held = std::mem::take(&mut self.held);
        let now = Instant::now();
        let mut from = 0;
        let mut result = Ok(());
        while let Some(len) = memchr::memchr(b'\n', held.get(from.max(self.scanned)..).unwrap_or_default()) {
            let end = from.max(self.scanned) + len;
            let line = held.get(from..end).unwrap_or_default();
            from = end + 1;
            result = self.line(line, pool, now);
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

    /// Understands one line and hands on its answer.
    fn line(&mut self, line: &[u8], pool: &Pool, now: Instant) -> Result<(), End> {
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
        let _unwanted = job.reply.send(answer);
        Ok(())
    }

    /// Looks at the clocks.
    fn late(&mut self, limit: Duration) -> Option<End> {
        if self.hand.len() == 0 {
            self.draining = false;
            return self.input_gone.map(|_| End::Input);
        }
        self.draining = self.hand.oldest().is_some_and(|since| since.elapsed() > limit);
        if let Some(gone) = self.input_gone {
            let quiet = gone.max(self.alive).elapsed();
            return (quiet > UNASKED.min(limit)).then_some(End::Input);
        }
        (self.alive.elapsed() > limit).then_some(End::Late)
    }
}

/// A row in hand.
struct Held {
    job: Job,
    since: Instant,
}

/// Whose answer came.
enum Found {
    Job(Held),
    /// A row that was answered before; how often that happened.
    Repeated(u32),
    Unknown,
}

/// The rows that a process has been given and has not answered.
struct Hand {
    rows: Rows,
    /// Bytes of their questions.
    bytes: usize,
    given: u64,
}

enum Rows {
    /// Answered in order.
    Queue(VecDeque<Held>),
    /// Answered in any order, by row id; with the ids answered since the hand was last empty.
    Any {
        held: HashMap<String, (u64, Held)>,
        done: HashSet<String>,
        repeated: u32,
    },
}

impl Hand {
    fn new(wire: Wire) -> Self {
        let rows = match wire {
            Wire::Python { .. } => Rows::Queue(VecDeque::new()),
            Wire::Command => Rows::Any {
                held: HashMap::new(),
                done: HashSet::new(),
                repeated: 0,
            },
        };
        Self {
            rows,
            bytes: 0,
            given: 0,
        }
    }

    fn len(&self) -> usize {
        match &self.rows {
            Rows::Queue(held) => held.len(),
            Rows::Any { held, .. } => held.len(),
        }
    }

    fn add(&mut self, job: Job) {
        self.bytes += job.question.len();
        self.given += 1;
        let held = Held {
            job,
            since: Instant::now(),
        };
        match &mut self.rows {
            Rows::Queue(rows) => rows.push_back(held),
            Rows::Any { held: rows, .. } => {
                rows.insert(held.job.row_id.clone(), (self.given, held));
            }
        }
    }

    fn next(&mut self) -> Option<Held> {
        let Rows::Queue(rows) = &mut self.rows else {
            return None;
        };
        let held = rows.pop_front()?;
        self.bytes -= held.job.question.len();
        Some(held)
    }

    fn find(&mut self, id: &str) -> Found {
        let Rows::Any { held, done, repeated } = &mut self.rows else {
            return Found::Unknown;
        };
        match held.remove(id) {
            Some((_, row)) => {
                self.bytes -= row.job.question.len();
                // Enough to know a repetition by; who repeats itself does so soon.
                if done.len() >= 4 * MAX_WINDOW {
                    done.clear();
                }
                done.insert(id.to_owned());
                Found::Job(row)
            }
            None if done.contains(id) => {
                *repeated += 1;
                Found::Repeated(*repeated)
            }
            None => Found::Unknown,
        }
    }

    fn oldest(&self) -> Option<Instant> {
        match &self.rows {
            Rows::Queue(rows) => rows.front().map(|held| held.since),
            Rows::Any { held, .. } => held.values().map(|(_, held)| held.since).min(),
        }
    }

    /// The rows in the order in which they were given.
    fn into_jobs(self) -> VecDeque<Job> {
        match self.rows {
            Rows::Queue(rows) => rows.into_iter().map(|held| held.job).collect(),
            Rows::Any { held, .. } => {
                let mut rows: Vec<(u64, Held)> = held.into_values().collect();
                rows.sort_by_key(|(given, _)| *given);
                rows.into_iter().map(|(_, held)| held.job).collect()
            }
        }
    }
}

/// `300 s`, `500 ms`.
fn shown(limit: Duration) -> String {
    if limit.subsec_nanos() == 0 {
        format!("{} s", limit.as_secs())
    } else {
        format!("{} ms", limit.as_millis())
    }
}
