//! One process per OUT.

use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fs_err::{self as fs, File, OpenOptions};

use super::RunError;
use crate::failpoint;

/// Held as long as this process writes to OUT; given back by the system however we end.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of an OUT's private folder, or says who holds it.
    pub(super) fn take(private: &Path, out: &Path) -> Result<Self, RunError> {
        let path = private.join("lock");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(RunError::io(&path))?;
        match file.file().try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _unreadable_is_fine = file.read_to_string(&mut holder);
                let pid = holder.trim().parse().ok();
                return Err(RunError::Locked {
                    out: out.to_owned(),
                    pid,
                });
            }
            Err(std::fs::TryLockError::Error(source)) => return Err(RunError::Io { path, source }),
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())?;
            failpoint::hit("lock.taken")
        };
        write(&mut file).map_err(RunError::io(&path))?;
        Ok(Self { _file: file })
    }
}

/// Tells whether OUT is still the folder whose lock was taken. Somebody may remove it or move it away, and another
/// run may even be at work in a new one of that name, which must not be written to.
#[derive(Clone, Debug)]
pub(super) struct Holding {
    out: PathBuf,
    lock: PathBuf,
    /// The lock file's device and inode.
    id: (u64, u64),
}

impl Holding {
    /// Of an OUT whose lock this process holds.
    pub(super) fn of(private: &Path, out: &Path) -> Result<Self, RunError> {
        let lock = private.join("lock");
        let id = identity(&lock).map_err(RunError::io(&lock))?;
        let out = out.to_owned();
        Ok(Self { out, lock, id })
    }

    /// An error once OUT is another folder, or none.
    pub(super) fn check(&self) -> Result<(), RunError> {
        match identity(&self.lock) {
            Ok(id) if id == self.id => Ok(()),
            _ => Err(RunError::Gone {
                out: self.out.clone(),
            }),
        }
    }
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    fs::metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

/// True when a process works on an OUT. Nothing is written.
pub(crate) fn is_locked(private: &Path) -> bool {
    let file = File::open(private.join("lock"));
    file.is_ok_and(|file| {
        let locked = file.file().try_lock_shared();
        matches!(locked, Err(std::fs::TryLockError::WouldBlock))
    })
}
