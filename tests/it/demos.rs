//! Every chain of chains/ runs as its first lines say, on a server that answers by schema.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli;
use crate::harness::tree;
use crate::server::{TestServer, answer_from_schema};

/// The endpoint in every chain file.
const ENDPOINT: &str = "http://127.0.0.1:8080/v1";

/// A command line out of a chain file's header.
#[derive(Debug)]
struct Said {
    chain: String,
    input: String,
    args: Vec<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The chain files, by name; whatever is put into chains/ is among them.
fn chains() -> BTreeMap<String, String> {
    let entries = fs::read_dir(root().join("chains")).expect("chains/ is there");
    let paths = entries.map(|entry| entry.expect("a folder entry").path());
    let chain = |path: &PathBuf| {
        path.extension()
            .is_some_and(|ext| ["yaml", "yml", "json"].iter().any(|known| ext == *known))
    };
    paths
        .filter(chain)
        .map(|path| {
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).expect("a text"))
        })
        .collect()
}

/// The commands in a chain file's header: what follows `chainette run` in its comments.
fn commands(text: &str) -> Vec<Said> {
    let comments = text.lines().take_while(|line| line.starts_with('#'));
    comments
        .filter_map(|line| line.split_once("chainette run "))
        .map(|(_, args)| {
            let args: Vec<String> = args.split_whitespace().map(str::to_owned).collect();
            let [chain, input, _out, ..] = args.as_slice() else {
                panic!("no CHAIN INPUTS OUT in {args:?}");
            };
            Said {
                chain: chain.clone(),
                input: input.clone(),
                args: args.clone(),
            }
        })
        .collect()
}

/// A copy of chains/ and examples/ in which the chains ask this server.
pub fn copied(server: &TestServer) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path, url: &str) {
        fs::create_dir_all(to).expect("a folder can be made");
        for entry in fs::read_dir(from).expect("the folder is there") {
            let path = entry.expect("a folder entry").path();
            let to = to.join(path.file_name().expect("a name"));
            if path.is_dir() {
                copy(&path, &to, url);
                continue;
            }
            match fs::read_to_string(&path) {
                Ok(text) => fs::write(to, text.replace(ENDPOINT, url)),
                Err(_) => fs::copy(path, to).map(|_bytes| ()),
            }
            .expect("a file can be copied");
        }
    }
    let dir = tempfile::tempdir().expect("a folder can be made");
    for folder in ["chains", "examples"] {
        copy(&root().join(folder), &dir.path().join(folder), &server.url());
    }
    dir
}

/// `chainette run` as the header says, into another OUT, with further arguments.
fn run(dir: &Path, said: &Said, out: &str, extra: &[&str]) -> cli::Ran {
    let mut args = vec!["run"];
    args.extend(said.args.iter().map(String::as_str));
    args[3] = out;
    args.extend(extra);
    cli::run(dir, &args)
}

fn json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}

/// All lines of a folder of shards below OUT.
fn lines(out: &Path, folder: &str) -> Vec<Value> {
    let mut shards: Vec<PathBuf> = match fs::read_dir(out.join(folder)) {
        Ok(entries) => entries.map(|entry| entry.expect("an entry").path()).collect(),
        Err(_) => Vec::new(),
    };
    shards.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
    let texts = shards
        .iter()
        .map(|path| fs::read_to_string(path).expect("shards are UTF-8"));
    texts
        .flat_map(|text| {
            let parse = |line: &str| serde_json::from_str(line).expect("lines are JSON");
            text.lines().map(parse).collect::<Vec<Value>>()
        })
        .collect()
}

/// The row ids of some lines.
fn ids(lines: &[Value]) -> BTreeSet<String> {
    let id = |line: &Value| line["row_id"].as_str().expect("a row id").to_owned();
    let found: BTreeSet<_> = lines.iter().map(id).collect();
    assert_eq!(found.len(), lines.len(), "a row id stands twice: {lines:?}");
    found
}

