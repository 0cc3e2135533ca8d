//! Whether what a finished run left is still there.

use std::path::Path;

use super::folder::{check_rolled, shard_path};
use super::{SinkError, SinkState};

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
