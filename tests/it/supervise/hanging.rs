//! Servers that hang, and servers that only look so.

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use chainette::engine::supervise::Policy;

use super::*;

/// Looks often.
fn watchful() -> Policy {
    Policy {
        health_every: Duration::from_millis(100),
        health_patience: Duration::from_millis(400),
        ..Policy::default()
    }
}

/// Long enough that nothing but a hang resolves before.
const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn three_missed_health_checks_are_a_hang() {
    let yard = Yard::with(watchful());
    let ready = yard.start(&["--health-hangs-after", "1"]).await;
    ask(ready.url(), "and now hang").join().expect("it is answered");
    let reason = ready.hang_watch(|| 0, LONG).await;
    assert_eq!(reason, "missed 3 health checks in a row");
    ready.kill().await;
    yard.assert_nothing_left();
}

/// Counters that stand still while a request is in flight.
#[tokio::test]
async fn no_progress_with_requests_in_flight_is_a_hang() {
    for (backend, pages) in [("llamacpp", "llamacpp"), ("vllm", "vllm")] {
        let yard = Yard::with(watchful());
        let mut prepared = yard.engine(&["--like", pages, "--stall-at", "stall"]);
        prepared.backend = backend.to_owned();
        let ready = yard.try_start(prepared).await.expect("it starts");
        let asked = ask(ready.url(), "stall");
        until("request in flight", || in_flight(ready.url()) == 1);
        let reason = ready.hang_watch(|| 1, Duration::from_secs(1)).await;
        assert!(reason.starts_with("made no progress for "), "{backend}: {reason}");
        assert!(
            reason.ends_with(" s with 1 request in flight"),
            "{backend}: {reason}"
        );
        ready.kill().await;
        asked.join().expect("its connection ends");
        yard.assert_nothing_left();
    }
}

/// True when nothing is called a hang for that time.
async fn is_well(hang: impl Future<Output = String>, time: Duration) -> bool {
    let hung = tokio::time::timeout(time, hang).await;
    hung.inspect(|reason| eprintln!("{reason}")).is_err()
}

/// Counters that go on: a long request is no hang.
#[tokio::test]
async fn a_server_that_counts_on_does_not_hang() {
    let yard = Yard::with(watchful());
    let ready = yard
        .start(&["--like", "llamacpp", "--counts", "--stall-at", "stall"])
        .await;
    let asked = ask(ready.url(), "stall");
    until("request in flight", || in_flight(ready.url()) == 1);
    let hang = ready.hang_watch(|| 1, Duration::from_secs(2));
    assert!(is_well(hang, Duration::from_secs(5)).await);
    ready.kill().await;
    asked.join().expect("its connection ends");
}

/// An idle server makes no progress, and need not.
#[tokio::test]
async fn an_idle_server_does_not_hang() {
    let yard = Yard::with(watchful());
    let ready = yard.start(&["--like", "llamacpp"]).await;
    let hang = ready.hang_watch(|| 0, Duration::from_millis(500));
    assert!(is_well(hang, Duration::from_secs(3)).await);
    ready.stop().await;
}

/// Neither counters nor streams: only the timeouts of requests apply, whatever `/health` does.
#[tokio::test]
async fn where_nothing_can_be_seen_nothing_hangs() {
    let yard = Yard::with(watchful());
    let ready = yard
        .start(&["--health-hangs-after", "1", "--stall-at", "stall"])
        .await;
    let asked = ask(ready.url(), "stall");
    until("request in flight", || in_flight(ready.url()) == 1);
    let hang = ready.hang_watch(|| 1, Duration::from_millis(500));
    assert!(is_well(hang, Duration::from_secs(4)).await);
    // Its end is no hang, and told elsewhere.
    let mut ready = ready;
    let hang = ready.hang_watch(|| 0, LONG);
    ready_kill(&yard);
    ready.ended().await;
    assert!(is_well(hang, Duration::from_secs(3)).await);
    ready.stop().await;
    asked.join().expect("its connection ends");
}

fn ready_kill(yard: &Yard) {
    yard.processes().into_iter().for_each(kill);
}

/// Streams are progress: as long as events come nothing hangs, and when none come any more it does.
#[tokio::test]
async fn events_of_streams_are_progress() {
    let yard = Yard::with(watchful());
    let ready = yard.start(&["--health-hangs-after", "1"]).await;
    ask(ready.url(), "and now hang").join().expect("it is answered");
    // Hangs from the first look on: the events alone tell that it works.
    let progress = ready.progress();
    let stream = progress.streaming();
    let hang = ready.hang_watch(|| 1, Duration::from_secs(2));
    let streaming = async {
        for _ in 0..80 {
            stream.seen();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::pin!(hang);
    tokio::select! {
        reason = &mut hang => panic!("{reason}"),
        () = streaming => {}
    }
    let reason = hang.await;
    assert!(
        reason.contains("missed 3 health checks") || reason.contains("no progress"),
        "{reason}"
    );
    ready.kill().await;
}

/// A stream that is over is awaited no more.
#[tokio::test]
async fn a_finished_stream_is_not_awaited() {
    let yard = Yard::with(watchful());
    let ready = yard.start(&[]).await;
    let in_flight = Arc::new(AtomicUsize::new(1));
    let now = Arc::clone(&in_flight);
    drop(ready.progress().streaming());
    let hang = ready.hang_watch(move || now.load(Ordering::SeqCst), Duration::from_millis(500));
    assert!(is_well(hang, Duration::from_secs(3)).await);
    ready.stop().await;
}