fn count(value: &Value) -> i64 {
    value.as_i64().unwrap_or_else(|| panic!("no count: {value}"))
}

/// Every row that came in came out, was filtered, or stands in `errors/`; the fates of every node add up.
fn accounted(out: &Path, rows: i64) {
    let (metadata, graph) = (json(&out.join("metadata.json")), json(&out.join("graph.json")));
    assert_eq!(metadata["state"], "finished");
    let mut left = rows;
    for node in graph["nodes"].as_array().expect("a list of nodes") {
        let id = node["id"].as_str().expect("an id");
        let counts = &metadata["nodes"][id];
        let fates = ["emitted", "filtered", "skipped", "nulled", "failed"];
        let sum: i64 = fates.iter().map(|fate| count(&counts[fate])).sum();
        assert_eq!(count(&counts["rows"]), sum, "{id}: {counts}");
        assert_eq!(
            lines(out, id).len() as i64,
            count(&counts["children"]),
            "{id}: {counts}"
        );
        if node["branch"].is_null() {
            assert_eq!(left, count(&counts["rows"]), "rows that reach {id}");
            left += count(&counts["children"]) - count(&counts["emitted"]);
            left -= count(&counts["filtered"]) + count(&counts["failed"]);
        }
    }
    let counted = &metadata["rows"];
    assert_eq!(
        [rows, left, 0],
        ["in", "out", "failed"].map(|key| count(&counted[key]))
    );
    assert_eq!(ids(&lines(out, "flattened")).len() as i64, left);
}

/// Every line of OUT is what `graph.json` says it is; says how many were looked at.
fn match_their_schemas(out: &Path) -> usize {
    let graph = json(&out.join("graph.json"));
    let nodes = graph["schemas"]["nodes"].as_object().expect("schemas by node");
    let listed = graph["nodes"].as_array().expect("a list of nodes");
    let names: BTreeSet<_> = listed
        .iter()
        .map(|node| node["id"].as_str().expect("an id"))
        .collect();
    assert_eq!(names, nodes.keys().map(String::as_str).collect());
    let flattened = ("flattened", &graph["schemas"]["flattened"]);
    let all = nodes
        .iter()
        .map(|(id, schema)| (id.as_str(), schema))
        .chain([flattened]);
    let mut checked = 0;
    for (folder, schema) in all {
        let validator = jsonschema::draft202012::new(schema).expect("a JSON Schema");
        for line in lines(out, folder) {
            let problem = validator.validate(&line).err();
            assert!(problem.is_none(), "{folder}: {problem:?} in {line}");
            checked += 1;
        }
    }
    checked
}

#[test]
fn every_chain_says_how_to_run_it() {
    let chains = chains();
    assert!(chains.len() >= 7, "{:?}", chains.keys());
    for (name, text) in &chains {
        let said = commands(text);
        assert!(
            !said.is_empty(),
            "{name} has no `chainette run` in its first lines"
        );
        for said in said {
            assert_eq!(said.chain, format!("chains/{name}"));
            assert!(root().join(&said.input).exists(), "{name}: no {}", said.input);
        }
        // A model in this process has no address.
        let asks = text.contains("engine: ") && !text.contains("backend: embedded");
        assert_eq!(
            asks,
            text.contains(ENDPOINT),
            "{name}: an engine at another place than {ENDPOINT}"
        );
    }
}

