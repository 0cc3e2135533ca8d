//! What a user sees: live bars on a terminal, plain lines elsewhere.

use chainette::event::{Exchange, Recent};

use crate::harness::Bench;
use crate::pty::Terminal;
use crate::server::{Answer, TestServer, answer_from_schema};

pub fn rows(n: usize) -> String {
    (0..n)
        .map(|n| format!("{{\"n\":{n},\"text\":\"row {n} end\"}}\n"))
        .collect()
}

/// A Step, a branch with a Step, an Apply aside and one at the end.
pub fn chain(server: &TestServer) -> String {
    format!(
        r#"name: product-reviews 評価
engines:
  small: {{backend: openai, model: m, endpoint: "{0}", concurrency: 4}}
  large: {{backend: openai, model: l, endpoint: "{0}", concurrency: 3}}
steps:
  - id: clean
    apply: {{jq: 'if .n == 2 then error("no text") else . end'}}
  - {{id: sentiment, engine: small, emoji: "🙂", user_prompt: "grade {{{{ text }}}}", output_model: {{label: a | b}}}}
  - parallel:
      - branch: fr
        join: fr
        steps:
          - {{id: translate_fr, engine: large, user_prompt: "fr {{{{ chain_input.text }}}}", output_model: {{text: string}}}}
      - branch: audit
        when: chain_input.n > 4
        steps:
          - {{id: note, apply: {{jq: '{{f: 1}}'}}}}
  - {{id: digest, apply: {{jq: '{{label}}'}}}}
"#,
        server.url()
    )
}

/// Answers what is asked of the first `n` rows, and holds everything else.
pub fn holds_after(n: usize) -> TestServer {
    holds(n, &[])
}

/// The same, and also holds the translations of some rows.
fn holds(n: usize, translations: &'static [usize]) -> TestServer {
    TestServer::start(move |asked| {
        let user = asked.user();
        let is_row = |row: &usize| user.contains(&format!("row {row} end"));
        let is_held = user.starts_with("fr ") && translations.iter().any(is_row);
        if !is_held && (0..n).any(|row| is_row(&row)) {
            answer_from_schema(asked)
        } else {
            Answer::Hang
        }
    })
}

/// The live part of a screen, without what no two runs share.
macro_rules! assert_screen {
    ($name:expr, $screen:expr) => {
        insta::with_settings!({filters => vec![
            (r"(?m)(\d/~?[\d,?]+(?: +\d+%)?) +[\d.]+ +[\d.]+( +\d+) +(?:done|–|-|waits|\d[\dmhs ]*)$", "$1 [rates]$2 [left]"),
            (r"(?m)^run .*$", "run       [times, rows, rate]"),
            (r"is out for \d[\dmhs ]+;", "is out for [time];"),
        ]}, { insta::assert_snapshot!($name, $screen) })
    };
}

/// From the heads of the columns on.
fn live(screen: &str) -> String {
    let lines = screen
        .lines()
        .skip_while(|line| !line.trim_start().starts_with("rows "));
    lines
        .map(str::trim_end)
        .collect::<Vec<_>>()
        .join("\n")
        .trim_end()
        .to_owned()
}

