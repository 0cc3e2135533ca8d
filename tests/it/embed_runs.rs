//! Steps with `task: embed` in whole runs: outputs of both formats, fates, kills, edits, and engines that cannot.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::datatypes::DataType;
use chainette::chain::{Chain, CustomEngine, Node};
use chainette::engine::{FnEngine, Question, Reply};
use serde_json::{Value, json};

use crate::harness::{Bench, Ran, assert_same, folder, tree, until};
use crate::parquet::{self, types};
use crate::server::{Answer, TestServer, answer_from_schema, vector_of};

/// A chain that embeds `a`, and says how long the vector is.
fn chain(server: &TestServer, backend: &str) -> Value {
    json!({
        "name": "vectors",
        "engines": {"e": {"backend": backend, "model": "m", "endpoint": server.url(), "concurrency": 4}},
        "steps": [
            {"id": "vec", "engine": "e", "task": "embed", "input": "text {{ a }}", "retries": {"output": 1}},
            {"id": "size", "apply": {"jq": "{n: (.embedding | length), same: ($row.vec.embedding == .embedding)}"}},
        ],
    })
}

fn rows(count: usize) -> String {
    (0..count).map(|a| format!("{{\"a\":{a}}}\n")).collect()
}

/// The line of a vector.
fn line(row: usize, vector: &[f32]) -> String {
    let numbers: Vec<_> = vector.iter().map(|number| format!("{number:?}")).collect();
    format!("{{\"row_id\":\"{row}\",\"embedding\":[{}]}}", numbers.join(","))
}

