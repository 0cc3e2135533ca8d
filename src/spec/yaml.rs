//! YAML as a tree in which every key and value knows its place.
//!
//! Built on the event parser below serde: that keeps spans through anchors, merge keys and block
//! scalars, and numbers as they were written.

use std::collections::HashMap;

use serde_json::{Map, Number, Value};
use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, Span as Mark, StructureStyle};

use super::problem::{Code, Problems, Span};
use super::yaml_error;

/// Values that aliases may add to a document: enough for any chain, too few for an alias bomb.
const MAX_ALIASED: usize = 100_000;
/// Deepest nesting.
const MAX_DEPTH: usize = 128;

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it stands; for an alias, where the alias stands.
    pub span: Span,
    /// What it is.
    pub kind: Yaml,
}

/// A YAML value (core schema).
#[derive(Clone, Debug)]
pub enum Yaml {
    /// `null`, `~` or nothing.
    Null,
    /// A boolean.
    Bool(bool),
    /// A number as it was written.
    Number(String),
    /// A string.
    String(Text),
    /// A list.
    Seq(Vec<Node>),
    /// A mapping in order.
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key.
    pub key: Text,
    /// The value.
    pub value: Node,
}

/// A string and its place.
#[derive(Clone, Debug)]
pub struct Text {
    /// The string.
    pub value: String,
    /// Where it stands.
    pub span: Span,
}

impl Node {
    /// What it is, in words for a message.
    pub fn describe(&self) -> &'static str {
        match &self.kind {
            Yaml::Null => "nothing",
            Yaml::Bool(_) => "a boolean",
            Yaml::Number(_) => "a number",
            Yaml::String(_) => "a string",
            Yaml::Seq(_) => "a list",
            Yaml::Map(_) => "a mapping",
        }
    }

    /// What stands there, for a message: short scalars are shown as they are.
    pub fn found(&self) -> String {
        match &self.kind {
            Yaml::Bool(b) => format!("`{b}`"),
            Yaml::Number(raw) if raw.len() <= 40 => format!("the number {raw}"),
            Yaml::String(text) if text.value.len() <= 40 && !text.value.contains('\n') => {
                format!("the text `{}`", text.value)
            }
            _ => self.describe().to_owned(),
        }
    }

    /// The string, when it is one.
    pub fn as_text(&self) -> Option<&Text> {
        match &self.kind {
            Yaml::String(text) => Some(text),
            _ => None,
        }
    }

    /// The entry with this key.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        match &self.kind {
            Yaml::Map(entries) => entries.iter().find(|e| e.key.value == key),
            _ => None,
        }
    }

    /// The value as JSON.
    pub fn to_json(&self) -> Value {
        match &self.kind {
            Yaml::Null => Value::Null,
            Yaml::Bool(b) => Value::Bool(*b),
            Yaml::Number(raw) => number(raw).map_or_else(|| Value::String(raw.clone()), Value::Number),
            Yaml::String(text) => Value::String(text.value.clone()),
            Yaml::Seq(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Yaml::Map(entries) => Value::Object(
                entries
                    .iter()
                    .map(|e| (e.key.value.clone(), e.value.to_json()))
                    .collect::<Map<_, _>>(),
            ),
        }
    }
}

/// A YAML number as a JSON number.
pub(super) fn number(raw: &str) -> Option<Number> {
    let (sign, digits) = match raw.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", raw.strip_prefix('+').unwrap_or(raw)),
    };
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(digits) = digits.strip_prefix(prefix) {
            return u64::from_str_radix(digits, radix).ok().map(Number::from);
        }
    }
    if digits.bytes().all(|b| b.is_ascii_digit()) {
        let digits = digits.trim_start_matches('0');
        let digits = if digits.is_empty() { "0" } else { digits };
        return serde_json::from_str(&format!("{sign}{digits}")).ok();
    }
    raw.parse().ok().and_then(Number::from_f64)
}

/// Parses one document; a syntax error is noted and gives `None`.
pub(crate) fn parse(file: usize, text: &str, problems: &mut Problems) -> Option<Node> {
    let mut builder = Builder {
        file,
        len: text.len(),
        parser: Parser::new_from_str(text.strip_prefix('\u{feff}').unwrap_or(text)),
        bom: text.len() - text.strip_prefix('\u{feff}').unwrap_or(text).len(),
        anchors: HashMap::new(),
        aliased: 0,
        text,
        problems,
    };
    builder.document()
}

