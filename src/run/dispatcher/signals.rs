//! Signals, from the first moment of a run to its last.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::event::{Event, EventSender};
use crate::run::executor::Halt;

/// Whether the user asked the run to end.
#[derive(Clone, Debug, Default)]
pub struct Interrupted(Arc<AtomicBool>);

impl Interrupted {
    /// True after the first Ctrl-C, SIGTERM or SIGHUP.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// How far a run was when a signal came that nothing waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It had not begun.
    Before,
    /// It was told twice to stop and is still about it, or it is over and its end is being told.
    Late,
}

/// Catches Ctrl-C, SIGTERM and SIGHUP: a run under way is halted, anything else is left at once.
#[derive(Clone, Debug)]
pub struct Signals(Arc<Mutex<Stage>>);

/// Who is to be told.
#[derive(Debug)]
enum Stage {
    /// Nobody yet: chain and input are being looked at.
    Before,
    /// The run, which was told this often.
    Running { run: Run, times: u32 },
    /// Nobody any more; this many signals came.
    After { times: u32 },
}

/// A run that can be halted.
#[derive(Debug)]
struct Run {
    halt: Halt,
    interrupted: Interrupted,
    events: EventSender,
}

impl Signals {
    /// Catches signals from here on. `leave` is called where there is no run that could end by itself, and
    /// ends the program; whatever is on disk then can be gone on with.
    ///
    /// # Errors
    /// The system refuses a handler or a thread.
    pub fn catch(leave: impl Fn(Moment) + Send + 'static) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let mut caught = {
            // The handlers are in place when this returns, not when the thread comes to run.
            let _context = runtime.enter();
            Caught {
                int: signal(SignalKind::interrupt())?,
                term: signal(SignalKind::terminate())?,
                hup: signal(SignalKind::hangup())?,
            }
        };
        let stage = Arc::new(Mutex::new(Stage::Before));
        let own = stage.clone();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                runtime.block_on(async {
                    loop {
                        caught.next().await;
                        // Held while it leaves: no run begins meanwhile.
                        lock(&own).signalled(&leave);
                    }
                });
            })?;
        Ok(Self(stage))
    }

    /// From here on a signal stops a run, the second one abandons what is in flight.
    pub(in crate::run) fn watch(&self, halt: Halt, events: EventSender) -> Interrupted {
        let interrupted = Interrupted::default();
        let run = Run {
            halt,
            interrupted: interrupted.clone(),
            events,
        };
        *lock(&self.0) = Stage::Running { run, times: 0 };
        interrupted
    }

    /// The run is over.
    pub(in crate::run) fn release(&self) {
        *lock(&self.0) = Stage::After { times: 0 };
    }
}

fn lock(stage: &Mutex<Stage>) -> MutexGuard<'_, Stage> {
    stage.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage {
    fn signalled(&mut self, leave: &impl Fn(Moment)) {
        match self {
            Self::Before => leave(Moment::Before),
            Self::Running { run, times } => {
                *times += 1;
                run.interrupted.0.store(true, Ordering::Release);
                run.halt.stop.cancel();
                match times {
                    1 => run.events.send(Event::Warning {
                        message: "stopping: requests in flight get 5 s, then everything is committed \
                                  (again to stop now)"
                            .into(),
                    }),
                    2 => run.halt.abandon.cancel(),
                    _ => leave(Moment::Late),
                }
            }
            // It ends by itself, unless whoever should read its last words does not.
            Self::After { times } => {
                *times += 1;
                if *times > 1 {
                    leave(Moment::Late);
                }
            }
        }
    }
}

/// The signals that end a run.
struct Caught {
    int: Signal,
    term: Signal,
    hup: Signal,
}

impl Caught {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
            _ = self.hup.recv() => {}
        }
    }
}
