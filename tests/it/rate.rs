//! Requests and tokens per minute: the buckets of `rpm` and `tpm`, and the limits that hosted APIs name.

use std::time::{Duration, SystemTime};

use chainette::engine::broker::rate::Rate;
use chainette::engine::client::adapter;
use chainette::engine::client::limits::{Limits, Quota};
use proptest::prelude::*;
use tokio::time::Instant;

use crate::engine::{block_on, hello, spec};
use crate::server::{Answer, TestServer};

/// How many go within so many seconds when everyone wants to; each is settled at once with `tokens`.
fn admitted(rate: &mut Rate, begin: Instant, seconds: f64, tokens: u64) -> usize {
    let end = begin + Duration::from_secs_f64(seconds);
    let (mut now, mut count) = (begin, 0);
    while now < end {
        match rate.admit(now, rate.estimate()) {
            Ok(ticket) => {
                count += 1;
                rate.settle(ticket, now, tokens);
            }
            Err(at) => {
                assert!(at > now, "asking again must get on");
                now = at;
            }
        }
    }
    count
}

#[test]
fn without_limits_all_go() {
    for nothing in [None, Some(0.0), Some(-1.0), Some(f64::NAN), Some(f64::INFINITY)] {
        let (mut rate, now) = (Rate::new(nothing, nothing), Instant::now());
        assert!(
            (0..1000).all(|_| rate.admit(now, u64::MAX).is_ok()),
            "{nothing:?}"
        );
    }
}

#[test]
fn rpm_is_kept_without_a_burst_of_a_minutes_worth() {
    let now = Instant::now();
    // A second's worth at once, then evenly.
    assert_eq!(admitted(&mut Rate::new(Some(600.0), None), now, 0.001, 10), 10);
    let count = admitted(&mut Rate::new(Some(600.0), None), now, 60.0, 10);
    assert!((609..=610).contains(&count), "{count}");
    // At least one at a time.
    let count = admitted(&mut Rate::new(Some(6.0), None), now, 60.0, 10);
    assert!((6..=7).contains(&count), "{count}");
}

#[test]
fn tpm_counts_what_requests_really_take() {
    let now = Instant::now();
    let mut rate = Rate::new(None, Some(60_000.0));
    // Nothing is known of the first: it takes the whole bucket.
    assert_eq!(rate.estimate(), 1000);
    let count = admitted(&mut rate, now, 60.0, 100);
    assert!((600..=620).contains(&count), "{count}");
    assert_eq!(rate.estimate(), 100);
    // Larger than the bucket: they go, and are paid off.
    let count = admitted(&mut Rate::new(None, Some(60_000.0)), now, 60.0, 5000);
    assert!((12..=14).contains(&count), "{count}");
    // No usage in the answers: the estimate stands.
    let mut rate = Rate::new(None, Some(60_000.0));
    let count = admitted(&mut rate, now, 60.0, 0);
    assert!((60..=61).contains(&count), "{count}");
}

fn quota(limit: u64, remaining: u64, reset_s: f64) -> Quota {
    Quota {
        limit: Some(limit),
        remaining: Some(remaining),
        reset: Some(Duration::from_secs_f64(reset_s)),
    }
}

#[test]
fn nothing_goes_before_a_reset_when_nothing_is_left() {
    let now = Instant::now();
    let mut rate = Rate::new(None, None);
    let none_left = Limits {
        at: now,
        requests: quota(100, 0, 30.0),
        tokens: Quota::default(),
    };
    rate.learn(now, &none_left);
    let reset = now + Duration::from_secs(30);
    assert_eq!(rate.admit(now, 1), Err(reset));
    assert_eq!(rate.admit(now + Duration::from_secs(29), 1), Err(reset));
    assert!(rate.admit(reset, 1).is_ok());
    // The same answer again is no news.
    rate.learn(reset, &none_left);
    assert!(rate.admit(reset, 1).is_ok());
    // Of tokens as well.
    let tokens = Limits {
        at: reset,
        requests: Quota::default(),
        tokens: quota(1000, 10, 5.0),
    };
    rate.learn(reset, &tokens);
    assert_eq!(rate.admit(reset, 50), Err(reset + Duration::from_secs(5)));
}

