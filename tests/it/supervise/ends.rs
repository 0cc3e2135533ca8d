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
    assert!(!exists(guard), "the guard is waited for");
    assert!(yard.path("e-0.log").exists(), "the log stays");
}

#[tokio::test]
async fn death_by_sigterm_is_clean() {
    let yard = Yard::new();
    let stopped = yard.start(&["--term", "die"]).await.stop().await;
    assert_eq!((stopped.how, stopped.clean), (Exit::Signal(15), true));
    yard.assert_nothing_left();
}
