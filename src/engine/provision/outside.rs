//! Asking a program one question: it is given nothing, a bounded time and a bounded answer, and is gone afterwards.

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// More than this of an answer is not read.
const MOST: u64 = 4 << 20;

/// What it said.
pub(super) struct Said {
    /// It ended with 0.
    pub(super) success: bool,
    /// stdout and stderr, as text.
    pub(super) text: String,
}

/// Runs a program to its end, at most for so long.
///
/// # Errors
/// Why there is no answer, as a phrase behind the program's name.
pub(super) fn output(mut command: Command, patience: Duration) -> Result<Said, String> {
    let (mut reader, writer) = std::io::pipe().map_err(|error| format!("cannot be run: {error}"))?;
    let second = writer
        .try_clone()
        .map_err(|error| format!("cannot be run: {error}"))?;
    command
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(second)
        .process_group(0);
    let mut child = command
        .spawn()
        .map_err(|error| format!("cannot be run: {error}"))?;
    // Our ends of the pipe, or its reader would wait for us.
    drop(command);
    let (answer, answered) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = reader.by_ref().take(MOST).read_to_end(&mut bytes);
        // Nobody may wait any more.
        let _gone = answer.send(read.map(|_| bytes));
    });
    let read = answered.recv_timeout(patience);
    // Whatever it left behind; a group that is gone is what is wanted.
    let group = Pid::from_raw(child.id().cast_signed());
    if read.is_err() {
        let _gone = killpg(group, Signal::SIGKILL);
    }
    let status = child
        .wait()
        .map_err(|error| format!("cannot be waited for: {error}"))?;
    let _gone = killpg(group, Signal::SIGKILL);
    match read {
        Err(_) => Err(format!("gave no answer within {} s", patience.as_secs())),
        Ok(Err(error)) => Err(format!("cannot be read: {error}")),
        Ok(Ok(bytes)) => Ok(Said {
            success: status.success(),
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }),
    }
}
