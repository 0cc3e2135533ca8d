//! One file of the hub, on a thread of its own.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use hf_hub::api::sync::{Api, ApiError};
use hf_hub::{Cache, Repo};

use super::hub::is_commit;

/// Bytes between two reports.
const STEP: u64 = 1 << 20;

/// What a thread that fetches says.
pub(super) enum Word {
    /// So much is there now, of so much.
    Bytes(u64, u64),
    /// The end.
    Listed(Result<hf_hub::api::RepoInfo, ApiError>),
    /// The end: where it lies, how large it must be.
    Fetched(Result<(PathBuf, u64), ApiError>),
    /// The end: the hub's answer makes no sense.
    Nonsense(String),
}

/// Does something that cannot be ended from outside on a thread of its own: nobody waits for it longer than they like.
pub(super) fn apart(work: impl FnOnce(Say) + Send + 'static) -> Receiver<Word> {
    let (say, words) = sync_channel(16);
    std::thread::spawn(move || {
        work(Say {
            say,
            total: 0,
            done: 0,
            told: 0,
        });
    });
    words
}

/// The thread's end of it.
pub(super) struct Say {
    say: SyncSender<Word>,
    total: u64,
    done: u64,
    told: u64,
}

impl Say {
    pub(super) fn end(&self, word: Word) {
        // Whoever asked may not care any more.
        let _gone = self.say.send(word);
    }

    fn bytes(&mut self) {
        self.told = self.done;
        if self.say.send(Word::Bytes(self.done, self.total)).is_err() {
            // Nobody listens any more. There is no other way out of a transfer than to unwind from it.
            std::panic::resume_unwind(Box::new("nobody waits for this file"));
        }
    }
}

/// How far a transfer is.
struct Transfer<'a>(&'a mut Say);

impl hf_hub::api::Progress for Transfer<'_> {
    fn init(&mut self, size: usize, _: &str) {
        self.0.total = size as u64;
        self.0.done = 0;
        self.0.bytes();
    }

    fn update(&mut self, size: usize) {
        self.0.done += size as u64;
        if self.0.done - self.0.told >= STEP {
            self.0.bytes();
        }
    }

    fn finish(&mut self) {
        self.0.bytes();
    }
}

/// What another try left of a file is gone on with. If that is all of it already, its last byte is asked for again: a
/// request for what comes after the end is refused. If it is more, it is something else.
fn mend(blob: &Path, size: u64) -> std::io::Result<()> {
    let part = blob.with_extension("part");
    let is_too_long = || std::fs::metadata(&part).is_ok_and(|meta| size > 0 && meta.len() >= size);
    if !is_too_long() {
        return Ok(());
    }
    // The lock that all who fetch it take: nobody writes to it now.
    let lock = std::fs::File::create(blob.with_extension("lock"))?;
    if lock.try_lock().is_err() || !is_too_long() {
        return Ok(());
    }
    let file = std::fs::File::options().write(true).open(&part)?;
    let keep = if file.metadata()?.len() == size {
        size - 1
    } else {
        0
    };
    file.set_len(keep)
}

/// On the thread: asks what the file is, and fetches it.
pub(super) fn fetch_file(api: &Api, cache: &Cache, repo: Repo, file: &str, mut say: Say) {
    let of = api.repo(repo.clone());
    let meta = match api.metadata(&of.url(file)) {
        Ok(meta) => meta,
        Err(error) => return say.end(Word::Fetched(Err(error))),
    };
    // Both become names of files.
    let etag = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if !is_commit(meta.commit_hash()) || meta.etag().is_empty() || !meta.etag().bytes().all(etag) {
        return say.end(Word::Nonsense(format!(
            "the hub's answer about `{file}` names no content: commit {:?}, etag {:?}",
            meta.commit_hash(),
            meta.etag()
        )));
    }
    let size = meta.size() as u64;
    let blob = cache.repo(repo).blob_path(meta.etag());
    if let Err(error) = mend(&blob, size) {
        tracing::debug!(blob = %blob.display(), %error, "what another try left stays");
    }
    let fetched = of.download_with_progress(file, Transfer(&mut say));
    say.end(Word::Fetched(fetched.map(|path| (path, size))));
}
