//! Chains and inputs as Rust values: what the reference interpreter runs, and what prints itself for the CLI.
//!
//! Everything a chain can say here has a twin in `twins.rs`; random ones come off a tape (`tape.rs`).

use serde_json::{Map, Value, json};

use crate::server::{Answer, Asked, Dice, vector_of};

/// A chain.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    pub items: Vec<Item>,
    /// `input_model: {text: string, n: integer, big: integer?}`; [`DECLARED`] says where that shows.
    pub input_model: bool,
    pub engine: Engine,
}

/// The one engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Engine {
    /// An index into [`BACKENDS`].
    pub backend: usize,
    /// Requests in flight; `auto` without.
    pub concurrency: Option<usize>,
}

/// The column of `flattened/` that an `input_model` declares, and whose values Parquet has no integers for.
pub const DECLARED: &str = "chain_input.big";

/// What the test server can play.
pub const BACKENDS: [&str; 5] = ["openai", "vllm", "llamacpp", "tgi", "ollama"];

/// One place on a line.
#[derive(Clone, Debug)]
pub enum Item {
    Node(Node),
    Group(Group),
}

/// `parallel:`, or a lone branch.
#[derive(Clone, Debug)]
pub struct Group {
    pub when: Option<When>,
    pub branches: Vec<Branch>,
    /// Printed as a branch that stands alone (one branch, no `when` of the group).
    pub lone: bool,
}

/// A side line.
#[derive(Clone, Debug)]
pub struct Branch {
    pub id: String,
    pub when: Option<When>,
    pub join: Option<String>,
    pub collect: bool,
    pub items: Vec<Item>,
}

/// A Step or an Apply.
#[derive(Clone, Debug)]
pub struct Node {
    pub id: String,
    pub when: Option<When>,
    pub yield_output: bool,
    pub kind: Kind,
}

/// What a node does.
#[derive(Clone, Debug)]
pub enum Kind {
    Step(Step),
    Apply(Apply, Means),
}

/// Who computes an Apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    Jq,
    /// A function of `twins.py`, with so many workers.
    Python(usize),
    /// `twins.py` as a program, with so many workers.
    Command(usize),
}

/// A model call.
#[derive(Clone, Debug)]
pub struct Step {
    pub prompt: Prompt,
    pub model: Model,
    pub on_error_null: bool,
    pub retries_output: u32,
    /// `max_tokens`; 0: unset. A request with more than 512, or without, is streamed.
    pub max_tokens: u64,
}

/// Output models; each but the last has a field `text`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// No `output_model`: `{"text": …}`.
    Free,
    /// `{text: string, label: a | b | c, score: number?}`
    Label,
    /// `{text: string, list: [{x: integer}], ok: boolean}`
    Nested,
    /// `task: embed`: `{"embedding": […]}`; the prompt is the input.
    Vector,
}

/// User prompts.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// `{{ chain_input.text }}`
    Text,
    /// `{{ row_id }}`
    RowId,
    /// `{{ item.text }}`
    ItemText,
    /// `{{ text }}`
    BareText,
    /// `{{ name.text }}`
    NameText(String),
    /// `{% if name %}… {{ chain_input.n }}{% else %}none{% endif %}`
    Guarded(String),
}

/// Conditions.
#[derive(Clone, Debug)]
pub enum When {
    /// `chain_input.n > k`
    Above(i64),
    /// `name`
    Name(String),
    /// `not name`
    NotName(String),
    /// `name.label == "a"`
    LabelIsA(String),
}

/// jq programs and their twins in `twins.py`. `Input` ones read `$chain_input.n` where the others read `.n`.
#[derive(Clone, Debug)]
pub enum Apply {
    Identity,
    AddK,
    Even(From),
    Pick(From),
    /// [`Apply::Pick`] with `output_model: {a: integer}`.
    PickChecked(From),
    Fan(From),
    Bad(From),
    /// Emits, then fails on some rows.
    BadLate(From),
    Number(From),
    Empty,
    /// The item, and then another one.
    Twice,
    RowId,
    Input,
    Vars,
    /// `. + {n: (.n | tonumber)}`: what came as a text becomes a number.
    Whole,
    /// `{r: $row.name, text: .text, n: $chain_input.n}`
    Row(String),
}

