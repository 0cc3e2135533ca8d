//! Reading a mapping by hand: known keys, typed values, and a problem for each that is not.

use std::time::Duration;

use super::problem::{Code, Problems, Span, nearest, suggest};
use super::yaml::{Entry, Node, Text, Yaml, number};

/// A mapping whose keys have been checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'n> {
    node: &'n Node,
    /// What the mapping is, for messages: "a Step", "`sampling`".
    what: &'static str,
    known: &'static [&'static str],
}

impl<'n> Fields<'n> {
    /// Checks that the node is a mapping with known keys only; an empty list of keys allows any.
    pub(super) fn of(
        node: &'n Node,
        what: &'static str,
        known: &'static [&'static str],
        problems: &mut Problems,
    ) -> Option<Self> {
        let Yaml::Map(entries) = &node.kind else {
            problems
                .add(
                    Code::WrongType,
                    node.span,
                    format!("{what} must be a mapping, found {}", node.found()),
                )
                .help(one_of("write keys and values", known));
            return None;
        };
        for entry in entries {
            let key = &entry.key.value;
            if !known.is_empty() && !known.contains(&key.as_str()) {
                problems
                    .add(
                        Code::UnknownKey,
                        entry.key.span,
                        format!("`{key}` is no key of {what}"),
                    )
                    .maybe_help(meant(key, known).or_else(|| suggest(key, known.iter().copied())));
            }
        }
        Some(Self { node, what, known })
    }

    /// Where the mapping stands.
    pub(super) fn span(&self) -> Span {
        self.node.span
    }

    /// Where a missing key is reported: the mapping's first line, not all of it.
    fn head(&self) -> Span {
        match &self.node.kind {
            Yaml::Map(entries) => entries.first().map_or(self.node.span, |e| Span {
                end: e.key.span.end,
                ..self.node.span
            }),
            _ => self.node.span,
        }
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&'n Node> {
        self.node.get(key).map(|e| &e.value)
    }

    /// A key with its value.
    pub(super) fn entry(&self, key: &str) -> Option<&'n Entry> {
        self.node.get(key)
    }

    /// True when the key stands here.
    pub(super) fn has(&self, key: &str) -> bool {
        self.node.get(key).is_some()
    }

    /// True when an unknown key was most likely meant to be this one, which then is no second fault.
    fn is_misspelt(&self, key: &str) -> bool {
        let Yaml::Map(entries) = &self.node.kind else {
            return false;
        };
        let unknown = entries.iter().map(|entry| entry.key.value.as_str());
        unknown
            .filter(|found| !self.known.contains(found))
            .any(|found| nearest(found, self.known.iter().copied()) == Some(key))
    }

    /// The value of a key that must be there.
    pub(super) fn need(&self, key: &str, problems: &mut Problems) -> Option<&'n Node> {
        let found = self.get(key);
        if found.is_none() && !self.is_misspelt(key) {
            problems
                .add(
                    Code::MissingKey,
                    self.head(),
                    format!("{} needs `{key}`", self.what),
                )
                .help(format!("add `{key}: {}`", example(key)));
        }
        found
    }

    /// A string; numbers and booleans are taken as they were written.
    pub(super) fn text(&self, key: &str, problems: &mut Problems) -> Option<Text> {
        text(self.get(key)?, key, problems)
    }

    /// A string that must be there.
    pub(super) fn need_text(&self, key: &str, problems: &mut Problems) -> Option<Text> {
        text(self.need(key, problems)?, key, problems)
    }

    /// A boolean.
    pub(super) fn bool(&self, key: &str, default: bool, problems: &mut Problems) -> bool {
        match self.get(key).map(|n| (&n.kind, n)) {
            None => default,
            Some((Yaml::Bool(b), _)) => *b,
            Some((_, node)) => {
                wrong(key, "true or false", node, problems);
                problems.last().help(format!(
                    "write `{key}: {}` or `{key}: {}`, without quotes",
                    !default, default
                ));
                default
            }
        }
    }

    /// A whole number within bounds.
    pub(super) fn int(&self, key: &str, min: i64, max: i64, problems: &mut Problems) -> Option<i64> {
        let node = self.get(key)?;
        let found = match &node.kind {
            Yaml::Number(raw) => number(raw).and_then(|n| n.as_i64()),
            _ => None,
        };
        let Some(found) = found else {
            wrong(key, "a whole number", node, problems);
            problems
                .last()
                .help(format!("for example `{key}: {}`", example(key)));
            return None;
        };
        if found < min || found > max {
            let message = if max == i64::MAX {
                format!("`{key}` must be at least {min}, found {found}")
            } else {
                format!("`{key}` must be from {min} to {max}, found {found}")
            };
            problems
                .add(Code::BadValue, node.span, message)
                .maybe_help(hint(key));
            return None;
        }
        Some(found)
    }

    /// A number within bounds.
    pub(super) fn float(&self, key: &str, min: f64, max: f64, problems: &mut Problems) -> Option<f64> {
        let node = self.get(key)?;
        let found = match &node.kind {
            Yaml::Number(raw) => number(raw).and_then(|n| n.as_f64()),
            _ => None,
        };
        let Some(found) = found else {
            wrong(key, "a number", node, problems);
            problems
                .last()
                .help(format!("for example `{key}: {}`", example(key)));
            return None;
        };
        if found < min || found > max {
            let message = if max.is_infinite() {
                format!("`{key}` must be at least {min}, found {found}")
            } else {
                format!("`{key}` must be from {min} to {max}, found {found}")
            };
            problems
                .add(Code::BadValue, node.span, message)
                .maybe_help(hint(key));
            return None;
        }
        Some(found)
    }

    /// A list.
    pub(super) fn list(&self, key: &str, problems: &mut Problems) -> Option<&'n [Node]> {
        let node = self.get(key)?;
        match &node.kind {
            Yaml::Seq(items) => Some(items),
            _ => {
                wrong(key, "a list", node, problems);
                problems.last().help(match &node.kind {
                    Yaml::String(text) => format!("write a list of one: `{key}: [{:?}]`", text.value),
                    _ => format!("write `{key}: [...]`, or lines that begin with `- `"),
                });
                None
            }
        }
    }

    /// A time span such as `10s`.
    pub(super) fn duration(&self, key: &str, problems: &mut Problems) -> Option<Duration> {
        let node = self.get(key)?;
        let found = node.as_text().and_then(|t| duration(&t.value));
        if found.is_none() {
            problems
                .add(
                    Code::WrongType,
                    node.span,
                    format!("`{key}` must be a time span above zero, found {}", node.found()),
                )
                .help("write a number with a unit: `500ms`, `10s`, `5min`, `2h`");
        }
        found
    }

    /// A size such as `16MiB`.
    pub(super) fn size(&self, key: &str, problems: &mut Problems) -> Option<u64> {
        let node = self.get(key)?;
        let found = match &node.kind {
            Yaml::Number(raw) => raw.parse().ok().filter(|n| *n > 0),
            Yaml::String(text) => size(&text.value),
            _ => None,
        };
        if found.is_none() {
            problems
                .add(
                    Code::WrongType,
                    node.span,
                    format!("`{key}` must be a size above zero, found {}", node.found()),
                )
                .help("write bytes, or a number with a unit: `64KiB`, `16MiB`, `1GiB`");
        }
        found
    }
}

