//! Restarts and their breaker, in made-up time.

use std::time::{Duration, Instant};

use chainette::engine::supervise::{Breaker, Policy, Restarts};

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// How long the next start has to wait.
fn pause(breaker: Breaker, now: Instant) -> f64 {
    match breaker {
        Breaker::Closed { until } => until.map_or(0.0, |until| (until - now).as_secs_f64()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn pauses_double_up_to_a_minute() {
    let policy = Policy {
        breaker_failures: 100,
        ..Policy::default()
    };
    for seed in 0..50 {
        let mut restarts = Restarts::seeded(&policy, seed);
        let mut now = Instant::now();
        let mut seen = Vec::new();
        for expected in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0] {
            let waits = pause(restarts.failed(now, false), now);
            assert!(
                (expected * 0.9..=expected * 1.1).contains(&waits),
                "{waits} for {expected}"
            );
            seen.push(waits / expected);
            now += seconds(waits);
            assert_eq!(restarts.state(now), Breaker::Closed { until: None });
            restarts.ready(now);
            now += seconds(10.0);
        }
        assert!(
            seen.iter().any(|share| (share - 1.0).abs() > 0.005),
            "there is jitter"
        );
    }
}

#[test]
fn failures_are_forgotten_after_five_minutes_of_health() {
    let mut restarts = Restarts::new(&Policy::default());
    let mut now = Instant::now();
    for _ in 0..3 {
        restarts.failed(now, false);
        restarts.ready(now);
        now += seconds(299.0);
    }
    assert_eq!(restarts.failures(), 3);
    now += seconds(1.0);
    assert!(
        pause(restarts.failed(now, false), now) < 1.2,
        "as after a first failure"
    );
    assert_eq!(restarts.failures(), 1);
}

#[test]
fn five_failures_open_the_breaker() {
    let mut restarts = Restarts::new(&Policy::default());
    let now = Instant::now();
    for _ in 0..4 {
        assert!(matches!(
            restarts.failed(now, false),
            Breaker::Closed { until: Some(_) }
        ));
    }
    let open = Breaker::Open {
        until: now + seconds(300.0),
    };
    assert_eq!(restarts.failed(now, false), open);
    assert_eq!(restarts.state(now + seconds(299.0)), open);
    let later = now + seconds(300.0);
    assert_eq!(restarts.state(later), Breaker::HalfOpen);
    // The one start fails: open again.
    assert_eq!(
        restarts.failed(later, false),
        Breaker::Open {
            until: later + seconds(300.0)
        }
    );
    // The next is good: closed, and all is forgotten.
    let later = later + seconds(300.0);
    assert_eq!(restarts.state(later), Breaker::HalfOpen);
    restarts.ready(later);
    assert_eq!(restarts.state(later), Breaker::Closed { until: None });
    assert_eq!(restarts.failures(), 0);
    assert!(pause(restarts.failed(later, false), later) < 1.2);
}

#[test]
fn isolated_crashes_do_not_count() {
    let mut restarts = Restarts::new(&Policy::default());
    let now = Instant::now();
    for _ in 0..4 {
        restarts.failed(now, false);
    }
    for _ in 0..20 {
        restarts.ready(now);
        let breaker = restarts.failed(now, true);
        assert!(matches!(breaker, Breaker::Closed { .. }), "{breaker:?}");
    }
    assert_eq!(restarts.failures(), 4);
    assert!(matches!(restarts.failed(now, false), Breaker::Open { .. }));
}