#[test]
fn vectors_are_written_as_they_are() {
    for backend in ["openai", "vllm", "llamacpp", "ollama"] {
        let server = TestServer::start(|asked| {
            assert!(
                asked.path.ends_with("/v1/embeddings") || asked.path == "/api/embed",
                "{}",
                asked.path
            );
            answer_from_schema(asked)
        });
        let bench = Bench::new(&chain(&server, backend).to_string(), rows(20));
        let ran = bench.run(&[]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let expected: Vec<_> = (0..20)
            .map(|a| line(a, &vector_of(&format!("text {a}"), 8)))
            .collect();
        assert_eq!(ran.lines("vec"), expected);
        assert_eq!(ran.lines("flattened")[3].matches("vec.embedding").count(), 1);
        assert_eq!(
            ran.values("size")[7],
            json!({"row_id": "7", "n": 8, "same": true})
        );
        let tokens = &ran.metadata()["nodes"]["vec"];
        assert!(tokens["prompt_tokens"].as_u64() > Some(20), "{tokens}");
        assert_eq!(tokens["completion_tokens"], 0);
        let graph = fs::read_to_string(ran.out.join("graph.json")).expect("graph.json");
        let graph: Value = serde_json::from_str(&graph).expect("JSON");
        assert_eq!(graph["nodes"][0]["task"], "embed");
        assert_eq!(graph["nodes"][0]["input"], "text {{ a }}");
    }
}

#[test]
fn templates_and_branches_read_vectors() {
    let server = TestServer::start(|asked| match asked.input() {
        Some(text) => Answer::vector(&[text.len() as f32, 0.5]),
        None => Answer::text(asked.user()),
    });
    let mut chain = chain(&server, "openai");
    chain["steps"] = json!([
        {"id": "vec", "engine": "e", "task": "embed", "input": "{{ a }}", "yield_output": false},
        {"id": "kept", "apply": {"jq": "{first: .embedding[0]}"}},
        {"parallel": [
            {"branch": "both", "join": "both", "collect": true, "steps": [
                {"id": "piece", "apply": {"jq": "$chain_input.a | {part: (\"x\", \"yy\")}"}},
                {"id": "part_vec", "engine": "e", "task": "embed", "input": "{{ part }}"},
            ]},
            {"branch": "one", "join": "one", "when": "chain_input.a > 0", "steps": [
                {"id": "one_vec", "engine": "e", "task": "embed", "input": "abc"},
            ]},
        ]},
        {"id": "say", "engine": "e",
         "user_prompt": "{{ both | length }} {{ both[1].embedding }} {{ one.embedding[0] if one else 'none' }}"},
    ]);
    let bench = Bench::new(&chain.to_string(), rows(2));
    let ran = bench.run(&[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let said: Vec<_> = ran.values("say").iter().map(|row| row["text"].clone()).collect();
    assert_eq!(said, ["2 [2.0, 0.5] none", "2 [2.0, 0.5] 3.0"]);
    assert!(!ran.out.join("vec").exists(), "not yielded");
    let parquet = parquet::run(&bench, &["--overwrite"]);
    assert_eq!(parquet.code, 0, "{}", parquet.stderr);
    let spelt = types(&parquet.out, "flattened").join("\n");
    insta::assert_snapshot!(spelt, @"
    row_id: Utf8
    chain_input.a: Int64
    kept.first: Float64
    both: [{embedding: FixedSizeList(2 x Float32, field: 'element')}]
    one.embedding: FixedSizeList(2 x Float32, field: 'element')
    say.text: Utf8
    _rescued: Utf8
    ");
}

/// A chain whose second Step is skipped for odd rows.
fn sometimes(server: &TestServer) -> String {
    let mut chain = chain(server, "openai");
    chain["steps"] = json!([
        {"id": "vec", "engine": "e", "task": "embed", "input": "text {{ a }}"},
        {"id": "even", "engine": "e", "task": "embed", "input": "even {{ chain_input.a }}",
         "when": "chain_input.a % 2 == 0"},
    ]);
    chain.to_string()
}

fn is_vector(kind: &DataType, size: i32) -> bool {
    matches!(kind, DataType::FixedSizeList(item, found) if *item.data_type() == DataType::Float32 && *found == size)
}

#[test]
fn parquet_has_lists_of_one_size() {
    let server = TestServer::start(answer_from_schema);
    let bench = Bench::new(&sometimes(&server), rows(50));
    let ran = parquet::run(&bench, &["--max-lines-per-file", "20"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(parquet::shards(&ran.out, "flattened").len(), 3);
    for (folder, column) in [
        ("vec", "embedding"),
        ("even", "embedding"),
        ("flattened", "even.embedding"),
    ] {
        // One schema in all shards.
        types(&ran.out, folder);
        for shard in parquet::shards(&ran.out, folder) {
            for batch in parquet::batches(&shard) {
                let field = batch
                    .schema()
                    .field_with_name(column)
                    .expect("the column")
                    .clone();
                assert!(is_vector(field.data_type(), 8), "{folder}: {field}");
            }
        }
    }
    let found = parquet::rows(&ran.out, "flattened");
    let numbers = |text: String| -> Vec<f64> {
        let vector = vector_of(&text, 8);
        vector
            .iter()
            .map(|number| format!("{number:?}").parse().expect("a number"))
            .collect()
    };
    for (a, row) in found.iter().enumerate() {
        assert_eq!(row["vec.embedding"], json!(numbers(format!("text {a}"))));
        match a % 2 {
            0 => assert_eq!(row["even.embedding"], json!(numbers(format!("even {a}")))),
            _ => assert_eq!(row.get("even.embedding"), None),
        }
        assert_eq!(row.get("_rescued"), None);
    }
    // The shards are rows again.
    let copy = Bench::new(
        "name: copy\nsteps:\n  - {id: n, apply: {jq: '{v: .[\"vec.embedding\"]}'}}\n",
        "",
    );
    let input = ran.out.join("flattened");
    let again = copy.invoke(&["run", "chain.yaml", input.to_str().expect("a UTF-8 path"), "out"]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    let first: Value = serde_json::from_str(&again.lines("n")[0]).expect("JSON");
    assert_eq!(first["v"], json!(numbers("text 0".into())));
    assert_eq!(
        again.lines("n")[0],
        line(0, &vector_of("text 0", 8)).replace("embedding", "v")
    );
}

#[test]
fn a_column_without_a_vector_is_typed_too() {
    let server = TestServer::start(answer_from_schema);
    let bench = Bench::new(&sometimes(&server), "{\"a\":1}\n{\"a\":3}\n");
    let ran = parquet::run(&bench, &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let spelt = types(&ran.out, "flattened");
    assert_eq!(spelt[3], "even.embedding: [Float32]");
    assert!(!ran.out.join("even").exists(), "no row came to it");
    let bench = Bench::new(&sometimes(&server), "");
    let ran = parquet::run(&bench, &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(types(&ran.out, "flattened")[1], "vec.embedding: [Float32]");
}

#[test]
fn an_apply_hands_vectors_on() {
    let server = TestServer::start(answer_from_schema);
    let mut chain = chain(&server, "openai");
    chain["steps"][1] = json!({"id": "on", "apply": {"jq": "{v: .embedding}"}, "output_model": {
        "type": "object", "properties": {"v": {"type": "array", "format": "float32-vector", "items": {"type": "number"}}}}});
    let bench = Bench::new(&chain.to_string(), rows(3));
    let ran = parquet::run(&bench, &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let shard = &parquet::batches(&parquet::shards(&ran.out, "on")[0])[0];
    assert!(
        is_vector(shard.schema().field(1).data_type(), 8),
        "{}",
        shard.schema()
    );
}

#[test]
fn kills_change_nothing() {
    for format in ["jsonl", "parquet"] {
        let server = TestServer::start(|asked| answer_from_schema(asked).after(Duration::from_millis(4)));
        let bench = Bench::new(&sometimes(&server), rows(120));
        let args = [
            "--format",
            format,
            "--max-lines-per-file",
            "50",
            "--batch-size",
            "16",
        ];
        for goal in [20, 90] {
            let mut child = bench.spawn(&args);
            until("answers", || {
                server.answered() >= goal || child.try_wait().expect("a child can be looked at").is_some()
            });
            child.kill().expect("a child can be killed");
            child.wait().expect("a killed child can be reaped");
        }
        let ran = bench.run(&args);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let stats = server.stats();
        // Each kill may cost what was in flight.
        assert!(stats.asked_again_although_answered <= 2 * 4, "{stats:?}");
        let killed = tree(&ran.out);
        fs::remove_dir_all(&ran.out).expect("OUT can be removed");
        let whole = bench.run(&["--format", format, "--max-lines-per-file", "50"]);
        assert_eq!(whole.code, 0, "{}", whole.stderr);
        assert_same(&tree(&whole.out), &killed);
    }
}

/// A server whose vectors have as many numbers as it is told.
fn changing(size: usize) -> (TestServer, Arc<AtomicUsize>) {
    let size = Arc::new(AtomicUsize::new(size));
    let now = size.clone();
    let server =
        TestServer::start(move |asked| Answer::vector(&vector_of(asked.user(), now.load(Ordering::SeqCst))));
    (server, size)
}

/// The kinds and messages in `errors/`, each with how often.
fn told(ran: &Ran) -> Vec<(usize, String)> {
    let mut told: Vec<(usize, String)> = Vec::new();
    for error in ran.errors() {
        assert_eq!(error.get("reply"), None, "{error}");
        let text = format!("{} {}", error["kind"], error["message"]);
        match told.iter_mut().find(|(_, known)| *known == text) {
            Some((count, _)) => *count += 1,
            None => told.push((1, text)),
        }
    }
    told
}

const OTHER: &str = "\"invalid_output\" \"the vector has 5 values, where the first one of this Step had 4: did the engine change its model?\"";

#[test]
fn vectors_of_a_run_have_one_length() {
    for format in ["jsonl", "parquet"] {
        let (server, size) = changing(4);
        let bench = Bench::new(&chain(&server, "openai").to_string(), rows(40));
        let args = ["--format", format];
        let ran = bench.run(&[&args[..], &["--limit", "10"]].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        // A finished part, and another process: the length stands.
        size.store(5, Ordering::SeqCst);
        let ran = bench.run(&[&args[..], &["--limit", "30"]].concat());
        assert_eq!(ran.code, 3, "{}", ran.stderr);
        assert_eq!(told(&ran), [(20, OTHER.to_owned())]);
        assert_eq!(ran.errors()[0]["attempts"], 2);
        // The model is back.
        size.store(4, Ordering::SeqCst);
        let ran = bench.run(&args);
        assert_eq!(
            (ran.code, ran.fates("vec")),
            (3, "40/20/0/0/0/20".to_owned()),
            "{}",
            ran.stderr
        );
        // Asked again, those rows fit; nobody else is asked.
        server.clear_log();
        let ran = bench.run(&[&args[..], &["--retry-errors"]].concat());
        assert_eq!(
            (ran.code, ran.fates("vec")),
            (0, "40/40/0/0/0/0".to_owned()),
            "{}",
            ran.stderr
        );
        assert_eq!(server.stats().asked, 20);
        // Another model may make longer ones.
        size.store(5, Ordering::SeqCst);
        let mut other = chain(&server, "openai");
        other["engines"]["e"]["model"] = "longer".into();
        bench.write("chain.yaml", other.to_string());
        let ran = bench.run(&[&args[..], &["--resume"]].concat());
        assert_eq!(
            (ran.code, ran.fates("vec")),
            (0, "40/40/0/0/0/0".to_owned()),
            "{}",
            ran.stderr
        );
        if format == "parquet" {
            assert!(
                types(&ran.out, "vec")[1].contains("5 x"),
                "{:?}",
                types(&ran.out, "vec")
            );
        }
    }
}

#[test]
fn the_first_vector_decides_even_where_its_rows_fail() {
    // Row 0 is answered last, and has another length than the others, which were told apart by then.
    let server = TestServer::start(|asked| match asked.user() {
        "text 0" => Answer::vector(&[1.0, 2.0, 3.0]).after(Duration::from_millis(1500)),
        _ => Answer::vector(&[1.0, 2.0]),
    });
    let mut few = chain(&server, "openai");
    few["steps"][0]["retries"] = json!({"output": 0});
    let bench = Bench::new(&few.to_string(), rows(30));
    let ran = bench.run(&["--limit", "1"]);
    assert_eq!(
        (ran.code, ran.fates("vec")),
        (0, "1/1/0/0/0/0".to_owned()),
        "{}",
        ran.stderr
    );
    let ran = bench.run(&[]);
    assert_eq!(
        (ran.code, ran.fates("vec")),
        (3, "30/1/0/0/0/29".to_owned()),
        "{}",
        ran.stderr
    );
    let bench = Bench::new(&few.to_string(), rows(30));
    let ran = bench.run(&[]);
    assert_eq!(
        (ran.code, ran.fates("vec")),
        (3, "30/29/0/0/0/1".to_owned()),
        "{}",
        ran.stderr
    );
    // What was decided stands when the failure is asked again, though row 0 comes first now.
    let ran = bench.run(&["--retry-errors"]);
    assert_eq!(
        (ran.code, ran.fates("vec")),
        (3, "30/29/0/0/0/1".to_owned()),
        "{}",
        ran.stderr
    );
}

#[test]
fn bad_rows_have_their_fates() {
    let server = TestServer::start(|asked| match (asked.user(), asked.seen) {
        ("text 1", _) => Answer::Vectors(Vec::new()),
        ("text 2", _) => Answer::status(400, "input is too long"),
        ("text 3", _) => Answer::status(400, "input content cannot be empty"),
        ("text 4", _) => Answer::Raw("{\"data\":[{\"embedding\":[NaN]}]}".into()),
        ("text 5", 0) => Answer::Close,
        ("text 6", 0) => Answer::status(500, "boom"),
        ("text 7", 0) => Answer::vector(&[1.0]),
        ("text 8", 0) => Answer::Raw("{\"data\":[{\"embedding\":[[1.0]]}]}".into()),
        ("text 9", _) => Answer::status(500, "boom"),
        _ => answer_from_schema(asked),
    });
    let mut failing = chain(&server, "llamacpp");
    // One at a time: the first vector is row 0's.
    failing["engines"]["e"]["concurrency"] = 1.into();
    failing["steps"][0]["retries"] = json!({"output": 1, "transport": 1});
    let bench = Bench::new(&failing.to_string(), rows(12));
    let ran = bench.run(&[]);
    assert_eq!(
        (ran.code, ran.fates("vec")),
        (3, "12/7/0/0/0/5".to_owned()),
        "{}",
        ran.stderr
    );
    let told: Vec<String> = ran
        .errors()
        .iter()
        .map(|e| format!("{} {} {} {}", e["row_id"], e["kind"], e["attempts"], e["message"]))
        .collect();
    insta::assert_snapshot!(told.join("\n"));
    let mut nulled = failing.clone();
    nulled["steps"][0]["on_error"] = "null".into();
    nulled["steps"][1]["apply"]["jq"] = "{n: ($row.vec // {embedding: []} | .embedding | length)}".into();
    let bench = Bench::new(&nulled.to_string(), rows(12));
    let ran = bench.run(&[]);
    assert_eq!(
        (ran.code, ran.fates("vec")),
        (0, "12/7/0/0/5/0".to_owned()),
        "{}",
        ran.stderr
    );
    let ran = parquet::run(&bench, &["--overwrite"]);
    assert_eq!(
        (ran.code, ran.fates("vec")),
        (0, "12/7/0/0/5/0".to_owned()),
        "{}",
        ran.stderr
    );
}

#[test]
fn an_engine_that_cannot_embed_stops_the_run() {
    let server = TestServer::start(|_| {
        Answer::status(
            501,
            "This server does not support embeddings. Start it with `--embeddings`",
        )
    });
    let bench = Bench::new(&chain(&server, "llamacpp").to_string(), rows(30));
    let ran = bench.run(&[]);
    assert_eq!(ran.code, 1);
    assert!(server.stats().asked <= 4, "{:?}", server.stats());
    assert!(ran.stderr.contains("`flags: [--embeddings]`"), "{}", ran.stderr);
    assert_eq!(ran.errors().len(), 0);
}

#[test]
fn a_dry_run_and_a_row_check_show_what_is_embedded() {
    let server = TestServer::start(|_| Answer::status(500, "nobody may ask"));
    let bench = Bench::new(&chain(&server, "ollama").to_string(), rows(2));
    let ran = bench.run(&["--dry-run", "--no-icons"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let shown = ran
        .stdout
        .replace(&format!("127.0.0.1:{}", server.port()), "HOST");
    insta::assert_snapshot!("embed_dry_run", shown);
    let ran = bench.invoke(&["inspect", "chain.yaml", "--input", "in.jsonl"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    insta::assert_snapshot!("embed_row_check", ran.stdout);
    assert_eq!(server.stats().asked, 0);
}

#[test]
fn a_program_embeds_by_itself() {
    let dir = folder(&[(
        "in.jsonl",
        "{\"t\":\"one\"}\n{\"t\":\"three\"}\n{\"t\":\"bad\"}\n{\"t\":\"nan\"}\n",
    )]);
    let lengths = FnEngine::new("lengths", |question: Question| async move {
        assert!(question.messages.is_empty() && question.schema.is_none());
        let text = question.input.expect("a text to embed");
        Ok(match text.as_str() {
            "bad" => Reply::text("[0.5]"),
            "nan" => Reply::embedding(&[f32::NAN, 1.0], 1),
            text => Reply::embedding(&[text.len() as f32, 0.1], 7),
        })
    });
    let chain = Chain::builder("lengths")
        .engine("mine", CustomEngine::new(lengths))
        .node(Node::embed("vec", "mine", "{{ t }}"))
        .build()
        .expect("a good chain");
    let out = dir.path().join("out");
    let done = chain
        .job(dir.path().join("in.jsonl"), &out)
        .run()
        .expect("it runs");
    assert_eq!((done.stats.rows_out, done.stats.rows_failed), (2, 2));
    assert_eq!(
        done.stats.usage.prompt_tokens,
        14 + 3,
        "those of bad replies count too"
    );
    let written = fs::read_to_string(out.join("vec/000.jsonl")).expect("the outputs");
    assert_eq!(
        written,
        "{\"row_id\":\"0\",\"embedding\":[3.0,0.1]}\n{\"row_id\":\"1\",\"embedding\":[5.0,0.1]}\n"
    );
    let errors = fs::read_to_string(out.join("errors/000.jsonl")).expect("the errors");
    assert!(
        errors.contains("the reply is no `{\\\"embedding\\\": [...]}`"),
        "{errors}"
    );
    assert!(
        errors.contains("the vector's value 1 is null, not a number"),
        "{errors}"
    );
}
