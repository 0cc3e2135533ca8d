//! Disks that are full or read-only.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{
    BINARY, Bench, COPY, PICKY, assert_stderr, ends_within, rows, stderr_of, tree, tree_of, two_steps, until,
};
use crate::server::{Answer, TestServer};

/// Runs a shell script that may mount: `$B` is the binary. Its stdout.
pub fn with_mounts(bench: &Bench, script: &str) -> String {
    // As root, else as root of a namespace of its own, else by sudo. Mounts go when the script ends.
    let ways: [&[&str]; 3] = [
        &["unshare", "-m"],
        &["unshare", "-rm"],
        &["sudo", "-n", "unshare", "-m"],
    ];
    for way in ways {
        let mut command = Command::new(way[0]);
        command
            .args(&way[1..])
            .args(["sh", "-c"])
            .current_dir(bench.dir.path());
        let probe = command.arg("mount -t tmpfs tmpfs /mnt").output();
        if !probe.is_ok_and(|probe| probe.status.success()) {
            continue;
        }
        let mut command = Command::new(way[0]);
        command
            .args(&way[1..])
            .args(["sh", "-eu", "-c"])
            .current_dir(bench.dir.path());
        let script = format!("B={BINARY}; export NO_COLOR=1\n{script}");
        let output = command.arg(script).output().expect("unshare starts");
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{out}{err}");
        return out.into_owned();
    }
    panic!("this test needs to mount a tmpfs: run it as root, or allow user namespaces");
}

#[test]
fn the_disk_is_full() {
    let input: String = (0..3000)
        .map(|n| format!("{{\"a\":{n},\"text\":\"{}\"}}\n", "x".repeat(1000)))
        .collect();
    let bench = Bench::new(PICKY, input);
    let said = with_mounts(
        &bench,
        "mkdir disk; mount -t tmpfs -o size=24m tmpfs disk\n\
         head -c 20M /dev/zero > disk/filler\n\
         for again in 1 2; do $B run chain.yaml in.jsonl disk/out --quiet 2>&1 || echo \"exit $?\"; done\n\
         rm disk/filler\n\
         $B run chain.yaml in.jsonl disk/out --quiet\n\
         $B run chain.yaml in.jsonl whole --quiet\n\
         cp -r disk/out out",
    );
    assert_stderr!(said);
    let dir = bench.dir.path();
    assert_eq!(tree(&dir.join("out")), tree(&dir.join("whole")));
}

#[test]
fn the_disk_is_full_before_anything() {
    let bench = Bench::new(COPY, rows(10));
    let said = with_mounts(
        &bench,
        "mkdir disk; mount -t tmpfs -o size=1m tmpfs disk; mkdir disk/out\n\
         cat /dev/zero > disk/filler 2>/dev/null || true\n\
         $B run chain.yaml in.jsonl disk/out --quiet 2>&1 || echo \"exit $?\"\n\
         rm disk/filler\n\
         $B run chain.yaml in.jsonl disk/out --quiet\n\
         cp -r disk/out out",
    );
    assert_stderr!(said);
    assert_eq!(tree(&bench.dir.path().join("out")), tree_of(&bench, "whole", &[]));
}

#[test]
fn the_disk_of_the_answers_is_full() {
    let server = TestServer::start(|asked| {
        Answer::text(format!(
            "{} {}",
            asked.user().split(' ').take(3).collect::<String>(),
            // Long, and no repetition: that would be cut.
            (0..4200).map(|n| format!("{n} ")).collect::<String>()
        ))
    });
    let bench = Bench::new(&two_steps(&server).to_string(), rows(100));
    let said = with_mounts(
        &bench,
        "$B run chain.yaml in.jsonl out --quiet --limit 0; mount -t tmpfs -o size=8m tmpfs out/.chainette/answers\n\
         head -c 7M /dev/zero > out/.chainette/answers/filler\n\
         $B run chain.yaml in.jsonl out --quiet 2>&1 || echo \"exit $?\"\n\
         rm out/.chainette/answers/filler\n\
         $B run chain.yaml in.jsonl out --quiet",
    );
    assert_stderr!(said);
    let stats = server.stats();
    assert!(stats.asked_again <= 4, "{stats:?}");
    assert_eq!(tree(&bench.dir.path().join("out")), tree_of(&bench, "whole", &[]));
}

#[test]
fn out_is_read_only() {
    let bench = Bench::new(COPY, rows(10));
    let said = with_mounts(
        &bench,
        "mkdir disk; mount -t tmpfs tmpfs disk; mkdir disk/out; mount -o remount,ro disk\n\
         for out in disk/out disk/new; do\n\
         $B run chain.yaml in.jsonl $out 2>&1 || echo \"exit $?\"\n\
         done",
    );
    assert_stderr!(said);
}

/// A sync that fails behind the rows' backs stops the run: what it had to bring to the disk is not safe.
#[test]
fn an_answer_that_cannot_be_synced() {
    let (armed, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (armed_there, asked_there) = (armed.clone(), asked.clone());
    // More than a segment of the ledger, so that it goes on in the next one.
    let server = TestServer::start(move |question| {
        let first = question.user() == "say 0";
        while !first && !armed_there.load(Ordering::SeqCst) {
            asked_there.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(5));
        }
        Answer::text((0..450_000).map(|n| format!("{n} ")).collect::<String>())
    });
    let chain = format!(
        "name: t\nengines: {{e: {{backend: openai, model: m, endpoint: \"{}\", concurrency: 1}}}}\nsteps:\n  \
         - {{id: ask, engine: e, user_prompt: \"say {{{{ a }}}}\", yield_output: false}}\n  \
         - {{id: n, apply: {{jq: '{{len: (.text | length)}}'}}}}\n",
        server.url()
    );
    let bench = Bench::new(&chain, rows(30));
    let mut child = bench.spawn(&[]);
    until("second question", || asked.load(Ordering::SeqCst));
    // What is written there is taken, and cannot be synced.
    let next = bench.dir.path().join("out/.chainette/answers/000001.log");
    std::os::unix::fs::symlink("/dev/null", &next).expect("OUT is writable");
    armed.store(true, Ordering::SeqCst);
    let code = ends_within(&mut child, Duration::from_secs(300));
    let said = stderr_of(&mut child);
    assert_eq!(code, 1, "{said}");
    let cause =
        "error: cannot bring the answers in out/.chainette/answers/000001.log to the disk: Invalid argument";
    assert!(said.contains(cause), "{said}");
    assert!(
        said.contains("the same command goes on where this stopped"),
        "{said}"
    );
    std::fs::remove_file(&next).expect("the link is there");
    let ran = bench.run(&[]);
    assert_eq!((ran.code, ran.lines("n").len()), (0, 30), "{}", ran.stderr);
}
