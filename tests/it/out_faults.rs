//! What happens to OUT, to the input and to the process while a run is on or stopped.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::disks::with_mounts;
use crate::harness::{
    Bench, assert_stderr, copy, ends_within, everything, rows, signal, stderr_of, tree, tree_of, two_steps,
    until,
};
use crate::server::{Answer, Dice, TestServer};

/// Long enough on any machine.
const PATIENT: Duration = Duration::from_secs(120);

/// A server that answers the first ten rows, and the others once the switch is on.
fn held() -> (TestServer, Arc<AtomicBool>) {
    let go = Arc::new(AtomicBool::new(false));
    let on = go.clone();
    let server = TestServer::start(move |asked| {
        let answer = Answer::text(format!("heard {}", asked.user()));
        let row = asked
            .user()
            .rsplit(' ')
            .next()
            .and_then(|n| n.parse::<usize>().ok());
        match row {
            Some(..10) => answer,
            _ => Answer::Once(on.clone(), Box::new(answer)),
        }
    });
    (server, go)
}

/// A chain whose later rows fail: the first of them makes a folder.
fn chain(server: &TestServer) -> String {
    let mut chain = two_steps(server);
    let check =
        json!({"id": "check", "apply": {"jq": "if ($chain_input.a >= 10) then error(\"late\") else . end"}});
    // Those that wait leave room for the others.
    chain["engines"]["e"]["concurrency"] = 64.into();
    chain["steps"].as_array_mut().expect("a list").push(check);
    chain.to_string()
}

/// A process that does not outlive its test.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _it_may_be_dead = self.0.kill();
        let _reaped = self.0.wait();
    }
}

