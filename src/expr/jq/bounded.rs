//! Limits for jq programs: a check in every recursion, fold and range.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use jaq_core::load::parse::{BinaryOp, Def, Pattern, Term};
use jaq_core::load::{self, lex::StrPart};
use jaq_core::native::{Fun, bome, run, v};
use jaq_core::ops::Math;
use jaq_core::path::{Part, Path};
use jaq_core::{DataT, Error};
use jaq_json::{Num, Val};

/// A row's program may take this long.
const MAX_TIME: Duration = Duration::from_secs(60);

/// Stack that a program may use on a thread that did not say more.
const DEFAULT_STACK: usize = 768 * 1024;

/// A text made by repeating another may be this long: what cannot be allocated ends the process.
const MAX_TEXT: usize = crate::source::MAX_ROW_BYTES;

/// JSON in a text may nest this deep: its parser recurses, and a stack that is used up ends the process.
const MAX_NESTED: usize = 1000;

/// Filters that end the process, reach out of the row, or give other results on a rerun.
pub(super) const FORBIDDEN: [&str; 16] = [
    "env",
    "halt",
    "halt_error",
    "input",
    "inputs",
    "stderr",
    "debug",
    "debug_empty",
    "stderr_empty",
    "now",
    "localtime",
    "strflocaltime",
    "input_filename",
    "input_line_number",
    "get_search_list",
    "$ENV",
];

/// The name of the check in a program.
const TICK: &str = "tick__";

/// The name of the bounded `*`.
const MUL: &str = "mul__";

thread_local! {
    static LIMITS: Cell<Limits> = const { Cell::new(Limits { ticks: 0, deadline: None, base: 0 }) };
    static STACK: Cell<usize> = const { Cell::new(DEFAULT_STACK) };
}

#[derive(Clone, Copy)]
struct Limits {
    ticks: u32,
    deadline: Option<Instant>,
    base: usize,
}

/// Says how much stack jq programs may use on this thread.
pub(crate) fn set_stack(bytes: usize) {
    STACK.with(|stack| stack.set(bytes));
}

/// Starts the clock for one row; it stops when the guard is dropped.
pub(super) fn start() -> Running {
    LIMITS.with(|limits| {
        limits.replace(Limits {
            ticks: 0,
            deadline: None,
            base: here(),
        })
    });
    Running(())
}

/// While this lives, checks count against one row.
pub(super) struct Running(());

impl Drop for Running {
    fn drop(&mut self) {
        LIMITS.with(|limits| {
            limits.set(Limits {
                ticks: 0,
                deadline: None,
                base: 0,
            })
        });
    }
}

/// An address on the current stack frame.
#[inline(never)]
fn here() -> usize {
    let marker = 0_u8;
    std::ptr::from_ref(&marker).addr()
}

/// The check: an error when the row is over its limits.
fn tick() -> Result<(), &'static str> {
    LIMITS.with(|cell| {
        let mut limits = cell.get();
        if limits.base != 0 && limits.base.abs_diff(here()) > STACK.with(Cell::get) {
            return Err("the program recurses too deep for one row");
        }
        limits.ticks = limits.ticks.wrapping_add(1);
        if limits.ticks % 1024 == 0 {
            let now = Instant::now();
            // The clock starts at the first look, so that short programs never read it.
            match limits.deadline {
                None => limits.deadline = Some(now + MAX_TIME),
                Some(deadline) if now > deadline => {
                    return Err("the program ran for more than 60 s on one row");
                }
                Some(_) => {}
            }
        }
        cell.set(limits);
        Ok(())
    })
}

/// `*`, unless it repeats a text too often.
fn multiply(left: Val, right: Val) -> Result<Val, Error<Val>> {
    if let (Val::TStr(text) | Val::BStr(text), Val::Num(times))
    | (Val::Num(times), Val::TStr(text) | Val::BStr(text)) = (&left, &right)
        && repeats(times).saturating_mul(text.len()) > MAX_TEXT
    {
        let problem = format!("a repeated text may have {} MiB at most", MAX_TEXT >> 20);
        return Err(Error::new(Val::utf8_str(problem)));
    }
    left * right
}

/// How often a text is repeated by a number.
fn repeats(times: &Num) -> usize {
    match times {
        Num::Int(n) => usize::try_from(*n).unwrap_or(0),
        Num::BigInt(n) if !n.to_string().starts_with('-') => usize::MAX,
        _ => 0,
    }
}

/// The check before a text is read as JSON.
fn shallow(text: &Val) -> Result<Val, Error<Val>> {
    if let Val::TStr(text) | Val::BStr(text) = text
        && nests_deeper(text, MAX_NESTED)
    {
        let problem = format!("JSON in a text may nest {MAX_NESTED} levels at most");
        return Err(Error::new(Val::utf8_str(problem)));
    }
    Ok(Val::Bool(true))
}

