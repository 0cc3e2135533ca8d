//! How many requests go to a server at once: `Pace` before servers in virtual time (`pace_model.rs`), whose knee is
//! known and moves. Times are of the model and chance is seeded: each run is the same.

use std::time::Duration;

use chainette::engine::broker::pace::{AUTO, Done, Pace, Reason, surplus};
use chainette::engine::broker::rate::Rate;
use chainette::spec::Concurrency;
use proptest::prelude::*;
use tokio::time::Instant;

use crate::pace_model::{Kind, Model, Ran, Service};

/// Where the knee goes, and when: 8, 64, 16, 200, 12.
const KNEES: [(f64, usize); 5] = [(0.0, 8), (40.0, 64), (80.0, 16), (120.0, 200), (160.0, 12)];
const SEEDS: std::ops::Range<u64> = 1..6;

fn auto() -> Pace {
    Pace::new(Concurrency::Auto, None)
}

fn free() -> Rate {
    Rate::new(None, None)
}

/// What each stretch between two moves was like, 10 s after the first of them: the work done as a part of the most
/// (mean over the seeds, and the least), and requests in flight as a multiple of the knee.
fn knees(kind: Kind, service: Service) -> Vec<(f64, f64, f64)> {
    let runs: Vec<Ran> = SEEDS
        .map(|seed| {
            let knees = KNEES.to_vec();
            let (wire, end) = (0.002, 200.0);
            Model {
                kind,
                service,
                wire,
                knees,
                end,
                seed,
            }
            .run(auto(), free())
        })
        .collect();
    KNEES
        .iter()
        .map(|(moved, knee)| {
            let (from, to) = (moved + 10.0, moved + 40.0);
            let done: Vec<f64> = runs
                .iter()
                .map(|run| run.mean(from, to, |bin| bin.done))
                .collect();
            let queued: f64 = runs
                .iter()
                .map(|run| run.mean(from, to, |bin| bin.in_flight))
                .sum();
            (
                done.iter().sum::<f64>() / done.len() as f64,
                done.iter().copied().fold(1.0, f64::min),
                queued / runs.len() as f64 / *knee as f64,
            )
        })
        .collect()
}

#[test]
fn auto_finds_a_knee_that_moves_within_ten_seconds() {
    for service in [
        Service::LogNormal(0.1, 0.5),
        Service::LogNormal(0.1, 1.0),
        Service::Exponential(0.1),
    ] {
        let found = knees(Kind::Slots, service);
        for ((mean, least, in_flight), (_, knee)) in found.iter().zip(KNEES) {
            assert!(*mean >= 0.95, "{service:?}, knee {knee}: {found:?}");
            assert!(*least >= 0.80, "{service:?}, knee {knee}: {found:?}");
            assert!(*in_flight <= 6.0, "{service:?}, knee {knee}: {found:?}");
        }
    }
}

/// Latency grows with each request more, long before the knee: only throughput tells.
#[test]
fn auto_fills_a_server_that_works_in_batches() {
    let found = knees(Kind::Batch { drag: 3.0 }, Service::LogNormal(0.1, 0.5));
    for ((mean, _, in_flight), (_, knee)) in found.iter().zip(KNEES) {
        assert!(*mean >= 0.92, "knee {knee}: {found:?}");
        assert!(*in_flight <= 8.0, "knee {knee}: {found:?}");
    }
}

/// One run before a hosted API.
fn hosted(kind: Kind, limit: usize, end: f64, seed: u64) -> Ran {
    let (service, wire, knees) = (Service::LogNormal(0.5, 0.5), 0.005, vec![(0.0, limit)]);
    Model {
        kind,
        service,
        wire,
        knees,
        end,
        seed,
    }
    .run(auto(), free())
}

