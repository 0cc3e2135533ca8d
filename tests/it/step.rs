//! Steps: from a question to an output, through every way a reply can be bad.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chainette::engine::broker::Broker;
use chainette::engine::{Finish, Reply, Stop};
use chainette::event::{EventSender, Usage};
use chainette::expr::model::Model;
use chainette::node::answer::{Answer as Kept, AnswerKey, Answers, NoAnswers};
use chainette::node::reply::{extract, is_runaway};
use chainette::node::step::{Question, Step, StepOutcome, StepSettings};
use chainette::row::{ErrorKind, RowError, RowId};
use chainette::spec::{OnError, Retries, Sampling, Task};
use futures::future::BoxFuture;
use serde_json::{Value, json};

use crate::engine::{block_on, spec};
use crate::server::{Answer, Asked, TestServer};

/// A ledger in memory.
#[derive(Default)]
struct Memory(Mutex<HashMap<String, Vec<u8>>>);

fn place(key: &AnswerKey<'_>) -> String {
    format!("{} {} {} {:?}", key.node, key.row_id, key.turn, key.digest)
}

impl Answers for Memory {
    fn find(&self, key: &AnswerKey<'_>) -> io::Result<Option<Kept>> {
        let all = self.0.lock().expect("no panic");
        Ok(all.get(&place(key)).and_then(|bytes| Kept::decode(bytes)))
    }
    fn keep<'a>(&'a self, key: AnswerKey<'a>, answer: &'a Kept) -> BoxFuture<'a, io::Result<()>> {
        let old = self
            .0
            .lock()
            .expect("no panic")
            .insert(place(&key), answer.encode());
        assert!(old.is_none(), "an answer is kept once");
        Box::pin(async { Ok(()) })
    }
}

/// A ledger on a full disk.
struct Full;

impl Answers for Full {
    fn find(&self, _: &AnswerKey<'_>) -> io::Result<Option<Kept>> {
        Ok(None)
    }
    fn keep<'a>(&'a self, _: AnswerKey<'a>, _: &'a Kept) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async { Err(io::ErrorKind::StorageFull.into()) })
    }
}

struct Bench {
    server: TestServer,
    asked: Arc<Mutex<Vec<Asked>>>,
    broker: Arc<Broker>,
}

/// A Step with its output model, as a plan's node would hold it.
struct Graded {
    step: Step,
    model: Option<Model>,
}

impl Graded {
    async fn ask(&self, row_id: &RowId, system: Option<String>) -> Result<StepOutcome, Stop> {
        let question = Question {
            row_id,
            system,
            user: "how many?".into(),
            model: self.model.as_ref(),
        };
        self.step.ask(question).await
    }
}

impl Bench {
    /// A server that answers the `n`-th request.
    fn new(answer: impl Fn(usize, &Asked) -> Answer + Send + Sync + 'static) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let count = AtomicUsize::new(0);
        let server = TestServer::start(move |asked| {
            log.lock().expect("no panic").push(asked.clone());
            answer(count.fetch_add(1, Ordering::SeqCst), asked)
        });
        let mut engine = spec(&server.url());
        engine.timeout.first_byte = Duration::from_secs(3);
        let broker = Broker::new(&[engine], EventSender::none()).expect("good");
        Self {
            server,
            asked,
            broker: Arc::new(broker),
        }
    }

    fn step(&self, settings: impl FnOnce(&mut StepSettings), answers: Arc<dyn Answers>) -> Graded {
        let mut all = StepSettings {
            on_error: OnError::FailRow,
            node: "grade".into(),
            engine: self.broker.index("small").expect("the engine is known"),
            task: Task::Generate,
            schema: Some(json!({
                "type": "object",
                "properties": {"n": {"type": "number"}, "note": {"type": "string"}},
                "required": ["n"], "additionalProperties": false,
            })),
            sampling: Sampling::default(),
            retries: Retries::default(),
        };
        settings(&mut all);
        let model = all
            .schema
            .clone()
            .map(|schema| Model::from_schema(schema).expect("a good model"));
        let step = Step::from_settings(all, Arc::clone(&self.broker), answers).expect("a known engine");
        Graded { step, model }
    }

    fn ask(&self, step: &Graded) -> StepOutcome {
        let outcome = block_on(step.ask(&RowId::root(7), Some("be brief".into())));
        let load = &self.broker.load()[0];
        assert_eq!((load.in_flight, load.waiting), (0, 0), "every lease is back");
        outcome.expect("the run goes on")
    }

