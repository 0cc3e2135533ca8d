//! The broker: who may call an engine, who waits, and when a run gives up.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use chainette::engine::broker::Broker;
use chainette::engine::client::schema::PreparedSchema;
use chainette::engine::{CallError, Engine, Pressure, Rendered, Reply, Request, SharedEngine, Stop};
use chainette::event::{Event, EventSender};
use chainette::row::ErrorKind;
use chainette::spec::{Concurrency, Task};
use serde_json::Value;

use crate::engine::{block_on, class, hello, spec};
use crate::server::{Answer, TestServer};

fn events() -> (EventSender, Arc<Mutex<Vec<Event>>>) {
    let log = Arc::new(Mutex::new(Vec::new()));
    let to = Arc::clone(&log);
    let sender = EventSender::new(move |event| to.lock().expect("no panic").push(event));
    (sender, log)
}

/// Asks once, waiting as long as the broker says; how the row got through.
async fn through(broker: &Broker) -> Result<Reply, Stop> {
    let ix = broker.index("small").expect("the engine is known");
    let rendered = hello(broker.engine(ix).expect("the engine is known").as_ref());
    let mut faults = 0;
    loop {
        let lease = broker.acquire(ix, 0, faults, rendered.digest).await?;
        match lease.call(&rendered, 0).await {
            Ok(reply) => return Ok(reply),
            Err(CallError::Engine { .. } | CallError::Fatal { .. }) => faults += 1,
            Err(error) => panic!("{error}"),
        }
    }
}

async fn many(broker: &Broker, n: usize) -> Vec<Result<Reply, Stop>> {
    futures::future::join_all((0..n).map(|_| through(broker))).await
}

/// Waits for what can be seen.
async fn eventually(what: &str, mut reached: impl FnMut() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < Duration::from_secs(120), "no {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn idle(broker: &Broker) {
    for load in broker.load() {
        assert_eq!((load.in_flight, load.waiting), (0, 0), "{load:?}");
    }
}

#[test]
fn leases_bound_what_is_in_flight_and_all_come_back() {
    let server = TestServer::start(|_| Answer::text("ok").after(Duration::from_millis(5)));
    let broker = Broker::new(&[spec(&server.url())], EventSender::none()).expect("good");
    block_on(async {
        assert!(many(&broker, 40).await.iter().all(Result::is_ok));
        // Rows that are given up leave the queue and give back their places.
        let some = many(&broker, 40);
        let _given_up = tokio::time::timeout(Duration::from_millis(12), some).await;
        // The server hears of it a little later.
        eventually("an idle engine", || {
            server.stats().in_flight == 0 && broker.load()[0].in_flight == 0
        })
        .await;
        idle(&broker);
        assert!(many(&broker, 8).await.iter().all(Result::is_ok));
    });
    idle(&broker);
    assert_eq!(server.stats().max_in_flight, 4);
}

#[test]
fn auto_concurrency_grows() {
    let server = TestServer::start(|_| Answer::text("ok").after(Duration::from_millis(50)));
    let mut spec = spec(&server.url());
    spec.concurrency = Concurrency::Auto;
    let broker = Broker::new(&[spec], EventSender::none()).expect("good");
    block_on(async {
        assert_eq!(broker.load()[0].limit, 8);
        assert!(many(&broker, 1000).await.iter().all(Result::is_ok));
        assert!(server.stats().max_in_flight > 16, "{:?}", broker.load());
    });
    idle(&broker);
}

#[test]
fn rows_wait_for_an_engine_that_is_down_and_one_probes() {
    let mut server = TestServer::start(|_| Answer::text("ok"));
    let (sender, log) = events();
    let broker = Broker::new(&[spec(&server.url())], sender).expect("good");
    server.stop();
    block_on(async {
        let rows = tokio::spawn({
            let broker = broker.clone();
            async move { many(&broker, 20).await }
        });
        eventually("rows that wait", || {
            let load = &broker.load()[0];
            load.cause.as_deref() == Some("connection refused") && load.in_flight == 0
        })
        .await;
        server.restart();
        let rows = rows.await.expect("no panic");
        assert!(rows.iter().all(Result::is_ok), "{rows:?}");
    });
    idle(&broker);
    let names: Vec<_> = log.lock().expect("no panic").iter().map(Event::name).collect();
    assert_eq!(
        names,
        ["engine_waiting", "engine_ready"],
        "per change, not per row"
    );
}