#[test]
fn the_last_of_a_window_is_spread_over_its_time() {
    let now = Instant::now();
    let mut rate = Rate::new(None, None);
    rate.learn(
        now,
        &Limits {
            at: now,
            requests: quota(100, 10, 20.0),
            tokens: Quota::default(),
        },
    );
    let mut times = Vec::new();
    let mut at = now;
    while times.len() < 10 {
        match rate.admit(at, 1) {
            Ok(_) => times.push((at - now).as_secs_f64()),
            Err(later) => at = later,
        }
    }
    let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| (1.5..=2.5).contains(gap)), "{gaps:?}");
}

/// OpenAI's `reset` is when the bucket would be full again: with nothing left the next one may go long before.
#[test]
fn a_limit_that_flows_is_told_from_a_window() {
    let begin = Instant::now();
    let mut rate = Rate::new(None, None);
    let mut learn = |ms: u64, left: u64, reset: f64| {
        let now = begin + Duration::from_millis(ms);
        rate.learn(
            now,
            &Limits {
                at: now,
                requests: quota(600, left, reset),
                tokens: Quota::default(),
            },
        );
        rate.admit(now, 1).map_err(|at| at - now)
    };
    assert!(learn(0, 300, 30.0).is_ok());
    assert!(learn(1000, 100, 50.0).is_ok());
    let wait = learn(2000, 0, 60.0).expect_err("nothing is left");
    assert!(
        (0.05..0.2).contains(&wait.as_secs_f64()),
        "ten a second flow in: {wait:?}"
    );
}

fn read(headers: &[(&str, &str)]) -> Option<Limits> {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let get = |name: &str| {
        headers
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| *value)
    };
    Limits::read(get, Instant::now(), now)
}

#[test]
fn headers_of_several_makes_are_read() {
    let openai = read(&[
        ("x-ratelimit-limit-requests", "5000"),
        ("x-ratelimit-remaining-requests", "4999"),
        ("x-ratelimit-reset-requests", "12ms"),
        ("x-ratelimit-limit-tokens", "160000"),
        ("x-ratelimit-remaining-tokens", "9"),
        ("x-ratelimit-reset-tokens", "6m0.5s"),
    ])
    .expect("limits");
    assert_eq!(openai.requests, quota(5000, 4999, 0.012));
    assert_eq!(openai.tokens, quota(160_000, 9, 360.5));
    let anthropic = read(&[
        ("anthropic-ratelimit-requests-limit", "50"),
        ("anthropic-ratelimit-requests-remaining", "0"),
        ("anthropic-ratelimit-requests-reset", "2027-01-15T08:00:42Z"),
    ])
    .expect("limits");
    assert_eq!(anthropic.requests, quota(50, 0, 42.0));
    assert_eq!(anthropic.tokens, Quota::default());
    let github = read(&[
        ("x-ratelimit-limit", "60"),
        ("x-ratelimit-remaining", "7"),
        ("x-ratelimit-reset", "1800000090"),
    ])
    .expect("limits");
    assert_eq!(github.requests, quota(60, 7, 90.0));
    let draft = read(&[
        ("ratelimit-limit", "100, 100;w=60"),
        ("ratelimit-remaining", "50"),
        ("ratelimit-reset", "30"),
    ])
    .expect("limits");
    assert_eq!(draft.requests, quota(100, 50, 30.0));
    assert_eq!(
        read(&[("content-type", "text/html"), ("x-ratelimit-user", "me")]),
        None
    );
}

