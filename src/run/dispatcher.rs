//! Talks to the world: signals come in, events go out to reports.

mod signals;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use super::watch::Tracker;
use crate::clock::Clock;
use crate::event::{Event, EventSender, Progress, Report, Status};
pub use signals::{Interrupted, Moment, Signals};

/// Events that may wait for a slow reader; more are counted and dropped.
const QUEUE: usize = 8192;
/// How often the run is looked at, if no report wants to be ticked more often.
const LOOK: Duration = Duration::from_secs(1);
/// Different warnings that are remembered, so that each is shown once.
const WARNINGS: usize = 1000;
/// How long the last event may wait for a slow reader.
const LAST_WAIT: Duration = Duration::from_secs(2);
/// How long requests in flight may go on after the first Ctrl-C.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// Says what the run is at; none while nothing runs.
pub type StatusLine = Arc<Mutex<Option<Box<dyn Fn() -> Status + Send>>>>;

/// Counts events and hands them to reports, on a thread of its own.
pub struct Dispatcher {
    sender: Option<SyncSender<(SystemTime, Event)>>,
    dropped: Arc<AtomicU64>,
    finished: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Set while a run is on.
    pub status: StatusLine,
}

impl Dispatcher {
    /// Starts the thread.
    pub fn start(reports: Vec<Box<dyn Report>>) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel::<(SystemTime, Event)>(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let finished = Arc::new(AtomicBool::new(false));
        let status = StatusLine::default();
        let (lost, done, lines) = (dropped.clone(), finished.clone(), status.clone());
        let thread = std::thread::Builder::new()
            .name("dispatcher".into())
            .spawn(move || {
                let mut desk = Desk {
                    reports,
                    progress: Progress::default(),
                    tracker: Tracker::default(),
                    warned: HashSet::new(),
                };
                let every = desk.reports.iter().map(|report| report.every());
                let every = every.min().unwrap_or(LOOK).min(LOOK);
                let mut started = Instant::now();
                let mut tick = started + every;
                loop {
                    let received = receiver.recv_timeout(tick.saturating_duration_since(Instant::now()));
                    desk.progress.dropped = lost.load(Ordering::Relaxed);
                    match received {
                        Ok((at, event)) => {
                            if matches!(event, Event::RunStarted { .. }) {
                                started = Instant::now();
                                tick = started + every;
                            }
                            desk.progress.seconds = started.elapsed().as_secs_f64();
                            desk.event(at, &event);
                            if matches!(event, Event::RunFinished(_)) {
                                done.store(true, Ordering::Release);
                            }
                        }
                        Err(RecvTimeoutError::Timeout) => {}
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                    if Instant::now() >= tick {
                        desk.progress.seconds = started.elapsed().as_secs_f64();
                        if let Some(status) = ask(&lines) {
                            desk.look(status);
                        }
                        tick = Instant::now() + every;
                    }
                }
            })?;
        Ok(Self {
            sender: Some(sender),
            dropped,
            finished,
            thread: Some(thread),
            status,
        })
    }

    /// A way to send events here; it never blocks.
    pub fn events(&self) -> EventSender {
        let (sender, dropped) = (self.sender.clone(), self.dropped.clone());
        EventSender::new(move |event| {
            let full = sender
                .as_ref()
                .is_none_or(|sender| sender.try_send((Clock::now(), event)).is_err());
            if full {
                dropped.fetch_add(1, Ordering::Relaxed);
            }
        })
    }

    /// Sends the last event and waits until the reports have seen it, though not for ever.
    pub fn finish(mut self, last: Event) {
        let deadline = Instant::now() + LAST_WAIT;
        let mut last = Some((Clock::now(), last));
        while let (Some(event), Some(sender)) = (last.take(), &self.sender) {
            match sender.try_send(event) {
                Err(std::sync::mpsc::TrySendError::Full(event)) if Instant::now() < deadline => {
                    last = Some(event);
                    std::thread::sleep(Duration::from_millis(10));
                }
                _ => {}
            }
        }
        self.sender = None;
        while !self.finished.load(Ordering::Acquire) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.finished.load(Ordering::Acquire)
            && let Some(thread) = self.thread.take()
            && thread.is_finished()
        {
            // A report that panicked has shown its message already.
            let _shown = thread.join();
        }
    }
}

/// What the run is at. The lock is given back before any report writes: the run takes it at its end.
fn ask(line: &StatusLine) -> Option<Status> {
    let line = line.lock().unwrap_or_else(PoisonError::into_inner);
    line.as_ref().map(|status| status())
}

/// The reports, and what they are told.
struct Desk {
    reports: Vec<Box<dyn Report>>,
    progress: Progress,
    tracker: Tracker,
    /// Warnings that were shown.
    warned: HashSet<String>,
}

impl Desk {
    /// Counts an event and hands it on; a warning only the first time.
    fn event(&mut self, at: SystemTime, event: &Event) {
        if let Event::Warning { message } = event {
            if self.warned.contains(message) {
                return;
            }
            if self.warned.len() < WARNINGS {
                self.warned.insert(message.clone());
            }
        }
        count(&mut self.progress, event);
        for report in &mut self.reports {
            report.event(at, event, &self.progress);
        }
    }

    /// Tells what the run is at, and what is new about it.
    fn look(&mut self, mut status: Status) {
        let recent = std::mem::take(&mut status.recent);
        self.progress.status = status;
        self.tracker.update(&mut self.progress);
        let now = Clock::now();
        for (node, total) in self.tracker.news(&self.progress) {
            let (total, estimate) = (total.rows, total.estimate);
            self.event(
                now,
                &Event::StepTotal {
                    node,
                    total,
                    estimate,
                },
            );
        }
        for exchange in recent {
            self.event(now, &Event::Request(exchange));
        }
        for report in &mut self.reports {
            report.tick(&self.progress);
        }
    }
}

fn count(progress: &mut Progress, event: &Event) {
    match event {
        Event::RunStarted { total, chain, .. } => {
            progress.chain.clone_from(chain);
            progress.total = progress.total.or(*total);
        }
        Event::Resumed { rows, answers, .. } => {
            progress.rows_before = *rows;
            progress.answers_before = *answers;
        }
        Event::StepTotal { node, total, .. } if node == "chain_input" => progress.total = Some(*total),
        Event::ChunkFinished { rows, failed, .. } => {
            progress.rows += rows;
            progress.failed += failed;
        }
        _ => {}
    }
}