#[test]
fn while_loading_one_probe_at_a_time() {
    let server = TestServer::start({
        let start = OnceLock::new();
        move |_| {
            if start.get_or_init(Instant::now).elapsed() < Duration::from_millis(1200) {
                Answer::status(503, "Loading model").after(Duration::from_millis(20))
            } else {
                Answer::text("ok")
            }
        }
    });
    let broker = Broker::new(&[spec(&server.url())], EventSender::none()).expect("good");
    let rows = block_on(many(&broker, 30));
    assert!(rows.iter().all(Result::is_ok), "{rows:?}");
    // Four at first, then single probes after about 0.5 s and 1 s and so on; fewer where all is slow.
    let refused = server.stats().asked - server.stats().answered;
    assert!((1..=8).contains(&refused), "{refused}");
}

#[test]
fn retry_after_is_waited_out_and_concurrency_halved() {
    let server = TestServer::start({
        let count = AtomicUsize::new(0);
        move |_| {
            if count.fetch_add(1, Ordering::SeqCst) < 4 {
                Answer::Status {
                    code: 429,
                    headers: vec![("retry-after", "1".into())],
                    body: String::new(),
                }
            } else {
                Answer::text("ok").after(Duration::from_millis(3))
            }
        }
    });
    let broker = Broker::new(&[spec(&server.url())], EventSender::none()).expect("good");
    let start = Instant::now();
    block_on(async {
        let rows = tokio::spawn({
            let broker = broker.clone();
            async move { many(&broker, 10).await }
        });
        eventually("four refusals", || {
            server.stats().asked >= 4 && broker.load()[0].in_flight == 0
        })
        .await;
        assert_eq!(broker.load()[0].limit, 2, "halved once for one wave");
        assert!(rows.await.expect("no panic").iter().all(Result::is_ok));
    });
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(server.stats().asked, 14, "four refusals, ten replies");
    idle(&broker);
}

#[test]
fn an_engine_that_never_answers_stops_the_run() {
    let mut spec = spec("http://127.0.0.1:1/v1");
    spec.engine_wait = Duration::from_millis(700);
    let broker = Broker::new(&[spec], EventSender::none()).expect("good");
    let rows = block_on(many(&broker, 10));
    for row in rows {
        let Err(stop @ Stop::Engine { .. }) = row else {
            panic!("{row:?}")
        };
        let text = stop.to_string();
        assert!(
            text.starts_with("engine `small` answered no request for 700ms")
                && text.contains("connection refused"),
            "{text}"
        );
    }
    idle(&broker);
}

#[test]
fn a_hopeless_engine_stops_the_run_at_once() {
    let server = TestServer::start(|_| Answer::status(404, "The model `test` does not exist."));
    let broker = Broker::new(&[spec(&server.url())], EventSender::none()).expect("good");
    let rows = block_on(many(&broker, 10));
    assert!(
        rows.iter().all(|row| matches!(row, Err(Stop::Engine { .. }))),
        "{rows:?}"
    );
    assert!(server.stats().asked <= 4);
    idle(&broker);
}

#[test]
fn stopping_turns_waiters_away_and_lets_calls_end() {
    let server = TestServer::start(|_| Answer::text("ok").after(Duration::from_secs(3)));
    let broker = Broker::new(&[spec(&server.url())], EventSender::none()).expect("good");
    let rows = block_on(async {
        let rows = many(&broker, 10);
        let stop = async {
            eventually("four calls", || server.stats().in_flight == 4).await;
            broker.stop();
        };
        futures::future::join(rows, stop).await.0
    });
    assert_eq!(rows.iter().filter(|row| row.is_ok()).count(), 4);
    assert!(
        rows.iter()
            .filter(|row| row.is_err())
            .all(|row| matches!(row, Err(Stop::Interrupted)))
    );
    idle(&broker);
}

/// An engine of the library's user: takes part without HTTP.
struct Own;

impl Engine for Own {
    fn prepare(&self, name: &str, schema: &Value) -> PreparedSchema {
        PreparedSchema::openai(name, schema)
    }
    fn render(&self, _: &Request<'_>) -> Rendered {
        Rendered {
            task: Task::Generate,
            body: bytes::Bytes::new(),
            digest: [0; 32],
        }
    }
    fn call<'a>(
        &'a self,
        _: &'a Rendered,
        turn: u32,
    ) -> futures::future::BoxFuture<'a, Result<Reply, CallError>> {
        Box::pin(async move {
            if turn > 0 {
                return Err(CallError::Engine {
                    message: "no".into(),
                    retry_after: None,
                    pressure: Pressure::Busy,
                });
            }
            Err(CallError::Refused {
                kind: ErrorKind::Http,
                message: "own".into(),
            })
        })
    }
}

