//! Runs with processes that are killed, interrupted or done: the same files, and no process left behind.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cli;
use crate::harness::{Bench, tree, until};
use crate::processes::{command, living, python, rows};

#[test]
fn killed_runs_with_processes_leave_the_same_files() {
    let code = "import os\ndef f(item):\n    n = item['n']\n    if n % 999 == 5: os._exit(3)\n    if n % 7 == 3: raise ValueError(n)\n    \
                return [{'n': n, 'i': i, 's': list({'x', 'y', str(n)})} for i in range(n % 4)]\n";
    let bench = python(code, rows(3000), "");
    let whole = bench.run(&["--batch-size", "64"]);
    assert_eq!(whole.code, 3, "{}", whole.stderr);
    let expected = tree(&whole.out);
    fs::remove_dir_all(&whole.out).expect("the folder can go");
    let mut kills = 0;
    for n in 0..5_u64 {
        let mut child = bench
            .command(&[])
            .stderr(Stdio::null())
            .spawn()
            .expect("the command starts");
        let before = committed(&whole.out);
        until("a commit", || {
            committed(&whole.out) > before || child.try_wait().expect("a child can be waited for").is_some()
        });
        std::thread::sleep(Duration::from_millis(n * 7));
        kills += usize::from(child.try_wait().expect("a child can be waited for").is_none());
        cli::kill(&mut child);
    }
    let ran = bench.run(&["--batch-size", "100"]);
    // The last kill may have come too late: then it is finished already.
    assert!(matches!(ran.code, 0 | 3), "{}", ran.stderr);
    assert!(tree(&ran.out) == expected, "the files differ after {kills} kills");
    assert!(kills > 0, "nothing was killed");
    until("the workers' end", || living(bench.dir.path()).is_empty());
}

/// Bytes that a run has written to its outcomes.
fn committed(out: &Path) -> u64 {
    fs::metadata(out.join(".chainette/outcomes")).map_or(0, |meta| meta.len())
}

/// Starts a run whose workers and their children hang on row 20, and waits until they do.
fn hanging(bench: &Bench) -> Child {
    let child = bench
        .command(&["--batch-size", "4"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let dir = bench.dir.path();
    until("the hanging row", || dir.join("hangs").exists());
    until("the worker's own child", || {
        living(dir).iter().any(|line| line.contains("grandchild"))
    });
    child
}

const HANGS: &str = "import os, subprocess, sys, time\ndef f(item):\n    n = item['n']\n    if n in (7, 8): os._exit(1)\n    \
                     if n == 20:\n        subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)', 'grandchild', os.getcwd()])\n        \
                     open('hangs', 'w').close()\n        time.sleep(1000)\n    return item\n";

#[test]
fn no_process_is_left_behind() {
    // How the run is ended, its exit code, and how often it is told.
    for (signal, times, code) in [
        (Signal::SIGINT, 1, Some(130)),
        (Signal::SIGINT, 2, Some(130)),
        (Signal::SIGTERM, 1, Some(130)),
        (Signal::SIGKILL, 1, None),
    ] {
        let bench = python(HANGS, rows(40), ", workers: 2");
        let mut child = hanging(&bench);
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a small number"));
        for _ in 0..times {
            kill(pid, signal).expect("it can be told");
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut status = None;
        until("the end", || {
            status = child.try_wait().expect("a child can be waited for");
            status.is_some()
        });
        assert_eq!(status.expect("it has ended").code(), code, "{signal} × {times}");
        if code.is_some() {
            assert_eq!(
                living(bench.dir.path()),
                Vec::<String>::new(),
                "{signal} × {times}"
            );
        }
        until("the end of all", || living(bench.dir.path()).is_empty());
    }
}

#[test]
fn dead_workers_are_reaped() {
    let bench = python(HANGS, rows(40), "");
    let mut child = hanging(&bench);
    let parent = format!(" {} ", child.id());
    let zombies = fs::read_dir("/proc")
        .expect("/proc is there")
        .flatten()
        .filter(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // "pid (name) state ppid ..."
            let rest = stat.rsplit(')').next().unwrap_or_default();
            rest.starts_with(" Z") && rest.get(2..).unwrap_or_default().starts_with(&parent)
        });
    let zombies = zombies.count();
    cli::kill(&mut child);
    assert_eq!(zombies, 0, "rows 7 and 8 have killed workers");
    until("the end of all", || living(bench.dir.path()).is_empty());
}

#[test]
fn nothing_is_left_of_a_run_that_ends() {
    // A worker that ignores the end of its input, and leaves a child; the mark stands in its command line.
    let code = "import os, subprocess, sys, json, time\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)', os.getcwd()])\n\
                for line in sys.stdin:\n    row = json.loads(line)\n    print(json.dumps({'row_id': row['row_id'], 'outputs': [row['item']]}), flush=True)\n\
                time.sleep(1000)\n";
    let ran = command(code, rows(10), "");
    let done = ran.run(&[]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(living(ran.dir.path()), Vec::<String>::new());
    let bench = python("def f(item): raise ValueError('x')\n", rows(200), "");
    let ran = bench.run(&["--fail-fast"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert_eq!(living(bench.dir.path()), Vec::<String>::new());
}

#[test]
fn an_edited_program_is_another_chain() {
    let program = "import json, sys\nfor line in sys.stdin:\n    asked = json.loads(line)\n    print(json.dumps({'row_id': asked['row_id'], 'outputs': [{'v': 1}]}), flush=True)\n";
    let bench = Bench::new(
        "name: t\nsteps:\n  - {id: a, apply: {command: [python3, tag.py]}}\n",
        rows(3),
    );
    bench.write("tag.py", program);
    assert_eq!(bench.run(&["--limit", "2"]).code, 0);
    bench.write("tag.py", program.replace("'v'", "'w'"));
    let ran = bench.run(&[]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("a file the chain refers to was changed"),
        "{}",
        ran.stderr
    );
    let ran = bench.run(&["--resume"]);
    assert_eq!(
        (ran.code, ran.values("a")[0]["w"].clone()),
        (0, 1.into()),
        "{}",
        ran.stderr
    );
}
