//! What the process of a pool says of itself.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::engine::provision::Need;
use crate::engine::supervise::files;

/// `{pool}.pool`: there while a process keeps the pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// The engine's name.
    pub pool: String,
    /// The process.
    pub pid: u32,
    /// When it started, in clock ticks after boot.
    pub start_time: u64,
    /// Of its servers.
    pub spec_digest: String,
    /// How many servers it keeps.
    pub replicas: u32,
    /// What it is about.
    pub stage: Stage,
    /// The file that declares it, absolute.
    pub file: PathBuf,
    /// What all its servers take of the machine.
    pub need: Need,
}

/// What a pool's process is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It starts its servers for the first time.
    Starting,
    /// It keeps them: one that ends is started again.
    Up,
    /// It changes them for others, and keeps those.
    Reloading,
    /// It stops them, and then itself.
    Ending,
}

impl Note {
    /// The note of this process.
    pub fn own(pool: &str, file: PathBuf) -> Self {
        let pid = std::process::id();
        Self {
            pool: pool.to_owned(),
            pid,
            start_time: files::start_of(pid).unwrap_or_default(),
            spec_digest: String::new(),
            replicas: 0,
            stage: Stage::Starting,
            file,
            need: Need::default(),
        }
    }

    /// True when whoever wrote it lives.
    pub fn is_of_a_living(&self) -> bool {
        files::lives(self.pid, self.start_time)
    }

    /// True when a server of this digest is kept, though it may not be ready.
    pub(super) fn will_serve(&self, digest: &str, replica: u32) -> bool {
        self.spec_digest == digest
            && replica < self.replicas
            && matches!(self.stage, Stage::Up | Stage::Reloading)
    }
}