#[test]
fn own_engines_take_part() {
    let own: SharedEngine = Arc::new(Own);
    let broker = Broker::empty(EventSender::none()).with_engine(
        "small",
        own,
        Concurrency::Fixed(1),
        Duration::from_secs(1),
    );
    let ix = broker.index("small").expect("the engine is known");
    block_on(async {
        let rendered = hello(&Own);
        let lease = broker.acquire(ix, 0, 0, [0; 32]).await.expect("a lease");
        assert_eq!(broker.load()[0].in_flight, 1);
        assert_eq!(class(&lease.call(&rendered, 0).await), "refused http");
    });
    idle(&broker);
}

#[test]
fn a_failed_probe_hands_over_to_the_next_in_line() {
    // The row whose request hangs must not keep the others from finding the engine back.
    let server = TestServer::start({
        let count = AtomicUsize::new(0);
        move |_| match count.fetch_add(1, Ordering::SeqCst) {
            0 => Answer::status(503, "Loading model"),
            1 => Answer::Hang,
            _ => Answer::text("ok"),
        }
    });
    let mut spec = spec(&server.url());
    spec.concurrency = Concurrency::Fixed(1);
    let broker = Broker::new(&[spec], EventSender::none()).expect("good");
    block_on(async {
        let ix = broker.index("small").expect("the engine is known");
        let rendered = hello(broker.engine(ix).expect("the engine is known").as_ref());
        let first = broker.acquire(ix, 0, 0, [0; 32]).await.expect("a lease");
        assert_eq!(class(&first.call(&rendered, 0).await), "Down");
        drop(first);
        let probe = broker.acquire(ix, 0, 0, [0; 32]).await.expect("a lease");
        let others = tokio::spawn({
            let broker = broker.clone();
            async move { many(&broker, 5).await }
        });
        // Given up by its row before the engine said anything.
        let _given_up = tokio::time::timeout(Duration::from_millis(50), probe.call(&rendered, 0)).await;
        drop(probe);
        let others = tokio::time::timeout(Duration::from_secs(60), others).await;
        let others = others.expect("nobody waits for ever").expect("no panic");
        assert!(others.iter().all(Result::is_ok), "{others:?}");
    });
    idle(&broker);
}

#[test]
fn the_queue_of_many_rows_is_quick() {
    let own: SharedEngine = Arc::new(Own);
    let broker = Broker::empty(EventSender::none()).with_engine(
        "small",
        own,
        Concurrency::Fixed(2),
        Duration::from_secs(1),
    );
    let ix = broker.index("small").expect("the engine is known");
    let start = Instant::now();
    block_on(futures::future::join_all((0..50_000).map(|_| async {
        let lease = broker.acquire(ix, 0, 0, [0; 32]).await.expect("a lease");
        tokio::task::yield_now().await;
        drop(lease);
    })));
    // A second at most, where nothing else runs; a queue that is searched takes minutes.
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    idle(&broker);
}

/// The order in which rows are let in that queue up in another, each with the faults it met.
fn let_in<const N: usize>(queued: [(u64, u32); N]) -> Vec<(u64, u32)> {
    let own: SharedEngine = Arc::new(Own);
    let wait = Duration::from_secs(1);
    let broker = Broker::empty(EventSender::none()).with_engine("small", own, Concurrency::Fixed(1), wait);
    let ix = broker.index("small").expect("the engine is known");
    let order = Mutex::new(Vec::new());
    block_on(async {
        let busy = broker.acquire(ix, 0, 0, [0; 32]).await.expect("a lease");
        let queued = queued.map(async |(row, faults)| {
            let _lease = broker.acquire(ix, row, faults, [0; 32]).await.expect("a lease");
            order.lock().expect("no panic").push((row, faults));
        });
        let opened = async {
            tokio::task::yield_now().await;
            drop(busy);
        };
        futures::join!(futures::future::join_all(queued), opened);
    });
    order.into_inner().expect("no panic")
}

#[test]
fn earlier_rows_go_first() {
    assert_eq!(let_in([(7, 0), (2, 0), (5, 0)]), [(2, 0), (5, 0), (7, 0)]);
}

#[test]
fn a_row_that_met_a_fault_goes_behind_those_that_wait_and_before_those_that_come_later() {
    let order = let_in([(7, 0), (3, 2), (2, 1), (5, 0), (8, 0), (9, 0)]);
    assert_eq!(order, [(5, 0), (7, 0), (2, 1), (3, 2), (8, 0), (9, 0)]);
}
