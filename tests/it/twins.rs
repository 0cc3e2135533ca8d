//! The reference interpreter's expressions: a plain Rust twin of every jq program, template, condition and model that
//! `gen.rs` can write, the Step loop, and JSON as text.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::generate::{self, Apply, From, Means, Model, Prompt, Reply, Step, When};

/// Field names with their values as raw JSON, and the text they came as when nothing has changed it since.
#[derive(Clone, Debug, Default)]
pub struct Record {
    fields: IndexMap<String, String>,
    text: Option<String>,
}

impl Record {
    /// Sets a field.
    pub fn set(&mut self, key: &str, value: String) {
        self.text = None;
        self.fields.insert(key.into(), value);
    }
}

impl std::ops::Deref for Record {
    type Target = IndexMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.fields
    }
}

impl FromIterator<(String, String)> for Record {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(fields: T) -> Self {
        Self {
            fields: fields.into_iter().collect(),
            text: None,
        }
    }
}

/// A row's id.
pub type Id = Vec<u64>;

/// Kind, attempts, reply.
pub type Failure = (&'static str, Option<u32>, Option<String>);

/// The engine: (system prompt, user prompt, after a bad reply, token limit).
pub type AnswerFn = dyn Fn(&str, &str, bool, u64) -> Reply;

/// What a name holds.
#[derive(Clone)]
pub enum Named {
    Null,
    Record(Record),
    List(Vec<Record>),
}

/// A row on its way.
#[derive(Clone)]
pub struct Row {
    pub id: Id,
    pub input: Record,
    pub item: Record,
    pub names: BTreeMap<String, Named>,
    /// A node emitted on this row's own line since the branch began.
    pub emitted: bool,
}

/// None: the condition is an error.
pub fn when(when: Option<&When>, row: &Row) -> Option<bool> {
    Some(match when {
        None => true,
        Some(When::Above(k)) => parse(row.input.get("n")?).as_i64()? > *k,
        Some(When::Name(name)) => truthy(row.names.get(name)?),
        Some(When::NotName(name)) => !truthy(row.names.get(name)?),
        Some(When::LabelIsA(name)) => match row.names.get(name)? {
            Named::Record(record) => record.get("label")? == "\"a\"",
            Named::Null | Named::List(_) => return None,
        },
    })
}

/// None: the template is an error.
fn prompt(prompt: &Prompt, row: &Row) -> Option<String> {
    let text = |record: &Record| parse(record.get("text")?).as_str().map(str::to_owned);
    Some(match prompt {
        Prompt::Text => format!("T {}", text(&row.input)?),
        Prompt::RowId => format!("R {}", print_id(&row.id)),
        Prompt::ItemText => format!("I {}", text(&row.item)?),
        Prompt::BareText => format!("B {}", text(&row.item)?),
        Prompt::NameText(name) => match row.names.get(name)? {
            Named::Record(record) => format!("N {}", text(record)?),
            Named::Null | Named::List(_) => return None,
        },
        Prompt::Guarded(name) if truthy(row.names.get(name)?) => match parse(row.input.get("n")?) {
            Value::Null => return None,
            Value::String(n) => format!("G {n}"),
            n => format!("G {n}"),
        },
        Prompt::Guarded(_) => "none".into(),
    })
}

/// What a process gives back is printed anew; what jq lets through whole is the text that went in.
pub fn apply(apply: &Apply, means: Means, row: &Row) -> Result<Vec<Record>, Failure> {
    let anew = |record: Record| record.iter().map(|(k, v)| (k.clone(), canonical(v))).collect();
    let outputs = outputs(apply, row)?.into_iter();
    Ok(match means {
        Means::Jq => outputs.collect(),
        Means::Python(_) | Means::Command(_) => outputs.map(anew).collect(),
    })
}

fn outputs(apply: &Apply, row: &Row) -> Result<Vec<Record>, Failure> {
    let item: Record = row.item.iter().map(|(k, v)| (k.clone(), canonical(v))).collect();
    let get = |record: &Record, key: &str| record.get(key).map_or("null".to_owned(), |v| canonical(v));
    let raw = |from: &From| get(if *from == From::Item { &item } else { &row.input }, "n");
    let bad = ("apply", None, None);
    let n = |from: &From| parse(&raw(from)).as_i64().ok_or(bad.clone());
    let with = |key: &str, value: String| {
        let mut record = item.clone();
        record.set(key, value);
        record
    };
    let object =
        |fields: &[(&str, String)]| fields.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    Ok(match apply {
        // An item that comes out whole is the text that went in; one that is built anew is printed by jq.
        Apply::Identity => vec![row.item.clone()],
        Apply::AddK => vec![with("k", "1".into())],
        Apply::Even(from) if n(from)? % 2 == 0 => vec![row.item.clone()],
        Apply::Even(_) | Apply::Empty => Vec::new(),
        Apply::PickChecked(from) if n(from).is_err() => return Err(("invalid_output", None, None)),
        Apply::Pick(from) | Apply::PickChecked(from) => vec![object(&[("a", raw(from))])],
        Apply::Fan(from) => (0..n(from)? % 3).map(|i| with("i", i.to_string())).collect(),
        Apply::Bad(from) if n(from)? % 5 == 0 => return Err(bad),
        Apply::BadLate(from) if n(from)? % 4 == 0 => return Err(bad),
        Apply::Bad(_) | Apply::BadLate(_) => vec![row.item.clone()],
        Apply::Number(from) => vec![object(&[("value", raw(from))])],
        Apply::Twice => vec![row.item.clone(), object(&[("first", get(&item, "text"))])],
        Apply::RowId => vec![object(&[
            ("row_id", quote(&print_id(&row.id))),
            ("text", get(&item, "text")),
        ])],
        Apply::Input => {
            vec![object(
                &[("p", "price"), ("b", "big"), ("o", "obj")].map(|(k, f)| (k, get(&row.input, f))),
            )]
        }
        Apply::Vars => vec![with("tone", quote("calm"))],
        Apply::Whole => match parse(&raw(&From::Item)) {
            Value::Number(n) => vec![with("n", n.to_string())],
            Value::String(n) if n.parse::<i64>().is_ok() => vec![with("n", n)],
            _ => return Err(bad),
        },
        Apply::Row(name) => {
            let value = match row.names.get(name) {
                Some(Named::Record(record)) => canonical(&print_record(record)),
                Some(Named::List(list)) => canonical(&print_list(list)),
                Some(Named::Null) | None => "null".into(),
            };
            vec![object(&[
                ("r", value),
                ("text", get(&item, "text")),
                ("n", get(&row.input, "n")),
            ])]
        }
    })
}

pub fn step(id: &str, step: &Step, row: &Row, answer: &AnswerFn) -> Result<Record, Failure> {
    let user = prompt(&step.prompt, row).ok_or(("template", None, None))?;
    if step.model == Model::Vector {
        return embed(step, &user);
    }
    let system = format!("{} {:?} calm", id, step.model);
    let (mut got, mut bad, mut cuts, mut runaways, mut limit) = (0, 0, 0, 0, step.max_tokens);
    let mut asked_again = false;
    let mut last = None;
    loop {
        let reply = answer(&system, &user, asked_again, limit);
        let kind = match &reply {
            Reply::Refused | Reply::Vector(_) => return Err(("http", Some(got), last)),
            Reply::Cut(text) if text.ends_with(&" ".repeat(64)) => {
                (bad, runaways) = (bad + 1, runaways + 1);
                (runaways == 2).then_some("runaway")
            }
            Reply::Cut(_) => {
                // Without a limit it is twice what the reply took, and no reply here takes 128 tokens.
                (cuts, limit) = (cuts + 1, if limit == 0 { 256 } else { limit * 2 });
                (cuts == 2).then_some("truncated")
            }
            Reply::Text(text) => match output(step.model, text) {
                Some(record) => return Ok(record),
                None => {
                    (bad, asked_again) = (bad + 1, true);
                    (bad > step.retries_output).then_some("invalid_output")
                }
            },
        };
        got += 1;
        if let Reply::Cut(text) | Reply::Text(text) = reply {
            last = Some(text);
        }
        if let Some(kind) = kind {
            return Err((kind, Some(got), last));
        }
    }
}

/// A vector's numbers, each in its shortest form as a number of 32 bits.
fn embed(step: &Step, text: &str) -> Result<Record, Failure> {
    let numbers = match generate::vector(text) {
        Reply::Vector(Some(numbers)) => numbers,
        Reply::Vector(None) => return Err(("invalid_output", Some(step.retries_output + 1), None)),
        _ => return Err(("http", Some(0), None)),
    };
    let numbers: Vec<_> = numbers.iter().map(|number| format!("{number:?}")).collect();
    let list = format!("[{}]", numbers.join(","));
    Ok(Record::from_iter([("embedding".to_owned(), list)]))
}

/// The record in a reply, when the model takes it.
fn output(model: Model, text: &str) -> Option<Record> {
    if model == Model::Free {
        return Some(Record::from_iter([("text".to_owned(), quote(text))]));
    }
    let json = text.get(text.find('{')?..=text.rfind('}')?)?;
    let value: Value = serde_json::from_str(json).ok()?;
    let record: Record = fields(json)
        .iter()
        .map(|(k, v)| (k.clone(), canonical(v)))
        .filter(|(k, v)| k != "score" || v != "null")
        .collect();
    let good = value["text"].is_string()
        && match model {
            Model::Label => {
                let score = &value["score"];
                ["a", "b", "c"].iter().any(|l| value["label"] == *l) && (score.is_null() || score.is_number())
            }
            _ => value["ok"].is_boolean() && value["list"].as_array()?.iter().all(|i| i["x"].is_i64()),
        };
    good.then_some(record)
}

fn truthy(named: &Named) -> bool {
    match named {
        Named::Null => false,
        Named::Record(record) => !record.is_empty(),
        Named::List(list) => !list.is_empty(),
    }
}

pub fn print_id(id: &[u64]) -> String {
    id.iter().map(u64::to_string).collect::<Vec<_>>().join(".")
}

pub fn print_record(record: &Record) -> String {
    record
        .text
        .clone()
        .unwrap_or_else(|| print_fields(&record.fields))
}

fn print_fields(fields: &IndexMap<String, String>) -> String {
    let fields = fields
        .iter()
        .map(|(key, value)| format!("{}:{value}", quote(key)));
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}

pub fn print_list(list: &[Record]) -> String {
    format!(
        "[{}]",
        list.iter().map(print_record).collect::<Vec<_>>().join(",")
    )
}

pub fn quote(text: &str) -> String {
    Value::from(text).to_string()
}

pub fn parse(raw: &str) -> Value {
    serde_json::from_str(raw).unwrap_or(Value::Null)
}

pub fn fields(object: &str) -> Record {
    let fields: IndexMap<String, Box<RawValue>> = serde_json::from_str(object).expect("a checked object");
    let fields = fields
        .into_iter()
        .map(|(key, value)| (key, value.get().to_owned()));
    Record {
        fields: fields.collect(),
        text: Some(object.to_owned()),
    }
}

/// A record's text: trimmed; when a key stands twice, printed anew with its first place and last value.
pub fn record_text(line: &str) -> Option<String> {
    let text = line.trim();
    serde_json::from_str::<Value>(text).ok()?.as_object()?;
    let mut depth = 0;
    let mut keys = 0;
    for token in tokens(text) {
        match token {
            "{" | "[" => depth += 1,
            "}" | "]" => depth -= 1,
            ":" if depth == 1 => keys += 1,
            _ => {}
        }
    }
    let fields = fields(text);
    Some(if fields.len() == keys {
        text.to_owned()
    } else {
        print_fields(&fields.fields)
    })
}

/// A raw value as jq prints it: no white space, strings escaped the one way, numbers as they are spelt.
fn canonical(raw: &str) -> String {
    let tokens = tokens(raw).into_iter();
    tokens
        .map(|t| {
            if t.starts_with('"') {
                parse(t).to_string()
            } else {
                t.to_owned()
            }
        })
        .collect()
}

/// Strings, brackets, colons, commas and scalars of a valid JSON text.
fn tokens(text: &str) -> Vec<&str> {
    let (mut found, mut rest) = (Vec::new(), text.trim_start());
    while let Some(first) = rest.bytes().next() {
        let len = match first {
            b'"' => {
                let mut escaped = false;
                let end = rest.bytes().skip(1).position(|b| {
                    let end = b == b'"' && !escaped;
                    escaped = b == b'\\' && !escaped;
                    end
                });
                end.expect("a closed string") + 2
            }
            b'{' | b'}' | b'[' | b']' | b':' | b',' => 1,
            _ => rest
                .find(|c: char| "{}[]:, \t\r\n\"".contains(c))
                .unwrap_or(rest.len()),
        };
        found.push(&rest[..len]);
        rest = rest[len..].trim_start();
    }
    found
}
