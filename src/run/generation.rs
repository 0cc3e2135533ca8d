//! A new generation of outputs: made beside those that stand, then put in their place as a whole.
//!
//! It grows in `.chainette/next/`, which is laid out as OUT is. Once it is finished, `.chainette/swap.json` says what goes
//! where; from then on whoever opens OUT first brings that to its end, however often it is killed.

use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::RunError;
use super::checkpoint::{Checkpoint, read_json, write_json};
use crate::failpoint;
use crate::sink::sync_dir;

/// What of a former run's answers is used, and where outputs go. Kept in `.chainette/reuse.json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reuse {
    /// The chain or the input changed: answers before this place of the ledger may be found by their request alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) edited: Option<u64>,
    /// Failed rows are asked again: failures before this place are given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) again: Option<u64>,
    /// Outputs go to the next generation.
    #[serde(default)]
    pub(super) next: bool,
}

impl Reuse {
    /// What `.chainette/` says; nothing is reused if it says nothing.
    pub(super) fn read(private: &Path) -> Result<Self, RunError> {
        Ok(read_json(&private.join(FILE))?.unwrap_or_default())
    }

    /// Makes it durable.
    pub(super) fn write(&self, private: &Path) -> Result<(), RunError> {
        write_json(private, &private.join(FILE), self, false)
    }
}

/// The name of a [`Reuse`] in `.chainette/`.
pub(super) const FILE: &str = "reuse.json";
/// The folder of a next generation in `.chainette/`.
pub(super) const NEXT: &str = "next";
/// Where a generation that was replaced is on its way out.
pub(super) const OLD: &str = "old";
/// Says that a next generation is being put in place.
pub(crate) const SWAP: &str = "swap.json";

/// What a swap does.
#[derive(Debug, Serialize, Deserialize)]
struct Swap {
    /// Names in OUT that come from the next generation.
    install: Vec<String>,
    /// Folders in OUT that it has none of.
    remove: Vec<String>,
    /// Whether it has lines that are in no shard yet.
    spool: bool,
}

/// The folder that the next generation's outputs go to.
pub(super) fn base(private: &Path) -> PathBuf {
    private.join(NEXT)
}

/// Puts a finished next generation in the place of the one that stands.
pub(super) fn swap(out: &Path, private: &Path) -> Result<(), RunError> {
    let next = base(private);
    let mut install = Vec::new();
    for entry in fs::read_dir(&next).map_err(RunError::io(&next))? {
        let name = entry.map_err(RunError::io(&next))?.file_name();
        let name = name.to_string_lossy().into_owned();
        if name != ".chainette" {
            install.push(name);
        }
    }
    let standing: Option<Checkpoint> = read_json(&private.join("checkpoint.json"))?;
    let remove = standing.map(|standing| standing.sinks.0).unwrap_or_default();
    let remove = remove.into_keys().filter(|name| !install.contains(name));
    let swap = Swap {
        remove: remove.filter(|name| out.join(name).is_dir()).collect(),
        spool: next.join(".chainette/spool").is_dir(),
        install,
    };
    write_json(private, &private.join(SWAP), &swap, false)?;
    complete(out, private)
}

/// Brings a swap that was begun to its end; does nothing if there is none.
pub(super) fn complete(out: &Path, private: &Path) -> Result<(), RunError> {
    let Some(swap) = read_json::<Swap>(&private.join(SWAP))? else {
        return Ok(());
    };
    let (next, old) = (base(private), private.join(OLD));
    let inner = next.join(".chainette");
    let done = || -> std::io::Result<()> {
        fs::create_dir_all(&old)?;
        for name in &swap.remove {
            if out.join(name).exists() {
                fs::rename(out.join(name), old.join(name))?;
                failpoint::hit("swap.taken_out")?;
            }
        }
        let (files, folders): (Vec<&String>, Vec<_>) =
            swap.install.iter().partition(|name| name.ends_with(".json"));
        for name in folders {
            if next.join(name).exists() {
                if out.join(name).exists() {
                    fs::rename(out.join(name), old.join(name))?;
                    failpoint::hit("swap.taken_out")?;
                }
                fs::rename(next.join(name), out.join(name))?;
                failpoint::hit("swap.put_in")?;
            }
        }
        let spool = inner.join("spool");
        if (spool.exists() || !swap.spool) && private.join("spool").exists() {
            fs::remove_dir_all(private.join("spool"))?;
        }
        if spool.exists() {
            fs::rename(&spool, private.join("spool"))?;
            failpoint::hit("swap.lines_moved")?;
        }
        for name in ["outcomes", "checkpoint.json"] {
            if inner.join(name).exists() {
                fs::rename(inner.join(name), private.join(name))?;
                failpoint::hit("swap.private_moved")?;
            }
        }
        // What says that all is well comes last.
        for name in files {
            if next.join(name).exists() {
                fs::rename(next.join(name), out.join(name))?;
                failpoint::hit("swap.file_moved")?;
            }
        }
        sync_dir(private)?;
        sync_dir(out)?;
        failpoint::hit("swap.durable")
    };
    done().map_err(RunError::io(out))?;
    let reuse = Reuse::read(private)?;
    Reuse {
        again: None,
        next: false,
        ..reuse
    }
    .write(private)?;
    let tidy = || {
        fs::remove_file(private.join(SWAP))?;
        sync_dir(private)?;
        failpoint::hit("swap.unmarked")?;
        fs::remove_dir_all(&old)?;
        fs::remove_dir_all(&next)
    };
    tidy().map_err(RunError::io(private))
}
