//! How a process ended.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

/// How a server, or any other process, ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It left with this status.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// Its guard went first, and it with its guard; the text says how the guard ended.
    Guard(String),
}

impl Exit {
    /// True for what a server does when it is asked to end: status 0, or death by SIGTERM.
    pub fn is_clean(&self) -> bool {
        matches!(self, Self::Code(0)) || *self == Self::Signal(Signal::SIGTERM as i32)
    }
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match status.code() {
            Some(code) => Self::Code(code),
            None => Self::Signal(status.signal().unwrap_or_default()),
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with status {code}"),
            Self::Signal(signal) => match Signal::try_from(*signal) {
                Ok(known) => write!(f, "was killed by signal {signal} ({known})"),
                Err(_) => write!(f, "was killed by signal {signal}"),
            },
            Self::Guard(how) => write!(f, "was ended because its guard {how}"),
        }
    }
}
