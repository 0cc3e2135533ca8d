//! What a user is told of models in this process: while they are fetched and loaded, and at the end.

use std::time::Duration;

use chainette::event::{EngineStats, ModelStats, RunState, RunStats};
use chainette::report::{Style, summary};
use chainette::run::{Counts, Times};
use serde_json::{Value, json};

use crate::events::checked;
use crate::harness::{Bench, Ran};
use crate::hub::{Fault, Hub, REPO};
use crate::pty::Terminal;
use crate::server::{TestServer, answer_from_schema};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/reviews.gguf");

fn rows(count: usize) -> String {
    (0..count)
        .map(|n| format!("{{\"text\":\"The lamp broke after {n} days.\"}}\n"))
        .collect()
}

/// A chain that has a model in this process grade its rows.
fn chain(model: &str) -> Value {
    json!({
        "name": "reviews",
        "engines": {"demo": {"backend": "embedded", "model": model, "workers": 1}},
        "steps": [{
            "id": "grade", "engine": "demo", "system_prompt": "Grade the product review.",
            "user_prompt": "Review: {{ text }}", "output_model": {"sentiment": "positive | negative"},
            "sampling": {"max_tokens": 40},
        }],
    })
}

#[test]
fn a_run_tells_what_its_models_did() {
    let server = TestServer::start(answer_from_schema);
    let mut chain = chain(MODEL);
    chain["engines"]["far"] = json!({"backend": "openai", "model": "m", "endpoint": server.url()});
    let say = json!({"id": "say", "engine": "far", "user_prompt": "{{ chain_input.text }}"});
    let vectors = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/vectors/bert");
    chain["engines"]["near"] = json!({"backend": "embedded", "model": vectors});
    let place = json!({"id": "place", "engine": "near", "task": "embed", "input": "{{ chain_input.text }}"});
    chain["steps"]
        .as_array_mut()
        .expect("a list")
        .extend([say, place]);
    let bench = Bench::new(&chain.to_string(), rows(30));
    let ran = bench.run(&["--json-logs"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let events = checked(&ran.stderr);
    let finished = events.last().expect("an event");
    let engine = |name: &str| {
        let mut engines = finished["engines"].as_array().expect("a list").iter();
        engines
            .find(|engine| engine["engine"] == name)
            .expect("it is there")
    };
    assert_eq!(engine("far").get("models"), None, "{finished}");
    let models = &engine("demo")["models"];
    assert_eq!(
        (&models["loads"], &models["workers"], &models["panics"]),
        (&json!(1), &json!(1), &json!(0))
    );
    assert!(
        engine("near")["models"]["loads"].as_u64() >= Some(1),
        "{finished}"
    );
    let number = |key: &str| models[key].as_f64().expect("a number");
    let seconds = finished["seconds"].as_f64().expect("a number");
    for part in ["busy_seconds", "loading_seconds"] {
        assert!(number(part) > 0.0 && number(part) < seconds, "{part}: {finished}");
    }
    assert!(number("reused_tokens") > 0.0, "prompts begin alike: {finished}");

    let ran = bench.run(&["--overwrite"]);
    let told = |ran: &Ran| ran.stderr.matches("engine demo: model loaded in ").count();
    assert_eq!(told(&ran), 1, "{}", ran.stderr);
    // What is on file needs no model.
    bench.write("in.jsonl", rows(29));
    let ran = bench.run(&["--resume"]);
    assert!(ran.stderr.contains(" answers reused"), "{}", ran.stderr);
    assert_eq!(told(&ran), 0, "{}", ran.stderr);
}

#[test]
fn the_summary_has_a_line_for_models_in_this_process() {
    let engine = |name: &str, models: Option<ModelStats>| EngineStats {
        engine: name.to_owned(),
        models,
        ..EngineStats::default()
    };
    let once = ModelStats {
        loads: 1,
        loading: Duration::from_millis(420),
        workers: 1,
        busy: Duration::from_secs(87),
        ..ModelStats::default()
    };
    let often = ModelStats {
        loads: 1_204,
        loading: Duration::from_secs(75),
        workers: 2,
        busy: Duration::from_secs(150),
        panics: 1,
        reused_tokens: 12_340,
    };
    let both = {
        let mut both = once;
        both += often;
        both
    };
    let stats = RunStats {
        state: RunState::Finished,
        seconds: 100.0,
        engines: vec![
            engine("once", Some(once)),
            engine("often", Some(often)),
            engine("both", Some(both)),
            engine("unused", Some(ModelStats::default())),
            engine("a_server", None),
        ],
        ..RunStats::default()
    };
    let counts = (Counts::default(), Times::default());
    insta::assert_snapshot!(
        "embedded_summary",
        summary(&stats, &counts.0, &counts.1, Style::default(), None)
    );
}

#[test]
fn the_screen_says_what_is_done_about_a_model_that_is_not_there() {
    let model = std::fs::read(MODEL).expect("the model is there");
    let hub = Hub::start(&[("reviews.gguf", &model)]);
    let stuck = Fault::Stuck {
        at: 1000,
        times: usize::MAX,
    };
    hub.fault("reviews.gguf", stuck);
    let bench = Bench::new(&chain(&format!("hf:{REPO}/reviews.gguf")).to_string(), rows(5));
    let cache = bench.dir.path().join("hf").display().to_string();
    let env = [
        ("HF_ENDPOINT", hub.url()),
        ("HF_HOME", cache.clone()),
        ("XDG_STATE_HOME", cache),
    ];
    let env = env.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut terminal = Terminal::start(&bench, &[], &env, (120, 30));
    let screen = terminal.until("that the model is fetched", |screen| {
        screen.contains("waits for engine demo: ")
            && screen.contains("fetch")
            && screen.contains("5 rows wait")
    });
    assert!(
        screen.contains("0 of 64 busy") && screen.contains("reviews.gguf"),
        "{screen}"
    );
    hub.heal();
    assert_eq!(terminal.ends(), 0, "{}", terminal.screen());
}
