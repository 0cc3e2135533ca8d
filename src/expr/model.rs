//! Models: the shorthand and JSON Schema, made self-contained and checked.

mod bundle;
mod nulls;
mod schema;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::{Value, json};

use crate::spec::{Code, Entry, Node, Problems, Span, Yaml, suggest};

pub use schema::{Lookup, TYPES, lookup, top_fields};

/// The keys that make a mapping a JSON Schema instead of shorthand.
pub(crate) const JSON_SCHEMA_KEYS: [&str; 10] = [
    "type",
    "properties",
    "$ref",
    "enum",
    "oneOf",
    "anyOf",
    "allOf",
    "const",
    "items",
    "required",
];

/// The `format` of a list of 32-bit floating-point numbers that is as long in every row: what a Step leaves that
/// embeds. It types Parquet columns, and validates nothing.
pub(crate) const VECTOR: &str = "float32-vector";

/// Longest message of [`Model::validate`], in characters.
const MAX_MESSAGE: usize = 300;

/// A compiled model: an object schema that values can be checked against.
#[derive(Debug)]
pub struct Model {
    schema: Value,
    validator: jsonschema::Validator,
}

impl Model {
    /// Compiles a self-contained JSON Schema; the error is one line, with the place in the schema.
    pub fn from_schema(schema: Value) -> Result<Self, String> {
        build(schema).map_err(|(_, message)| message)
    }

    /// The model of a Step without one: `{"text": string}`.
    pub fn text() -> Option<Self> {
        Self::from_schema(json!({
            "type": "object",
            "properties": {"text": {"type": "string"}},
            "required": ["text"],
            "additionalProperties": false,
        }))
        .ok()
    }

    /// The model of a Step that embeds: `{"embedding": [number, ...]}`, the numbers of 32 bits.
    pub fn embedding() -> Option<Self> {
        Self::from_schema(json!({
            "type": "object",
            "properties": {"embedding": {
                "type": "array",
                "format": VECTOR,
                "minItems": 1,
                "items": {"type": "number"},
            }},
            "required": ["embedding"],
            "additionalProperties": false,
        }))
        .ok()
    }

    /// The JSON Schema: self-contained (files and named models bundled under `$defs`), its root an object.
    pub fn schema(&self) -> &Value {
        &self.schema
    }

    /// Checks a value; the error says where and why in one line.
    pub fn validate(&self, value: &Value) -> Result<(), String> {
        if self.validator.is_valid(value) {
            return Ok(());
        }
        let Some(error) = self.validator.iter_errors(value).next() else {
            return Ok(());
        };
        let path = json_path(error.instance_path().as_str());
        Err(one_line(&format!("{path}: {error}")))
    }

    /// The declared top-level fields.
    pub fn fields(&self) -> Vec<&str> {
        top_fields(&self.schema)
    }

    /// What a path of field names finds in a record of this model.
    pub fn lookup(&self, path: &[&str]) -> Lookup {
        lookup(&self.schema, path)
    }
}

/// Compiles a schema; the error carries the JSON pointer of the fault.
fn build(schema: Value) -> Result<Model, (String, String)> {
    if let Err(error) = jsonschema::meta::validate(&schema) {
        let pointer = error.instance_path().as_str().to_owned();
        return Err((pointer, one_line(&error.to_string())));
    }
    let validator = jsonschema::options()
        .offline()
        .build(&schema)
        .map_err(|error| (String::new(), one_line(&error.to_string())))?;
    Ok(Model { schema, validator })
}

/// A JSON pointer as a JSON path: `/items/0/name` → `$.items[0].name`.
fn json_path(pointer: &str) -> String {
    let mut path = String::from("$");
    for part in pointer.split('/').skip(1) {
        let part = part.replace("~1", "/").replace("~0", "~");
        if part.bytes().all(|b| b.is_ascii_digit()) && !part.is_empty() {
            path.push_str(&format!("[{part}]"));
        } else if part.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-') && !part.is_empty() {
            path.push('.');
            path.push_str(&part);
        } else {
            path.push_str(&format!("[{part:?}]"));
        }
    }
    path
}

fn one_line(text: &str) -> String {
    let mut line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_MESSAGE + 1)
        .collect();
    if line.chars().count() > MAX_MESSAGE {
        line.pop();
        line.push('…');
    }
    line
}

