//! The files of a model that lie on this machine, and the numbers in them that decide how much memory it takes.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::gguf::Gguf;
use super::reference::Reference;
use crate::spec::{Backend, EngineSpec, Task, nearest};

/// Something that is not as it must be: what, and what to do.
pub(super) type Trouble = (String, String);

/// A model on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Weights {
    /// What the server is given: a file, or a folder.
    pub(super) path: PathBuf,
    /// The files with the weights, sorted.
    pub(super) files: Vec<PathBuf>,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Tokens that the model was trained on at once; 0: not said.
    pub(super) trained_context: u64,
    /// Numbers kept of each token, in all layers.
    pub(super) kept_per_token: u64,
    /// Layers; 0: not said.
    pub(super) layers: u64,
    /// Numbers in a token's state.
    pub(super) width: u64,
    /// Tokens that it knows.
    pub(super) vocabulary: u64,
}

impl Weights {
    /// The model at a path, for a backend. `named` is how its user wrote it.
    pub(super) fn at(path: &Path, named: &str, backend: Backend) -> Result<Self, Trouble> {
        let Ok(meta) = std::fs::metadata(path) else {
            return Err(absent(path, named));
        };
        let is_gguf = path
            .extension()
            .is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
        match (meta.is_dir(), backend) {
            (true, Backend::Embedded) if embeds(&names(path)) => Self::folder(path, named),
            (true, backend) if backend.takes_gguf() => Self::gguf(&only_gguf(path, named, backend)?, named),
            (true, _) => Self::folder(path, named),
            (false, backend) if backend.takes_gguf() => Self::gguf(path, named),
            (false, _) if is_gguf => Self::gguf(path, named),
            (false, _) => Err((
                format!(
                    "the model `{named}` is a file, and {} serves a folder",
                    backend.as_str()
                ),
                "name the folder with its `config.json`, tokenizer and safetensors files".to_owned(),
            )),
        }
    }