#[test]
fn every_chain_reads_well() {
    let dir = tempfile::tempdir().expect("a folder can be made");
    let inspect = |name: &str, more: &[&str]| {
        let chain = root().join("chains").join(name);
        let mut args = vec!["inspect", chain.to_str().expect("a UTF-8 path")];
        args.extend(more);
        let ran = cli::run(dir.path(), &args);
        assert_eq!(
            (ran.code, ran.stderr.as_str()),
            (Some(0), ""),
            "{name} has warnings"
        );
        ran
    };
    for name in chains().keys() {
        let ran = inspect(name, &[]);
        let graph = inspect(name, &["--format", "json"]).stdout;
        let graph: Value = serde_json::from_str(&graph).expect("JSON");
        for node in graph["nodes"].as_array().expect("a list of nodes") {
            let id = node["id"].as_str().expect("an id");
            assert!(
                ran.stdout.contains(&format!(" {id}  ")),
                "{name}: no {id} in\n{}",
                ran.stdout
            );
        }
        // Types are as long as they are: nothing is cut in a pipe.
        let mut drawn = ran.stdout.lines().filter_map(|line| line.split('→').next());
        let wide = drawn.find(|line| line.chars().count() > 110);
        assert_eq!(wide, None, "{name}: too wide to read");
    }
}

#[test]
fn every_chain_runs_as_it_says() {
    let server = TestServer::start(answer_from_schema);
    let dir = copied(&server);
    for (name, text) in chains() {
        for (number, said) in commands(&text).iter().enumerate() {
            let first = format!("{name}-{number}");
            let before = server.answered();
            let ran = run(dir.path(), said, &first, &[]);
            assert_eq!(ran.code, Some(0), "{said:?}\n{}", ran.stderr);
            assert!(!ran.stderr.contains("warning"), "{said:?}\n{}", ran.stderr);
            let input = fs::read_to_string(root().join(&said.input)).expect("a text");
            let rows = input.lines().filter(|line| !line.trim().is_empty()).count();
            let out = dir.path().join(&first);
            accounted(&out, rows as i64);
            assert!(match_their_schemas(&out) >= rows, "{said:?} wrote little");
            assert_eq!(
                server.answered() > before,
                text.contains(ENDPOINT),
                "{name} asks if it has an engine"
            );

            let again = format!("{first}-again");
            let ran = run(dir.path(), said, &again, &["--batch-size", "3"]);
            assert_eq!(ran.code, Some(0), "{}", ran.stderr);
            assert_eq!(
                tree(&out),
                tree(&dir.path().join(&again)),
                "{name}: the batch size shows"
            );
        }
    }
}

/// Runs a chain's first command, with further arguments; gives its OUT.
fn out_of(dir: &Path, name: &str, extra: &[&str]) -> PathBuf {
    let text = &chains()[name];
    let said = commands(text).into_iter().next().expect("a command");
    let out = format!("out-{}", extra.len());
    let ran = run(dir, &said, &out, extra);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    dir.join(out)
}

#[test]
fn the_audit_branch_holds_the_answers_below_the_threshold() {
    // One grade can never be read: that row has none.
    let server = TestServer::start(|asked| {
        let grade = asked.system().starts_with("Grade");
        if grade && asked.user().contains("A good answer") {
            return crate::server::Answer::text("no JSON");
        }
        answer_from_schema(asked)
    });
    let dir = copied(&server);
    let mut audited = Vec::new();
    for (threshold, extra) in [(6, &[][..]), (10, &["--set", "threshold=10"][..])] {
        let out = out_of(dir.path(), "judge.yaml", extra);
        let grades = lines(&out, "grade");
        let fine = grades
            .iter()
            .filter(|line| count(&line["score"]) >= threshold)
            .cloned();
        let fine = ids(&fine.collect::<Vec<_>>());
        let all = ids(&lines(&out, "flattened"));
        let cases = ids(&lines(&out, "case"));
        assert_eq!(cases, all.difference(&fine).cloned().collect(), "{threshold}");
        assert_eq!(grades.len() + 1, all.len());
        audited.push(cases.len());
    }
    assert!(audited[0] < audited[1], "{audited:?}");
}

