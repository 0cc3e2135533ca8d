//! jq programs: compiled once, shared by threads, bounded.
//!
//! jaq has no interrupt of its own. The module `bounded` therefore plants a check into everything that can
//! go on for ever, and the check fails when a row's program is over its time or stack.

mod bounded;
mod fields;
mod infer;
mod outputs;
mod size;

pub(crate) use bounded::set_stack;
pub(crate) use fields::item_fields;
pub(crate) use infer::infer;
pub use outputs::Outputs;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use jaq_core::load::{self, Arena, File, Loader, Parser, parse::Def};
use jaq_core::{Ctx, Vars as JqVars, data};
use jaq_json::Val;

use crate::expr::{ExprError, NameIx, Scope, Visible};
use crate::row::{Named, Record};
use crate::spec::nearest;

/// More outputs than this for one row are a runaway program.
const MAX_OUTPUTS: usize = 1_000_000;

type Data = data::JustLut<Val>;

/// A compiled jq program, shared by threads.
pub struct JqProgram {
    source: String,
    filter: jaq_core::Filter<Data>,
    reads: Reads,
    outputs: Outputs,
    visible: Visible,
}

/// Which variables a program mentions: what it does not read is not built.
#[derive(Clone, Copy, Debug, Default)]
struct Reads {
    chain_input: bool,
    row_id: bool,
    vars: bool,
    row: bool,
}

/// The variables of a program, in the order in which they are bound.
const VARIABLES: [&str; 4] = ["$chain_input", "$row_id", "$vars", "$row"];

/// The definition that holds the user's program, so that it can carry checks.
const MAIN: &str = "main__";

impl JqProgram {
    /// Compiles a program that may read the visible names through `$row`.
    ///
    /// Filters that reach out of the row (`env`, `input`, `debug`, `halt`, `now`, local time) do not exist.
    pub fn compile(source: &str, visible: &Visible) -> Result<Self, ExprError> {
        size::with_room(source, || Self::read(source, visible)).unwrap_or_else(|error| {
            Err(ExprError {
                message: format!("there is no room to read the program in: {error}"),
                span: None,
            })
        })
    }

    fn read(source: &str, visible: &Visible) -> Result<Self, ExprError> {
        let tokens = size::lex(source)?.map_err(|errors| {
            first(
                source,
                errors.iter().map(|(expect, at)| {
                    let rest = at.trim_start();
                    let char = rest.chars().next();
                    let found = char.map_or_else(
                        || ", found the end of the program".to_owned(),
                        |c| format!(", found `{c}`"),
                    );
                    let at = rest.get(..char.map_or(0, char::len_utf8)).unwrap_or_default();
                    (format!("expected {}{found}", expect.as_str()), at)
                }),
            )
        })?;
        let term = Parser::new(&tokens).parse(|p| p.term()).map_err(|errors| {
            first(
                source,
                errors.iter().map(|(expect, found)| {
                    let at = found.map_or("", |token| token.as_str());
                    let found = if at.is_empty() {
                        "the end of the program"
                    } else {
                        at
                    };
                    let found = match at {
                        "" => found.to_owned(),
                        _ => format!("`{}`", cut(found, 40)),
                    };
                    (format!("expected {}, found {found}", expect.as_str()), at)
                }),
            )
        })?;
        let outputs = outputs::outputs(&term);
        let mut used = Vec::new();
        let body = bounded::bound(term, &mut used);
        let reads = Reads {
            chain_input: used.contains(&"$chain_input"),
            row_id: used.contains(&"$row_id"),
            vars: used.contains(&"$vars"),
            row: used.contains(&"$row"),
        };
        let main = Def {
            name: MAIN,
            args: Vec::new(),
            body,
        };
        let arena = Arena::default();
        let modules = Loader::new(bounded::definitions().iter().cloned().map(shorten).chain([main]))
            .load(&arena, File { code: MAIN, path: () })
            .map_err(|_| ExprError {
                message: "the program cannot be loaded".into(),
                span: None,
            })?;
        let filter = jaq_core::Compiler::default()
            .with_funs(bounded::functions().map(|(name, args, f)| -> (&str, _, _) { (name, args, f) }))
            .with_global_vars(VARIABLES)
            .compile(modules)
            .map_err(|errors| {
                let undefined = errors.iter().flat_map(|(_, undefined)| undefined);
                first(
                    source,
                    undefined.map(|(name, what)| {
                        let what = what.as_str();
                        let known = missing(name, what == "variable", visible);
                        (format!("undefined {what} `{name}`{known}"), *name)
                    }),
                )
            })?;
        Ok(Self {
            source: source.to_owned(),
            filter,
            reads,
            outputs,
            visible: visible.clone(),
        })
    }

    /// The program as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// How many rows it can make of one.
    pub fn outputs(&self) -> Outputs {
        self.outputs
    }

