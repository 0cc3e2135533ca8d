//! Random chains and inputs, read off a tape of bytes so that proptest can shrink them: a shorter tape and smaller
//! bytes make a smaller chain.

use crate::generate::{
    Apply, BACKENDS, Branch, Chain, Engine, FIRST, From, Group, Item, Kind, Means, Model, Node, Prompt, Step,
    When,
};

/// Choices, read off a tape of bytes; 0 when it has run out.
pub struct Tape<'a> {
    bytes: &'a [u8],
    ids: usize,
    /// Applies that start processes.
    processes: usize,
    /// The engine embeds nothing.
    talks_only: bool,
    /// The current item may be a vector, which has no `text` to read.
    vector: bool,
}

/// No more in a chain: interpreters take their time to start.
const PROCESSES: usize = 2;

/// A name in scope while a chain is made.
#[derive(Clone)]
struct Name {
    id: String,
    /// A `{{ name.text }}` is sound for the type check.
    text: bool,
    label: bool,
}

impl<'a> Tape<'a> {
    /// A tape.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            ids: 0,
            processes: 0,
            talks_only: false,
            vector: false,
        }
    }

    /// A choice below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        let (first, rest) = self.bytes.split_first().map_or((0, self.bytes), |(f, r)| (*f, r));
        self.bytes = rest;
        usize::from(first) % n
    }

    /// True when every further choice is 0. Rows end there: a shorter tape has fewer of them.
    pub fn is_over(&self) -> bool {
        self.bytes.is_empty()
    }

    fn id(&mut self, prefix: char) -> String {
        self.ids += 1;
        format!("{prefix}{}", self.ids)
    }

    /// A chain.
    pub fn chain(&mut self) -> Chain {
        let input_model = self.below(4) == 1;
        let backend = self.below(BACKENDS.len());
        self.talks_only = BACKENDS[backend] == "tgi";
        let concurrency = [Some(8), Some(1), Some(3), None][self.below(4)];
        let count = 1 + self.below(5);
        let items = self.items(count, &mut Vec::new(), 0);
        let engine = Engine { backend, concurrency };
        Chain {
            items,
            input_model,
            engine,
        }
    }

    fn items(&mut self, count: usize, names: &mut Vec<Name>, depth: usize) -> Vec<Item> {
        (0..count)
            .map(|_| match self.below(8) {
                6 | 7 if depth < 2 => Item::Group(self.group(names, depth)),
                0 | 1 | 2 | 7 => Item::Node(self.apply(names, depth > 0)),
                _ => Item::Node(self.step(names)),
            })
            .collect()
    }

    fn group(&mut self, names: &mut Vec<Name>, depth: usize) -> Group {
        let when = self.when(names);
        let count = 1 + self.below(3);
        let mut joined = Vec::new();
        let branches: Vec<_> = (0..count)
            .map(|_| {
                let id = self.id('b');
                let join = match self.below(4) {
                    0 | 1 => Some(id.clone()),
                    2 => Some(self.id('j')),
                    _ => None,
                };
                let collect = join.is_some() && self.below(3) == 1;
                let when = self.when(names);
                let count = 1 + self.below(3);
                let vector = self.vector;
                let items = self.items(count, &mut names.clone(), depth + 1);
                self.vector = vector;
                let steps_only = items.iter().all(|item| match item {
                    Item::Node(node) => matches!(&node.kind, Kind::Step(step) if step.model != Model::Vector),
                    Item::Group(_) => true,
                });
                let node = |item: &Item| matches!(item, Item::Node(_));
                let text = !collect && steps_only && items.iter().any(node);
                joined.extend(join.clone().map(|id| Name {
                    id,
                    text,
                    label: false,
                }));
                Branch {
                    id,
                    when,
                    join,
                    collect,
                    items,
                }
            })
            .collect();
        names.extend(joined);
        let lone = branches.len() == 1 && when.is_none() && self.below(2) == 1;
        Group { when, branches, lone }
    }

    fn when(&mut self, names: &[Name]) -> Option<When> {
        let choice = self.below(12);
        let name = |tape: &mut Self| names.get(tape.below(names.len().max(1))).cloned();
        match choice {
            8 => Some(When::Above(self.below(5) as i64)),
            9 => name(self).map(|n| When::Name(n.id)),
            10 => name(self).map(|n| When::NotName(n.id)),
            11 => name(self).filter(|n| n.label).map(|n| When::LabelIsA(n.id)),
            _ => None,
        }
    }

    fn node(&mut self, id: String, kind: Kind, names: &mut Vec<Name>) -> Node {
        let when = self.when(names);
        let yield_output = self.below(6) != 5;
        if yield_output {
            let (text, label) = match &kind {
                Kind::Step(step) => (step.model != Model::Vector, step.model == Model::Label),
                Kind::Apply(..) => (false, false),
            };
            names.push(Name {
                id: id.clone(),
                text,
                label,
            });
        }
        Node {
            id,
            when,
            yield_output,
            kind,
        }
    }

    /// In a branch there are more fan-outs and failures: what joins make of them is worth many looks.
    fn apply(&mut self, names: &mut Vec<Name>, in_branch: bool) -> Node {
        let id = self.id('a');
        let from = [From::Input, From::Item][self.below(2)];
        let apply = match self.below(if in_branch { 28 } else { 22 }) {
            1 | 2 => Apply::AddK,
            3 => Apply::Even(from),
            4 => Apply::Pick(from),
            5 => Apply::PickChecked(from),
            6..=8 => Apply::Fan(from),
            9 => Apply::Bad(from),
            10 => Apply::BadLate(from),
            11 => Apply::Number(from),
            12 => Apply::Empty,
            13 | 21 => Apply::Twice,
            14 => Apply::RowId,
            15 => Apply::Input,
            16 => Apply::Vars,
            17..=19 if !names.is_empty() => Apply::Row(names[self.below(names.len())].id.clone()),
            20 => Apply::Whole,
            22 | 23 => Apply::Fan(from),
            24 => Apply::Twice,
            25..=27 => Apply::Bad(from),
            _ => Apply::Identity,
        };
        let means = self.means();
        self.node(id, Kind::Apply(apply, means), names)
    }

    fn means(&mut self) -> Means {
        let means = match self.below(12) {
            8 | 9 => Means::Python,
            10 | 11 => Means::Command,
            _ => return Means::Jq,
        };
        if self.processes == PROCESSES {
            return Means::Jq;
        }
        self.processes += 1;
        means(1 + self.below(3))
    }

    fn step(&mut self, names: &mut Vec<Name>) -> Node {
        let id = self.id('s');
        let named = (!names.is_empty()).then(|| names[self.below(names.len())].clone());
        let prompt = match (self.below(8), named) {
            (2, _) => Prompt::RowId,
            (3, _) if !self.vector => Prompt::ItemText,
            (4, _) if !self.vector => Prompt::BareText,
            (5 | 6, Some(name)) if name.text => Prompt::NameText(name.id),
            (5..=7, Some(name)) => Prompt::Guarded(name.id),
            _ => Prompt::Text,
        };
        let model = match self.below(4) {
            1 => Model::Label,
            2 => Model::Nested,
            3 if !self.talks_only => Model::Vector,
            _ => Model::Free,
        };
        let on_error_null = self.below(4) == 3;
        // Skipped or nulled it leaves the item that was there; what an Apply makes of a vector has no `text` either.
        self.vector |= model == Model::Vector;
        let retries_output = 2 - self.below(2) as u32;
        let max_tokens = FIRST[self.below(FIRST.len())];
        self.node(
            id,
            Kind::Step(Step {
                prompt,
                model,
                on_error_null,
                retries_output,
                max_tokens,
            }),
            names,
        )
    }

    /// An input file of up to `most` lines: good, bad, blank, with and without CR.
    pub fn input(&mut self, most: usize) -> Vec<u8> {
        let mut out = Vec::new();
        if self.below(8) == 7 {
            out.extend_from_slice("\u{feff}".as_bytes());
        }
        let crlf = self.below(4) == 3;
        let count = self.below(most + 1);
        for line in 0..count {
            if self.is_over() {
                break;
            }
            out.extend(self.line(line));
            if line + 1 < count || self.below(4) != 3 {
                out.extend_from_slice(if crlf { b"\r\n" } else { b"\n" });
            }
        }
        out
    }

    fn line(&mut self, number: usize) -> Vec<u8> {
        let n = self.below(10) as i64 - 1;
        let n = if n < 0 { -2 } else { n };
        let text = [
            "plain",
            "with \\\"quotes\\\"",
            "caf\\u00e9 \u{e9}",
            "two\\nlines",
            "日本 🙂",
            "",
        ][self.below(6)];
        let wide = format!(
            "{{\"text\": \"{text} {number}\", \"n\":{n},\"price\":1.10 ,\"big\":12345678901234567890123, \
             \"obj\":{{\"b\": [1.50, {{\"z\": null}}],  \"a\":\"\\u0041\"}}}}"
        );
        match self.below(24) {
            8 => b"  \t ".to_vec(),
            9 => Vec::new(),
            10 => b"{\"text\": \"cut".to_vec(),
            11 => b"[1, 2]".to_vec(),
            12 => b"42".to_vec(),
            13 => b"{\"text\":\"\xff\xfe\"}".to_vec(),
            14 => format!("{{\"n\":{n}}}").into_bytes(),
            15 => format!("{{\"text\":null,\"n\":{n}}}").into_bytes(),
            16 => format!("{{\"text\":\"{text}\",\"n\":null}}").into_bytes(),
            17 => format!("{{\"text\":\"{text}\"}}").into_bytes(),
            18 => format!("{{\"n\": 7, \"text\" : \"{text}\", \"n\": {n} }}").into_bytes(),
            19 => format!("  {wide}  ").into_bytes(),
            20 | 21 => wide.into_bytes(),
            _ => format!("{{\"text\":\"{text} {number}\",\"n\":{n}}}").into_bytes(),
        }
    }
}
