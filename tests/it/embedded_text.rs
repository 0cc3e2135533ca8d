//! Text by a model in this process: the model of `examples/models`.

use std::path::PathBuf;
use std::sync::Arc;

use chainette::engine::Message;
use chainette::engine::embedded::{
    Choice, Ending, Generate, Generated, GgufText, PoolConfig, PoolError, Pools, TextGenerator,
};
use futures::future::join_all;
use serde_json::{Value, json};

use crate::embedded::block_on;

fn model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/models/reviews.gguf")
}

fn review(text: &str) -> Generate {
    Generate {
        messages: vec![
            Message::system("Grade the product review."),
            Message::user(format!("Review: {text}")),
        ],
        max_tokens: Some(40),
        ..Generate::default()
    }
}

fn golden() -> Vec<(String, String)> {
    let path = model().with_file_name("reviews_golden.jsonl");
    let text = std::fs::read_to_string(path).expect("it is there");
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let of = |key: &str| line[key].as_str().expect("a text").to_owned();
        (of("text"), of("answer"))
    };
    text.lines().map(line).collect()
}

fn generate(asked: Vec<Generate>) -> Vec<Result<Generated, PoolError>> {
    block_on(async {
        let pools = Pools::new();
        let pool = pools.add::<TextGenerator>(PoolConfig::new("reviews"), Arc::new(GgufText::new(model())));
        pools.start();
        let answers = join_all(asked.into_iter().map(|it| pool.ask(it))).await;
        pools.shutdown().await;
        answers
    })
}

#[test]
fn greedy_answers_are_those_of_llama_server() {
    let golden = golden();
    assert_eq!(golden.len(), 50);
    let answers = generate(golden.iter().map(|(text, _)| review(text)).collect());
    for ((text, wanted), answer) in golden.iter().zip(answers) {
        assert_eq!(&answer.expect("an answer").text, wanted, "{text}");
    }
}

#[test]
fn a_reply_is_held_to_its_schema_and_does_not_depend_on_its_neighbours() {
    let schema = Arc::new(json!({
        "type": "object", "additionalProperties": false, "required": ["topic", "sure", "list"],
        "properties": {
            "topic": {"enum": ["price", "quality"]}, "sure": {"type": "boolean"},
            "list": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 3},
        },
    }));
    let held = |at: usize, text: &str| Generate {
        schema: Some(Arc::clone(&schema)),
        sampling: Choice {
            temperature: 1.5,
            seed: at as u64,
            ..Choice::default()
        },
        ..review(text)
    };
    let golden = golden();
    let asked: Vec<Generate> = golden
        .iter()
        .enumerate()
        .map(|(at, (text, _))| held(at, text))
        .collect();
    let together = generate(asked.clone());
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    for answer in &together {
        let answer = answer.as_ref().expect("an answer");
        let value: Value = serde_json::from_str(&answer.text).expect(&answer.text);
        assert!(
            answer.ending == Ending::Done && validator.is_valid(&value),
            "{value}"
        );
    }
    assert!(
        together
            .iter()
            .skip(4)
            .any(|answer| answer.as_ref().expect("one").reused_tokens > 0),
        "what prompts begin with is worked on once"
    );
    for (asked, answer) in asked.into_iter().zip(&together).take(5) {
        let alone = generate(vec![asked]).remove(0).expect("an answer");
        assert_eq!(alone.text, answer.as_ref().expect("one").text);
    }
}

#[test]
fn replies_end_where_they_must() {
    let asked = vec![
        Generate {
            max_tokens: Some(3),
            ..review("It broke.")
        },
        Generate {
            stop: vec!["\",\"".to_owned()],
            ..review("It broke.")
        },
        review(&"It broke. ".repeat(300)),
    ];
    let answers = generate(asked);
    let told: Vec<String> = answers
        .into_iter()
        .map(|answer| match answer {
            Ok(it) => format!("{} | {:?}, {} tokens", it.text, it.ending, it.reply_tokens),
            Err(error) => error.to_string(),
        })
        .collect();
    insta::assert_snapshot!("embedded_ends", told.join("\n"));
}
