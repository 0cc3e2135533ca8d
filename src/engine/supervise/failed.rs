//! Why a server could not be started, and what to do.

use std::path::PathBuf;
use std::time::Duration;

use super::exit::Exit;

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// It ended by itself.
    #[error("{0} before it was ready")]
    Ended(Exit),
    /// `/health` did not say that it is ready.
    #[error("was not ready within {}: {last}", seconds(.waited))]
    Late {
        /// How long that was.
        waited: Duration,
        /// What the last look at it gave.
        last: String,
    },
    /// Somebody else listens where it should.
    #[error("found port {port} taken by another program, {tries} ports in a row")]
    PortTaken {
        /// The last port.
        port: u16,
        /// How many were tried.
        tries: u32,
    },
    /// It could not be made a process.
    #[error("could not be started: {0}")]
    NotStarted(String),
    /// Its guard could not do its work.
    #[error("could not be guarded: {0}")]
    Guard(String),
    /// Another living process has a server of this name in this folder.
    #[error("runs already: PID {pid}, started by PID {owner}")]
    Busy {
        /// The guard's PID.
        pid: u32,
        /// The owner's PID.
        owner: u32,
    },
    /// Its files could not be read or written.
    #[error("could not be started: {0}")]
    Files(String),
    /// We were asked to stop waiting.
    #[error("was not waited for any longer")]
    Cancelled,
}

fn seconds(time: &Duration) -> String {
    format!("{} s", time.as_secs_f64())
}

/// A server that did not become ready. Nothing of it is left but its log.
#[derive(Clone, Debug, thiserror::Error)]
#[error("server {replica} of engine `{engine}` {error}{}", advice_after(.advice))]
pub struct Failed {
    /// The engine's name.
    pub engine: String,
    /// Which of its servers, from 0.
    pub replica: u32,
    /// What went wrong.
    pub error: Cause,
    /// What to do, one line.
    pub advice: Option<&'static str>,
    /// Its last lines.
    pub log_tail: Vec<String>,
    /// Its log.
    pub log: PathBuf,
    /// It died at once at its very first start: the same arguments will not do better.
    pub stillborn: bool,
}

fn advice_after(advice: &Option<&'static str>) -> String {
    advice.map_or_else(String::new, |advice| format!("; {advice}"))
}

/// What a server writes when it finds its port taken.
const TAKEN: &[&str] = &[
    "address already in use",
    "address in use",
    "couldn't bind",
    "could not bind",
    "failed to bind",
    "eaddrinuse",
    "errno 98",
    "os error 98",
];

/// True when these lines say that the port is taken.
pub(super) fn says_taken(lines: &[String]) -> bool {
    lines.iter().any(|line| has(&line.to_lowercase(), TAKEN))
}

fn has(line: &str, words: &[&str]) -> bool {
    words.iter().any(|word| line.contains(word))
}

