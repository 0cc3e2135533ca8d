//! From a spec to a plan: the only road. It goes on after a problem, so that one report has them all.

mod branches;
mod nodes;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::{Map, Value};

use crate::expr::model::{Model, Models};
use crate::expr::template::Template;
use crate::expr::when::When;
use crate::expr::{ExprError, Vars};
use crate::row::Record;
use crate::spec::{
    ChainInput, ChainSpec, Code, EngineSpec, Entry, NodeSpec, Problems, Sources, Text, load, suggest,
};

use super::check::{Checker, Place, Reader};
use super::diagnostic::Report;
use super::names::Names;
use super::shape::Shape;
use super::{Branch, BranchIx, ClosureFn, EngineIx, Item, Line, Node, Plan, graph, unused};

/// What the library's user brings to a chain: Rust closures it may call by name
/// (`apply: {closure: NAME}`), and the names of engines.
#[derive(Clone, Default)]
pub struct Closures {
    run: IndexMap<String, Arc<ClosureFn>>,
    engines: Vec<String>,
}

impl Closures {
    /// No closures: what the command line offers.
    pub fn none() -> Self {
        Self::default()
    }

    /// Registers a closure; a later one of the same name takes its place.
    #[must_use]
    pub fn with<F>(self, name: impl Into<String>, run: F) -> Self
    where
        F: Fn(&Record) -> Result<Vec<Record>, String> + Send + Sync + 'static,
    {
        self.with_shared(name.into(), Arc::new(run))
    }

    /// As [`Closures::with`], for a closure that is shared already.
    pub(crate) fn with_shared(mut self, name: String, run: Arc<ClosureFn>) -> Self {
        self.run.insert(name, run);
        self
    }

    /// Lets Steps name an engine that stands in no file; whoever runs the plan gives it to the broker.
    #[must_use]
    pub fn with_engine(mut self, name: &str) -> Self {
        self.engines.push(name.to_owned());
        self
    }
}

impl std::fmt::Debug for Closures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set()
            .entries(self.run.keys())
            .entries(&self.engines)
            .finish()
    }
}

/// A plan, and what is worth a second look.
#[derive(Debug)]
pub struct Compiled {
    /// What will run.
    pub plan: Plan,
    /// Warnings; often empty.
    pub warnings: Report,
}

/// Reads and checks a chain. The error holds every problem at once, each with its place.
pub fn compile(input: &ChainInput, closures: &Closures) -> Result<Compiled, Report> {
    let mut sources = Sources::default();
    let mut problems = Problems::default();
    let spec = load(input, &mut sources, &mut problems);
    let build = |spec| build(spec, input, closures, &sources, &mut problems);
    let plan = spec.as_ref().and_then(build);
    if let (Some(spec), Some(plan)) = (&spec, &plan) {
        unused::warn(spec, plan, &sources, &mut problems);
    }
    let failed = problems.has_errors();
    let report = Report::new(problems, sources);
    match plan {
        Some(plan) if !failed => Ok(Compiled {
            plan,
            warnings: report,
        }),
        _ => Err(report),
    }
}

fn build(
    spec: &ChainSpec,
    input: &ChainInput,
    closures: &Closures,
    sources: &Sources,
    problems: &mut Problems,
) -> Option<Plan> {
    let base = input.path.parent().unwrap_or(Path::new(""));
    let unread = |key: &str| spec.unread.contains(&key);
    let models = Models::new(&spec.models, base, problems).incomplete(unread("models"));
    let named = models.compile_all(problems);
    let input_model = spec
        .input_model
        .as_ref()
        .and_then(|node| models.compile(node, true, problems));
    let mut names = Names::default();
    names.collect(&spec.steps, None, sources, problems);
    let shape = match &spec.input_model {
        Some(_) => Shape::of(input_model.as_ref().map(Model::schema)),
        None => Shape::unknown(),
    };
    let mut builder = Builder {
        spec,
        base,
        closures,
        models: &models,
        checker: Checker {
            names: &names,
            known: HashMap::new(),
            input: shape.clone(),
            vars: spec.vars.iter().map(|e| e.key.value.clone()).collect(),
            sources,
            vars_unread: unread("vars"),
        },
        problems,
        nodes: Vec::new(),
        branches: Vec::new(),
        engines: IndexMap::new(),
    };
    let mut place = Place {
        item: shape,
        own: Shape::none(),
        ..Place::default()
    };
    let main = builder.line(&spec.steps, &mut place, None);
    let Builder {
        nodes,
        branches,
        engines,
        problems,
        ..
    } = builder;
    if problems.has_errors() {
        return None;
    }
    let nodes: Vec<Node> = nodes.into_iter().collect::<Option<_>>()?;
    let branches: Vec<Branch> = branches.into_iter().collect::<Option<_>>()?;
    let graph = graph::build(nodes.len(), &branches, &main);
    let stem = || input.path.file_stem().map(|s| s.to_string_lossy().into_owned());
    Some(Plan {
        name: spec.name.clone().or_else(stem).unwrap_or_default(),
        batch_size: spec.batch_size,
        vars: vars(&spec.vars),
        input_model,
        models: named,
        names: names.table,
        nodes,
        branches,
        engines: engines.into_values().collect(),
        resources: spec.resources,
        main,
        graph,
    })
}