/// The chain's named models.
#[derive(Clone, Debug, Default)]
pub struct Models {
    named: IndexMap<String, Node>,
    base: PathBuf,
    /// Names whose models could not be read (and have been reported).
    faulty: HashSet<String>,
    /// Whether all models are known; if not, an unknown one is no further problem.
    incomplete: bool,
}

impl Models {
    /// Takes the `models:` of a chain; files are found relative to `base`, the chain file's folder.
    pub fn new(entries: &[Entry], base: &Path, problems: &mut Problems) -> Self {
        let mut named = IndexMap::new();
        let mut faulty = HashSet::new();
        for entry in entries {
            let name = &entry.key.value;
            let good = name.starts_with(|c: char| c.is_ascii_alphabetic())
                && name.len() <= 64
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if !good {
                problems
                    .add(
                        Code::BadName,
                        entry.key.span,
                        format!("`{name}` cannot name a model"),
                    )
                    .help("use letters, digits and `_`, starting with a letter, at most 64 of them");
            } else if TYPES.contains(&name.as_str()) {
                problems
                    .add(
                        Code::ReservedName,
                        entry.key.span,
                        format!("`{name}` is a type of the shorthand and cannot name a model"),
                    )
                    .help("name the model for what it holds, for example `Review`");
            }
            if matches!(entry.value.kind, Yaml::Map(_)) {
                named.insert(name.clone(), entry.value.clone());
            } else {
                faulty.insert(name.clone());
                problems
                    .add(
                        Code::WrongType,
                        entry.value.span,
                        format!(
                            "the model `{name}` must be a mapping, found {}",
                            entry.value.found()
                        ),
                    )
                    .help(format!("write `{name}: {{field: string}}`, or a JSON Schema"));
            }
        }
        Self {
            named,
            base: base.to_path_buf(),
            faulty,
            incomplete: false,
        }
    }

    /// Says that further models were declared in a way that could not be read.
    #[must_use]
    pub fn incomplete(mut self, incomplete: bool) -> Self {
        self.incomplete = incomplete;
        self
    }

    /// True when a model of this name may well exist, and why it cannot be used has been reported.
    fn excused(&self, name: &str) -> bool {
        self.incomplete || self.faulty.contains(name)
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.named.keys().map(String::as_str)
    }

    /// Compiles every named model (closed, as a Step sees it) and notes what is wrong with them.
    pub fn compile_all(&self, problems: &mut Problems) -> IndexMap<String, Value> {
        self.named
            .iter()
            .filter_map(|(name, node)| {
                let model = self.compile_mapping(node, false, problems)?;
                Some((name.clone(), model.schema))
            })
            .collect()
    }

    /// Compiles an `output_model` or `input_model`: a name, or a model written in place. `open`
    /// allows fields that the shorthand does not name.
    pub fn compile(&self, node: &Node, open: bool, problems: &mut Problems) -> Option<Model> {
        match &node.kind {
            Yaml::String(text) => {
                let Some(named) = self.named.get(&text.value) else {
                    if self.excused(&text.value) {
                        return None;
                    }
                    problems
                        .add(
                            Code::UnknownModel,
                            text.span,
                            format!("there is no model `{}`", text.value),
                        )
                        .help(suggest(&text.value, self.names()).unwrap_or_else(|| {
                            "declare it below `models:`, or write the model here: `{field: string}`"
                                .to_owned()
                        }));
                    return None;
                };
                self.compile_mapping(named, open, problems)
            }
            Yaml::Map(_) => self.compile_mapping(node, open, problems),
            _ => {
                problems
                    .add(
                        Code::WrongType,
                        node.span,
                        format!("a model is a name or a mapping, found {}", node.found()),
                    )
                    .help("write the name of a model in `models`, or `{field: string}`");
                None
            }
        }
    }

