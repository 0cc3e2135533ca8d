//! Whether what a run left is still there.

use std::path::Path;

use super::folder::{altered, check_rolled, part_path, shard_path};
use super::{SinkError, SinkState};
use crate::event::{counted, thousands};

/// Looks for every shard of a finished run in `out`, by name and size; their content is not read.
///
/// # Errors
/// [`SinkError::Altered`] names the first that is gone or has another size.
pub(crate) fn check_present(out: &Path, state: &SinkState, extension: &str) -> Result<(), SinkError> {
    for (name, folder) in &state.0 {
        let extension = match name.as_str() {
            "errors" => "jsonl",
            _ => extension,
        };
        let dir = out.join(name);
        check_rolled(&folder.rolled, |index| shard_path(&dir, index, extension))?;
    }
    Ok(())
}

/// Looks for every shard of JSON lines of a run that is not finished, also the open ones: each has its bytes, under its final
/// name or not.
///
/// # Errors
/// [`SinkError::Altered`] names the first that is gone or too short.
pub(crate) fn check_open(out: &Path, state: &SinkState) -> Result<(), SinkError> {
    for (name, folder) in &state.0 {
        let open = Some(folder.bytes).filter(|bytes| *bytes > 0);
        let bytes = folder.rolled.iter().map(|shard| shard.bytes).chain(open);
        // One without a line is made at the end of a run, and goes when that goes on.
        for (index, bytes) in bytes.enumerate().filter(|(_, bytes)| *bytes > 0) {
            let path = shard_path(&out.join(name), index, "jsonl");
            let len = |path: &Path| std::fs::metadata(path).map(|meta| meta.len()).ok();
            match len(&path).or_else(|| len(&part_path(&path))) {
                Some(len) if len >= bytes => {}
                Some(len) => {
                    let problem = format!("{} instead of {}", counted(len, "byte"), thousands(bytes));
                    return Err(altered(path, &problem));
                }
                None => return Err(altered(path, "it is missing")),
            }
        }
    }
    Ok(())
}
