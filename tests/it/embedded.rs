//! Pools of models in this process, with models made for the purpose.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use chainette::engine::broker::Budget;
use chainette::engine::embedded::{
    Batch, Embedded, LoadError, Loader, ModelError, Pool, PoolConfig, PoolError, PoolNews, Pools, Size,
    TextEmbedder, TextEmbedding,
};
use chainette::engine::provision::Need;
use futures::future::join_all;

const MIB: u64 = 1 << 20;
/// What nothing here takes on any machine.
const LIMIT: Duration = Duration::from_secs(60);

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(LIMIT, work).await.expect("it ends") })
}

/// A door that a thread waits at.
#[derive(Default)]
struct Door {
    open: Mutex<bool>,
    moved: Condvar,
}

impl Door {
    fn open(&self) {
        *self.open.lock().expect("no panic") = true;
        self.moved.notify_all();
    }

    fn pass(&self) {
        let open = self.open.lock().expect("no panic");
        let _open = self.moved.wait_while(open, |open| !*open).expect("no panic");
    }
}

/// A model that embeds a text as its length, as it is told.
#[derive(Default)]
struct Toy {
    ram: u64,
    batch: usize,
    loads: AtomicUsize,
    /// Models there are now, and the most there were.
    alive: AtomicUsize,
    most: AtomicUsize,
    /// Why it does not load.
    broken: Option<&'static str>,
    /// A look at its files waits here.
    at_size: Option<Arc<Door>>,
    /// Loading waits here.
    at_load: Option<Arc<Door>>,
    /// Each batch waits here.
    at_work: Option<Arc<Door>>,
    /// Batches at work.
    working: AtomicUsize,
}

struct Loaded(Arc<Toy>);

impl Drop for Loaded {
    fn drop(&mut self) {
        self.0.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Toys(Arc<Toy>);

impl Loader<TextEmbedder> for Toys {
    fn size(&self) -> Result<Size, LoadError> {
        if let Some(door) = &self.0.at_size {
            door.pass();
        }
        Ok(Size {
            need: Need {
                ram: self.0.ram,
                vram: Vec::new(),
            },
            batch: self.0.batch.max(1),
            workers: 1,
        })
    }

    fn load(&self) -> Result<Box<dyn TextEmbedding>, LoadError> {
        self.0.loads.fetch_add(1, Ordering::SeqCst);
        if let Some(door) = &self.0.at_load {
            door.pass();
        }
        if let Some(why) = self.0.broken {
            return Err(LoadError::new(why));
        }
        let alive = self.0.alive.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most.fetch_max(alive, Ordering::SeqCst);
        Ok(Box::new(Loaded(Arc::clone(&self.0))))
    }

    fn doing(&self) -> Option<String> {
        self.0.at_size.as_ref().map(|_| "fetching toy".to_owned())
    }
}

impl TextEmbedding for Loaded {
    fn embed(&mut self, batch: &mut Batch<TextEmbedder>) {
        self.0.working.fetch_add(1, Ordering::SeqCst);
        if let Some(door) = &self.0.at_work {
            door.pass();
        }
        for at in 0..batch.len() {
            let Some(text) = batch.request(at) else { continue };
            match text.as_str() {
                "panic" => panic!("a bug of the model"),
                "silence" => {}
                "refused" => batch.answer(at, Err(ModelError::Refused("not this one".to_owned()))),
                text => batch.answer(
                    at,
                    Ok(Embedded {
                        vector: vec![text.len() as f32],
                        tokens: 1,
                    }),
                ),
            }
        }
        self.0.working.fetch_sub(1, Ordering::SeqCst);
    }
}

fn pools(ram: u64) -> Pools {
    Pools::within(Budget {
        ram,
        vram: BTreeMap::new(),
    })
}

fn config(name: &str) -> PoolConfig {
    PoolConfig {
        maintenance: Duration::from_millis(20),
        ..PoolConfig::new(name)
    }
}

fn toy(ram: u64) -> Toy {
    Toy {
        ram,
        batch: 4,
        ..Toy::default()
    }
}

fn add(pools: &Pools, config: PoolConfig, toy: &Arc<Toy>) -> Pool<TextEmbedder> {
    pools.add::<TextEmbedder>(config, Arc::new(Toys(Arc::clone(toy))))
}

async fn length(pool: &Pool<TextEmbedder>, text: &str) -> Result<f32, PoolError> {
    Ok(pool.ask(text.to_owned()).await?.vector[0])
}

async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let reached = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, reached)
        .await
        .unwrap_or_else(|_| panic!("{what}"));
}

