//! A server that is ready to be started, or to be attached to.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::spec::Backend;

/// Who runs the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Someone else: it has an `endpoint` and is attached to.
    External,
    /// We start a program of this machine.
    Binary,
    /// It runs in this process.
    Embedded,
}

/// Memory that a server takes while it runs, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// Of the machine.
    pub ram: u64,
    /// Of each GPU, by its index.
    pub vram: Vec<(u32, u64)>,
}

impl Need {
    /// What so many of the same take.
    #[must_use]
    pub fn times(&self, n: u32) -> Self {
        let all = |bytes: u64| bytes.saturating_mul(u64::from(n));
        Self {
            ram: all(self.ram),
            vram: self
                .vram
                .iter()
                .map(|(device, bytes)| (*device, all(*bytes)))
                .collect(),
        }
    }
}

/// One replica of an engine, prepared: it has no way to become a process by itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreparedEngine {
    /// The engine's name; also the pool's.
    pub engine: String,
    /// Which of its servers, from 0.
    pub replica: u32,
    /// Its protocol, by its name in a chain.
    pub backend: String,
    /// Who runs it.
    pub mode: Mode,
    /// The program; none for an external server.
    pub binary: Option<PathBuf>,
    /// What the program is given before its address, such as `serve MODEL`.
    pub lead: Vec<String>,
    /// What the program is given after its address: our flags, then the user's.
    pub flags: Vec<String>,
    /// Environment variables on top of ours; no secrets.
    pub env: Vec<(String, String)>,
    /// Environment variables that carry secrets, as (the server's name, our name): the value is taken from our own
    /// environment when the server starts, and is written nowhere.
    #[serde(default)]
    pub secrets: Vec<(String, String)>,
    /// The address to listen on.
    pub host: String,
    /// The port to listen on.
    pub port: u16,
    /// The endpoint of an external server.
    pub endpoint: Option<String>,
    /// The model as the chain names it, and as requests do.
    pub model_id: String,
    /// Its file or folder.
    pub model_path: Option<PathBuf>,
    /// `sha256:HEX` where known, else what its size, time and ends say.
    pub model_digest: Option<String>,
    /// `CUDA_VISIBLE_DEVICES`.
    pub device_mask: Option<String>,
    /// Requests that it is set up to work on at the same time; none: it decides itself.
    pub slots: Option<usize>,
    /// What it takes of the machine.
    pub need: Need,
    /// How long it may take to become ready.
    pub startup_timeout: Duration,
    /// BLAKE3 over all that decides how it answers (not its address): two servers of one digest are the same.
    pub spec_digest: String,
    /// What a person should know before it starts.
    pub notes: Vec<String>,
}

impl PreparedEngine {
    /// The command line after the program.
    pub fn arguments(&self) -> Vec<String> {
        let host = match self.protocol() {
            Some(Backend::Tgi) => "--hostname",
            _ => "--host",
        };
        let address = [host, &self.host, "--port", &self.port.to_string()].map(str::to_owned);
        [self.lead.as_slice(), &address, &self.flags].concat()
    }

    /// Every environment variable that the server is given on top of ours: [`Self::env`], [`Self::device_mask`] and
    /// the values of [`Self::secrets`] as they are now. Nothing of this is to be shown or stored.
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        let of = |(name, value): &(String, String)| (name.into(), value.into());
        let mask = self.device_mask.iter();
        let mask = mask.flat_map(|mask| {
            [
                ("CUDA_VISIBLE_DEVICES".into(), mask.into()),
                // Else the numbers would not be those of `nvidia-smi`.
                ("CUDA_DEVICE_ORDER".into(), "PCI_BUS_ID".into()),
            ]
        });
        let secrets = self.secrets.iter();
        let secrets = secrets.filter_map(|(name, ours)| Some((name.into(), std::env::var_os(ours)?)));
        self.env.iter().map(of).chain(mask).chain(secrets).collect()
    }

    /// The base URL of the server. A wildcard address is reached over loopback.
    pub fn url(&self) -> String {
        let host = match self.host.as_str() {
            "0.0.0.0" => "127.0.0.1".to_owned(),
            "::" => "[::1]".to_owned(),
            host if host.contains(':') && !host.starts_with('[') => format!("[{host}]"),
            host => host.to_owned(),
        };
        self.endpoint
            .clone()
            .unwrap_or_else(|| format!("http://{host}:{}", self.port))
    }

    /// The protocol, if this version knows it.
    pub fn protocol(&self) -> Option<Backend> {
        Backend::ALL
            .into_iter()
            .find(|backend| backend.as_str() == self.backend)
    }

    /// The name of its files: `{pool}-{replica}`.
    pub fn label(&self) -> String {
        format!("{}-{}", self.engine, self.replica)
    }
}
