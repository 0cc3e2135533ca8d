//! Fetching a model's files from the hub into its cache. What is not whole, or not what the hub says it is, is not taken.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use super::checksum;
use super::hub::{self, Snapshot, is_commit};
use super::machine::HubSettings;
use super::prepare::{PrepareError, Progress, Tell};
use super::reference::{HubReference, is_inside};
use super::transfer::{Word, apart, fetch_file};
use super::weights::{embeds, ggufs, listed, parts};
use super::whole;
use crate::spec::Backend;

/// Between two looks whether somebody wants it to end.
const TICK: Duration = Duration::from_millis(200);
/// Nothing arrives for so long: it is given up.
const STALLED: Duration = Duration::from_secs(120);
/// Tries without a byte in between.
const TRIES: u32 = 5;
/// Before the second try; each further one waits twice as long.
const PAUSE: Duration = Duration::from_millis(500);

/// The model of a reference, fetched: its version and what a server is given of it.
pub(super) fn fetch(
    hub: &HubSettings,
    of: &HubReference,
    backend: Backend,
    state: &Path,
    tell: &mut Tell<'_>,
) -> Result<(Snapshot, PathBuf), PrepareError> {
    let cached = hub::snapshot(hub, of);
    let whole = |snapshot: &Snapshot| hub::whole(snapshot, of, backend);
    let ready = cached.and_then(|snapshot| Some((whole(&snapshot)?, snapshot)));
    // Other programs keep only a part of an embedding model there: of what is not there only the hub knows.
    let partial =
        |path: &Path| backend == Backend::Embedded && path.is_dir() && !whole::is_known(state, path);
    let doubtful = |path: &Path| partial(path) && !path.join("modules.json").is_file();
    // Which file it is, only the hub can tell.
    let open = |path: &Path| match path.is_dir() {
        true => partial(path),
        false => of.file.is_none() && backend.takes_gguf(),
    };
    if let Some((path, snapshot)) = &ready
        && (!open(path) || (hub.offline && !doubtful(path)))
    {
        return Ok((snapshot.clone(), path.clone()));
    }
    if hub.offline {
        return Err(trouble(
            format!(
                "`hf:{of}` is not in the cache, or not all of it, and HF_HUB_OFFLINE forbids to fetch it"
            ),
            "unset HF_HUB_OFFLINE, or fetch it before",
        ));
    }
    let fetching = Fetching { hub, of, state };
    match (fetching.all(backend, tell), ready) {
        (Err(PrepareError::Unreachable { .. }), Some((path, snapshot))) if !doubtful(&path) => {
            Ok((snapshot, path))
        }
        (Ok((snapshot, path)), _) => {
            if path.is_dir() {
                whole::keep(state, &path);
            }
            Ok((snapshot, path))
        }
        (result, _) => result,
    }
}

fn trouble(what: impl Into<String>, how: impl Into<String>) -> PrepareError {
    PrepareError::Model {
        what: what.into(),
        how: how.into(),
    }
}

struct Fetching<'a> {
    hub: &'a HubSettings,
    of: &'a HubReference,
    state: &'a Path,
}

/// Why a try brought nothing.
enum Failed {
    /// Another one may bring it.
    Now(String),
    /// Somebody else fetches this; its lock.
    Locked(PathBuf),
    /// It is of no use to try again.
    Ever(PrepareError),
}

