//! What a template reads, and where a null must be refused: a walk over its syntax tree.

use std::collections::HashMap;
use std::ops::Range;

use minijinja::machinery::ast::{BinOpKind, CallArg, CompareOpKind, Expr, Stmt, UnaryOpKind};
use minijinja::machinery::{Span, parse, parse_expr};
use minijinja::syntax::SyntaxConfig;

use super::exprs::{
    implied, implied_defined, is_null, joined, may_be_null, path_of, range, replaces_null, start,
};
use super::marks::{Analysis, Mark};
use super::{Read, env};
use crate::expr::ExprError;

/// Parses and walks a template.
pub(super) fn analyse(source: &str) -> Result<Analysis, ExprError> {
    let tree =
        parse(source, "template", SyntaxConfig::default()).map_err(|error| env::syntax_error(&error))?;
    let mut walk = Walk {
        source,
        scopes: vec![HashMap::new()],
        guards: Vec::new(),
        defined: Vec::new(),
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
    /// Undefined is fine, and null is an error: a filter that only replaces what is undefined hands it on.
    Defaulted,
}

impl Use {
    fn allows_undefined(self) -> bool {
        matches!(self, Self::Optional | Self::Defaulted)
    }

    fn refuses_null(self) -> bool {
        matches!(self, Self::Value | Self::Defaulted)
    }
}

/// What a name that the template sets itself stands for: a path that may be null, where it is one.
type Local = Option<(String, Vec<String>)>;

/// A name that the template sets itself.
#[derive(Clone, Debug, Default)]
struct Slot {
    behind: Local,
    /// Only some ways through the template set it: on the others it comes from outside.
    maybe: bool,
}

impl Slot {
    /// Set on every way.
    fn set(behind: Local) -> Self {
        Self { behind, maybe: false }
    }
}

struct Walk<'s> {
    source: &'s str,
    /// Names that the template sets itself.
    scopes: Vec<HashMap<String, Slot>>,
    /// Paths known not to be null here.
    guards: Vec<String>,
    /// Paths known to be defined here.
    defined: Vec<String>,
    found: Analysis,
    error: Option<ExprError>,
}

/// Filters that take a null (and `default`, which may hand it on).
const NULL_FILTERS: [&str; 4] = ["tojson", "pprint", "list", "bool"];

