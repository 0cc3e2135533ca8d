//! The items of a line: Steps, Applies, groups and branches.

use serde_json::Map;

use super::apply::{ApplyKind, read_apply_kind};
use super::fields::{Fields, text};
use super::problem::{Code, Problems, Span, nearest, suggest};
use super::yaml::{Entry, Node, Text, Yaml};
use super::{OnError, Retries, Sampling, Task};

/// The keys of a Step, whatever its task.
pub(crate) const STEP: &[&str] = &[
    "id",
    "engine",
    "task",
    "system_prompt",
    "user_prompt",
    "input",
    "output_model",
    "sampling",
    "retries",
    "on_error",
    "yield_output",
    "when",
    "emoji",
];
/// Those of a Step that generates text.
pub(crate) const GENERATE: &[&str] = &[
    "id",
    "engine",
    "task",
    "system_prompt",
    "user_prompt",
    "output_model",
    "sampling",
    "retries",
    "on_error",
    "yield_output",
    "when",
    "emoji",
];
/// Those of a Step with `task: embed`.
pub(crate) const EMBED: &[&str] = &[
    "id",
    "engine",
    "task",
    "input",
    "retries",
    "on_error",
    "yield_output",
    "when",
    "emoji",
];
/// The keys of an Apply.
pub(crate) const APPLY: &[&str] = &["id", "apply", "output_model", "yield_output", "when", "emoji"];
/// The keys of a group.
pub(crate) const GROUP: &[&str] = &["parallel", "when"];
/// The keys of a branch.
pub(crate) const BRANCH: &[&str] = &["branch", "join", "collect", "when", "steps"];
/// How often a Step asks again.
pub(crate) const RETRIES: &[&str] = &["transport", "output"];
/// The sampling parameters that are checked; any other goes to the server as it is.
pub(crate) const SAMPLING: &[&str] = &["temperature", "max_tokens", "top_p", "stop", "seed"];
/// What chainette itself puts into a request.
pub(crate) const SAMPLING_TAKEN: &[&str] = &["model", "messages", "response_format", "stream", "n"];
/// The keys of any item.
const ANY: &[&str] = &[
    "id",
    "engine",
    "apply",
    "parallel",
    "branch",
    "task",
    "system_prompt",
    "user_prompt",
    "input",
    "output_model",
    "sampling",
    "retries",
    "on_error",
    "yield_output",
    "when",
    "emoji",
    "join",
    "collect",
    "steps",
];

/// One item of a line.
#[derive(Clone, Debug)]
pub enum NodeSpec {
    /// A model call.
    Step(Box<StepSpec>),
    /// A row transform.
    Apply(Box<ApplySpec>),
    /// Branches that run at the same time.
    Group(GroupSpec),
    /// An item with problems of its own (all noted): the names it would have declared.
    Broken(Vec<Text>),
}

/// What Steps and Applies have in common.
#[derive(Clone, Debug)]
pub struct NodeHead {
    /// The id.
    pub id: Text,
    /// The condition.
    pub when: Option<Text>,
    /// The output model.
    pub output_model: Option<Node>,
    /// False: neither written nor a name later.
    pub yield_output: bool,
    /// For the tree.
    pub emoji: Option<String>,
}

/// A Step.
#[derive(Clone, Debug)]
pub struct StepSpec {
    /// Id, condition, model.
    pub head: NodeHead,
    /// The engine's name.
    pub engine: Text,
    /// What it asks for.
    pub task: Task,
    /// The system prompt; none with [`Task::Embed`].
    pub system_prompt: Option<Text>,
    /// The user prompt; with [`Task::Embed`] the input.
    pub user_prompt: Text,
    /// Sampling parameters.
    pub sampling: Sampling,
    /// How often to ask again.
    pub retries: Retries,
    /// What a failure does.
    pub on_error: OnError,
}

/// An Apply.
#[derive(Clone, Debug)]
pub struct ApplySpec {
    /// Id, condition, model.
    pub head: NodeHead,
    /// What it runs.
    pub kind: ApplyKind,
}