/// Where a program finds its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Item,
    Input,
}

impl Apply {
    /// What stands under `apply:`.
    fn spec(&self, means: Means) -> Value {
        match means {
            Means::Jq => json!({"jq": self.source()}),
            Means::Python(workers) => {
                json!({"python": format!("twins.py:{}", self.name()), "workers": workers})
            }
            Means::Command(workers) => {
                json!({"command": ["python3", "twins.py", self.name()], "workers": workers})
            }
        }
    }

    /// The name of the twin in `twins.py`.
    fn name(&self) -> String {
        let place = |name: &str, from: &From| format!("{name}_{from:?}").to_lowercase();
        match self {
            Self::Identity => "identity".into(),
            Self::AddK => "add_k".into(),
            Self::Even(f) => place("even", f),
            Self::Pick(f) | Self::PickChecked(f) => place("pick", f),
            Self::Fan(f) => place("fan", f),
            Self::Bad(f) => place("bad", f),
            Self::BadLate(f) => place("bad_late", f),
            Self::Number(f) => place("number", f),
            Self::Empty => "empty".into(),
            Self::Twice => "twice".into(),
            Self::RowId => "row_id".into(),
            Self::Input => "inputs".into(),
            Self::Vars => "tone".into(),
            Self::Whole => "to_number".into(),
            Self::Row(name) => format!("row_{name}"),
        }
    }

    /// The program. `first(…)` hides what it leaves: reads of fields that are not there then fail at run time,
    /// not at load.
    pub fn source(&self) -> String {
        let n = |from: &From| match from {
            From::Item => ".n",
            From::Input => "$chain_input.n",
        };
        match self {
            Self::Identity => ".".into(),
            Self::AddK => ". + {k: 1}".into(),
            Self::Even(f) => format!("select(({} % 2) == 0)", n(f)),
            Self::Pick(f) | Self::PickChecked(f) => format!("first({{a: {}}})", n(f)),
            Self::Fan(f) => format!("range({} % 3) as $i | . + {{i: $i}}", n(f)),
            Self::Bad(f) => format!("if ({} % 5) == 0 then error(\"bad\") else . end", n(f)),
            Self::BadLate(f) => format!("., (if ({} % 4) == 0 then error(\"late\") else empty end)", n(f)),
            Self::Number(f) => n(f).into(),
            Self::Empty => "empty".into(),
            Self::Twice => "., first({first: .text})".into(),
            Self::RowId => "first({row_id: $row_id, text: .text})".into(),
            Self::Input => "first({p: $chain_input.price, b: $chain_input.big, o: $chain_input.obj})".into(),
            Self::Vars => ". + {tone: $vars.tone}".into(),
            Self::Whole => ". + {n: (.n | tonumber)}".into(),
            Self::Row(name) => format!("first({{r: $row.{name}, text: .text, n: $chain_input.n}})"),
        }
    }
}

impl Chain {
    /// The chain file.
    pub fn yaml(&self, url: &str) -> String {
        let mut top = json!({
            "name": "generated",
            "vars": {"tone": "calm"},
            "engines": {"e": {"backend": BACKENDS[self.engine.backend], "model": "m", "endpoint": url}},
            "steps": self.items.iter().map(Item::spec).collect::<Vec<_>>(),
        });
        if let Some(concurrency) = self.engine.concurrency {
            top["engines"]["e"]["concurrency"] = concurrency.into();
        }
        if self.input_model {
            top["models"] = json!({"Row": {"text": "string", "n": "integer", "big": "integer?"}});
            top["input_model"] = "Row".into();
        }
        let mut out = String::new();
        print_yaml(&top, 0, &mut out);
        out.trim_start().to_owned()
    }

    /// Every node in chain order, depth first.
    pub fn nodes(&self) -> Vec<&Node> {
        let mut found = Vec::new();
        walk(&self.items, &mut found);
        found
    }
}

/// The nodes of a line, depth first.
pub fn walk<'a>(items: &'a [Item], found: &mut Vec<&'a Node>) {
    for item in items {
        match item {
            Item::Node(node) => found.push(node),
            Item::Group(group) => group.branches.iter().for_each(|b| walk(&b.items, found)),
        }
    }
}