/// What servers write, in lower case, and what to do then; the first that is found counts, so the special ones stand first.
const ADVICE: &[(&[&str], &str)] = &[
    (
        &[
            "cuda out of memory",
            "cudamalloc failed",
            "cuda error: out of memory",
            "cuda error 2",
            "hip out of memory",
            "free memory on device",
            "no available memory for the cache blocks",
        ],
        "the GPU's memory is too small or taken: a smaller model or `context`, a lower `concurrency`, or fewer layers on the GPU (`flags: [--n-gpu-layers, N]`)",
    ),
    (
        &[
            "gated repo",
            "access to model",
            "401 client error",
            "403 client error",
            "awaiting a review",
        ],
        "the model is gated: accept its terms on the hub and set HF_TOKEN",
    ),
    (
        &[
            "error while loading shared libraries",
            "cannot open shared object file",
            "library not loaded",
            "importerror",
        ],
        "a library of the server is missing: install it, or name another `binary`",
    ),
    (
        &[
            "no cuda-capable device",
            "cuda driver version is insufficient",
            "found no nvidia driver",
            "no cuda gpus are available",
            "failed to infer device type",
        ],
        "the server finds no GPU: check `nvidia-smi` and `devices`, or take a server built for the CPU",
    ),
    (
        &[
            "unknown argument",
            "invalid argument",
            "unrecognized argument",
            "unexpected argument",
            "unrecognized option",
            "error while handling argument",
            "expected value for argument",
            "the following arguments are required",
        ],
        "the server does not know one of its flags: check `flags`, or the server's version",
    ),
    (
        &[
            "unknown model architecture",
            "are not supported for now",
            "unsupported model",
            "invalid magic",
            "bad magic",
            "wrong number of tensors",
            "does not recognize this architecture",
        ],
        "the server cannot read this model: a newer server, or another form of the model",
    ),
    (
        &[
            "no such file",
            "failed to open gguf",
            "does not exist",
            "is not a local folder and is not a valid model identifier",
            "repository not found",
            "filenotfounderror",
        ],
        "a file that it needs is missing: check `model` and `flags`",
    ),
    (
        &["permission denied"],
        "it may not read or run a file: check the rights of `binary` and `model`",
    ),
    (
        &["illegal instruction"],
        "the server was built for another processor: name a `binary` built for this one",
    ),
    (&["no space left on device"], "a disk is full"),
    (
        &[
            "max seq len",
            "maximum sequence length",
            "kv cache is larger",
            "larger than the maximum number of tokens",
        ],
        "the context is too long for the memory there is: lower `context` or `max_model_len`",
    ),
    (
        &[
            "out of memory",
            "cannot allocate memory",
            "failed to allocate",
            "unable to allocate",
            "bad_alloc",
            "memoryerror",
        ],
        "the memory is too small or taken: a smaller model or `context`, or a lower `concurrency`",
    ),
    (TAKEN, "its port is taken: set another `port`, or none"),
];

/// What to do about another server of the same name.
const OTHER: &str = "end the other one, or use another folder";

/// One line of advice, from why it failed and what it wrote last.
pub(super) fn advice(error: &Cause, lines: &[String]) -> Option<&'static str> {
    let lines: Vec<String> = lines.iter().map(|line| line.to_lowercase()).collect();
    // What it said when it was asked to end explains nothing.
    let written = || {
        let known = ADVICE.iter();
        let mut known = known.filter(|(words, _)| lines.iter().any(|line| has(line, words)));
        known.next().map(|(_, advice)| *advice)
    };
    match error {
        Cause::Ended(exit) => written().or_else(|| by_exit(exit, lines.is_empty())),
        Cause::Late { .. } => written().or(Some("if it only needs longer, raise `startup_timeout`")),
        Cause::PortTaken { .. } => Some("set `port` to a free one, or leave it out"),
        Cause::NotStarted(why) => by_error(&why.to_lowercase()),
        Cause::Guard(why) if why.contains("the guard") || why.contains("does not start") => Some(
            "the program that guards servers must be this chainette: set CHAINETTE_GUARD to it, or call `guard_main` first in `main`",
        ),
        Cause::Guard(why) if why.contains("another server") => Some(OTHER),
        Cause::Busy { .. } => Some(OTHER),
        Cause::Files(_) | Cause::Guard(_) => {
            Some("check the rights and the space of the folder of its files")
        }
        Cause::Cancelled => None,
    }
}

fn by_error(why: &str) -> Option<&'static str> {
    if why.contains("no such file") || why.contains("not found") {
        return Some("check `binary`");
    }
    if why.contains("permission denied") {
        return Some("check the rights of `binary`");
    }
    let other = why.contains("exec format");
    other.then_some("`binary` is no program for this machine")
}

fn by_exit(exit: &Exit, silent: bool) -> Option<&'static str> {
    match exit {
        Exit::Signal(9) => Some("somebody killed it: most likely the system, for want of memory"),
        Exit::Signal(4) => {
            Some("the server was built for another processor: name a `binary` built for this one")
        }
        Exit::Signal(_) => Some("the server crashed: look at its log, or try another version"),
        Exit::Guard(_) => None,
        Exit::Code(_) if silent => Some("it said nothing: run it by hand with the same flags"),
        Exit::Code(_) => Some("its log says why"),
    }
}
