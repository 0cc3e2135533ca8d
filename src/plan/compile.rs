//! From a spec to a plan: the only road. It goes on after a problem, so that one report has them all.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::{Map, Value};

use crate::expr::jq::JqProgram;
use crate::expr::model::{Model, Models};
use crate::expr::template::Template;
use crate::expr::when::When;
use crate::expr::{ExprError, NameIx, Vars};
use crate::row::Record;
use crate::spec::{
    ApplyKind, ApplySpec, BranchSpec, ChainInput, ChainSpec, Code, EngineSpec, Entry, GroupSpec, NodeHead,
    NodeSpec, OnError, Problems, Sources, StepSpec, Text, load, suggest,
};

use super::check::{Checker, Known, Place};
use super::diagnostic::Report;
use super::names::{Names, reasoning};
use super::shape::Shape;
use super::{
    ApplyPlan, Branch, BranchIx, Closure, ClosureFn, EngineIx, Group, Item, Line, Node, NodeIx, NodeKind,
    Plan, StepPlan, graph, process,
};

/// Rust closures that a chain may call by name (`apply: {closure: NAME}`).
#[derive(Clone, Default)]
pub struct Closures(IndexMap<String, Arc<ClosureFn>>);

impl Closures {
    /// No closures: what the command line offers.
    pub fn none() -> Self {
        Self::default()
    }

    /// Registers a closure; a later one of the same name takes its place.
    #[must_use]
    pub fn with<F>(mut self, name: impl Into<String>, run: F) -> Self
    where
        F: Fn(&Record) -> Result<Vec<Record>, String> + Send + Sync + 'static,
    {
        self.0.insert(name.into(), Arc::new(run));
        self
    }
}

impl std::fmt::Debug for Closures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
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
    let plan = load(input, &mut sources, &mut problems)
        .and_then(|spec| build(&spec, input, closures, &sources, &mut problems));
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
    let models = Models::new(&spec.models, base, problems);
    let named = models.compile_all(problems);
    let input_model = spec
        .input_model
        .as_ref()
        .and_then(|node| models.compile(node, true, problems));
    let mut names = Names::default();
    names.collect(&spec.steps, None, problems);
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

/// Whether a node leaves an output for every row that reaches it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Emits {
    Always,
    Sometimes,
}

/// What a node leaves behind it.
struct Leaves {
    shape: Shape,
    /// Why it can leave nothing, when it can: the current item then stays what it was.
    nullable: Option<String>,
}

