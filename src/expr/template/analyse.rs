//! What a template reads, and where a null must be refused: a walk over its syntax tree.

use std::collections::HashSet;
use std::ops::Range;

use minijinja::machinery::ast::{BinOpKind, CallArg, CompareOpKind, Expr, Stmt, UnaryOpKind};
use minijinja::machinery::{Span, parse};
use minijinja::syntax::SyntaxConfig;

use super::{Read, env};
use crate::expr::ExprError;
use crate::spec::suggest;

/// The result of the walk.
#[derive(Debug)]
pub(super) struct Analysis {
    /// What is read, in source order.
    pub(super) reads: Vec<Read>,
    /// The names that a row's values are looked up for.
    pub(super) names: Vec<String>,
    /// Expressions that must not be null.
    marks: Vec<Mark>,
}

/// An expression that a filter looks at.
#[derive(Debug)]
struct Mark {
    at: Range<usize>,
    /// What it is ordered against, by `<` and its like.
    against: Option<Range<usize>>,
}

impl Mark {
    /// The filter, with what it needs.
    fn filter(&self, source: &str) -> String {
        let text = |range: &Range<usize>| source.get(range.clone()).unwrap_or_default();
        match &self.against {
            None => env::NOT_NULL.to_owned(),
            Some(other) => format!("{}({}, {:?})", env::ORDERED, text(other), text(&self.at)),
        }
    }
}

impl Analysis {
    /// The source with every mark written as a filter.
    pub(super) fn rewritten(&self, source: &str) -> String {
        // At one place: first what ends here, the inner before the outer, then what begins, the
        // outer before the inner (the walk meets the outer first).
        let mut edits: Vec<(usize, bool, isize)> = Vec::new();
        for (order, mark) in (0_isize..).zip(&self.marks) {
            edits.push((mark.at.start, true, order));
            edits.push((mark.at.end, false, -order));
        }
        edits.sort_unstable();
        let mut out = String::with_capacity(source.len() + edits.len() * 12);
        let mut from = 0;
        for (at, opens, order) in edits {
            out.push_str(source.get(from..at).unwrap_or_default());
            from = at;
            if opens {
                out.push('(');
            } else if let Some(mark) = self.marks.get(order.unsigned_abs()) {
                out.push('|');
                out.push_str(&mark.filter(source));
                out.push(')');
            }
        }
        out.push_str(source.get(from..).unwrap_or_default());
        out
    }
}

/// Parses and walks a template.
pub(super) fn analyse(source: &str) -> Result<Analysis, ExprError> {
    let tree =
        parse(source, "template", SyntaxConfig::default()).map_err(|error| env::syntax_error(&error))?;
    let mut walk = Walk {
        scopes: vec![HashSet::new()],
        guards: Vec::new(),
        found: Analysis {
            reads: Vec::new(),
            names: Vec::new(),
            marks: Vec::new(),
        },
        error: None,
    };
    walk.stmt(&tree);
    match walk.error {
        Some(error) => Err(error),
        None => {
            walk.found.reads.sort_by_key(|r| r.span.start);
            Ok(walk.found)
        }
    }
}

/// What the surroundings do with an expression's value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Prints it or computes with it: null is an error.
    Value,
    /// Asks whether it is true, or hands it on: null is fine.
    Test,
    /// Undefined is fine, too.
    Optional,
}

struct Walk {
    /// Names that the template sets itself.
    scopes: Vec<HashSet<String>>,
    /// Paths known not to be null here.
    guards: Vec<String>,
    found: Analysis,
    error: Option<ExprError>,
}

/// Filters that take a null.
const NULL_FILTERS: [&str; 6] = ["default", "d", "tojson", "pprint", "list", "bool"];

/// Tests that only hold for what is not null.
const VALUE_TESTS: [&str; 12] = [
    "string",
    "number",
    "integer",
    "int",
    "float",
    "boolean",
    "mapping",
    "sequence",
    "iterable",
    "startingwith",
    "endingwith",
    "true",
];

fn range(span: Span) -> Range<usize> {
    span.start_offset as usize..span.end_offset as usize
}

