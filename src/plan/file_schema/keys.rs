//! Every key of a chain file and of an engines file: what it means and what it takes.
//!
//! One table per mapping. Which keys there are is for the loader to say ([`crate::spec::accepted`]);
//! a table that names others, or leaves one out, is found by the tests.

use serde_json::{Value, json};

use crate::expr::model::TYPES;
use crate::spec::accepted::BACKENDS;
use crate::spec::{Retries, Timeouts};

/// A key: its name, what it means, the schema of its value.
pub(super) type Key = (&'static str, &'static str, fn() -> Value);

/// A reference to one of the schema's definitions.
pub(super) fn def(name: &str) -> Value {
    json!({"$ref": format!("#/$defs/{name}")})
}

fn with_default(name: &str, default: &str) -> Value {
    json!({"$ref": format!("#/$defs/{name}"), "default": default})
}

fn clock(span: std::time::Duration) -> Value {
    let seconds = span.as_secs();
    let text = match seconds {
        600.. if seconds.is_multiple_of(60) => format!("{}min", seconds / 60),
        _ => format!("{seconds}s"),
    };
    with_default("duration", &text)
}

fn count(max: u32) -> Value {
    json!({"type": "integer", "minimum": 1, "maximum": max})
}

fn yes_no(default: bool) -> Value {
    json!({"type": "boolean", "default": default})
}

pub(super) const CHAIN: &[Key] = &[
    (
        "name",
        "The chain's name, shown in the tree and kept in the outputs. Without it the name of the file.",
        || def("text"),
    ),
    (
        "batch_size",
        "Rows per chunk. Changes nothing in the outputs.",
        || json!({"type": "integer", "minimum": 1, "maximum": 1_000_000, "default": 256}),
    ),
    (
        "vars",
        "Variables: `{{ vars.NAME }}` in templates, `$vars.NAME` in jq. `--set NAME=VALUE` overrides one for a run.",
        || json!({"type": ["object", "null"]}),
    ),
    (
        "input_model",
        "What every input row is checked against: the name of a model, or a model. Rows that break it are `invalid_input` in errors/. Fields it does not name are allowed when it is written as shorthand.",
        || def("model"),
    ),
    (
        "models",
        "Named models, for `input_model` and `output_model`.",
        || {
            json!({
                "type": ["object", "null"],
                "propertyNames": {
                    "pattern": "^[A-Za-z][A-Za-z0-9_]*$", "maxLength": 64, "not": {"enum": TYPES},
                },
                "additionalProperties": {"allOf": [def("model_mapping"), {"minProperties": 1}]},
            })
        },
    ),
    (
        "engines",
        "The engines that Steps use, by name. They can also stand in a file of their own (`--engines FILE`).",
        || def("engines"),
    ),
    (
        "steps",
        "What every row goes through, from top to bottom: Steps, Applies, groups and branches.",
        || def("line"),
    ),
    ("pools", "Engines as a list of pools.", || def("pools")),
    (
        "resources",
        "What engines on this machine may use together.",
        || def("resources"),
    ),
];

// What Steps and Applies have in common.
const ID: Key = (
    "id",
    "The node's name: its output folder, and `{{ id.field }}` in later templates.",
    || def("name"),
);
const YIELD_OUTPUT: Key = (
    "yield_output",
    "`false`: the output is neither written nor a name later; it is still the next node's current item.",
    || yes_no(true),
);
const WHEN: Key = (
    "when",
    "A Jinja expression; rows for which it is false skip this. Its name is null for them.",
    || def("text"),
);
const EMOJI: Key = ("emoji", "Shown beside the node in the tree.", || def("text"));

pub(super) const STEP: &[Key] = &[
    ID,
    ("engine", "The engine that answers: a name in `engines`.", || {
        def("text")
    }),
    (
        "task",
        "`generate`: the reply to the prompts. `embed`: the vector of `input`; the output is `{\"embedding\": [...]}`.",
        || json!({"enum": ["generate", "embed"], "default": "generate"}),
    ),
    ("system_prompt", "The system message: a Jinja template.", || {
        def("text")
    }),
    (
        "user_prompt",
        "The user message: a Jinja template over the current item's fields, `item`, `chain_input`, `row_id`, `vars` and earlier nodes. Undefined or null values fail the row instead of asking a wrong question.",
        || def("text"),
    ),
    (
        "input",
        "The text that a Step with `task: embed` embeds: a Jinja template, like `user_prompt`, whose place it takes.",
        || def("text"),
    ),
    (
        "output_model",
        "What the reply must match: the name of a model, or a model. Without it the output is `{\"text\": \"...\"}`.",
        || json!({"$ref": "#/$defs/model", "minProperties": 1}),
    ),
    (
        "sampling",
        "Sampling parameters. Further keys (`top_k`, `presence_penalty`, ...) go to the server as they are.",
        || def("sampling"),
    ),
    (
        "retries",
        "How often a row is asked again before it fails.",
        || def("retries"),
    ),
    (
        "on_error",
        "What a failure does: `fail_row` puts the row into errors/; `null` makes the node's name null and the row goes on.",
        || json!({"enum": ["fail_row", null, "null"], "default": "fail_row"}),
    ),
    YIELD_OUTPUT,
    WHEN,
    EMOJI,
];