#[test]
fn bars_at_any_width() {
    // Whatever is asked first, the counts are the same in the end: `small` is full, `large` has a slot left.
    let server = holds(8, &[0, 5]);
    let bench = Bench::new(&chain(&server), rows(40));
    let mut terminal = Terminal::start(&bench, &["--limit", "40"], &[], (80, 30));
    let screen = terminal.until("settled straggler", |screen| {
        let is_settled = screen.contains(" 7/39 ") && screen.contains("28 rows wait");
        is_settled && screen.matches(" 5/39 ").count() == 2 && screen.contains("6 rows after it are done")
    });
    assert!(
        screen.starts_with("product-reviews 評価\n├── 🔧 clean  apply jq  → any\n"),
        "{screen}"
    );
    assert_screen!("bars_at_80", live(&screen));
    for (width, wide_head) in [(60, false), (160, true)] {
        terminal.resize(width, 30);
        let is_drawn = |screen: &str| {
            let live = live(screen);
            live.contains("last 10 s") == wide_head
                && live.contains("straggler")
                && live
                    .lines()
                    .all(|line| console::measure_text_width(line) < usize::from(width))
                && (wide_head || !live.contains('%') || !live.contains("%  "))
        };
        let screen = terminal.until("redrawn screen", is_drawn);
        assert_screen!(format!("bars_at_{width}"), live(&screen));
    }
    // Ctrl-C on the keyboard: the bars go, the summary comes, the cursor can be seen.
    terminal.types("\x03");
    terminal.until("warning", |screen| screen.contains("stopping:"));
    terminal.types("\x03");
    assert_eq!(terminal.ends(), 130);
    let screen = terminal.screen();
    assert!(
        screen.contains("interrupted: ") && screen.contains("the same command goes on"),
        "{screen}"
    );
    assert!(
        !screen.contains("━━") && !screen.contains("waits for"),
        "{screen}"
    );
    assert!(terminal.cursor().1, "the cursor is hidden");
}

#[test]
fn a_terminal_without_utf8_gets_ascii() {
    let server = holds(8, &[0]);
    let chain = chain(&server).replace("評価", "chain");
    for env in [
        [("LC_ALL", "POSIX"), ("LANG", "en_US.UTF-8")],
        [("LC_ALL", ""), ("LANG", "C")],
    ] {
        let bench = Bench::new(&chain, rows(40));
        let terminal = Terminal::start(&bench, &["--limit", "40"], &env, (80, 24));
        let screen = terminal.until("straggler", |screen| screen.contains("straggler"));
        assert!(screen.is_ascii(), "{screen}");
        assert!(screen.contains("|-- clean  apply jq"), "{screen}");
    }
}

#[test]
fn a_terminal_that_cannot_go_back_gets_lines() {
    let bench = Bench::new("name: t\nsteps:\n  - {id: n, apply: {jq: .}}\n", rows(5));
    for env in [("TERM", "dumb"), ("CHAINETTE_LOG", "off")] {
        let mut terminal = Terminal::start(&bench, &["--overwrite", "--color", "never"], &[env], (80, 24));
        assert_eq!(terminal.ends(), 0);
        assert!(!terminal.bytes().contains('\x1b'), "{:?}", terminal.bytes());
        assert!(
            terminal.screen().contains("finished: 5 rows in"),
            "{}",
            terminal.screen()
        );
    }
}

#[test]
fn colours_are_what_was_asked_for() {
    let server = holds_after(3);
    let with = |extra: &[&str], env: &[(&str, &str)]| {
        let bench = Bench::new(&chain(&server), rows(40));
        let terminal = Terminal::start(&bench, extra, env, (100, 30));
        terminal.until("a failed row in the table", |screen| {
            live(screen).contains("digest")
        });
        terminal.bytes().contains("\x1b[36m") || terminal.bytes().contains("\x1b[2m")
    };
    assert!(with(&[], &[]));
    assert!(!with(&[], &[("NO_COLOR", "1")]));
    assert!(!with(&["--color", "never"], &[]));
    assert!(with(&["--color", "always"], &[("NO_COLOR", "1")]));
}

#[test]
fn a_finished_run_leaves_its_summary() {
    let server = TestServer::start(answer_from_schema);
    let bench = Bench::new(&chain(&server), rows(40));
    let mut terminal = Terminal::start(&bench, &["--limit", "40"], &[], (160, 40));
    assert_eq!(terminal.ends(), 3);
    let screen = terminal.screen();
    insta::with_settings!({filters => vec![
        (r"(?m) +[\d.]+ (ns|µs|ms|s) +±.*$", "  [times]"),
        (r"\d+\.?\d* s \([\d,]+/s\)", "[time]"),
    ]}, { insta::assert_snapshot!("finished", screen) });
}

