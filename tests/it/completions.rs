//! Completions, and what becomes of a stdout that takes nothing.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{BINARY, folder, invoke};

#[test]
fn bash_completes_commands_and_flags() {
    let (code, script, stderr) = invoke(Path::new("."), &["completions", "bash"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let dir = folder(&[("chainette.bash", &script)]);
    let complete = |words: &[&str]| {
        let list = words
            .iter()
            .map(|w| format!("'{w}'"))
            .collect::<Vec<_>>()
            .join(" ");
        let before = words.len().checked_sub(2).map_or("", |at| words[at]);
        let last = words.last().expect("a word");
        let test = format!(
            "set -eu; source ./chainette.bash; COMP_WORDS=({list}); COMP_CWORD={}; \
             _chainette chainette '{last}' '{before}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words.len() - 1
        );
        let bash = Command::new("bash")
            .current_dir(dir.path())
            .args(["-c", &test])
            .output();
        let bash = bash.expect("bash is installed");
        let errors = String::from_utf8_lossy(&bash.stderr).into_owned();
        assert!(bash.status.success() && errors.is_empty(), "{words:?}: {errors}");
        String::from_utf8_lossy(&bash.stdout).into_owned()
    };
    assert_eq!(complete(&["chainette", "ru"]), "run\n");
    assert_eq!(complete(&["chainette", "run", "--overw"]), "--overwrite\n");
    assert_eq!(
        complete(&["chainette", "inspect", "--format", "mer"]),
        "mermaid\n"
    );
}

#[test]
fn every_shell_gets_a_script() {
    for (shell, mark) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef chainette"),
        ("fish", "complete -c chainette"),
        ("powershell", "Register-ArgumentCompleter"),
        ("elvish", "edit:completion"),
    ] {
        let (code, script, _) = invoke(Path::new("."), &["completions", shell]);
        assert_eq!(code, 0, "{shell}");
        assert!(script.contains(mark) && script.contains("inspect"), "{shell}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    for args in [&["schema"][..], &["completions", "zsh"], &["--help"]] {
        let mut child = Command::new(BINARY)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        drop(child.stdout.take());
        let mut errors = String::new();
        let stderr = child.stderr.as_mut().expect("piped");
        stderr.read_to_string(&mut errors).expect("text");
        let status = child.wait().expect("it ends");
        assert_eq!((status.code(), errors.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn a_full_disk_is_told() {
    let full = fs::File::create("/dev/full").expect("/dev/full is there");
    let output = Command::new(BINARY).arg("schema").stdout(full).output();
    let output = output.expect("the command starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.starts_with("error: cannot write to stdout: "), "{errors}");
}
