//! From a plan to a server that can be started: its model on this machine and verified, its line, its address.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::abilities::Abilities;
use super::flags::{self, Given, Line};
use super::hub;
use super::need::misfit;
use super::plan::{Plan, Source};
use super::prepared::{Mode, Need, PreparedEngine};
use super::weights::Weights;
use super::{checksum, download, free_port};
use crate::spec::{Backend, EngineSpec};

/// How far a preparation is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress<'a> {
    /// A file comes from the hub.
    Downloading {
        /// Its name in the repository.
        file: &'a str,
        /// Bytes so far.
        done: u64,
        /// All its bytes; 0: not known yet.
        total: u64,
    },
    /// It broke off and is tried again.
    Retrying {
        /// What is fetched.
        file: &'a str,
        /// Why.
        why: &'a str,
    },
    /// Another process fetches the same file.
    Waiting {
        /// Its name in the repository.
        file: &'a str,
    },
    /// A file is read and compared with its digest.
    Verifying {
        /// The file.
        file: &'a Path,
        /// Bytes so far.
        done: u64,
        /// All its bytes.
        total: u64,
    },
}

/// Hears of progress, several times a second; `Break` ends the preparation.
pub type Tell<'a> = dyn FnMut(Progress<'_>) -> ControlFlow<()> + 'a;

/// Why an engine cannot be prepared. Nothing of it was started.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// Whoever waits for it did not want to any more.
    #[error("the preparation was ended")]
    Cancelled,
    /// A file of it cannot be read.
    #[error("{} cannot be read: {error}\n  make it readable for yourself", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The model's file is not the one that the chain pins.
    #[error(
        "the model's file {} is not the one that is pinned\n  its SHA-256 is {got}, pinned is {wanted}\n  fetch the file again, or correct `sha256`",
        path.display()
    )]
    WrongDigest {
        /// The file.
        path: PathBuf,
        /// The chain's `sha256`.
        wanted: String,
        /// The file's own.
        got: String,
    },
    /// The hub does not answer, or breaks off again and again.
    #[error("{what}\n  check the network, HF_ENDPOINT and proxies; what came already is kept")]
    Unreachable {
        /// What was asked, and what happened.
        what: String,
    },
    /// Something is wrong with the model, or where it comes from.
    #[error("{what}\n  {how}")]
    Model {
        /// What.
        what: String,
        /// What to do.
        how: String,
    },
    /// It will never fit into what engines may use.
    #[error("{what}\n  {how}")]
    Misfit {
        /// What does not fit.
        what: String,
        /// What to do.
        how: String,
    },
    /// Nobody can listen at its address.
    #[error("nothing can listen at {host}: {error}\n  correct `host`: an address of this machine")]
    Address {
        /// The address.
        host: String,
        /// Why.
        error: std::io::Error,
    },
}

/// A model that is ready to be served.
struct Staged {
    weights: Weights,
    digest: String,
}

/// Prepares one replica of a planned engine: fetches the model if it must, verifies it, asks the program which flags it
/// knows, chooses a port. Blocks for as long as that takes. `state` is a folder for what was found out about files.
///
/// # Errors
/// See [`PrepareError`]; every one says what to do.
pub fn prepare(
    plan: &Plan,
    replica: u32,
    state: &Path,
    tell: &mut Tell<'_>,
) -> Result<PreparedEngine, PrepareError> {
    let staged = stage(plan, state, tell)?;
    let abilities = match plan.spec.backend {
        Backend::LlamaCpp => Abilities::of(&plan.binary, state),
        _ => Abilities::default(),
    };
    let line = flags::line(plan.given(Some(&staged.weights), Some(&abilities)));
    let need = plan.need_of(&line, &staged.weights);
    if let Some((what, how)) = misfit(&need, &plan.budget) {
        let what = format!("the engine `{}` never fits: {what}", plan.spec.name);
        return Err(PrepareError::Misfit { what, how });
    }
    let host = plan.host(&line);
    let port = free_port(&host, plan.preferred(&line, replica)).map_err(|error| PrepareError::Address {
        host: host.clone(),
        error,
    })?;
    let mut prepared = assemble(plan, &line, replica);
    prepared.port = port;
    prepared.need = need;
    prepared.lead = lead(plan.spec.backend, &staged.weights.path);
    prepared.model_path = Some(staged.weights.path);
    prepared.model_digest = Some(staged.digest);
    prepared.spec_digest = digest(&prepared);
    if plan.spec.backend == Backend::Tgi {
        apart(&mut prepared, state);
    }
    Ok(prepared)
}

