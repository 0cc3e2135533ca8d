//! The one environment that all templates share: what Jinja may do here.

use std::sync::OnceLock;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value};

use super::values::write_json;
use crate::expr::ExprError;

/// Instructions that one rendering may take: a template with a loop over a long text stays far
/// below, an endless one ends within a second.
const FUEL: u64 = 10_000_000;

/// The filter that refuses null and undefined.
pub(super) const NOT_NULL: &str = "__value";

/// The filter that refuses what has no order against its argument: a text against a number.
pub(super) const ORDERED: &str = "__ordered";

/// What it says of a null.
pub(super) const IS_NULL: &str = "the value is null";

/// The environment every template is added to (a clone shares everything).
pub(super) fn shared() -> &'static Environment<'static> {
    static ENV: OnceLock<Environment<'static>> = OnceLock::new();
    ENV.get_or_init(|| {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        env.set_auto_escape_callback(|_| AutoEscape::None);
        // Errors carry the range of the expression that failed.
        env.set_debug(true);
        env.set_fuel(Some(FUEL));
        env.set_formatter(print);
        // It prints everything in scope.
        env.remove_global("debug");
        env.add_filter(NOT_NULL, not_null);
        env.add_filter(ORDERED, ordered);
        env.add_filter("tojson", tojson);
        env
    })
}

fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let value = not_null(value.clone())?;
    minijinja::escape_formatter(out, state, &value)
}

fn not_null(value: Value) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    if value.is_none() {
        return Err(Error::new(ErrorKind::InvalidOperation, IS_NULL));
    }
    Ok(value)
}

/// Gives the value back; an error where it and the other are of kinds that have no order.
fn ordered(value: Value, other: &Value, path: &str) -> Result<Value, Error> {
    let value = not_null(value)?;
    let (own, against) = (value.kind(), other.kind());
    // Null and undefined have errors of their own.
    if own == against || other.is_undefined() || other.is_none() {
        return Ok(value);
    }
    let help = match (own, against) {
        (ValueKind::String, ValueKind::Number) => format!("; convert it: `{path}|int` or `{path}|float`"),
        (_, ValueKind::String) => format!("; convert it: `{path}|string`"),
        _ => String::new(),
    };
    let message = format!("`{path}` is a {own} and cannot be compared with a {against}{help}");
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// JSON text as Python's `json.dumps` spaces it. Unlike Jinja's own filter it escapes nothing for
/// HTML: a prompt is no page.
fn tojson(value: &Value, args: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = args.get("indent")?;
    args.assert_all_used()?;
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    let mut text = String::new();
    write_json(value, &mut text);
    let Some(indent) = indent else {
        return Ok(text);
    };
    let fail = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let parsed: serde_json::Value = serde_json::from_str(&text).map_err(fail)?;
    let spaces = " ".repeat(indent.min(16));
    let mut out = Vec::new();
    let style = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
    let mut writer = serde_json::Serializer::with_formatter(&mut out, style);
    serde::Serialize::serialize(&parsed, &mut writer).map_err(fail)?;
    String::from_utf8(out).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
}

/// True when a filter of this name exists.
pub(super) fn has_filter(name: &str) -> bool {
    let called = shared().empty_state().apply_filter(name, &[]);
    !matches!(called, Err(error) if error.kind() == ErrorKind::UnknownFilter)
}

/// True when a test of this name exists.
pub(super) fn has_test(name: &str) -> bool {
    let called = shared().empty_state().perform_test(name, &[]);
    !matches!(called, Err(error) if error.kind() == ErrorKind::UnknownTest)
}

/// True when a global function of this name exists.
pub(super) fn has_function(name: &str) -> bool {
    shared().globals().any(|(known, _)| known == name)
}

/// minijinja's error as one lowercase line.
pub(super) fn one_line(error: &Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return "the template runs too long".to_owned();
    }
    let text = match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    };
    let mut cause = std::error::Error::source(error);
    let mut text = text.replace(['\n', '\r'], " ");
    while let Some(inner) = cause {
        let part = inner.to_string().replace(['\n', '\r'], " ");
        text = format!("{text}: {part}");
        cause = inner.source();
    }
    text
}

/// A syntax error with its place.
pub(super) fn syntax_error(error: &Error) -> ExprError {
    ExprError {
        message: one_line(error),
        span: error.range(),
    }
}

/// The filter that a name that is none may have meant, to be put behind the message.
pub(super) fn near_filter(name: &str) -> String {
    const COMMON: [&str; 24] = [
        "upper", "lower", "title", "trim", "replace", "join", "split", "length", "first", "last", "default",
        "tojson", "round", "int", "float", "sort", "unique", "map", "select", "reject", "indent", "list",
        "sum", "items",
    ];
    match crate::spec::suggest(name, COMMON) {
        Some(help) if help.starts_with("did") => format!("; {help}"),
        _ => String::new(),
    }
}