#[test]
fn sixty_four_callers_share_one_load() {
    block_on(async {
        let (pools, toy) = (pools(MIB), Arc::new(toy(1000)));
        let pool = add(
            &pools,
            PoolConfig {
                queue: 8,
                ..config("toy")
            },
            &toy,
        );
        pools.start();
        let texts: Vec<String> = (0..64).map(|n| "x".repeat(n)).collect();
        let answers = join_all(texts.iter().map(|text| length(&pool, text))).await;
        for (n, answer) in answers.into_iter().enumerate() {
            assert_eq!(answer, Ok(n as f32), "everyone has their own answer");
        }
        assert_eq!(toy.loads.load(Ordering::SeqCst), 1);
        let metrics = pool.metrics();
        assert_eq!((metrics.answered, metrics.failed, metrics.loads), (64, 0, 1));
        assert!(metrics.most_waiting <= 8, "{metrics:?}");
        pools.shutdown().await;
        assert_eq!(toy.alive.load(Ordering::SeqCst), 0);
        assert_eq!(pools.memory().booked(), Need::default());
        assert_eq!(length(&pool, "x").await, Err(PoolError::Closed));
    });
}

#[test]
fn a_load_that_fails_reaches_everyone_who_waits_and_is_tried_again_for_the_next() {
    block_on(async {
        let pools = pools(MIB);
        let toy = Arc::new(Toy {
            broken: Some("its file is torn"),
            ..toy(1000)
        });
        let pool = add(&pools, config("toy"), &toy);
        let waiting: Vec<_> = (0..20).map(|_| length(&pool, "x")).collect();
        pools.start();
        for answer in join_all(waiting).await {
            assert_eq!(answer, Err(PoolError::Load(LoadError::new("its file is torn"))));
        }
        let before = toy.loads.load(Ordering::SeqCst);
        assert!(length(&pool, "x").await.is_err());
        assert!(toy.loads.load(Ordering::SeqCst) > before);
        until("what it booked comes back", || {
            pools.memory().booked() == Need::default()
        })
        .await;
        pools.shutdown().await;
    });
}

#[test]
fn a_model_that_never_fits_is_told_at_once() {
    block_on(async {
        let (pools, toy) = (pools(MIB), Arc::new(toy(2 * MIB)));
        let pool = add(&pools, config("toy"), &toy);
        pools.start();
        let error = length(&pool, "x").await.expect_err("it does not fit");
        insta::assert_snapshot!("embedded_never_fits", error);
        assert_eq!(toy.loads.load(Ordering::SeqCst), 0);
        pools.shutdown().await;
    });
}

#[test]
fn a_panic_fails_its_request_only() {
    block_on(async {
        let pools = pools(MIB);
        let door = Arc::new(Door::default());
        let toy = Arc::new(Toy {
            at_work: Some(Arc::clone(&door)),
            batch: 8,
            ..toy(1000)
        });
        let news = Arc::new(Mutex::new(Vec::new()));
        let hear = Arc::clone(&news);
        let pool =
            pools.add_heard::<TextEmbedder>(config("toy"), Arc::new(Toys(Arc::clone(&toy))), move |it| {
                hear.lock().expect("no panic").push(it);
            });
        pools.start();
        let texts = ["a", "bb", "panic", "ccc", "silence", "refused", "dddd"];
        let asked = texts.map(|text| length(&pool, text));
        let (answers, ()) = tokio::join!(join_all(asked), async {
            until("all wait", || toy.working.load(Ordering::SeqCst) > 0).await;
            door.open();
        });
        let lengths: Vec<Option<f32>> = answers.iter().map(|it| it.as_ref().ok().copied()).collect();
        assert_eq!(
            lengths,
            [Some(1.0), Some(2.0), None, Some(3.0), None, None, Some(4.0)]
        );
        let said = |at: usize| answers[at].as_ref().expect_err("an error").to_string();
        insta::assert_snapshot!("embedded_faults", [said(2), said(4), said(5)].join("\n"));
        let panicked = |it: &PoolNews| matches!(it, PoolNews::Panicked { .. });
        until("it is told", || {
            news.lock().expect("no panic").iter().any(panicked)
        })
        .await;
        assert_eq!(length(&pool, "after").await, Ok(5.0), "it goes on");
        let metrics = pool.metrics();
        assert!(metrics.panics >= 1, "{metrics:?}");
        assert_eq!(metrics.loads, 1 + metrics.panics, "it is loaded anew each time");
        pools.shutdown().await;
    });
}