fn vars(entries: &[Entry]) -> Vars {
    let json: Map<String, Value> = entries
        .iter()
        .map(|e| (e.key.value.clone(), e.value.to_json()))
        .collect();
    let text = Value::Object(json.clone()).to_string();
    let val = jaq_json::read::parse_single(text.as_bytes()).unwrap_or_default();
    Vars { json, val }
}

struct Builder<'a> {
    spec: &'a ChainSpec,
    /// The chain file's folder.
    base: &'a Path,
    closures: &'a Closures,
    models: &'a Models,
    checker: Checker<'a>,
    problems: &'a mut Problems,
    /// By [`NodeIx`]; none where a node has problems.
    nodes: Vec<Option<Node>>,
    /// By [`BranchIx`].
    branches: Vec<Option<Branch>>,
    engines: IndexMap<String, EngineSpec>,
}

impl Builder<'_> {
    fn line(&mut self, items: &[NodeSpec], place: &mut Place, branch: Option<BranchIx>) -> Line {
        let mut line = Line::default();
        for item in items {
            line.0.push(match item {
                NodeSpec::Step(step) => self.step(step, place, branch),
                NodeSpec::Apply(apply) => self.apply(apply, place, branch),
                NodeSpec::Group(group) => Item::Group(Box::new(self.group(group, place, branch))),
                NodeSpec::Broken(_) => {
                    // Whatever it would have left behind.
                    place.item = Shape::unknown();
                    place.own = Shape::unknown();
                    continue;
                }
            });
        }
        line
    }

    fn when(&mut self, text: Option<&Text>, owner: &str, place: &Place) -> Option<When> {
        let text = text?;
        match When::compile(&text.value, &place.visible()) {
            Ok(when) => {
                self.checker
                    .reads(when.reads(), (text, Reader::When), owner, place, self.problems);
                Some(when)
            }
            Err(error) => {
                self.expr_error(Code::TemplateSyntax, text, &error, Reader::When);
                None
            }
        }
    }

    fn template(&mut self, text: &Text, owner: &str, place: &Place) -> Option<Template> {
        match Template::compile(&text.value, &place.visible()) {
            Ok(template) => {
                self.checker.reads(
                    template.reads(),
                    (text, Reader::Template),
                    owner,
                    place,
                    self.problems,
                );
                Some(template)
            }
            Err(error) => {
                self.expr_error(Code::TemplateSyntax, text, &error, Reader::Template);
                None
            }
        }
    }

    fn expr_error(&mut self, code: Code, text: &Text, error: &ExprError, reader: Reader) {
        let span = error
            .span
            .clone()
            .map_or(text.span, |range| text.places(self.checker.sources).span(range));
        self.problems
            .add(code, span, error.message.clone())
            .help(match reader {
                Reader::Template => template_help(&error.message),
                Reader::When => condition_help(&text.value, &error.message),
                Reader::Jq => jq_help(&error.message),
            });
    }

    fn engine(&mut self, name: &Text) -> Option<EngineIx> {
        if let Some(at) = self.engines.get_index_of(&name.value) {
            return Some(EngineIx(at));
        }
        if self.closures.engines.contains(&name.value) {
            let spec = EngineSpec::custom(&name.value);
            let (at, _) = self.engines.insert_full(name.value.clone(), spec);
            return Some(EngineIx(at));
        }
        let declared = &self.spec.engines;
        let Some(found) = declared.iter().find(|e| e.name.value == name.value) else {
            if self.spec.unread.contains(&"engines") {
                return None;
            }
            self.problems
                .add(
                    Code::UnknownEngine,
                    name.span,
                    format!("there is no engine `{}`", name.value),
                )
                .help(
                    suggest(&name.value, declared.iter().map(|e| e.name.value.as_str())).unwrap_or_else(
                        || "declare it below `engines:`, or in a file given with `--engines`".to_owned(),
                    ),
                );
            return None;
        };
        for problem in &found.unsupported {
            self.problems.push(problem.clone());
        }
        // A faulty declaration has been reported where it stands.
        let spec = found.spec.clone()?;
        let (at, _) = self.engines.insert_full(name.value.clone(), spec);
        Some(EngineIx(at))
    }
}

