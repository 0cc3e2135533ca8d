//! From what the user wrote to one self-contained JSON Schema.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use super::schema::TYPES;
use super::{JSON_SCHEMA_KEYS, Models, head};
use crate::spec::{Code, Entry, Node, Problems, Span, Text, Yaml, parse_yaml, suggest};

/// All keys of JSON Schema, the drafts from 6 to 2020-12.
const KEYWORDS: [&str; 64] = [
    "$schema",
    "$id",
    "$anchor",
    "$dynamicRef",
    "$dynamicAnchor",
    "$ref",
    "$defs",
    "$comment",
    "$vocabulary",
    "$recursiveRef",
    "$recursiveAnchor",
    "definitions",
    "dependencies",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "dependentSchemas",
    "prefixItems",
    "items",
    "additionalItems",
    "contains",
    "properties",
    "patternProperties",
    "additionalProperties",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "type",
    "enum",
    "const",
    "multipleOf",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "maxContains",
    "minContains",
    "maxProperties",
    "minProperties",
    "required",
    "dependentRequired",
    "title",
    "description",
    "default",
    "deprecated",
    "readOnly",
    "writeOnly",
    "examples",
    "format",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
    "nullable",
    "discriminator",
];

/// Makes the schema of a model; `None` when something is wrong with it (and has been noted).
pub(super) fn bundle(models: &Models, node: &Node, open: bool, problems: &mut Problems) -> Option<Value> {
    let mut bundler = Bundler {
        models,
        open,
        keys: IndexMap::new(),
        files: IndexMap::new(),
        defs: IndexMap::new(),
        taken: HashSet::new(),
        problems,
        span: head(node),
        failed: false,
    };
    if let Some(Yaml::Map(own)) = node.get("$defs").map(|e| &e.value.kind) {
        bundler.taken.extend(own.iter().map(|e| e.key.value.clone()));
    }
    let root = bundler.root(node);
    let (defs, failed) = (bundler.defs, bundler.failed);
    let mut root = root.filter(|_| !failed)?;
    if let Value::Object(map) = &mut root {
        if !map.contains_key("$ref") {
            map.entry("type").or_insert_with(|| json!("object"));
        }
        if !defs.is_empty()
            && let Value::Object(own) = map.entry("$defs").or_insert_with(|| json!({}))
        {
            own.extend(defs);
        }
    }
    Some(root)
}

struct Bundler<'a> {
    models: &'a Models,
    open: bool,
    /// Named model → its key under `$defs`.
    keys: IndexMap<String, String>,
    /// File → its place in the bundle (`#` for the root).
    files: IndexMap<PathBuf, String>,
    defs: IndexMap<String, Value>,
    taken: HashSet<String>,
    problems: &'a mut Problems,
    /// Where problems inside files are shown.
    span: Span,
    failed: bool,
}

