//! The short moment between guard and server: ties the server's life to its guard's, and becomes the server.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use nix::unistd::getppid;

/// Exit status of what could not become a server.
const NOT_STARTED: i32 = 127;

/// `__exec GUARD_PID BINARY ARGUMENTS...`: stdout is a pipe to the guard that stays silent when all is well, stderr is
/// the log. Returns only when it failed.
pub(super) fn run(mut args: impl Iterator<Item = OsString>) -> i32 {
    let guard = args.next();
    let Some(binary) = args.next() else {
        return NOT_STARTED;
    };
    // Closed when it becomes the server; where it does not, stdout may be the log already.
    if let Ok(report) = io::stdout().as_fd().try_clone_to_owned() {
        let error = match become_server(guard.as_deref(), &binary, args) {
            Ok(never) => match never {},
            Err(error) => error,
        };
        // If the guard is gone there is nobody to tell.
        let _gone = write!(File::from(report), "{error}");
    }
    NOT_STARTED
}

fn become_server(
    guard: Option<&OsStr>,
    binary: &OsStr,
    arguments: impl Iterator<Item = OsString>,
) -> io::Result<std::convert::Infallible> {
    // A `kill -9` of the guard ends the server too.
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    let guard = guard.and_then(OsStr::to_str).and_then(|pid| pid.parse().ok());
    if guard != Some(getppid().as_raw()) {
        // It died before it could have taken us along.
        return Err(io::Error::other("the guard is gone"));
    }
    let log = io::stderr().as_fd().try_clone_to_owned()?;
    let mut server = Command::new(binary);
    server.args(arguments).stdin(Stdio::null()).stdout(log);
    Err(server.exec())
}
