//! The pages of real servers, as far as somebody looks at them.

use std::time::Duration;

use clap::ValueEnum;
use serde_json::json;

use super::Args;
use super::server::Answer;

/// Whose pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Like {
    Llamacpp,
    Vllm,
    Tgi,
}

fn text(body: impl ToString) -> Option<Answer> {
    let (headers, body) = (Vec::new(), body.to_string());
    Some(Answer::Status {
        code: 200,
        headers,
        body,
    })
}

/// What a page says; none for what the test server says by itself.
pub fn page(args: &Args, path: &str, in_flight: usize, arrived: u64, age: Duration) -> Option<Answer> {
    if path == "/health" && args.health_hangs_after.is_some_and(|n| arrived >= n) {
        return Some(Answer::Hang);
    }
    // Work that goes on, if it does.
    let worked = if args.counts && in_flight > 0 {
        age.as_millis() as u64
    } else {
        0
    };
    let tokens = arrived * 10 + worked;
    match (args.like?, path) {
        (Like::Llamacpp, "/props") => text(json!({
            "total_slots": args.slots, "build_info": "b4711-fake", "default_generation_settings": {"n_ctx": 2048},
        })),
        (Like::Llamacpp, "/slots") => {
            let slot = |id: usize| {
                json!({"id": id, "id_task": arrived, "is_processing": id < in_flight, "n_ctx": 2048,
                       "next_token": [{"n_decoded": worked}]})
            };
            text(json!((0..args.slots).map(slot).collect::<Vec<_>>()))
        }
        (Like::Llamacpp, "/metrics") => text(format!(
            "# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.\nllamacpp:prompt_tokens_total {}\nllamacpp:tokens_predicted_total {tokens}\nllamacpp:n_decode_total {tokens}\nllamacpp:requests_processing {in_flight}\n",
            arrived * 7,
        )),
        (Like::Vllm, "/version") => text(json!({"version": "0.32.0+fake"})),
        (Like::Vllm, "/metrics") => text(format!(
            "vllm:num_requests_running{{model_name=\"m\"}} {in_flight}.0\nprocess_cpu_seconds_total {}\nvllm:prompt_tokens_total{{model_name=\"m\"}} {}.0\nvllm:generation_tokens_total{{model_name=\"m\"}} {tokens}.0\n",
            age.as_secs_f64(),
            arrived * 7,
        )),
        (Like::Tgi, "/info") => text(json!({
            "version": "3.3.6-fake", "model_id": "m", "max_concurrent_requests": args.slots, "max_total_tokens": 2048,
        })),
        _ => None,
    }
}
