//! One process per OUT.

use std::io::{Read, Seek, Write};
use std::path::Path;

use fs_err::{File, OpenOptions};

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

/// True when a process works on an OUT. Nothing is written.
pub(crate) fn is_locked(private: &Path) -> bool {
    let file = File::open(private.join("lock"));
    file.is_ok_and(|file| {
        let locked = file.file().try_lock_shared();
        matches!(locked, Err(std::fs::TryLockError::WouldBlock))
    })
}