impl Builder<'_> {
    fn line(&mut self, items: &[NodeSpec], place: &mut Place, branch: Option<BranchIx>) -> Line {
        let mut line = Line::default();
        for item in items {
            line.0.push(match item {
                NodeSpec::Step(step) => self.step(step, place, branch),
                NodeSpec::Apply(apply) => self.apply(apply, place, branch),
                NodeSpec::Group(group) => Item::Group(Box::new(self.group(group, place, branch))),
            });
        }
        line
    }

    fn when(&mut self, text: Option<&Text>, owner: &str, place: &Place) -> Option<When> {
        let text = text?;
        match When::compile(&text.value, &place.visible()) {
            Ok(when) => {
                self.checker
                    .reads(when.reads(), text, owner, place, self.problems);
                Some(when)
            }
            Err(error) => {
                self.expr_error(Code::TemplateSyntax, text, &error);
                None
            }
        }
    }

    fn template(&mut self, text: &Text, owner: &str, place: &Place) -> Option<Template> {
        match Template::compile(&text.value, &place.visible()) {
            Ok(template) => {
                self.checker
                    .reads(template.reads(), text, owner, place, self.problems);
                Some(template)
            }
            Err(error) => {
                self.expr_error(Code::TemplateSyntax, text, &error);
                None
            }
        }
    }

    fn expr_error(&mut self, code: Code, text: &Text, error: &ExprError) {
        let span = error
            .span
            .clone()
            .map_or(text.span, |range| text.locate(self.checker.sources, range));
        self.problems.add(code, span, error.message.clone());
    }

    fn engine(&mut self, name: &Text) -> Option<EngineIx> {
        if let Some(at) = self.engines.get_index_of(&name.value) {
            return Some(EngineIx(at));
        }
        let declared = &self.spec.engines;
        let Some(found) = declared.iter().find(|e| e.name.value == name.value) else {
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

    fn step(&mut self, spec: &StepSpec, place: &mut Place, branch: Option<BranchIx>) -> Item {
        let at = self.reserve();
        let id = spec.head.id.value.as_str();
        let when = self.when(spec.head.when.as_ref(), id, place);
        let inner = guarded(place, when.as_ref());
        let engine = self.engine(&spec.engine);
        let system = spec.system_prompt.as_ref().map(|t| self.template(t, id, &inner));
        let user = self.template(&spec.user_prompt, id, &inner);
        let model = match &spec.head.output_model {
            Some(node) => self.models.compile(node, false, self.problems),
            None => Model::text(),
        };
        let visible = place.visible();
        let shape = Shape::of(model.as_ref().map(Model::schema));
        let nulled = spec.on_error == OnError::Null;
        let reasons = [
            spec.head.when.is_some().then_some("its `when` may skip it"),
            nulled.then_some("its Step has `on_error: null`"),
        ];
        let nullable = reasons.into_iter().flatten().next().map(str::to_owned);
        let (name, thoughts) = self.output(&spec.head, place, Leaves { shape, nullable }, true);
        if let (Some(engine), Some(user), Some(name), Some(reasoning)) = (engine, user, name, thoughts)
            && !matches!(&system, Some(None))
        {
            let kind = NodeKind::Step(Box::new(StepPlan {
                engine,
                system: system.flatten(),
                user,
                sampling: spec.sampling.clone(),
                retries: spec.retries,
                on_error: spec.on_error,
                reasoning,
                free_text: spec.head.output_model.is_none(),
            }));
            self.place_node(
                at,
                Node {
                    id: id.to_owned(),
                    name,
                    when,
                    yield_output: spec.head.yield_output,
                    emoji: spec.head.emoji.clone(),
                    visible,
                    branch,
                    model,
                    program: None,
                    kind,
                },
            );
        }
        Item::Node(NodeIx(at))
    }

    fn apply(&mut self, spec: &ApplySpec, place: &mut Place, branch: Option<BranchIx>) -> Item {
        let at = self.reserve();
        let id = spec.head.id.value.as_str();
        let when = self.when(spec.head.when.as_ref(), id, place);
        let visible = place.visible();
        let mut program = None;
        let kind = match &spec.kind {
            ApplyKind::Jq(text) => {
                program = Some(text.value.clone());
                match JqProgram::compile(&text.value, &visible) {
                    Ok(program) => Some(ApplyPlan::Jq(program)),
                    Err(error) => {
                        self.expr_error(Code::JqSyntax, text, &error);
                        None
                    }
                }
            }
            ApplyKind::Closure(name) => self.closure(name),
            ApplyKind::Python {
                function,
                interpreter,
                process: spec,
            } => process::python(function, interpreter.as_ref(), *spec, self.base, self.problems)
                .map(|plan| ApplyPlan::Process(Box::new(plan))),
            ApplyKind::Command {
                program,
                arguments,
                process: spec,
            } => process::command(program, arguments, *spec, self.base, self.problems)
                .map(|plan| ApplyPlan::Process(Box::new(plan))),
        };
        let model = spec
            .head
            .output_model
            .as_ref()
            .and_then(|node| self.models.compile(node, true, self.problems));
        let shape = Shape::of(model.as_ref().map(Model::schema));
        let nullable = spec
            .head
            .when
            .as_ref()
            .map(|_| "its `when` may skip it".to_owned());
        let (name, _) = self.output(&spec.head, place, Leaves { shape, nullable }, false);
        if let (Some(kind), Some(name)) = (kind, name) {
            self.place_node(
                at,
                Node {
                    id: id.to_owned(),
                    name,
                    when,
                    yield_output: spec.head.yield_output,
                    emoji: spec.head.emoji.clone(),
                    visible,
                    branch,
                    model,
                    program,
                    kind: NodeKind::Apply(kind),
                },
            );
        }
        Item::Node(NodeIx(at))
    }

    fn closure(&mut self, name: &Text) -> Option<ApplyPlan> {
        if let Some(run) = self.closures.0.get(&name.value) {
            return Some(ApplyPlan::Closure(Closure {
                name: name.value.clone(),
                run: Arc::clone(run),
            }));
        }
        let known = self.closures.0.keys().map(String::as_str);
        let help = suggest(&name.value, known).unwrap_or_else(|| {
            "closures are registered by programs that use chainette as a library".to_owned()
        });
        self.problems
            .add(
                Code::UnknownClosure,
                name.span,
                format!("no closure `{}` is registered", name.value),
            )
            .help(help);
        None
    }

    fn reserve(&mut self) -> usize {
        self.nodes.push(None);
        self.nodes.len() - 1
    }

    fn place_node(&mut self, at: usize, node: Node) {
        if let Some(slot) = self.nodes.get_mut(at) {
            *slot = Some(node);
        }
    }

    /// Makes a node's output the current item and its id a name.
    fn output(
        &mut self,
        head: &NodeHead,
        place: &mut Place,
        leaves: Leaves,
        is_step: bool,
    ) -> (Option<NameIx>, Option<NameIx>) {
        let Leaves { shape, nullable } = leaves;
        let id = &head.id.value;
        let (name, thoughts) = (
            self.checker.names.ix(id),
            self.checker.names.ix(&reasoning(id)).filter(|_| is_step),
        );
        if nullable.is_none() {
            place.item = shape.clone();
            place.own = shape.clone();
        } else {
            place.item = std::mem::take(&mut place.item).or(shape.clone());
            place.own = std::mem::take(&mut place.own).or(shape.clone());
        }
        if let Some(ix) = name {
            let known = Known {
                shape,
                list: false,
                text: false,
                nullable,
            };
            self.checker.known.insert(ix, known);
            if head.yield_output {
                place.visible.push((id.clone(), ix));
            }
        }
        if let Some(ix) = thoughts {
            let known = Known {
                shape: Shape::unknown(),
                list: false,
                text: true,
                nullable: Some("the engine may return no reasoning text".to_owned()),
            };
            self.checker.known.insert(ix, known);
            if head.yield_output {
                place.visible.push((reasoning(id), ix));
            }
        }
        (name, thoughts)
    }

    fn group(&mut self, spec: &GroupSpec, place: &mut Place, parent: Option<BranchIx>) -> Group {
        let owner = spec.branches.first().map_or("", |b| b.id.value.as_str());
        let when = self.when(spec.when.as_ref(), owner, place);
        let fork = guarded(place, when.as_ref());
        let mut group = Group {
            when,
            branches: Vec::new(),
        };
        for branch in &spec.branches {
            let ix = self.branch(branch, &fork, spec.when.is_some(), place, parent);
            group.branches.push(ix);
        }
        group
    }

    /// Compiles a branch that starts at `fork`, and adds its alias to what is visible after the group.
    fn branch(
        &mut self,
        spec: &BranchSpec,
        fork: &Place,
        group_skips: bool,
        after: &mut Place,
        parent: Option<BranchIx>,
    ) -> BranchIx {
        self.branches.push(None);
        let ix = BranchIx(self.branches.len() - 1);
        let when = self.when(spec.when.as_ref(), &spec.id.value, fork);
        let mut inner = guarded(fork, when.as_ref());
        inner.own = Shape::none();
        let line = self.line(&spec.steps, &mut inner, Some(ix));
        let join = spec
            .join
            .as_ref()
            .and_then(|alias| self.checker.names.ix(&alias.value));
        if let (Some(alias), Some(join)) = (&spec.join, join) {
            let nullable = if spec.collect {
                None
            } else if spec.when.is_some() || group_skips {
                Some("a `when` may skip its branch".to_owned())
            } else {
                branch_filters(&spec.steps)
            };
            let known = Known {
                shape: inner.own.clone(),
                list: spec.collect,
                text: false,
                nullable,
            };
            self.checker.known.insert(join, known);
            after.visible.push((alias.value.clone(), join));
        }
        let branch = Branch {
            id: spec.id.value.clone(),
            when,
            join,
            collect: spec.collect,
            line,
            parent,
            leaves: inner.own.single().cloned(),
        };
        if let Some(slot) = self.branches.get_mut(ix.0) {
            *slot = Some(branch);
        }
        ix
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

/// Why a joined branch can leave nothing, when it can.
fn branch_filters(steps: &[NodeSpec]) -> Option<String> {
    let mut emits = Emits::Sometimes;
    for step in steps {
        match step {
            NodeSpec::Step(step) => {
                if step.head.when.is_none() && step.on_error == OnError::FailRow {
                    emits = Emits::Always;
                }
            }
            NodeSpec::Apply(apply) => {
                let filters = match &apply.kind {
                    ApplyKind::Jq(text) => can_be_empty(&text.value),
                    ApplyKind::Closure(_) | ApplyKind::Python { .. } | ApplyKind::Command { .. } => true,
                };
                if filters {
                    return Some(format!("`{}` may filter the row out", apply.head.id.value));
                }
                if apply.head.when.is_none() {
                    emits = Emits::Always;
                }
            }
            NodeSpec::Group(_) => {}
        }
    }
    (emits == Emits::Sometimes).then(|| "every node of its branch may be skipped".to_owned())
}

/// A guess, for warnings only: programs without these never come out empty.
fn can_be_empty(program: &str) -> bool {
    [
        "empty", "select", "[]", "?", "..", "range", "limit", "first(", "until", "recurse",
    ]
    .iter()
    .any(|word| program.contains(word))
}
