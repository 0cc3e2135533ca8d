//! How the fake engine starts and ends.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::ValueEnum;

use super::Args;

/// What SIGTERM does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Term {
    /// Ends it with status 0.
    Exit,
    /// Kills it, as a process that knows nothing of signals.
    Die,
    /// The first does nothing, the second ends it with status 0.
    Once,
    /// Nothing, ever.
    Never,
    /// As llama.cpp: status 0 once nothing is in flight, status 1 at the second.
    Busy,
}

/// A process that the fake engine starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Grandchild {
    /// In its own group.
    Group,
    /// In a session of its own, its parent gone.
    Session,
    /// The same, and SIGTERM does nothing.
    Stubborn,
    /// The same as `session`, without any environment.
    Bare,
}

/// Flags of real servers that mean nothing here, with a value.
const WITH_VALUE: &[&str] = &[
    "-m",
    "--model",
    "-a",
    "--alias",
    "-c",
    "--ctx-size",
    "--n-gpu-layers",
    "-ngl",
    "-t",
    "--threads",
    "-np",
    "--max-model-len",
    "--dtype",
    "--gpu-memory-utilization",
    "--tensor-parallel-size",
    "--served-model-name",
    "--reasoning-format",
    "--reasoning-parser",
    "--max-num-seqs",
    "--model-id",
    "--max-concurrent-requests",
    "--max-total-tokens",
    "--num-shard",
    "-b",
    "-ub",
    "--revision",
];
/// The same, without.
const ALONE: &[&str] = &[
    "--metrics",
    "--no-webui",
    "--no-ui",
    "--no-cont-batching",
    "--cont-batching",
    "-cb",
    "-nocb",
    "--jinja",
    "--enforce-eager",
    "--no-mmap",
    "--mlock",
];

/// The command line without what other servers understand, and with `$FAKE_ENGINE_ARGS` (words, or a JSON array).
pub fn arguments() -> Vec<String> {
    let mut given = std::env::args().peekable();
    let mut kept: Vec<String> = given.next().into_iter().collect();
    if given.next_if(|word| word == "serve").is_some() {
        given.next();
    }
    while let Some(word) = given.next() {
        let name = word.split('=').next().unwrap_or_default();
        match () {
            () if word == "--parallel" => kept.push("--slots".to_owned()),
            () if ALONE.contains(&name) => {}
            () if WITH_VALUE.contains(&name) => {
                if name == word {
                    given.next();
                }
            }
            () => kept.push(word),
        }
    }
    let more = std::env::var("FAKE_ENGINE_ARGS").unwrap_or_default();
    match serde_json::from_str::<Vec<String>>(&more) {
        Ok(words) => kept.extend(words),
        Err(_) => kept.extend(more.split_whitespace().map(str::to_owned)),
    }
    kept
}

/// What it does before it listens.
pub fn begin(args: &Args) {
    for line in &args.say {
        eprintln!("{line}");
    }
    if let Some(path) = &args.pid_file {
        let mut options = std::fs::OpenOptions::new();
        let file = options.create(true).append(true).open(path);
        writeln!(
            file.expect("the PID file can be opened"),
            "{}",
            std::process::id()
        )
        .expect("it can be written");
    }
    watch_term(args.term);
    args.grandchild.iter().for_each(|kind| start(*kind, &args.nap));
    if let Some(status) = args.exit {
        let after = Duration::from_millis(args.exit_after_ms);
        std::thread::spawn(move || {
            std::thread::sleep(after);
            std::process::exit(status);
        });
    }
    if args.mute {
        // The system takes connections, and nobody reads them.
        let listener = std::net::TcpListener::bind(("127.0.0.1", args.port)).expect("the port is free");
        std::mem::forget(listener);
    }
    if args.never_listen || args.mute {
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

/// SIGTERMs so far.
static TERMS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

fn terms() -> u32 {
    TERMS.load(std::sync::atomic::Ordering::SeqCst)
}

/// Counts SIGTERMs from here on, whatever else the process does.
fn watch_term(term: Term) {
    if term == Term::Die {
        return;
    }
    let (ready, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime can be built").block_on(async move {
            let kind = tokio::signal::unix::SignalKind::terminate();
            let mut signals = tokio::signal::unix::signal(kind).expect("a signal can be awaited");
            ready.send(()).expect("somebody waits");
            while signals.recv().await.is_some() {
                let before = TERMS.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                match (term, before) {
                    (Term::Exit, _) | (Term::Once, 1..) => std::process::exit(0),
                    (Term::Busy, 1..) => std::process::exit(1),
                    _ => {}
                }
            }
        });
    });
    wait.recv().expect("the thread lives");
}

/// Serves until it is told to end, in its own way.
pub fn until_asked_to_end(args: &Args, in_flight: impl Fn() -> usize) {
    let mut ticks = 0_u32;
    loop {
        std::thread::sleep(Duration::from_millis(20));
        if args.term == Term::Busy && terms() > 0 && in_flight() == 0 {
            std::process::exit(0);
        }
        ticks += 1;
        if args.watch && ticks.is_multiple_of(50) {
            eprintln!("{}", in_flight());
        }
    }
}

fn start(kind: Grandchild, nap: &str) {
    let mut command = match kind {
        Grandchild::Group => Command::new("sleep"),
        Grandchild::Session | Grandchild::Stubborn | Grandchild::Bare => {
            let mut command = Command::new("setsid");
            command.arg("--fork");
            if kind == Grandchild::Stubborn {
                command.args(["sh", "-c", "trap '' TERM; while :; do sleep \"$1\"; done", "sh"]);
            } else {
                command.arg("sleep");
            }
            command
        }
    };
    if kind == Grandchild::Bare {
        command.env_clear();
    }
    let child = command
        .arg(nap)
        .stdin(Stdio::null())
        .spawn()
        .expect("a program of every system");
    // It is not waited for: it may live longer than this process.
    drop(child);
}
