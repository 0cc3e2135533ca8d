//! What makes two runs the same run, and what differs when they are not.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::RunError;
use super::config::RunConfig;
use crate::plan::{Node, NodeKind, Plan};
use crate::sink::Format;
use crate::source::{self, Fingerprint};
use crate::spec::{EngineSpec, Task};

/// The version of the files in `.chainette/`.
pub(crate) const VERSION: u32 = 2;

/// What makes two runs the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of the private files.
    pub version: u32,
    /// A name for this run in logs and metadata.
    pub run_id: String,
    /// BLAKE3 of the chain file.
    pub chain: String,
    /// BLAKE3 of what the chain means: its graph with all models.
    pub graph: String,
    /// `vars` with `--set` applied.
    pub vars: Value,
    /// The engines: of each what decides what it replies.
    pub engines: Vec<String>,
    /// The input files.
    pub input: Vec<Fingerprint>,
    /// `--format`, or the name of a sink of the user's.
    pub format: String,
    /// The extension of that sink's files; none for those of the house.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extension: Option<String>,
    /// `--max-lines-per-file`.
    pub max_rows: u64,
    /// Not `--no-flattened`.
    pub flattened: bool,
}

impl Identity {
    /// The identity of a run, with a run id of its own.
    ///
    /// # Errors
    /// The input cannot be looked at.
    pub(super) fn of(config: &RunConfig) -> Result<Self, RunError> {
        let plan = &config.plan;
        let input = config.input.fingerprints()?;
        let engines = plan.engines.iter().map(engine_identity);
        let mut seed = [0; 8];
        seed.iter_mut().for_each(|byte| *byte = fastrand::u8(..));
        Ok(Self {
            version: VERSION,
            run_id: seed.iter().map(|byte| format!("{byte:02x}")).collect(),
            chain: config.chain_digest.clone(),
            graph: blake3::hash(config.graph.to_string().as_bytes())
                .to_hex()
                .to_string(),
            vars: Value::Object(plan.vars.json.clone()),
            engines: engines.collect(),
            input,
            format: config.format.name().into(),
            extension: match &config.format {
                Format::Custom(sink) => Some(sink.extension().to_owned()),
                Format::Jsonl | Format::Parquet => None,
            },
            max_rows: config.max_rows,
            flattened: config.flattened,
        })
    }

    /// The extension of the outputs' files, without the first dot.
    pub(super) fn extension(&self) -> &str {
        self.extension.as_deref().unwrap_or(&self.format)
    }

    /// True when another run differs in nothing but that its input has more rows after all of these.
    pub(super) fn is_continued_by(&self, other: &Self) -> bool {
        let same = Self {
            input: self.input.clone(),
            ..other.clone()
        };
        self.differences(&same).is_empty() && source::is_continued(&self.input, &other.input)
    }

    /// What differs from another run, as phrases.
    pub(super) fn differences(&self, other: &Self) -> Vec<String> {
        let mut all = Vec::new();
        let mut differs = |same: bool, phrase: &str| {
            if !same {
                all.push(phrase.to_owned());
            }
        };
        differs(
            self.version == other.version,
            "its files are of another version of chainette",
        );
        differs(self.chain == other.chain, "the chain file was changed");
        differs(
            self.chain != other.chain || self.graph == other.graph,
            "a file the chain refers to was changed",
        );
        differs(self.vars == other.vars, "the vars differ");
        differs(self.engines == other.engines, "the engines differ");
        let input = source::difference(&self.input, &other.input);
        differs(input.is_none(), input.as_deref().unwrap_or_default());
        let custom = self.extension.is_some() || other.extension.is_some();
        let sinks = format!("its sink is `{}`, not `{}`", self.format, other.format);
        let phrase = if custom { &sinks } else { "--format differs" };
        differs(self.format == other.format, phrase);
        differs(
            self.format != other.format || self.extension == other.extension,
            "its sink's files have another extension",
        );
        differs(self.max_rows == other.max_rows, "--max-lines-per-file differs");
        differs(self.flattened == other.flattened, "--no-flattened differs");
        all
    }
}

/// By Step: the digest of its engine's identity.
pub(super) fn engines_by_step(plan: &Plan) -> HashMap<String, [u8; 32]> {
    let digest = |engine: &EngineSpec| *blake3::hash(engine_identity(engine).as_bytes()).as_bytes();
    let engine = |node: &Node| match &node.kind {
        NodeKind::Step(step) => Some((node.id.clone(), digest(plan.engines.get(step.engine.0)?))),
        NodeKind::Apply(_) => None,
    };
    plan.nodes.iter().filter_map(engine).collect()
}

/// By node: what the length of its vectors is known by, of Steps that embed. Another engine may make others.
pub(super) fn vectors_by_node(plan: &Plan) -> Vec<Option<String>> {
    let key = |node: &Node| match &node.kind {
        NodeKind::Step(step) if step.task == Task::Embed => {
            let identity = engine_identity(plan.engines.get(step.engine.0)?);
            Some(format!(
                "{} {}",
                node.id,
                blake3::hash(identity.as_bytes()).to_hex()
            ))
        }
        NodeKind::Step(_) | NodeKind::Apply(_) => None,
    };
    plan.nodes.iter().map(key).collect()
}

/// Name, backend, model and what else decides what an engine replies; not where it is or how fast it is asked.
pub(super) fn engine_identity(engine: &EngineSpec) -> String {
    let mut identity = format!("{} {} {}", engine.name, engine.backend.as_str(), engine.model);
    if let Some(reasoning) = engine.reasoning {
        identity += &format!(" reasoning={reasoning}");
    }
    if let Some(context) = engine.context {
        identity += &format!(" context={context}");
    }
    identity + &engine.launch.identity()
}
