//! Jinja templates.
//!
//! Compiled once: the names a template reads are found then, so that a row only pays for those.
//! minijinja lets a null slip through in places where CHAIN.md calls it an error (comparisons,
//! `~`, filters); the analysis marks those places with a filter that refuses it.

mod analyse;
mod env;
mod exprs;
mod marks;
mod size;
mod values;

use std::ops::Range;

use minijinja::value::Serde;
use minijinja::{Environment, Value};

use crate::expr::{ExprError, NameIx, Scope, Visible};
use crate::row::{Named, Record};
use crate::spec::suggest;

use marks::Analysis;
use values::{list, record, to_value};

/// A name that a template reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The name.
    pub name: String,
    /// The fields read of it: `a.b["c"]` reads `[b, c]` of `a`.
    pub fields: Vec<String>,
    /// Where, in the template's source.
    pub span: Range<usize>,
    /// A null would be an error here: it is printed, or a field of it is read, and nothing guards it.
    pub needs_value: bool,
    /// Being undefined is no error here (`x|default("-")`, `x is defined`).
    pub optional: bool,
}

impl Read {
    /// As it is written: `a.b`.
    pub fn path(&self) -> String {
        let mut path = self.name.clone();
        for field in &self.fields {
            path.push('.');
            path.push_str(field);
        }
        path
    }
}

/// The names that mean the same in every template.
pub const FIXED_NAMES: [&str; 4] = ["item", "chain_input", "row_id", "vars"];

/// Where the value of a name comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Named(NameIx),
    Item,
    ChainInput,
    RowId,
    Vars,
    Field,
}

/// A compiled template.
#[derive(Debug)]
pub struct Template {
    env: Environment<'static>,
    source: String,
    names: Vec<(String, Place)>,
    reads: Vec<Read>,
    /// The reads as they stand in the text that runs: what an error's range points into.
    running: Vec<Read>,
    /// It is a `when`: an expression, not text with tags.
    is_condition: bool,
}

/// The name of the one template in an environment.
const MAIN: &str = "template";

impl Template {
    /// Compiles a template that may read the visible names.
    pub fn compile(source: &str, visible: &Visible) -> Result<Self, ExprError> {
        size::check(source, false)?;
        let analysis = analyse::analyse(source)?;
        Self::from_analysis(source, analysis, visible)
    }

    fn from_analysis(source: &str, analysis: Analysis, visible: &Visible) -> Result<Self, ExprError> {
        let guarded = analysis.rewritten(source);
        let (text, running) = match analyse::analyse(&guarded) {
            Ok(again) => (guarded, again.reads),
            // The marks never break a template; should one, the template runs without them.
            Err(_) => (source.to_owned(), analysis.reads.clone()),
        };
        let mut env = env::shared().clone();
        env.add_template_owned(MAIN, text)
            .map_err(|error| env::syntax_error(&error))?;
        let names = analysis
            .names
            .into_iter()
            .map(|name| {
                let place = place(&name, visible);
                (name, place)
            })
            .collect();
        Ok(Self {
            env,
            source: source.to_owned(),
            names,
            reads: analysis.reads,
            running,
            is_condition: false,
        })
    }

    /// The template as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What it reads, in source order.
    pub fn reads(&self) -> &[Read] {
        &self.reads
    }

    /// Renders for one row; the error is the row's `template` message.
    pub fn render(&self, scope: &Scope<'_>) -> Result<String, String> {
        self.env
            .get_template(MAIN)
            .and_then(|template| template.render(self.context(scope)))
            .map_err(|error| self.explain(&error, scope))
    }

    /// The names that the template reads, and nothing else.
    fn context(&self, scope: &Scope<'_>) -> Value {
        Value::from_pairs(self.names.iter().filter_map(|(name, place)| {
            let value = match place {
                Place::Vars => self.vars(scope),
                _ => self.value(name, *place, scope)?,
            };
            Some((name.as_str(), value))
        }))
    }

    fn value(&self, name: &str, place: Place, scope: &Scope<'_>) -> Option<Value> {
        Some(match place {
            Place::Named(NameIx(at)) => match scope.names.get(at)? {
                Named::Unset | Named::Null => Value::from(()),
                Named::Record(found) => record(found),
                Named::List(found) => list(found),
                Named::Text(text) => Value::from(text.clone()),
            },
            Place::Item => record(scope.item),
            Place::ChainInput => record(scope.chain_input),
            Place::RowId => Value::from(scope.row_id.to_string()),
            Place::Vars => Value::from(Serde(&scope.vars.json)),
            Place::Field => to_value(scope.item.get(name)?),
        })
    }

