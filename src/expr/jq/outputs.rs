//! How many outputs a jq program can have, as far as its text tells.

use jaq_core::load::lex::StrPart;
use jaq_core::load::parse::{BinaryOp, Def, Term};
use jaq_core::path::{Part, Path};

/// What is known about the number of a program's outputs for one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outputs {
    /// It can emit nothing: the row is filtered out.
    pub none: bool,
    /// It can emit more than one.
    pub many: bool,
}

impl Outputs {
    const ONE: Self = Self {
        none: false,
        many: false,
    };
    const ANY: Self = Self {
        none: true,
        many: true,
    };
    const AT_MOST_ONE: Self = Self {
        none: true,
        many: false,
    };

    /// One for each pair.
    fn times(self, other: Self) -> Self {
        Self {
            none: self.none || other.none,
            many: self.many || other.many,
        }
    }

    /// Either of them.
    fn or(self, other: Self) -> Self {
        self.times(other)
    }
}

/// Counts the outputs of a program.
///
/// `many` is said only of what plainly iterates (`.[]`, a comma, `range`, `recurse`); a filter that is
/// not known here counts as one output for each of its arguments' outputs. `none` is said only where the
/// text shows a way to it.
pub(super) fn outputs(term: &Term<&str>) -> Outputs {
    Counter { known: Vec::new() }.term(term)
}

/// A filter that the program defines, with what its body emits, or a parameter of one.
type Known<'s> = (&'s str, usize, Outputs);

struct Counter<'s> {
    known: Vec<Known<'s>>,
}

impl<'s> Counter<'s> {
    fn term(&mut self, term: &Term<&'s str>) -> Outputs {
        match term {
            Term::Id | Term::Num(_) | Term::Var(_) | Term::Arr(_) => Outputs::ONE,
            Term::Recurse => Outputs {
                none: false,
                many: true,
            },
            Term::Break(_) => Outputs::AT_MOST_ONE,
            Term::Str(_, parts) => parts.iter().fold(Outputs::ONE, |all, part| match part {
                StrPart::Term(term) => all.times(self.term(term)),
                _ => all,
            }),
            Term::Obj(fields) => fields.iter().fold(Outputs::ONE, |all, (key, value)| {
                let value = value.as_ref().map_or(Outputs::ONE, |value| self.term(value));
                all.times(self.term(key)).times(value)
            }),
            Term::Neg(inner) => self.term(inner),
            Term::BinOp(left, op, right) => self.operator(left, op, right),
            Term::Label(_, inner) => self.term(inner),
            Term::Fold(name, source, _, args) => self.fold(name, source, args),
            Term::TryCatch(tried, handler) => match handler {
                Some(handler) => self.term(tried).or(self.term(handler)),
                None => {
                    let body = self.term(tried);
                    let cannot_fail =
                        matches!(&**tried, Term::Path(head, Path(parts)) if reads_field(head, parts));
                    Outputs {
                        none: body.none || !cannot_fail,
                        ..body
                    }
                }
            },
            Term::IfThenElse(cases, otherwise) => {
                let rest = otherwise.as_ref().map_or(Outputs::ONE, |rest| self.term(rest));
                cases.iter().fold(rest, |all, (condition, then)| {
                    all.or(self.term(condition)).or(self.term(then))
                })
            }
            Term::Def(defs, rest) => {
                let before = self.known.len();
                for def in defs {
                    let body = self.body(def);
                    self.known.push((def.name, def.args.len(), body));
                }
                let found = self.term(rest);
                self.known.truncate(before);
                found
            }
            Term::Call(name, args) => self.call(name, args),
            Term::Path(head, Path(parts)) => {
                parts
                    .iter()
                    .enumerate()
                    .fold(self.term(head), |all, (at, (part, optional))| {
                        let on_item = at == 0 && matches!(**head, Term::Id) && matches!(part, Part::Index(_));
                        let part = match part {
                            Part::Range(None, None) => Outputs::ANY,
                            Part::Index(index) => self.term(index),
                            Part::Range(from, to) => [from, to]
                                .into_iter()
                                .flatten()
                                .fold(Outputs::ONE, |all, bound| all.times(self.term(bound))),
                        };
                        let optional = matches!(optional, jaq_core::path::Opt::Optional) && !on_item;
                        all.times(Outputs {
                            none: part.none || optional,
                            ..part
                        })
                    })
            }
        }
    }

