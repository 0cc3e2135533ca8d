//! One worker process: its pipes, its end, and that nothing of it is left.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::time::{Instant, sleep};

use crate::engine::supervise::Exit;

/// A line of a worker's log is cut here.
const MAX_LOG_LINE: usize = 8 << 10;
/// How long a worker may take to end by itself once its input has ended.
const FAREWELL: Duration = Duration::from_secs(2);
/// Between two looks at a process that is ending.
const LOOK: Duration = Duration::from_millis(5);

/// A running worker. Dropping it kills it, with every process of its group.
pub(super) struct Process {
    group: Group,
    /// Its stdin.
    pub(super) input: Option<Sender>,
    /// Its stdout.
    pub(super) output: Receiver,
    /// The last line of its log.
    pub(super) last_words: LastWords,
}

/// The last line that a worker wrote to its log.
#[derive(Clone, Debug, Default)]
pub(super) struct LastWords(Arc<Mutex<String>>);

impl LastWords {
    fn set(&self, line: &str) {
        line.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// `: LINE`, or nothing if it said nothing.
    pub(super) fn as_cause(&self) -> String {
        let line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let shown: String = line.chars().take(300).collect();
        if shown.is_empty() {
            shown
        } else {
            format!(": {shown}")
        }
    }
}

impl Process {
    /// Starts a worker of `node` in a process group of its own; its stderr goes to the log. `label` tells guards apart.
    pub(super) fn start(mut command: Command, node: &str, label: &Path) -> io::Result<Self> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        // From here on an error drops the group, which ends it.
        let group = Group::new(child, label);
        let (Some(input), Some(output), Some(log)) = pipes else {
            return Err(io::Error::other("it has no pipes"));
        };
        let input = Some(Sender::from_owned_fd(OwnedFd::from(input))?);
        let output = Receiver::from_owned_fd(OwnedFd::from(output))?;
        let log = Receiver::from_owned_fd(OwnedFd::from(log))?;
        let last_words = LastWords::default();
        tokio::spawn(follow_log(log, node.to_owned(), last_words.clone()));
        Ok(Self {
            group,
            input,
            output,
            last_words,
        })
    }

    /// Ends its input, lets it end by itself for a moment, and kills what is left.
    pub(super) async fn farewell(mut self) {
        self.input = None;
        self.ends_within(FAREWELL).await;
    }

    /// True when it ends within `wait`.
    pub(super) async fn ends_within(&self, wait: Duration) -> bool {
        let end = Instant::now() + wait;
        while !self.group.has_ended() {
            if Instant::now() >= end {
                return false;
            }
            sleep(LOOK).await;
        }
        true
    }

    /// Kills it and says how it ended: "exited with status 1", "was killed by signal 11 (SIGSEGV)"; none if
    /// it did not end by itself within `wait`.
    pub(super) async fn how_it_ended(mut self, wait: Duration) -> Option<String> {
        let by_itself = self.ends_within(wait).await;
        // Its last words may still be on their way.
        sleep(LOOK).await;
        let status = self.group.bury();
        by_itself.then(|| status.map_or_else(|| "ended".to_owned(), |status| Exit::from(status).to_string()))
    }
}

/// A worker with all that it started, and the guard that kills them when we cannot.
struct Group {
    child: Child,
    /// None where there is no shell, and at the end.
    guard: Option<Child>,
    buried: bool,
}

impl Group {
    fn new(child: Child, label: &Path) -> Self {
        let guard = guard(child.id(), label);
        Self {
            child,
            guard,
            buried: false,
        }
    }

    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().map(Pid::from_raw)
    }

    /// True when the worker itself has ended. It is not reaped yet, so that the group's number stays its own.
    fn has_ended(&self) -> bool {
        let Some(pid) = self.pid() else { return true };
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        !matches!(waitid(Id::Pid(pid), flags), Ok(WaitStatus::StillAlive))
    }

    /// Kills the whole group and reaps the worker, once.
    fn bury(&mut self) -> Option<ExitStatus> {
        if self.buried {
            return None;
        }
        self.buried = true;
        // The guard goes first: it must never meet a group that is not ours any more.
        if let Some(mut guard) = self.guard.take() {
            let _gone = guard.kill();
            let _reaped = guard.wait();
        }
        if let Some(pid) = self.pid() {
            let _gone = killpg(pid, Signal::SIGKILL);
        }
        self.child.wait().ok()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.bury();
    }
}

/// Starts what kills a worker's group when its own input ends: with this process, however that dies.
fn guard(worker: u32, label: &Path) -> Option<Child> {
    let script = "read -r line; kill -9 \"-$1\"";
    let started = Command::new("/bin/sh")
        .args(["-c", script, "chainette-guard", &worker.to_string()])
        .arg(label)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    match started {
        Ok(guard) => Some(guard),
        Err(error) => {
            tracing::warn!(%error, "no shell to guard a worker: after a `kill -9` it ends only with its input");
            None
        }
    }
}

/// Hands a worker's stderr to the developer log, line by line (`CHAINETTE_LOG=worker=info` shows it).
async fn follow_log(log: Receiver, node: String, last_words: LastWords) {
    let mut held: Vec<u8> = Vec::new();
    let mut block = vec![0; 16 << 10];
    let say = |line: &[u8]| {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end();
        if !line.is_empty() {
            tracing::info!(target: "worker", node, "{line}");
            last_words.set(line);
        }
    };
    loop {
        if log.readable().await.is_err() {
            return;
        }
        let read = match log.try_read(&mut block) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => break,
        };
        held.extend_from_slice(block.get(..read).unwrap_or_default());
        let mut said = 0;
        for end in memchr::memchr_iter(b'\n', &held) {
            say(held.get(said..end).unwrap_or_default());
            said = end + 1;
        }
        held.drain(..said);
        if held.len() > MAX_LOG_LINE {
            say(&held);
            held.clear();
        }
    }
    say(&held);
}
