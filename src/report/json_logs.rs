//! `--json-logs`: one JSON object per line on stderr.

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::say;
use crate::event::{EngineStats, Event, Exchange, ModelStats, Progress, Report, Resumption, RunStats};
use crate::run::rfc3339;

/// Writes every event as a JSON line.
#[derive(Debug, Default)]
pub struct JsonLogs {
    /// Only errors, warnings and `run_finished` (`--quiet`).
    pub quiet: bool,
}

impl Report for JsonLogs {
    fn event(&mut self, at: SystemTime, event: &Event, _: &Progress) {
        if self.quiet && !matches!(event, Event::Warning { .. } | Event::RunFinished(_)) {
            return;
        }
        say(&json_line(at, event).to_string());
    }

    fn tick(&mut self, _: &Progress) {}
}

/// The JSON Schema of every line of `--json-logs`.
pub fn events_schema() -> &'static str {
    include_str!("events.schema.json")
}

/// An event as one JSON object: `ts`, `event`, then its fields.
pub fn json_line(at: SystemTime, event: &Event) -> Value {
    let fields = match event {
        Event::RunStarted { run_id, chain, total } => {
            json!({"run_id": run_id, "chain": chain, "total": total})
        }
        Event::Resumed {
            rows,
            answers,
            in_flight,
            reason,
        } => {
            let mut fields = json!({
                "rows": rows, "answers": answers, "in_flight": in_flight, "reason": reason.as_str(),
            });
            if let (Resumption::Retry { failures }, Some(fields)) = (reason, fields.as_object_mut()) {
                fields.insert("failures".into(), (*failures).into());
            }
            fields
        }
        Event::ChunkStarted { seq, rows } => json!({"chunk": seq, "rows": rows}),
        Event::ChunkFinished { seq, rows, failed } => json!({"chunk": seq, "rows": rows, "failed": failed}),
        Event::StepTotal {
            node,
            total,
            estimate,
        } => {
            json!({"node": node, "total": total, "estimate": estimate})
        }
        Event::RowsFinished { node, rows } => json!({"node": node, "rows": rows}),
        Event::RowsFailed {
            node,
            kind,
            count,
            example,
        } => {
            json!({"node": node, "kind": kind.as_str(), "count": count, "example": example})
        }
        Event::EngineWaiting {
            engine,
            reason,
            retry_in_s,
        } => {
            json!({"engine": engine, "reason": reason, "retry_in_s": retry_in_s})
        }
        Event::EngineReady { engine } => json!({"engine": engine}),
        Event::EngineStarting {
            engine,
            replica,
            reason,
        }
        | Event::EngineDraining {
            engine,
            replica,
            reason,
        }
        | Event::EngineReleased {
            engine,
            replica,
            reason,
        } => json!({"engine": engine, "replica": replica, "reason": reason}),
        Event::EngineCrashed {
            engine,
            replica,
            reason,
            in_flight,
            log,
        } => {
            json!({"engine": engine, "replica": replica, "reason": reason, "in_flight": in_flight, "log": log})
        }
        Event::EngineLog {
            engine,
            replica,
            lines,
        } => json!({"engine": engine, "replica": replica, "lines": lines}),
        Event::ShardRolled { path, rows, bytes } => json!({"path": path, "rows": rows, "bytes": bytes}),
        Event::Checkpoint { rows } => json!({"rows": rows}),
        Event::Warning { message } => json!({"message": message}),
        Event::Request(Exchange {
            node,
            row_id,
            engine,
            attempt,
            status,
            ms,
            usage,
            problem,
            missed,
        }) => {
            let mut fields = json!({
                "node": node, "row_id": row_id, "engine": engine, "attempt": attempt, "status": status, "ms": ms,
                "tokens": {"prompt": usage.prompt_tokens, "completion": usage.completion_tokens},
                "missed": missed,
            });
            if let (Some(problem), Some(fields)) = (problem, fields.as_object_mut()) {
                fields.insert("problem".into(), problem.as_str().into());
            }
            fields
        }
        Event::RunFinished(RunStats {
            state,
            rows_in,
            rows_out,
            rows_failed,
            rows_resumed,
            answers_reused,
            switches,
            engines,
            seconds,
            usage,
        }) => json!({
            "state": state.as_str(),
            "rows_in": rows_in,
            "rows_out": rows_out,
            "rows_failed": rows_failed,
            "rows_resumed": rows_resumed,
            "answers_reused": answers_reused,
            "switches": switches,
            "engines": engines.iter().map(engine).collect::<Vec<_>>(),
            "seconds": seconds,
            "tokens": {"prompt": usage.prompt_tokens, "completion": usage.completion_tokens},
        }),
    };
    let mut line = Map::new();
    line.insert("ts".into(), rfc3339(at).into());
    line.insert("event".into(), event.name().into());
    if let Value::Object(fields) = fields {
        line.extend(fields);
    }
    Value::Object(line)
}

/// What became of an engine's concurrency, and what its models did in this process.
fn engine(stats: &EngineStats) -> Value {
    let mut engine = json!({
        "engine": stats.engine, "concurrency": stats.limit, "least": stats.least, "most": stats.most,
        "reason": stats.reason, "push_backs": stats.push_backs,
    });
    if let (Some(models), Some(engine)) = (&stats.models, engine.as_object_mut()) {
        engine.insert("models".into(), did(models));
    }
    engine
}

fn did(models: &ModelStats) -> Value {
    json!({
        "loads": models.loads, "loading_seconds": models.loading.as_secs_f64(), "workers": models.workers,
        "busy_seconds": models.busy.as_secs_f64(), "panics": models.panics, "reused_tokens": models.reused_tokens,
    })
}
