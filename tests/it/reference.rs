//! The reference interpreter: CHAIN.md §1 and §3 read aloud, one row at a time, with no machinery to hide behind.
//!
//! It shares no code with `src/`. Messages of errors are `"*"`: their wording is no part of the contract.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::generate::{Branch, Chain, Group, Item, Kind, Node, walk};
use crate::twins::{
    self, AnswerFn, Id, Named, Record, Row, fields, parse, print_id, print_list, quote, record_text,
};

/// How the rows that reached a node ended there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fates {
    pub emitted: u64,
    pub filtered: u64,
    pub skipped: u64,
    pub nulled: u64,
    pub failed: u64,
    pub children: u64,
}

/// What a run leaves behind.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Path below OUT to content: node folders, `flattened/`, `errors/`.
    pub files: BTreeMap<String, String>,
    /// By node id; nodes that no row reached are there too.
    pub fates: BTreeMap<String, Fates>,
    /// Lines in `errors/`.
    pub errors: usize,
}

struct Fail {
    /// The row of the line that fails.
    row: Id,
    /// The row that met the failure; a child of `row`, or `row` itself.
    child: Id,
    node: Option<String>,
    kind: &'static str,
    attempts: Option<u32>,
    reply: Option<String>,
}

/// An input row as its file has it.
#[derive(Clone, Debug)]
pub struct Line {
    /// The file's path as given.
    pub file: String,
    /// From 1.
    pub number: usize,
    pub text: Vec<u8>,
}

/// The lines of a JSONL file; blank ones are no rows.
pub fn lines(file: &str, input: &[u8]) -> Vec<Line> {
    let input = input.strip_prefix("\u{feff}".as_bytes()).unwrap_or(input);
    let lines = input.split(|b| *b == b'\n').enumerate().map(|(at, line)| Line {
        file: file.to_owned(),
        number: at + 1,
        text: line.strip_suffix(b"\r").unwrap_or(line).to_owned(),
    });
    lines
        .filter(|line| !line.text.iter().all(u8::is_ascii_whitespace))
        .collect()
}

/// Runs a chain over its input's lines.
pub fn run(chain: &Chain, input: &[Line], max_lines: usize, answer: &AnswerFn) -> Outcome {
    let nodes = chain.nodes();
    let order = nodes.iter().enumerate().map(|(i, n)| (n.id.clone(), i)).collect();
    let fates = nodes.iter().map(|n| (n.id.clone(), Fates::default())).collect();
    let (lines, errors) = (BTreeMap::new(), Vec::new());
    let (place, text) = (String::new(), String::new());
    let mut run = Run {
        chain,
        order,
        answer,
        lines,
        errors,
        fates,
        place,
        text,
        errors_total: 0,
    };
    run.lines.insert("flattened".into(), Vec::new());
    for (ordinal, line) in (0..).zip(input) {
        run.place = format!("\"file\":{},\"line\":{}", quote(&line.file), line.number);
        run.row(ordinal, &line.text);
    }
    let mut outcome = Outcome {
        fates: run.fates,
        errors: run.errors_total,
        ..Outcome::default()
    };
    for (folder, lines) in run.lines {
        let shards: Vec<&[String]> = match folder.as_str() {
            "flattened" if lines.is_empty() => vec![&[]],
            _ => lines.chunks(max_lines).collect(),
        };
        for (i, shard) in shards.iter().enumerate() {
            outcome
                .files
                .insert(format!("{folder}/{i:03}.jsonl"), shard.concat());
        }
    }
    outcome
}

struct Run<'a> {
    chain: &'a Chain,
    order: BTreeMap<String, usize>,
    answer: &'a AnswerFn,
    lines: BTreeMap<String, Vec<String>>,
    /// Of the current input row: (row id, node order, line).
    errors: Vec<(Id, usize, String)>,
    fates: BTreeMap<String, Fates>,
    /// `"file":…,"line":…`
    place: String,
    text: String,
    errors_total: usize,
}

