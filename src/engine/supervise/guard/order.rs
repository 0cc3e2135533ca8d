//! What goes over a guard's pipes.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::exit::Exit;
use super::super::files::Files;
use super::super::processes::Process;

/// Another version of these types is another number: a guard from another build refuses.
pub(in super::super) const VERSION: u32 = 1;
/// End the server: SIGTERM, SIGTERM, SIGKILL.
pub(super) const STOP: &str = "stop";
/// End the server with SIGKILL at once.
pub(super) const KILL: &str = "kill";

/// What a guard is to do; the first line of its stdin. It has no `Debug`: `env` may hold keys.
#[derive(Serialize, Deserialize)]
pub(in super::super) struct Order {
    /// [`VERSION`].
    pub(in super::super) version: u32,
    /// What the server's processes carry in their environment.
    pub(in super::super) nonce: String,
    /// The program.
    pub(in super::super) binary: PathBuf,
    /// What it is given.
    pub(in super::super) arguments: Vec<String>,
    /// Environment variables on top of ours.
    pub(in super::super) env: Vec<(OsString, OsString)>,
    /// Where its files are.
    pub(in super::super) files: Files,
    /// Who gives the order.
    pub(in super::super) owner: Process,
    /// After the first SIGTERM.
    pub(in super::super) first_term: Duration,
    /// After the second SIGTERM.
    pub(in super::super) second_term: Duration,
    /// A log longer than this is put aside, in bytes.
    pub(in super::super) log_most: u64,
}

/// What a guard says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Note {
    /// The server runs.
    Started(Process),
    /// Its program could not be started.
    Refused(String),
    /// The guard could not do its work.
    Failed(String),
    /// It ended.
    Exited(Exit),
    /// Nothing of it is left; the last note.
    Gone,
}