impl Item {
    fn spec(&self) -> Value {
        match self {
            Self::Node(node) => node.spec(),
            Self::Group(group) if group.lone => group.branches[0].spec(),
            Self::Group(group) => {
                let mut spec = Map::new();
                spec.insert(
                    "parallel".into(),
                    group.branches.iter().map(Branch::spec).collect(),
                );
                when_spec(&mut spec, group.when.as_ref());
                spec.into()
            }
        }
    }
}

impl Branch {
    fn spec(&self) -> Value {
        let mut spec = Map::new();
        spec.insert("branch".into(), self.id.as_str().into());
        if let Some(alias) = &self.join {
            spec.insert("join".into(), alias.as_str().into());
        }
        if self.collect {
            spec.insert("collect".into(), true.into());
        }
        when_spec(&mut spec, self.when.as_ref());
        spec.insert("steps".into(), self.items.iter().map(Item::spec).collect());
        spec.into()
    }
}

impl Node {
    fn spec(&self) -> Value {
        let mut spec = Map::new();
        spec.insert("id".into(), self.id.as_str().into());
        when_spec(&mut spec, self.when.as_ref());
        if !self.yield_output {
            spec.insert("yield_output".into(), false.into());
        }
        match &self.kind {
            Kind::Apply(apply, means) => {
                spec.insert("apply".into(), apply.spec(*means));
                if matches!(apply, Apply::PickChecked(_)) {
                    spec.insert("output_model".into(), json!({"a": "integer"}));
                }
            }
            Kind::Step(step) => {
                spec.insert("engine".into(), "e".into());
                spec.insert("retries".into(), json!({"output": step.retries_output}));
                if step.on_error_null {
                    spec.insert("on_error".into(), "null".into());
                }
                if step.model == Model::Vector {
                    spec.insert("task".into(), "embed".into());
                    spec.insert("input".into(), step.prompt.template().into());
                    return spec.into();
                }
                let system = format!("{} {:?} {{{{ vars.tone }}}}", self.id, step.model);
                spec.insert("system_prompt".into(), system.into());
                spec.insert("user_prompt".into(), step.prompt.template().into());
                let model = match step.model {
                    Model::Free | Model::Vector => None,
                    Model::Label => Some(json!({"text": "string", "label": "a | b | c", "score": "number?"})),
                    Model::Nested => {
                        Some(json!({"text": "string", "list": [{"x": "integer"}], "ok": "boolean"}))
                    }
                };
                spec.extend(model.map(|m| ("output_model".to_owned(), m)));
                let mut sampling = json!({"temperature": 0});
                if step.max_tokens > 0 {
                    sampling["max_tokens"] = step.max_tokens.into();
                }
                spec.insert("sampling".into(), sampling);
            }
        }
        spec.into()
    }
}

impl Prompt {
    /// The Jinja template.
    pub fn template(&self) -> String {
        match self {
            Self::Text => "T {{ chain_input.text }}".into(),
            Self::RowId => "R {{ row_id }}".into(),
            Self::ItemText => "I {{ item.text }}".into(),
            Self::BareText => "B {{ text }}".into(),
            Self::NameText(name) => format!("N {{{{ {name}.text }}}}"),
            Self::Guarded(name) => {
                format!("{{% if {name} %}}G {{{{ chain_input.n }}}}{{% else %}}none{{% endif %}}")
            }
        }
    }
}

fn when_spec(spec: &mut Map<String, Value>, when: Option<&When>) {
    let text = when.map(|when| match when {
        When::Above(k) => format!("chain_input.n > {k}"),
        When::Name(name) => name.clone(),
        When::NotName(name) => format!("not {name}"),
        When::LabelIsA(name) => format!("{name}.label == \"a\""),
    });
    spec.extend(text.map(|text| ("when".to_owned(), text.into())));
}

/// Block-style YAML; scalars as JSON.
fn print_yaml(value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                out.push_str(&format!("\n{pad}{key}:"));
                print_yaml(value, indent + 2, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut inner = String::new();
                print_yaml(item, indent + 2, &mut inner);
                out.push_str(&format!("\n{pad}- {}", inner.trim_start()));
            }
        }
        scalar => out.push_str(&format!(" {scalar}")),
    }
}

