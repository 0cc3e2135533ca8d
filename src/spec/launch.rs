//! What an engine needs to be started by us, and what engines of a machine may use together.

use std::path::PathBuf;
use std::time::Duration;

/// How a server that chainette starts is to run.
#[derive(Clone, PartialEq)]
pub struct Launch {
    /// The folder that relative paths of `model` and `binary` start at: that of the declaring file.
    pub folder: PathBuf,
    /// SHA-256 that the model's file must have, 64 lower-case hexadecimal digits.
    pub sha256: Option<String>,
    /// Start with the first row that needs it, not with the run. Default true.
    pub lazy: bool,
    /// Released after this long without a lease. Default 180 s.
    pub idle_timeout: Duration,
    /// How long it may take to become ready. Default 300 s.
    pub startup_timeout: Duration,
    /// Servers that run the model side by side. Default 1.
    pub replicas: u32,
    /// The port of the first replica, if it is free.
    pub port: Option<u16>,
    /// The address to listen on. Default 127.0.0.1.
    pub host: String,
    /// The server's program, a path or a name on PATH; none: the backend's usual name on PATH.
    pub binary: Option<String>,
    /// Flags of the user's; they stand last and win.
    pub flags: Vec<String>,
    /// Environment variables of the server.
    pub env: Vec<(String, String)>,
    /// The GPUs it may see; none: all.
    pub devices: Option<Vec<u32>>,
    /// Nothing is started without a GPU.
    pub require_gpu: bool,
    /// The number format of the weights.
    pub dtype: Option<String>,
    /// The share of GPU memory that it takes, 0..=1.
    pub gpu_memory_utilization: Option<f64>,
    /// The longest sequence, in tokens.
    pub max_model_len: Option<u32>,
    /// GPUs that share one model.
    pub tensor_parallel_size: Option<u32>,
    /// What it needs; what is none is estimated from the model's files.
    pub memory: Memory,
    /// How the server tells reasoning from the answer.
    pub reasoning_parser: Option<String>,
    /// One request at a time and a fixed seed.
    pub deterministic: bool,
    /// Most workers that hold a model in this process, 1..=4; none: as many as it is worth.
    pub workers: Option<u32>,
}

impl Default for Launch {
    fn default() -> Self {
        Self {
            folder: PathBuf::new(),
            sha256: None,
            lazy: true,
            idle_timeout: Duration::from_secs(180),
            startup_timeout: Duration::from_secs(300),
            replicas: 1,
            port: None,
            host: "127.0.0.1".to_owned(),
            binary: None,
            flags: Vec::new(),
            env: Vec::new(),
            devices: None,
            require_gpu: false,
            dtype: None,
            gpu_memory_utilization: None,
            max_model_len: None,
            tensor_parallel_size: None,
            memory: Memory::default(),
            reasoning_parser: None,
            deterministic: false,
            workers: None,
        }
    }
}

impl std::fmt::Debug for Launch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The values of variables may be secrets, and so may those of flags that are not known here.
        let env: Vec<&str> = self.env.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Launch")
            .field("folder", &self.folder)
            .field("binary", &self.binary)
            .field("host", &self.host)
            .field("port", &self.port)
            .field("replicas", &self.replicas)
            .field("devices", &self.devices)
            .field("flags", &self.flags.len())
            .field("env", &env)
            .field("memory", &self.memory)
            .field("deterministic", &self.deterministic)
            .finish_non_exhaustive()
    }
}

impl Launch {
    /// What of this decides how the model answers, as `name=value` words; empty where nothing is said.
    pub fn identity(&self) -> String {
        let words = [
            self.sha256.as_ref().map(|digest| format!(" sha256={digest}")),
            self.dtype.as_ref().map(|dtype| format!(" dtype={dtype}")),
            self.deterministic.then(|| " deterministic".to_owned()),
        ];
        words.into_iter().flatten().collect()
    }
}

/// Memory of an engine, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Of the machine.
    pub ram: Option<u64>,
    /// Of each GPU it uses.
    pub vram: Option<u64>,
}

/// What the engines of one run may use together, in bytes; what is none is found out (`ram`: 80 % of the machine or
/// of the cgroup, `vram`: what each GPU has) or has a default (`spill`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// RAM.
    pub ram: Option<u64>,
    /// Memory of each GPU.
    pub vram: Option<u64>,
    /// Disk for rows that wait for an engine which does not fit beside another.
    pub spill: Option<u64>,
}

impl Resources {
    /// These, and `other` where they say nothing.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            ram: self.ram.or(other.ram),
            vram: self.vram.or(other.vram),
            spill: self.spill.or(other.spill),
        }
    }
}
