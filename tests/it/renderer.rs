//! What is drawn of a progress: the live screen at any size, the plain lines, totals and rates.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use chainette::event::{
    EngineStatus, Event, Exchange, Feed, NodeInfo, Progress, Report, Retrying, Status, Switching, Traffic,
    Usage,
};
use chainette::report::{Plain, Style, render};
use chainette::run::Tracker;

const UTF8: Style = Style {
    color: false,
    unicode: true,
    icons: true,
    max_branches: None,
};

const ASCII: Style = Style {
    color: false,
    unicode: false,
    icons: false,
    max_branches: None,
};

fn node(id: &str, after: Option<usize>) -> NodeInfo {
    NodeInfo {
        id: id.into(),
        icon: "🔧".into(),
        after,
        ..NodeInfo::default()
    }
}

fn traffic(came: u64, done: u64, left: u64, failed: u64) -> Traffic {
    Traffic {
        came,
        done,
        left,
        failed,
        ..Traffic::default()
    }
}

/// What a tracker makes of a status, some seconds into a run of a million rows.
fn progress(seconds: f64, status: Status) -> Progress {
    let mut progress = Progress {
        total: Some(1_000_000),
        seconds,
        status,
        ..Progress::default()
    };
    Tracker::default().update(&mut progress);
    progress
}

fn three_nodes() -> Progress {
    let mut fr = node("translate_into_french", Some(1));
    (fr.depth, fr.branch, fr.engine, fr.icon) = (1, Some("fr".into()), Some("small".into()), "🤖".into());
    let mut sentiment = node("sentiment", Some(0));
    sentiment.engine = Some("small".into());
    progress(
        3_723.0,
        Status {
            nodes: [node("clean", None), sentiment, fr, node("digest", Some(1))].into(),
            traffic: vec![
                traffic(1_000_000, 1_000_000, 1_000_000, 0),
                traffic(812_344, 812_280, 811_046, 1_234),
                traffic(811_046, 700_000, 700_000, 0),
                traffic(0, 0, 0, 0),
            ],
            engines: vec![EngineStatus {
                name: "small".into(),
                in_flight: 64,
                waiting: 111_110,
                limit: 64,
                trouble: Some("HTTP 429: rate limit reached for requests".into()),
                retry_in: Some(11.2),
                ..EngineStatus::default()
            }],
            errors: 1_234,
            feed: Feed::AtEnd,
            ..Status::default()
        },
    )
}

#[test]
fn the_renderer_at_three_widths() {
    for (width, style) in [(60, UTF8), (80, UTF8), (160, UTF8), (80, ASCII)] {
        let lines = render(&three_nodes(), style, (width, 24), &[]);
        for line in &lines {
            assert!(console::measure_text_width(line) < width, "{line}");
            assert!(style.unicode || line.is_ascii(), "{line}");
        }
        let name = format!("render_{width}{}", if style.unicode { "" } else { "_ascii" });
        insta::assert_snapshot!(name, lines.join("\n"));
    }
    // Nothing is too small to be drawn on.
    for width in 1..60 {
        for height in 1..12 {
            let lines = render(&three_nodes(), UTF8, (width, height), &["x".repeat(200)]);
            let fits = |line: &String| console::measure_text_width(line) < width.max(22);
            assert!(lines.iter().all(fits), "{width}: {lines:?}");
        }
    }
}

#[test]
fn more_nodes_than_lines() {
    let nodes = (0..40).map(|n| node(&format!("node_{n:02}"), (n as usize).checked_sub(1)));
    let traffic = (0..40).map(|n| match n {
        0..12 => traffic(1_000_000, 1_000_000, 1_000_000, 0),
        12..15 => traffic(600_000 - n, 600_000 - n - 1, 600_000 - n - 1, 0),
        _ => traffic(0, 0, 0, 0),
    });
    let status = Status {
        nodes: nodes.collect(),
        traffic: traffic.collect(),
        ..Status::default()
    };
    let lines = render(&progress(600.0, status), ASCII, (80, 16), &[]);
    assert!(lines.len() < 16, "{}", lines.len());
    insta::assert_snapshot!("forty_nodes", lines.join("\n"));
}

