//! How servers are ended, and that nothing of them remains.

use std::time::Duration;

use chainette::engine::supervise::{Exit, Policy};

use super::*;

/// Short times between signals, so that tests are quick.
fn quick() -> Policy {
    Policy {
        first_term: Duration::from_millis(300),
        second_term: Duration::from_millis(300),
        ..Policy::default()
    }
}

/// Long ones: what ends here ends by a signal, not by a clock.
fn patient() -> Policy {
    Policy {
        first_term: Duration::from_secs(600),
        second_term: Duration::from_secs(600),
        ..Policy::default()
    }
}

#[tokio::test]
async fn a_server_ends_when_it_is_asked_to() {
    let yard = Yard::new();
    let ready = yard.start(&[]).await;
    let (guard, port) = (yard.guard(), port_of(ready.url()));
    assert!(!is_free(port));
    assert_eq!(
        yard.files(),
        BTreeSet::from(["e-0.pid".to_owned(), "e-0.json".to_owned()])
    );
    let stopped = ready.stop().await;
    assert_eq!((stopped.how, stopped.clean), (Exit::Code(0), true));
    yard.assert_nothing_left();
    assert!(is_free(port));
    assert!(!exists(guard), "the guard is waited for: no zombie");
    assert!(yard.path("e-0.log").exists(), "the log stays");
}

#[tokio::test]
async fn death_by_sigterm_is_clean() {
    let yard = Yard::with(patient());
    let stopped = yard.start(&["--term", "die"]).await.stop().await;
    assert_eq!((stopped.how, stopped.clean), (Exit::Signal(15), true));
    yard.assert_nothing_left();
}

#[tokio::test]
async fn a_second_sigterm_comes_after_a_time() {
    let policy = Policy {
        second_term: Duration::from_secs(600),
        ..quick()
    };
    let yard = Yard::with(policy);
    let stopped = yard.start(&["--term", "once"]).await.stop().await;
    assert_eq!((stopped.how, stopped.clean), (Exit::Code(0), true));
    yard.assert_nothing_left();
}

#[tokio::test]
async fn what_ignores_sigterm_is_killed() {
    let yard = Yard::with(quick());
    let stopped = yard.start(&["--term", "never"]).await.stop().await;
    assert_eq!((stopped.how, stopped.clean), (Exit::Signal(9), false));
    yard.assert_nothing_left();
}

/// As llama.cpp: with a request in flight only the second SIGTERM ends it, and then not cleanly.
#[tokio::test]
async fn a_request_in_flight_does_not_keep_a_server_alive() {
    let yard = Yard::with(Policy {
        second_term: Duration::from_secs(600),
        ..quick()
    });
    let ready = yard.start(&["--term", "busy", "--stall-at", "stall"]).await;
    let asked = ask(ready.url(), "stall");
    until("request in flight", || in_flight(ready.url()) == 1);
    let stopped = ready.stop().await;
    assert_eq!((stopped.how, stopped.clean), (Exit::Code(1), false));
    yard.assert_nothing_left();
    asked.join().expect("its connection ends");
}

/// One SIGTERM each: the second would end it at once, with status 1.
#[tokio::test]
async fn the_first_sigterm_comes_once() {
    let yard = Yard::with(patient());
    let ready = yard.start(&["--term", "busy", "--latency-ms", "400"]).await;
    let asked = ask(ready.url(), "take your time");
    until("request in flight", || in_flight(ready.url()) == 1);
    let stopped = ready.stop().await;
    assert_eq!((stopped.how, stopped.clean), (Exit::Code(0), true));
    asked.join().expect("it was answered");
}

#[tokio::test]
async fn grandchildren_end_too() {
    for (kind, policy) in [
        ("group", patient()),
        ("session", patient()),
        ("bare", patient()),
        ("stubborn", quick()),
    ] {
        let yard = Yard::with(policy);
        let ready = yard.start(&["--grandchild", kind]).await;
        until("grandchild", || yard.processes().len() >= 2);
        let stopped = ready.stop().await;
        assert!(stopped.clean, "{kind}: {stopped:?}");
        yard.assert_nothing_left();
    }
}