pub(super) const APPLY: &[Key] = &[
    ID,
    (
        "apply",
        "A row transform: one row in, none, one or several out.",
        || def("apply_kind"),
    ),
    (
        "output_model",
        "What every output is checked against (fields that shorthand does not name are allowed); it also types the Parquet columns.",
        || def("model"),
    ),
    YIELD_OUTPUT,
    WHEN,
    EMOJI,
];

pub(super) const APPLY_KINDS: &[Key] = &[
    (
        "jq",
        "A jq program. `.` is the current item; `$chain_input`, `$row_id`, `$vars` and `$row` (every visible name) are there. Every value it emits is one output row; nothing emitted filters the row out.",
        || def("text"),
    ),
    (
        "closure",
        "The name of a Rust closure that the program around chainette registered.",
        || def("text"),
    ),
    (
        "python",
        "A Python function, `file.py:function`. It is given the item and returns None, a dict, or dicts.",
        || json!({"type": "string", "pattern": "^.+\\.py:.+$"}),
    ),
    (
        "command",
        "A program that reads rows and writes outputs as JSON lines; run without a shell.",
        || json!({"type": "array", "items": def("text"), "minItems": 1}),
    ),
    (
        "workers",
        "Long-lived processes of a `python` or `command` Apply.",
        || count(1024),
    ),
    (
        "timeout",
        "How long a `python` or `command` Apply may take for one row; then the row fails.",
        || def("duration"),
    ),
    (
        "interpreter",
        "The Python of a `python` Apply: a path relative to the chain file, or a name on PATH. Else the active virtual environment, else `python3`.",
        || def("text"),
    ),
];

pub(super) const GROUP: &[Key] = &[
    (
        "parallel",
        "Branches that all start from the same row and run at the same time.",
        || json!({"type": "array", "minItems": 1, "items": def("branch")}),
    ),
    (
        "when",
        "A Jinja expression; rows for which it is false skip all branches of the group.",
        || def("text"),
    ),
];

pub(super) const BRANCH: &[Key] = &[
    ("branch", "The branch's id.", || def("name")),
    (
        "join",
        "The alias under which the main line sees the branch's last output: `{{ alias.field }}`. Without it the branch runs and is written, and the main line does not see it.",
        || def("name"),
    ),
    (
        "collect",
        "`true`: the alias is the list of the branch's outputs, for branches that leave more than one row.",
        || yes_no(false),
    ),
    (
        "when",
        "A Jinja expression; rows for which it is false skip the branch. Its alias is null for them.",
        || def("text"),
    ),
    ("steps", "What the row goes through in this branch.", || {
        def("line")
    }),
];

pub(super) const SAMPLING: &[Key] = &[
    (
        "temperature",
        "0 picks the likeliest token every time.",
        || json!({"type": "number", "minimum": 0}),
    ),
    (
        "max_tokens",
        "The longest reply, in tokens. A reply cut by it is asked for once more with twice the limit.",
        || json!({"type": "integer", "minimum": 1, "maximum": u32::MAX}),
    ),
    (
        "top_p",
        "Nucleus sampling: only the likeliest tokens with this total probability.",
        || json!({"type": "number", "minimum": 0, "maximum": 1}),
    ),
    (
        "stop",
        "Texts that end the reply.",
        || json!({"type": "array", "items": def("text")}),
    ),
    (
        "seed",
        "Seed of the first try; a repeated question is asked with seed + attempt.",
        || json!({"type": "integer"}),
    ),
];

