//! What the README tells its readers to type and to write.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::demos::copied;
use crate::harness::{BINARY, invoke};
use crate::server::{TestServer, answer_from_schema};

const README: &str = include_str!("../../README.md");

/// The fenced blocks of a language, in order.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    let starts = README.match_indices(&fence).map(|(at, _)| at + fence.len());
    starts
        .map(|start| {
            let block = &README[start..];
            block.split_once("```").expect("a fence is closed").0
        })
        .collect()
}

/// The commands that need neither cargo nor a server that is started by hand.
fn commands() -> Vec<&'static str> {
    let lines = blocks("sh").into_iter().flat_map(str::lines);
    lines
        .filter(|line| !line.starts_with("cargo ") && !line.starts_with("llama-server "))
        .collect()
}

/// A folder with what a clone has, a home, and the chain that the README has its reader write.
fn clone(server: &TestServer) -> tempfile::TempDir {
    let dir = copied(server);
    for home in [
        ".local/share/bash-completion/completions",
        ".zfunc",
        ".config/fish/completions",
    ] {
        fs::create_dir_all(dir.path().join(home)).expect("a folder can be made");
    }
    dir
}

/// `demo/grade.yaml` of the README.
fn grade() -> &'static str {
    let chain = blocks("yaml")
        .into_iter()
        .find(|block| block.contains("\nname: grade\n"));
    chain.expect("the chain from scratch")
}

/// As typed into a shell that finds `chainette`.
fn typed(dir: &Path, line: &str) {
    let path = Path::new(BINARY).parent().expect("the command lies in a folder");
    let path = format!("{}:{}", path.display(), std::env::var("PATH").expect("a PATH"));
    let output = Command::new("bash")
        .args(["-c", line])
        .current_dir(dir)
        .env("PATH", path)
        .env("HOME", dir)
        .output()
        .expect("bash is installed");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}\n{}\n{stderr}", output.status);
}

#[test]
fn every_command_runs() {
    let server = TestServer::start(answer_from_schema);
    let dir = clone(&server);
    let commands = commands();
    assert!(commands.len() >= 12, "{commands:?}");
    for line in commands {
        // The chain is written by hand between `init` and this.
        if line.contains("grade.yaml") {
            fs::write(dir.path().join("demo/grade.yaml"), grade()).expect("demo/ is there");
        }
        typed(dir.path(), line);
    }
    let graded = fs::read_to_string(dir.path().join("demo/graded/flattened/000.jsonl"));
    assert_eq!(graded.expect("the outputs").lines().count(), 5);
}

#[test]
fn the_typo_is_told_as_it_says() {
    let dir = tempfile::tempdir().expect("a folder can be made");
    let typo = grade().replace("branch: short", "brunch: short");
    fs::create_dir(dir.path().join("demo")).expect("a folder can be made");
    fs::write(dir.path().join("demo/grade.yaml"), typo).expect("a file can be written");
    let (code, _, stderr) = invoke(dir.path(), &["inspect", "demo/grade.yaml"]);
    let shown = blocks("text")
        .into_iter()
        .find(|block| block.starts_with("unknown_key"));
    assert_eq!(
        (code, stderr),
        (2, format!("{}\n1 error\n", shown.expect("the typo")))
    );
}

#[test]
fn the_python_function_is_one() {
    let dir = tempfile::tempdir().expect("a folder can be made");
    let function = blocks("python").first().copied().expect("a function");
    let item = README.split("`- {id: clean, ").nth(1).expect("how it is named");
    let item = item.split('`').next().expect("it ends");
    let chain = format!("name: t\nsteps:\n  - {{id: clean, {item}\n");
    for (name, text) in [
        ("clean.py", function),
        ("chain.yaml", chain.as_str()),
        ("in.jsonl", "{\"text\": \" a \"}\n"),
    ] {
        fs::write(dir.path().join(name), text).expect("a file can be written");
    }
    let (code, _, stderr) = invoke(dir.path(), &["run", "chain.yaml", "in.jsonl", "out", "--quiet"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let rows = fs::read_to_string(dir.path().join("out/clean/000.jsonl")).expect("the outputs");
    assert_eq!(rows, "{\"row_id\":\"0\",\"text\":\"a\"}\n");
}

/// A chain that stands in the README and in chains/ is the same in both.
#[test]
fn the_chains_are_those_in_chains() {
    let shown = blocks("yaml")
        .into_iter()
        .find(|block| block.starts_with("name: sentiment\n"));
    let file = fs::read_to_string("chains/sentiment.yaml").expect("the chain is there");
    let file: String = file
        .lines()
        .skip_while(|line| line.starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(shown, Some(file.as_str()));
}

/// Every file and every place that is named is there.
#[test]
fn what_it_points_to_is_there() {
    let named = README.split('`').skip(1).step_by(2);
    let paths = named.filter(|word| {
        ["chains/", "examples/", "tests/", "benches/", "src/"]
            .iter()
            .any(|dir| word.starts_with(dir))
    });
    let missing: Vec<&str> = paths.filter(|path| !Path::new(path).exists()).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let heads: Vec<String> = README
        .lines()
        .filter_map(|line| {
            line.trim_start_matches('#')
                .strip_prefix(' ')
                .filter(|_| line.starts_with('#'))
        })
        .map(anchor)
        .collect();
    let links = README
        .split("](#")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    let broken: Vec<&str> = links
        .filter(|link| !heads.iter().any(|head| head == link))
        .collect();
    assert!(broken.is_empty(), "{broken:?}");
}

/// A heading as its link has it.
fn anchor(head: &str) -> String {
    let kept = head
        .chars()
        .filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-');
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() })
        .collect()
}