/// A group, or a lone branch as a group of one.
#[derive(Clone, Debug)]
pub struct GroupSpec {
    /// The group's condition.
    pub when: Option<Text>,
    /// Its branches.
    pub branches: Vec<BranchSpec>,
    /// The names of branches that could not be read.
    pub broken: Vec<Text>,
}

/// A branch.
#[derive(Clone, Debug)]
pub struct BranchSpec {
    /// The branch's id.
    pub id: Text,
    /// The condition.
    pub when: Option<Text>,
    /// The alias.
    pub join: Option<Text>,
    /// Join the list of its outputs.
    pub collect: bool,
    /// Its line.
    pub steps: Vec<NodeSpec>,
}

/// Reads the items below `key`.
pub(super) fn read_list(fields: &Fields<'_>, key: &str, problems: &mut Problems) -> Vec<NodeSpec> {
    let items = fields.list(key, problems).unwrap_or_default();
    items
        .iter()
        .map(|node| read(node, problems).unwrap_or_else(|| NodeSpec::Broken(names_in(node))))
        .collect()
}

/// The names that an item and what is below it declare.
fn names_in(node: &Node) -> Vec<Text> {
    let name = |key| node.get(key).and_then(|e| e.value.as_text()).cloned();
    let (branch, join) = (name("branch"), name("join"));
    // A branch that is joined under its own id has one name.
    let join = join.filter(|join| branch.as_ref().is_none_or(|b| b.value != join.value));
    let mut names: Vec<Text> = [name("id"), branch, join].into_iter().flatten().collect();
    for key in ["steps", "parallel"] {
        if let Some(Yaml::Seq(items)) = node.get(key).map(|e| &e.value.kind) {
            names.extend(items.iter().flat_map(names_in));
        }
    }
    names
}

fn read(node: &Node, problems: &mut Problems) -> Option<NodeSpec> {
    let kinds = ["engine", "apply", "parallel", "branch"];
    let Yaml::Map(entries) = &node.kind else {
        problems
            .add(
                Code::WrongType,
                node.span,
                format!("an item of `steps` must be a mapping, found {}", node.found()),
            )
            .help("write `- {id: NAME, engine: ENGINE, user_prompt: \"...\"}`");
        return None;
    };
    let found: Vec<_> = entries
        .iter()
        .filter(|e| kinds.contains(&e.key.value.as_str()))
        .collect();
    if let [_, second, ..] = found.as_slice() {
        problems
            .add(
                Code::BadValue,
                second.key.span,
                "an item is one thing: a Step, an Apply, a group or a branch",
            )
            .help(match (found.first().map(|e| e.key.value.as_str()), second.key.value.as_str()) {
                (Some("engine"), "apply") | (Some("apply"), "engine") => {
                    "a Step calls a model (`engine`), an Apply transforms rows (`apply`); make it two items, one after the other"
                }
                _ => "keep one of `engine`, `apply`, `parallel` and `branch`",
            });
        return None;
    }
    match found.first().map(|e| e.key.value.as_str()) {
        Some("engine") => read_step(node, problems).map(|s| NodeSpec::Step(Box::new(s))),
        Some("apply") => read_apply(node, problems).map(|a| NodeSpec::Apply(Box::new(a))),
        Some("parallel") => read_group(node, problems).map(NodeSpec::Group),
        Some(_) => {
            let branch = read_branch(node, problems)?;
            Some(NodeSpec::Group(GroupSpec {
                when: None,
                branches: vec![branch],
                broken: Vec::new(),
            }))
        }
        None => {
            // Typos are told first: `enigne:` is more help than "needs `engine`".
            Fields::of(node, "an item", ANY, problems);
            let meant = |e: &&Entry| {
                let key = e.key.value.as_str();
                !ANY.contains(&key) && nearest(key, ANY.iter().copied()).is_some_and(|k| kinds.contains(&k))
            };
            if entries.iter().any(|e| meant(&e)) {
                return None;
            }
            let head = entries.first().map_or(node.span, |e| Span {
                end: e.key.span.end,
                ..node.span
            });
            problems
                .add(Code::MissingKey, head, "this item does nothing")
                .help("a Step needs `engine`, an Apply `apply`, a group `parallel`, a branch `branch`");
            None
        }
    }
}