pub(super) const RETRIES: &[Key] = &[
    (
        "transport",
        "After server errors, timeouts and broken connections.",
        || json!({"type": "integer", "minimum": 0, "maximum": 1000, "default": Retries::default().transport}),
    ),
    (
        "output",
        "After replies that do not match the output model.",
        || json!({"type": "integer", "minimum": 0, "maximum": 1000, "default": Retries::default().output}),
    ),
];

pub(super) const TIMEOUT: &[Key] = &[
    ("connect", "Until the connection stands.", || {
        clock(Timeouts::default().connect)
    }),
    ("first_byte", "Until the first byte of the reply.", || {
        clock(Timeouts::default().first_byte)
    }),
    ("between_bytes", "Between two pieces of the reply.", || {
        clock(Timeouts::default().between_bytes)
    }),
    ("total", "The whole request.", || clock(Timeouts::default().total)),
];

pub(super) const ENGINE: &[Key] = &[
    ("backend", "The kind of server.", || json!({"enum": BACKENDS})),
    (
        "model",
        "The model: the name that the server knows it by, or for an engine that chainette starts a path (relative to this file), `hf:org/repo`, `hf:org/repo@rev` or `hf:org/repo/file.gguf`. `{id, sha256}` pins its file.",
        || json!({"if": {"type": "object"}, "then": def("served_model"), "else": {"allOf": [def("text"), {"minLength": 1}]}}),
    ),
    (
        "endpoint",
        "The base URL of a running server, such as `http://127.0.0.1:8000/v1`. Without it chainette starts the server (llamacpp, vllm, tgi).",
        || json!({"type": "string", "pattern": "^https?://[^/@\\s]+(/\\S*)?$", "examples": ["http://127.0.0.1:8000/v1"]}),
    ),
    (
        "api_key_env",
        "The environment variable that holds the API key. The key itself never stands in a chain.",
        || json!({"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$", "examples": ["OPENAI_API_KEY"]}),
    ),
    (
        "headers",
        "Further request headers. Secrets do not belong here.",
        || {
            json!({
                "type": "object",
                "propertyNames": {
                    "pattern": "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$",
                    "not": {"pattern": secret_header()},
                },
                "additionalProperties": def("text"),
            })
        },
    ),
    (
        "concurrency",
        "Requests in flight; `auto` finds out while running.",
        || json!({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 100_000}], "default": "auto"}),
    ),
    (
        "rpm",
        "Requests per minute at most.",
        || json!({"type": "number", "exclusiveMinimum": 0}),
    ),
    (
        "tpm",
        "Tokens per minute at most.",
        || json!({"type": "number", "exclusiveMinimum": 0}),
    ),
    ("timeout", "The clocks of one request.", || def("timeout")),
    (
        "max_reply",
        "The largest reply; a larger one fails its row.",
        || with_default("size", "16MiB"),
    ),
    (
        "engine_wait",
        "How long rows wait for an engine that answers nothing before the run stops (it can be resumed).",
        || with_default("duration", "10min"),
    ),
    ("lazy", "Start the engine when the first row needs it.", || {
        yes_no(true)
    }),
    ("idle_timeout", "How long an unused engine is kept.", || {
        with_default("duration", "180s")
    }),
    (
        "startup_timeout",
        "How long the engine may take to become ready.",
        || with_default("duration", "300s"),
    ),
    (
        "replicas",
        "How many servers run the model.",
        || json!({"type": "integer", "minimum": 1, "maximum": 1024, "default": 1}),
    ),
    (
        "port",
        "The port to prefer; replica i prefers the i-th after it. Without it, or where it is taken, a free one.",
        || json!({"type": "integer", "minimum": 1, "maximum": 65535}),
    ),
    (
        "host",
        "The address to listen on. Anything else than a loopback address lets others in.",
        || json!({"type": "string", "pattern": "^[A-Za-z0-9._:][A-Za-z0-9._:-]*$", "default": "127.0.0.1"}),
    ),
    (
        "binary",
        "The server's program: a path (relative to this file), or a name on PATH. Without it the backend's usual name on PATH.",
        || json!({"type": "string", "minLength": 1}),
    ),
    (
        "flags",
        "Flags passed on to the server, one list item per argument; they win over chainette's own.",
        || {
            let secrets = crate::spec::accepted::SECRET_FLAGS.join("|");
            let secret = json!({"pattern": format!("^({secrets})([= ]|$)"), "type": "string"});
            json!({"type": "array", "items": {"allOf": [def("text"), {"not": secret}]}})
        },
    ),
    (
        "env",
        "Environment variables of the server, beside those of chainette itself. Secrets do not belong here.",
        || {
            json!({
                "type": "object",
                "propertyNames": {
                    "pattern": "^[^=]+$",
                    "not": {"pattern": secret_env()},
                },
                "additionalProperties": def("text"),
            })
        },
    ),
    (
        "devices",
        "The GPUs the server may see, as `nvidia-smi` counts them; an empty list: none.",
        || json!({"type": "array", "items": {"type": "integer", "minimum": 0}, "uniqueItems": true}),
    ),
    ("require_gpu", "`true`: without a GPU nothing is started.", || {
        yes_no(false)
    }),
    (
        "context",
        "Tokens per request, prompt and reply together.",
        || count(i32::MAX.unsigned_abs()),
    ),
    (
        "dtype",
        "The number format of the weights, such as `bfloat16` (vllm, tgi).",
        || json!({"type": "string", "minLength": 1}),
    ),
    (
        "gpu_memory_utilization",
        "The share of GPU memory that the server takes (vllm, tgi).",
        || json!({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
    ),
    (
        "max_model_len",
        "The longest sequence the server is set up for, in tokens (vllm, tgi).",
        || count(i32::MAX.unsigned_abs()),
    ),
    (
        "tensor_parallel_size",
        "GPUs that share one model (vllm, tgi).",
        || count(1024),
    ),
    (
        "memory",
        "What the engine needs; estimated from the model's files without it.",
        || def("memory"),
    ),
    ("reasoning", "The model reasons before it answers.", || {
        yes_no(false)
    }),
    (
        "reasoning_parser",
        "How the server tells reasoning from the answer (vllm).",
        || json!({"type": "string", "minLength": 1}),
    ),
    (
        "deterministic",
        "One request at a time and a fixed seed: slow, and the same answers again.",
        || yes_no(false),
    ),
    (
        "workers",
        "Most workers that hold the model in this process (embedded).",
        || count(4),
    ),
    ("price", "Price per million tokens, for the summary.", || {
        let price = json!({"type": "number", "minimum": 0});
        json!({
            "type": "object", "additionalProperties": false,
            "properties": {"input": price, "output": price},
        })
    }),
];

/// A pool's own keys; it has those of an engine besides.
pub(super) const POOL: &[Key] = &[
    (
        "id",
        "The pool's name, by which Steps call it.",
        || json!({"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"}),
    ),
    (
        "engine",
        "The kind of server: another word for `backend`.",
        || json!({"enum": BACKENDS}),
    ),
];

pub(super) const MODEL: &[Key] = &[
    (
        "id",
        "The model: a name, a path or `hf:org/repo`.",
        || json!({"allOf": [def("text"), {"minLength": 1}]}),
    ),
    (
        "sha256",
        "The SHA-256 that its file must have; with another one nothing is started.",
        || json!({"type": "string", "pattern": "^[0-9A-Fa-f]{64}$"}),
    ),
];

pub(super) const MEMORY: &[Key] = &[
    ("ram", "What each server takes of the machine's memory.", || {
        def("size")
    }),
    ("vram", "What each server takes of every GPU it uses.", || {
        def("size")
    }),
];

pub(super) const RESOURCES: &[Key] = &[
    (
        "ram",
        "Memory of the machine, without it 80 % of what there is.",
        || def("size"),
    ),
    ("vram", "Memory of each GPU, without it all of it.", || {
        def("size")
    }),
    (
        "spill",
        "Disk for rows that wait for an engine which does not fit beside another.",
        || def("size"),
    ),
];

/// Ends of names of environment variables that hold secrets, in any mixture of cases, and the one that is `devices`.
fn secret_env() -> String {
    let ends = crate::spec::accepted::SECRET_ENV
        .iter()
        .map(|end| any_case(&end.to_ascii_lowercase()));
    let gpus = any_case("cuda_visible_devices");
    format!("({})$|^{gpus}$", ends.collect::<Vec<_>>().join("|"))
}

/// A pattern for a text in any mixture of cases (JSON Schema patterns have no flag for that).
fn any_case(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            'a'..='z' => format!("[{}{c}]", c.to_ascii_uppercase()),
            other => other.to_string(),
        })
        .collect()
}

/// Headers that carry secrets, in any mixture of cases.
fn secret_header() -> String {
    let names = crate::spec::accepted::SECRET_HEADERS
        .iter()
        .map(|name| any_case(name));
    format!("^({})$", names.collect::<Vec<_>>().join("|"))
}
