//! Every line that is written matches the JSON Schema of its folder in `graph.json`, and those schemas type Parquet.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::{Bench, Ran};
use crate::server::{Answer, Asked, Dice, TestServer, answer_from_schema, sample};
use crate::verify;

/// Checks the lines of every node and of `flattened/`; how many there are.
pub fn check(out: &Path) -> Result<usize, String> {
    let read = |path: &Path| fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()));
    let graph: Value = serde_json::from_str(&read(&out.join("graph.json"))?).map_err(|e| e.to_string())?;
    let schemas = &graph["schemas"];
    let nodes = schemas["nodes"].as_object().ok_or("no schemas of nodes")?.iter();
    let all = nodes
        .map(|(name, schema)| (name.as_str(), schema))
        .chain([("flattened", &schemas["flattened"])]);
    let mut lines = 0;
    for (folder, schema) in all {
        jsonschema::meta::validate(schema).map_err(|error| format!("the schema of {folder}/: {error}"))?;
        let validator = jsonschema::validator_for(schema).map_err(|error| error.to_string())?;
        let Ok(entries) = fs::read_dir(out.join(folder)) else {
            continue;
        };
        for entry in entries {
            let path = entry.map_err(|error| error.to_string())?.path();
            for line in read(&path)?.lines() {
                let value = serde_json::from_str(line).map_err(|error| error.to_string())?;
                if let Some(error) = validator.iter_errors(&value).next() {
                    return Err(format!(
                        "{}: {error} at {}\n{line}",
                        path.display(),
                        error.instance_path()
                    ));
                }
                lines += 1;
            }
        }
    }
    Ok(lines)
}

/// A random value of the schema that was asked for.
fn answer(asked: &Asked) -> Answer {
    if asked.input().is_some() {
        return answer_from_schema(asked);
    }
    let mut dice = Dice::new(&asked.digest);
    Answer::text(match asked.schema() {
        Some(schema) => sample(schema, schema, &mut dice, 0).to_string(),
        None => dice.words(6),
    })
}

fn chains() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found: Vec<PathBuf> = ["chains", "tests/chains/ok"]
        .iter()
        .flat_map(|dir| fs::read_dir(root.join(dir)).expect("the folder is there"))
        .map(|entry| entry.expect("a folder entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    found.sort();
    found
}

fn copy_schemas(bench: &Bench) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chains/ok/schemas");
    fs::create_dir_all(bench.dir.path().join("schemas")).expect("a folder can be made");
    for entry in fs::read_dir(from).expect("the folder is there") {
        let path = entry.expect("a folder entry").path();
        let name = path
            .file_name()
            .expect("it has a name")
            .to_string_lossy()
            .into_owned();
        bench.write(
            &format!("schemas/{name}"),
            fs::read(&path).expect("a file can be read"),
        );
    }
}

/// The rows of the input that the head of a chain file names.
fn said_input(chain: &str) -> Option<String> {
    let name = chain
        .split_whitespace()
        .find(|word| word.starts_with("examples/") && word.ends_with(".jsonl"))?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    Some(fs::read_to_string(path).expect("the example is there"))
}

/// Another endpoint in a chain file.
fn at(text: &str, url: &str) -> String {
    [
        "http://127.0.0.1:8000/v1",
        "http://127.0.0.1:8080/v1",
        "http://h/v1",
    ]
    .iter()
    .fold(text.to_owned(), |text, old| text.replace(old, url))
    .replace(
        "../examples/models",
        concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models"),
    )
}

#[test]
fn lines_match_their_schemas_and_fit_their_columns() {
    let server = TestServer::start(answer);
    let mut seen = 0;
    for path in chains() {
        let name = path.display();
        let text = fs::read_to_string(&path).expect("a chain can be read");
        // Engines that are started need their programs: `served`, `warm` and tests/real have them.
        if text.contains("python:") || text.contains("command:") || path.ends_with("started.yaml") {
            continue;
        }
        let input = said_input(&text).unwrap_or_else(|| {
            (0..40)
                .map(|n| format!("{{\"text\":\"a long review, number {n}, of wonderful shoes\",\"lines\":[\"x\",\"y\"],\"stars\":{}}}\n", n % 6))
                .collect()
        });
        let bench = Bench::new(&at(&text, &server.url()), input);
        copy_schemas(&bench);
        let run = |extra: &[&str]| -> Ran {
            let mut command = bench.command(extra);
            command.env("OPENAI_API_KEY", "sk-test");
            let output = command.output().expect("the command starts");
            bench.ran(&output)
        };
        let ran = run(&["--max-errors", "100%"]);
        assert!(matches!(ran.code, 0 | 3), "{name}: {}", ran.stderr);
        let flattened = ran.lines("flattened").len();
        assert!(flattened > 0, "{name}: {}", ran.stderr);
        let lines = check(&ran.out).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(lines > flattened, "{name}: {lines} lines");
        verify::proven(&ran.out).unwrap_or_else(|error| panic!("{name}: {error}"));
        seen += 1;

        let ran = run(&[
            "--max-errors",
            "100%",
            "--overwrite",
            "--format",
            "parquet",
            "--json-logs",
        ]);
        assert!(matches!(ran.code, 0 | 3), "{name}: {}", ran.stderr);
        assert!(!ran.stderr.contains("\"warning\""), "{name}: {}", ran.stderr);
        verify::proven(&ran.out).unwrap_or_else(|error| panic!("{name} as Parquet: {error}"));
    }
    assert!(seen >= 7, "only {seen} chains");
}
