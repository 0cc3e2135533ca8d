//! `chainette init`.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::{BINARY, folder, invoke, listing};

/// Runs the command that `init` printed, as a shell would.
fn run_next(dir: &Path, stdout: &str) -> (i32, String) {
    let next = stdout
        .lines()
        .find_map(|line| line.strip_prefix("next: chainette "));
    let next = next.unwrap_or_else(|| panic!("no next command in {stdout}"));
    let shell = format!("\"$CHAINETTE\" {next}");
    let output = Command::new("sh")
        .current_dir(dir)
        .args(["-c", &shell])
        .env("CHAINETTE", BINARY)
        .output()
        .expect("sh is installed");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), errors)
}

#[test]
fn what_init_writes_runs_at_once() {
    for name in ["demo", "a b's/deep", "-x", "."] {
        let dir = folder(&[]);
        let (code, stdout, stderr) = invoke(dir.path(), &["init", "--", name]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{name}");
        let made = dir.path().join(name);
        let files = ["chain.yaml", "inputs.jsonl", "chain.schema.json", ".gitignore"];
        assert_eq!(listing(&made), files.map(str::to_owned).into());
        for file in files {
            assert!(stdout.contains(file), "{name}: {stdout}");
        }
        let (code, errors) = run_next(dir.path(), &stdout);
        assert_eq!(code, 0, "{name}: {errors}");
        let rows = fs::read_to_string(made.join("out/flattened/000.jsonl")).expect("the outputs");
        assert_eq!(rows.lines().count(), 4, "{rows}");
    }
}

#[test]
fn the_starter_chain_is_good_in_every_way() {
    let dir = folder(&[]);
    assert_eq!(invoke(dir.path(), &["init"]).0, 0);
    let text = fs::read_to_string(dir.path().join("chain.yaml")).expect("the chain");
    assert!(text.starts_with("# yaml-language-server: $schema=chain.schema.json\n"));
    let (code, _, stderr) = invoke(dir.path(), &["inspect", "chain.yaml", "--input", "inputs.jsonl"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    // Without the `#` its Step is part of it; prose has a blank after the `#`.
    let switched: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') || rest.starts_with("  ") => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .map(|line| {
            if line.starts_with("   chainette") {
                String::new()
            } else {
                line
            }
        })
        .collect();
    fs::write(dir.path().join("chain.yaml"), &switched).expect("writable");
    let (code, stdout, stderr) = invoke(dir.path(), &["inspect", "chain.yaml", "--input", "inputs.jsonl"]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{switched}");
    assert!(stdout.contains("sentiment  4 rows: 4 prompts"), "{stdout}");
    let schema = fs::read_to_string(dir.path().join("chain.schema.json")).expect("the schema");
    let schema = serde_json::from_str(&schema).expect("JSON");
    for text in [text, switched] {
        let value: Value = serde_saphyr::from_str(&text).expect("YAML");
        assert!(jsonschema::is_valid(&schema, &value), "{value}");
    }
}

#[test]
fn init_overwrites_nothing() {
    let dir = folder(&[("inputs.jsonl", "mine\n"), (".gitignore", "target\n")]);
    let (code, stdout, stderr) = invoke(dir.path(), &["init"]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    insta::assert_snapshot!(stderr, @r"
    error: there already: inputs.jsonl; nothing was written
      give another folder: chainette init DIR
    ");
    assert_eq!(listing(dir.path()).len(), 2, "nothing was written");
    fs::remove_file(dir.path().join("inputs.jsonl")).expect("removable");
    let (code, stdout, _) = invoke(dir.path(), &["init"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("add out/ to it"), "{stdout}");
    let ignored = fs::read_to_string(dir.path().join(".gitignore")).expect("the file");
    assert_eq!(ignored, "target\n");
    // A link to nowhere is not followed.
    let linked = folder(&[]);
    std::os::unix::fs::symlink("/nowhere/at/all", linked.path().join("chain.yaml")).expect("a link");
    assert_eq!(invoke(linked.path(), &["init"]).0, 2);
    // A file where the folder should be.
    let (code, _, stderr) = invoke(dir.path(), &["init", "inputs.jsonl/x"]);
    assert_eq!(code, 2);
    assert!(
        stderr.starts_with("error: cannot create inputs.jsonl/x: "),
        "{stderr}"
    );
}