struct Builder<'a, 'p> {
    file: usize,
    len: usize,
    bom: usize,
    parser: Parser<'a, serde_saphyr::granit_parser::StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    aliased: usize,
    text: &'a str,
    problems: &'p mut Problems,
}

impl<'a> Builder<'a, '_> {
    /// The next event; a syntax error is noted and ends the document.
    fn next(&mut self) -> Option<(Event<'a>, Span)> {
        match self.parser.next()? {
            Ok((event, mark)) => {
                let span = self.span(&mark);
                Some((event, span))
            }
            Err(error) => {
                let at = error.marker().byte_offset().unwrap_or(self.len) + self.bom;
                let fault = yaml_error::explain(error.kind(), self.text, at.min(self.len));
                let span = Span {
                    file: self.file,
                    start: fault.at.start,
                    end: fault.at.end,
                };
                self.problems
                    .add(Code::YamlSyntax, span, fault.message)
                    .help(fault.help);
                None
            }
        }
    }

    fn span(&self, mark: &Mark) -> Span {
        Span {
            file: self.file,
            start: mark.start.byte_offset().unwrap_or_default() + self.bom,
            end: mark.end.byte_offset().unwrap_or_default() + self.bom,
        }
    }

    fn fail(&mut self, span: Span, message: &str, help: &str) -> Option<Node> {
        self.problems.add(Code::YamlSyntax, span, message).help(help);
        None
    }

    fn document(&mut self) -> Option<Node> {
        let mut root = None;
        while let Some((event, span)) = self.next() {
            match event {
                Event::StreamStart | Event::DocumentEnd => {}
                Event::DocumentStart(..) if root.is_some() => {
                    return self.fail(
                        span,
                        "a second document begins here; this file must be one YAML document",
                        "remove the `---` line, or move what follows it to a file of its own",
                    );
                }
                Event::DocumentStart(..) => {}
                Event::StreamEnd => {
                    return Some(root.unwrap_or(Node {
                        span: Span {
                            file: self.file,
                            start: 0,
                            end: 0,
                        },
                        kind: Yaml::Null,
                    }));
                }
                event => root = Some(self.node(event, span, 0)?),
            }
        }
        None
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Option<Node> {
        if depth > MAX_DEPTH {
            return self.fail(
                span,
                &format!("nested deeper than {MAX_DEPTH} levels"),
                "write it flatter; branches need two levels each",
            );
        }
        let (anchor, node) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_str = tag.is_some_and(|t| t.is_yaml_core_schema_tag("str"));
                (anchor, scalar(&text, style, is_str, span))
            }
            Event::SequenceStart(_, anchor, _) => (anchor, self.sequence(span, depth)?),
            Event::MappingStart(_, anchor, _) => (anchor, self.mapping(span, depth)?),
            Event::Alias(id) => {
                let Some(mut node) = self.anchors.get(&id).cloned() else {
                    return self.fail(
                        span,
                        "this alias stands inside its own anchor, so its value would never end",
                        "let the alias (`*name`) stand outside of what the anchor (`&name`) marks",
                    );
                };
                self.aliased += size(&node);
                if self.aliased > MAX_ALIASED {
                    return self.fail(
                        span,
                        &format!("the aliases of this file expand to more than {MAX_ALIASED} values"),
                        "write the values out where they are used, or use fewer aliases of aliases",
                    );
                }
                node.span = span;
                (0, node)
            }
            _ => return self.fail(span, "expected a value", "write one, or `null`"),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Some(node)
    }

    fn sequence(&mut self, span: Span, depth: usize) -> Option<Node> {
        let mut items = Vec::new();
        loop {
            let (event, at) = self.next()?;
            if event == Event::SequenceEnd {
                let end = items
                    .last()
                    .map_or(at.end, |last: &Node| last.span.end.max(at.end));
                return Some(Node {
                    span: Span { end, ..span },
                    kind: Yaml::Seq(items),
                });
            }
            items.push(self.node(event, at, depth + 1)?);
        }
    }

    fn mapping(&mut self, span: Span, depth: usize) -> Option<Node> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut merges: Vec<Node> = Vec::new();
        // Each key with its place in the file.
        let mut seen: HashMap<String, usize> = HashMap::new();
        loop {
            let (event, at) = self.next()?;
            if event == Event::MappingEnd {
                for merge in merges {
                    self.merge_into(&mut entries, &mut seen, merge);
                }
                let end = entries
                    .last()
                    .map_or(at.end, |last| last.value.span.end.max(at.end));
                let start = entries
                    .first()
                    .map_or(span.start, |e| e.key.span.start.min(span.start));
                return Some(Node {
                    span: Span { end, start, ..span },
                    kind: Yaml::Map(entries),
                });
            }
            let Event::Scalar(key, style, ..) = event else {
                let is_map = matches!(event, Event::MappingStart(StructureStyle::Flow, ..));
                let fault = yaml_error::bad_key(self.text, at.start, is_map);
                let span = Span {
                    file: self.file,
                    start: fault.at.start,
                    end: fault.at.end,
                };
                return self.fail(span, &fault.message, &fault.help);
            };
            let is_merge = key == "<<" && style == ScalarStyle::Plain;
            let key = Text {
                value: key.into_owned(),
                span: at,
            };
            let (event, at) = self.next()?;
            let value = self.node(event, at, depth + 1)?;
            if is_merge {
                match value.kind {
                    Yaml::Seq(items) => merges.extend(items),
                    _ => merges.push(value),
                }
            } else if let Some(first) = seen.get(&key.value) {
                let line = self.text.get(..*first).unwrap_or_default().matches('\n').count() + 1;
                self.problems
                    .add(
                        Code::YamlSyntax,
                        key.span,
                        format!("the key `{}` stands twice in this mapping", key.value),
                    )
                    .help(format!("the first one is on line {line}; keep one of them"));
            } else {
                seen.insert(key.value.clone(), key.span.start);
                entries.push(Entry { key, value });
            }
        }
    }

    /// `<<: *defaults`: keys that the mapping does not set itself.
    fn merge_into(&mut self, entries: &mut Vec<Entry>, seen: &mut HashMap<String, usize>, merge: Node) {
        let Yaml::Map(more) = merge.kind else {
            self.fail(
                merge.span,
                "`<<` merges a mapping into this one, and this is none",
                "write `<<: *name`, with `&name` before a mapping",
            );
            return;
        };
        for entry in more {
            if !seen.contains_key(&entry.key.value) {
                seen.insert(entry.key.value.clone(), entry.key.span.start);
                entries.push(entry);
            }
        }
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.kind {
        Yaml::Seq(items) => items.iter().map(size).sum(),
        Yaml::Map(entries) => entries.iter().map(|e| 1 + size(&e.value)).sum::<usize>(),
        _ => 0,
    }
}

