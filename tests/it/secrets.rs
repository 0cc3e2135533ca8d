//! Secrets stand nowhere: not in outputs, answers, logs, events or errors, whatever the engine says and however much is logged.

use std::path::{Path, PathBuf};

use crate::harness::Bench;
use crate::server::{Answer, TestServer, answer_from_schema};

/// Planted where keys come from.
const KEY: &str = "sk-planted-5f1d0c9e7b";
/// Planted in a header of the chain that is no secret by its name, but may be one.
const HEADER: &str = "tenant-planted-77aa31";

/// All files below a folder.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("the folder is there") {
        let path = entry.expect("a folder entry").path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}

/// A server that repeats what it was told in every way it can.
fn gossip() -> TestServer {
    TestServer::start(|asked| {
        let user = asked.user().to_owned();
        let said = format!("the key {KEY} of {HEADER} is wrong");
        match user
            .rsplit(' ')
            .next()
            .and_then(|n| n.parse::<u64>().ok())
            .unwrap_or_default()
            % 7
        {
            0 => Answer::status(500, &said),
            1 => Answer::status(400, &said),
            2 if asked.seen == 0 => Answer::status(429, &said),
            3 if asked.seen == 0 => Answer::status(503, &said),
            4 => Answer::Close,
            _ => answer_from_schema(asked),
        }
    })
}

#[test]
fn a_planted_key_is_nowhere() {
    let server = gossip();
    let chain = format!(
        "name: secrets\nengines:\n  e: {{backend: openai, model: m, endpoint: \"{}\", api_key_env: PLANTED_KEY, \
         headers: {{x-tenant: {HEADER}}}, concurrency: 4}}\nsteps:\n  - {{id: s, engine: e, user_prompt: 'row {{{{ n }}}}', \
         output_model: {{a: string}}, retries: {{transport: 1}}}}\n",
        server.url()
    );
    let rows: String = (0..14).map(|n| format!("{{\"n\": {n}}}\n")).collect();
    for flags in [&[][..], &["--json-logs"], &["--verbose"], &["--dry-run"]] {
        let bench = Bench::new(&chain, &rows);
        let mut command = bench.command(flags);
        command.args(["--max-errors", "100%"]);
        command.env("PLANTED_KEY", KEY).env("CHAINETTE_LOG", "trace");
        let ran = bench.ran(&command.output().expect("the command starts"));
        assert!(
            matches!(ran.code, 0 | 3),
            "{flags:?}: exit {}\n{}",
            ran.code,
            ran.stderr
        );
        assert!(
            flags.contains(&"--dry-run") || ran.stderr.contains("TRACE") || ran.stderr.contains("\"log\""),
            "trace logs were asked for: {}",
            ran.stderr.chars().take(2000).collect::<String>()
        );
        for (place, text) in [("stdout", &ran.stdout), ("stderr", &ran.stderr)] {
            hides(place, text.as_bytes());
        }
        if ran.out.exists() {
            for path in files(&ran.out) {
                hides(
                    &path.display().to_string(),
                    &std::fs::read(&path).expect("readable"),
                );
            }
        }
    }
}

/// The key is in none of these bytes; the header's value only where the chain itself shows its engines' headers: nowhere.
fn hides(place: &str, bytes: &[u8]) {
    for secret in [KEY, HEADER] {
        let at = bytes
            .windows(secret.len())
            .position(|window| window == secret.as_bytes());
        if let Some(at) = at {
            let around = &bytes[at.saturating_sub(300)..(at + 100).min(bytes.len())];
            panic!("{place} shows `{secret}`: …{}…", String::from_utf8_lossy(around));
        }
    }
}