    /// Runs the program on the current item and appends its outputs in order.
    ///
    /// An object the program passed on untouched is the item itself, not a copy. On an error,
    /// which is the row's message, `out` may hold outputs that came before it.
    pub fn run(&self, scope: &Scope<'_>, out: &mut Vec<Record>) -> Result<(), String> {
        let _limits = bounded::start();
        match catch_unwind(AssertUnwindSafe(|| self.evaluate(scope, out))) {
            Ok(done) => done,
            Err(_) => Err("the jq interpreter failed on this row; please report it with the row".into()),
        }
    }

    fn evaluate(&self, scope: &Scope<'_>, out: &mut Vec<Record>) -> Result<(), String> {
        let reads = self.reads;
        let or_null = |read: bool, val: &dyn Fn() -> Val| if read { val() } else { Val::Null };
        let vars = JqVars::new([
            or_null(reads.chain_input, &|| scope.chain_input.val().clone()),
            or_null(reads.row_id, &|| Val::utf8_str(scope.row_id.to_string())),
            or_null(reads.vars, &|| scope.vars.val.clone()),
            or_null(reads.row, &|| self.row(scope)),
        ]);
        let ctx = Ctx::<Data>::new(&self.filter.lut, vars);
        for (n, output) in self.filter.id.run((ctx, scope.item.val().clone())).enumerate() {
            if n == MAX_OUTPUTS {
                return Err(format!("more than {MAX_OUTPUTS} outputs for one row"));
            }
            let val = match output {
                Ok(val) => val,
                Err(exception) => {
                    return Err(match exception.get_err() {
                        Ok(error) => match error.into_val() {
                            Val::TStr(text) => cut(&String::from_utf8_lossy(&text), 500),
                            other => cut(&other.to_string(), 500),
                        },
                        Err(_) => "the program broke off".into(),
                    });
                }
            };
            out.push(if scope.item.is_val(&val) {
                scope.item.clone()
            } else {
                Record::from_val(val).map_err(|e| e.to_string())?
            });
        }
        Ok(())
    }

    /// `$row`: everything this node can see.
    fn row(&self, scope: &Scope<'_>) -> Val {
        let mut fields: Vec<(Val, Val)> = vec![
            (Val::utf8_str("row_id"), Val::utf8_str(scope.row_id.to_string())),
            (Val::utf8_str("chain_input"), scope.chain_input.val().clone()),
            (Val::utf8_str("vars"), scope.vars.val.clone()),
        ];
        for (name, NameIx(ix)) in self.visible.iter() {
            let val = match scope.names.get(*ix) {
                None | Some(Named::Unset) => continue,
                Some(Named::Null) => Val::Null,
                Some(Named::Record(record)) => record.val().clone(),
                Some(Named::List(records)) => records.iter().map(|r| r.val().clone()).collect(),
                Some(Named::Text(text)) => Val::utf8_str(text.to_string()),
            };
            fields.push((Val::utf8_str(name.clone()), val));
        }
        Val::obj(fields.into_iter().collect())
    }
}

impl std::fmt::Debug for JqProgram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JqProgram({:?})", self.source)
    }
}

/// What to do about a filter or variable that does not exist, to be put behind the message.
fn missing(name: &str, is_variable: bool, visible: &Visible) -> String {
    if bounded::FORBIDDEN.contains(&name) {
        return " (an Apply is pure: no environment, files, process or clock)".to_owned();
    }
    if is_variable {
        let bare = name.trim_start_matches('$');
        if visible.iter().any(|(known, _)| known == bare) {
            return format!("; write `$row.{bare}`");
        }
        let near = nearest(name, VARIABLES).map(|near| format!("; did you mean `{near}`?"));
        return near.unwrap_or_else(|| format!("; there is {}", VARIABLES.join(", ")));
    }
    // Only those of filters that somebody may have meant: jq's inner ones end in `__`.
    let known: Vec<&str> = bounded::definitions().iter().map(|def| def.name).collect();
    let native: Vec<&str> = bounded::functions::<Data>().map(|(name, ..)| name).collect();
    let known = known.iter().chain(&native).copied();
    nearest(
        name,
        known.filter(|known| !known.ends_with("__") && !known.starts_with('_')),
    )
    .map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
}

/// Converts a JSON value for jq.
pub fn val_from_json(value: &serde_json::Value) -> Val {
    jaq_json::read::parse_single(value.to_string().as_bytes()).unwrap_or(Val::Null)
}

/// Lets static definitions stand beside those of a program.
fn shorten<'s>(def: Def<&'static str>) -> Def<&'s str> {
    def
}

/// The first of several errors: the rest mostly follows from it.
fn first<'s>(source: &'s str, errors: impl Iterator<Item = (String, &'s str)>) -> ExprError {
    let Some((message, at)) = errors.into_iter().next() else {
        return ExprError {
            message: "the program does not compile".into(),
            span: None,
        };
    };
    ExprError {
        message,
        span: span(source, at),
    }
}

/// Where `part` stands in `source`, when it is a part of it at all.
fn span(source: &str, part: &str) -> Option<Range<usize>> {
    let whole = source.as_bytes().as_ptr_range();
    let inside = whole.contains(&part.as_ptr()) && !part.is_empty();
    if inside {
        Some(load::span(source, part))
    } else {
        Some(source.len()..source.len())
    }
}

/// At most `max` characters of a text.
fn cut(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}
