//! The guard: a small process between us and a server, so that the server ends when we do, however we do.
//!
//! `chainette __guard` reads one [`Order`] from its stdin, starts the server through `chainette __exec`, and then
//! waits: for a command, for the end of its stdin (we are gone), for the end of the server. Whatever ends first, it
//! ends all that the server started, removes its files, and goes. It says what happens on its stdout, a [`Note`] a line.

mod ears;
mod exec;
mod life;
mod order;
mod process;
mod version;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

pub(super) use life::{Guarded, Life, end_marked};
pub(super) use order::{Order, VERSION};
pub(super) use version::version_of;

/// The environment variable by which a server's processes are known, however far they went from it.
pub(super) const MARK: &str = "CHAINETTE_ENGINE";
/// The guard's subcommand.
const GUARD: &str = "__guard";
/// The subcommand that becomes the server.
const EXEC: &str = "__exec";
/// The usual name of this program.
const NAME: &str = "chainette";
/// Names the guard's program.
const PROGRAM: &str = "CHAINETTE_GUARD";

/// This program called [`guard_main`]: it can be its own guard.
static FORWARDS: AtomicBool = AtomicBool::new(false);

/// Makes this program its own guard. To be called first in `main`: where the program was started as a guard, this
/// does a guard's work and never returns; else it returns at once.
pub fn guard_main() {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(OsStr::to_str) {
        Some(GUARD) => std::process::exit(process::run()),
        Some(EXEC) => std::process::exit(exec::run(args)),
        _ => FORWARDS.store(true, Ordering::Relaxed),
    }
}

/// The program that guards are started from: `$CHAINETTE_GUARD`, else this one if it called [`guard_main`], else
/// the `chainette` beside it or on PATH.
pub(super) fn program() -> PathBuf {
    let named = std::env::var_os(PROGRAM).filter(|name| !name.is_empty());
    if let Some(named) = named {
        return named.into();
    }
    if FORWARDS.load(Ordering::Relaxed) {
        return myself();
    }
    // Cargo puts tests and examples into folders below that of programs.
    let near = std::env::current_exe().ok();
    let folders = near.iter().flat_map(|path| path.ancestors().skip(1).take(2));
    let mut found = folders
        .map(|folder| folder.join(NAME))
        .filter(|path| path.is_file());
    found.next().unwrap_or_else(|| NAME.into())
}

/// This program, even if its file was replaced or removed since it started.
fn myself() -> PathBuf {
    let link = Path::new("/proc/self/exe");
    if cfg!(target_os = "linux") && link.exists() {
        return link.to_owned();
    }
    std::env::current_exe().unwrap_or_else(|_| NAME.into())
}