/// All of an expression. minijinja's span of `a.b.c` and the like begins at the last part.
fn whole(expr: &Expr<'_>) -> Range<usize> {
    let span = range(expr.span());
    let first = match expr {
        Expr::GetAttr(e) => Some(&e.expr),
        Expr::GetItem(e) => Some(&e.expr),
        Expr::Slice(e) => Some(&e.expr),
        Expr::Call(e) => Some(&e.expr),
        Expr::Filter(e) => e.expr.as_ref(),
        Expr::Test(e) => Some(&e.expr),
        Expr::BinOp(e) => Some(&e.left),
        Expr::Compare(e) => Some(&e.expr),
        _ => None,
    };
    let start = first.map_or(span.start, |first| whole(first).start.min(span.start));
    start..span.end
}

/// `a.b["c"]` as `a` and `[b, c]`.
fn path_of<'e>(expr: &'e Expr<'_>) -> Option<(&'e str, Span, Vec<String>)> {
    match expr {
        Expr::Var(var) => Some((var.id, var.span(), Vec::new())),
        Expr::GetAttr(attr) => {
            let (name, span, mut fields) = path_of(&attr.expr)?;
            fields.push(attr.name.to_owned());
            Some((name, span, fields))
        }
        Expr::GetItem(item) => {
            let Expr::Const(key) = &item.subscript_expr else {
                return None;
            };
            let (name, span, mut fields) = path_of(&item.expr)?;
            fields.push(key.value.as_str()?.to_owned());
            Some((name, span, fields))
        }
        _ => None,
    }
}

fn joined(name: &str, fields: &[String]) -> String {
    std::iter::once(name)
        .chain(fields.iter().map(String::as_str))
        .collect::<Vec<_>>()
        .join(".")
}

fn is_null(expr: &Expr<'_>) -> bool {
    matches!(expr, Expr::Const(c) if c.value.is_none())
}

/// The names that cannot be null when the expression is true.
pub(super) fn names_implied(expr: &Expr<'_>) -> Vec<String> {
    implied(expr, true)
        .iter()
        .filter_map(|path| path.split('.').next())
        .map(str::to_owned)
        .collect()
}

/// The paths that cannot be null when the expression is true (or false).
fn implied(expr: &Expr<'_>, truth: bool) -> Vec<String> {
    if let Some((name, _, fields)) = path_of(expr) {
        return if truth {
            vec![joined(name, &fields)]
        } else {
            Vec::new()
        };
    }
    let compared = |left: &Expr<'_>, right: &Expr<'_>, equal: bool| {
        if is_null(left) || is_null(right) {
            if truth == equal {
                return Vec::new();
            }
        } else if !truth {
            return Vec::new();
        }
        [left, right]
            .iter()
            .filter_map(|e| path_of(e))
            .map(|(name, _, fields)| joined(name, &fields))
            .collect()
    };
    match expr {
        Expr::UnaryOp(op) if matches!(op.op, UnaryOpKind::Not) => implied(&op.expr, !truth),
        Expr::BinOp(op) => match (op.op, truth) {
            (BinOpKind::ScAnd, true) | (BinOpKind::ScOr, false) => {
                let mut all = implied(&op.left, truth);
                all.extend(implied(&op.right, truth));
                all
            }
            (BinOpKind::Eq, _) => compared(&op.left, &op.right, true),
            (BinOpKind::Ne, _) => compared(&op.left, &op.right, false),
            (BinOpKind::Lt | BinOpKind::Lte | BinOpKind::Gt | BinOpKind::Gte, true) => {
                compared(&op.left, &op.right, false)
            }
            _ => Vec::new(),
        },
        Expr::Compare(compare) => match compare.ops.as_slice() {
            [op] => match op.op {
                CompareOpKind::Eq => compared(&compare.expr, &op.expr, true),
                CompareOpKind::In | CompareOpKind::NotIn => Vec::new(),
                _ => compared(&compare.expr, &op.expr, false),
            },
            _ => Vec::new(),
        },
        Expr::Test(test) => {
            let told = match test.name {
                "none" => !truth,
                name => truth && VALUE_TESTS.contains(&name),
            };
            match path_of(&test.expr) {
                Some((name, _, fields)) if told => vec![joined(name, &fields)],
                _ => Vec::new(),
            }
        }
        _ => Vec::new(),
    }
}

impl Walk {
    fn fail(&mut self, span: Span, message: String) {
        self.error.get_or_insert(ExprError {
            message,
            span: Some(range(span)),
        });
    }