    fn run(&self, settings: impl FnOnce(&mut StepSettings)) -> StepOutcome {
        self.ask(&self.step(settings, Arc::new(NoAnswers)))
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic").clone()
    }
}

fn text(outcome: &StepOutcome) -> &str {
    match &outcome.result {
        Ok((record, _)) => record.text(),
        Err(error) => panic!("{error:?}"),
    }
}

fn error(outcome: StepOutcome) -> RowError {
    outcome.result.expect_err("the row fails")
}

#[test]
fn a_good_reply_becomes_the_output() {
    let bench =
        Bench::new(|_, _| Answer::text("Here you are:\n```json\n{ \"n\": 1.10, \"note\": null }\n```"));
    let outcome = bench.run(|_| {});
    assert_eq!(text(&outcome), r#"{"n":1.10}"#);
    assert!(outcome.usage.completion_tokens > 0);
    let asked = bench.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].system(), asked[0].user()), ("be brief", "how many?"));
    assert_eq!(asked[0].seed(), None);
    assert_eq!(asked[0].headers["x-chainette-attempt"], "0");
}

#[test]
fn free_text_is_kept_as_it_is() {
    let bench = Bench::new(|_, _| Answer::text("  a \"quoted\"\nline\u{1}"));
    let outcome = bench.run(|s| s.schema = None);
    assert_eq!(text(&outcome), r#"{"text":"  a \"quoted\"\nline\u0001"}"#);
    assert_eq!(bench.asked()[0].schema(), None);
}

#[test]
fn bad_replies_are_asked_again_with_the_problem_and_another_seed() {
    let bench = Bench::new(|n, _| {
        Answer::text(match n {
            0 => "no idea".to_owned(),
            1 => format!(
                "{{\"n\": \"{}\"}}",
                (0..1000).map(|n| format!("{n} ")).collect::<String>()
            ),
            _ => r#"{"n": 3}"#.to_owned(),
        })
    });
    let outcome = bench.run(|s| s.sampling.seed = Some(40));
    assert_eq!(text(&outcome), r#"{"n":3}"#);
    let asked = bench.asked();
    let seeds: Vec<_> = asked.iter().map(|a| a.seed()).collect();
    assert_eq!(seeds, [Some(40), Some(41), Some(42)]);
    assert_eq!(asked.iter().map(Asked::tries).collect::<Vec<_>>(), [0, 1, 1]);
    let further = &asked[1].body["messages"];
    assert_eq!(further[2], json!({"role": "assistant", "content": "no idea"}));
    assert_eq!(
        further[3]["content"],
        "Your reply was not valid: there is no JSON value in the reply. Reply again with only the corrected JSON."
    );
    let quoted = asked[2].body["messages"][2]["content"].as_str().expect("text");
    assert_eq!(quoted.chars().count(), 2000, "cut");
    assert_eq!(asked[2].headers["x-chainette-attempt"], "2");
}

#[test]
fn too_many_bad_replies_fail_the_row() {
    let bench = Bench::new(|_, _| Answer::text(r#"{"m":1}"#));
    let failed = error(bench.run(|s| s.retries.output = 1));
    assert_eq!(failed.kind, ErrorKind::InvalidOutput);
    assert_eq!(failed.attempts, Some(2));
    assert_eq!(failed.reply.as_deref(), Some(r#"{"m":1}"#));
    let seeds: Vec<_> = bench.asked().iter().map(Asked::seed).collect();
    assert_eq!(seeds, [None, Some(1)]);
}

#[test]
fn a_rejected_reply_gets_only_another_seed() {
    let text = "The model produced output that does not match the expected peg-native format";
    let bench = Bench::new(move |n, _| match n {
        0 => Answer::status(500, text),
        _ => Answer::text(r#"{"n":1}"#),
    });
    let outcome = bench.run(|_| {});
    assert!(outcome.result.is_ok());
    let asked = bench.asked();
    assert_eq!((asked[1].tries(), asked[1].seed()), (0, Some(1)));
}

#[test]
fn a_cut_reply_is_asked_again_once_with_twice_the_room() {
    let bench = Bench::new(|n, _| match n {
        0 => Answer::cut(r#"{"n": 12"#),
        _ => Answer::text(r#"{"n": 123}"#),
    });
    let outcome = bench.run(|s| {
        s.sampling.max_tokens = Some(10);
        s.sampling.seed = Some(5);
    });
    assert_eq!(text(&outcome), r#"{"n":123}"#);
    let asked = bench.asked();
    assert_eq!(asked[1].max_tokens(), Some(20));
    assert_eq!(
        (asked[1].tries(), asked[1].seed()),
        (0, Some(5)),
        "otherwise the same"
    );

    let bench = Bench::new(|_, _| Answer::cut("no end"));
    let failed = error(bench.run(|s| s.schema = None));
    assert_eq!((failed.kind, failed.attempts), (ErrorKind::Truncated, Some(2)));
    assert_eq!(bench.asked()[1].max_tokens(), Some(256));

    let bench = Bench::new(|_, _| Answer::cut(r#"{"n": 1}"#));
    assert_eq!(text(&bench.run(|_| {})), r#"{"n":1}"#, "complete all the same");
}

#[test]
fn a_runaway_reply_is_asked_again_once() {
    let bench = Bench::new(|_, _| Answer::cut(format!("{{\"note\": \"{}", "ha ".repeat(300))));
    let failed = error(bench.run(|_| {}));
    assert_eq!((failed.kind, failed.attempts), (ErrorKind::Runaway, Some(2)));
    let asked = bench.asked();
    assert_eq!(asked.iter().map(Asked::seed).collect::<Vec<_>>(), [None, Some(1)]);
    assert_eq!(asked[1].max_tokens(), None);
}

#[test]
fn transport_faults_are_counted() {
    let bench = Bench::new(|_, _| Answer::status(500, "boom"));
    let failed = error(bench.run(|s| s.retries.transport = 1));
    assert_eq!(
        failed,
        RowError {
            kind: ErrorKind::Http,
            message: "the engine answered HTTP 500: boom".into(),
            attempts: Some(0),
            reply: None
        }
    );
    assert_eq!(bench.server.stats().asked, 2);

    let bench = Bench::new(|n, _| {
        if n == 0 {
            Answer::Hang
        } else {
            Answer::text(r#"{"n":1}"#)
        }
    });
    assert!(bench.run(|_| {}).result.is_ok());
    assert_eq!(bench.asked()[1].headers["x-chainette-attempt"], "1");
    assert_eq!(bench.asked()[0].raw, bench.asked()[1].raw, "the same question");
}

#[test]
fn refusals_are_final() {
    let bench = Bench::new(|_, _| Answer::status(400, "This model's maximum context length is 10 tokens"));
    let failed = error(bench.run(|_| {}));
    assert_eq!(
        (failed.kind, failed.attempts),
        (ErrorKind::ContextLength, Some(0))
    );
    assert_eq!(bench.server.stats().asked, 1);
}

#[test]
fn faults_of_the_engine_cost_a_row_nothing() {
    let bench = Bench::new(|n, _| {
        if n < 2 {
            Answer::Status {
                code: 429,
                headers: vec![("retry-after", "0.01".into())],
                body: String::new(),
            }
        } else {
            Answer::text(r#"{"n":1}"#)
        }
    });
    let outcome = bench.run(|s| {
        s.retries = Retries {
            transport: 0,
            output: 0,
        }
    });
    assert!(outcome.result.is_ok());
    let turns: Vec<_> = bench
        .asked()
        .iter()
        .map(|a| a.headers["x-chainette-attempt"].clone())
        .collect();
    assert_eq!(turns, ["0", "0", "0"]);
}

#[test]
fn kept_answers_are_not_asked_for_again() {
    let bench = Bench::new(|n, _| match n {
        0 => Answer::status(500, "boom"),
        1 => Answer::text("bad"),
        _ => Answer::text(r#"{"n":1,"note":"x"}"#),
    });
    let ledger = Arc::new(Memory::default());
    let step = bench.step(|_| {}, ledger.clone());
    let first = bench.ask(&step);
    assert_eq!(bench.server.stats().asked, 3);
    let again = bench.ask(&step);
    assert_eq!(bench.server.stats().asked, 3, "no call");
    assert_eq!(text(&first), text(&again));
    assert_eq!(first.usage, again.usage);
    // Another question has no answer yet.
    let other = bench.step(|s| s.sampling.temperature = Some(1.0), ledger);
    bench.ask(&other);
    assert_eq!(bench.server.stats().asked, 4);
}

#[test]
fn an_answer_that_cannot_be_kept_stops_the_run() {
    let bench = Bench::new(|_, _| Answer::text(r#"{"n":1}"#));
    let step = bench.step(|_| {}, Arc::new(Full));
    let stop = block_on(step.ask(&RowId::root(0), None)).expect_err("the disk is full");
    assert!(matches!(stop, Stop::Ledger(_)), "{stop:?}");
}

#[test]
fn stopping_ends_the_wait_between_tries() {
    let bench = Bench::new(|_, _| Answer::status(500, "boom"));
    let step = bench.step(|s| s.retries.transport = 1000, Arc::new(NoAnswers));
    let stop = block_on(async {
        let id = RowId::root(0);
        let ask = step.ask(&id, None);
        let stop = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            bench.broker.stop();
        };
        futures::future::join(ask, stop).await.0
    });
    assert!(matches!(stop, Err(Stop::Interrupted)));
}

#[test]
fn answers_survive_their_encoding() {
    let reply = Reply {
        text: "täxt".into(),
        reasoning: Some("because\0".into()),
        finish: Finish::Length,
        usage: Usage {
            prompt_tokens: u64::MAX,
            completion_tokens: 3,
        },
    };
    let plain = Reply {
        reasoning: None,
        finish: Finish::Rejected,
        ..reply.clone()
    };
    let (kind, message) = (ErrorKind::Timeout, "late".to_owned());
    let all = [
        Kept::Reply(reply),
        Kept::Reply(plain),
        Kept::Fault {
            kind,
            message: message.clone(),
        },
        Kept::Refused { kind, message },
    ];
    for answer in all {
        let bytes = answer.encode();
        assert_eq!(Kept::decode(&bytes), Some(answer));
        for cut in 0..bytes.len().min(18) {
            let _no_panic = Kept::decode(&bytes[..cut]);
        }
    }
    assert_eq!(Kept::decode(b"\x09what"), None);
}

#[test]
fn values_are_found_in_replies() {
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    for (reply, value) in [
        (r#" {"a": 1.10} "#, r#"{"a":1.10}"#),
        ("\u{feff}{}", "{}"),
        ("```json\n{\"a\": \"```\"}\n```", r#"{"a":"```"}"#),
        ("```\n[1, 2]\n```\nThat is all [1].", "[1,2]"),
        ("Sure! {\"a\": [1]} Bye {not json}.", r#"{"a":[1]}"#),
        ("<think>maybe {\"a\": 1}?</think>\n{\"a\": 2}", r#"{"a":2}"#),
        ("{\"a\": \"x\ny\u{1}\"}", r#"{"a":"x\ny\u0001"}"#),
        (
            "{\"a\": 123456789012345678901234567890, \"b\": -0.0e+5}",
            r#"{"a":123456789012345678901234567890,"b":-0.0e+5}"#,
        ),
        ("\"just text\"", "\"just text\""),
        (&deep, &deep),
    ] {
        assert_eq!(extract(reply).as_deref(), Ok(value));
    }
    for (reply, problem) in [
        ("", "the reply is empty"),
        ("no", "there is no JSON value in the reply"),
        (
            "{\"a\": 1} {\"a\": 2}",
            "there are 2 JSON values in the reply where one was expected",
        ),
        (
            "{\"é\": 1, }",
            "not valid JSON: expected a key in double quotes at character 10",
        ),
        (
            "{\"a\": \"cut",
            "not valid JSON: the text ends inside a string at character 11",
        ),
        (
            "{\"a\": 01}",
            "not valid JSON: expected a JSON value at character 7",
        ),
        (
            "{\"a\": {\"b\": 1}, x",
            "not valid JSON: expected a key in double quotes at character 17",
        ),
    ] {
        assert_eq!(extract(reply), Err(problem.to_owned()), "{reply}");
    }
    // Linear, whatever it is.
    let _no_matter = extract(&"[".repeat(1 << 20));
    let _no_matter = extract(&"[\"".repeat(1 << 19));
}

#[test]
fn runaways_are_seen() {
    assert!(is_runaway(&format!("{{\"a\":{}", " \n".repeat(32))));
    assert!(is_runaway(&"abc ".repeat(200)));
    assert!(!is_runaway(&"abc ".repeat(100)));
    let words: String = (0..200).map(|n| format!("{n} ")).collect();
    assert!(!is_runaway(&words));
    let value: Value = json!({"a": 1});
    assert!(!is_runaway(&value.to_string()));
}