impl Fetching<'_> {
    fn all(&self, backend: Backend, tell: &mut Tell<'_>) -> Result<(Snapshot, PathBuf), PrepareError> {
        let Some(cache) = &self.hub.cache else {
            return Err(trouble(
                "there is no folder to keep models of the hub in",
                "set HF_HOME to one",
            ));
        };
        let cache = std::path::absolute(cache).map_err(|error| PrepareError::Unreadable {
            path: cache.clone(),
            error,
        })?;
        // Not `Cache::default`, which needs a home folder.
        let builder = ApiBuilder::from_cache(Cache::new(cache.clone()))
            .with_endpoint(self.hub.endpoint.clone())
            .with_token(self.hub.token.clone())
            .with_progress(false)
            .with_user_agent("chainette", env!("CARGO_PKG_VERSION"));
        let api = builder
            .build()
            .map_err(|error| trouble(format!("the hub cannot be asked: {error}"), "check HF_ENDPOINT"))?;
        let repo =
            |revision: &str| Repo::with_revision(self.of.repo.clone(), RepoType::Model, revision.to_owned());
        let named = repo(&self.of.revision);
        let info = self.again("the list of its files", tell, |tell| {
            let (api, repo) = (api.clone(), named.clone());
            let words = apart(move |say| say.end(Word::Listed(api.repo(repo).info())));
            match self.listen(&words, "the list of its files", tell)? {
                Word::Listed(result) => result.map_err(|error| self.judge(error, None)),
                _ => Err(Failed::Now("the hub's answer cannot be read".to_owned())),
            }
        })?;
        let listed: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        if !is_commit(&info.sha) {
            return Err(trouble(
                format!(
                    "the hub says that `{}` is at {:?}, which is no commit",
                    self.of.repo, info.sha
                ),
                "check HF_ENDPOINT",
            ));
        }
        let wanted = self.wanted(&listed, backend)?;
        // One version, whatever happens to the branch meanwhile.
        let exact = repo(&info.sha);
        let folder = Cache::new(cache.clone())
            .repo(exact.clone())
            .pointer_path(&info.sha);
        for file in &wanted {
            if !is_inside(file) {
                return Err(trouble(
                    format!(
                        "the repository `{}` has a file {file:?}, which leaves its folder",
                        self.of.repo
                    ),
                    "do not use this repository",
                ));
            }
            if !folder.join(file).is_file() {
                self.file(&api, &exact, file, &folder, tell)?;
            }
        }
        let keep = |error| PrepareError::Unreadable {
            path: folder.clone(),
            error,
        };
        Cache::new(cache)
            .repo(named)
            .create_ref(&info.sha)
            .map_err(keep)?;
        let snapshot = Snapshot {
            commit: info.sha,
            folder,
        };
        let path = match (&self.of.file, backend, wanted.first()) {
            (Some(name), ..) => snapshot.folder.join(name),
            (None, backend, Some(first)) if backend.takes_gguf() && first.ends_with(".gguf") => {
                snapshot.folder.join(first)
            }
            _ => snapshot.folder.clone(),
        };
        Ok((snapshot, path))
    }

    /// The files that a server needs.
    fn wanted(&self, listed_files: &[String], backend: Backend) -> Result<Vec<String>, PrepareError> {
        let repo = &self.of.repo;
        if let Some(name) = &self.of.file {
            if !listed_files.contains(name) {
                let there = ggufs(listed_files);
                let near = crate::spec::nearest(name, listed_files.iter().map(String::as_str));
                return Err(trouble(
                    format!("there is no file `{name}` in `{repo}`"),
                    match near {
                        Some(near) => format!("did you mean `hf:{repo}/{near}`?"),
                        None => format!("there is {}", listed(&there)),
                    },
                ));
            }
            return Ok(parts(name));
        }
        let embeds = backend == Backend::Embedded && embeds(listed_files);
        let weights = ["model.safetensors", "model.safetensors.index.json"];
        if embeds && !listed_files.iter().any(|name| weights.contains(&name.as_str())) {
            return Err(trouble(
                format!(
                    "`{repo}` holds no safetensors, and an embedding model in this process is made of those"
                ),
                "look for a newer revision, or take a server: `backend: vllm`",
            ));
        }
        if embeds || !backend.takes_gguf() {
            let wanted = hub::wanted(listed_files);
            if !wanted
                .iter()
                .any(|name| name.ends_with("config.json") || name == "params.json")
            {
                return Err(trouble(
                    format!(
                        "`{repo}` holds no model that {} can serve: there is no `config.json`",
                        backend.as_str()
                    ),
                    "name another repository; GGUF files are for `backend: llamacpp`",
                ));
            }
            return Ok(wanted);
        }
        match ggufs(listed_files).as_slice() {
            [only] => Ok(parts(only)),
            [] => Err(trouble(
                format!("`{repo}` holds no GGUF file"),
                "name a repository with one; safetensors are for `backend: vllm`",
            )),
            several => Err(trouble(
                format!("`{repo}` holds {} GGUF files", several.len()),
                format!(
                    "name one of them, such as `hf:{repo}/{}`: {}",
                    several.first().map_or("", String::as_str),
                    listed(several)
                ),
            )),
        }
    }

    /// Fetches one file, and looks at what came.
    fn file(
        &self,
        api: &Api,
        repo: &Repo,
        file: &str,
        folder: &Path,
        tell: &mut Tell<'_>,
    ) -> Result<(), PrepareError> {
        self.again(file, tell, |tell| {
            if folder.join(file).is_file() {
                return Ok(());
            }
            let (api, repo, name) = (api.clone(), repo.clone(), file.to_owned());
            let cache = self.hub.cache.clone().unwrap_or_default();
            let words = apart(move |say| fetch_file(&api, &Cache::new(cache), repo, &name, say));
            let (path, size) = match self.listen(&words, file, tell)? {
                Word::Fetched(result) => result.map_err(|error| self.judge(error, Some(file)))?,
                Word::Nonsense(what) => return Err(Failed::Ever(trouble(what, "check HF_ENDPOINT"))),
                _ => return Err(Failed::Now("the hub's answer cannot be read".to_owned())),
            };
            let got = std::fs::metadata(&path).map_or(0, |meta| meta.len());
            if got != size {
                discard(&path);
                return Err(Failed::Now(format!("{got} of {size} bytes came")));
            }
            self.compare(&path, file, tell).map_err(Failed::Ever)
        })
    }

    /// Large files are named by the SHA-256 of their content.
    fn compare(&self, path: &Path, file: &str, tell: &mut Tell<'_>) -> Result<(), PrepareError> {
        let Some(wanted) = hub::etag(path).filter(|etag| etag.len() == 64 && is_commit(etag)) else {
            return Ok(());
        };
        let got = checksum::sha256(path, self.state, tell)?;
        if got == wanted {
            return Ok(());
        }
        discard(path);
        Err(trouble(
            format!(
                "`{file}` of `{}` came damaged: its SHA-256 is {got}, and the hub says {wanted}",
                self.of.repo
            ),
            "the same command fetches it again; check the network, or HF_ENDPOINT",
        ))
    }

    /// Tries until it comes, or there is no use in it.
    fn again<T>(
        &self,
        what: &str,
        tell: &mut Tell<'_>,
        mut work: impl FnMut(&mut Tell<'_>) -> Result<T, Failed>,
    ) -> Result<T, PrepareError> {
        let mut tries = 0;
        let mut grown = Growth::default();
        let mut most = 0;
        loop {
            // What arrived before it broke off is kept, and counts as success; what an earlier try had brought does not.
            let mut moved = false;
            let mut counting = |progress: Progress<'_>| {
                if let Progress::Downloading { done, .. } = progress
                    && done > most
                {
                    (moved, most) = (true, done);
                }
                tell(progress)
            };
            let why = match work(&mut counting) {
                Ok(done) => return Ok(done),
                Err(Failed::Ever(error)) => return Err(error),
                Err(Failed::Locked(lock)) if grown.is_alive(&lock) => {
                    if let ControlFlow::Break(()) = tell(Progress::Waiting { file: what }) {
                        return Err(PrepareError::Cancelled);
                    }
                    continue;
                }
                Err(Failed::Locked(lock)) => {
                    return Err(trouble(
                        format!("another process holds {} and gets nowhere", lock.display()),
                        "end that process, or wait for it",
                    ));
                }
                Err(Failed::Now(why)) => why,
            };
            tries = if moved { 1 } else { tries + 1 };
            if tries >= TRIES {
                return Err(PrepareError::Unreachable {
                    what: format!(
                        "`hf:{}` cannot be fetched from {}: {what}: {why}",
                        self.of, self.hub.endpoint
                    ),
                });
            }
            let wait = PAUSE * 2_u32.saturating_pow(tries - 1);
            let retrying = Progress::Retrying {
                file: what,
                why: &why,
            };
            if let ControlFlow::Break(()) = tell(retrying) {
                return Err(PrepareError::Cancelled);
            }
            std::thread::sleep(wait);
        }
    }

    /// Hears a thread out, and tells how far it is.
    fn listen(&self, words: &Receiver<Word>, file: &str, tell: &mut Tell<'_>) -> Result<Word, Failed> {
        let mut heard = Instant::now();
        let (mut done, mut total) = (0, 0);
        loop {
            match words.recv_timeout(TICK) {
                Ok(Word::Bytes(now, all)) => {
                    heard = Instant::now();
                    (done, total) = (now, all);
                }
                Ok(end) => return Ok(end),
                Err(RecvTimeoutError::Timeout) if heard.elapsed() > STALLED => {
                    return Err(Failed::Now(format!("nothing came for {} s", STALLED.as_secs())));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failed::Now("the hub's answer cannot be read".to_owned()));
                }
            }
            if let ControlFlow::Break(()) = tell(Progress::Downloading { file, done, total }) {
                return Err(Failed::Ever(PrepareError::Cancelled));
            }
        }
    }

    /// What an error of the hub means.
    fn judge(&self, error: ApiError, file: Option<&str>) -> Failed {
        let repo = &self.of.repo;
        let text = match error {
            ApiError::LockAcquisition(lock) => return Failed::Locked(lock),
            ApiError::IoError(error) => {
                let space = matches!(
                    error.kind(),
                    std::io::ErrorKind::StorageFull
                        | std::io::ErrorKind::QuotaExceeded
                        | std::io::ErrorKind::PermissionDenied
                        | std::io::ErrorKind::ReadOnlyFilesystem
                );
                if space {
                    let cache = self.hub.cache.clone().unwrap_or_default();
                    return Failed::Ever(trouble(
                        format!("`hf:{}` cannot be kept in {}: {error}", self.of, cache.display()),
                        "make room there, or set HF_HOME to another folder",
                    ));
                }
                error.to_string()
            }
            other => other.to_string(),
        };
        let status = text.split_once("http status: ").and_then(|(_, rest)| {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<u16>().ok()
        });
        let (what, how) = match status {
            Some(401 | 403) => (
                format!(
                    "the hub does not let you have `{repo}` ({})",
                    status.unwrap_or_default()
                ),
                match self.hub.token {
                    None => "check its name; a private or gated one needs HF_TOKEN".to_owned(),
                    Some(_) => format!(
                        "check its name, that HF_TOKEN may read it, and that you accepted its terms at {}/{repo}",
                        self.hub.endpoint
                    ),
                },
            ),
            Some(404) => (
                match file {
                    Some(file) => format!("there is no file `{file}` in `{repo}` at `{}`", self.of.revision),
                    None => format!("there is no `{repo}` at `{}` on the hub", self.of.revision),
                },
                format!("look for it at {}/{repo}", self.hub.endpoint),
            ),
            _ => return Failed::Now(text),
        };
        Failed::Ever(trouble(what, how))
    }
}

/// Whether a file that somebody else fetches still grows.
#[derive(Default)]
struct Growth {
    seen: u64,
    since: Option<Instant>,
}

impl Growth {
    fn is_alive(&mut self, lock: &Path) -> bool {
        let part = lock.with_extension("part");
        let now = std::fs::metadata(part).map_or(0, |meta| meta.len());
        let since = *self.since.get_or_insert_with(Instant::now);
        if now != self.seen {
            (self.seen, self.since) = (now, Some(Instant::now()));
            return true;
        }
        since.elapsed() < STALLED
    }
}

/// Takes back what was just fetched and is of no use: the link and the content it leads to.
fn discard(link: &Path) {
    let blob = std::fs::canonicalize(link);
    for path in [Ok(link.to_owned()), blob].into_iter().flatten() {
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::debug!(path = %path.display(), %error, "not removed");
        }
    }
}
