//! Embedding models in this process: the models of `tests/it/vectors`, their golden vectors, and whole runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::DataType;
use chainette::engine::embedded::{
    BertEmbedding, Embedded, Loader as _, ModelError, PoolConfig, PoolError, Pools, TextEmbedder,
};
use futures::future::join_all;
use serde_json::{Value, json};

use crate::embedded::block_on;
use crate::harness::{Bench, Ran, copy, invoke};
use crate::parquet;

const MODELS: [&str; 6] = [
    "bert",
    "bert_half",
    "roberta",
    "xlm_roberta",
    "distilbert",
    "mpnet",
];

fn folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/vectors")
        .join(model)
}

/// What a model says to texts that come at the same time.
fn embed(model: BertEmbedding, texts: &[String]) -> Vec<Result<Embedded, PoolError>> {
    block_on(async {
        let pools = Pools::new();
        let pool = pools.add::<TextEmbedder>(PoolConfig::new("embedder"), Arc::new(model));
        pools.start();
        let answers = join_all(texts.iter().map(|text| pool.ask(text.clone()))).await;
        pools.shutdown().await;
        answers
    })
}

/// What the reference implementation said to a text.
struct Golden {
    text: String,
    tokens: usize,
    vector: Vec<f32>,
}

fn golden(model: &str) -> Vec<Golden> {
    let text = fs::read_to_string(folder(model).join("golden.json")).expect("it is there");
    let rows: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    let read = |row: &Value| Golden {
        text: row["text"].as_str().expect("a text").to_owned(),
        tokens: row["tokens"].as_u64().expect("a count") as usize,
        vector: numbers(&row["vector"]),
    };
    rows.iter().map(read).collect()
}

fn numbers(list: &Value) -> Vec<f32> {
    let numbers = list.as_array().expect("a list").iter();
    numbers.map(|x| x.as_f64().expect("a number") as f32).collect()
}

/// The largest difference between two vectors.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn vectors_are_those_of_the_reference_implementation() {
    for model in MODELS {
        let golden = golden(model);
        assert!(golden.len() >= 10, "{model}");
        let texts: Vec<String> = golden.iter().map(|golden| golden.text.clone()).collect();
        let together = embed(BertEmbedding::new(folder(model)), &texts);
        let alone = embed(BertEmbedding::new(folder(model)).with_texts(1), &texts);
        for ((golden, together), alone) in golden.iter().zip(together).zip(alone) {
            let together = together.expect("a vector");
            let far = apart(&together.vector, &golden.vector);
            assert!(far < 1e-4, "{model}: {:?} is off by {far}", golden.text);
            assert_eq!(together.tokens, golden.tokens, "{model}: {:?}", golden.text);
            // Neighbours change nothing.
            let far = apart(&together.vector, &alone.expect("a vector").vector);
            assert!(
                far < 1e-6,
                "{model}: {:?} depends on others by {far}",
                golden.text
            );
        }
    }
}

#[test]
fn a_text_that_is_too_long_is_an_error_of_its_own() {
    let texts = ["short".to_owned(), "word ".repeat(200), "short".to_owned()];
    let answers = embed(BertEmbedding::new(folder("bert")), &texts);
    assert!(answers[0].is_ok() && answers[0] == answers[2]);
    match &answers[1] {
        Err(PoolError::Model(ModelError::TooLong { tokens, context })) => {
            assert_eq!((*context, *tokens > 200), (64, true));
        }
        other => panic!("{other:?}"),
    }
    let fewer = embed(BertEmbedding::new(folder("bert")).with_context(4), &texts[..1]);
    assert!(
        matches!(
            fewer[0],
            Err(PoolError::Model(ModelError::TooLong { context: 4, .. }))
        ),
        "{fewer:?}"
    );
    // Of 100 positions two are no token's.
    let long = "a".repeat(2000);
    let most = embed(BertEmbedding::new(folder("roberta")), &[long]);
    assert!(
        matches!(
            most[0],
            Err(PoolError::Model(ModelError::TooLong { context: 98, .. }))
        ),
        "{most:?}"
    );
}