#[test]
fn what_happens_stands_above_the_bars() {
    let server = holds_after(8);
    let bench = Bench::new(&chain(&server), rows(40));
    assert_eq!(bench.run(&["--limit", "2"]).code, 0);
    let mut terminal = Terminal::start(&bench, &["--limit", "40"], &[], (100, 30));
    let screen = terminal.until("row that failed", |screen| {
        screen.contains("row failed at clean (apply): no text") && live(screen).contains("40/40")
    });
    let place = |text: &str| {
        screen
            .find(text)
            .unwrap_or_else(|| panic!("no {text} in\n{screen}"))
    };
    let resumed = place("resuming: 2 of 40 rows done\n");
    assert!(place("engines") < resumed && resumed < place("row failed at clean"));
    assert!(place("row failed at clean") < place("last 10 s"), "{screen}");
    assert_eq!(screen.matches("last 10 s").count(), 1, "{screen}");
    terminal.types("\x03");
    terminal.until("warning", |screen| screen.contains("stopping:"));
    terminal.types("\x03");
    assert_eq!(terminal.ends(), 130);
}

#[test]
fn a_terminal_that_is_not_read_stops_nobody() {
    let bench = Bench::new(
        "name: t\nsteps:\n  - {id: n, apply: {jq: 'if .n % 3 == 0 then error(\"x\\(.n)\") else . end'}}\n",
        rows(20_000),
    );
    let mut terminal = Terminal::start_unread(&bench, &["--batch-size", "2"], &[], (200, 60));
    assert_eq!(terminal.ends(), 3);
    assert_eq!(bench.opened().lines("n").len(), 20_000 - 6_667);
}

#[test]
fn verbose_shows_requests() {
    let server = TestServer::start(|asked| {
        if asked.user().contains("row 5 end") {
            return Answer::status(400, &format!("no thanks {}", "z".repeat(200)));
        }
        if asked.user().contains("row 9 end") {
            return Answer::Hang;
        }
        answer_from_schema(asked)
    });
    let bench = Bench::new(&chain(&server), rows(10));
    let terminal = Terminal::start(&bench, &["--verbose"], &[], (120, 40));
    let screen = terminal.until("the last requests", |screen| screen.contains("translate_fr row "));
    assert!(
        screen.contains("requests  ") && screen.contains(" · answered · "),
        "{screen}"
    );
}

/// However short the run: what nobody came by for while it went on is told at its end.
#[test]
fn a_short_run_tells_of_its_requests() {
    let server = TestServer::start(answer_from_schema);
    let bench = Bench::new(&chain(&server), rows(1));
    let ran = bench.run(&["--verbose"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for request in ["sentiment row 0 ", "translate_fr row 0 "] {
        let told = ran
            .stderr
            .lines()
            .filter(|line| line.starts_with(request))
            .count();
        assert_eq!(told, 1, "{}", ran.stderr);
    }
}

#[test]
fn a_request_is_told_without_its_contents() {
    let recent = Recent::default();
    for n in 0..20 {
        recent.push(Exchange {
            row_id: n.to_string(),
            problem: Some("é".repeat(100)),
            ..Exchange::default()
        });
    }
    let told = recent.take();
    assert_eq!(
        (told.len(), told[0].missed, told[0].row_id.as_str()),
        (16, 4, "4")
    );
    assert_eq!(told[15].missed, 0);
    assert_eq!(
        told[0].problem.as_deref(),
        Some(format!("{}…", "é".repeat(60)).as_str())
    );
    assert!(recent.take().is_empty());
}

/// Rows that sleep after a fault are what the run waits for: each of them is refused until the run is seen.
#[test]
fn a_run_says_that_it_will_ask_again() {
    let server = TestServer::start(|_| Answer::status(500, "out of order"));
    let patient = chain(&server).replace("{label: a | b}}", "{label: a | b}, retries: {transport: 20}}");
    let bench = Bench::new(&patient, rows(2));
    let terminal = Terminal::start(&bench, &[], &[], (120, 40));
    let screen = terminal.until("that rows are asked again", |screen| {
        screen.contains("waits to ask ")
    });
    assert!(
        screen.contains(" again: the engine answered HTTP 500"),
        "{screen}"
    );
}
