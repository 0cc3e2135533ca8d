//! A worker: a thread that loads a model, owns it, and answers requests until it is told to end.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::batch::{Batch, Failure};
use super::capability::{Capability, LoadError, Loader, ModelError, Size};
use super::queue::Queue;
use crate::engine::broker::Booking;

/// What a worker tells whoever looks after it.
pub(super) enum Told {
    /// Its model panicked, and is loaded anew.
    Panicked(String),
    /// It has ended; an error if it could not load its model again.
    Ended(Option<LoadError>),
}

/// Hears when a worker's model is loaded, and how long that took.
pub(super) type Loaded = oneshot::Receiver<Result<Duration, LoadError>>;

/// All that a worker needs.
pub(super) struct Worker<C: Capability> {
    pub(super) name: String,
    pub(super) loader: Arc<dyn Loader<C>>,
    pub(super) queue: Arc<Queue<C>>,
    pub(super) size: Size,
    /// Threads that it computes with.
    pub(super) threads: usize,
    /// Its memory, which is given back when the thread has ended, however long that takes.
    pub(super) booking: Booking,
    pub(super) told: mpsc::UnboundedSender<Told>,
}

impl<C: Capability> Worker<C> {
    /// Starts the thread; the receiver hears when its model is loaded, and how long that took.
    pub(super) fn start(self) -> std::io::Result<(JoinHandle<()>, Loaded)> {
        let (loaded, hear) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(format!("model {}", self.name))
            .spawn(move || self.live(loaded))?;
        Ok((thread, hear))
    }

    fn live(self, loaded: oneshot::Sender<Result<Duration, LoadError>>) {
        // Whatever is computed in parallel on this thread stays within its share of the processor.
        let _threads = rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads.max(1))
            .use_current_thread()
            .build();
        let mut model = match self.load() {
            Ok((model, took)) => {
                self.queue.worker_ready(took);
                if loaded.send(Ok(took)).is_err() {
                    // It took too long, and nobody wants it any more.
                    drop(model);
                    self.queue.worker_gone();
                    return self.tell(Told::Ended(None));
                }
                model
            }
            Err(error) => {
                let _late = loaded.send(Err(error));
                return self.tell(Told::Ended(None));
            }
        };
        let mut end = None;
        while let Some(first) = self.queue.next() {
            let mut batch = Batch::new(first, self.size.batch, Arc::clone(&self.queue));
            let done = catch_unwind(AssertUnwindSafe(|| C::answer(&mut model, &mut batch)));
            let panic = done.err().map(|panic| words(&*panic));
            self.settle(batch, panic.as_deref());
            self.queue.rest();
            if let Some(why) = panic {
                self.queue.panicked();
                self.tell(Told::Panicked(why));
                // What is left of the model after that is not to be trusted.
                drop(model);
                let loaded = self.load();
                let took = loaded.as_ref().ok().map(|(_, took)| *took);
                self.queue.came_anew(took);
                match loaded {
                    Ok((anew, _)) => model = anew,
                    Err(error) => {
                        end = Some(error);
                        self.queue.worker_gone();
                        return self.tell(Told::Ended(end));
                    }
                }
            }
        }
        drop(model);
        self.queue.worker_gone();
        self.tell(Told::Ended(end));
    }

    /// Answers those whom the model has left without an answer.
    fn settle(&self, batch: Batch<C>, panic: Option<&str>) {
        let mut left = batch.unanswered();
        match panic {
            // Which of them it was is found out one by one.
            Some(_) if left.len() > 1 => self.queue.put_back(left),
            _ => {
                let why = match panic {
                    Some(why) => format!("the model panicked at this request: {why}"),
                    None => "the model gave no answer to this request".to_owned(),
                };
                for job in left.drain(..) {
                    let failed = ModelError::Failed(why.clone());
                    let _gone = job.answer.send(Err(Failure::Model(failed)));
                }
            }
        }
    }

    /// Loads the model, and corrects what is booked for it by what the process grew.
    fn load(&self) -> Result<(Box<C::Model>, Duration), LoadError> {
        let began = Instant::now();
        let _one_by_one = self.booking.loading();
        let before = resident();
        let model = catch_unwind(AssertUnwindSafe(|| self.loader.load())).unwrap_or_else(|panic| {
            Err(LoadError::new(format!("loading it panicked: {}", words(&*panic))))
        })?;
        if let (Some(before), Some(after)) = (before, resident()) {
            self.booking
                .correct(&self.size.need, after.saturating_sub(before));
        }
        Ok((model, began.elapsed()))
    }

    fn tell(&self, what: Told) {
        let _gone = self.told.send(what);
    }
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it said nothing".to_owned())
}

/// Bytes of memory that this process has; none where the system does not tell.
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}
