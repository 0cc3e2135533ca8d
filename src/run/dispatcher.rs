//! Talks to the world: signals come in, events go out to reports.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use super::executor::Halt;
use crate::event::{Event, EventSender, Progress, Report, Status};

/// Events that may wait for a slow reader; more are counted and dropped.
const QUEUE: usize = 8192;
const TICK: Duration = Duration::from_secs(10);
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
    pub fn start(mut reports: Vec<Box<dyn Report>>) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel::<(SystemTime, Event)>(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let finished = Arc::new(AtomicBool::new(false));
        let status = StatusLine::default();
        let (lost, done, lines) = (dropped.clone(), finished.clone(), status.clone());
        let thread = std::thread::Builder::new()
            .name("dispatcher".into())
            .spawn(move || {
                let started = Instant::now();
                let mut progress = Progress::default();
                let mut tick = started + TICK;
                let mut rows_at_tick = 0;
                loop {
                    let received = receiver.recv_timeout(tick.saturating_duration_since(Instant::now()));
                    progress.seconds = started.elapsed().as_secs_f64();
                    progress.dropped = lost.load(Ordering::Relaxed);
                    match received {
                        Ok((at, event)) => {
                            count(&mut progress, &event);
                            reports
                                .iter_mut()
                                .for_each(|report| report.event(at, &event, &progress));
                            if matches!(event, Event::RunFinished(_)) {
                                done.store(true, Ordering::Release);
                            }
                        }
                        Err(RecvTimeoutError::Timeout) => {}
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                    if Instant::now() >= tick {
                        if let Some(status) = &*lines.lock().unwrap_or_else(PoisonError::into_inner) {
                            progress.status = status();
                        }
                        // Rows that wait for a straggler are done: the engine works at their rate.
                        let done = progress.rows + progress.status.rows_waiting;
                        progress.recent = done.saturating_sub(rows_at_tick) as f64 / TICK.as_secs_f64();
                        rows_at_tick = done;
                        reports.iter_mut().for_each(|report| report.tick(&progress));
                        tick = Instant::now() + TICK;
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
                .is_none_or(|sender| sender.try_send((SystemTime::now(), event)).is_err());
            if full {
                dropped.fetch_add(1, Ordering::Relaxed);
            }
        })
    }

    /// Sends the last event and waits until the reports have seen it, though not for ever.
    pub fn finish(mut self, last: Event) {
        let deadline = Instant::now() + LAST_WAIT;
        let mut last = Some((SystemTime::now(), last));
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

fn count(progress: &mut Progress, event: &Event) {
    match event {
        Event::RunStarted { total, .. } => progress.total = *total,
        Event::StepTotal { node, total } if node == "chain_input" => progress.total = Some(*total),
        Event::Resumed { rows, .. } => progress.rows_before = *rows,
        Event::ChunkFinished { rows, failed, .. } => {
            progress.rows += rows;
            progress.failed += failed;
        }
        Event::RowsFinished { node, rows } => match progress.nodes.get_mut(node) {
            Some(done) => *done += rows,
            None => {
                progress.nodes.insert(node.clone(), *rows);
            }
        },
        _ => {}
    }
}

/// Whether the user asked the run to end.
#[derive(Clone, Debug, Default)]
pub struct Interrupted(Arc<AtomicBool>);

impl Interrupted {
    /// True after the first Ctrl-C, SIGTERM or SIGHUP.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Turns signals into a halt: the first stops, the second abandons.
pub(super) fn watch_signals(
    halt: Halt,
    interrupted: Interrupted,
    events: EventSender,
) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut int = signal(SignalKind::interrupt())?;
    let mut term = signal(SignalKind::terminate())?;
    let mut hup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        for times in 1.. {
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
                _ = hup.recv() => {}
            }
            interrupted.0.store(true, Ordering::Release);
            halt.stop.cancel();
            if times > 1 {
                halt.abandon.cancel();
                return;
            }
            let message =
                "stopping: requests in flight get 5 s, then everything is committed (again to stop now)";
            events.send(Event::Warning {
                message: message.into(),
            });
        }
    });
    Ok(())
}
