//! A Step that is answered by this program: `cargo run --example custom_engine -- reviews.jsonl out/`.
//!
//! The "model" counts words; anything async can stand in its place. Everything that chainette does for a
//! server is done here too: schemas, answers on file, retries, resuming.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::time::SystemTime;

use chainette::chain::{Chain, CustomEngine, Node};
use chainette::engine::{CallError, FnEngine, Question, Reply};
use chainette::event::{Event, Progress, Report};
use serde_json::json;

/// Grades a text by its words.
async fn grade(question: Question) -> Result<Reply, CallError> {
    let text = question
        .messages
        .last()
        .map(|message| message.content.to_lowercase())
        .unwrap_or_default();
    let count = |words: &[&str]| words.iter().filter(|word| text.contains(**word)).count();
    let (good, bad) = (
        count(&["great", "good", "again", "perfect"]),
        count(&["broke", "never", "bad", "noisy"]),
    );
    let label = if good >= bad { "positive" } else { "negative" };
    Ok(Reply::text(
        json!({"label": label, "evidence": good + bad}).to_string(),
    ))
}

/// Tells every commit.
struct Commits;

impl Report for Commits {
    fn event(&mut self, _at: SystemTime, event: &Event, progress: &Progress) {
        if let Event::ChunkFinished { .. } = event {
            eprintln!("{} rows are written", progress.rows);
        }
    }

    fn tick(&mut self, _progress: &Progress) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(input), Some(out)) = (args.next(), args.next()) else {
        return Err("usage: custom_engine IN.jsonl OUT".into());
    };
    let chain = Chain::builder("grades")
        .engine(
            "words",
            CustomEngine::new(FnEngine::new("words-1", grade)).concurrency(16),
        )
        .node(
            Node::step("grade", "words", "{{ text }}")
                .output_model(json!({"label": "positive | negative", "evidence": "integer"})),
        )
        .build()?;
    let stats = chain.job(input, out).report(Commits).run()?.into_result()?;
    println!("{} rows in, {} out", stats.rows_in, stats.rows_out);
    Ok(())
}
