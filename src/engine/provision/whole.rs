//! Which folders of the hub's cache were fetched here, with all that belongs to them: other programs keep only parts.

use std::path::Path;

use super::remembered::Remembered;
use crate::source::Fingerprint;

const NAME: &str = "whole.json";

/// Whether all of a folder was fetched here. `state` is a folder for what was found out about files.
pub(super) fn is_known(state: &Path, folder: &Path) -> bool {
    let of = Fingerprint::of(&folder.join("config.json")).ok();
    of.is_some_and(|of| Remembered::new(state, NAME).get::<bool>(&of) == Some(true))
}

/// Keeps that all of it was.
pub(super) fn keep(state: &Path, folder: &Path) {
    if let Ok(of) = Fingerprint::of(&folder.join("config.json")) {
        Remembered::new(state, NAME).put(&of, true);
    }
}
