//! What is committed: one small file, replaced as a whole.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use fs_err::{self as fs, File};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::RunError;
use super::counts::{Counts, Times};
use super::lock::Holding;
use crate::event::{Event, EventSender};
use crate::failpoint;
use crate::sink::{ShardState, SinkState, Unsynced, sync_dir};
use crate::source::Position;

/// Everything that is needed to go on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Where reading goes on.
    pub position: Position,
    /// How far every folder has got.
    pub sinks: SinkState,
    /// Bytes of `.chainette/outcomes`.
    pub outcomes: u64,
    /// Sums over the committed rows.
    pub counts: Counts,
    /// How long it took; nothing else depends on it.
    #[serde(default)]
    pub times: Times,
    /// How many numbers the vectors of Steps have, by node and engine identity.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dimensions: BTreeMap<String, u32>,
    /// The first ledger segment that may hold answers of rows not yet committed.
    pub answers_from: u64,
    /// Answers of rows before this ordinal were not kept, or were given back.
    #[serde(default)]
    pub unkept: u64,
    /// Requests that may have been in flight when its process ended.
    #[serde(default)]
    pub in_flight: u64,
    /// The input was read to its end (or to `--limit`), and all of it is committed.
    pub finished: bool,
    /// The `--limit` it finished under.
    pub limit: Option<u64>,
}

impl Checkpoint {
    /// True when more rows can come after all that it has.
    pub(super) fn can_go_on(&self) -> bool {
        // A finished shard in a format of whole shards cannot be opened again, unless its lines were kept.
        let is_open = |state: &ShardState| state.spool.as_ref().is_none_or(|spool| spool.resumable.is_some());
        !self.finished || self.sinks.0.values().all(is_open)
    }
}

/// Reads a JSON file; none if it is not there.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RunError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| RunError::Damaged {
                path: path.to_owned(),
                problem: error.to_string(),
            }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(RunError::io(path)(error)),
    }
}

/// Replaces a JSON file as a whole, durably. Until then it stands in `private`, so that a kill leaves no
/// half-written file where users look.
pub(crate) fn write_json(
    private: &Path,
    path: &Path,
    value: &impl Serialize,
    is_pretty: bool,
) -> Result<(), RunError> {
    let bytes = match is_pretty {
        true => pretty(value)?,
        false => ended(serde_json::to_vec(value))?,
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let tmp = private.join(format!("{name}.tmp"));
    let stem = name.trim_end_matches(".json");
    let write = || {
        let mut file = File::create(&tmp)?;
        file.write_all(&bytes)?;
        failpoint::hit(format_args!("{stem}.written"))?;
        file.sync_all()?;
        failpoint::hit(format_args!("{stem}.synced"))?;
        fs::rename(&tmp, path)?;
        failpoint::hit(format_args!("{stem}.renamed"))?;
        sync_dir(path.parent().unwrap_or(Path::new(".")))?;
        failpoint::hit(format_args!("{stem}.dir_synced"))
    };
    write().map_err(RunError::io(path))
}

/// The bytes of a JSON file that people read.
pub(super) fn pretty(value: &impl Serialize) -> Result<Vec<u8>, RunError> {
    ended(serde_json::to_vec_pretty(value))
}

/// Ends the last line.
fn ended(bytes: serde_json::Result<Vec<u8>>) -> Result<Vec<u8>, RunError> {
    let mut bytes = bytes.map_err(|error| RunError::Bug {
        message: error.to_string(),
    })?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// A checkpoint that waits for the disk.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) checkpoint: Checkpoint,
    pub(super) unsynced: Unsynced,
    pub(super) outcomes: File,
}

/// A thread that syncs and then writes checkpoints, so that the writer goes on meanwhile.
#[derive(Debug)]
pub(super) struct Checkpointer {
    jobs: Option<SyncSender<Job>>,
    done: Receiver<Result<(), RunError>>,
    busy: bool,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    /// Starts the thread; checkpoints go to `path`.
    pub(super) fn start(path: &Path, events: EventSender, holding: Holding) -> Result<Self, RunError> {
        let (jobs, work) = sync_channel::<Job>(1);
        let (report, done) = sync_channel(1);
        let target = path.to_owned();
        let thread = std::thread::Builder::new()
            .name("checkpoint".into())
            .spawn(move || {
                for job in work {
                    let written = holding.check().and_then(|()| write(&target, job, &events));
                    if report.send(written).is_err() {
                        return;
                    }
                }
            })
            .map_err(RunError::io(path))?;
        Ok(Self {
            jobs: Some(jobs),
            done,
            busy: false,
            thread: Some(thread),
        })
    }

    /// True when no checkpoint is on its way; an error when the last one failed.
    pub(super) fn idle(&mut self) -> Result<bool, RunError> {
        if self.busy
            && let Ok(result) = self.done.try_recv()
        {
            self.busy = false;
            result?;
        }
        Ok(!self.busy)
    }

    /// Waits for the checkpoint on its way.
    pub(super) fn wait(&mut self) -> Result<(), RunError> {
        if self.busy {
            self.busy = false;
            return self.done.recv().map_err(|_| lost())?;
        }
        Ok(())
    }

    /// Hands a checkpoint over; waits for the one before it.
    pub(super) fn submit(&mut self, job: Job) -> Result<(), RunError> {
        self.wait()?;
        let jobs = self.jobs.as_ref().ok_or_else(lost)?;
        jobs.try_send(job).map_err(|_| lost())?;
        self.busy = true;
        Ok(())
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was reported as a lost checkpoint.
            let _reported = thread.join();
        }
    }
}

fn lost() -> RunError {
    RunError::Bug {
        message: "the checkpoint thread ended".into(),
    }
}

fn write(path: &Path, job: Job, events: &EventSender) -> Result<(), RunError> {
    let after = job.unsynced.sync(events)?;
    job.outcomes
        .sync_data()
        .and_then(|()| failpoint::hit("sync.outcomes_synced"))
        .map_err(RunError::io(job.outcomes.path()))?;
    let private = path.parent().unwrap_or(Path::new("."));
    write_json(private, path, &job.checkpoint, false)?;
    after.run(events)?;
    events.send(Event::Checkpoint {
        rows: job.checkpoint.position.ordinal,
    });
    Ok(())
}
