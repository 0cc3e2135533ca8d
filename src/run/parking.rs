//! Where finished rows wait for the rows before them when there are too many to keep in memory.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fs_err::{self as fs, File, OpenOptions};

use super::RunError;
use crate::failpoint;
use crate::node::output::Output;

/// A place on file.
#[derive(Debug)]
pub(super) struct Parked {
    offset: u64,
    len: usize,
}

/// A scratch file; what it holds is worth nothing after a restart.
#[derive(Debug)]
pub(super) struct Parking {
    path: PathBuf,
    file: Option<File>,
    end: u64,
    parked: usize,
    /// Bytes of finished parts that wait in memory.
    pub(super) in_memory: usize,
}

impl Parking {
    /// Uses the file `path`, which is made when it is first needed.
    pub(super) fn new(path: &Path) -> Self {
        // Left over from a killed run, if there at all.
        let _absent = fs::remove_file(path);
        Self {
            path: path.to_owned(),
            file: None,
            end: 0,
            parked: 0,
            in_memory: 0,
        }
    }

    /// Writes an output to disk.
    pub(super) fn park(&mut self, output: &Output) -> Result<Parked, RunError> {
        let mut bytes = Vec::with_capacity(output.size() + 1024);
        output.encode(&mut bytes).map_err(|error| RunError::Bug {
            message: error.to_string(),
        })?;
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let mut options = OpenOptions::new();
                let file = options
                    .create(true)
                    .truncate(true)
                    .read(true)
                    .write(true)
                    .open(&self.path);
                self.file.insert(file.map_err(RunError::io(&self.path))?)
            }
        };
        if self.parked == 0 && self.end > 0 {
            file.set_len(0).map_err(RunError::io(&self.path))?;
            self.end = 0;
        }
        file.file()
            .write_all_at(&bytes, self.end)
            .and_then(|()| failpoint::hit("parking.parked"))
            .map_err(RunError::io(&self.path))?;
        let parked = Parked {
            offset: self.end,
            len: bytes.len(),
        };
        self.end += bytes.len() as u64;
        self.parked += 1;
        Ok(parked)
    }

    /// Reads an output back.
    pub(super) fn fetch(&mut self, parked: Parked) -> Result<Output, RunError> {
        let damaged = || RunError::Damaged {
            path: self.path.clone(),
            problem: "a parked row is gone".into(),
        };
        let file = self.file.as_ref().ok_or_else(damaged)?;
        let mut bytes = vec![0; parked.len];
        file.file()
            .read_exact_at(&mut bytes, parked.offset)
            .map_err(RunError::io(&self.path))?;
        self.parked -= 1;
        Output::decode(&bytes).ok_or_else(damaged)
    }
}

impl Drop for Parking {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // Only scratch: the next run removes it if we cannot.
            let _scratch = fs::remove_file(&self.path);
        }
    }
}
