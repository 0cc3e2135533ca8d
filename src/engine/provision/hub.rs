//! Models of the hub: what of them lies in its cache already.
//!
//! The cache is the one that all tools of the hub share: `models--ORG--REPO/{blobs, refs, snapshots}`.

use std::path::{Path, PathBuf};

use super::machine::HubSettings;
use super::reference::HubReference;
use super::weights::{embeds, ggufs, lost_module, lost_shard, names, parts, weight_files};
use crate::spec::Backend;

/// A version of a repository that lies in the cache, whole or in part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// Its commit.
    pub(super) commit: String,
    /// Its folder.
    pub(super) folder: PathBuf,
}

/// The version that a reference means, if the cache has heard of it.
pub(super) fn snapshot(hub: &HubSettings, of: &HubReference) -> Option<Snapshot> {
    let folder = hub
        .cache
        .as_ref()?
        .join(format!("models--{}", of.repo.replace('/', "--")));
    let named = std::fs::read_to_string(folder.join("refs").join(&of.revision)).ok();
    // A commit is its own name.
    let commit = named.map_or_else(|| of.revision.clone(), |commit| commit.trim().to_owned());
    if !is_commit(&commit) {
        return None;
    }
    let folder = folder.join("snapshots").join(&commit);
    folder.is_dir().then_some(Snapshot { commit, folder })
}

/// True for what can be a commit, and so a folder's name.
pub(super) fn is_commit(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What a server is given of a version, if all of it is there.
pub(super) fn whole(snapshot: &Snapshot, of: &HubReference, backend: Backend) -> Option<PathBuf> {
    let folder = &snapshot.folder;
    let file = |name: &str| {
        let all = parts(name).iter().all(|part| folder.join(part).is_file());
        all.then(|| folder.join(name))
    };
    match (&of.file, backend) {
        (Some(name), _) => file(name),
        // Whether it is the only one of the repository is for the hub to say.
        (None, Backend::Embedded) if embeds(&names(folder)) => {
            let has = |name: &str| folder.join(name).is_file();
            let weights = has("model.safetensors") || has("model.safetensors.index.json");
            let all = is_whole(folder) && has("tokenizer.json") && weights && lost_module(folder).is_none();
            all.then(|| folder.clone())
        }
        (None, backend) if backend.takes_gguf() => match ggufs(&names(folder)).as_slice() {
            [only] => file(only),
            _ => None,
        },
        (None, _) => is_whole(folder).then(|| folder.clone()),
    }
}

/// True for a folder with a configuration, a tokenizer and all weights.
fn is_whole(folder: &Path) -> bool {
    let names = names(folder);
    let has = |wanted: &[&str]| wanted.iter().any(|wanted| folder.join(wanted).is_file());
    let weights = weight_files(&names);
    has(&["config.json", "params.json"])
        && has(&[
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "vocab.json",
            "tekken.json",
        ])
        && !weights.is_empty()
        && weights.iter().all(|name| folder.join(name).is_file())
        && lost_shard(folder).is_none()
}

/// The files of a repository that a server of safetensors wants: weights, tokenizer, configuration. Nothing of its
/// folders, which hold the same in other forms; but for the parts of an embedding model that follow its encoder.
pub(super) fn wanted(names: &[String]) -> Vec<String> {
    const ENDS: [&str; 6] = [".json", ".txt", ".model", ".jinja", ".py", ".tiktoken"];
    let part = |name: &str| {
        let (folder, file) = name.split_once('/')?;
        let (number, _) = folder.split_once('_')?;
        let numbered = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        (numbered && matches!(file, "config.json" | "model.safetensors")).then_some(())
    };
    let small = |name: &&String| match name.contains('/') {
        true => part(name).is_some(),
        false => ENDS.iter().any(|end| name.ends_with(end)),
    };
    let mut wanted: Vec<String> = names.iter().filter(small).cloned().collect();
    wanted.sort();
    // The weights come last: where they are, all is.
    wanted.extend(weight_files(names));
    wanted
}

/// How the hub calls the content of a file: the name of its blob.
pub(super) fn etag(file: &Path) -> Option<String> {
    let blob = std::fs::canonicalize(file).ok()?;
    let is_blob = blob.parent()?.file_name()? == "blobs";
    is_blob
        .then(|| Some(blob.file_name()?.to_str()?.to_owned()))
        .flatten()
}