#[test]
fn absurd_headers_hold_nobody_up() {
    let hour = Duration::from_secs(3600);
    for reset in [
        "",
        "-1",
        "-5s",
        "1e400",
        "nan",
        "inf",
        "9999999999999999999999h",
        "1.1.1s",
        "s",
        "6m0",
        "soon",
        "5 s",
        "1e308",
        "99999-01-01T00:00:00Z",
        "1970-01-01T00:00:00Z",
        "18446744073709551616",
        "1800000000000000",
        "٣s",
        "0.0000000000000000001ns",
        "1d1d1d",
    ] {
        let limits = read(&[
            ("x-ratelimit-remaining-requests", "0"),
            ("x-ratelimit-reset-requests", reset),
        ])
        .expect("what can be read is");
        assert!(limits.requests.reset.is_none_or(|reset| reset <= hour), "{reset}");
        let (mut rate, now) = (Rate::new(None, None), limits.at);
        rate.learn(now, &limits);
        assert!(rate.admit(now + hour, 1).is_ok(), "{reset}");
    }
    for count in ["-1", "nan", "inf", "1e400", "", "many", "0x10"] {
        assert_eq!(
            read(&[("x-ratelimit-remaining-requests", count)]),
            None,
            "{count}"
        );
    }
}

#[test]
fn adapters_tell_the_limits_of_the_last_answer() {
    let limited = |code, left: &str| Answer::Status {
        code,
        headers: vec![
            ("x-ratelimit-remaining-requests", left.to_owned()),
            ("x-ratelimit-reset-requests", "2s".to_owned()),
        ],
        body: "{}".to_owned(),
    };
    let server = TestServer::start(move |asked| match asked.attempt {
        0 => limited(500, "7"),
        1 => limited(429, "0"),
        _ => Answer::text("ok"),
    });
    let engine = adapter(&spec(&server.url())).expect("good");
    let ask = |turn| {
        let reply = block_on(engine.call(&hello(engine.as_ref()), turn));
        (
            reply.is_ok(),
            engine.limits().and_then(|limits| limits.requests.remaining),
        )
    };
    assert_eq!(engine.limits(), None);
    assert_eq!(ask(0), (false, Some(7)));
    assert_eq!(ask(1), (false, Some(0)));
    // An answer that names none leaves what was known, with its time.
    assert_eq!(ask(2), (true, Some(0)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However they ask: no more than the rate times the time and one burst.
    #[test]
    fn a_bucket_never_lets_more_through(
        rpm in 1.0_f64..100_000.0,
        asks in proptest::collection::vec((0_u64..3000, 1_usize..40), 1..200),
    ) {
        let begin = Instant::now();
        let (mut rate, mut now, mut count) = (Rate::new(Some(rpm), None), begin, 0.0);
        for (ms, often) in asks {
            now += Duration::from_millis(ms);
            for _ in 0..often {
                match rate.admit(now, 0) {
                    Ok(_) => count += 1.0,
                    Err(at) => {
                        prop_assert!(at > now);
                        // At the time that was named it goes.
                        now = at + Duration::from_nanos(1000);
                        prop_assert!(rate.admit(now, 0).is_ok());
                        count += 1.0;
                    }
                }
            }
            let most = rpm / 60.0 * (now - begin).as_secs_f64() + (rpm / 60.0).max(1.0);
            prop_assert!(count <= most + 1e-3, "{count} of {most}");
        }
    }

    /// Whatever the estimates were: in the long run the real tokens keep the limit.
    #[test]
    fn tickets_settle(
        tpm in 1000.0_f64..1e6,
        requests in proptest::collection::vec((1_u64..2000, 1_u64..2000), 50..200),
    ) {
        let begin = Instant::now();
        let (mut rate, mut now) = (Rate::new(None, Some(tpm)), begin);
        let (mut used, mut largest) = (0, 0);
        for (estimate, tokens) in requests {
            let ticket = loop {
                match rate.admit(now, estimate) {
                    Ok(ticket) => break ticket,
                    Err(at) => now = at + Duration::from_nanos(1000),
                }
            };
            rate.settle(ticket, now, tokens);
            used += tokens;
            largest = largest.max(tokens);
            let most = tpm / 60.0 * (now - begin).as_secs_f64() + (tpm / 60.0).max(1.0) + largest as f64;
            prop_assert!(used as f64 <= most + 1.0, "{used} of {most}");
        }
    }
}