/// The lines of a screen that say what a run of one node waits for.
fn waits(node: NodeInfo, status: Status) -> Vec<String> {
    let status = Status {
        nodes: [node].into(),
        traffic: vec![traffic(30, 10, 10, 0)],
        ..status
    };
    let lines = render(&progress(60.0, status), UTF8, (100, 16), &[]);
    let mut lines: Vec<String> = lines
        .into_iter()
        .filter(|line| line.starts_with("waits"))
        .collect();
    lines.sort();
    lines
}

#[test]
fn a_screen_says_which_process_has_the_rows() {
    let of = |process| NodeInfo {
        process,
        ..node("a", None)
    };
    let quiet = || Status {
        unanswered: vec![20],
        ..Status::default()
    };
    assert_eq!(
        waits(of(Some("program")), quiet()),
        ["waits for the program of `a`"]
    );
    assert_eq!(
        waits(of(Some("function")), quiet()),
        ["waits for the function of `a`"]
    );
    assert_eq!(waits(of(None), quiet()), ["waits for Applies (CPU)"]);
}

#[test]
fn a_screen_says_that_rows_will_be_asked_again() {
    let retrying = Status {
        retrying: Retrying {
            rows: 3,
            reason: "HTTP 500: out\nof order".into(),
        },
        ..Status::default()
    };
    let expected = "waits to ask 3 rows again: HTTP 500: out of order";
    assert_eq!(waits(node("a", None), retrying.clone()), [expected]);
    // What is under way comes first.
    let mut busy = retrying;
    busy.engines.push(EngineStatus {
        name: "small".into(),
        in_flight: 1,
        limit: 2,
        ..EngineStatus::default()
    });
    assert_eq!(
        waits(node("a", None), busy),
        ["waits for answers of engine small"]
    );
}

#[test]
fn engines_that_take_turns_are_told() {
    let engine = |name: &str, in_flight, parked| EngineStatus {
        name: name.into(),
        in_flight,
        parked,
        limit: 4,
        ..EngineStatus::default()
    };
    let mut status = Status {
        engines: vec![engine("a", 0, 0), engine("b", 0, 1_204)],
        switching: Some(Switching {
            to: vec!["b".into()],
            from: vec!["a".into(), "c".into()],
        }),
        ..Status::default()
    };
    assert_eq!(
        waits(node("n", None), status.clone()),
        ["waits for engine b to take the place of a, c"]
    );
    status.engines[1].trouble = Some("loading the\nmodel".into());
    assert_eq!(
        waits(node("n", None), status.clone()),
        ["waits for engine b to take the place of a, c: loading the model"]
    );
    status.engines[1] = engine("b", 1, 1_203);
    assert_eq!(
        waits(node("n", None), status.clone()),
        ["waits for answers of engine b"]
    );
    let lines = render(&progress(60.0, status), UTF8, (100, 16), &[]);
    let line = "b  1 of 4 busy · 1,203 rows parked until it is loaded";
    assert!(lines.iter().any(|found| found.contains(line)), "{lines:?}");
}

