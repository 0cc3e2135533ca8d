//! What tells one backend from another, as a table.

use serde_json::{Value, json};

use super::schema::{Wire, json_schema};
use super::subset::{LLAMA, OPENAI, OUTLINES, Subset, XGRAMMAR};
use crate::spec::Backend;

/// How one backend wants to be asked.
#[derive(Debug)]
pub(super) struct Dialect {
    /// What its schemas may say.
    pub(super) subset: &'static Subset,
    /// The form a schema goes out in, from the Step's id and the rewritten schema.
    pub(super) format: fn(&str, &Wire) -> Value,
    /// Fields of every request.
    pub(super) fields: &'static [(&'static str, bool)],
    /// Variables of chat templates that switch thinking on and off.
    pub(super) thinking: &'static [&'static str],
    /// The fields that ask for a stream with token counts.
    pub(super) stream: &'static str,
    /// `top_p: 1`, which does nothing, is refused; seeds have no sign.
    pub(super) narrow_sampling: bool,
}

const STREAM: &str = r#""stream":true,"stream_options":{"include_usage":true}"#;

/// OpenAI, and whoever follows it.
const OPEN_AI: Dialect = Dialect {
    subset: &OPENAI,
    format: json_schema,
    fields: &[],
    thinking: &[],
    stream: STREAM,
    narrow_sampling: false,
};

/// vLLM (docs.vllm.ai, "Structured Outputs", "Reasoning Outputs"). `guided_json` is ignored by new ones.
const VLLM: Dialect = Dialect {
    subset: &XGRAMMAR,
    // Qwen3 and Gemma read the first, Granite and DeepSeek the second.
    thinking: &["enable_thinking", "thinking"],
    // With counts in every event, what a cut reply has cost is known.
    stream: r#""stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}"#,
    ..OPEN_AI
};

/// llama.cpp (tools/server/README.md).
const LLAMA_CPP: Dialect = Dialect {
    subset: &LLAMA,
    fields: &[("cache_prompt", true)],
    thinking: &["enable_thinking"],
    ..OPEN_AI
};

/// Text Generation Inference (its "Messages API" and "Guidance" pages).
const TGI: Dialect = Dialect {
    subset: &OUTLINES,
    format: |_, wire| json!({"type": "json", "value": wire.schema}),
    narrow_sampling: true,
    ..OPEN_AI
};

/// Ollama (docs/api.md): its grammars are llama.cpp's; the schema itself is the format.
const OLLAMA: Dialect = Dialect {
    subset: &LLAMA,
    format: |_, wire| wire.schema.clone(),
    stream: r#""stream":true"#,
    ..OPEN_AI
};

/// The dialect of a backend.
pub(super) fn of(backend: Backend) -> &'static Dialect {
    match backend {
        // A custom engine has no wire of ours, and a model in this process has none.
        Backend::OpenAi | Backend::Custom | Backend::Embedded => &OPEN_AI,
        Backend::Vllm => &VLLM,
        Backend::LlamaCpp => &LLAMA_CPP,
        Backend::Tgi => &TGI,
        Backend::Ollama => &OLLAMA,
    }
}
