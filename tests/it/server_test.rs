//! The test double is tested too: the rest of the suite stands on it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::server::{Answer, TestServer, answer_from_schema};

/// A keep-alive client in ten lines, so that no client library stands between the test and the wire.
struct Client(BufReader<TcpStream>);

impl Client {
    fn new(server: &TestServer) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", server.port())).expect("the server listens");
        stream.set_nodelay(true).expect("nodelay can be set");
        Self(BufReader::new(stream))
    }

    fn ask(&mut self, body: &str) -> std::io::Result<(u16, String)> {
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length:";
        self.0
            .get_mut()
            .write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let code = line.split(' ').nth(1).and_then(|c| c.parse().ok());
        let code = code.ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let mut len = 0;
        while {
            line.clear();
            self.0.read_line(&mut line)?
        } > 2
        {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                len = value.trim().parse().expect("a length");
            }
        }
        let mut body = vec![0; len];
        self.0.read_exact(&mut body)?;
        Ok((code, String::from_utf8(body).expect("text")))
    }
}

fn content(reply: &str) -> String {
    let reply: Value = serde_json::from_str(reply).expect("a JSON reply");
    reply["choices"][0]["message"]["content"]
        .as_str()
        .expect("content")
        .to_owned()
}

#[test]
fn default_answers_satisfy_the_schema_and_repeat() {
    let server = TestServer::start(answer_from_schema);
    let schema = json!({
        "type": "object", "required": ["label", "n", "list", "maybe"], "additionalProperties": false,
        "properties": {
            "label": {"enum": ["a", "b"]}, "n": {"type": "integer", "minimum": 3, "maximum": 5},
            "score": {"type": "number", "minimum": 0, "maximum": 1},
            "list": {"type": "array", "items": {"$ref": "#/$defs/t"}, "minItems": 1},
            "maybe": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
        },
        "$defs": {"t": {"type": "object", "required": ["x"], "properties": {"x": {"type": ["string", "null"]}}}},
    });
    let validator = jsonschema::validator_for(&schema).expect("a valid schema");
    let mut client = Client::new(&server);
    for n in 0..50 {
        let body = json!({"messages": [{"role": "user", "content": format!("q{n}")}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "m", "schema": schema}}})
        .to_string();
        let (code, first) = client.ask(&body).expect("a reply");
        let (_, second) = client.ask(&body).expect("a reply");
        assert_eq!((code, &first), (200, &second));
        let value = serde_json::from_str(&content(&first)).expect("JSON content");
        assert!(validator.is_valid(&value), "{value}");
    }
    let stats = server.stats();
    assert_eq!((stats.asked, stats.answered), (100, 100));
    assert_eq!((stats.asked_again, stats.asked_again_although_answered), (50, 50));
    assert_eq!((stats.in_flight, stats.max_in_flight), (0, 1));
}

#[test]
fn faults_break_the_connection_and_are_not_counted_as_answers() {
    let mut server = TestServer::start(|asked| match (asked.user(), asked.seen) {
        ("close", 0) => Answer::Close,
        ("half", 0) => Answer::CloseMidBody,
        ("busy", 0) => Answer::Status {
            code: 429,
            headers: vec![("retry-after", "1".into())],
            body: String::new(),
        },
        ("hang", 0) => Answer::Hang,
        _ => Answer::text("fine").after(Duration::from_millis(5)),
    });
    let body = |what: &str| json!({"messages": [{"role": "user", "content": what}]}).to_string();
    for what in ["close", "half"] {
        assert!(Client::new(&server).ask(&body(what)).is_err(), "{what}");
    }
    let mut client = Client::new(&server);
    assert_eq!(client.ask(&body("busy")).expect("a reply").0, 429);
    for what in ["close", "half", "busy"] {
        let (code, reply) = client.ask(&body(what)).expect("a reply");
        assert_eq!((code, content(&reply).as_str()), (200, "fine"));
    }
    let mut hanging = Client::new(&server);
    hanging
        .0
        .get_mut()
        .set_read_timeout(Some(Duration::from_millis(50)))
        .expect("a timeout can be set");
    assert!(hanging.ask(&body("hang")).is_err());
    let stats = server.stats();
    assert_eq!((stats.asked, stats.answered, stats.in_flight), (7, 3, 1));
    assert_eq!((stats.asked_again, stats.asked_again_although_answered), (3, 0));
    assert!(stats.busy_slot_seconds > 0.05, "{stats:?}");

    let url = server.url();
    server.stop();
    assert!(client.ask(&body("more")).is_err());
    server.restart();
    assert_eq!(server.url(), url);
    assert_eq!(Client::new(&server).ask(&body("more")).expect("a reply").0, 200);
    assert_eq!(server.stats().in_flight, 0);
}

#[test]
fn it_is_fast_enough_to_be_no_bottleneck() {
    let server = TestServer::start(answer_from_schema);
    let body = json!({"messages": [{"role": "user", "content": "q"}]}).to_string();
    let start = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = Client::new(&server);
                for _ in 0..500 {
                    client.ask(&body).expect("a reply");
                }
            });
        }
    });
    let rate = 4000.0 / start.elapsed().as_secs_f64();
    eprintln!("test server: {rate:.0} requests/s");
    // Thousands, where nothing else runs.
    assert!(rate > 50.0, "{rate}");
}