impl Walk<'_> {
    fn fail(&mut self, span: Span, message: String) {
        self.error.get_or_insert(ExprError {
            message,
            span: Some(range(span)),
        });
    }

    fn is_local(&self, name: &str) -> bool {
        self.scopes.iter().any(|s| s.contains_key(name))
    }

    /// What a name that the template set stands for.
    fn local(&self, name: &str) -> Local {
        self.scopes.iter().rev().find_map(|s| s.get(name))?.behind.clone()
    }

    /// True for a name that the template sets on some ways only.
    fn is_maybe(&self, name: &str) -> bool {
        self.is_local(name)
            && self
                .scopes
                .iter()
                .filter_map(|s| s.get(name))
                .all(|slot| slot.maybe)
    }

    /// The path that a name set to this value stands for; none where it cannot be null, or is no path.
    fn path_behind(&self, value: &Expr<'_>) -> Local {
        if let Expr::Filter(filter) = value {
            let hands_on = matches!(filter.name, "default" | "d") && !replaces_null(&filter.args);
            return self.path_behind(filter.expr.as_ref().filter(|_| hands_on)?);
        }
        let (name, _, fields) = path_of(value)?;
        let (name, fields) = match self.is_local(name) {
            true => self.local(name).map(|(root, mut path)| {
                path.extend(fields);
                (root, path)
            })?,
            false => (name.to_owned(), fields),
        };
        (!self.is_guarded(&name)).then_some((name, fields))
    }

    /// Sets a name to a value.
    fn assign(&mut self, target: &Expr<'_>, behind: Local) {
        self.declare(target);
        if let (Expr::Var(var), Some(scope)) = (target, self.scopes.last_mut()) {
            scope.insert(var.id.to_owned(), Slot::set(behind));
        }
    }

    fn declare(&mut self, target: &Expr<'_>) {
        match target {
            Expr::Var(var) => {
                if let Some(scope) = self.scopes.last_mut() {
                    scope.insert(var.id.to_owned(), Slot::default());
                }
            }
            Expr::List(list) => list.items.iter().for_each(|e| self.declare(e)),
            Expr::Tuple(tuple) => tuple.items.iter().for_each(|e| self.declare(e)),
            _ => {}
        }
    }

    fn declare_names(&mut self, names: &[&str]) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.extend(names.iter().map(|n| ((*n).to_owned(), Slot::default())));
        }
    }

    fn scoped(&mut self, body: impl FnOnce(&mut Self)) {
        self.scopes.push(HashMap::new());
        body(self);
        self.scopes.pop();
    }

    /// What runs where the expression is true (or false).
    fn holding(&mut self, expr: &Expr<'_>, truth: bool, body: impl FnOnce(&mut Self)) {
        let before = self.defined.len();
        self.defined.extend(implied_defined(expr, truth));
        self.guarded(implied(expr, truth), body);
        self.defined.truncate(before);
    }

    /// Walks two arms of which one runs: what both set is set behind them, the rest may be.
    fn either(&mut self, one: impl FnOnce(&mut Self), other: impl FnOnce(&mut Self)) {
        let before = self.scopes.last().cloned().unwrap_or_default();
        one(self);
        let Some(scope) = self.scopes.last_mut() else {
            return;
        };
        let mut first = std::mem::replace(scope, before.clone());
        other(self);
        let Some(scope) = self.scopes.last_mut() else {
            return;
        };
        for (name, slot) in scope.iter_mut() {
            match first.remove(name) {
                Some(also) => {
                    slot.maybe |= also.maybe;
                    if before.get(name).is_some_and(|old| old.behind == slot.behind) {
                        slot.behind = also.behind;
                    }
                }
                None => slot.maybe = true,
            }
        }
        scope.extend(
            first
                .into_iter()
                .map(|(name, slot)| (name, Slot { maybe: true, ..slot })),
        );
    }

    fn guarded(&mut self, paths: Vec<String>, body: impl FnOnce(&mut Self)) {
        let before = self.guards.len();
        for path in paths {
            // What guards a name that the template set guards what it stands for.
            let root = path.split('.').next().unwrap_or_default();
            if let Some((name, fields)) = self.local(root) {
                self.guards.push(joined(&name, &fields));
            }
            self.guards.push(path);
        }
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
                    match &f.filter_expr {
                        Some(filter) => {
                            w.expr(filter, Use::Test);
                            w.holding(filter, true, |w| w.stmts(&f.body));
                        }
                        None => w.stmts(&f.body),
                    }
                });
                self.scoped(|w| w.stmts(&f.else_body));
            }
            Stmt::IfCond(c) => {
                self.expr(&c.expr, Use::Test);
                self.either(
                    |w| w.holding(&c.expr, true, |w| w.stmts(&c.true_body)),
                    |w| w.holding(&c.expr, false, |w| w.stmts(&c.false_body)),
                );
            }
            Stmt::WithBlock(b) => {
                // Each value sees the names before it.
                self.scoped(|w| {
                    for (target, value) in &b.assignments {
                        w.expr(value, Use::Test);
                        let behind = w.path_behind(value);
                        w.assign(target, behind);
                    }
                    w.stmts(&b.body);
                });
            }
            Stmt::Set(s) => {
                self.expr(&s.expr, Use::Test);
                let behind = self.path_behind(&s.expr);
                self.assign(&s.target, behind);
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
        self.scoped(|w| {
            // Arguments are bound from the last to the first, each with its default.
            let mut defaults = defaults.iter().rev();
            for arg in args.iter().rev() {
                if let Some(default) = defaults.next() {
                    w.expr(default, Use::Test);
                }
                w.declare(arg);
            }
            w.declare_names(&["caller", "varargs", "kwargs"]);
            w.stmts(body);
        });
    }

    /// True where the surroundings keep a name from being null.
    fn is_guarded(&self, name: &str) -> bool {
        let of_it = |path: &str| path.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
        self.guards.iter().any(|guard| guard == name || of_it(guard))
    }

    /// Notes a read of a name; of one that the template set itself only what may be null.
    fn read(&mut self, expr: &Expr<'_>, name: &str, fields: Vec<String>, used: Use) {
        let needs_value = !fields.is_empty() || used.refuses_null();
        if name == "self" {
            return;
        }
        if self.is_local(name) {
            if self.is_maybe(name) {
                self.name(name);
                self.found.reads.push(Read {
                    name: name.to_owned(),
                    fields: fields.clone(),
                    span: start(expr)..range(expr.span()).end,
                    // It may have been set for this very reason.
                    needs_value: false,
                    optional: true,
                });
            }
            if let Some((root, mut path)) = self.local(name)
                && needs_value
                && !self.is_guarded(&root)
            {
                path.extend(fields);
                self.found.reads.push(Read {
                    name: root,
                    fields: path,
                    span: start(expr)..range(expr.span()).end,
                    needs_value,
                    // Which of several values it has is known at run only.
                    optional: true,
                });
            }
            return;
        }
        let needs_value = needs_value && !self.is_guarded(name);
        self.name(name);
        let optional = used.allows_undefined() || self.is_defined(name, &fields);
        self.found.reads.push(Read {
            name: name.to_owned(),
            fields,
            span: start(expr)..range(expr.span()).end,
            needs_value,
            optional,
        });
    }

    /// Notes a name that is looked up outside.
    fn name(&mut self, name: &str) {
        if !self.found.names.iter().any(|n| n == name) {
            self.found.names.push(name.to_owned());
        }
    }

    /// True where the surroundings ask whether the path, or what it begins with, is defined.
    fn is_defined(&self, name: &str, fields: &[String]) -> bool {
        let path = joined(name, fields);
        self.defined.iter().any(|known| {
            path.strip_prefix(known.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }

    /// Marks an operand that must not be null.
    fn operand(&mut self, expr: &Expr<'_>) {
        if may_be_null(expr) {
            let end = range(expr.span()).end;
            let all = self.whole(start(expr), end);
            self.found.marks.extend(all.map(Mark::new));
        }
        self.expr(expr, Use::Value);
    }

    /// Notes that the two operands walked last are ordered: minijinja orders a text and a number by their
    /// kinds, without a word. Only paths and constants are looked at.
    fn ordered(&mut self, left: &Expr<'_>, right: &Expr<'_>) {
        let simple = |expr: &Expr<'_>| matches!(expr, Expr::Const(_)) || path_of(expr).is_some();
        if !(simple(left) && simple(right)) {
            return;
        }
        let (path, other) = match path_of(left) {
            Some(_) => (left, right),
            None => (right, left),
        };
        let at = |expr: &Expr<'_>| start(expr)..range(expr.span()).end;
        let marked = at(path);
        if let Some(mark) = self.found.marks.iter_mut().rev().find(|mark| mark.at == marked) {
            mark.against = Some(at(other));
        }
    }

    /// The text of an expression that ends here and begins here, or at a bracket before.
    fn whole(&self, mut from: usize, end: usize) -> Option<Range<usize>> {
        while parse_expr(self.source.get(from..end)?).is_err() {
            let before = self.source.get(..from)?.trim_end();
            from = before.strip_suffix('(')?.len();
        }
        Some(from..end)
    }

    fn expr(&mut self, expr: &Expr<'_>, used: Use) {
        if let Some((name, root, fields)) = path_of(expr) {
            let is_path = !self.is_local(name) || self.is_maybe(name) || self.local(name).is_some();
            if used.allows_undefined() && !fields.is_empty() && is_path {
                // `fr.text|default("-")` forgives a missing `text`, not a null `fr`.
                self.found.marks.push(Mark::new(range(root)));
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
                    let truth = matches!(e.op, BinOpKind::ScAnd);
                    self.holding(&e.left, truth, |w| w.expr(&e.right, used));
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
                self.holding(&e.test_expr, true, |w| w.expr(&e.true_expr, used));
                if let Some(other) = &e.false_expr {
                    self.holding(&e.test_expr, false, |w| w.expr(other, used));
                }
            }
            Expr::Filter(e) => {
                if !env::has_filter(e.name) {
                    self.fail(
                        e.span(),
                        format!("there is no filter `{}`{}", e.name, env::near_filter(e.name)),
                    );
                }
                if let Some(inner) = &e.expr {
                    match e.name {
                        "default" | "d" if used.refuses_null() && !replaces_null(&e.args) => {
                            self.expr(inner, Use::Defaulted);
                        }
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