    /// The variables; only those that are read, where that is known.
    fn vars(&self, scope: &Scope<'_>) -> Value {
        let mut read: Vec<&str> = Vec::new();
        for one in self.reads.iter().filter(|r| r.name == "vars") {
            match one.fields.first() {
                Some(key) => read.push(key),
                None => return Value::from(Serde(&scope.vars.json)),
            }
        }
        Value::from_pairs(
            read.into_iter()
                .filter_map(|key| Some((key, Value::from(Serde(scope.vars.json.get(key)?))))),
        )
    }

    /// One line that says what was null or undefined.
    fn explain(&self, error: &minijinja::Error, scope: &Scope<'_>) -> String {
        let range = error.range().unwrap_or(0..usize::MAX);
        let overlaps = |read: &&Read| read.span.start < range.end && range.start < read.span.end;
        // The range of a failed filter is the filter's own: what it was given stands before it.
        let before = |read: &&Read| read.span.end <= range.start;
        let overlapping = self.running.iter().filter(overlaps);
        for read in overlapping.chain(self.running.iter().rev().filter(before)) {
            if let Some(message) = self.explain_read(read, scope) {
                return message;
            }
        }
        match env::one_line(error) {
            text if text == env::IS_NULL => self.null("the value", "NAME"),
            text => text,
        }
    }

    /// The message for a null, with what guards against it.
    fn null(&self, what: &str, path: &str) -> String {
        if self.is_condition {
            format!("{what} is null here; guard it: `{path} is not none and ...`")
        } else {
            format!("{what} is null here; guard it with {{% if {path} %}}")
        }
    }

    fn explain_read(&self, read: &Read, scope: &Scope<'_>) -> Option<String> {
        let place = self.names.iter().find(|(name, _)| *name == read.name)?.1;
        let Some(mut value) = self.value(&read.name, place, scope) else {
            let fields = field_names(scope.item);
            let message = format!("`{}` is undefined", read.name);
            return Some(with_known(message, &read.name, "the item", &fields));
        };
        let mut path = read.name.clone();
        for field in &read.fields {
            if value.is_none() {
                return Some(self.null(&format!("`{path}`"), &path));
            }
            let next = value.get_attr(field).unwrap_or_default();
            if next.is_undefined() {
                let fields: Vec<String> = match value.kind() {
                    minijinja::value::ValueKind::Map => value
                        .try_iter()
                        .map(|keys| keys.map(|k| k.to_string()).collect())
                        .unwrap_or_default(),
                    kind => return Some(format!("`{path}.{field}` is undefined; `{path}` is a {kind}")),
                };
                let message = format!("`{path}.{field}` is undefined");
                return Some(with_known(message, field, &format!("`{path}`"), &fields));
            }
            path = format!("{path}.{field}");
            value = next;
        }
        value.is_none().then(|| self.null(&format!("`{path}`"), &path))
    }
}

fn place(name: &str, visible: &Visible) -> Place {
    if let Some((_, ix)) = visible.iter().find(|(known, _)| known == name) {
        return Place::Named(*ix);
    }
    match name {
        "item" => Place::Item,
        "chain_input" => Place::ChainInput,
        "row_id" => Place::RowId,
        "vars" => Place::Vars,
        _ => Place::Field,
    }
}

fn field_names(record: &Record) -> Vec<String> {
    record
        .fields()
        .map(|(key, _)| serde_json::from_str(key).unwrap_or_default())
        .collect()
}

fn with_known(message: String, name: &str, owner: &str, fields: &[String]) -> String {
    match suggest(name, fields.iter().map(String::as_str)) {
        None => format!("{message}; {owner} is empty"),
        Some(help) => match help.strip_prefix("there is ") {
            Some(known) => format!("{message}; {owner} has {known}"),
            None => format!("{message}; {help}"),
        },
    }
}

/// Compiles a condition as a template that prints something when it holds, so that conditions
/// and `{% if %}` cannot differ.
///
/// The names returned cannot be null where it holds.
pub(super) fn condition(source: &str, visible: &Visible) -> Result<(Template, Vec<String>), ExprError> {
    const BEFORE: &str = "{% if (";
    size::check(source, true)?;
    let expr = minijinja::machinery::parse_expr(source).map_err(|error| env::syntax_error(&error))?;
    let guards = exprs::names_implied(&expr);
    let text = format!("{BEFORE}{source}) %}}1{{% endif %}}");
    let shift = |span: Range<usize>| {
        let clip = |at: usize| at.saturating_sub(BEFORE.len()).min(source.len());
        clip(span.start)..clip(span.end)
    };
    let analysis = analyse::analyse(&text).map_err(|error| ExprError {
        span: error.span.map(shift),
        ..error
    })?;
    let mut template = Template::from_analysis(&text, analysis, visible)?;
    template.is_condition = true;
    for read in &mut template.reads {
        read.span = shift(read.span.clone());
    }
    Ok((template, guards))
}
