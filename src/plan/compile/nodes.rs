//! Steps and Applies.

use std::sync::Arc;

use serde_json::Value;

use super::{Builder, guarded};
use crate::engine::provision::task_in_process;
use crate::expr::NameIx;
use crate::expr::jq::{JqProgram, infer};
use crate::expr::model::Model;
use crate::plan::check::{Known, Place, Reader};
use crate::plan::names::reasoning;
use crate::plan::shape::Shape;
use crate::plan::{ApplyPlan, BranchIx, Closure, EngineIx, Item, Node, NodeIx, NodeKind, StepPlan, process};
use crate::spec::{
    ApplyKind, ApplySpec, Backend, Code, EngineSpec, NodeHead, OnError, StepSpec, Task, Text, suggest,
};

/// The flags with which a llama-server embeds.
const LLAMA_EMBEDS: [&str; 2] = ["--embeddings", "--embedding"];

/// What only a Step, or only an Apply, knows about its node.
#[derive(Default)]
struct Own {
    /// What it does; none when something about it is wrong.
    kind: Option<NodeKind>,
    /// The jq program as it was written.
    program: Option<String>,
    /// Its output is checked against this; none also when its model is wrong.
    model: Option<Model>,
    /// What its records look like.
    shape: Shape,
    /// What its program tells of its records, where no model does.
    inferred: Option<Value>,
    /// Why it can leave nothing though its `when` holds.
    nullable: Option<String>,
    /// Where reasoning text goes.
    thoughts: Option<NameIx>,
}

impl Builder<'_> {
    pub(super) fn step(&mut self, spec: &StepSpec, place: &mut Place, branch: Option<BranchIx>) -> Item {
        self.node(&spec.head, place, branch, |builder, inner| {
            let id = spec.head.id.value.as_str();
            let engine = builder.engine(&spec.engine);
            builder.fits(spec, engine);
            let system = spec
                .system_prompt
                .as_ref()
                .map(|text| builder.template(text, id, inner));
            let user = builder.template(&spec.user_prompt, id, inner);
            let model = match &spec.head.output_model {
                Some(node) => builder.models.compile(node, false, builder.problems),
                None if spec.task == Task::Embed => Model::embedding(),
                None => Model::text(),
            };
            let thoughts = builder.checker.names.ix(&reasoning(id));
            let kind = match (engine, user, thoughts, system) {
                (_, _, _, Some(None)) => None,
                (Some(engine), Some(user), Some(reasoning), system) => {
                    Some(NodeKind::Step(Box::new(StepPlan {
                        engine,
                        task: spec.task,
                        system: system.flatten(),
                        user,
                        sampling: spec.sampling.clone(),
                        retries: spec.retries,
                        on_error: spec.on_error,
                        reasoning,
                        free_text: spec.head.output_model.is_none() && spec.task == Task::Generate,
                    })))
                }
                _ => None,
            };
            let nulled = spec.on_error == OnError::Null;
            Own {
                kind,
                program: None,
                shape: Shape::of(model.as_ref().map(Model::schema)),
                model,
                inferred: None,
                nullable: nulled.then(|| "its Step has `on_error: null`".to_owned()),
                thoughts,
            }
        })
    }

    /// Notes an engine that cannot do what the Step asks for, as far as its declaration tells.
    fn fits(&mut self, spec: &StepSpec, engine: Option<EngineIx>) {
        let Some((name, engine)) = engine.and_then(|ix| self.engines.get_index(ix.0)) else {
            return;
        };
        let trouble = match (spec.task, engine.backend) {
            (_, Backend::Embedded) => in_process(spec.task, name, engine),
            (Task::Embed, _) => embeds_not(name, engine),
            (Task::Generate, _) => None,
        };
        if let Some((message, help)) = trouble {
            self.problems
                .add(Code::BadValue, spec.engine.span, message)
                .help(help);
        }
    }

    pub(super) fn apply(&mut self, spec: &ApplySpec, place: &mut Place, branch: Option<BranchIx>) -> Item {
        self.node(&spec.head, place, branch, |builder, inner| {
            let (mut program, mut inferred) = (None, None);
            let kind = match &spec.kind {
                ApplyKind::Jq(text) => {
                    inferred = infer(&text.value, inner.item.single());
                    program = Some(text.value.clone());
                    builder.jq(text, inner).map(ApplyPlan::Jq)
                }
                ApplyKind::Closure(name) => builder.closure(name),
                ApplyKind::Python {
                    function,
                    interpreter,
                    process: spec,
                } => process::python(
                    function,
                    interpreter.as_ref(),
                    *spec,
                    builder.base,
                    builder.problems,
                )
                .map(|plan| ApplyPlan::Process(Box::new(plan))),
                ApplyKind::Command {
                    program,
                    arguments,
                    process: spec,
                } => process::command(program, arguments, *spec, builder.base, builder.problems)
                    .map(|plan| ApplyPlan::Process(Box::new(plan))),
            };
            let declared = spec.head.output_model.as_ref();
            let model = declared.and_then(|node| builder.models.compile(node, true, builder.problems));
            let inferred = inferred.filter(|_| model.is_none());
            Own {
                kind: kind.map(NodeKind::Apply),
                program,
                shape: match &model {
                    Some(model) => Shape::of(Some(model.schema())),
                    None => Shape::inferred(inferred.as_ref()),
                },
                inferred,
                model,
                nullable: None,
                thoughts: None,
            }
        })
    }

    /// What Steps and Applies have in common: the condition before, the names after.
    fn node(
        &mut self,
        head: &NodeHead,
        place: &mut Place,
        branch: Option<BranchIx>,
        own: impl FnOnce(&mut Self, &Place) -> Own,
    ) -> Item {
        let at = self.nodes.len();
        self.nodes.push(None);
        let when = self.when(head.when.as_ref(), &head.id.value, place);
        let own = own(self, &guarded(place, when.as_ref()));
        let visible = place.visible();
        let skipped = head.when.as_ref().map(|_| "its `when` may skip it".to_owned());
        let nullable = skipped.or(own.nullable);
        let name = self.output(head, place, own.shape, nullable.clone(), own.thoughts);
        if let (Some(kind), Some(name), Some(slot)) = (own.kind, name, self.nodes.get_mut(at)) {
            *slot = Some(Node {
                id: head.id.value.clone(),
                name,
                when,
                yield_output: head.yield_output,
                emoji: head.emoji.clone(),
                visible,
                branch,
                model: own.model,
                program: own.program,
                nullable,
                inferred: own.inferred,
                kind,
            });
        }
        Item::Node(NodeIx(at))
    }

    fn jq(&mut self, text: &Text, place: &Place) -> Option<JqProgram> {
        JqProgram::compile(&text.value, &place.visible())
            .map_err(|error| self.expr_error(Code::JqSyntax, text, &error, Reader::Jq))
            .ok()
    }

    fn closure(&mut self, name: &Text) -> Option<ApplyPlan> {
        if let Some(run) = self.closures.run.get(&name.value) {
            return Some(ApplyPlan::Closure(Closure {
                name: name.value.clone(),
                run: Arc::clone(run),
            }));
        }
        let known = self.closures.run.keys().map(String::as_str);
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

    /// Makes a node's output the current item and its id a name.
    fn output(
        &mut self,
        head: &NodeHead,
        place: &mut Place,
        shape: Shape,
        nullable: Option<String>,
        thoughts: Option<NameIx>,
    ) -> Option<NameIx> {
        let id = &head.id.value;
        if nullable.is_none() {
            place.item = shape.clone();
            place.own = shape.clone();
        } else {
            place.item = std::mem::take(&mut place.item).or(shape.clone());
            place.own = std::mem::take(&mut place.own).or(shape.clone());
        }
        let name = self.checker.names.ix(id);
        let output = Known {
            shape,
            list: false,
            text: false,
            nullable,
        };
        let reason = Known {
            shape: Shape::unknown(),
            list: false,
            text: true,
            nullable: Some("the engine may return no reasoning text".to_owned()),
        };
        let thoughts = thoughts.map(|ix| (reasoning(id), ix, reason));
        let named = name.map(|ix| (id.clone(), ix, output));
        for (called, ix, known) in named.into_iter().chain(thoughts) {
            self.checker.known.insert(ix, known);
            if head.yield_output {
                place.visible.push((called, ix));
            }
        }
        name
    }
}