/// A place behind a condition.
fn guarded(place: &Place, when: Option<&When>) -> Place {
    let mut inner = place.clone();
    if let Some(when) = when {
        inner.guards.extend(when.guards().iter().cloned());
    }
    inner
}

/// What to do about a jq program that does not compile.
fn jq_help(message: &str) -> &'static str {
    if message.starts_with("the program nests") || message.starts_with("the program chains") {
        "split it over several Applies; a long list belongs into `vars`"
    } else if message.contains("an Apply is pure") {
        "read what the row needs from its fields, or from `$vars`"
    } else if message.contains("undefined variable") {
        "a program reads `.`, `$chain_input`, `$row_id`, `$vars`, and every visible name below `$row`"
    } else if message.contains("undefined filter") {
        "fields are read with a dot: `.name`; text needs double quotes"
    } else if message.contains("the end of the program") {
        "the program is not complete: close its brackets, quotes and `if ... end`"
    } else if !message.is_ascii() {
        "a name with characters beyond ASCII needs quotes: `{\"größe\": 1}`, `.\"größe\"`"
    } else {
        "the fault is at the caret or right before it"
    }
}

/// What to do about a condition that does not compile.
fn condition_help(source: &str, message: &str) -> &'static str {
    let source = source.trim();
    if source.starts_with("{{") || source.starts_with("{%") {
        "a `when` is an expression, without `{{ }}`: `when: sentiment.score < 0.2`"
    } else if source.is_empty() {
        "write a condition, such as `sentiment.score < 0.2`, or leave `when` out"
    } else if message.contains("after expression") && source.contains('=') && !source.contains("==") {
        "equality is written `==`"
    } else if message.contains("end of input") {
        "something is missing at the end of the condition"
    } else if ["there is no", "values have", "an expression has more"]
        .iter()
        .any(|start| message.starts_with(start))
    {
        template_help(message)
    } else {
        "a condition is a Jinja expression: `a.x == \"y\" and (b is none or b.n > 3)`"
    }
}

/// What to do about a template that does not compile.
fn template_help(message: &str) -> &'static str {
    if message.contains(", expected end of variable block") {
        "close it with `}}`"
    } else if message.contains("end of variable block") {
        "something is missing before `}}`: a name, or a filter behind `|`"
    } else if message.contains("end of input") {
        "the text ends too early: close `{{` with `}}`, `{% if %}` with `{% endif %}`, `{% for %}` with `{% endfor %}`"
    } else if message.contains(" has more than ") {
        "compute it in an Apply before, and print its result"
    } else if message.contains("unknown statement end") {
        "there is nothing open that it could end: `{% endif %}` needs an `{% if %}` before it"
    } else if message.contains("other templates") {
        "write the text here, or put it into `vars`"
    } else if message.contains("no methods") {
        "a filter stands behind the value: `{{ text | upper }}`"
    } else if message.starts_with("there is no filter") {
        "filters are those of minijinja: `upper`, `lower`, `trim`, `length`, `join`, `replace`, `default`, `tojson`, ..."
    } else if message.starts_with("there is no test") {
        "tests are those of minijinja: `none`, `defined`, `string`, `number`, `mapping`, `sequence`, ..."
    } else if message.starts_with("there is no function") {
        "functions are `range`, `dict` and `namespace`; a template has no clock and no files"
    } else {
        "templates are Jinja: `{{ name.field }}`, `{% if name %}...{% endif %}`, `{% for x in list %}...{% endfor %}`"
    }
}