    /// The model that a pointer into a bundle leads to, with the rest of the pointer: a fault of a named
    /// model is shown there, not at each model that uses it.
    fn owner<'n>(&'n self, node: &'n Node, pointer: &str) -> (&'n Node, String) {
        let named = pointer.strip_prefix("/$defs/").and_then(|rest| {
            let (name, rest) = rest.split_once('/').unwrap_or((rest, ""));
            let own = node
                .get("$defs")
                .is_some_and(|defs| defs.value.get(name).is_some());
            let found = self.named.get(name).filter(|_| !own)?;
            Some((found, format!("/{rest}")))
        });
        named.unwrap_or_else(|| (node, pointer.to_owned()))
    }

    fn compile_mapping(&self, node: &Node, open: bool, problems: &mut Problems) -> Option<Model> {
        let schema = bundle::bundle(self, node, open, problems)?;
        if let Err(message) = schema::check_root(&schema) {
            let help = if message.contains("$ref") {
                "let the last `$ref` lead to a schema with `type: object`".to_owned()
            } else {
                root_help(node)
            };
            problems.add(Code::BadModel, head(node), message).help(help);
            return None;
        }
        match build(schema) {
            Ok(model) => Some(model),
            Err((pointer, message)) => {
                let (node, pointer) = self.owner(node, &pointer);
                problems
                    .add(
                        Code::BadModel,
                        at_pointer(node, &pointer),
                        format!("not a valid JSON Schema: {message}"),
                    )
                    .maybe_help(schema_help(node, &pointer));
                None
            }
        }
    }
}

/// What to do about a root that is no object.
fn root_help(node: &Node) -> String {
    let Some(entry) = node.get("type") else {
        return "a record is a JSON object: write `type: object` and `properties`".to_owned();
    };
    match &entry.value.kind {
        Yaml::String(text) if text.value == "array" => {
            "put the list into a field: `{list: [T]}`; an Apply can take it apart again".to_owned()
        }
        Yaml::String(text) if TYPES.contains(&text.value.as_str()) => format!(
            "the key `type` makes this a JSON Schema, not shorthand: write `type: object` with `properties`, or, for a record with a field named `type`, `properties: {{type: {{type: {}}}}}`",
            text.value
        ),
        _ => "a record is a JSON object: `type: object`".to_owned(),
    }
}

/// Says why a mapping was read as JSON Schema, when that may be news.
fn schema_help(node: &Node, pointer: &str) -> Option<String> {
    let key = along(node, pointer)
        .into_iter()
        .find_map(|node| match &node.kind {
            Yaml::Map(entries) => entries
                .iter()
                .find(|e| JSON_SCHEMA_KEYS.contains(&e.key.value.as_str())),
            _ => None,
        })?;
    let types = TYPES.iter().filter(|t| **t != "any").map(|t| format!("`{t}`"));
    let types: Vec<String> = types.chain(["`array`".to_owned(), "`null`".to_owned()]).collect();
    Some(format!(
        "a mapping with the key `{0}` is read as JSON Schema, not as shorthand; its types are {1}. For a record with a field named `{0}` write `{{type: object, properties: {{{0}: ...}}}}`",
        key.key.value,
        types.join(", ")
    ))
}

/// The first line of a mapping.
fn head(node: &Node) -> Span {
    match &node.kind {
        Yaml::Map(entries) => entries.first().map_or(node.span, |e| Span {
            end: e.key.span.end,
            ..node.span
        }),
        _ => node.span,
    }
}

/// The place of a JSON pointer in a YAML tree, as deep as the tree follows it.
fn at_pointer(node: &Node, pointer: &str) -> Span {
    head(along(node, pointer).last().copied().unwrap_or(node))
}

/// The values on the way of a JSON pointer through a YAML tree, as deep as the tree follows it.
///
/// What the shorthand writes shorter than JSON Schema (`a: T` for `properties/a`, `[T]` for `items`) is
/// followed, too.
fn along<'n>(node: &'n Node, pointer: &str) -> Vec<&'n Node> {
    let mut way = vec![node];
    let mut node = node;
    for part in pointer.split('/').skip(1) {
        let part = part.replace("~1", "/").replace("~0", "~");
        let optional = format!("{part}?");
        let next = match &node.kind {
            Yaml::Map(_) => node.get(&part).or_else(|| node.get(&optional)).map(|e| &e.value),
            Yaml::Seq(items) => match part.parse::<usize>() {
                Ok(n) => items.get(n),
                Err(_) if part == "items" => items.first(),
                Err(_) => None,
            },
            _ => None,
        };
        match next {
            Some(next) => node = next,
            None if part == "properties" => continue,
            None => break,
        }
        way.push(node);
    }
    way
}
