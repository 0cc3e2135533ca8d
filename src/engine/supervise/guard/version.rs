//! What a server's program says to `--version`.

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};

use super::super::ask::plain;
use super::super::processes::as_pid;
use super::{EXEC, NAME};

/// Longer answers are cut.
const MOST: u64 = 64 << 10;

/// The first line with a digit; none within that time. Takes the calling thread's time, and ends the program with that
/// thread: one that knows no `--version` may go on to serve.
pub(in super::super) fn version_of(program: &Path, binary: &Path, patience: Duration) -> Option<String> {
    let (said, pipe) = std::io::pipe().ok()?;
    let mut command = Command::new(program);
    command
        .arg0(NAME)
        .arg(EXEC)
        .arg(std::process::id().to_string())
        .arg(binary)
        .arg("--version")
        .stdin(Stdio::null())
        // Both streams of the program go where this stage's stderr goes.
        .stdout(Stdio::null())
        .stderr(pipe)
        .process_group(0);
    let mut child = command.spawn().ok()?;
    drop(command);
    let (done, ended) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _broken = said.take(MOST).read_to_end(&mut text);
        let _late = done.send(text);
    });
    let text = ended.recv_timeout(patience).ok();
    // Whatever it started is in its group, which has its number until it is waited for.
    if let Some(group) = as_pid(child.id()) {
        let _gone = killpg(group, Signal::SIGKILL);
    }
    let _status = child.wait();
    drop(reader);
    let text = text?;
    let text = String::from_utf8_lossy(&text);
    let line = text
        .lines()
        .find(|line| line.chars().any(|c| c.is_ascii_digit()))?;
    Some(plain(line.trim())).filter(|line| !line.is_empty())
}