#[test]
fn the_rest_of_a_resumed_run_is_reckoned_at_its_own_speed() {
    let at = |seconds: f64, done: u64, reused: u64| {
        let status = Status {
            nodes: [node("n", None)].into(),
            traffic: vec![Traffic {
                reused,
                before: 800_000,
                ..traffic(done, done, done, 0)
            }],
            ..Status::default()
        };
        Progress {
            total: Some(1_000_000),
            rows_before: 800_000,
            seconds,
            status,
            ..Progress::default()
        }
    };
    let mut tracker = Tracker::default();
    // Only answers from the ledger so far: nobody knows how fast the engine is.
    let mut first = at(1.0, 850_000, 50_000);
    tracker.update(&mut first);
    assert_eq!((first.nodes[0].rate, first.nodes[0].eta), (0.0, None));
    // A thousand rows asked in nine seconds.
    let mut second = at(10.0, 851_000, 50_000);
    tracker.update(&mut second);
    assert_eq!(second.nodes[0].rate, 100.0);
    assert_eq!(second.eta, Some(1490.0));
    // Ten times as fast in the last ten seconds.
    let mut third = at(20.0, 861_000, 50_000);
    tracker.update(&mut third);
    assert_eq!((third.nodes[0].recent, third.eta), (1000.0, Some(139.0)));
}

#[test]
fn totals_follow_what_the_nodes_before_leave() {
    let mut aside = node("aside", Some(1));
    (aside.depth, aside.branch, aside.through) = (1, Some("b".into()), vec![0]);
    let status = Status {
        nodes: [
            node("split", None),
            node("half", Some(0)),
            aside,
            node("end", Some(1)),
        ]
        .into(),
        traffic: vec![
            traffic(1_000, 1_000, 3_000, 0),
            traffic(3_000, 2_000, 1_000, 0),
            traffic(100, 100, 100, 0),
            traffic(1_000, 900, 900, 0),
        ],
        entries: vec![chainette::event::Entries {
            came: 1_000,
            skipped: 900,
        }],
        ..Status::default()
    };
    let totals: Vec<_> = progress(10.0, status)
        .nodes
        .iter()
        .map(|node| node.total)
        .collect();
    let rows: Vec<_> = totals
        .iter()
        .flatten()
        .map(|total| (total.rows, total.estimate))
        .collect();
    assert_eq!(
        rows,
        [
            (1_000_000, false),
            (3_000_000, true),
            (150_000, true),
            (1_500_000, true)
        ]
    );
}

#[test]
fn plain_lines_come_every_ten_seconds() {
    let said = Arc::new(Mutex::new(String::new()));
    let out = said.clone();
    let mut plain = Plain::new(
        UTF8,
        Box::new(move |line| {
            let mut said = out.lock().expect("nobody panics");
            said.push_str(line);
            said.push('\n');
        }),
    );
    assert_eq!(plain.every(), Duration::from_secs(1));
    let mut tracker = Tracker::default();
    for second in 1..=25_u64 {
        let done = second * 1_000;
        let mut now = three_nodes();
        (now.seconds, now.total) = (second as f64, Some(100_000));
        now.rows = done;
        now.status.behind = Some(if second < 3 { done } else { 3_000 });
        now.status.traffic = vec![
            traffic(100_000, 100_000, 100_000, 0),
            traffic(done + 64, done, done, 0),
            traffic(done, done / 2, done / 2, 7),
            traffic(0, 0, 0, 0),
        ];
        now.status.engines[0].trouble = None;
        tracker.update(&mut now);
        if second == 4 {
            let warning = Event::EngineWaiting {
                engine: "small".into(),
                reason: "HTTP 503: Loading model".into(),
                retry_in_s: 1.5,
            };
            plain.event(SystemTime::UNIX_EPOCH, &warning, &now);
        }
        if second == 6 {
            for n in 0..9 {
                let exchange = Exchange {
                    node: "sentiment".into(),
                    row_id: n.to_string(),
                    engine: "small".into(),
                    attempt: 2,
                    status: "bad_reply",
                    ms: 1_812,
                    usage: Usage {
                        prompt_tokens: 200,
                        completion_tokens: 35,
                    },
                    problem: Some("expected\na string\x1b[2J".into()),
                    missed: if n == 0 { 27 } else { 0 },
                };
                plain.event(SystemTime::UNIX_EPOCH, &Event::Request(exchange), &now);
            }
        }
        plain.tick(&now);
    }
    insta::assert_snapshot!("plain", said.lock().expect("nobody panics"));
}