/// True when brackets outside of strings nest deeper than `max`.
fn nests_deeper(text: &[u8], max: usize) -> bool {
    if memchr::memchr2_iter(b'{', b'[', text).take(max + 1).count() <= max {
        return false;
    }
    // A comment may hold a single quote mark; then every bracket counts.
    let strings = memchr::memchr(b'#', text).is_none();
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    text.iter().any(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' if strings => quoted = !quoted,
            b'{' | b'[' if !quoted => depth += 1,
            b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > max
    })
}

/// The native filters a program may call.
pub(super) fn functions<D>() -> impl Iterator<Item = Fun<D>>
where
    D: DataT,
    D: for<'a> DataT<V<'a> = Val>,
{
    let check = run((TICK, v(0), |_| {
        bome(
            tick()
                .map(|()| Val::Bool(true))
                .map_err(|e| Error::new(Val::utf8_str(e))),
        )
    }));
    let text = run(("shallow__", v(0), |cv| bome(shallow(&cv.1))));
    let product = run((MUL, v(2), |mut cv| {
        let right = cv.0.pop_var();
        bome(multiply(cv.0.pop_var(), right))
    }));
    jaq_core::funs()
        .chain(jaq_std::funs())
        .chain(jaq_json::funs())
        .filter(|(name, ..)| !FORBIDDEN.contains(name))
        .map(|(name, args, f)| {
            let name = match name {
                "range" => "range__",
                "fromjson" => "fromjson__",
                name => name,
            };
            (name, args, f)
        })
        .chain([check, text, product])
}

/// The definitions a program may call, with checks planted; parsed once.
pub(super) fn definitions() -> &'static [Def<&'static str>] {
    static DEFINITIONS: OnceLock<Vec<Def<&'static str>>> = OnceLock::new();
    DEFINITIONS.get_or_init(|| bounded_definitions().collect())
}

fn bounded_definitions() -> impl Iterator<Item = Def<&'static str>> {
    const BOUNDED: &str =
        "def range($from; $to; $by): range__($from; $to; $by) | if tick__ then . else empty end;
        def fromjson: if shallow__ then fromjson__ else empty end;";
    // jaq's own give nothing for "" and two numbers for "1 2": rows would vanish, or multiply.
    const STRICT: &str = "def totype__(p; $kind): if p then . else [fromjson] as $all \
            | if ($all | length) == 1 and ($all[0] | p) then $all[0] \
              else error(\"\\(tojson) cannot be parsed as a \\($kind)\") end end;
        def tonumber: totype__(isnumber; \"number\");
        def toboolean: totype__(isboolean; \"boolean\");";
    let parse = |source| load::parse(source, |p| p.defs()).unwrap_or_default();
    let (bounded, strict) = (parse(BOUNDED), parse(STRICT));
    let (empty, core): (Vec<_>, Vec<_>) = jaq_core::defs().partition(|def| def.name == "empty");
    empty
        .into_iter()
        .chain(bounded)
        .chain(core)
        .chain(jaq_std::defs())
        .chain(jaq_json::defs().filter(|def| !["tonumber", "toboolean"].contains(&def.name)))
        .chain(strict)
        .filter(|def| !FORBIDDEN.contains(&def.name))
        .map(|def| bound_def(def, &mut Vec::new(), &mut Vec::new()))
}

/// Plants checks into a program; the variables it reads are added to `used`.
pub(super) fn bound<'s>(term: Term<&'s str>, used: &mut Vec<&'s str>) -> Term<&'s str> {
    Planter {
        open: Vec::new(),
        used,
    }
    .term(term)
}

fn bound_def<'s>(
    def: Def<&'s str>,
    open: &mut Vec<(&'s str, usize, bool)>,
    used: &mut Vec<&'s str>,
) -> Def<&'s str> {
    Planter {
        open: std::mem::take(open),
        used,
    }
    .def(def)
}

