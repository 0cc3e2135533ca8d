//! Names and nulls: what a template reads, held against what is there.

use std::collections::HashMap;

use crate::expr::model::Lookup;
use crate::expr::template::{FIXED_NAMES, Read};
use crate::expr::{NameIx, Visible};
use crate::spec::{Code, Problems, Sources, Span, Text, suggest};

use super::names::{Kind, Names};
use super::shape::Shape;

/// What is known about a visible name.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) shape: Shape,
    /// A list of records (`collect: true`).
    pub(super) list: bool,
    /// Text, not a record (`<id>_reasoning`).
    pub(super) text: bool,
    /// Why it can be null.
    pub(super) nullable: Option<String>,
}

/// What a place in the chain can read.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    /// Names in chain order.
    pub(super) visible: Vec<(String, NameIx)>,
    /// The current item.
    pub(super) item: Shape,
    /// What the branch's own nodes have emitted; on the main line the same as `item`.
    pub(super) own: Shape,
    /// Names that conditions around this place keep from being null.
    pub(super) guards: Vec<String>,
}

impl Place {
    /// The visible names as expressions take them.
    pub(super) fn visible(&self) -> Visible {
        self.visible.clone().into()
    }
}

/// What the checks share.
#[derive(Debug)]
pub(super) struct Checker<'a> {
    pub(super) names: &'a Names,
    pub(super) known: HashMap<NameIx, Known>,
    pub(super) input: Shape,
    pub(super) vars: Vec<String>,
    pub(super) sources: &'a Sources,
}

impl Checker<'_> {
    /// Checks what a template or condition of the node or branch `owner` reads.
    pub(super) fn reads(
        &self,
        reads: &[Read],
        text: &Text,
        owner: &str,
        place: &Place,
        problems: &mut Problems,
    ) {
        for read in reads {
            let span = text.locate(self.sources, read.span.clone());
            self.read(read, span, owner, place, problems);
        }
    }

    fn read(&self, read: &Read, span: Span, owner: &str, place: &Place, problems: &mut Problems) {
        let fields: Vec<&str> = read.fields.iter().map(String::as_str).collect();
        let name = read.name.as_str();
        if let Some((_, ix)) = place.visible.iter().find(|(n, _)| n == name) {
            let Some(known) = self.known.get(ix) else {
                return;
            };
            if read.needs_value
                && !place.guards.iter().any(|g| g == name)
                && let Some(why) = &known.nullable
            {
                problems
                    .add(Code::UnguardedNull, span, format!("`{name}` can be null: {why}"))
                    .help(format!("guard it: {{% if {name} %}}...{{% endif %}}"));
            }
            if read.optional || known.list {
                return;
            }
            if known.text {
                if let Some(first) = fields.first() {
                    problems.add(
                        Code::UndefinedName,
                        span,
                        format!("`{name}.{first}` is undefined; `{name}` is a text"),
                    );
                }
                return;
            }
            self.fields(name, &fields, &known.shape, span, problems);
            return;
        }
        if read.optional {
            return;
        }
        match name {
            "item" => self.fields(name, &fields, &place.item, span, problems),
            "chain_input" => self.fields(name, &fields, &self.input, span, problems),
            "row_id" => {
                if let Some(first) = fields.first() {
                    problems.add(
                        Code::UndefinedName,
                        span,
                        format!("`row_id.{first}` is undefined; `row_id` is a text"),
                    );
                }
            }
            "vars" => {
                if let Some(key) = fields.first()
                    && !self.vars.iter().any(|v| v == key)
                {
                    problems
                        .add(
                            Code::UndefinedName,
                            span,
                            format!("`{key}` is not in the chain's `vars`"),
                        )
                        .maybe_help(suggest(key, self.vars.iter().map(String::as_str)));
                }
            }
            _ => self.item_field(read, span, owner, place, problems),
        }
    }

    /// Fields of something with a name.
    fn fields(&self, name: &str, path: &[&str], shape: &Shape, span: Span, problems: &mut Problems) {
        let Lookup::Missing { depth, fields } = shape.lookup(path) else {
            return;
        };
        let owner = std::iter::once(name)
            .chain(path.iter().take(depth).copied())
            .collect::<Vec<_>>()
            .join(".");
        let missing = path.get(depth).copied().unwrap_or_default();
        let message = if fields.is_empty() {
            format!("`{owner}` has no fields, so `{owner}.{missing}` is undefined")
        } else {
            format!("`{owner}` has no field `{missing}`")
        };
        problems
            .add(Code::UndefinedName, span, message)
            .maybe_help(suggest(missing, fields.iter().map(String::as_str)));
    }

    /// A name that is neither visible nor fixed: a field of the current item, or nothing.
    fn item_field(&self, read: &Read, span: Span, owner: &str, place: &Place, problems: &mut Problems) {
        let name = read.name.as_str();
        let found = place.item.lookup(&[name]);
        if found == Lookup::Declared {
            let path: Vec<&str> = std::iter::once(name)
                .chain(read.fields.iter().map(String::as_str))
                .collect();
            if let Lookup::Missing { depth, .. } = place.item.lookup(&path)
                && depth > 0
            {
                self.fields("item", &path, &place.item, span, problems);
            }
            return;
        }
        // A node that is named like the field it reads means the field.
        if name != owner
            && let Some(why) = self.elsewhere(name)
        {
            let help = match found {
                Lookup::Possible => Some(format!("for a field of the current item write `item.{name}`")),
                _ => None,
            };
            problems
                .add(
                    Code::NotVisible,
                    span,
                    format!("`{name}` is not visible here: {why}"),
                )
                .maybe_help(help);
            return;
        }
        if let Lookup::Missing { .. } = found {
            let own = place.item.fields();
            let known = place
                .visible
                .iter()
                .map(|(n, _)| n.as_str())
                .chain(own.iter().map(String::as_str))
                .chain(FIXED_NAMES);
            problems
                .add(Code::UndefinedName, span, format!("`{name}` is undefined"))
                .maybe_help(suggest(name, known));
        }
    }

    /// Where in the chain a name is that cannot be read here.
    fn elsewhere(&self, name: &str) -> Option<String> {
        let (id, is_reasoning) = match self.names.declared.get(name) {
            Some(_) => (name, false),
            None => (name.strip_suffix("_reasoning")?, true),
        };
        let declared = self.names.declared.get(id)?;
        if is_reasoning && declared.kind != Kind::Step {
            return None;
        }
        Some(match (declared.kind, &declared.branch) {
            (Kind::Branch, _) => {
                "it is a branch, and only what a branch is joined under (`join:`) can be read".to_owned()
            }
            (_, _) if !declared.yields => "its node has `yield_output: false`".to_owned(),
            (_, Some(branch)) => format!("it stands in branch `{branch}`"),
            (_, None) => "it comes later in the chain".to_owned(),
        })
    }
}