    /// A GGUF file, with its other parts where it is split.
    fn gguf(path: &Path, named: &str) -> Result<Self, Trouble> {
        let head = Gguf::read(path).map_err(|error| {
            (
                format!("the model `{named}` cannot be used: {}: {error}", path.display()),
                "name a GGUF file that can be read, or download it again".to_owned(),
            )
        })?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let files: Vec<PathBuf> = parts(&name)
            .iter()
            .map(|part| path.with_file_name(part))
            .collect();
        if let Some(lost) = files.iter().find(|part| !part.is_file()) {
            return Err((
                format!(
                    "the model `{named}` is split, and its part {} is not there",
                    lost.display()
                ),
                "put all its parts into one folder".to_owned(),
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            bytes: files.iter().map(|file| size(file)).sum(),
            files,
            trained_context: head.context,
            kept_per_token: head.kept_per_token,
            layers: head.layers,
            width: head.width,
            vocabulary: head.vocabulary,
        })
    }

    /// A folder with `config.json` and weights.
    fn folder(path: &Path, named: &str) -> Result<Self, Trouble> {
        let names = names(path);
        let configs = ["config.json", "params.json"];
        if !configs
            .iter()
            .any(|config| names.iter().any(|name| name == config))
        {
            return Err((
                format!("the folder `{named}` holds no model: there is no `config.json`"),
                "name the folder that a model was saved to, or `hf:org/repo`".to_owned(),
            ));
        }
        let files: Vec<PathBuf> = weight_files(&names).iter().map(|name| path.join(name)).collect();
        if files.is_empty() {
            return Err((
                format!("the folder `{named}` holds no weights: there is no safetensors file"),
                "download the model as a whole".to_owned(),
            ));
        }
        if let Some(lost) = lost_shard(path) {
            return Err((
                format!("the folder `{named}` is not whole: {lost} is not there"),
                "download the model as a whole".to_owned(),
            ));
        }
        let config = std::fs::read(path.join("config.json")).unwrap_or_default();
        let config: Value = serde_json::from_slice(&config).unwrap_or_default();
        // Models that also see have the numbers of their text side one level down.
        let text = config.get("text_config").unwrap_or(&config);
        let number = |key: &str| text.get(key).and_then(Value::as_u64);
        let (width, heads) = (
            number("hidden_size").unwrap_or(0),
            number("num_attention_heads").unwrap_or(0),
        );
        let layers = number("num_hidden_layers").unwrap_or(0);
        let kept_heads = number("num_key_value_heads").unwrap_or(heads);
        let length = number("head_dim").unwrap_or(width.checked_div(heads).unwrap_or(0));
        Ok(Self {
            path: path.to_owned(),
            bytes: files.iter().map(|file| size(file)).sum(),
            files,
            trained_context: number("max_position_embeddings").unwrap_or(0),
            kept_per_token: layers
                .saturating_mul(kept_heads)
                .saturating_mul(length)
                .saturating_mul(2),
            layers,
            width,
            vocabulary: number("vocab_size").unwrap_or(0),
        })
    }
}

/// The files of a repository that hold the weights: safetensors where there are some, and not the same twice.
pub(super) fn weight_files(names: &[String]) -> Vec<String> {
    let of = |ends: &[&str]| -> Vec<String> {
        let is = |name: &&String| !name.contains('/') && ends.iter().any(|end| name.ends_with(end));
        names.iter().filter(is).cloned().collect()
    };
    let mut found = of(&[".safetensors"]);
    // Some repositories carry the weights in their makers' form as well.
    if found.iter().any(|name| name.starts_with("model")) {
        found.retain(|name| !name.starts_with("consolidated"));
    }
    if found.is_empty() {
        found = of(&[".bin", ".pt", ".pth"]);
        found.retain(|name| !name.starts_with("training_args"));
    }
    if found.is_empty() {
        found = of(&[".gguf"]);
    }
    found.sort();
    found
}

/// Whether a folder or a repository is, in this process, an embedding model rather than one that writes: by its names.
pub(super) fn embeds(names: &[String]) -> bool {
    // Some repositories carry the same model as GGUF too, in a folder of its own.
    let gguf = |name: &String| !name.contains('/');
    !ggufs(names).iter().any(gguf) && names.iter().any(|name| name == "config.json")
}

/// What an engine in this process can be asked for, as far as its model's name and the files on this machine tell.
pub(crate) fn task_in_process(spec: &EngineSpec) -> Option<Task> {
    let gguf = |path: &str| {
        path.to_ascii_lowercase()
            .ends_with(".gguf")
            .then_some(Task::Generate)
    };
    match Reference::parse(&spec.model, &spec.launch.folder).ok()? {
        Reference::Hub(of) => gguf(&of.file?),
        Reference::Local(path) if path.is_dir() => {
            let names = names(&path);
            match (embeds(&names), ggufs(&names).is_empty()) {
                (true, _) => Some(Task::Embed),
                (false, false) => Some(Task::Generate),
                // What is wrong with it is told elsewhere.
                (false, true) => None,
            }
        }
        Reference::Local(path) => gguf(&path.to_string_lossy()),
    }
}

/// A file of a part of an embedding model, beside its encoder, that the folder's `modules.json` names and that is not
/// there.
pub(super) fn lost_module(folder: &Path) -> Option<String> {
    let modules = std::fs::read(folder.join("modules.json")).ok()?;
    let modules: Value = serde_json::from_slice(&modules).ok()?;
    let field = |module: &Value, key: &str| module.get(key).and_then(Value::as_str).map(str::to_owned);
    let named = modules.as_array()?.iter().flat_map(|module| {
        let (kind, path) = (field(module, "type"), field(module, "path"));
        let files: &[&str] = match kind.as_deref().and_then(|kind| kind.rsplit('.').next()) {
            Some("Pooling") => &["config.json"],
            Some("Dense") => &["config.json", "model.safetensors"],
            _ => &[],
        };
        let path = path.unwrap_or_default();
        files.iter().map(move |file| format!("{path}/{file}"))
    });
    let mut named = named.filter(|file| super::reference::is_inside(file));
    named.find(|file| !folder.join(file).is_file())
}

/// All parts of a GGUF file that is split (`NAME-00001-of-00003.gguf`); else the file itself.
pub(super) fn parts(name: &str) -> Vec<String> {
    let split = || {
        let (folder, file) = name
            .rsplit_once('/')
            .map_or(("", name), |(folder, file)| (folder, file));
        let stem = file.strip_suffix(".gguf")?;
        let (stem, of) = stem.rsplit_once("-of-")?;
        let (stem, part) = stem.rsplit_once('-')?;
        let five = |digits: &str| digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
        let count: u32 = of
            .parse()
            .ok()
            .filter(|count| *count > 0 && five(of) && five(part))?;
        let folder = if folder.is_empty() {
            String::new()
        } else {
            format!("{folder}/")
        };
        let part = |at| format!("{folder}{stem}-{at:05}-of-{count:05}.gguf");
        Some((1..=count).map(part).collect())
    };
    split().unwrap_or_else(|| vec![name.to_owned()])
}

/// The GGUF files among some names: of a split one its first part; no projectors of images.
pub(super) fn ggufs(names: &[String]) -> Vec<String> {
    let mut found: Vec<String> = names
        .iter()
        .filter(|name| {
            name.ends_with(".gguf") && !name.rsplit('/').next().unwrap_or(name).starts_with("mmproj")
        })
        .filter_map(|name| parts(name).into_iter().next())
        .collect();
    found.sort();
    found.dedup();
    found
}

/// The only model of a folder.
fn only_gguf(folder: &Path, named: &str, backend: Backend) -> Result<PathBuf, Trouble> {
    match ggufs(&names(folder)).as_slice() {
        [only] => Ok(folder.join(only)),
        [] if backend == Backend::Embedded => Err((
            format!("the folder `{named}` holds neither a GGUF file nor a `config.json`"),
            "name a GGUF file that writes text, or the folder of an embedding model".to_owned(),
        )),
        [] => Err((
            format!("the folder `{named}` holds no GGUF file"),
            "name the model's file".to_owned(),
        )),
        several => Err((
            format!("the folder `{named}` holds {} GGUF files", several.len()),
            format!("name one of them: {}", listed(several)),
        )),
    }
}

/// A few names, for a message.
pub(super) fn listed(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    if names.len() > SHOWN {
        shown.push(format!("and {} more", names.len() - SHOWN));
    }
    shown.join(", ")
}

/// The names in a folder, sorted.
pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().take(10_000);
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names
}