/// Rewrites a program: a check in each definition that calls itself, and in each step of a fold.
struct Planter<'s, 'u> {
    /// Definitions around the current place: name, arity, and whether they were called from inside.
    open: Vec<(&'s str, usize, bool)>,
    used: &'u mut Vec<&'s str>,
}

impl<'s> Planter<'s, '_> {
    fn def(&mut self, def: Def<&'s str>) -> Def<&'s str> {
        self.open.push((def.name, def.args.len(), false));
        let body = self.term(def.body);
        let recursive = self.open.pop().is_some_and(|(_, _, called)| called);
        Def {
            name: def.name,
            args: def.args,
            body: if recursive { checked(body) } else { body },
        }
    }

    fn term(&mut self, term: Term<&'s str>) -> Term<&'s str> {
        match term {
            Term::Id | Term::Recurse | Term::Num(_) | Term::Break(_) => term,
            Term::Var(name) => {
                self.used.push(name);
                term
            }
            Term::Str(format, parts) => {
                let parts = parts.into_iter().map(|part| match part {
                    StrPart::Term(term) => StrPart::Term(self.term(term)),
                    other => other,
                });
                Term::Str(format, parts.collect())
            }
            Term::Arr(inner) => Term::Arr(inner.map(|inner| self.boxed(inner))),
            Term::Obj(fields) => {
                let fields = fields.into_iter().map(|(key, value)| {
                    let key = self.term(key);
                    (key, value.map(|value| self.term(value)))
                });
                Term::Obj(fields.collect())
            }
            Term::Neg(inner) => Term::Neg(self.boxed(inner)),
            Term::BinOp(left, BinaryOp::Math(Math::Mul), right) => {
                Term::Call(MUL, vec![self.term(*left), self.term(*right)])
            }
            // `l *= r` is `r as $x | l |= . * $x`.
            Term::BinOp(left, BinaryOp::UpdateMath(Math::Mul), right) => {
                let factor = "$factor__";
                let product = Term::Call(MUL, vec![Term::Id, Term::Var(factor)]);
                let update = Term::BinOp(self.boxed(left), BinaryOp::Update, Box::new(product));
                let bind = BinaryOp::Pipe(Some(Pattern::Var(factor)));
                Term::BinOp(self.boxed(right), bind, Box::new(update))
            }
            Term::BinOp(left, op, right) => {
                let left = self.boxed(left);
                let op = match op {
                    BinaryOp::Pipe(pattern) => BinaryOp::Pipe(pattern.map(|pattern| self.pattern(pattern))),
                    other => other,
                };
                Term::BinOp(left, op, self.boxed(right))
            }
            Term::Label(name, inner) => Term::Label(name, self.boxed(inner)),
            Term::Fold(name, source, pattern, args) => {
                let source = self.boxed(source);
                let pattern = self.pattern(pattern);
                let args = args.into_iter().enumerate().map(|(i, arg)| {
                    let arg = self.term(arg);
                    // The second argument runs once per value folded.
                    if i == 1 { checked(arg) } else { arg }
                });
                Term::Fold(name, source, pattern, args.collect())
            }
            Term::TryCatch(body, handler) => {
                let body = self.boxed(body);
                Term::TryCatch(body, handler.map(|handler| self.boxed(handler)))
            }
            Term::IfThenElse(cases, otherwise) => {
                let cases = cases
                    .into_iter()
                    .map(|(condition, then)| (self.term(condition), self.term(then)));
                let cases = cases.collect();
                Term::IfThenElse(cases, otherwise.map(|otherwise| self.boxed(otherwise)))
            }
            Term::Def(defs, rest) => {
                let defs = defs.into_iter().map(|def| self.def(def)).collect();
                Term::Def(defs, self.boxed(rest))
            }
            Term::Call(name, args) => {
                for (open, arity, called) in self.open.iter_mut().rev() {
                    if *open == name && *arity == args.len() {
                        *called = true;
                        break;
                    }
                }
                Term::Call(name, args.into_iter().map(|arg| self.term(arg)).collect())
            }
            Term::Path(head, Path(parts)) => {
                let head = self.boxed(head);
                let parts = parts.into_iter().map(|(part, opt)| {
                    let part = match part {
                        Part::Index(index) => Part::Index(self.term(index)),
                        Part::Range(from, to) => {
                            let from = from.map(|from| self.term(from));
                            Part::Range(from, to.map(|to| self.term(to)))
                        }
                    };
                    (part, opt)
                });
                Term::Path(head, Path(parts.collect()))
            }
        }
    }

    fn boxed(&mut self, term: Box<Term<&'s str>>) -> Box<Term<&'s str>> {
        let mut term = term;
        *term = self.term(std::mem::take(&mut *term));
        term
    }

    fn pattern(&mut self, pattern: Pattern<&'s str>) -> Pattern<&'s str> {
        match pattern {
            Pattern::Var(name) => Pattern::Var(name),
            Pattern::Arr(items) => Pattern::Arr(items.into_iter().map(|item| self.pattern(item)).collect()),
            Pattern::Obj(fields) => {
                let fields = fields
                    .into_iter()
                    .map(|(key, value)| (self.term(key), self.pattern(value)));
                Pattern::Obj(fields.collect())
            }
        }
    }
}

/// `if tick__ then BODY else empty end`: unlike a pipe, this keeps paths and tail calls working.
fn checked(body: Term<&str>) -> Term<&str> {
    let empty = Term::Call("empty", Vec::new());
    Term::IfThenElse(vec![(Term::Call(TICK, Vec::new()), body)], Some(Box::new(empty)))
}