impl std::ops::Deref for Guarded {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl std::ops::DerefMut for Guarded {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

/// A run that has committed its first rows and waits for the others.
fn underway(bench: &Bench) -> Guarded {
    let child = bench
        .command(&["--quiet", "--batch-size", "2"])
        .env("CHAINETTE_CHECKPOINT_EVERY", "10")
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut child = Guarded(child);
    until("checkpoint of the first ten rows", || {
        assert!(
            child.try_wait().expect("a child can be waited for").is_none(),
            "{}",
            stderr_of(&mut child)
        );
        let checkpoint =
            fs::read(bench.dir.path().join("out/.chainette/checkpoint.json")).unwrap_or_default();
        let checkpoint: serde_json::Value = serde_json::from_slice(&checkpoint).unwrap_or_default();
        checkpoint["counts"]["rows_in"] == 10
    });
    child
}

#[test]
fn out_is_removed_while_it_is_written() {
    let (server, go) = held();
    let bench = Bench::new(&chain(&server), rows(30));
    let mut child = underway(&bench);
    let out = bench.dir.path().join("out");
    until("end of OUT", || fs::remove_dir_all(&out).is_ok());
    // No reply comes: it is noticed all the same.
    let code = ends_within(&mut child, PATIENT);
    let said = stderr_of(&mut child);
    assert_eq!(code, 1, "{said}");
    assert_stderr!(said);
    assert!(!out.exists(), "half an OUT came back");
    go.store(true, Ordering::SeqCst);
    let ran = bench.run(&[]);
    assert_eq!((ran.code, ran.lines("first").len()), (3, 30), "{}", ran.stderr);
    assert!(tree(&ran.out) == tree_of(&bench, "whole", &[]));
}

/// Somebody moves OUT away, and another run works in a new one of that name: neither harms the other.
#[test]
fn out_is_replaced_while_it_is_written() {
    let (server, go) = held();
    let bench = Bench::new(&chain(&server), rows(30));
    let mut child = underway(&bench);
    let dir = bench.dir.path();
    fs::rename(dir.join("out"), dir.join("moved")).expect("OUT can be moved");
    let limited = ["--limit", "5"];
    let other = bench.run(&limited);
    assert_eq!(other.code, 0, "{}", other.stderr);
    let before = everything(&other.out);
    go.store(true, Ordering::SeqCst);
    let code = ends_within(&mut child, PATIENT);
    let said = stderr_of(&mut child);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("out was moved or removed while the run was under way; put it back"),
        "{said}"
    );
    assert!(
        everything(&other.out) == before,
        "the other run's files were touched"
    );
    // Put back, it goes on.
    fs::rename(dir.join("out"), dir.join("other")).expect("OUT can be moved");
    fs::rename(dir.join("moved"), dir.join("out")).expect("OUT can be moved");
    let ran = bench.run(&[]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(tree(&ran.out) == tree_of(&bench, "whole", &[]));
}

#[test]
fn out_becomes_read_only() {
    let (server, go) = held();
    let bench = Bench::new(&chain(&server), rows(30));
    let dir = bench.dir.path().to_owned();
    let said = std::thread::scope(|scope| {
        scope.spawn(|| {
            until("read-only OUT", || dir.join("read-only").exists());
            go.store(true, Ordering::SeqCst);
        });
        with_mounts(
            &bench,
            "export CHAINETTE_CHECKPOINT_EVERY=10\n\
             $B run chain.yaml in.jsonl out --quiet --batch-size 2 2>said & run=$!\n\
             while [ ! -e out/.chainette/checkpoint.json ]; do sleep 0.02; done\n\
             mount --bind out out; mount -o remount,bind,ro out; touch read-only\n\
             wait $run || echo \"exit $?\"\n\
             $B run chain.yaml in.jsonl out --quiet 2>&1 || echo \"exit $?\"\n\
             umount out\n\
             $B run chain.yaml in.jsonl out --quiet || echo \"exit $?\"",
        )
    });
    let first = fs::read_to_string(dir.join("said")).expect("it said why");
    assert!(
        first.contains("Read-only file system") && first.contains("the same command goes on"),
        "{first}"
    );
    assert_stderr!(said);
    assert!(tree(&dir.join("out")) == tree_of(&bench, "whole", &[]));
    // What was in flight at the end, at most.
    assert!(server.stats().asked <= 60 + 60 + 20, "{:?}", server.stats());
}

/// Five at once: one runs, the others say which process does, and harm nothing.
#[test]
fn several_runs_start_at_once() {
    let (server, go) = held();
    let bench = Bench::new(&chain(&server), rows(30));
    let mut children: Vec<Guarded> = (0..5)
        .map(|_| Guarded(bench.spawn(&["--quiet", "--batch-size", "2"])))
        .collect();
    // All but one end while the rows of that one wait.
    until("end of all others", || {
        let ended = children
            .iter_mut()
            .filter_map(|child| child.try_wait().expect("a child"));
        ended.count() == 4
    });
    go.store(true, Ordering::SeqCst);
    let mut codes: Vec<i32> = Vec::new();
    for child in &mut children {
        codes.push(ends_within(child, PATIENT));
        let said = stderr_of(child);
        assert!(
            said.is_empty() || said.contains("out is in use by another chainette"),
            "{said}"
        );
    }
    codes.sort_unstable();
    assert_eq!(codes, [2, 2, 2, 2, 3]);
    assert_eq!(server.stats().asked, 60);
    assert!(tree(&bench.dir.path().join("out")) == tree_of(&bench, "whole", &[]));
}

/// What stands in a lock file that nobody holds stops nobody: not a dead process, not a living one, not anything.
#[test]
fn a_stale_lock() {
    let bench = Bench::new(crate::harness::PICKY, rows(20));
    let whole = tree_of(&bench, "whole", &[]);
    let mut dead = std::process::Command::new("true").spawn().expect("it starts");
    dead.wait().expect("it ends");
    let living = std::process::id().to_string();
    for holder in [
        &dead.id().to_string(),
        &living,
        "1\n",
        "",
        "no number",
        &"9".repeat(5000),
    ] {
        fs::create_dir_all(bench.dir.path().join("out/.chainette")).expect("a folder can be made");
        bench.write("out/.chainette/lock", holder);
        let ran = bench.run(&["--limit", "10"]);
        assert_eq!(ran.code, 0, "{holder}: {}", ran.stderr);
        bench.write("out/.chainette/lock", holder);
        let ran = bench.run(&[]);
        assert_eq!(ran.code, 0, "{holder}: {}", ran.stderr);
        assert!(tree(&ran.out) == whole, "{holder}");
        fs::remove_dir_all(&ran.out).expect("OUT can be removed");
    }
}

/// A file, what is done to it in words, and its new text.
type Change = (&'static str, &'static str, fn(&str) -> String);

/// A killed run, and then another input or chain: refused by name, and gone on with by `--resume`.
#[test]
fn what_changed_while_it_was_stopped() {
    let changes: [Change; 5] = [
        ("in.jsonl", "shortened", |text| {
            text.lines().take(25).map(|line| format!("{line}\n")).collect()
        }),
        ("in.jsonl", "cut in a line", |text| {
            text[..text.len() - 4].to_owned()
        }),
        ("in.jsonl", "appended", |text| text.to_owned() + "{\"a\":30}\n"),
        ("in.jsonl", "replaced", |text| text.replace("\"a\":2", "\"a\":7")),
        ("chain.yaml", "one character", |text| {
            text.replace("say {{ a }}", "say  {{ a }}")
        }),
    ];
    let mut said = String::new();
    for (file, what, change) in changes {
        let (server, go) = held();
        let bench = Bench::new(&chain(&server), rows(30));
        let mut child = underway(&bench);
        child.kill().expect("a child can be killed");
        child.wait().expect("it can be reaped");
        go.store(true, Ordering::SeqCst);
        let path = bench.dir.path().join(file);
        let text = fs::read_to_string(&path).expect("it can be read");
        bench.write(file, change(&text));
        let before = everything(&bench.dir.path().join("out"));
        let ran = bench.run(&[]);
        assert_eq!(ran.code, 2, "{what}: {}", ran.stderr);
        assert!(
            everything(&ran.out) == before,
            "{what}: a refused OUT was touched"
        );
        said += &format!("{what}\n{}", ran.stderr);
        server.clear_log();
        let ran = bench.run(&["--resume"]);
        assert_eq!(ran.code, 3, "{what}: {}", ran.stderr);
        let asked = server.stats().asked;
        assert!(tree(&ran.out) == tree_of(&bench, "whole", &[]), "{what}");
        if file == "in.jsonl" {
            assert!(asked <= 2 * 21 + 4, "{what}: asked {asked}");
        }
    }
    // Times of the files differ, and how far a digest reaches.
    assert_stderr!(said);
}

/// SIGTERM wherever the run is: what is in flight is waited for, so that nothing at all is asked again.
#[test]
fn sigterm_at_random_progress() {
    let server = TestServer::start(|asked| {
        let mut dice = Dice::new(asked.user().as_bytes());
        let pause = Duration::from_millis(1 + dice.below(6));
        Answer::text(format!("heard {}", asked.user())).after(pause)
    });
    let bench = Bench::new(&chain(&server), rows(600));
    let mut dice = Dice::new(b"sigterm");
    let mut stopped = 0;
    for _ in 0..6 {
        let target = server.stats().asked + 1 + dice.below(90);
        let mut child =
            Guarded(bench.spawn(&["--quiet", "--batch-size", "16", "--max-lines-per-file", "30"]));
        until("some more requests", || {
            server.stats().asked >= target || child.try_wait().expect("a child").is_some()
        });
        if child.try_wait().expect("a child").is_some() {
            break;
        }
        signal(&child, "-TERM");
        let code = ends_within(&mut child, PATIENT);
        if code == 3 {
            // It was done when the signal came.
            break;
        }
        assert_eq!(code, 130, "{}", stderr_of(&mut child));
        stopped += 1;
    }
    assert!(stopped >= 3, "{stopped}");
    let ran = bench.run(&["--max-lines-per-file", "30"]);
    assert!(matches!(ran.code, 0 | 3), "{}", ran.stderr);
    assert_eq!(server.stats().asked_again, 0);
    assert!(tree(&ran.out) == tree_of(&bench, "whole", &["--max-lines-per-file", "30"]));
}

/// The last file of the ledger.
fn ledger(out: &Path) -> PathBuf {
    let files = fs::read_dir(out.join(".chainette/answers")).expect("there is a ledger");
    let files = files.map(|entry| entry.expect("an entry").path());
    files.max().expect("it has a file")
}

/// The machine loses its power: of what came after the last sync, the ledger's end is missing, or zeros, or anything. Each
/// byte of its last frame, and some more: what is whole is used, what is not is asked again, and nothing else.
#[test]
fn power_is_lost() {
    let server = TestServer::start(|asked| Answer::text(format!("heard {}", asked.user())));
    let chain = json!({
        "name": "t",
        "engines": {"e": {"backend": "openai", "model": "m", "endpoint": server.url(), "concurrency": 1}},
        "steps": [{"id": "ask", "engine": "e", "user_prompt": "say {{ a }}", "sampling": {"max_tokens": 9}}],
    });
    let bench = Bench::new(&chain.to_string(), rows(4));
    let whole = tree_of(&bench, "whole", &[]);
    let out = bench.dir.path().join("out");
    // All answers are on file; no checkpoint says more.
    let mut command = bench.command(&["--quiet"]);
    command.env("CHAINETTE_FAILPOINT", "commit.finishing=kill");
    let output = command.output().expect("the command starts");
    assert_eq!(output.status.signal(), Some(9));
    let bytes = fs::read(ledger(&out)).expect("the ledger can be read");
    let kept = tempfile::tempdir().expect("a folder");
    copy(&out, kept.path());
    let asked = |what: &str, bytes: &[u8]| {
        fs::remove_dir_all(&out).expect("OUT can be removed");
        copy(kept.path(), &out);
        fs::write(ledger(&out), bytes).expect("the ledger can be written");
        server.clear_log();
        let ran = bench.run(&["--quiet"]);
        assert_eq!(ran.code, 0, "{what}: {}", ran.stderr);
        assert!(tree(&ran.out) == whole, "{what}");
        server.stats().asked
    };
    assert_eq!(asked("nothing", &bytes), 0);
    let mut most = 3;
    for at in bytes.len() - 190..bytes.len() {
        let cut = asked(&format!("cut at {at}"), &bytes[..at]);
        assert!((1..=most).contains(&cut), "cut at {at}: {cut} were asked again");
        most = cut;
        let rest = bytes.len() - at;
        if at % 16 == 0 {
            let zeros = [&bytes[..at], &vec![0; rest]].concat();
            assert!(asked(&format!("zeros from {at}"), &zeros) <= cut);
            let junk: Vec<u8> = (0..rest).map(|n| (n * 37 + at) as u8 | 1).collect();
            assert!(asked(&format!("junk from {at}"), &[&bytes[..at], &junk].concat()) <= cut);
        }
    }
    for tail in [vec![0; 4096], vec![0; 65_537], vec![0xff; 4096]] {
        assert_eq!(asked("a tail", &[&bytes[..], &tail].concat()), 0);
    }
    assert_eq!(asked("all of it", &[]), 4);
    assert_eq!(asked("zeros all over", &vec![0; bytes.len()]), 4);
}