    fn is_local(&self, name: &str) -> bool {
        self.scopes.iter().any(|s| s.contains(name))
    }

    fn declare(&mut self, target: &Expr<'_>) {
        match target {
            Expr::Var(var) => {
                if let Some(scope) = self.scopes.last_mut() {
                    scope.insert(var.id.to_owned());
                }
            }
            Expr::List(list) => list.items.iter().for_each(|e| self.declare(e)),
            Expr::Tuple(tuple) => tuple.items.iter().for_each(|e| self.declare(e)),
            _ => {}
        }
    }

    fn declare_names(&mut self, names: &[&str]) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.extend(names.iter().map(|n| (*n).to_owned()));
        }
    }

    fn scoped(&mut self, body: impl FnOnce(&mut Self)) {
        self.scopes.push(HashSet::new());
        body(self);
        self.scopes.pop();
    }

    fn guarded(&mut self, paths: Vec<String>, body: impl FnOnce(&mut Self)) {
        let before = self.guards.len();
        self.guards.extend(paths);
        body(self);
        self.guards.truncate(before);
    }

    fn stmts(&mut self, stmts: &[Stmt<'_>]) {
        stmts.iter().for_each(|s| self.stmt(s));
    }

    fn stmt(&mut self, stmt: &Stmt<'_>) {
        match stmt {
            Stmt::Template(t) => self.stmts(&t.children),
            Stmt::EmitExpr(e) => self.expr(&e.expr, Use::Value),
            Stmt::EmitRaw(_) | Stmt::Continue(_) | Stmt::Break(_) => {}
            Stmt::ForLoop(f) => {
                self.operand(&f.iter);
                self.scoped(|w| {
                    w.declare(&f.target);
                    w.declare_names(&["loop"]);
                    let guards = f
                        .filter_expr
                        .as_ref()
                        .map(|filter| {
                            w.expr(filter, Use::Test);
                            implied(filter, true)
                        })
                        .unwrap_or_default();
                    w.guarded(guards, |w| w.stmts(&f.body));
                });
                self.scoped(|w| w.stmts(&f.else_body));
            }
            Stmt::IfCond(c) => {
                self.expr(&c.expr, Use::Test);
                self.guarded(implied(&c.expr, true), |w| w.stmts(&c.true_body));
                self.guarded(implied(&c.expr, false), |w| w.stmts(&c.false_body));
            }
            Stmt::WithBlock(b) => {
                for (_, value) in &b.assignments {
                    self.expr(value, Use::Test);
                }
                self.scoped(|w| {
                    for (target, _) in &b.assignments {
                        w.declare(target);
                    }
                    w.stmts(&b.body);
                });
            }
            Stmt::Set(s) => {
                self.expr(&s.expr, Use::Test);
                self.declare(&s.target);
            }
            Stmt::SetBlock(s) => {
                self.scoped(|w| w.stmts(&s.body));
                if let Some(filter) = &s.filter {
                    self.expr(filter, Use::Value);
                }
                self.declare(&s.target);
            }
            Stmt::AutoEscape(a) => {
                self.expr(&a.enabled, Use::Test);
                self.stmts(&a.body);
            }
            Stmt::FilterBlock(f) => {
                self.expr(&f.filter, Use::Value);
                self.scoped(|w| w.stmts(&f.body));
            }
            Stmt::Macro(m) => {
                self.declare_names(&[m.name]);
                self.macro_body(&m.args, &m.defaults, &m.body);
            }
            Stmt::CallBlock(c) => {
                self.call(&c.call.expr, &c.call.args, c.call.span());
                let m = &c.macro_decl;
                self.macro_body(&m.args, &m.defaults, &m.body);
            }
            Stmt::Do(d) => self.call(&d.call.expr, &d.call.args, d.call.span()),
            Stmt::Block(b) => self.scoped(|w| w.stmts(&b.body)),
            Stmt::Import(i) => self.fail(i.span(), OTHERS.to_owned()),
            Stmt::FromImport(i) => self.fail(i.span(), OTHERS.to_owned()),
            Stmt::Extends(e) => self.fail(e.span(), OTHERS.to_owned()),
            Stmt::Include(i) => self.fail(i.span(), OTHERS.to_owned()),
        }
    }

    fn macro_body(&mut self, args: &[Expr<'_>], defaults: &[Expr<'_>], body: &[Stmt<'_>]) {
        defaults.iter().for_each(|d| self.expr(d, Use::Test));
        self.scoped(|w| {
            args.iter().for_each(|a| w.declare(a));
            w.declare_names(&["caller", "varargs", "kwargs"]);
            w.stmts(body);
        });
    }

    /// Notes a read of a name, unless the template set that itself.
    fn read(&mut self, expr: &Expr<'_>, name: &str, fields: Vec<String>, used: Use) {
        if self.is_local(name) || name == "self" {
            return;
        }
        let guarded = self
            .guards
            .iter()
            .any(|g| g == name || g.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')));
        if !self.found.names.iter().any(|n| n == name) {
            self.found.names.push(name.to_owned());
        }
        let needs_value = !guarded && (!fields.is_empty() || used == Use::Value);
        self.found.reads.push(Read {
            name: name.to_owned(),
            fields,
            span: range(expr.span()),
            needs_value,
            optional: used == Use::Optional,
        });
    }

    /// Marks an operand that must not be null.
    fn operand(&mut self, expr: &Expr<'_>) {
        if !matches!(expr, Expr::Const(_)) {
            self.mark(whole(expr));
        }
        self.expr(expr, Use::Value);
    }

    fn mark(&mut self, at: Range<usize>) {
        self.found.marks.push(Mark { at, against: None });
    }

    /// Notes that the two operands walked last are ordered: minijinja orders a text and a number by their
    /// kinds, without a word. Only what needs no parentheses is looked at.
    fn ordered(&mut self, left: &Expr<'_>, right: &Expr<'_>) {
        let simple = |expr: &Expr<'_>| matches!(expr, Expr::Const(_)) || path_of(expr).is_some();
        if !(simple(left) && simple(right)) {
            return;
        }
        let path = if path_of(left).is_some() { left } else { right };
        let other = if std::ptr::eq(path, left) { right } else { left };
        let at = whole(path);
        if let Some(mark) = self.found.marks.iter_mut().rev().find(|mark| mark.at == at) {
            mark.against = Some(whole(other));
        }
    }

    fn expr(&mut self, expr: &Expr<'_>, used: Use) {
        if let Some((name, root, fields)) = path_of(expr) {
            if used == Use::Optional && !fields.is_empty() && !self.is_local(name) {
                // `fr.text|default("-")` forgives a missing `text`, not a null `fr`.
                self.mark(range(root));
            }
            self.read(expr, name, fields, used);
            return;
        }
        match expr {
            Expr::Var(_) | Expr::Const(_) => {}
            Expr::GetAttr(e) => self.expr(&e.expr, Use::Value),
            Expr::GetItem(e) => {
                self.expr(&e.expr, Use::Value);
                self.expr(&e.subscript_expr, Use::Value);
            }
            Expr::Slice(e) => {
                self.operand(&e.expr);
                for part in [&e.start, &e.stop, &e.step].into_iter().flatten() {
                    self.expr(part, Use::Value);
                }
            }
            Expr::UnaryOp(e) => match e.op {
                UnaryOpKind::Not => self.expr(&e.expr, Use::Test),
                UnaryOpKind::Neg => self.expr(&e.expr, Use::Value),
            },
            Expr::BinOp(e) => match e.op {
                BinOpKind::ScAnd | BinOpKind::ScOr => {
                    // The left value of `or` comes out only when it is true.
                    self.expr(&e.left, Use::Test);
                    let guards = implied(&e.left, matches!(e.op, BinOpKind::ScAnd));
                    self.guarded(guards, |w| w.expr(&e.right, used));
                }
                BinOpKind::In => {
                    self.expr(&e.left, Use::Test);
                    self.operand(&e.right);
                }
                BinOpKind::Eq | BinOpKind::Ne if is_null(&e.left) || is_null(&e.right) => {
                    self.expr(&e.left, Use::Test);
                    self.expr(&e.right, Use::Test);
                }
                _ => {
                    self.operand(&e.left);
                    self.operand(&e.right);
                    if matches!(
                        e.op,
                        BinOpKind::Lt | BinOpKind::Lte | BinOpKind::Gt | BinOpKind::Gte
                    ) {
                        self.ordered(&e.left, &e.right);
                    }
                }
            },
            Expr::Compare(e) => {
                let with_null = is_null(&e.expr) || e.ops.iter().any(|op| is_null(&op.expr));
                let any_in = e
                    .ops
                    .iter()
                    .any(|op| matches!(op.op, CompareOpKind::In | CompareOpKind::NotIn));
                for operand in std::iter::once(&e.expr).chain(e.ops.iter().map(|op| &op.expr)) {
                    if with_null || any_in {
                        self.expr(operand, Use::Test);
                    } else {
                        self.operand(operand);
                    }
                }
                let mut left = &e.expr;
                for op in &e.ops {
                    if matches!(
                        op.op,
                        CompareOpKind::Lt | CompareOpKind::Lte | CompareOpKind::Gt | CompareOpKind::Gte
                    ) {
                        self.ordered(left, &op.expr);
                    }
                    left = &op.expr;
                }
            }
            Expr::IfExpr(e) => {
                self.expr(&e.test_expr, Use::Test);
                self.guarded(implied(&e.test_expr, true), |w| w.expr(&e.true_expr, used));
                if let Some(other) = &e.false_expr {
                    self.guarded(implied(&e.test_expr, false), |w| w.expr(other, used));
                }
            }
            Expr::Filter(e) => {
                if !env::has_filter(e.name) {
                    self.fail(
                        e.span(),
                        format!("there is no filter `{}`{}", e.name, near_filter(e.name)),
                    );
                }
                if let Some(inner) = &e.expr {
                    match e.name {
                        "default" | "d" => self.expr(inner, Use::Optional),
                        name if NULL_FILTERS.contains(&name) => self.expr(inner, Use::Test),
                        // Already marked.
                        env::NOT_NULL | env::ORDERED => self.expr(inner, Use::Value),
                        _ => self.operand(inner),
                    }
                }
                self.args(&e.args);
            }
            Expr::Test(e) => {
                if !env::has_test(e.name) {
                    self.fail(e.span(), format!("there is no test `{}`", e.name));
                }
                let used = match e.name {
                    "defined" | "undefined" => Use::Optional,
                    _ => Use::Test,
                };
                self.expr(&e.expr, used);
                self.args(&e.args);
            }
            Expr::Call(e) => self.call(&e.expr, &e.args, e.span()),
            Expr::List(e) => e.items.iter().for_each(|i| self.expr(i, Use::Test)),
            Expr::Tuple(e) => e.items.iter().for_each(|i| self.expr(i, Use::Test)),
            Expr::Map(e) => {
                for part in e.keys.iter().chain(&e.values) {
                    self.expr(part, Use::Test);
                }
            }
        }
    }

    fn call(&mut self, callee: &Expr<'_>, args: &[CallArg<'_>], span: Span) {
        match path_of(callee) {
            Some((name, _, fields)) if self.is_local(name) || name == "self" => drop(fields),
            Some((name, _, fields)) if fields.is_empty() => {
                if !env::has_function(name) && !matches!(name, "super" | "caller" | "loop") {
                    self.fail(span, format!("there is no function `{name}`"));
                }
            }
            Some((_, _, fields)) => {
                let method = fields.last().map(String::as_str).unwrap_or_default();
                let message = if env::has_filter(method) {
                    format!("values have no methods here; use the filter: `|{method}`")
                } else {
                    format!("there is no method `{method}`")
                };
                self.fail(span, message);
            }
            None => self.expr(callee, Use::Value),
        }
        self.args(args);
    }

    fn args(&mut self, args: &[CallArg<'_>]) {
        for arg in args {
            match arg {
                CallArg::Pos(e) | CallArg::Kwarg(_, e) | CallArg::PosSplat(e) | CallArg::KwargSplat(e) => {
                    self.expr(e, Use::Test);
                }
            }
        }
    }
}

const OTHERS: &str = "a template cannot read other templates";

fn near_filter(name: &str) -> String {
    const COMMON: [&str; 24] = [
        "upper", "lower", "title", "trim", "replace", "join", "split", "length", "first", "last", "default",
        "tojson", "round", "int", "float", "sort", "unique", "map", "select", "reject", "indent", "list",
        "sum", "items",
    ];
    match suggest(name, COMMON) {
        Some(help) if help.starts_with("did") => format!("; {help}"),
        _ => String::new(),
    }
}