#[test]
fn its_size_is_known_before_it_is_loaded() {
    let size = |model: &str| BertEmbedding::new(folder(model)).size().expect("a size");
    // 16 bits a number in the file are 32 when it is computed with.
    let numbers = |model: &str| {
        fs::metadata(folder(model).join("model.safetensors"))
            .expect("it is there")
            .len()
    };
    assert!(numbers("bert_half") < numbers("bert") * 2 / 3);
    assert_eq!(size("bert").need.vram, []);
    assert!(size("bert").need.ram > numbers("bert"));
    assert!(size("bert").need.ram.abs_diff(size("bert_half").need.ram) < 4096);
    assert_eq!(
        BertEmbedding::new(folder("bert"))
            .with_texts(7)
            .size()
            .map(|size| size.batch),
        Ok(7)
    );
}

/// A copy of a model, with what is done to it.
fn damaged(model: &str, damage: impl FnOnce(&Path)) -> tempfile::TempDir {
    let place = tempfile::tempdir().expect("a folder");
    copy(&folder(model), place.path());
    damage(place.path());
    place
}

/// Changes the tensors of a file: names, types, shapes and bytes, in the order of their names.
fn rewrite(file: &Path, change: impl FnOnce(&mut BTreeMap<String, (Value, Value, Vec<u8>)>)) {
    let whole = fs::read(file).expect("it is there");
    let end = 8 + u64::from_le_bytes(whole[..8].try_into().expect("8 bytes")) as usize;
    let head: BTreeMap<String, Value> = serde_json::from_slice(&whole[8..end]).expect("JSON");
    let tensors = head.into_iter().filter(|(name, _)| name != "__metadata__");
    let mut tensors: BTreeMap<_, _> = tensors
        .map(|(name, info)| {
            let at = |n: usize| end + info["data_offsets"][n].as_u64().expect("an offset") as usize;
            let bytes = whole[at(0)..at(1)].to_vec();
            (name, (info["dtype"].clone(), info["shape"].clone(), bytes))
        })
        .collect();
    change(&mut tensors);
    let (mut head, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, (dtype, shape, bytes)) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        head.insert(
            name,
            json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}),
        );
        data.extend(bytes);
    }
    let head = Value::from(head).to_string();
    let whole = [&(head.len() as u64).to_le_bytes()[..], head.as_bytes(), &data].concat();
    fs::write(file, whole).expect("it can be written");
}

/// Changes one key of a JSON file.
fn set(folder: &Path, file: &str, key: &str, value: Value) {
    let path = folder.join(file);
    let mut settings: Value = serde_json::from_slice(&fs::read(&path).expect("it is there")).expect("JSON");
    *settings
        .pointer_mut(key)
        .unwrap_or_else(|| panic!("{file} has {key}")) = value;
    fs::write(&path, settings.to_string()).expect("it can be written");
}

