//! `vllm serve`.

use super::{Dialect, Given, Known, Line, switch, valued, wanted_slots};

/// The share of a GPU that vLLM takes; given in any case, so that what is booked is what is taken.
pub(in super::super) const SHARE: f64 = 0.9;

const KNOWN: &[Known] = &[
    valued(&["--host"], "host"),
    valued(&["--port"], "port"),
    valued(&["--dtype"], "dtype"),
    valued(&["--gpu-memory-utilization"], "gpu_share"),
    valued(&["--max-model-len"], "ctx"),
    valued(&["--tensor-parallel-size", "-tp"], "shards"),
    valued(&["--pipeline-parallel-size", "-pp"], "stages"),
    valued(&["--reasoning-parser"], "reasoning"),
    valued(&["--max-num-seqs"], "slots"),
    valued(&["--seed"], "seed"),
    valued(&["--served-model-name"], "name"),
    valued(&["--model"], "model"),
    switch(&["--enforce-eager", "--no-enforce-eager"], "eager"),
];

pub(super) const DIALECT: Dialect = Dialect {
    known: KNOWN,
    underscores: true,
};

/// Our flags, before the user's.
pub(super) fn defaults(given: Given<'_>, line: &mut Line) {
    let (spec, launch) = (given.spec, &given.spec.launch);
    // Requests ask for the model as the chain names it.
    line.ours("name", &["--served-model-name", &spec.model]);
    if let Some(dtype) = &launch.dtype {
        line.ours("dtype", &["--dtype", dtype]);
    }
    match launch.gpu_memory_utilization {
        Some(share) => line.ours("gpu_share", &["--gpu-memory-utilization", &share.to_string()]),
        None if given.gpus > 0 => {
            line.ours("gpu_share", &["--gpu-memory-utilization", &SHARE.to_string()]);
        }
        None => {}
    }
    if let Some(tokens) = launch.max_model_len.or(spec.context) {
        line.ours("ctx", &["--max-model-len", &tokens.to_string()]);
    }
    if let Some(gpus) = launch.tensor_parallel_size {
        line.ours("shards", &["--tensor-parallel-size", &gpus.to_string()]);
    }
    if let Some(parser) = &launch.reasoning_parser {
        line.ours("reasoning", &["--reasoning-parser", parser]);
    }
    if let Some(slots) = wanted_slots(spec) {
        line.ours("slots", &["--max-num-seqs", &slots.to_string()]);
    }
    if launch.deterministic {
        line.ours("seed", &["--seed", "0"]);
    }
}
