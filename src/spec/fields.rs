//! Reading a mapping by hand: known keys, typed values, and a problem for each that is not.

use std::time::Duration;

use super::problem::{Code, Problems, Span, suggest};
use super::yaml::{Node, Text, Yaml, number};

/// A mapping whose keys have been checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'n> {
    node: &'n Node,
    /// What the mapping is, for messages: "a Step", "`sampling`".
    what: &'static str,
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
            problems.add(
                Code::WrongType,
                node.span,
                format!("{what} must be a mapping, found {}", node.describe()),
            );
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
                    .maybe_help(suggest(key, known.iter().copied()));
            }
        }
        Some(Self { node, what })
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

    /// True when the key stands here.
    pub(super) fn has(&self, key: &str) -> bool {
        self.node.get(key).is_some()
    }

    /// The value of a key that must be there.
    pub(super) fn need(&self, key: &str, problems: &mut Problems) -> Option<&'n Node> {
        let found = self.get(key);
        if found.is_none() {
            problems.add(
                Code::MissingKey,
                self.head(),
                format!("{} needs `{key}`", self.what),
            );
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
            return None;
        };
        if found < min || found > max {
            let message = if max == i64::MAX {
                format!("`{key}` must be at least {min}")
            } else {
                format!("`{key}` must be from {min} to {max}")
            };
            problems.add(Code::BadValue, node.span, message);
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
            return None;
        };
        if found < min || found > max {
            let message = if max.is_infinite() {
                format!("`{key}` must be at least {min}")
            } else {
                format!("`{key}` must be from {min} to {max}")
            };
            problems.add(Code::BadValue, node.span, message);
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
                    format!("`{key}` must be a time span above zero"),
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
                    format!("`{key}` must be a size above zero"),
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
        format!("`{key}` must be {expected}, found {}", node.describe()),
    );
}

/// A string; numbers and booleans are taken as they were written.
pub(super) fn text(node: &Node, key: &str, problems: &mut Problems) -> Option<Text> {
    let value = match &node.kind {
        Yaml::String(text) => return Some(text.clone()),
        Yaml::Number(raw) => raw.clone(),
        Yaml::Bool(b) => b.to_string(),
        _ => {
            wrong(key, "a string", node, problems);
            if matches!(&node.kind, Yaml::Map(_)) {
                problems
                    .last()
                    .help("put quotes around text that starts with `{`");
            }
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