#[test]
fn what_is_wrong_with_a_folder_is_told() {
    type Damage = Box<dyn FnOnce(&Path)>;
    let remove = |file: &'static str| -> Damage {
        Box::new(move |at| fs::remove_file(at.join(file)).expect("it can be removed"))
    };
    let write = |file: &'static str, text: &'static str| -> Damage {
        Box::new(move |at| fs::write(at.join(file), text).expect("it can be written"))
    };
    let change = |file: &'static str, key: &'static str, value: Value| -> Damage {
        Box::new(move |at| set(at, file, key, value))
    };
    let cases: Vec<(&str, Damage)> = vec![
        ("bert", remove("config.json")),
        ("bert", write("config.json", "{")),
        ("bert", change("config.json", "/model_type", json!("llama"))),
        ("bert", change("config.json", "/hidden_size", json!(25))),
        ("bert", change("config.json", "/hidden_size", json!(48))),
        ("bert", change("config.json", "/hidden_act", json!("mish"))),
        (
            "bert",
            change("config.json", "/max_position_embeddings", json!(10)),
        ),
        ("bert", change("config.json", "/num_hidden_layers", json!(3))),
        ("bert", remove("tokenizer.json")),
        ("bert", write("tokenizer.json", "{}")),
        ("bert", remove("model.safetensors")),
        ("bert", write("model.safetensors", "weights")),
        (
            "bert",
            Box::new(|at| {
                let path = at.join("model.safetensors");
                let whole = fs::read(&path).expect("it is there");
                fs::write(&path, &whole[..whole.len() - 100]).expect("it can be written");
            }),
        ),
        ("xlm_roberta", remove("model-00002-of-00002.safetensors")),
        ("bert", change("modules.json", "/0/path", json!("0_Transformer"))),
        (
            "bert",
            Box::new(|at| {
                rewrite(&at.join("model.safetensors"), |all| {
                    let bias = all.remove("embeddings.LayerNorm.bias").expect("it is there");
                    all.insert("text.embeddings.word_embeddings.weight".to_owned(), bias);
                    let words = all
                        .remove("embeddings.word_embeddings.weight")
                        .expect("it is there");
                    all.insert("image.embeddings.word_embeddings.weight".to_owned(), words);
                })
            }),
        ),
        (
            "bert",
            Box::new(|at| {
                rewrite(&at.join("model.safetensors"), |all| {
                    all.get_mut("embeddings.word_embeddings.weight")
                        .expect("it is there")
                        .0 = json!("I32");
                })
            }),
        ),
        (
            "mpnet",
            Box::new(|at| {
                rewrite(&at.join("model.safetensors"), |all| {
                    let buckets = all
                        .get_mut("encoder.relative_attention_bias.weight")
                        .expect("it is there");
                    (buckets.1, buckets.2) = (json!([2, 3]), vec![0; 24]);
                })
            }),
        ),
        ("bert", write("config.json", "{}")),
        ("bert", write("config.json", "{\"model_type\": \"bert\"}")),
        (
            "xlm_roberta",
            change("config.json", "/max_position_embeddings", json!(2)),
        ),
        ("xlm_roberta", change("config.json", "/is_decoder", json!(true))),
        ("xlm_roberta", write("model.safetensors.index.json", "{}")),
        (
            "bert_half",
            change("1_Pooling/config.json", "/include_prompt", json!(false)),
        ),
        (
            "bert_half",
            change(
                "2_Dense/config.json",
                "/module_input_name",
                json!("token_embeddings"),
            ),
        ),
        (
            "bert_half",
            change(
                "2_Dense/config.json",
                "/activation_function",
                json!("torch.nn.Mish"),
            ),
        ),
        (
            "bert_half",
            write(
                "2_Dense/config.json",
                "{\"in_features\": 24, \"out_features\": 10, \"use_residual\": true}",
            ),
        ),
        (
            "mpnet",
            write("modules.json", "[{\"type\": \"a.Normalize\", \"path\": \"\"}]"),
        ),
        (
            "bert",
            change(
                "modules.json",
                "/1/type",
                json!("sentence_transformers.models.LSTM"),
            ),
        ),
        ("bert", change("modules.json", "/1/path", json!("../1_Pooling"))),
        ("bert", write("modules.json", "[]")),
        ("bert", remove("1_Pooling/config.json")),
        (
            "bert",
            write("1_Pooling/config.json", "{\"pooling_mode\": \"sum\"}"),
        ),
        ("bert_half", remove("2_Dense/model.safetensors")),
        (
            "bert_half",
            change("2_Dense/config.json", "/in_features", json!(12)),
        ),
        (
            "bert_half",
            change(
                "config_sentence_transformers.json",
                "/default_prompt_name",
                json!("ask"),
            ),
        ),
    ];
    let mut told = String::new();
    for (model, damage) in cases {
        let copy = damaged(model, damage);
        let answer = embed(BertEmbedding::new(copy.path()), &["x".to_owned()]).remove(0);
        let error = answer.expect_err("it is damaged");
        assert!(matches!(error, PoolError::Load(_)), "{error:?}");
        told += &format!("{error}\n").replace(&copy.path().display().to_string(), "[dir]");
    }
    insta::assert_snapshot!(told);
}

#[test]
fn a_text_without_tokens_is_an_error_of_its_own() {
    let copy = damaged("roberta", |at| {
        set(at, "tokenizer.json", "/post_processor", Value::Null)
    });
    let answers = embed(BertEmbedding::new(copy.path()), &[String::new(), "x".to_owned()]);
    assert_eq!(
        answers[0],
        Err(PoolError::Model(ModelError::Refused(
            "the text has no tokens".to_owned()
        )))
    );
    assert!(answers[1].is_ok(), "{:?}", answers[1]);
}