/// Puts the model's files into their place, and makes sure that they are the right ones.
fn stage(plan: &Plan, state: &Path, tell: &mut Tell<'_>) -> Result<Staged, PrepareError> {
    let spec = &plan.spec;
    let trouble = |(what, how)| PrepareError::Model { what, how };
    let (path, commit) = match &plan.source {
        Source::Local(path) => (path.clone(), None),
        Source::Hub { of, .. } => {
            let (snapshot, path) = download::fetch(&plan.hub, of, spec.backend, state, tell)?;
            (path, Some(snapshot.commit))
        }
    };
    let weights = Weights::at(&path, &spec.model, spec.backend).map_err(trouble)?;
    if let Some(pin) = compared(spec, &weights, state, tell)? {
        let digest = format!("sha256:{pin}");
        return Ok(Staged { weights, digest });
    }
    let digest = match commit {
        None => checksum::edges(&weights.files)?,
        Some(commit) => match hub::etag(&weights.path) {
            Some(etag) => format!("hf:{commit}:{etag}"),
            None => format!("hf:{commit}"),
        },
    };
    Ok(Staged { weights, digest })
}

/// The model's pin, if it has one, once its file was found to be that one.
fn compared<'a>(
    spec: &'a EngineSpec,
    weights: &Weights,
    state: &Path,
    tell: &mut Tell<'_>,
) -> Result<Option<&'a str>, PrepareError> {
    let Some(wanted) = &spec.launch.sha256 else {
        return Ok(None);
    };
    let [file] = weights.files.as_slice() else {
        let (what, how) = super::plan::pins_one_file(&spec.model);
        return Err(PrepareError::Model { what, how });
    };
    let got = checksum::sha256(file, state, tell)?;
    if got != *wanted {
        return Err(PrepareError::WrongDigest {
            path: file.clone(),
            wanted: wanted.clone(),
            got,
        });
    }
    Ok(Some(wanted))
}

/// Compares a model that is here already with its pin; [`prepare`] does that too. `state` is a folder for what was found
/// out about files: a file that is as it was is not read again.
///
/// # Errors
/// It is another, or cannot be read.
pub fn verify(plan: &Plan, state: &Path, tell: &mut Tell<'_>) -> Result<(), PrepareError> {
    match plan.weights() {
        Some(weights) => compared(&plan.spec, weights, state, tell).map(|_| ()),
        None => Ok(()),
    }
}

/// What follows the program's name.
fn lead(backend: Backend, model: &Path) -> Vec<String> {
    let model = model.to_string_lossy().into_owned();
    let words = match backend {
        Backend::Vllm => ["serve".to_owned(), model],
        Backend::Tgi => ["--model-id".to_owned(), model],
        _ => ["--model".to_owned(), model],
    };
    words.to_vec()
}