/// Notes that a value has the wrong type.
pub(super) fn wrong(key: &str, expected: &str, node: &Node, problems: &mut Problems) {
    problems.add(
        Code::WrongType,
        node.span,
        format!("`{key}` must be {expected}, found {}", node.found()),
    );
}

/// A string; numbers and booleans are taken as they were written.
pub(super) fn text(node: &Node, key: &str, problems: &mut Problems) -> Option<Text> {
    let value = match &node.kind {
        Yaml::String(text) => return Some(text.clone()),
        Yaml::Number(raw) => raw.clone(),
        Yaml::Bool(b) => b.to_string(),
        _ => {
            wrong(key, "a text", node, problems);
            problems.last().help(match &node.kind {
                Yaml::Map(_) => "put quotes around text that starts with `{` or holds `: `",
                Yaml::Seq(_) => "put quotes around text that starts with `[` or `- `",
                _ => "write a text behind the `:`",
            });
            return None;
        }
    };
    Some(Text {
        value,
        span: node.span,
    })
}

fn split_unit(text: &str) -> Option<(f64, &str)> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (digits, unit) = text.split_at_checked(at)?;
    Some((digits.parse().ok()?, unit.trim_start()))
}

/// A time span such as `10s`, above zero.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let (n, unit) = split_unit(text.trim())?;
    let seconds = match unit {
        "ms" => n / 1000.0,
        "s" => n,
        "min" => n * 60.0,
        "h" => n * 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(seconds).ok().filter(|d| !d.is_zero())
}

fn size(text: &str) -> Option<u64> {
    let (n, unit) = split_unit(text.trim())?;
    let factor = match unit {
        "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        "kB" | "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => return None,
    };
    let bytes = n * factor;
    (1.0..1e18).contains(&bytes).then_some(bytes as u64)
}