/// Token limits of first requests; 0: none.
pub const FIRST: [u64; 3] = [100, 600, 0];

/// What the engine says to a prompt.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A finished text.
    Text(String),
    /// A text cut at the token limit.
    Cut(String),
    /// 400.
    Refused,
    /// A vector; none: a list of none.
    Vector(Option<Vec<f32>>),
}

/// What the engine says to a text to embed: one in ten has no vector, and one in ten is refused.
pub fn vector(text: &str) -> Reply {
    match Dice::new(format!("class of {text}").as_bytes()).below(10) {
        0 => Reply::Refused,
        1 => Reply::Vector(None),
        _ => Reply::Vector(Some(vector_of(text, 3))),
    }
}

/// The one answer function: of the two prompts, whether a bad reply is carried along, and the token limit.
pub fn reply(system: &str, user: &str, asked_again: bool, max_tokens: u64) -> Reply {
    let mut dice = Dice::new(format!("{system}\0{user}").as_bytes());
    let class = dice.below(40);
    let text = dice.words(4);
    let good = match system.split(' ').nth(1) {
        Some("Label") => {
            let label = ["a", "b", "c"][dice.below(3) as usize];
            match dice.below(3) {
                0 => json!({"text": text, "label": label, "score": null}),
                1 => json!({"text": text, "label": label}),
                _ => json!({"label": label, "score": 0.25, "text": text}),
            }
        }
        Some("Nested") => {
            let list: Vec<_> = (0..dice.below(3)).map(|x| json!({"x": x})).collect();
            json!({"text": text, "list": list, "ok": dice.below(2) == 0})
        }
        _ => return reply_text(class, text, max_tokens),
    };
    match class {
        0 => Reply::Text(format!("I cannot say, {text}")),
        1 => Reply::Text(json!({"text": 5, "label": "z"}).to_string()),
        2 | 3 if !asked_again => Reply::Text(format!("{{\"text\": {text:?}")),
        4 | 5 => Reply::Text(format!("```json\n{good}\n```")),
        6 | 7 => Reply::Text(format!("Here it is:\n{good}\nIs that all?")),
        8 | 9 => Reply::Text(format!("{good:#}")),
        _ => match reply_text(class, good.to_string(), max_tokens) {
            Reply::Cut(text) if !text.ends_with(' ') => Reply::Cut(text[..1].into()),
            other => other,
        },
    }
}

fn reply_text(class: u64, text: String, max_tokens: u64) -> Reply {
    match class {
        20 => Reply::Refused,
        21 => Reply::Cut(text),
        22 | 23 if FIRST.contains(&max_tokens) => Reply::Cut(text),
        24 => Reply::Cut(format!("{{ {}", " ".repeat(200))),
        _ => Reply::Text(text),
    }
}

/// The test server's side of [`reply`]; with `faults`, some requests fail in transport when first asked.
pub fn answer(asked: &Asked, faults: bool) -> Answer {
    if faults && asked.seen == 0 {
        match asked.digest[0] {
            0..=2 => return Answer::status(500, "made to fail"),
            3..=5 => return Answer::Close,
            6 => return Answer::CloseMidBody,
            7 => {
                let headers = vec![("retry-after", "0".to_owned())];
                return Answer::Status {
                    code: 429,
                    headers,
                    body: String::new(),
                };
            }
            8..=10 if asked.input().is_none() => {
                return Answer::ErrorInside(match asked.is_ollama() {
                    true => json!({"error": "made to break off"}),
                    false => json!({"error": {"message": "made to break off", "code": 500}}),
                });
            }
            _ => {}
        }
    }
    let reply = match asked.input() {
        Some(text) => vector(text),
        None => reply(
            asked.system(),
            asked.user(),
            asked.tries() > 0,
            asked.max_tokens().unwrap_or(0),
        ),
    };
    match reply {
        Reply::Text(text) => Answer::text(text),
        Reply::Cut(text) => Answer::cut(text),
        Reply::Refused => Answer::status(400, "made to be refused"),
        Reply::Vector(vector) => Answer::Vectors(vector.into_iter().collect()),
    }
}