fn read_head(fields: &Fields<'_>, problems: &mut Problems) -> Option<NodeHead> {
    Some(NodeHead {
        when: fields.text("when", problems),
        output_model: fields.get("output_model").cloned(),
        yield_output: fields.bool("yield_output", true, problems),
        emoji: fields.text("emoji", problems).map(|t| t.value),
        id: fields.need_text("id", problems)?,
    })
}

fn read_step(node: &Node, problems: &mut Problems) -> Option<StepSpec> {
    let task = read_task(node, problems);
    let fields = match task {
        Some(Task::Generate) => Fields::of(node, "a Step", GENERATE, problems)?,
        Some(Task::Embed) => Fields::of(node, "a Step with `task: embed`", EMBED, problems)?,
        // Which of its keys belong there is not known.
        None => Fields::of(node, "a Step", STEP, problems)?,
    };
    let head = read_head(&fields, problems);
    let engine = fields.need_text("engine", problems);
    let user_prompt = match task {
        Some(Task::Embed) => fields.need_text("input", problems),
        // Said already: `task: embed` is missing, not a prompt.
        Some(Task::Generate) if fields.has("input") => fields.text("user_prompt", problems),
        Some(Task::Generate) => fields.need_text("user_prompt", problems),
        None => None,
    };
    let system_prompt = fields.text("system_prompt", problems);
    let sampling = read_sampling(&fields, problems);
    let retries = read_retries(&fields, problems);
    let on_error = read_on_error(&fields, problems);
    Some(StepSpec {
        head: head?,
        engine: engine?,
        task: task?,
        system_prompt,
        user_prompt: user_prompt?,
        sampling,
        retries,
        on_error,
    })
}

/// What a Step asks for; none where that cannot be told.
fn read_task(node: &Node, problems: &mut Problems) -> Option<Task> {
    let Some(entry) = node.get("task") else {
        return Some(Task::default());
    };
    let names = Task::ALL.map(Task::as_str);
    let named = entry.value.as_text().map_or("", |text| text.value.as_str());
    let task = Task::ALL.into_iter().find(|task| task.as_str() == named);
    if task.is_none() {
        let message = format!(
            "`task` must be `generate` or `embed`, found {}",
            entry.value.found()
        );
        problems
            .add(Code::BadValue, entry.value.span, message)
            .maybe_help(match named.starts_with("embed") {
                true => Some("did you mean `embed`?".to_owned()),
                false => suggest(named, names),
            });
    }
    task
}

fn read_sampling(fields: &Fields<'_>, problems: &mut Problems) -> Sampling {
    let mut sampling = Sampling::default();
    let Some(node) = fields.get("sampling") else {
        return sampling;
    };
    // Any further key goes to the server as it is, so none is unknown.
    let Some(fields) = Fields::of(node, "`sampling`", &[], problems) else {
        return sampling;
    };
    sampling.temperature = fields.float("temperature", 0.0, f64::INFINITY, problems);
    sampling.max_tokens = fields
        .int("max_tokens", 1, i64::from(u32::MAX), problems)
        .and_then(|n| u32::try_from(n).ok());
    sampling.top_p = fields.float("top_p", 0.0, 1.0, problems);
    sampling.seed = fields.int("seed", i64::MIN, i64::MAX, problems);
    for item in fields.list("stop", problems).unwrap_or_default() {
        sampling
            .stop
            .extend(text(item, "stop", problems).map(|t| t.value));
    }
    let mut extra = Map::new();
    if let Yaml::Map(entries) = &node.kind {
        for entry in entries {
            let key = entry.key.value.as_str();
            if SAMPLING_TAKEN.contains(&key) {
                problems
                    .add(
                        Code::BadValue,
                        entry.key.span,
                        format!("`{key}` is set by chainette and cannot stand in `sampling`"),
                    )
                    .help(match key {
                        "model" => "name the model in the engine",
                        "messages" => "write `system_prompt` and `user_prompt`",
                        "response_format" => "write `output_model`",
                        _ => "leave it out",
                    });
            } else if !SAMPLING.contains(&key) {
                extra.insert(key.to_owned(), entry.value.to_json());
            }
        }
    }
    sampling.extra = extra;
    sampling
}

