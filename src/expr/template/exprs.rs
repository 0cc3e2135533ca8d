//! What an expression of a template tells by itself: where it stands, which path it is, what it rules out.

use std::ops::Range;

use minijinja::machinery::Span;
use minijinja::machinery::ast::{BinOpKind, CallArg, CompareOpKind, Expr, UnaryOpKind};

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

/// The bytes of a span.
pub(super) fn range(span: Span) -> Range<usize> {
    span.start_offset as usize..span.end_offset as usize
}

/// Where an expression begins: the spans of filters, tests, operators and longer paths begin later, or before.
pub(super) fn start(expr: &Expr<'_>) -> usize {
    match expr {
        Expr::GetAttr(e) => start(&e.expr),
        Expr::GetItem(e) => start(&e.expr),
        Expr::Slice(e) => start(&e.expr),
        Expr::Call(e) => start(&e.expr),
        Expr::Test(e) => start(&e.expr),
        Expr::BinOp(e) => start(&e.left),
        Expr::Compare(e) => start(&e.expr),
        Expr::IfExpr(e) => start(&e.true_expr),
        Expr::Filter(e) => e.expr.as_ref().map_or_else(|| range(e.span()).start, start),
        other => range(other.span()).start,
    }
}

/// `a.b["c"]` as `a` and `[b, c]`.
pub(super) fn path_of<'e>(expr: &'e Expr<'_>) -> Option<(&'e str, Span, Vec<String>)> {
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

/// As it is written: `a.b`.
pub(super) fn joined(name: &str, fields: &[String]) -> String {
    std::iter::once(name)
        .chain(fields.iter().map(String::as_str))
        .collect::<Vec<_>>()
        .join(".")
}

/// True when `default` with these arguments replaces what is null as well (`default("-", true)`).
pub(super) fn replaces_null(args: &[CallArg<'_>]) -> bool {
    match args.get(1) {
        None => false,
        Some(CallArg::Pos(Expr::Const(lax))) => lax.value.is_true(),
        Some(_) => true,
    }
}

/// False where the value cannot be null: it is computed, written out, or an answer to a question.
pub(super) fn may_be_null(expr: &Expr<'_>) -> bool {
    match expr {
        Expr::BinOp(op) => matches!(op.op, BinOpKind::ScAnd | BinOpKind::ScOr),
        Expr::Const(_)
        | Expr::List(_)
        | Expr::Tuple(_)
        | Expr::Map(_)
        | Expr::Test(_)
        | Expr::Compare(_)
        | Expr::UnaryOp(_) => false,
        _ => true,
    }
}

/// True for `none` itself.
pub(super) fn is_null(expr: &Expr<'_>) -> bool {
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
pub(super) fn implied(expr: &Expr<'_>, truth: bool) -> Vec<String> {
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

/// The paths that are defined when the expression is true (or false).
pub(super) fn implied_defined(expr: &Expr<'_>, truth: bool) -> Vec<String> {
    match expr {
        Expr::UnaryOp(op) if matches!(op.op, UnaryOpKind::Not) => implied_defined(&op.expr, !truth),
        Expr::BinOp(op) => match (op.op, truth) {
            (BinOpKind::ScAnd, true) | (BinOpKind::ScOr, false) => {
                let mut all = implied_defined(&op.left, truth);
                all.extend(implied_defined(&op.right, truth));
                all
            }
            _ => Vec::new(),
        },
        Expr::Test(test) if (test.name == "defined" && truth) || (test.name == "undefined" && !truth) => {
            let path = path_of(&test.expr);
            path.map(|(name, _, fields)| joined(name, &fields))
                .into_iter()
                .collect()
        }
        _ => Vec::new(),
    }
}
