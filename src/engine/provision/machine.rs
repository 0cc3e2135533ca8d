//! What this machine has: looked at once, before anything is planned.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sysinfo::{MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System};

use super::{Need, outside};
use crate::spec::Resources;

/// How long `nvidia-smi` may take.
const PATIENCE: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;

/// A GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// As `nvidia-smi` counts them.
    pub index: u32,
    /// Its memory in bytes.
    pub memory: u64,
}

/// Where models of the hub lie, and how they are asked for.
#[derive(Clone, Default)]
pub struct HubSettings {
    /// The cache's folder (`HF_HUB_CACHE`, or `hub` in `HF_HOME` or `~/.cache/huggingface`); none: no home folder.
    pub cache: Option<PathBuf>,
    /// `HF_ENDPOINT`.
    pub endpoint: String,
    /// `HF_TOKEN`, or the one that was left by a login.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`: nothing is downloaded.
    pub offline: bool,
}

impl std::fmt::Debug for HubSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubSettings")
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "***"))
            .field("offline", &self.offline)
            .finish()
    }
}

/// What plans are made from.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// The folders of PATH.
    pub path: Vec<PathBuf>,
    /// RAM in bytes: of the machine, or of the cgroup where that is less.
    pub ram: u64,
    /// The GPUs that programs started here can see.
    pub gpus: Vec<Gpu>,
    /// Why there are no GPUs, where that is known.
    pub gpu_trouble: Option<String>,
    /// The hub.
    pub hub: HubSettings,
    /// `VLLM_CPU_KVCACHE_SPACE`: GiB that vLLM keeps of tokens on a CPU.
    pub vllm_cpu_kept_gib: Option<f64>,
}

impl Machine {
    /// Looks at this machine: its memory, `nvidia-smi`, PATH and the environment.
    pub fn look() -> Self {
        let path: Vec<PathBuf> = std::env::var_os("PATH")
            .map(|path| std::env::split_paths(&path).collect())
            .unwrap_or_default();
        let (gpus, gpu_trouble) = match gpus(&path) {
            Ok(gpus) => (visible(gpus), None),
            Err(trouble) => (Vec::new(), Some(trouble)),
        };
        Self {
            ram: ram(),
            gpus,
            gpu_trouble,
            hub: hub(),
            vllm_cpu_kept_gib: std::env::var("VLLM_CPU_KVCACHE_SPACE")
                .ok()
                .and_then(|gib| gib.trim().parse().ok()),
            path,
        }
    }

    /// What engines may use together: `resources`, where they say something, else 80 % of the RAM and all memory of
    /// each GPU.
    pub fn budget(&self, resources: &Resources) -> Need {
        let device = |gpu: &Gpu| (gpu.index, resources.vram.unwrap_or(gpu.memory));
        Need {
            ram: resources.ram.unwrap_or(self.ram / 5 * 4),
            vram: self.gpus.iter().map(device).collect(),
        }
    }
}

/// RAM of the machine, or of the cgroups that this process is in where these have less.
fn ram() -> u64 {
    let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let mut system = System::new_with_specifics(memory);
    let own = Pid::from_u32(std::process::id());
    system.refresh_processes_specifics(
        ProcessesToUpdate::Some(&[own]),
        false,
        ProcessRefreshKind::nothing(),
    );
    let limits = [
        system.cgroup_limits(),
        system.process(own).and_then(|own| own.cgroup_limits()),
    ];
    let limits = limits.into_iter().flatten().map(|limits| limits.total_memory);
    limits
        .filter(|limit| *limit > 0)
        .fold(system.total_memory(), u64::min)
}

/// What `nvidia-smi` lists; why it lists nothing.
fn gpus(path: &[PathBuf]) -> Result<Vec<Gpu>, String> {
    let Some(program) = path
        .iter()
        .map(|dir| dir.join("nvidia-smi"))
        .find(|p| p.is_file())
    else {
        return Err("`nvidia-smi` is not on PATH".to_owned());
    };
    let mut command = Command::new(program);
    command.args(["--query-gpu=index,memory.total", "--format=csv,noheader,nounits"]);
    let said = outside::output(command, PATIENCE).map_err(|error| format!("`nvidia-smi` {error}"))?;
    if !said.success {
        let line = said.text.lines().find(|line| !line.trim().is_empty());
        return Err(format!(
            "`nvidia-smi` failed: {}",
            line.unwrap_or("no reason given").trim()
        ));
    }
    let gpus: Vec<Gpu> = said.text.lines().filter_map(gpu).collect();
    if gpus.is_empty() {
        return Err("`nvidia-smi` lists none".to_owned());
    }
    Ok(gpus)
}

/// A line such as `0, 81559`; cards that share the machine's memory say `[N/A]`.
fn gpu(line: &str) -> Option<Gpu> {
    let (index, memory) = line.split_once(',')?;
    Some(Gpu {
        index: index.trim().parse().ok()?,
        memory: memory.trim().parse::<u64>().unwrap_or(0) * MIB,
    })
}

/// The GPUs that `CUDA_VISIBLE_DEVICES` of our own environment leaves.
fn visible(gpus: Vec<Gpu>) -> Vec<Gpu> {
    let Ok(mask) = std::env::var("CUDA_VISIBLE_DEVICES") else {
        return gpus;
    };
    if mask.trim().is_empty() {
        return Vec::new();
    }
    let mut left = Vec::new();
    for entry in mask.split(',') {
        match entry.trim().parse::<i64>() {
            Ok(index) => match gpus.iter().find(|gpu| i64::from(gpu.index) == index) {
                Some(gpu) => left.push(*gpu),
                // CUDA stops at the first one that is not there.
                None => break,
            },
            // UUIDs: which they are is not known here.
            Err(_) => return gpus,
        }
    }
    left
}

/// The hub's settings, as its own tools read them.
fn hub() -> HubSettings {
    let var = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let cache_home = || {
        let home = || std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
        let cache = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty());
        cache.map(PathBuf::from).or_else(|| Some(home()?.join(".cache")))
    };
    let home = var("HF_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(cache_home()?.join("huggingface")));
    let cache = var("HF_HUB_CACHE").map(PathBuf::from);
    let left_by_login = |home: &Path| {
        let token = std::fs::read_to_string(home.join("token")).ok()?;
        Some(token.trim().to_owned()).filter(|token| !token.is_empty())
    };
    let token = var("HF_TOKEN").map(|token| token.trim().to_owned());
    let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
    HubSettings {
        token: token.or_else(|| left_by_login(home.as_deref()?)),
        cache: cache.or_else(|| Some(home?.join("hub"))),
        endpoint: endpoint.trim().trim_end_matches('/').to_owned(),
        offline: var("HF_HUB_OFFLINE").is_some_and(|value| value != "0" && value != "false"),
    }
}
