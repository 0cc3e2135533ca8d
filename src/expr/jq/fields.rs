//! Which fields of its item a jq program reads, where its text tells: for a hint, not for checks.

use jaq_core::load::Parser;
use jaq_core::load::lex::StrPart;
use jaq_core::load::parse::{BinaryOp, Term};
use jaq_core::path::{Part, Path};

use super::size;

/// The fields `.name` that a program reads of its item, in order; those behind a pipe are read of something else.
pub(crate) fn item_fields(source: &str) -> Vec<String> {
    size::with_room(source, || read(source)).unwrap_or_default()
}

fn read(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let tokens = size::lex(source).ok().and_then(Result::ok).unwrap_or_default();
    if let Ok(term) = Parser::new(&tokens).parse(|p| p.term()) {
        collect(&term, &mut found);
    }
    found
}

fn collect(term: &Term<&str>, found: &mut Vec<String>) {
    match term {
        Term::Path(head, Path(parts)) => match (&**head, parts.first()) {
            (Term::Id, Some((Part::Index(key), _))) => add(key, found),
            (Term::Id, _) => {}
            (head, _) => collect(head, found),
        },
        Term::Obj(fields) => fields.iter().for_each(|(key, value)| match value {
            Some(value) => collect(value, found),
            None => add(key, found),
        }),
        Term::BinOp(left, BinaryOp::Pipe(None), _) => collect(left, found),
        Term::BinOp(
            left,
            BinaryOp::Pipe(Some(_))
            | BinaryOp::Comma
            | BinaryOp::Alt
            | BinaryOp::Or
            | BinaryOp::And
            | BinaryOp::Math(_)
            | BinaryOp::Cmp(_),
            right,
        ) => {
            collect(left, found);
            collect(right, found);
        }
        Term::IfThenElse(cases, other) => {
            for (condition, then) in cases {
                collect(condition, found);
                collect(then, found);
            }
            if let Some(other) = other {
                collect(other, found);
            }
        }
        Term::Call("select", args) => args.iter().for_each(|arg| collect(arg, found)),
        _ => {}
    }
}

/// Adds a key that is plain text.
fn add(key: &Term<&str>, found: &mut Vec<String>) {
    if let Term::Str(None, parts) = key
        && let [StrPart::Str(name)] = parts.as_slice()
        && !found.iter().any(|known| known == name)
    {
        found.push((*name).to_owned());
    }
}