#[test]
fn a_limit_of_requests_in_flight_is_reached_and_seldom_passed() {
    for limit in [10, 50, 100, 300] {
        for retry_after in [None, Some(1.0)] {
            for seed in SEEDS {
                let run = hosted(Kind::Capped { retry_after }, limit, 180.0, seed);
                let (done, refused) = (run.mean(30.0, 180.0, |bin| bin.done), run.refused(0.0, 180.0));
                assert!(done >= 0.9, "limit {limit}, {retry_after:?}: {done}");
                assert!(refused <= 0.01, "limit {limit}, {retry_after:?}: {refused}");
                assert!(
                    run.largest_wave <= 4 + limit / 4,
                    "limit {limit}: {} at once",
                    run.largest_wave
                );
            }
        }
    }
}

#[test]
fn a_limit_of_requests_per_minute_is_reached_and_no_storm_breaks() {
    for limit in [60, 600, 3000] {
        let burst = (limit as f64 / 60.0).max(10.0);
        let (bucket, told) = (
            Kind::PerMinute {
                burst,
                retry_after: false,
            },
            Kind::PerMinute {
                burst,
                retry_after: true,
            },
        );
        for kind in [bucket, told, Kind::EachMinute] {
            let runs: Vec<Ran> = SEEDS.map(|seed| hosted(kind, limit, 360.0, seed)).collect();
            let mean = |of: &dyn Fn(&Ran) -> f64| runs.iter().map(of).sum::<f64>() / runs.len() as f64;
            let rate = mean(&|run| run.per_minute(60.0, 360.0)) / limit as f64;
            assert!((0.9..=1.1).contains(&rate), "{kind:?} {limit}: {rate}");
            let refused = mean(&|run| run.refused(60.0, 360.0));
            assert!(refused <= 0.06, "{kind:?} {limit}: {refused}");
            let wave = runs.iter().map(|run| run.largest_wave).max().unwrap_or(0);
            assert!(wave <= 40, "{kind:?} {limit}: {wave} at once");
        }
    }
}

/// With `rpm` nobody is ever refused, and the limit is used up.
#[test]
fn rpm_keeps_a_limit_that_is_known() {
    for limit in [60, 600, 3000] {
        let (service, wire, end) = (Service::LogNormal(0.5, 0.5), 0.005, 120.0);
        let kind = Kind::PerMinute {
            burst: (limit as f64 / 60.0).max(1.0) + 1.0,
            retry_after: false,
        };
        let model = Model {
            kind,
            service,
            wire,
            knees: vec![(0.0, limit)],
            end,
            seed: 1,
        };
        let run = model.run(auto(), Rate::new(Some(limit as f64), None));
        assert!(run.refused(0.0, end) == 0.0, "{limit}: {}", run.refused(0.0, end));
        let rate = run.per_minute(10.0, end) / limit as f64;
        assert!((0.97..=1.03).contains(&rate), "{limit}: {rate}");
    }
}

/// llama.cpp tells its slots: a few requests more keep every slot busy while an answer is on its way.
#[test]
fn a_few_more_than_the_slots_keep_all_of_them_busy() {
    for slots in [1, 4, 16, 64] {
        let busy = |pace: Pace| {
            let (kind, service) = (Kind::Slots, Service::LogNormal(0.05, 0.5));
            let (wire, end, seed) = (0.0025, 60.0, 1);
            let model = Model {
                kind,
                service,
                wire,
                knees: vec![(0.0, slots)],
                end,
                seed,
            };
            model.run(pace, free()).mean(5.0, end, |bin| bin.done)
        };
        let exactly = busy(Pace::new(Concurrency::Fixed(slots), None));
        let with_surplus = busy(Pace::new(Concurrency::Auto, Some(slots)));
        assert!(exactly < 0.95, "{slots}: {exactly}");
        assert!(with_surplus > 0.985, "{slots}: {with_surplus}");
    }
}

/// A clock to be moved.
struct Time(Instant);

impl Time {
    fn after(&mut self, ms: u64) -> Instant {
        self.0 += Duration::from_millis(ms);
        self.0
    }
}

fn done(in_flight: usize) -> Done {
    Done {
        took: Duration::from_millis(20),
        tokens: 0,
        queued: true,
        in_flight,
    }
}