/// A shard that the folder's index names and that is not there.
pub(super) fn lost_shard(folder: &Path) -> Option<String> {
    let index = std::fs::read(folder.join("model.safetensors.index.json")).ok()?;
    let index: Value = serde_json::from_slice(&index).ok()?;
    let shards = index.get("weight_map")?.as_object()?;
    let mut shards = shards.values().filter_map(Value::as_str);
    shards
        .find(|shard| super::reference::is_inside(shard) && !folder.join(shard).is_file())
        .map(str::to_owned)
}

fn size(file: &Path) -> u64 {
    std::fs::metadata(file).map_or(0, |meta| meta.len())
}

/// Why there is nothing at a path.
fn absent(path: &Path, named: &str) -> Trouble {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = names(folder);
    let near = nearest(&name, beside.iter().map(String::as_str));
    let looks_like_hub = || {
        let letter = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let mut parts = named.split('/');
        let good = |part: Option<&str>| {
            part.is_some_and(|p| !p.is_empty() && !p.starts_with('.') && p.chars().all(letter))
        };
        good(parts.next()) && good(parts.next()) && parts.next().is_none()
    };
    let how = match near {
        Some(near) => format!("did you mean `{}`?", path.with_file_name(near).display()),
        None if looks_like_hub() => format!("a model of the hub is written `hf:{named}`"),
        None if !folder.is_dir() => format!("there is no folder {} either", folder.display()),
        None => "name a file or folder that is there, or `hf:org/repo`".to_owned(),
    };
    (
        format!("the model `{named}` is not there: {}", path.display()),
        how,
    )
}
