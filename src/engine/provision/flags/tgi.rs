//! `text-generation-launcher`.

use super::{Dialect, Given, Known, Line, switch, valued, wanted_slots};

/// Requests that TGI holds at the same time before it refuses more.
const HELD: usize = 128;

const KNOWN: &[Known] = &[
    valued(&["--hostname", "--host"], "host"),
    valued(&["--port", "-p"], "port"),
    valued(&["--dtype"], "dtype"),
    valued(&["--cuda-memory-fraction"], "gpu_share"),
    valued(&["--max-total-tokens"], "ctx"),
    valued(&["--num-shard"], "shards"),
    valued(&["--max-concurrent-requests"], "held"),
    valued(&["--max-batch-size"], "slots"),
    valued(&["--model-id"], "model"),
    valued(&["--shard-uds-path"], "socket"),
    valued(&["--master-port"], "master_port"),
    switch(&["--json-output"], "json"),
];

pub(super) const DIALECT: Dialect = Dialect {
    known: KNOWN,
    underscores: false,
};

/// Our flags, before the user's.
pub(super) fn defaults(given: Given<'_>, line: &mut Line) {
    let (spec, launch) = (given.spec, &given.spec.launch);
    if let Some(dtype) = &launch.dtype {
        line.ours("dtype", &["--dtype", dtype]);
    }
    if let Some(share) = launch.gpu_memory_utilization {
        line.ours("gpu_share", &["--cuda-memory-fraction", &share.to_string()]);
    }
    if let Some(tokens) = launch.max_model_len.or(spec.context) {
        line.ours("ctx", &["--max-total-tokens", &tokens.to_string()]);
    }
    if let Some(gpus) = launch.tensor_parallel_size {
        line.ours("shards", &["--num-shard", &gpus.to_string()]);
    }
    match wanted_slots(spec) {
        Some(1) => line.ours("slots", &["--max-batch-size", "1"]),
        // With fewer it would refuse what is wanted.
        Some(slots) if slots > HELD => {
            line.ours("held", &["--max-concurrent-requests", &slots.to_string()]);
        }
        _ => {}
    }
}