    fn operator(&mut self, left: &Term<&'s str>, op: &BinaryOp<&'s str>, right: &Term<&'s str>) -> Outputs {
        let (left, right) = (self.term(left), self.term(right));
        match op {
            BinaryOp::Comma => Outputs {
                none: left.none && right.none,
                // `empty, x` is no iteration, `x, y` is.
                many: !(left == Outputs::AT_MOST_ONE && right == Outputs::AT_MOST_ONE),
            },
            BinaryOp::Alt => Outputs {
                none: right.none,
                many: left.many || right.many,
            },
            // The left side of an update says where, not how often.
            BinaryOp::Update => Outputs::ONE,
            BinaryOp::Assign | BinaryOp::UpdateMath(_) | BinaryOp::UpdateAlt => right,
            _ => left.times(right),
        }
    }

    /// `reduce` emits its last state, `foreach` each of them.
    fn fold(&mut self, name: &str, source: &Term<&'s str>, args: &[Term<&'s str>]) -> Outputs {
        let states = args
            .iter()
            .fold(Outputs::ONE, |all, arg| all.times(self.term(arg)));
        if name == "foreach" {
            self.term(source).times(states)
        } else {
            states
        }
    }

    /// What the body of a definition emits; its filter parameters count as one output each.
    fn body(&mut self, def: &Def<&'s str>) -> Outputs {
        let before = self.known.len();
        // Where it calls itself nothing more is known.
        self.known.push((def.name, def.args.len(), Outputs::ONE));
        self.known
            .extend(def.args.iter().map(|arg| (*arg, 0, Outputs::ONE)));
        let found = self.term(&def.body);
        self.known.truncate(before);
        found
    }

    fn call(&mut self, name: &'s str, args: &[Term<&'s str>]) -> Outputs {
        let known = self
            .known
            .iter()
            .rev()
            .find(|(known, arity, _)| *known == name && *arity == args.len())
            .map(|(_, _, outputs)| *outputs);
        let given: Vec<Outputs> = args.iter().map(|arg| self.term(arg)).collect();
        let given_all = given.iter().fold(Outputs::ONE, |all, arg| all.times(*arg));
        if let Some(known) = known {
            // What the body does with its arguments is not followed.
            return known;
        }
        let first = given.first().copied().unwrap_or(Outputs::ONE);
        match (name, args.len()) {
            ("empty", 0) => Outputs::AT_MOST_ONE,
            ("select", 1) => Outputs { none: true, ..first },
            (
                "values" | "nulls" | "strings" | "numbers" | "objects" | "arrays" | "scalars" | "iterables"
                | "booleans" | "finites" | "normals" | "capture",
                _,
            ) => Outputs::AT_MOST_ONE,
            ("range", 1) if matches!(args.first(), Some(Term::Num(n)) if *n != "0") => Outputs {
                none: false,
                many: !matches!(args.first(), Some(Term::Num("1"))),
            },
            ("recurse" | "repeat", _) => Outputs {
                none: false,
                many: true,
            },
            ("range", _)
            | ("recurse_down" | "while", _)
            | ("paths" | "leaf_paths" | "splits" | "scan" | "combinations" | "tostream", _) => Outputs::ANY,
            // Its outputs are one for each match only with the flag `g`.
            ("match", _) => Outputs::AT_MOST_ONE,
            // What a filter does inside of these is not seen outside.
            (
                "map" | "map_values" | "with_entries" | "walk" | "sort_by" | "group_by" | "unique_by"
                | "min_by" | "max_by" | "add" | "any" | "all" | "del" | "isempty" | "to_entries"
                | "from_entries" | "error" | "input_line_number",
                _,
            ) => Outputs::ONE,
            ("first" | "last", 1) => Outputs { many: false, ..first },
            ("nth", 2) => Outputs {
                many: false,
                ..given.get(1).copied().unwrap_or(Outputs::ONE)
            },
            ("limit", 2) => {
                let one = matches!(args.first(), Some(Term::Num("0" | "1")));
                let body = given.get(1).copied().unwrap_or(Outputs::ONE);
                Outputs {
                    none: body.none || matches!(args.first(), Some(Term::Num("0"))),
                    many: body.many && !one,
                }
            }
            ("skip", 2) => given.get(1).copied().unwrap_or(Outputs::ONE),
            _ => given_all,
        }
    }
}

/// True for `.name`: read of an object, as an item is, it cannot fail.
fn reads_field(head: &Term<&str>, parts: &[(Part<Term<&str>>, jaq_core::path::Opt)]) -> bool {
    matches!((head, parts), (Term::Id, [(Part::Index(Term::Str(None, _)), _)]))
}