#[test]
fn a_fixed_concurrency_is_halved_and_grows_back() {
    let mut time = Time(Instant::now());
    let mut pace = Pace::new(Concurrency::Fixed(16), Some(4));
    assert_eq!((pace.limit(), pace.summary().reason), (16, Reason::Start));
    let now = time.after(1);
    pace.released(now, 16);
    pace.pushed_back(now, Some(Duration::from_secs(2)));
    assert_eq!((pace.limit(), pace.summary().reason), (8, Reason::PushedBack));
    assert_eq!(
        pace.release_at(now),
        Some(now + Duration::from_secs(2)),
        "`Retry-After` counts"
    );
    for _ in 0..4000 {
        pace.finished(time.after(20), done(8));
    }
    let summary = pace.summary();
    assert_eq!((pace.limit(), summary.limit, summary.range), (16, 16, (8, 16)));
    assert_eq!((summary.reason, summary.push_backs), (Reason::Recovered, 1));
    pace.slots(Some(2));
    assert_eq!(pace.limit(), 16, "the user's word counts");
}

#[test]
fn auto_takes_the_slots_that_it_is_told() {
    let mut pace = Pace::new(Concurrency::Auto, Some(8));
    assert_eq!(pace.limit(), 8 + surplus(8));
    pace.slots(Some(2));
    assert_eq!((pace.limit(), pace.summary().reason), (4, Reason::Slots));
    pace.slots(None);
    assert_eq!(pace.limit(), AUTO.0);
}

/// A pause ends for one after the other.
#[test]
fn after_a_push_back_requests_go_one_by_one() {
    let mut time = Time(Instant::now());
    let mut pace = auto();
    for n in 1..=8 {
        pace.released(time.after(1), n);
    }
    for _ in 0..8 {
        pace.finished(time.after(100), done(8));
    }
    pace.pushed_back(time.after(1), None);
    let now = time.after(500);
    assert_eq!(pace.release_at(now), None, "the first goes");
    pace.released(now, 1);
    let next = pace.release_at(now).expect("the second waits");
    assert!(next > now + Duration::from_millis(1), "{:?}", next - now);
    assert!(next < now + Duration::from_secs(2), "{:?}", next - now);
}

#[test]
fn without_rows_that_wait_nothing_is_learnt() {
    let mut time = Time(Instant::now());
    let mut pace = auto();
    for _ in 0..5000 {
        pace.finished(
            time.after(3),
            Done {
                queued: false,
                ..done(3)
            },
        );
    }
    assert_eq!((pace.limit(), pace.summary().reason), (AUTO.0, Reason::Start));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens in whatever order, at whatever times: some may go, and never too many.
    #[test]
    fn a_limit_is_never_nothing_and_never_too_much(
        fixed in proptest::option::of(0_usize..2000),
        slots in proptest::option::of(0_usize..5000),
        calls in proptest::collection::vec((0_u8..5, 0_u64..100_000, 0_usize..1000, any::<bool>()), 0..400),
    ) {
        let concurrency = fixed.map_or(Concurrency::Auto, Concurrency::Fixed);
        let mut pace = Pace::new(concurrency, slots);
        let most = match (fixed, slots) {
            (Some(n), _) => n.max(1),
            (None, _) => AUTO.1 + surplus(AUTO.1),
        };
        let mut time = Time(Instant::now());
        for (call, ms, n, queued) in calls {
            let now = time.after(ms % 3000);
            match call {
                0 if pace.release_at(now).is_none() => pace.released(now, n),
                1 => pace.pushed_back(now, queued.then(|| Duration::from_millis(ms))),
                2 if n % 20 == 0 => pace.slots(queued.then_some(n)),
                _ => {
                    for _ in 0..n % 50 {
                        let took = Duration::from_millis(ms);
                        pace.finished(now, Done { took, tokens: ms * n as u64, queued, in_flight: n });
                    }
                }
            }
            prop_assert!((1..=most).contains(&pace.limit()), "{}", pace.limit());
            let (low, high) = pace.summary().range;
            prop_assert!(low <= high && high <= most);
            // Nobody waits for longer than he was told, or than a request at the lowest rate takes.
            if let Some(at) = pace.release_at(now) {
                prop_assert!(at <= now + Duration::from_secs(200), "{:?}", at - now);
            }
        }
    }
}
