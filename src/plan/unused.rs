//! What a chain declares and nothing in it uses: most often a name that is meant and misspelled elsewhere.

use std::collections::HashSet;

use super::{ApplyPlan, Item, NodeKind, Plan};
use crate::expr::template::Read;
use crate::expr::when::When;
use crate::spec::{
    ChainSpec, Code, Entry, Node as Yaml, NodeSpec, Problems, Sources, Span, Text, Yaml as Kind,
};

/// Warns of engines, models and vars of the chain file that nothing uses; engines files are shared, so theirs may be.
pub(super) fn warn(spec: &ChainSpec, plan: &Plan, sources: &Sources, problems: &mut Problems) {
    // What has an anchor may be there for its alias.
    let is_anchored = |from: Span, to: Span| {
        let text = sources.slice(Span { end: to.end, ..from });
        text.is_none_or(|text| text.contains('&'))
    };
    let mut tell = |name: &Text, whole: Span, why: &str, help: String| {
        if !is_anchored(name.span, whole) {
            let message = format!("`{}` {why}", name.value);
            problems.add(Code::Unused, name.span, message).help(help);
        }
    };
    for (name, whole) in spec.engines.iter().map(|engine| (&engine.name, engine.span)) {
        let used = plan.engines.iter().any(|engine| engine.name == name.value);
        if name.span.file == CHAIN && !used {
            let help = format!("remove it, or name it in a Step: `engine: {}`", name.value);
            tell(name, whole, "is an engine that no Step asks", help);
        }
    }
    let used = models(spec);
    for entry in spec
        .models
        .iter()
        .filter(|entry| !used.contains(&entry.key.value))
    {
        let help = format!(
            "remove it, or name it in a node: `output_model: {}`",
            entry.key.value
        );
        let why = "is a model that nothing uses";
        tell(&entry.key, entry.value.span, why, help);
    }
    let Some(read) = vars(plan) else { return };
    for entry in spec.vars.iter().filter(|entry| !read.contains(&entry.key.value)) {
        let help = format!(
            "remove it, or read it in a prompt: `{{{{ vars.{} }}}}`",
            entry.key.value
        );
        let whole = match entry.value.span {
            // `--set` put another value there.
            span if span.file != entry.key.span.file => entry.key.span,
            span => span,
        };
        tell(&entry.key, whole, "is a var that nothing reads", help);
    }
}

/// The chain file among the sources: it is read first.
const CHAIN: usize = 0;

/// The models that nodes and the input name, and those that these name.
fn models(spec: &ChainSpec) -> HashSet<String> {
    let mut todo: Vec<&Yaml> = spec.input_model.iter().collect();
    output_models(&spec.steps, &mut todo);
    let mut used = HashSet::new();
    while let Some(node) = todo.pop() {
        let mut words = HashSet::new();
        collect_words(node, &mut words);
        for Entry { key, value } in &spec.models {
            if words.contains(key.value.as_str()) && used.insert(key.value.clone()) {
                todo.push(value);
            }
        }
    }
    used
}

fn output_models<'s>(line: &'s [NodeSpec], found: &mut Vec<&'s Yaml>) {
    for item in line {
        match item {
            NodeSpec::Step(step) => found.extend(&step.head.output_model),
            NodeSpec::Apply(apply) => found.extend(&apply.head.output_model),
            NodeSpec::Group(group) => {
                for branch in &group.branches {
                    output_models(&branch.steps, found);
                }
            }
            NodeSpec::Broken(_) => {}
        }
    }
}

/// Every word of every text in a model: more than the names of models, and never less.
fn collect_words<'y>(node: &'y Yaml, words: &mut HashSet<&'y str>) {
    match &node.kind {
        Kind::String(text) => {
            words.extend(text.value.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
        }
        Kind::Seq(items) => items.iter().for_each(|item| collect_words(item, words)),
        Kind::Map(entries) => entries
            .iter()
            .for_each(|entry| collect_words(&entry.value, words)),
        _ => {}
    }
}

/// The vars that are read by name; none where something may read any.
fn vars(plan: &Plan) -> Option<HashSet<String>> {
    let mut read = HashSet::new();
    let mut of = |reads: &[Read]| {
        let mut reads = reads.iter().filter(|read| read.name == "vars");
        reads.try_for_each(|vars| {
            read.insert(vars.fields.first()?.clone());
            Some(())
        })
    };
    for when in conditions(plan) {
        of(when.reads())?;
    }
    for node in &plan.nodes {
        match &node.kind {
            NodeKind::Step(step) => {
                for prompt in step.system.iter().chain([&step.user]) {
                    of(prompt.reads())?;
                }
            }
            NodeKind::Apply(ApplyPlan::Process(_)) => return None,
            NodeKind::Apply(ApplyPlan::Jq(_) | ApplyPlan::Closure(_)) => {}
        }
    }
    for program in plan.nodes.iter().filter_map(|node| node.program.as_deref()) {
        read.extend(vars_of_jq(program)?);
    }
    Some(read)
}

/// The vars that a jq program reads as `$vars.name`; none where it may read any.
fn vars_of_jq(program: &str) -> Option<Vec<String>> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if program.replace("$row_id", "").contains("$row") {
        return None;
    }
    let mut read = Vec::new();
    for rest in program.split("$vars").skip(1) {
        let name = rest.strip_prefix('.')?;
        let name = name
            .split(|c| !is_word(c))
            .next()
            .filter(|name| !name.is_empty())?;
        read.push(name.to_owned());
    }
    Some(read)
}

/// Every `when` of a plan.
fn conditions(plan: &Plan) -> impl Iterator<Item = &When> {
    let lines = plan.branches.iter().map(|branch| &branch.line);
    let groups = std::iter::once(&plan.main)
        .chain(lines)
        .flat_map(|line| &line.0)
        .filter_map(|item| match item {
            Item::Group(group) => group.when.as_ref(),
            Item::Node(_) => None,
        });
    let branches = plan.branches.iter().filter_map(|branch| branch.when.as_ref());
    let nodes = plan.nodes.iter().filter_map(|node| node.when.as_ref());
    groups.chain(branches).chain(nodes)
}