/// The core schema of YAML 1.2 (§10.3.2): what a plain scalar means.
fn scalar(text: &str, style: ScalarStyle, is_str: bool, span: Span) -> Node {
    let kind = if style != ScalarStyle::Plain || is_str {
        None
    } else {
        match text {
            "" | "~" | "null" | "Null" | "NULL" => Some(Yaml::Null),
            "true" | "True" | "TRUE" => Some(Yaml::Bool(true)),
            "false" | "False" | "FALSE" => Some(Yaml::Bool(false)),
            _ if is_number(text) => Some(Yaml::Number(text.to_owned())),
            _ => None,
        }
    };
    let kind = kind.unwrap_or_else(|| {
        Yaml::String(Text {
            value: text.to_owned(),
            span,
        })
    });
    Node { span, kind }
}

fn is_number(text: &str) -> bool {
    let body = text.strip_prefix(['-', '+']).unwrap_or(text);
    if let Some(hex) = text.strip_prefix("0x") {
        return !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit());
    }
    if let Some(octal) = text.strip_prefix("0o") {
        return !octal.is_empty() && octal.bytes().all(|b| (b'0'..=b'7').contains(&b));
    }
    body.bytes().any(|b| b.is_ascii_digit())
        && body.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && body
            .bytes()
            .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'-' | b'+'))
        && number(text).is_some()
}