/// Why a model in this process does not do what a Step asks for, and what to do.
fn in_process(task: Task, name: &str, engine: &EngineSpec) -> Option<(String, String)> {
    match (task, task_in_process(engine)?) {
        (Task::Embed, Task::Generate) => Some((
            format!("the model of `{name}` writes text, and embeds none in this process"),
            "name the folder of an embedding model (`config.json`, `tokenizer.json`, safetensors), or take a server: `backend: llamacpp` with `flags: [--embeddings]`"
                .to_owned(),
        )),
        (Task::Generate, Task::Embed) => Some((
            format!("the model of `{name}` is a folder, and those embed texts in this process"),
            "give the Step `task: embed` and `input`, or name a GGUF file that writes text".to_owned(),
        )),
        _ => None,
    }
}

/// Why a server embeds nothing, and what to do.
fn embeds_not(name: &str, engine: &EngineSpec) -> Option<(String, String)> {
    if engine.backend == Backend::Tgi {
        return Some((
            format!("`{name}` is a Text Generation Inference server, and those embed nothing"),
            "Text Embeddings Inference, vLLM, llama.cpp and Ollama do; for the first write `backend: openai` and its `endpoint`"
                .to_owned(),
        ));
    }
    let launch = &engine.launch;
    let asked = launch
        .flags
        .iter()
        .any(|flag| LLAMA_EMBEDS.contains(&flag.as_str()))
        || launch.env.iter().any(|(name, _)| name == "LLAMA_ARG_EMBEDDINGS");
    let started_without = engine.backend == Backend::LlamaCpp && engine.is_launched() && !asked;
    started_without.then(|| {
        (
            format!("the server of `{name}` is started without `--embeddings`, and would embed nothing"),
            format!(
                "add `flags: [--embeddings]` to `{name}`; where its model does not say how to pool, `[--embeddings, --pooling, mean]`"
            ),
        )
    })
}