impl Run<'_> {
    fn row(&mut self, ordinal: u64, line: &[u8]) {
        let id = vec![ordinal];
        let bad = |tail: String| {
            let head = format!("{{\"row_id\":\"{ordinal}\",\"kind\":\"invalid_input\",\"message\":\"*\"");
            (vec![ordinal], 0, format!("{head},{},{tail}}}\n", self.place))
        };
        if let Some(text) = std::str::from_utf8(line).ok().and_then(record_text) {
            let input = fields(&text);
            let has = |name: &str, ok: fn(&Value) -> bool| input.get(name).is_some_and(|v| ok(&parse(v)));
            if self.chain.input_model && !(has("text", Value::is_string) && has("n", Value::is_i64)) {
                self.errors.push(bad(format!("\"chain_input\":{text}")));
            } else {
                self.text = text;
                let row = Row {
                    id,
                    item: input.clone(),
                    input,
                    names: BTreeMap::new(),
                    emitted: false,
                };
                for end in self.line(&self.chain.items, row) {
                    match end {
                        Ok(row) => self.flatten(&row),
                        Err(fail) => self.error(&fail, None),
                    }
                }
            }
        } else {
            let raw = String::from_utf8_lossy(&line[..line.len().min(4096)]).into_owned();
            self.errors
                .push(bad(format!("\"chain_input\":null,\"raw\":{}", quote(&raw))));
        }
        self.errors.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        self.errors_total += self.errors.len();
        let lines = self.errors.drain(..).map(|e| e.2).collect::<Vec<_>>();
        if !lines.is_empty() {
            self.lines.entry("errors".into()).or_default().extend(lines);
        }
    }

    /// A row goes down a line; its ends in row order.
    fn line(&mut self, items: &[Item], mut row: Row) -> Vec<Result<Row, Fail>> {
        let Some((first, rest)) = items.split_first() else {
            return vec![Ok(row)];
        };
        let rows = match first {
            Item::Node(node) => self.node(node, row),
            Item::Group(group) => self.group(group, &mut row).map(|()| vec![row]),
        };
        match rows {
            Ok(rows) => rows.into_iter().flat_map(|row| self.line(rest, row)).collect(),
            Err(fail) => vec![Err(fail)],
        }
    }

    fn node(&mut self, node: &Node, mut row: Row) -> Result<Vec<Row>, Fail> {
        let outputs = match twins::when(node.when.as_ref(), &row) {
            None => Err(("template", None, None)),
            Some(false) => {
                self.fate(node).skipped += 1;
                return Ok(vec![self.nothing(node, row)]);
            }
            Some(true) => match &node.kind {
                Kind::Apply(apply, means) => twins::apply(apply, *means, &row),
                Kind::Step(step) => match twins::step(&node.id, step, &row, self.answer) {
                    Err(_) if step.on_error_null => {
                        self.fate(node).nulled += 1;
                        return Ok(vec![self.nothing(node, row)]);
                    }
                    record => record.map(|r| vec![r]),
                },
            },
        };
        let outputs = outputs.map_err(|(kind, attempts, reply)| {
            self.fate(node).failed += 1;
            let (child, node) = (row.id.clone(), Some(node.id.clone()));
            Fail {
                row: row.id.clone(),
                child,
                node,
                kind,
                attempts,
                reply,
            }
        })?;
        let fate = self.fate(node);
        fate.children += outputs.len() as u64;
        if outputs.is_empty() {
            fate.filtered += 1;
            return Ok(Vec::new());
        }
        fate.emitted += 1;
        let alone = outputs.len() == 1;
        row.emitted = true;
        let children = outputs.into_iter().enumerate().map(|(k, record)| {
            let mut child = row.clone();
            if !alone {
                child.id.push(k as u64);
            }
            if node.yield_output {
                let mut line = format!("{{\"row_id\":\"{}\"", print_id(&child.id));
                for (key, value) in record.iter() {
                    let key = if key == "row_id" {
                        format!("{}.row_id", node.id)
                    } else {
                        key.clone()
                    };
                    line.push_str(&format!(",{}:{value}", quote(&key)));
                }
                self.lines.entry(node.id.clone()).or_default().push(line + "}\n");
                child.names.insert(node.id.clone(), Named::Record(record.clone()));
            }
            child.item = record;
            child
        });
        Ok(children.collect())
    }

    /// A skipped or nulled node: its name is null, the current item stays.
    fn nothing(&self, node: &Node, mut row: Row) -> Row {
        if node.yield_output {
            row.names.insert(node.id.clone(), Named::Null);
        }
        row
    }

    fn fate(&mut self, node: &Node) -> &mut Fates {
        self.fates.entry(node.id.clone()).or_default()
    }

    /// All branches run to their end; then the row has its aliases, or the first failure of a joined branch.
    fn group(&mut self, group: &Group, row: &mut Row) -> Result<(), Fail> {
        let at = |branch: &Branch, kind| {
            let (row, node) = (row.id.clone(), Some(branch.id.clone()));
            Fail {
                child: row.clone(),
                row,
                node,
                kind,
                attempts: None,
                reply: None,
            }
        };
        let Some(enter) = twins::when(group.when.as_ref(), row) else {
            return Err(at(&group.branches[0], "template"));
        };
        let (mut failure, mut aliases) = (None, Vec::new());
        for branch in &group.branches {
            let ends = match enter.then(|| twins::when(branch.when.as_ref(), row)) {
                None | Some(Some(false)) => Vec::new(),
                Some(None) => vec![Err(at(branch, "template"))],
                Some(Some(true)) => self.line(
                    &branch.items,
                    Row {
                        emitted: false,
                        ..row.clone()
                    },
                ),
            };
            let (mut rows, mut fails) = (Vec::new(), Vec::new());
            for end in ends {
                match end {
                    Ok(row) => rows.push(row),
                    Err(fail) => fails.push(fail),
                }
            }
            let Some(alias) = &branch.join else {
                fails.iter().for_each(|fail| self.error(fail, Some(&branch.id)));
                continue;
            };
            if fails.is_empty() && rows.len() > 1 && !branch.collect {
                fails.push(at(branch, "join_cardinality"));
            }
            failure = failure.or(fails.into_iter().next());
            let mut left = rows.into_iter().filter(|r| r.emitted).map(|r| r.item);
            aliases.push((
                alias.clone(),
                match branch.collect {
                    true => Named::List(left.collect()),
                    false => left.next().map_or(Named::Null, Named::Record),
                },
            ));
        }
        row.names.extend(aliases);
        failure.map_or(Ok(()), |fail| {
            Err(Fail {
                row: row.id.clone(),
                ..fail
            })
        })
    }

    fn error(&mut self, fail: &Fail, branch: Option<&str>) {
        let mut line = format!("{{\"row_id\":\"{}\"", print_id(&fail.row));
        for (key, value) in [
            ("node", fail.node.as_deref().map(quote)),
            ("branch", branch.map(quote)),
            ("kind", Some(quote(fail.kind))),
            ("message", Some(quote("*"))),
            ("attempts", fail.attempts.map(|n| n.to_string())),
        ] {
            line.extend(value.map(|value| format!(",\"{key}\":{value}")));
        }
        line.push_str(&format!(",{}", self.place));
        if fail.child != fail.row {
            line.push_str(&format!(",\"child\":\"{}\"", print_id(&fail.child)));
        }
        line.push_str(&format!(",\"chain_input\":{}", self.text));
        line.extend(
            fail.reply
                .as_deref()
                .map(|reply| format!(",\"reply\":{}", quote(reply))),
        );
        let order = fail.node.as_ref().map_or(0, |id| self.order_of(id));
        self.errors.push((fail.row.clone(), order, line + "}\n"));
    }

    /// A node's place in the chain; a branch stands where its first node does.
    fn order_of(&self, id: &str) -> usize {
        fn first<'a>(items: &'a [Item], id: &str) -> Option<&'a str> {
            items.iter().find_map(|item| match item {
                Item::Node(_) => None,
                Item::Group(group) => group.branches.iter().find_map(|branch| {
                    let mut nodes = Vec::new();
                    walk(&branch.items, &mut nodes);
                    if branch.id == id {
                        Some(nodes[0].id.as_str())
                    } else {
                        first(&branch.items, id)
                    }
                }),
            })
        }
        let id = first(&self.chain.items, id).unwrap_or(id);
        self.order[id]
    }

    fn flatten(&mut self, row: &Row) {
        let mut line = format!("{{\"row_id\":\"{}\"", print_id(&row.id));
        let columns = |name: &str, record: &Record| -> String {
            record
                .iter()
                .map(|(key, value)| format!(",{}:{value}", quote(&format!("{name}.{key}"))))
                .collect()
        };
        line.push_str(&columns("chain_input", &row.input));
        let names = self.chain.items.iter().flat_map(|item| match item {
            Item::Node(node) => vec![&node.id],
            Item::Group(group) => group.branches.iter().filter_map(|b| b.join.as_ref()).collect(),
        });
        for name in names {
            match row.names.get(name) {
                Some(Named::Record(record)) => line.push_str(&columns(name, record)),
                Some(Named::List(list)) => line.push_str(&format!(",\"{name}\":{}", print_list(list))),
                Some(Named::Null) | None => {}
            }
        }
        self.lines
            .entry("flattened".into())
            .or_default()
            .push(line + "}\n");
    }
}