impl Bundler<'_> {
    fn fail<T>(&mut self, span: Span, message: String, help: Option<String>) -> Option<T> {
        self.failed = true;
        self.problems.add(Code::BadModel, span, message).maybe_help(help);
        None
    }

    /// The root: a model that only points to a file becomes that file's content.
    fn root(&mut self, node: &Node) -> Option<Value> {
        if let Yaml::Map(entries) = &node.kind
            && let [only] = entries.as_slice()
            && only.key.value == "$ref"
            && let Some(text) = only.value.as_text()
            && !text.value.starts_with('#')
            && !self.models.named.contains_key(&text.value)
        {
            self.span = text.span;
            let (path, fragment) = self.resolve_path(&text.value, &self.models.base.clone())?;
            let mut schema = self.read(&path)?;
            if fragment.is_empty() {
                self.files.insert(path.clone(), "#".to_owned());
                if let Some(Value::Object(own)) = schema.get("$defs") {
                    self.taken.extend(own.keys().cloned());
                }
                self.rewrite(&mut schema, "#", parent(&path))?;
                return Some(schema);
            }
            let reference = self.file_ref(&text.value, &self.models.base.clone())?;
            // The target's own content, so that the root says that it is an object.
            let defs = Value::Object(self.defs.clone().into_iter().collect());
            let bundled = json!({"$defs": defs});
            let found = reference.strip_prefix('#').and_then(|p| bundled.pointer(p));
            return match found {
                Some(target @ Value::Object(_)) => Some(target.clone()),
                _ => {
                    let help =
                        Some("the part behind `#` is a path in that file, such as `#/$defs/Name`".to_owned());
                    self.fail(self.span, format!("`{}` points to nothing", text.value), help)
                }
            };
        }
        self.mapping(node, "#")
    }

    /// A mapping: JSON Schema when it has one of its keys, else shorthand.
    fn mapping(&mut self, node: &Node, at: &str) -> Option<Value> {
        let Yaml::Map(entries) = &node.kind else {
            return self.fail(node.span, "expected a mapping".to_owned(), None);
        };
        if entries
            .iter()
            .any(|e| JSON_SCHEMA_KEYS.contains(&e.key.value.as_str()))
        {
            self.schema_only(entries)?;
            let outer = std::mem::replace(
                &mut self.span,
                node.get("$ref").map_or(head(node), |e| e.value.span),
            );
            let mut schema = node.to_json();
            let base = self.models.base.clone();
            let done = self.rewrite(&mut schema, at, &base);
            self.span = outer;
            done?;
            return Some(schema);
        }
        let mut properties = Map::new();
        let mut required = Vec::new();
        for entry in entries {
            let (name, optional_key) = match entry.key.value.strip_suffix('?') {
                Some(name) => (name, true),
                None => (entry.key.value.as_str(), false),
            };
            let place = format!("{at}/properties/{}", escape(name));
            if let Some((schema, optional)) = self.field(&entry.value, &place) {
                properties.insert(name.to_owned(), schema);
                if !optional && !optional_key {
                    required.push(Value::String(name.to_owned()));
                }
            }
        }
        if entries.is_empty() && !self.open {
            let help =
                Some("name at least one: `{text: string}`; for any object write `{type: object}`".to_owned());
            return self.fail(node.span, "a model without fields".to_owned(), help);
        }
        let mut schema = Map::new();
        schema.insert("type".to_owned(), json!("object"));
        schema.insert("properties".to_owned(), Value::Object(properties));
        schema.insert("required".to_owned(), Value::Array(required));
        if !self.open {
            schema.insert("additionalProperties".to_owned(), json!(false));
        }
        Some(Value::Object(schema))
    }

    /// A field's schema, and whether it is optional.
    fn field(&mut self, node: &Node, at: &str) -> Option<(Value, bool)> {
        match &node.kind {
            Yaml::String(text) => self.type_text(text),
            Yaml::Map(_) => Some((self.mapping(node, at)?, false)),
            Yaml::Seq(items) => match items.as_slice() {
                [item] => {
                    let (items, optional) = self.field(item, &format!("{at}/items"))?;
                    if optional {
                        let help = Some("make the list itself optional: \"[T]?\"".to_owned());
                        return self.fail(item.span, "a list item cannot be optional".to_owned(), help);
                    }
                    Some((json!({"type": "array", "items": items}), false))
                }
                _ => {
                    let help = Some("write `[string]`; an enum is `a | b | c`".to_owned());
                    self.fail(
                        node.span,
                        "a list in a model names one item type".to_owned(),
                        help,
                    )
                }
            },
            _ => {
                let help = Some("a field is a type, a model, `[T]`, `a | b | c` or a mapping".to_owned());
                self.fail(
                    node.span,
                    format!("expected a type, found {}", node.found()),
                    help,
                )
            }
        }
    }

    fn type_text(&mut self, text: &Text) -> Option<(Value, bool)> {
        let spelled = text.value.trim();
        let (spelled, optional) = match spelled.strip_suffix('?') {
            Some(rest) => (rest.trim_end(), true),
            None => (spelled, false),
        };
        Some((self.type_name(spelled, text.span)?, optional))
    }

    fn type_name(&mut self, spelled: &str, span: Span) -> Option<Value> {
        if let Some(inner) = spelled.strip_prefix('[').and_then(|s| s.strip_suffix(']')) {
            let items = self.type_name(inner.trim(), span)?;
            return Some(json!({"type": "array", "items": items}));
        }
        if spelled.contains('|') {
            return self.alternatives(spelled, span);
        }
        if spelled == "any" {
            return Some(json!({}));
        }
        if TYPES.contains(&spelled) {
            return Some(json!({"type": spelled}));
        }
        if self.models.named.contains_key(spelled) {
            return self.named(spelled);
        }
        self.failed = true;
        if self.models.excused(spelled) {
            return None;
        }
        let known = TYPES.into_iter().chain(self.models.names());
        let help = type_help(spelled, known);
        self.problems
            .add(
                Code::UnknownModel,
                span,
                format!("`{spelled}` is neither a type nor a model"),
            )
            .maybe_help(help);
        None
    }

    /// Checks that a mapping that is read as JSON Schema has nothing else in it.
    fn schema_only(&mut self, entries: &[Entry]) -> Option<()> {
        let key = |entry: &Entry| entry.key.value.clone();
        let stranger = entries.iter().find(|entry| {
            !KEYWORDS.contains(&entry.key.value.as_str()) && !entry.key.value.starts_with("x-")
        });
        let Some(stranger) = stranger else { return Some(()) };
        let cause = entries
            .iter()
            .map(key)
            .find(|key| JSON_SCHEMA_KEYS.contains(&key.as_str()))
            .unwrap_or_default();
        let stranger_key = key(stranger);
        let fields: Vec<String> = entries.iter().map(|e| format!("{}: ...", key(e))).collect();
        let help = format!(
            "for a record with a field named `{cause}` write `{{type: object, properties: {{{}}}}}`",
            fields.join(", ")
        );
        self.fail(
            stranger.key.span,
            format!("the key `{cause}` makes this a JSON Schema, and `{stranger_key}` is none of its keys"),
            Some(help),
        )
    }

    fn alternatives(&mut self, spelled: &str, span: Span) -> Option<Value> {
        let mut seen: Vec<&str> = Vec::new();
        let is_type = |name: &str| TYPES.contains(&name) || self.models.named.contains_key(name);
        for alternative in spelled.split('|').map(str::trim) {
            let (message, help) = if alternative.is_empty() {
                (
                    "an empty alternative".to_owned(),
                    "write `a | b | c`; a field that may be left out ends in `?`",
                )
            } else if is_type(alternative.strip_suffix('?').unwrap_or(alternative)) {
                (
                    format!("`{alternative}` is a type or a model, and `a | b` is an enum of texts"),
                    "for a choice of types write JSON Schema: `{anyOf: [...]}`; an optional field is `T?`",
                )
            } else if seen.contains(&alternative) {
                (format!("`{alternative}` stands twice"), "keep one of them")
            } else {
                seen.push(alternative);
                continue;
            };
            return self.fail(span, message, Some(help.to_owned()));
        }
        Some(json!({"type": "string", "enum": seen}))
    }

    /// A reference to a named model, which is bundled once.
    fn named(&mut self, name: &str) -> Option<Value> {
        if let Some(key) = self.keys.get(name) {
            return Some(json!({"$ref": format!("#/$defs/{key}")}));
        }
        let node = self.models.named.get(name)?.clone();
        let key = self.new_key(name);
        self.keys.insert(name.to_owned(), key.clone());
        let at = format!("#/$defs/{key}");
        self.defs.insert(key.clone(), Value::Null);
        let schema = self.mapping(&node, &at)?;
        self.defs.insert(key, schema);
        Some(json!({"$ref": at}))
    }

    fn new_key(&mut self, wish: &str) -> String {
        let mut key: String = wish
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || c == '_' {
                    c
                } else {
                    '_'
                }
            })
            .collect();
        while !self.taken.insert(key.clone()) {
            key.push('_');
        }
        key
    }

    /// Rewrites the references of a schema document that stands at `at` in the bundle and was read
    /// from the folder `base`.
    fn rewrite(&mut self, schema: &mut Value, at: &str, base: &Path) -> Option<()> {
        let map = match schema {
            Value::Object(map) => map,
            Value::Array(items) => {
                return items.iter_mut().try_for_each(|s| self.rewrite(s, at, base));
            }
            _ => return Some(()),
        };
        // An `$id` would give the references inside it another base than the bundle.
        map.shift_remove("$id");
        if at != "#" {
            map.shift_remove("$schema");
        }
        if let Some(Value::String(reference)) = map.get_mut("$ref") {
            if let Some(fragment) = reference.strip_prefix('#') {
                if fragment.is_empty() || fragment.starts_with('/') {
                    *reference = format!("{at}{fragment}");
                }
            } else if self.models.named.contains_key(reference.as_str()) {
                let name = reference.clone();
                let found = self.named(&name)?;
                if let Some(Value::String(place)) = found.get("$ref") {
                    *reference = place.clone();
                }
            } else {
                *reference = self.file_ref(&reference.clone(), base)?;
            }
        }
        for (key, value) in map.iter_mut() {
            match (key.as_str(), value) {
                ("enum" | "const" | "default" | "examples", _) => {}
                (
                    "properties" | "$defs" | "definitions" | "patternProperties" | "dependentSchemas",
                    Value::Object(schemas),
                ) => {
                    for schema in schemas.values_mut() {
                        self.rewrite(schema, at, base)?;
                    }
                }
                (_, value @ (Value::Object(_) | Value::Array(_))) => self.rewrite(value, at, base)?,
                _ => {}
            }
        }
        Some(())
    }

    /// The place in the bundle that a reference to a file means; the file is bundled once.
    fn file_ref(&mut self, reference: &str, base: &Path) -> Option<String> {
        let (path, fragment) = self.resolve_path(reference, base)?;
        if let Some(place) = self.files.get(&path) {
            return Some(format!("{place}{fragment}"));
        }
        let mut schema = self.read(&path)?;
        let stem = path
            .file_stem()
            .map_or_else(|| "file".into(), |s| s.to_string_lossy());
        let key = self.new_key(&stem);
        let place = format!("#/$defs/{key}");
        self.files.insert(path.clone(), place.clone());
        self.defs.insert(key.clone(), Value::Null);
        self.rewrite(&mut schema, &place, parent(&path))?;
        self.defs.insert(key, schema);
        Some(format!("{place}{fragment}"))
    }

    fn resolve_path(&mut self, reference: &str, base: &Path) -> Option<(PathBuf, String)> {
        if reference.contains("://") || reference.starts_with("urn:") {
            let help = Some("save it beside the chain and name the file: `$ref: ./schema.json`".to_owned());
            return self.fail(
                self.span,
                format!("`{reference}` is a URL; a model is read from files only"),
                help,
            );
        }
        let (file, fragment) = match reference.split_once('#') {
            Some((file, "")) => (file, String::new()),
            Some((file, fragment)) => (file, format!("/{}", fragment.trim_start_matches('/'))),
            None => (reference, String::new()),
        };
        Some((clean(&base.join(file)), fragment))
    }

    fn read(&mut self, path: &Path) -> Option<Value> {
        let shown = path
            .strip_prefix(clean(&self.models.base))
            .unwrap_or(path)
            .display()
            .to_string();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                let reason = match error.kind() {
                    std::io::ErrorKind::NotFound => "no such file".to_owned(),
                    _ => error.to_string(),
                };
                let help = Some("files are found relative to the file that names them".to_owned());
                return self.fail(self.span, format!("{shown}: {reason}"), help);
            }
        };
        if path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
            let mut own = Problems::default();
            let parsed = parse_yaml(0, &text, &mut own).filter(|_| !own.has_errors());
            return match parsed {
                Some(node) => Some(node.to_json()),
                None => {
                    let why = own
                        .into_sorted()
                        .into_iter()
                        .next()
                        .map_or_else(String::new, |p| {
                            let line = p.span.map_or(0, |s| {
                                text.get(..s.start).unwrap_or_default().matches('\n').count()
                            });
                            format!(", line {}: {}", line + 1, p.message)
                        });
                    let help = Some("mend that file, or write the model in the chain".to_owned());
                    self.fail(self.span, format!("{shown}: not valid YAML{why}"), help)
                }
            };
        }
        match serde_json::from_str(&text) {
            Ok(value @ (Value::Object(_) | Value::Bool(_))) => Some(value),
            Ok(_) => {
                let help = Some("it begins with `{`".to_owned());
                self.fail(self.span, format!("{shown}: a JSON Schema is an object"), help)
            }
            Err(error) => {
                let help = Some("mend that file; a JSON Schema is JSON, or YAML in a .yaml file".to_owned());
                self.fail(self.span, format!("{shown}: not valid JSON: {error}"), help)
            }
        }
    }
}

/// What may have been meant by a word that is neither a type nor a model.
fn type_help<'a>(spelled: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> Option<String> {
    let meant = match spelled {
        "str" | "text" | "String" | "varchar" => Some("string"),
        "int" | "long" | "Integer" => Some("integer"),
        "float" | "double" | "decimal" | "Number" => Some("number"),
        "bool" | "Boolean" => Some("boolean"),
        "dict" | "map" | "json" => Some("object"),
        _ => None,
    };
    if let Some(meant) = meant {
        return Some(format!("did you mean `{meant}`?"));
    }
    if spelled == "list" || spelled == "array" {
        return Some("a list is written `[T]`, for example `[string]`".to_owned());
    }
    suggest(spelled, known)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// A path without `.` and `x/..`, so that two spellings are one file.
fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if matches!(out.components().next_back(), Some(Component::Normal(_))) => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

/// A name as a JSON pointer segment.
fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}
