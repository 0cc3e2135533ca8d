//! Runs on engines that `engine up` keeps: shared, drained and reloaded under load, and gone.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{ends_within, rows, stderr_of, until};
use crate::warm_harness::{Yard, kill, pid};

const LIMIT: Duration = Duration::from_secs(200);

/// The outputs of a run, in order.
fn outputs(yard: &Yard, out: &str) -> String {
    fs::read_to_string(yard.path().join(out).join("flattened/000.jsonl")).expect("the run is finished")
}

/// Requests, and how many of them there were in all.
fn distinct(asked: &[String]) -> (usize, usize) {
    (asked.iter().collect::<BTreeSet<_>>().len(), asked.len())
}

#[test]
fn runs_share_what_is_up_and_leave_it_there() {
    let yard = Yard::new("replicas: 2, concurrency: 2", "--latency-ms 5");
    yard.good(&["engine", "up", "chain.yaml"]);
    let before = (yard.handoff("small-0"), yard.handoff("small-1"));
    let first = yard.good(&["run", "chain.yaml", "in.jsonl", "first"]);
    assert!(
        first
            .stderr
            .contains("uses server small-0 that `engine up` keeps"),
        "{}",
        first.stderr
    );
    let names = ["a", "b"];
    let mut runs = names.map(|out| yard.spawn(&["run", "chain.yaml", "in.jsonl", out]));
    for run in &mut runs {
        let code = ends_within(run, LIMIT);
        assert_eq!(code, 0, "{}", stderr_of(run));
    }
    assert_eq!(yard.started("small"), 2, "no run started one of its own");
    assert_eq!(
        (yard.handoff("small-0"), yard.handoff("small-1")),
        before,
        "and none touched them"
    );
    assert_eq!(distinct(&yard.asked("small")), (60, 180));
    for out in names {
        assert_eq!(outputs(&yard, out), outputs(&yard, "first"));
        // Where it was answered is no part of what a run is.
        let metadata =
            fs::read_to_string(yard.path().join(out).join("metadata.json")).expect("it is finished");
        let url = before.0.as_ref().expect("it is ready")["url"]
            .as_str()
            .expect("a URL");
        assert!(!metadata.contains(url), "{metadata}");
    }
    assert!(
        !yard.status().iter().any(|row| row["in_use"] == true),
        "no lease is left"
    );
    // Another digest: the run starts its own, and stops it.
    yard.declare("other.yaml", &[("small", "concurrency: 3", "--latency-ms 5")]);
    yard.good(&["run", "other.yaml", "in.jsonl", "other"]);
    assert_eq!(yard.started("small"), 3);
    assert_eq!((yard.handoff("small-0"), yard.handoff("small-1")), before);
    yard.good(&["engine", "down", "--all"]);
    assert_eq!(yard.left(), [""; 0]);
}

/// A run over 400 rows that is under way.
fn under_way(yard: &Yard) -> std::process::Child {
    yard.bench.write("in.jsonl", rows(400));
    let run = yard.spawn(&["run", "chain.yaml", "in.jsonl", "out"]);
    until("requests", || yard.asked("small").len() > 20);
    run
}

#[track_caller]
fn finished(yard: &Yard, mut run: std::process::Child) -> String {
    let code = ends_within(&mut run, LIMIT);
    let told = stderr_of(&mut run);
    assert_eq!(code, 0, "{told}");
    assert_eq!(outputs(yard, "out").lines().count(), 400);
    told
}

#[test]
fn reloads_under_load_cost_no_row_and_no_request() {
    let yard = Yard::new("replicas: 2, concurrency: 2", "--latency-ms 20");
    yard.good(&["engine", "up", "chain.yaml"]);
    let run = under_way(&yard);
    yard.good(&["engine", "reload", "--pool", "small"]);
    let asked = yard.asked("small").len();
    until("requests to the new servers", || {
        yard.asked("small").len() > asked
    });
    yard.good(&["engine", "reload", "chain.yaml", "--pool", "small"]);
    let told = finished(&yard, run);
    // Its look at the handoff, or a request that came too late: whichever was first.
    let noticed = ["draining", "takes no new requests"]
        .iter()
        .any(|word| told.contains(word));
    assert!(noticed, "{told}");
    assert_eq!(
        distinct(&yard.asked("small")),
        (400, 400),
        "nothing is asked twice"
    );
    yard.good(&["engine", "down", "--all"]);
    assert_eq!(yard.left(), [""; 0]);
}

#[test]
fn a_reload_to_other_settings_leaves_the_run_its_own() {
    let yard = Yard::new("concurrency: 2", "--latency-ms 20");
    yard.good(&["engine", "up", "chain.yaml"]);
    let run = under_way(&yard);
    yard.declare("next.yaml", &[("small", "concurrency: 5", "--latency-ms 20")]);
    yard.good(&["engine", "reload", "next.yaml", "--pool", "small"]);
    finished(&yard, run);
    assert_eq!(
        distinct(&yard.asked("small")),
        (400, 400),
        "nothing is asked twice"
    );
    assert_eq!(
        yard.started("small"),
        3,
        "the first, the reloaded, and the run's own"
    );
    let handoff = yard.handoff("small-0").expect("it is still up");
    assert_eq!(handoff["slots"], 5);
}

