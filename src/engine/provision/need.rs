//! How much memory a server takes, told from its model's files and its flags.
//!
//! Weights are held as they lie in the files. Of each token its keys and values are kept in all layers
//! (`2 × layers × heads × length`), two bytes a number. What a server needs besides was measured.

use super::Need;
use super::flags::{Line, VLLM_SHARE};
use super::machine::Gpu;
use super::weights::Weights;
use crate::spec::{Backend, EngineSpec};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Bytes of one number that is kept of a token.
const KEPT: u64 = 2;
/// A `llama-server` without a model.
const LLAMACPP: u64 = 64 * MIB;
/// What CUDA and its kernels take of each GPU.
const CUDA: u64 = 600 * MIB;
/// Tokens that llama.cpp works on at once.
const BATCH: u64 = 512;
/// Python and PyTorch.
const PYTHON: u64 = 2 * GIB;
/// What vLLM keeps of tokens on a CPU, in GiB, unless `VLLM_CPU_KVCACHE_SPACE` says otherwise.
const VLLM_CPU_KEPT_GIB: f64 = 4.0;

/// What one server takes of the machine. `gpus` are those it may use.
pub(super) fn need(
    spec: &EngineSpec,
    line: &Line,
    weights: &Weights,
    gpus: &[Gpu],
    cpu_kept_gib: Option<f64>,
) -> Need {
    let mut need = match spec.backend {
        Backend::LlamaCpp => llamacpp(line, weights, gpus),
        Backend::Vllm if gpus.is_empty() => {
            let kept = cpu_kept_gib.unwrap_or(VLLM_CPU_KEPT_GIB) * GIB as f64;
            on_cpu(weights, kept as u64)
        }
        Backend::Vllm => {
            let stages: usize = line.number("stages").unwrap_or(1);
            let used = line.number::<usize>("shards").unwrap_or(1).saturating_mul(stages);
            share_of(gpus, used, line.number("gpu_share").unwrap_or(VLLM_SHARE))
        }
        Backend::Tgi if gpus.is_empty() => {
            let tokens = line.number("ctx").unwrap_or(weights.trained_context.min(4096));
            on_cpu(weights, kept(weights, tokens))
        }
        Backend::Tgi => {
            let used = line.number("shards").unwrap_or(gpus.len());
            share_of(gpus, used, line.number("gpu_share").unwrap_or(1.0))
        }
        Backend::Embedded => embedded(spec, weights),
        Backend::OpenAi | Backend::Ollama | Backend::Custom => Need::default(),
    };
    let said = spec.launch.memory;
    if let Some(ram) = said.ram {
        need.ram = ram;
    }
    if let Some(vram) = said.vram {
        for (_, bytes) in &mut need.vram {
            *bytes = vram;
        }
    }
    need
}

/// What a worker in this process takes.
#[cfg(feature = "embedded")]
fn embedded(spec: &EngineSpec, weights: &Weights) -> Need {
    // A model that cannot be read was told of when it was looked at first.
    crate::engine::embedded::size(spec, &weights.path)
        .map(|size| size.need)
        .unwrap_or_default()
}

#[cfg(not(feature = "embedded"))]
fn embedded(_spec: &EngineSpec, _weights: &Weights) -> Need {
    Need::default()
}

/// Bytes kept of so many tokens.
fn kept(weights: &Weights, tokens: u64) -> u64 {
    weights.kept_per_token.saturating_mul(tokens).saturating_mul(KEPT)
}

fn llamacpp(line: &Line, weights: &Weights, gpus: &[Gpu]) -> Need {
    let tokens = line
        .number::<u64>("ctx")
        .filter(|tokens| *tokens > 0)
        .unwrap_or(weights.trained_context);
    let whole = weights.bytes.saturating_add(kept(weights, tokens));
    // Logits of a batch, and about sixteen rows of states while a layer is worked on.
    let numbers = weights
        .vocabulary
        .saturating_add(weights.width.saturating_mul(16));
    let work = BATCH.saturating_mul(4).saturating_mul(numbers);
    let layers = match line.value("gpu_layers") {
        None | Some("all" | "auto") => u64::MAX,
        // A number below zero means all of them.
        Some(text) => text
            .parse()
            .map_or(u64::MAX, |n: i64| u64::try_from(n).unwrap_or(u64::MAX)),
    };
    if gpus.is_empty() || layers == 0 {
        return Need {
            ram: whole.saturating_add(work).saturating_add(LLAMACPP),
            vram: Vec::new(),
        };
    }
    let all = weights.layers.max(1);
    let there = scaled(whole, layers.min(all) as f64 / all as f64);
    let each = there / gpus.len() as u64 + work + CUDA;
    Need {
        ram: (whole - there)
            .saturating_add(work)
            .saturating_add(LLAMACPP + CUDA),
        vram: gpus.iter().map(|gpu| (gpu.index, each)).collect(),
    }
}

/// A share of the first so many GPUs.
fn share_of(gpus: &[Gpu], used: usize, share: f64) -> Need {
    let device = |gpu: &Gpu| (gpu.index, scaled(gpu.memory, share));
    Need {
        ram: 2 * PYTHON,
        vram: gpus.iter().take(used).map(device).collect(),
    }
}

/// Weights with a fifth on top, what is kept of tokens, and Python.
fn on_cpu(weights: &Weights, kept: u64) -> Need {
    Need {
        ram: scaled(weights.bytes, 1.2)
            .saturating_add(kept)
            .saturating_add(PYTHON),
        vram: Vec::new(),
    }
}

/// Why this never fits into what there is: a phrase, and what to do.
pub(super) fn misfit(need: &Need, budget: &Need) -> Option<(String, String)> {
    if need.ram > budget.ram {
        return Some((
            format!(
                "it needs {} of memory, and engines may use {} here",
                bytes(need.ram),
                bytes(budget.ram)
            ),
            "take a smaller model, `context` or `concurrency`; or raise `resources: {ram}`; what it needs is estimated unless `memory: {ram}` says it".to_owned(),
        ));
    }
    for (device, wanted) in &need.vram {
        let there = budget.vram.iter().find(|(index, _)| index == device);
        let there = there.map_or(0, |(_, bytes)| *bytes);
        if *wanted > there {
            return Some((
                format!(
                    "it needs {} of GPU {device}, and engines may use {} of that",
                    bytes(*wanted),
                    bytes(there)
                ),
                "take a smaller model, `context` or `gpu_memory_utilization`, or more `devices`; or raise `resources: {vram}`; what it needs is estimated unless `memory: {vram}` says it".to_owned(),
            ));
        }
    }
    None
}

fn scaled(bytes: u64, by: f64) -> u64 {
    (bytes as f64 * by) as u64
}

/// A size as people read it.
pub fn bytes(bytes: u64) -> String {
    let units = [(GIB, "GiB"), (MIB, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => {
            let n = bytes as f64 / unit as f64;
            if n < 10.0 {
                format!("{n:.1} {name}")
            } else {
                format!("{n:.0} {name}")
            }
        }
        None => format!("{bytes} B"),
    }
}
