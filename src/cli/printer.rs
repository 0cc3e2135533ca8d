//! What may be shown where.

use std::ffi::OsStr;
use std::io::{IsTerminal, Write};
use std::sync::mpsc::channel;
use std::time::Duration;

use serde_json::json;

use super::Exit;
use super::args::{Color, Global};
use crate::clock::Clock;
use crate::plan::Style;
use crate::report::say;
use crate::run::rfc3339;

/// How long a line may wait for whoever should read it.
const PATIENCE: Duration = Duration::from_secs(2);

/// The capability to print: what `--quiet` or `--json-logs` rule out goes nowhere, without an `if` at
/// the caller. A stderr that is closed, or full and never read, holds nobody up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printer {
    quiet: bool,
    json: bool,
    /// Colours and box drawing for diagnostics on stderr.
    pub(crate) fancy: bool,
}

impl Printer {
    pub(crate) fn new(global: &Global) -> Self {
        Self {
            quiet: global.quiet,
            json: global.json_logs,
            fancy: is_colourful(global.color, &std::io::stderr()) && !global.json_logs,
        }
    }

    /// For arguments that could not be understood.
    pub(crate) fn of_raw_arguments() -> Self {
        let json = std::env::args_os().any(|arg| arg == OsStr::new("--json-logs"));
        Self {
            quiet: false,
            json,
            fancy: is_colourful(raw_color(), &std::io::stderr()) && !json,
        }
    }

    /// Help or the version, on stdout.
    pub(crate) fn help(self, text: &clap::builder::StyledStr) -> Exit {
        self.result(&if is_colourful(raw_color(), &std::io::stdout()) {
            text.ansi().to_string()
        } else {
            text.to_string()
        })
    }

    /// What was asked for, on stdout.
    pub(crate) fn result(self, text: &str) -> Exit {
        let mut stdout = std::io::stdout().lock();
        let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        match written {
            // A reader that closed the pipe has seen enough.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                self.error(&format!("error: cannot write to stdout: {error}"));
                Exit::Failed
            }
            _ => Exit::Done,
        }
    }

    /// Something good to know, on stderr.
    pub(crate) fn notice(self, text: &str) {
        if !self.quiet && !self.json {
            say_in_time(text.to_owned());
        }
    }

    /// Something that should be looked at though it stops nothing; with `--json-logs` as a JSON line.
    pub(crate) fn warning(self, text: &str) {
        if self.json {
            say_in_time(json_line("warning", text));
        } else {
            self.notice(text);
        }
    }

    /// What is wrong with a chain; with `--json-logs` a JSON line for each problem.
    pub(crate) fn problems(self, report: &crate::plan::Report) {
        let style = if self.fancy { Style::Color } else { Style::Plain };
        let fails = report.problems().iter().any(|problem| !problem.code.is_warning());
        if self.json {
            for (event, fields) in report.events() {
                let mut line = json!({"ts": rfc3339(Clock::now()), "event": event});
                if let (Some(line), serde_json::Value::Object(fields)) = (line.as_object_mut(), fields) {
                    line.extend(fields);
                }
                say_in_time(line.to_string());
            }
        } else if fails {
            self.error(&report.render(style));
        } else {
            self.warning(&report.render(style));
        }
    }

    /// An event: a line of text, if it is worth one; with `--json-logs` the event.
    pub(crate) fn report(self, text: Option<&str>, event: &serde_json::Value) {
        match (self.json, text) {
            (true, _) if self.quiet => {}
            (true, _) => say_in_time(event.to_string()),
            (false, Some(text)) => self.notice(text),
            (false, None) => {}
        }
    }

    /// An error, on stderr; with `--json-logs` as a JSON line.
    pub(crate) fn error(self, text: &str) {
        say_in_time(if self.json {
            // The event says that it is one.
            json_line("error", text.strip_prefix("error: ").unwrap_or(text))
        } else {
            text.to_owned()
        });
    }
}

pub(super) fn is_colourful(choice: Color, stream: &impl IsTerminal) -> bool {
    match choice {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => {
            let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
            stream.is_terminal()
                && !is_dumb
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        }
    }
}

/// `--color` of arguments that nobody has parsed.
fn raw_color() -> Color {
    let args: Vec<_> = std::env::args_os().collect();
    let after = args.iter().skip_while(|arg| *arg != "--color").nth(1);
    let is = |choice: &str| {
        after.is_some_and(|arg| arg == choice) || args.iter().any(|arg| *arg == *format!("--color={choice}"))
    };
    match () {
        () if is("always") => Color::Always,
        () if is("never") => Color::Never,
        () => Color::Auto,
    }
}

fn json_line(event: &str, text: &str) -> String {
    let ts = rfc3339(Clock::now());
    json!({"ts": ts, "event": event, "message": text.trim_end()}).to_string()
}

fn say_in_time(text: String) {
    let (done, said) = channel();
    let saying = std::thread::Builder::new().spawn(move || {
        say(&text);
        let _nobody_waits = done.send(());
    });
    if saying.is_ok() {
        let _late = said.recv_timeout(PATIENCE);
    }
}

/// Developer logs as JSON lines, one per write.
#[derive(Debug)]
pub(super) struct LogLines;

impl Write for LogLines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        say(&json_line("log", &String::from_utf8_lossy(bytes)));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