#[tokio::test]
async fn grandchildren_of_a_crashed_server_end_too() {
    let yard = Yard::with(quick());
    let flags = [
        "--grandchild",
        "group",
        "--grandchild",
        "session",
        "--grandchild",
        "stubborn",
        "--die-at",
        "die",
    ];
    let mut ready = yard.start(&flags).await;
    until("grandchildren", || yard.processes().len() >= 4);
    ask(ready.url(), "die").join().expect("a connection that breaks");
    assert_eq!(ready.ended().await, Exit::Code(9));
    // It may be asked again.
    assert_eq!(ready.ended().await, Exit::Code(9));
    let stopped = ready.stop().await;
    assert_eq!((stopped.how, stopped.clean), (Exit::Code(9), false));
    yard.assert_nothing_left();
}

#[tokio::test]
async fn one_that_hangs_is_killed() {
    let yard = Yard::with(patient());
    let ready = yard.start(&["--term", "never", "--grandchild", "stubborn"]).await;
    until("grandchild", || yard.processes().len() >= 2);
    let stopped = ready.kill().await;
    assert_eq!((stopped.how, stopped.clean), (Exit::Signal(9), false));
    yard.assert_nothing_left();
}

/// A server that is dropped is ended all the same, and its place can be taken at once.
#[tokio::test]
async fn a_dropped_server_ends_and_is_waited_for() {
    let yard = Yard::new();
    let ready = yard.start(&["--grandchild", "session"]).await;
    let guard = yard.guard();
    drop(ready);
    let again = yard.start(&[]).await;
    assert!(!exists(guard), "the first guard is waited for: no zombie");
    assert!(again.stop().await.clean);
    yard.assert_nothing_left();
}

/// Once it has crashed nobody finds a handoff that leads nowhere.
#[tokio::test]
async fn a_crash_removes_the_handoff() {
    let yard = Yard::new();
    let mut ready = yard.start(&["--die-at", "die"]).await;
    assert!(yard.path("e-0.json").exists());
    ask(ready.url(), "die").join().expect("a connection that breaks");
    ready.ended().await;
    assert!(!yard.path("e-0.json").exists());
    ready.stop().await;
    yard.assert_nothing_left();
}

#[tokio::test]
async fn a_drain_ends_a_server_once_it_is_idle() {
    let yard = Yard::new();
    let draining = yard.start(&[]).await.drain();
    assert!(handoff(&yard)["draining"].as_bool().expect("a flag"));
    let (idle, is_idle) = tokio::sync::oneshot::channel::<()>();
    let waiting = tokio::spawn(draining.wait(async { drop(is_idle.await) }, Duration::from_secs(600)));
    assert!(exists(yard.guard()));
    idle.send(()).expect("it is awaited");
    let stopped = waiting.await.expect("no panic").expect("it was idle");
    assert!(stopped.clean);
    yard.assert_nothing_left();
}

/// Pitfall: a drain that was given up leaves `draining` set.
#[tokio::test]
async fn a_drain_past_its_deadline_leaves_a_server_that_serves() {
    let yard = Yard::new();
    let draining = yard.start(&[]).await.drain();
    assert!(draining.handoff().draining);
    let given_back = draining
        .wait(std::future::pending(), Duration::from_millis(100))
        .await;
    let ready = given_back.expect_err("it was not idle");
    assert!(!ready.handoff().draining);
    assert_eq!(handoff(&yard)["draining"], false);
    assert_eq!(in_flight(ready.url()), 0);
    let ready = ready.drain().abort();
    assert_eq!(handoff(&yard)["draining"], false);
    ready.stop().await;
    yard.assert_nothing_left();
}

#[tokio::test]
async fn a_server_that_dies_while_it_drains_ends_the_drain() {
    let yard = Yard::new();
    let ready = yard.start(&["--die-at", "die"]).await;
    let url = ready.url().to_owned();
    let waiting = tokio::spawn(
        ready
            .drain()
            .wait(std::future::pending(), Duration::from_secs(600)),
    );
    ask(&url, "die").join().expect("a connection that breaks");
    let stopped = waiting.await.expect("no panic").expect("it is over");
    assert_eq!(stopped.how, Exit::Code(9));
    yard.assert_nothing_left();
}

fn handoff(yard: &Yard) -> Value {
    let text = std::fs::read_to_string(yard.path("e-0.json")).expect("there is a handoff");
    serde_json::from_str(&text).expect("JSON")
}