/// An example of a value, for the help texts.
fn example(key: &str) -> &'static str {
    match key {
        "id" | "branch" => "some_name",
        "user_prompt" => "\"...\"",
        "input" => "\"{{ text }}\"",
        "backend" => "openai",
        "model" => "qwen2.5-7b-instruct",
        "steps" | "parallel" => "[...]",
        "temperature" => "0.7",
        "top_p" => "0.9",
        "max_tokens" | "batch_size" => "256",
        "engines" => "{...}",
        "seed" => "7",
        "concurrency" => "64",
        "output" | "transport" => "2",
        "port" => "8080",
        "replicas" | "tensor_parallel_size" => "2",
        "context" | "max_model_len" => "4096",
        "gpu_memory_utilization" => "0.9",
        "rpm" => "500",
        "tpm" => "100000",
        "engine" => "llamacpp",
        _ => "...",
    }
}

/// What to write instead of a number out of range, where leaving it out is a choice.
fn hint(key: &str) -> Option<String> {
    let hint = match key {
        "temperature" => "0 for the likeliest reply; leave it out for the server's own default",
        "top_p" => "1 for all tokens; leave it out for the server's own default",
        "max_tokens" => "leave it out for replies as long as the server allows",
        "batch_size" => "leave it out for the default, 256",
        "transport" | "output" => "0 never asks again",
        _ => "write a number in this range, or leave the key out for its default",
    };
    Some(hint.to_owned())
}

/// A help text, with the keys there are to choose from.
fn one_of(help: &str, known: &[&str]) -> String {
    if known.is_empty() {
        return help.to_owned();
    }
    let known: Vec<String> = known.iter().take(6).map(|k| format!("`{k}`")).collect();
    format!("{help}, such as {}", known.join(", "))
}

/// What somebody means who writes a key that belongs elsewhere, or that another tool uses.
fn meant(key: &str, known: &[&str]) -> Option<String> {
    let has = |wanted: &str| known.contains(&wanted);
    let embeds = has("input") && !has("user_prompt");
    let other = match key {
        "user_prompt" | "prompt" | "user" | "template" | "text" if embeds => "input",
        "system_prompt" | "system" | "instructions" if embeds => {
            return Some("a model that embeds reads one text: put this before it, into `input`".to_owned());
        }
        "output_model" | "schema" | "output" if embeds => {
            return Some("leave it out: the output is `{embedding: [number, ...]}`".to_owned());
        }
        "sampling" if embeds => {
            return Some("leave it out: nothing is sampled where a text is embedded".to_owned());
        }
        "input" if has("user_prompt") && !has(key) => {
            return Some(
                "with `task: embed` a Step embeds its `input`; one that generates text has a `user_prompt`"
                    .to_owned(),
            );
        }
        "prompt" | "user" | "template" if has("user_prompt") => "user_prompt",
        "system" | "instructions" if has("system_prompt") => "system_prompt",
        "name" if has("id") => "id",
        "name" | "id" if has("branch") => "branch",
        "if" | "condition" if has("when") => "when",
        "schema" | "output" | "output_schema" | "response_model" if has("output_model") => "output_model",
        "url" | "base_url" | "api_base" | "address" if has("endpoint") => "endpoint",
        "api_key" | "key" | "token" if has("api_key_env") => {
            return Some(
                "a secret never stands in a chain: name its environment variable with `api_key_env`"
                    .to_owned(),
            );
        }
        "temperature" | "max_tokens" | "top_p" | "stop" | "seed" | "top_k" if has("sampling") => {
            return Some(format!("it belongs below `sampling`: `sampling: {{{key}: ...}}`"));
        }
        "model" if has("user_prompt") => {
            return Some("a Step names its `engine`, and the engine its model".to_owned());
        }
        "join" | "collect" if !has(key) => {
            return Some(format!(
                "only a branch has `{key}`: `- {{branch: NAME, join: NAME, steps: [...]}}`"
            ));
        }
        "system_prompt" | "user_prompt" | "sampling" | "retries" | "on_error"
            if has("apply") && !has(key) =>
        {
            return Some(format!("only a Step (an item with `engine`) has `{key}`"));
        }
        "id" | "output_model" | "engine" | "user_prompt" if has("parallel") || has("branch") => {
            return Some("a group or branch holds items; put this into an item of `steps`".to_owned());
        }
        _ => return None,
    };
    Some(format!("did you mean `{other}`?"))
}
