//! The handoff: what a healthy server leaves on disk for those who may use it.

use serde::{Deserialize, Serialize};

use crate::engine::provision::{Mode, Need};

/// `{pool}-{replica}.json`: written when the server is healthy, removed when it is stopped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Handoff {
    /// The backend, by its name in a chain.
    pub engine: String,
    /// What the server says of itself.
    pub engine_version: Option<String>,
    /// Who runs it.
    pub provisioning_mode: Mode,
    /// Its base URL.
    pub url: String,
    /// The engine's name.
    pub pool_id: String,
    /// Which of its servers, from 0.
    pub replica_id: u32,
    /// What it serves.
    pub model: Model,
    /// Its flags, without its address.
    pub flags: Vec<String>,
    /// `CUDA_VISIBLE_DEVICES`.
    pub device_mask: Option<String>,
    /// The server's process.
    pub pid: u32,
    /// When that process started, in clock ticks after boot: a number that is used again has another.
    pub start_time: u64,
    /// Requests it works on at the same time, where that is known.
    pub slots: Option<usize>,
    /// What it takes of the machine.
    pub need: Need,
    /// As in `PreparedEngine`: a run binds to a server whose digest is that of its own engine.
    pub spec_digest: String,
    /// It takes no new requests.
    pub draining: bool,
}

/// The model of a handoff.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// As the chain names it.
    pub id: String,
    /// Its file or folder.
    pub path: Option<std::path::PathBuf>,
    /// Its digest.
    pub digest: Option<String>,
}
