//! `llama-server`.

use super::{Dialect, Given, Known, Line, switch, valued, wanted_slots};

/// Requests at the same time when nothing is said, without a GPU. One pass over the weights serves all of them, so that
/// throughput grows with their number until the cores are busy; on a CPU that is soon.
const CPU_SLOTS: usize = 4;
/// The same with a GPU, which is busy much later; each one costs memory for its context.
const GPU_SLOTS: usize = 16;
/// Tokens per request when nothing is said, or fewer if the model knows fewer.
pub(super) const CONTEXT: u64 = 4096;
/// More layers than any model has: all of them.
const ALL_LAYERS: &str = "999";

const KNOWN: &[Known] = &[
    valued(&["--host"], "host"),
    valued(&["--port"], "port"),
    valued(&["--n-gpu-layers", "-ngl", "--ngl", "--gpu-layers"], "gpu_layers"),
    valued(&["--ctx-size", "-c"], "ctx"),
    valued(&["--parallel", "-np"], "slots"),
    valued(&["--seed", "-s"], "seed"),
    valued(&["--model", "-m"], "model"),
    valued(&["--alias", "-a"], "alias"),
    valued(&["--threads", "-t"], "threads"),
    valued(&["--threads-batch", "-tb"], "threads_batch"),
    valued(&["--batch-size", "-b"], "batch"),
    valued(&["--ubatch-size", "-ub"], "ubatch"),
    valued(&["--n-predict", "-n", "--predict"], "predict"),
    valued(&["--flash-attn", "-fa"], "flash"),
    valued(&["--cache-type-k", "-ctk"], "cache_k"),
    valued(&["--cache-type-v", "-ctv"], "cache_v"),
    valued(&["--cache-ram", "-cram"], "cache_ram"),
    valued(&["--timeout", "-to"], "timeout"),
    switch(
        &["--cont-batching", "-cb", "--no-cont-batching", "-nocb"],
        "batching",
    ),
    switch(&["--metrics"], "metrics"),
    switch(&["--embeddings", "--embedding"], "embeddings"),
    switch(
        &["--kv-unified", "-kvu", "--no-kv-unified", "-no-kvu"],
        "kv_unified",
    ),
    switch(&["--ui", "--webui", "--no-ui", "--no-webui"], "ui"),
    switch(&["--slots", "--no-slots"], "slots_page"),
];

pub(super) const DIALECT: Dialect = Dialect {
    known: KNOWN,
    underscores: false,
};

/// Our flags, before the user's.
pub(super) fn defaults(given: Given<'_>, line: &mut Line) {
    let spec = given.spec;
    let layers = if given.gpus > 0 { ALL_LAYERS } else { "0" };
    line.ours("gpu_layers", &["--n-gpu-layers", layers]);
    let usual = if given.gpus > 0 { GPU_SLOTS } else { CPU_SLOTS };
    let slots = wanted_slots(spec).unwrap_or(usual);
    line.ours("slots", &["--parallel", &slots.to_string()]);
    // What the user's own flags say of the slots is what the context is divided by.
    let slots = line.number::<u64>("slots").unwrap_or(slots as u64).max(1);
    let context = slots.saturating_mul(per_request(given));
    line.ours("ctx", &["--ctx-size", &context.to_string()]);
    if spec.launch.deterministic {
        line.ours("batching", &["--no-cont-batching"]);
        line.ours("seed", &["--seed", "0"]);
    }
    if line.has("embeddings") {
        embedding(given, line);
    }
    let knows = |flag: &str| given.abilities.is_none_or(|known| known.knows(flag));
    if knows("--metrics") {
        line.ours("metrics", &["--metrics"]);
    }
    if let Some(flag) = ["--no-webui", "--no-ui"].into_iter().find(|flag| knows(flag)) {
        line.ours("ui", &[flag]);
    }
    // Old prompts would be kept in up to 8 GiB of RAM, which nobody has booked; a batch of rows does not come back to them.
    if knows("--cache-ram") {
        line.ours("cache_ram", &["--cache-ram", "0"]);
    }
}

/// What a server needs besides `--embeddings` to embed well.
fn embedding(given: Given<'_>, line: &mut Line) {
    // With a cache for each slot, texts that are embedded at the same time are cut into pieces of one length, and the
    // mean is taken over the last piece only (seen on build 11434, models of the llama family, `--pooling mean`).
    if given.abilities.is_none_or(|known| known.knows("--kv-unified")) {
        line.ours("kv_unified", &["--kv-unified"]);
    }
    // A text goes through in one batch, of 512 tokens when nothing is said.
    if given.spec.context.is_some_and(|context| context > 512) {
        let context = per_request(given).to_string();
        line.ours("batch", &["--batch-size", &context]);
        line.ours("ubatch", &["--ubatch-size", &context]);
    }
}

/// Tokens for each request.
fn per_request(given: Given<'_>) -> u64 {
    let trained = given.weights.map_or(0, |weights| weights.trained_context);
    match given.spec.context {
        Some(context) => u64::from(context),
        None if trained > 0 => trained.min(CONTEXT),
        None => CONTEXT,
    }
}
