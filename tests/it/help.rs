//! The texts of `--help`, `-h` and `--version`, and what is said to bad usage.

use std::path::Path;

use crate::harness::invoke;

const COMMANDS: [&str; 12] = [
    "run",
    "inspect",
    "verify",
    "engines",
    "engine",
    "warmup",
    "kill",
    "diff",
    "clean",
    "init",
    "schema",
    "completions",
];

fn here(args: &[&str]) -> (i32, String, String) {
    invoke(Path::new("."), args)
}

fn help(args: &[&str]) -> String {
    let (code, stdout, stderr) = here(args);
    assert_eq!((code, stderr.as_str()), (0, ""), "{args:?}");
    stdout
}

#[test]
fn help_of_the_program() {
    insta::assert_snapshot!("help_top_long", help(&["--help"]));
    insta::assert_snapshot!("help_top_short", help(&["-h"]));
}

#[test]
fn help_of_each_command() {
    for command in COMMANDS {
        insta::assert_snapshot!(format!("help_{command}_long"), help(&[command, "--help"]));
        insta::assert_snapshot!(format!("help_{command}_short"), help(&[command, "-h"]));
        assert_eq!(help(&["help", command]), help(&[command, "--help"]), "{command}");
    }
}

#[test]
fn help_of_the_commands_for_engines() {
    for command in ["provision", "up", "status", "drain", "reload", "down", "logs"] {
        insta::assert_snapshot!(
            format!("help_engine_{command}_long"),
            help(&["engine", command, "--help"])
        );
    }
}

#[test]
fn every_command_stands_in_the_help_and_has_a_snapshot() {
    let text = help(&["-h"]);
    let listed: Vec<&str> = text
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert_eq!(listed, COMMANDS);
}

#[test]
fn lines_of_the_longer_texts_fit_a_terminal() {
    for command in COMMANDS {
        let text = help(&[command, "--help"]);
        let long: Vec<&str> = text.lines().filter(|line| line.chars().count() > 110).collect();
        assert!(long.is_empty(), "{command}: {long:#?}");
    }
}

#[test]
fn version_is_name_and_version() {
    let version = format!("chainette {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(help(&["--version"]), version);
    assert_eq!(help(&["-V"]), version);
}

#[test]
fn no_arguments_show_the_help_and_exit_2() {
    let (code, stdout, stderr) = here(&[]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(
        stderr.contains("Usage: chainette") && stderr.contains("Start here:"),
        "{stderr}"
    );
}

#[test]
fn typing_errors_get_a_suggestion() {
    for (args, meant) in [
        (&["rnu"][..], "run"),
        (&["inspekt", "chain.yaml"], "inspect"),
        (&["run", "c", "i", "o", "--overwrit"], "--overwrite"),
        (&["inspect", "c", "--formt", "json"], "--format"),
        (&["inspect", "c", "--format", "jsn"], "json"),
        (&["completions", "bsh"], "bash"),
    ] {
        let (code, stdout, stderr) = here(args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}");
        assert!(stderr.starts_with("error: "), "{args:?}: {stderr}");
        assert!(stderr.contains(&format!("'{meant}'")), "{args:?}: {stderr}");
    }
}

#[test]
fn usage_errors_exit_2_and_say_what_to_do() {
    for args in [
        &["run"][..],
        &["run", "c", "i", "o", "--overwrite", "--resume"],
        &["run", "c", "i", "o", "--max-errors", "many"],
        &["inspect", "c", "--rows", "5"],
        &["inspect", "c", "--input", "x", "--rows", "0"],
        &["engines", "c", "--timeout", "soon"],
        &["diff", "out"],
        &["diff", "a", "b", "--sample", "some"],
        &["completions"],
        &["schema", "surplus"],
    ] {
        let (code, stdout, stderr) = here(args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}");
        assert!(stderr.starts_with("error: "), "{args:?}: {stderr}");
        assert!(stderr.contains("--help"), "{args:?}: {stderr}");
    }
}

#[test]
fn colours_are_for_who_asks() {
    let coloured = |args: &[&str]| {
        let (_, stdout, stderr) = here(args);
        (stdout + &stderr).contains('\u{1b}')
    };
    assert!(coloured(&["--color", "always", "--help"]));
    assert!(coloured(&["--color=always", "nonsense"]));
    assert!(!coloured(&["--color", "never", "--help"]));
    assert!(!coloured(&["--help"]));
    assert!(!coloured(&["nonsense"]));
}

#[test]
fn json_logs_keep_stderr_json() {
    for args in [
        &["--json-logs", "nonsense"][..],
        &["inspect", "--json-logs", "no-such-chain.yaml"],
        &["engines", "--json-logs", "no-such-chain.yaml"],
        &["init", "--json-logs", "/proc/version/x"],
        &["diff", "--json-logs", "no-such-out", "no-such-out"],
    ] {
        let (code, stdout, stderr) = here(args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {stderr}");
        for line in stderr.lines() {
            let line: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
            assert_eq!(line["event"], "error", "{args:?}");
        }
        assert!(!stderr.is_empty(), "{args:?}");
    }
    let (code, stdout, stderr) = here(&["schema", "--json-logs"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(serde_json::from_str::<serde_json::Value>(&stdout).is_ok());
}