/// As much of a prepared engine as its plan tells: without digests, and with port 0 where none is preferred.
pub(super) fn assemble(plan: &Plan, line: &Line, replica: u32) -> PreparedEngine {
    let spec = &plan.spec;
    let mut env = spec.launch.env.clone();
    if spec.backend == Backend::Vllm && !env.iter().any(|(name, _)| name == "VLLM_NO_USAGE_STATS") {
        env.push(("VLLM_NO_USAGE_STATS".to_owned(), "1".to_owned()));
    }
    env.sort();
    let key = match spec.backend {
        Backend::Vllm => "VLLM_API_KEY",
        Backend::Tgi => "API_KEY",
        _ => "LLAMA_API_KEY",
    };
    let weights = plan.weights();
    let path = weights.map(|weights| weights.path.clone());
    PreparedEngine {
        engine: spec.name.clone(),
        replica,
        backend: spec.backend.as_str().to_owned(),
        mode: Mode::Binary,
        binary: Some(plan.binary.clone()),
        lead: path.iter().flat_map(|path| lead(spec.backend, path)).collect(),
        flags: line.words.clone(),
        env,
        secrets: spec
            .api_key_env
            .iter()
            .map(|ours| (key.to_owned(), ours.clone()))
            .collect(),
        host: plan.host(line),
        port: plan.preferred(line, replica).unwrap_or(0),
        endpoint: None,
        model_id: spec.model.clone(),
        model_path: path,
        model_digest: None,
        device_mask: plan.mask.clone(),
        slots: line.number("slots"),
        need: weights
            .map(|weights| plan.need_of(line, weights))
            .unwrap_or_default(),
        startup_timeout: spec.launch.startup_timeout,
        spec_digest: String::new(),
        notes: plan.notes(line),
    }
}

/// BLAKE3 over all that decides how a server answers: not where it listens, nor which replica it is.
fn digest(prepared: &PreparedEngine) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut part = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    part("engine 1");
    part(&prepared.backend);
    part(
        &prepared
            .binary
            .as_deref()
            .unwrap_or(Path::new(""))
            .to_string_lossy(),
    );
    part(
        &prepared
            .model_path
            .as_deref()
            .unwrap_or(Path::new(""))
            .to_string_lossy(),
    );
    part(prepared.model_digest.as_deref().unwrap_or_default());
    part(&prepared.flags.len().to_string());
    prepared.flags.iter().for_each(|flag| part(flag));
    part(&prepared.env.len().to_string());
    for (name, value) in prepared.env.iter().chain(&prepared.secrets) {
        part(name);
        part(value);
    }
    part(prepared.device_mask.as_deref().unwrap_or("all"));
    hasher.finalize().to_hex().to_string()
}

/// Two launchers on one machine must not share the socket and the port that their shards talk over.
fn apart(prepared: &mut PreparedEngine, state: &Path) {
    let has = |prepared: &PreparedEngine, flag: &str| prepared.flags.iter().any(|word| word == flag);
    if !has(prepared, "--shard-uds-path") {
        let name = format!("{} {}", state.display(), prepared.label());
        let name = blake3::hash(name.as_bytes()).to_hex();
        let name = name.get(..12).unwrap_or_default();
        let socket = std::env::temp_dir().join(format!("chainette-tgi-{name}"));
        let socket = socket.to_string_lossy().into_owned();
        prepared.lead.extend(["--shard-uds-path".to_owned(), socket]);
    }
    let preferred = u16::try_from(prepared.replica)
        .ok()
        .and_then(|replica| 29500_u16.checked_add(replica));
    if !has(prepared, "--master-port")
        && let Ok(port) = free_port("127.0.0.1", preferred)
    {
        prepared
            .lead
            .extend(["--master-port".to_owned(), port.to_string()]);
    }
}

/// Someone else's server, as it is attached to.
pub fn attach(spec: &EngineSpec) -> PreparedEngine {
    PreparedEngine {
        engine: spec.name.clone(),
        replica: 0,
        backend: spec.backend.as_str().to_owned(),
        mode: Mode::External,
        binary: None,
        lead: Vec::new(),
        flags: Vec::new(),
        env: Vec::new(),
        secrets: Vec::new(),
        host: String::new(),
        port: 0,
        endpoint: spec.endpoint.clone(),
        model_id: spec.model.clone(),
        model_path: None,
        model_digest: None,
        device_mask: None,
        slots: None,
        need: Need::default(),
        startup_timeout: spec.launch.startup_timeout,
        spec_digest: String::new(),
        notes: Vec::new(),
    }
}

impl Plan {
    /// What flags are chosen by.
    pub(super) fn given<'a>(
        &'a self,
        weights: Option<&'a Weights>,
        abilities: Option<&'a Abilities>,
    ) -> Given<'a> {
        Given {
            spec: &self.spec,
            weights,
            gpus: self.gpus.len(),
            abilities,
        }
    }
}