#[test]
fn retrieval_asks_only_what_it_found_something_for() {
    let server = TestServer::start(|asked| match asked.user().contains("[hours]") {
        // One source that was given, one that was not.
        true => crate::server::Answer::text(r#"{"text":"From 10.","sources":["hours","made_up"]}"#),
        false => answer_from_schema(asked),
    });
    let dir = copied(&server);
    let out = out_of(dir.path(), "retrieval.yaml", &[]);
    let found = lines(&out, "retrieve");
    let best: Vec<&str> = found
        .iter()
        .map(|line| line["found"][0]["id"].as_str().unwrap_or("none"))
        .collect();
    assert_eq!(
        best,
        [
            "hours",
            "card",
            "children",
            "loans",
            "renewals",
            "lost",
            "donations",
            "access",
            "wifi",
            "rooms",
            "computers",
            "none",
            "none",
            "none",
            "none",
            "ebooks"
        ]
    );
    let asked = best.iter().filter(|id| **id != "none").count();
    assert_eq!(server.stats().asked, asked as u64);
    let replies = lines(&out, "reply");
    assert_eq!(replies[0]["sources"], serde_json::json!(["hours"]));
    assert_eq!(replies[0]["answered"], true);
    assert_eq!(replies[11]["answered"], false);
    assert!(
        replies[11]["text"]
            .as_str()
            .is_some_and(|text| text.starts_with("Sorry"))
    );
}

#[test]
fn only_high_alerts_get_the_branches() {
    let server = TestServer::start(answer_from_schema);
    let dir = copied(&server);
    let out = out_of(dir.path(), "incidents.yaml", &[]);
    let high = lines(&out, "triage");
    let high: Vec<_> = high
        .into_iter()
        .filter(|line| line["severity"] == "high")
        .collect();
    let high = ids(&high);
    assert!(!high.is_empty() && high.len() < 16, "{high:?}");
    for node in ["guess_cause", "write_message", "list_remedies", "page"] {
        assert_eq!(ids(&lines(&out, node)), high, "{node}");
    }
    for line in lines(&out, "digest") {
        let is_high = high.contains(line["row_id"].as_str().expect("an id"));
        assert_eq!(line.get("cause").is_some(), is_high, "{line}");
        assert_eq!(line.get("message").is_some(), is_high, "{line}");
        assert_eq!(line["remedies"] != serde_json::json!([]), is_high, "{line}");
    }
    let clean = lines(&out, "clean");
    assert!(clean.iter().all(|line| !line.to_string().contains("\\u001b")));
    assert_eq!(clean.iter().filter(|line| line["cut"] == true).count(), 1);
}

#[test]
fn only_what_is_in_another_language_is_translated() {
    let server = TestServer::start(answer_from_schema);
    let dir = copied(&server);
    let out = out_of(dir.path(), "translate.yaml", &["--set", "to=fr"]);
    let languages = lines(&out, "language");
    let foreign: Vec<_> = languages
        .iter()
        .filter(|line| line["code"] != "fr")
        .cloned()
        .collect();
    assert!(foreign.len() < languages.len());
    assert_eq!(ids(&lines(&out, "translation")), ids(&foreign));
    // Two of the texts are blank: filtered, not asked.
    assert_eq!(json(&out.join("metadata.json"))["nodes"]["tidy"]["filtered"], 2);
    assert_eq!(lines(&out, "summary").len(), 14);
}

#[test]
fn the_verdict_sees_both_sides() {
    let server = TestServer::start(|asked| {
        let side = |points: &str| crate::server::Answer::text(format!(r#"{{"points":["{points}"]}}"#));
        match asked.system() {
            system if system.contains("benefits of") => side("cheap"),
            system if system.contains("risks of") => side("slow"),
            _ => {
                let both = asked.user().ends_with("Benefits:\n- cheap\nRisks:\n- slow");
                let decision = if both { "accept" } else { "reject" };
                crate::server::Answer::text(format!(r#"{{"decision":"{decision}","reason":"r"}}"#))
            }
        }
    });
    let dir = copied(&server);
    let out = out_of(dir.path(), "proposals.yaml", &[]);
    let verdicts = lines(&out, "verdict");
    assert_eq!(verdicts.len(), 13);
    assert!(
        verdicts.iter().all(|line| line["decision"] == "accept"),
        "{verdicts:?}"
    );
}