fn read_retries(fields: &Fields<'_>, problems: &mut Problems) -> Retries {
    let mut retries = Retries::default();
    let Some(node) = fields.get("retries") else {
        return retries;
    };
    if let Some(fields) = Fields::of(node, "`retries`", RETRIES, problems) {
        let mut set = |key, slot: &mut u32| {
            if let Some(n) = fields.int(key, 0, 1000, problems) {
                *slot = u32::try_from(n).unwrap_or(*slot);
            }
        };
        set("transport", &mut retries.transport);
        set("output", &mut retries.output);
    }
    retries
}

fn read_on_error(fields: &Fields<'_>, problems: &mut Problems) -> OnError {
    let Some(node) = fields.get("on_error") else {
        return OnError::default();
    };
    // `on_error: null` is YAML's own null; `"null"` in quotes means the same.
    match (&node.kind, node.as_text().map(|t| t.value.as_str())) {
        (Yaml::Null, _) | (_, Some("null")) => OnError::Null,
        (_, Some("fail_row")) => OnError::FailRow,
        _ => {
            problems
                .add(
                    Code::BadValue,
                    node.span,
                    format!("`on_error` must be `fail_row` or `null`, found {}", node.found()),
                )
                .help(
                    "`fail_row` puts the row into `errors/`, `null` makes this Step's name null and goes on",
                );
            OnError::default()
        }
    }
}

fn read_apply(node: &Node, problems: &mut Problems) -> Option<ApplySpec> {
    let fields = Fields::of(node, "an Apply", APPLY, problems)?;
    let head = read_head(&fields, problems);
    let kind = fields
        .get("apply")
        .and_then(|apply| read_apply_kind(apply, problems));
    Some(ApplySpec {
        head: head?,
        kind: kind?,
    })
}

fn read_group(node: &Node, problems: &mut Problems) -> Option<GroupSpec> {
    let fields = Fields::of(node, "a group", GROUP, problems)?;
    let when = fields.text("when", problems);
    let branches = fields.list("parallel", problems)?;
    if branches.is_empty() {
        problems
            .add(
                Code::BadValue,
                fields.span(),
                "`parallel` is empty; a group needs at least one branch",
            )
            .help("write `parallel: [{branch: NAME, steps: [...]}]`, or remove the group");
    }
    let mut broken = Vec::new();
    let branches = branches
        .iter()
        .filter_map(|node| {
            let branch = read_branch(node, problems);
            if branch.is_none() {
                broken.extend(names_in(node));
            }
            branch
        })
        .collect();
    Some(GroupSpec {
        when,
        branches,
        broken,
    })
}

fn read_branch(node: &Node, problems: &mut Problems) -> Option<BranchSpec> {
    let fields = Fields::of(node, "a branch", BRANCH, problems)?;
    let id = fields.need_text("branch", problems);
    let when = fields.text("when", problems);
    let join = fields.text("join", problems);
    let collect = fields.bool("collect", false, problems);
    if collect && join.is_none() {
        let span = node.get("collect").map_or(node.span, |e| e.key.span);
        problems
            .add(Code::MissingKey, span, "`collect: true` needs `join`")
            .help("name the list: `join: NAME`");
    }
    let listed = fields.need("steps", problems);
    if let Some(node) = listed
        && matches!(&node.kind, Yaml::Seq(items) if items.is_empty())
    {
        problems
            .add(
                Code::BadValue,
                node.span,
                "`steps` is empty; a branch needs at least one",
            )
            .help("put the branch's Steps and Applies below it, or remove the branch");
    }
    let steps = read_list(&fields, "steps", problems);
    Some(BranchSpec {
        id: id?,
        when,
        join,
        collect,
        steps,
    })
}
