//! Names and nulls: what a template reads, held against what is there.

use std::collections::{HashMap, HashSet};

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
    /// The chain's `vars` could not be read, and that has been reported.
    pub(super) vars_unread: bool,
}

/// What a text of the chain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    Template,
    When,
    Jq,
}

/// Who reads, and where.
#[derive(Clone, Copy, Debug)]
struct Reading<'a> {
    /// The node or branch.
    owner: &'a str,
    place: &'a Place,
    text: &'a Text,
    reader: Reader,
}

impl Checker<'_> {
    /// Checks what a template or condition of the node or branch `owner` reads.
    pub(super) fn reads(
        &self,
        reads: &[Read],
        (text, reader): (&Text, Reader),
        owner: &str,
        place: &Place,
        problems: &mut Problems,
    ) {
        let places = text.places(self.sources);
        let reading = Reading {
            owner,
            place,
            text,
            reader,
        };
        // A name that is missing, or may be null, is told once for each text that reads it.
        let mut told: HashSet<(Code, String)> = HashSet::new();
        for read in reads {
            let mut own = Problems::default();
            let span = places.span(read.span.clone());
            self.read(read, span, reading, &mut own);
            for problem in own.into_sorted() {
                if told.insert((problem.code, problem.message.clone())) {
                    problems.push(problem);
                }
            }
        }
    }

    fn read(&self, read: &Read, span: Span, reading: Reading<'_>, problems: &mut Problems) {
        let place = reading.place;
        let fields: Vec<&str> = read.fields.iter().map(String::as_str).collect();
        let name = read.name.as_str();
        if let Some((_, ix)) = place.visible.iter().find(|(n, _)| n == name) {
            let Some(known) = self.known.get(ix) else {
                return;
            };
            let wrong = known.text && !fields.is_empty();
            if read.needs_value
                && !wrong
                && !place.guards.iter().any(|g| g == name)
                && let Some(why) = &known.nullable
            {
                problems
                    .add(Code::UnguardedNull, span, format!("`{name}` can be null: {why}"))
                    .help(guard(read, reading));
            }
            if read.optional || known.list {
                return;
            }
            if known.text {
                if let Some(first) = fields.first() {
                    problems
                        .add(
                            Code::UndefinedName,
                            span,
                            format!("`{name}.{first}` is undefined; `{name}` is a text"),
                        )
                        .help(format!("write `{name}`"));
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
                    problems
                        .add(
                            Code::UndefinedName,
                            span,
                            format!("`row_id.{first}` is undefined; `row_id` is a text"),
                        )
                        .help("write `row_id`");
                }
            }
            "vars" => {
                if let Some(key) = fields.first()
                    && !self.vars_unread
                    && !self.vars.iter().any(|v| v == key)
                {
                    problems
                        .add(
                            Code::UndefinedName,
                            span,
                            format!("`{key}` is not in the chain's `vars`"),
                        )
                        .help(
                            suggest(key, self.vars.iter().map(String::as_str)).unwrap_or_else(|| {
                                format!("the chain has no `vars`; declare it: `vars: {{{key}: ...}}`")
                            }),
                        );
                }
            }
            _ => self.item_field(read, span, reading, problems),
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
        problems.add(Code::UndefinedName, span, message).help(
            suggest(missing, fields.iter().map(String::as_str)).unwrap_or_else(|| format!("write `{owner}`")),
        );
    }

    /// A name that is neither visible nor fixed: a field of the current item, or nothing.
    fn item_field(&self, read: &Read, span: Span, reading: Reading<'_>, problems: &mut Problems) {
        let (name, place) = (read.name.as_str(), reading.place);
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
        if name != reading.owner
            && let Some(elsewhere) = self.elsewhere(name, span, place)
        {
            if let Elsewhere::At { why, mut help } = elsewhere {
                if found == Lookup::Possible && read.fields.is_empty() {
                    help.push_str(&format!("; for a field of the current item write `item.{name}`"));
                }
                problems
                    .add(
                        Code::NotVisible,
                        span,
                        format!("`{name}` is not visible here: {why}"),
                    )
                    .help(help);
            }
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

    /// Where in the chain a name is that cannot be read here, and what to do about it.
    fn elsewhere(&self, name: &str, span: Span, place: &Place) -> Option<Elsewhere> {
        let (id, is_reasoning) = match self.names.declared.get(name) {
            Some(_) => (name, false),
            None => (name.strip_suffix("_reasoning")?, true),
        };
        let declared = self.names.declared.get(id)?;
        if declared.kind == Kind::Broken {
            return Some(Elsewhere::Reported);
        }
        if is_reasoning && declared.kind != Kind::Step {
            return None;
        }
        let line = |span_of: Span| self.sources.line(span_of, span);
        let at = line(declared.span);
        let sees = |name: &str| place.visible.iter().any(|(n, _)| n == name);
        let (why, help) = if declared.kind == Kind::Branch {
            let help = match &declared.join {
                Some(alias) if sees(alias) => format!("it is joined as `{alias}`: read `{alias}.FIELD`"),
                Some(alias) => format!("it is joined as `{alias}`, which can be read after its group"),
                None => {
                    format!("join it: add `join: {id}` to the branch, and read `{id}.FIELD` after its group")
                }
            };
            (
                format!("it is a branch, {at}, and only its alias (`join:`) can be read"),
                help,
            )
        } else if !declared.yields {
            (
                format!("its node, {at}, has `yield_output: false`"),
                "remove that, or read `item` in the node right after it".to_owned(),
            )
        } else if let Some(branch) = &declared.branch {
            let join = self.names.declared.get(branch);
            let alias = join.and_then(|b| match b.kind {
                Kind::Alias => Some(branch.as_str()),
                _ => b.join.as_deref(),
            });
            let help = match alias {
                Some(alias) if sees(alias) => {
                    format!(
                        "the branch is joined as `{alias}`: read `{alias}.FIELD`, what its last node leaves"
                    )
                }
                Some(alias) => format!(
                    "branches do not see into one another: move this node behind their group and read `{alias}.FIELD`"
                ),
                None => format!(
                    "join the branch (add `join: {branch}` to it) and read `{branch}.FIELD` after its group, or move this node into it"
                ),
            };
            (format!("it is in branch `{branch}`, {at}"), help)
        } else if declared.kind == Kind::Alias {
            (
                format!("it is an alias, {at}, that can be read after its group only"),
                "move this node behind the group".to_owned(),
            )
        } else {
            (
                format!("it comes later in the chain, {at}"),
                format!("move this node behind `{id}`"),
            )
        };
        Some(Elsewhere::At { why, help })
    }
}

/// A name that exists and cannot be read here.
enum Elsewhere {
    /// Where it is, and what to do.
    At { why: String, help: String },
    /// In an item that has been reported as it is.
    Reported,
}

/// The guard of a name that can be null, written out.
fn guard(read: &Read, reading: Reading<'_>) -> String {
    let (name, text) = (&read.name, &reading.text.value);
    if reading.reader == Reader::When {
        let condition = text.trim();
        let needs_brackets = condition.contains(" or ") || condition.contains(" if ");
        return if needs_brackets {
            format!("guard it: `{name} is not none and ({condition})`")
        } else {
            format!("guard it: `{name} is not none and {condition}`")
        };
    }
    let before = text.get(..read.span.start).unwrap_or_default();
    let after = text.get(read.span.end..).unwrap_or_default();
    // The whole `{{ ... }}` around the read, unless it stands in a tag such as `{% for %}`.
    let whole = before
        .rfind("{{")
        .filter(|open| !before.get(*open..).unwrap_or_default().contains("%}"))
        .zip(after.find("}}"))
        .filter(|(open, _)| {
            let opened = before.get(*open..).unwrap_or_default();
            !opened.contains("}}") && !opened.contains("{%")
        })
        .and_then(|(open, close)| text.get(open..read.span.end + close + 2))
        .filter(|printed| printed.len() <= 60 && !printed.contains('\n'));
    match whole {
        Some(printed) => format!("guard it: `{{% if {name} %}}{printed}{{% endif %}}`"),
        None => format!("guard it: put it between `{{% if {name} %}}` and `{{% endif %}}`"),
    }
}