#[test]
fn a_drain_under_load_waits_for_requests_only() {
    let yard = Yard::new("concurrency: 2", "--latency-ms 20");
    yard.good(&["engine", "up", "chain.yaml"]);
    let run = under_way(&yard);
    yard.good(&["engine", "drain", "--pool", "small"]);
    finished(&yard, run);
    assert_eq!(
        distinct(&yard.asked("small")),
        (400, 400),
        "nothing is asked twice"
    );
    assert_eq!(yard.started("small"), 2, "the run went on with one of its own");
    assert_eq!(yard.left(), [""; 0]);
}

#[test]
fn a_drain_that_is_called_off_is_no_more_than_a_pause() {
    let yard = Yard::new("concurrency: 2", "--latency-ms 3000");
    yard.good(&["engine", "up", "chain.yaml"]);
    yard.bench.write("in.jsonl", rows(8));
    let mut run = yard.spawn(&["run", "chain.yaml", "in.jsonl", "out"]);
    until("requests", || yard.asked("small").len() == 2);
    let drain = yard.invoke(&["engine", "drain", "--pool", "small", "--deadline", "200ms"]);
    assert_eq!(drain.code, 1, "{}", drain.stderr);
    assert_eq!(yard.handoff("small-0").expect("it serves on")["draining"], false);
    assert_eq!(ends_within(&mut run, LIMIT), 0, "{}", stderr_of(&mut run));
    assert_eq!(
        (distinct(&yard.asked("small")), yard.started("small")),
        ((8, 8), 1)
    );
}

#[test]
fn servers_and_keepers_are_killed_under_load() {
    let yard = Yard::new("concurrency: 2", "--latency-ms 20");
    yard.good(&["engine", "up", "chain.yaml"]);
    let run = under_way(&yard);
    let first = yard.handoff("small-0").expect("it is ready");
    kill(pid(&first["pid"]));
    until("second server", || {
        yard.handoff("small-0")
            .is_some_and(|now| now["pid"] != first["pid"])
    });
    let asked = yard.asked("small").len();
    until("requests to it", || yard.asked("small").len() > asked + 10);
    kill(yard.keeper("small"));
    finished(&yard, run);
    let (distinct, all) = distinct(&yard.asked("small"));
    assert_eq!(distinct, 400);
    assert!(
        all <= 400 + 2 * 2,
        "only what was in flight at a kill is asked again: {all}"
    );
    assert_eq!(
        yard.started("small"),
        3,
        "the killed one, its follower, and the run's own"
    );
    yard.good(&["engine", "status"]);
    yard.until_nothing_is_left();
}

#[test]
fn a_killed_run_holds_no_lease() {
    let yard = Yard::new("concurrency: 2", "--latency-ms 600000");
    yard.good(&["engine", "up", "chain.yaml"]);
    let mut run = yard.spawn(&["run", "chain.yaml", "in.jsonl", "out"]);
    until("requests", || yard.asked("small").len() == 2);
    until("lease", || yard.status()[0]["in_use"] == true);
    run.kill().expect("it runs");
    run.wait().expect("it is ours");
    yard.good(&["engine", "drain", "--pool", "small"]);
    assert_eq!(yard.left(), [""; 0]);
}

#[test]
fn what_is_not_ours_is_not_used() {
    let yard = Yard::new("concurrency: 2", "");
    yard.good(&["engine", "up", "chain.yaml"]);
    let path = yard.engines().join("small-0.json");
    let rights = |mode| fs::set_permissions(&path, Permissions::from_mode(mode)).expect("it is ours");
    // Anybody could have written it. The pool lives, so that the run waits for it a while; it is stopped.
    rights(0o666);
    fs::set_permissions(yard.engines(), Permissions::from_mode(0o777)).expect("it is ours");
    yard.good(&["run", "chain.yaml", "in.jsonl", "a"]);
    assert_eq!(yard.started("small"), 2, "the run started its own");
    fs::set_permissions(yard.engines(), Permissions::from_mode(0o700)).expect("it is ours");
    rights(0o600);
    // A handoff that says the same of a process that was not started by us.
    let text = fs::read(&path).expect("a handoff");
    let mut handoff: Value = serde_json::from_slice(&text).expect("JSON");
    yard.good(&["engine", "down", "--all"]);
    handoff["pid"] = serde_json::json!(std::process::id());
    handoff["url"] = serde_json::json!("http://127.0.0.1:9");
    fs::write(&path, handoff.to_string()).expect("it is ours");
    rights(0o600);
    yard.good(&["run", "chain.yaml", "in.jsonl", "b"]);
    assert_eq!(yard.started("small"), 3, "the run started its own");
    yard.good(&["engine", "status"]);
    assert!(!path.exists(), "the stale one is cleaned up");
}