#[test]
fn two_models_over_the_budget_take_turns_and_none_goes_while_it_works() {
    block_on(async {
        let pools = pools(1500);
        let door = Arc::new(Door::default());
        let (one, two) = (
            Arc::new(Toy {
                at_work: Some(Arc::clone(&door)),
                ..toy(1000)
            }),
            Arc::new(toy(1000)),
        );
        let (first, second) = (add(&pools, config("one"), &one), add(&pools, config("two"), &two));
        pools.start();
        let work = tokio::spawn({
            let first = first.clone();
            async move { length(&first, "x").await }
        });
        until("the first works", || one.working.load(Ordering::SeqCst) == 1).await;
        let wait = tokio::spawn({
            let second = second.clone();
            async move { length(&second, "xx").await }
        });
        assert_eq!(first.absent(), None);
        let room = "waiting for room in memory";
        until("the second has none", || second.absent().as_deref() == Some(room)).await;
        // It would come now, if anything let it.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(
            two.loads.load(Ordering::SeqCst),
            0,
            "there is no room while the first works"
        );
        door.open();
        assert_eq!(work.await.expect("no panic"), Ok(1.0));
        assert_eq!(wait.await.expect("no panic"), Ok(2.0));
        for n in 0..3 {
            assert_eq!(length(&first, "x").await, Ok(1.0), "{n}");
            assert_eq!(length(&second, "xx").await, Ok(2.0), "{n}");
            assert!(one.alive.load(Ordering::SeqCst) + two.alive.load(Ordering::SeqCst) <= 1);
        }
        pools.shutdown().await;
        assert_eq!(pools.memory().booked(), Need::default());
    });
}

