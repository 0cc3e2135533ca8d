//! The one way to CPU work: a pool of threads beside the async ones.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::task::ArcWake;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use crate::expr::jq;

const STACK: usize = 64 << 20;

/// Threads for parsing, jq and closures; cheap to clone.
#[derive(Clone)]
pub struct Cpu(Arc<ThreadPool>);

impl Cpu {
    /// A pool with one thread per core.
    pub fn new() -> Result<Self, ThreadPoolBuildError> {
        let pool = ThreadPoolBuilder::new()
            .thread_name(|i| format!("cpu-{i}"))
            .stack_size(STACK)
            .start_handler(|_| jq::set_stack(STACK / 4 * 3))
            .build()?;
        Ok(Self(Arc::new(pool)))
    }

    /// Threads in the pool.
    pub fn threads(&self) -> usize {
        self.0.current_num_threads()
    }

    /// Runs `f` on the pool, some time.
    pub fn spawn(&self, f: impl FnOnce() + Send + 'static) {
        self.0.spawn(f);
    }

    /// Leads a future to its end on the pool; it must not panic, and need no async runtime.
    pub fn follow(&self, future: impl Future<Output = ()> + Send + 'static) {
        let task = Arc::new(Task {
            cpu: self.clone(),
            future: Mutex::new(Some(future.boxed())),
            state: AtomicU8::new(ASLEEP),
        });
        Task::wake_by_ref(&task);
    }

    /// Runs `f` on the pool and waits for it; on the pool already, runs it at once.
    ///
    /// None when `f` panicked.
    pub async fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        if on_pool() {
            return Some(f());
        }
        let (send, receive) = tokio::sync::oneshot::channel();
        self.0.spawn(move || {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
            // The receiver is gone when the run was abandoned; nobody wants the result then.
            let _unwanted = send.send(done.ok());
        });
        receive.await.ok().flatten()
    }
}

/// A future that is polled on the CPU pool whenever it is woken.
struct Task {
    cpu: Cpu,
    /// None once it is done.
    future: Mutex<Option<BoxFuture<'static, ()>>>,
    state: AtomicU8,
}

/// Nobody has woken it.
const ASLEEP: u8 = 0;
/// It is about to be polled, or being polled.
const AWAKE: u8 = 1;
/// It was woken while being polled.
const AGAIN: u8 = 2;

impl Task {
    /// Polls until nobody wakes it any more.
    fn run(self: &Arc<Self>) {
        let waker = futures::task::waker_ref(self);
        let mut cx = Context::from_waker(&waker);
        loop {
            self.state.store(AWAKE, Ordering::SeqCst);
            let mut future = self.future.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(pending) = future.as_mut() else { return };
            if pending.as_mut().poll(&mut cx).is_ready() {
                *future = None;
                return;
            }
            drop(future);
            let slept = self
                .state
                .compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst);
            if slept.is_ok() {
                return;
            }
        }
    }
}

impl ArcWake for Task {
    fn wake_by_ref(task: &Arc<Self>) {
        let woken = |state| match state {
            ASLEEP => Some(AWAKE),
            _ => Some(AGAIN),
        };
        let before = task.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, woken);
        if before == Ok(ASLEEP) {
            let own = task.clone();
            task.cpu.spawn(move || own.run());
        }
    }
}

/// True on a thread of a CPU pool.
pub(super) fn on_pool() -> bool {
    rayon::current_thread_index().is_some()
}

/// Ends the part of a row's way that runs on the CPU pool: the next poll comes from the async side.
pub(super) async fn leave() {
    struct Leave;
    impl Future for Leave {
        type Output = ();
        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            if !on_pool() {
                return Poll::Ready(());
            }
            // Whoever polls on the pool hands the future over; combinators in between poll again
            // only what was woken.
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    }
    Leave.await;
}
