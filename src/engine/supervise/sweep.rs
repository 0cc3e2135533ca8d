//! What others left in a folder of servers.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::{Duration, Instant};

use fs_err::{self as fs, File};
use nix::sys::signal::Signal;

use super::files::{Files, PidFile, open_own, owned_folder, read};
use super::guard::end_marked;
use super::processes::{Process, host};
use super::{Handoff, Policy};

/// What a guard may take beyond its times to end a server.
const SLACK: Duration = Duration::from_secs(2);
/// Between two looks at a guard that is ending.
const AGAIN: Duration = Duration::from_millis(20);

/// A server that was cleaned up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swept {
    /// Its name, `{pool}-{replica}`.
    pub label: String,
    /// How many processes of it were still there, and were ended.
    pub processes: usize,
}

/// A server that lives.
#[derive(Clone, Debug, PartialEq)]
pub struct Running {
    /// Its name, `{pool}-{replica}`.
    pub label: String,
    /// Its PID; none for the moment before it is started.
    pub pid: Option<u32>,
    /// Its guard's PID.
    pub guard: u32,
    /// The PID of who had it started; none if that is gone, and the server about to end.
    pub owner: Option<u32>,
    /// What it left for those who may use it; none before it is healthy.
    pub handoff: Option<Handoff>,
}

/// What there was of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// No trace, or only a log.
    Nothing,
    /// Stale files, and so many processes. All are gone now.
    Swept(usize),
    /// Somebody keeps it.
    Kept {
        /// The guard's PID.
        guard: u32,
        /// The owner's PID.
        owner: u32,
    },
}

/// Cleans up one server, unless somebody keeps it.
pub(super) fn clear(files: &Files, policy: &Policy) -> io::Result<Found> {
    let until = Instant::now() + policy.first_term + policy.second_term + SLACK;
    loop {
        let pid_file = pid_file(files)?;
        let lock = lock(files)?;
        let known = pid_file.as_ref().map(|file| (file.guard, file.owner));
        let held = matches!(lock, Lock::Held);
        if !held && !known.is_some_and(|(guard, _)| guard.lives()) {
            return Ok(remove(files, pid_file));
        }
        let late = Instant::now() > until;
        // Of another machine nothing can be seen but that the lock is held. One of our own may just be ending: it was
        // dropped, and not waited for.
        let elsewhere = pid_file.is_some_and(|file| file.host != host());
        let owned = known.is_some_and(|(_, owner)| owner.lives() && owner != Process::me());
        if elsewhere
            || owned
            || Instant::now() > until + SLACK
            || (late && known.is_none_or(|it| it.1.lives()))
        {
            let (guard, owner) = known.map_or((0, 0), |(guard, owner)| (guard.pid, owner.pid));
            return Ok(Found::Kept { guard, owner });
        }
        // Its owner died, and it does not end its server.
        if let (true, Some((guard, _))) = (late, known) {
            guard.signal(Signal::SIGKILL);
        }
        drop(lock);
        std::thread::sleep(AGAIN);
    }
}

/// The PID file; none if there is none, or one of ours that says nothing.
fn pid_file(files: &Files) -> io::Result<Option<PidFile>> {
    match read(&files.pid) {
        Ok(file) => Ok(Some(file)),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::InvalidData | ErrorKind::UnexpectedEof
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The lock of a server's log, which its guard holds as long as it lives.
enum Lock {
    /// Ours now, so that no guard begins meanwhile.
    Ours(#[expect(dead_code, reason = "held, not read")] File),
    /// A guard has it.
    Held,
    /// There is no log.
    None,
}

fn lock(files: &Files) -> io::Result<Lock> {
    let file = match open_own(&files.log, fs::OpenOptions::new().append(true)) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Lock::None),
        Err(error) => return Err(error),
    };
    match file.file().try_lock() {
        Ok(()) => Ok(Lock::Ours(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(Lock::Held),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

/// Ends what is left of a server without a guard, and removes its files.
fn remove(files: &Files, pid_file: Option<PidFile>) -> Found {
    let there = files.pid.exists() || files.handoff.exists();
    let processes = pid_file.map_or(0, |file| end_marked(&file.nonce));
    files.remove();
    if there {
        Found::Swept(processes)
    } else {
        Found::Nothing
    }
}

/// The names of servers that have files in a folder.
fn labels(folder: &Path) -> io::Result<BTreeSet<String>> {
    let mut labels = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let label = name.to_str().and_then(|name| {
            let stem = name.strip_suffix(".pid").or_else(|| name.strip_suffix(".json"))?;
            Some(stem.to_owned())
        });
        labels.extend(label);
    }
    Ok(labels)
}

/// Cleans up a folder.
pub(super) fn sweep(folder: &Path, policy: &Policy) -> io::Result<Vec<Swept>> {
    let mut swept = Vec::new();
    if !owned_folder(folder)? {
        return Ok(swept);
    }
    for label in labels(folder)? {
        let Ok(files) = Files::new(folder, &label) else {
            continue;
        };
        match clear(&files, policy) {
            Ok(Found::Swept(processes)) => swept.push(Swept { label, processes }),
            Ok(Found::Nothing | Found::Kept { .. }) => {}
            // Another user's: neither touched nor trusted.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error),
        }
    }
    remove_halves(folder);
    Ok(swept)
}

/// Removes files that somebody began to write, `X.PID.new`, and did not live to rename.
fn remove_halves(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str());
        let writer = name.and_then(|name| name.strip_suffix(".new")?.rsplit_once('.')?.1.parse().ok());
        if writer.is_some_and(|pid| Process::of(pid).is_none()) {
            let _gone = fs::remove_file(&path);
        }
    }
}

/// The servers of a folder that live.
pub(super) fn running(folder: &Path) -> io::Result<Vec<Running>> {
    let mut running = Vec::new();
    if !owned_folder(folder)? {
        return Ok(running);
    }
    for label in labels(folder)? {
        let Ok(files) = Files::new(folder, &label) else {
            continue;
        };
        let Ok(file) = read::<PidFile>(&files.pid) else {
            continue;
        };
        if !file.guard.lives() {
            continue;
        }
        let same = |handoff: &Handoff| {
            let process = Process {
                pid: handoff.pid,
                start_time: handoff.start_time,
            };
            file.server == Some(process) && process.lives()
        };
        running.push(Running {
            label,
            pid: file.server.map(|server| server.pid),
            guard: file.guard.pid,
            owner: Some(file.owner).filter(Process::lives).map(|owner| owner.pid),
            handoff: read::<Handoff>(&files.handoff).ok().filter(same),
        });
    }
    Ok(running)
}