/// A chain whose rows become vectors of a model.
fn chain(model: &Path) -> Value {
    json!({
        "name": "vectors",
        "engines": {"e": {"backend": "embedded", "model": model}},
        "steps": [{"id": "vec", "engine": "e", "task": "embed", "input": "{{ text }}"}],
    })
}

fn told(ran: &Ran) -> Vec<String> {
    let errors = ran.errors();
    let line = |e: &Value| format!("{} {} {}", e["row_id"], e["kind"], e["message"]);
    errors.iter().map(line).collect()
}

#[test]
fn rows_of_a_run_become_vectors() {
    let golden = golden("bert");
    let mut rows: String = golden
        .iter()
        .map(|golden| format!("{}\n", json!({"text": golden.text})))
        .collect();
    rows += &format!("{}\n", json!({"text": "long ".repeat(100)}));
    let bench = Bench::new(&chain(&folder("bert")).to_string(), rows);
    let ran = bench.run(&[]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert_eq!(ran.lines("vec").len(), golden.len());
    for (row, golden) in ran.values("vec").iter().zip(&golden) {
        assert!(apart(&numbers(&row["embedding"]), &golden.vector) < 1e-4, "{row}");
    }
    let tokens: usize = golden.iter().map(|golden| golden.tokens).sum();
    assert_eq!(ran.metadata()["nodes"]["vec"]["prompt_tokens"], tokens);
    insta::assert_snapshot!(
        told(&ran).join("\n"),
        @r#""12" "context_length" "the text has 302 tokens, and the model takes 64; cut it before this Step, or take a model for longer texts""#
    );
    // The same bytes in another run, whoever shares a pass with whom.
    let lines = ran.lines("vec");
    let again = bench.run(&["--overwrite", "--batch-size", "3"]);
    assert_eq!((again.code, again.lines("vec")), (3, lines), "{}", again.stderr);
    let ran = parquet::run(&bench, &["--overwrite"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let shard = &parquet::batches(&parquet::shards(&ran.out, "vec")[0])[0];
    let kind = shard
        .schema()
        .field_with_name("embedding")
        .expect("it")
        .data_type()
        .clone();
    assert!(
        matches!(&kind, DataType::FixedSizeList(item, 24) if *item.data_type() == DataType::Float32),
        "{kind}"
    );
}

#[test]
fn an_engine_is_asked_only_for_what_its_model_does() {
    let place = tempfile::tempdir().expect("a folder");
    let reviews = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/models/reviews.gguf");
    fs::copy(reviews, place.path().join("reviews.gguf")).expect("it can be copied");
    copy(&folder("bert"), &place.path().join("bert"));
    fs::create_dir(place.path().join("empty")).expect("a folder");
    fs::write(place.path().join("in.jsonl"), "{\"text\":\"x\"}\n").expect("it can be written");
    let mut asks = chain(Path::new("bert"));
    asks["steps"][0] = json!({"id": "say", "engine": "e", "user_prompt": "{{ text }}"});
    let mut seen = String::new();
    for chain in [chain(Path::new("reviews.gguf")), asks, chain(Path::new("empty"))] {
        fs::write(place.path().join("chain.yaml"), chain.to_string()).expect("it can be written");
        let (code, _, stderr) = invoke(place.path(), &["run", "chain.yaml", "in.jsonl", "out"]);
        assert_eq!(code, 2, "{stderr}");
        assert!(!place.path().join("out").exists());
        seen += &format!("{stderr}\n");
    }
    insta::assert_snapshot!(seen);
}

#[test]
fn what_will_be_asked_is_shown_before() {
    let bench = Bench::new(
        &chain(&folder("mpnet")).to_string(),
        "{\"text\":\"a \\\"b\\\"\"}\n",
    );
    let ran = bench.run(&["--dry-run"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let all = ran.stdout.replace(env!("CARGO_MANIFEST_DIR"), "[repo]");
    insta::assert_snapshot!(all);
}