#[test]
fn a_shutdown_does_not_wait_for_a_load_and_its_memory_comes_back() {
    block_on(async {
        let pools = pools(MIB);
        let door = Arc::new(Door::default());
        let toy = Arc::new(Toy {
            at_load: Some(Arc::clone(&door)),
            ..toy(1000)
        });
        let pool = add(&pools, config("toy"), &toy);
        pools.start();
        let asked = tokio::spawn({
            let pool = pool.clone();
            async move { length(&pool, "x").await }
        });
        until("it loads", || toy.loads.load(Ordering::SeqCst) == 1).await;
        pool.close();
        assert_eq!(asked.await.expect("no panic"), Err(PoolError::Closed));
        pools.shutdown().await;
        assert_ne!(
            pools.memory().booked(),
            Need::default(),
            "the thread still has its memory"
        );
        door.open();
        until("it is given back", || pools.memory().booked() == Need::default()).await;
        assert_eq!(toy.alive.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn a_pool_says_what_is_done_about_its_model_and_how_long_it_is_at_work() {
    block_on(async {
        let pools = pools(MIB);
        let doors: [Arc<Door>; 3] = Default::default();
        let [at_size, at_load, at_work] = doors.each_ref().map(|door| Some(Arc::clone(door)));
        let toy = Arc::new(Toy {
            at_size,
            at_load,
            at_work,
            ..toy(1000)
        });
        let pool = add(&pools, config("toy"), &toy);
        assert_eq!(pool.absent(), None, "nobody asks");
        pools.start();
        let asked = tokio::spawn({
            let pool = pool.clone();
            async move { length(&pool, "x").await }
        });
        for (at, what) in ["fetching toy", "loading its model"].into_iter().enumerate() {
            until(what, || pool.absent().as_deref() == Some(what)).await;
            assert!(!pool.is_at_work());
            doors[at].open();
        }
        until("it works", || pool.is_at_work()).await;
        assert_eq!(pool.absent(), None);
        // Told while the batch is under way: one may be as long as a run.
        until("that counts", || pool.metrics().busy > Duration::ZERO).await;
        doors[2].open();
        assert_eq!(asked.await.expect("no panic"), Ok(1.0));
        until("it rests", || !pool.is_at_work()).await;
        let busy = pool.metrics().busy;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(pool.metrics().busy, busy, "who rests is not busy");
        pools.shutdown().await;
    });
}

#[test]
fn a_load_has_a_clock_of_its_own() {
    block_on(async {
        let pools = pools(MIB);
        let door = Arc::new(Door::default());
        let slow = Arc::new(Toy {
            at_load: Some(Arc::clone(&door)),
            ..toy(1000)
        });
        let patient = PoolConfig {
            request_timeout: Duration::from_millis(50),
            ..config("patient")
        };
        let pool = add(&pools, patient, &slow);
        pools.start();
        let asked = tokio::spawn(async move { length(&pool, "x").await });
        // Longer than a request may take.
        tokio::time::sleep(Duration::from_millis(300)).await;
        door.open();
        assert_eq!(asked.await.expect("no panic"), Ok(1.0));
        let hasty = PoolConfig {
            load_timeout: Duration::from_millis(50),
            ..config("hasty")
        };
        let never = Arc::new(Toy {
            at_load: Some(Arc::new(Door::default())),
            ..toy(1000)
        });
        let pool = add(&pools, hasty, &never);
        pools.start();
        let error = length(&pool, "x").await.expect_err("it is late");
        insta::assert_snapshot!("embedded_load_is_late", error);
    });
}

#[test]
fn more_workers_come_while_all_are_busy_and_memory_allows() {
    // Large enough that a few pages which the process grows by while a toy is loaded change nothing.
    const EACH: u64 = 64 * MIB;
    let most = |ram: u64| {
        block_on(async move {
            let pools = pools(ram);
            let door = Arc::new(Door::default());
            let toy = Arc::new(Toy {
                at_work: Some(Arc::clone(&door)),
                batch: 1,
                ..toy(EACH)
            });
            let many = PoolConfig {
                workers: Some(3),
                ..config("toy")
            };
            let pool = add(&pools, many, &toy);
            pools.start();
            let asked: Vec<_> = (0..8)
                .map(|_| {
                    let pool = pool.clone();
                    tokio::spawn(async move { length(&pool, "x").await })
                })
                .collect();
            let room = usize::try_from(ram / EACH).expect("few").min(3);
            until("as many as there is room for", || {
                toy.working.load(Ordering::SeqCst) == room
            })
            .await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            door.open();
            for answer in join_all(asked).await {
                assert_eq!(answer.expect("no panic"), Ok(1.0));
            }
            pools.shutdown().await;
            assert_eq!(pools.memory().booked(), Need::default());
            toy.most.load(Ordering::SeqCst)
        })
    };
    assert_eq!(most(10 * EACH), 3);
    assert_eq!(most(5 * EACH / 2), 2);
}

#[test]
fn a_model_that_is_idle_is_let_go_and_comes_again() {
    block_on(async {
        let (pools, toy) = (pools(MIB), Arc::new(toy(1000)));
        let brief = PoolConfig {
            idle_timeout: Duration::from_millis(60),
            ..config("toy")
        };
        let pool = add(&pools, brief, &toy);
        pools.start();
        for n in 1..=3 {
            assert_eq!(length(&pool, "x").await, Ok(1.0));
            until("it goes", || toy.alive.load(Ordering::SeqCst) == 0).await;
            until("its memory too", || pools.memory().booked() == Need::default()).await;
            assert_eq!(toy.loads.load(Ordering::SeqCst), n);
        }
        pools.shutdown().await;
    });
}

#[test]
fn a_request_that_is_taken_back_is_not_worked_on() {
    block_on(async {
        let pools = pools(MIB);
        let door = Arc::new(Door::default());
        let toy = Arc::new(Toy {
            at_work: Some(Arc::clone(&door)),
            batch: 1,
            ..toy(1000)
        });
        let pool = add(&pools, config("toy"), &toy);
        pools.start();
        let first = tokio::spawn({
            let pool = pool.clone();
            async move { length(&pool, "x").await }
        });
        until("it works", || toy.working.load(Ordering::SeqCst) == 1).await;
        let gone = tokio::time::timeout(Duration::from_millis(50), length(&pool, "panic")).await;
        assert!(gone.is_err());
        door.open();
        assert_eq!(first.await.expect("no panic"), Ok(1.0));
        assert_eq!(length(&pool, "xx").await, Ok(2.0));
        assert_eq!(pool.metrics().panics, 0);
        pools.shutdown().await;
    });
}
