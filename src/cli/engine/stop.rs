//! `chainette engine down` and `drain`: servers are stopped, at once or when nobody uses them.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::super::args::{DownArgs, DrainArgs};
use super::super::{Exit, printer::Printer};
use super::control::{Said, Wish, ask};
use super::pool::Trouble;
use super::up::show;
use super::{swept, warm_folder};
use crate::engine::warm::{Note, WarmFolder};
use crate::spec::suggest;

/// How long a pool may take to stop its servers.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long its process may take to end after that.
const END: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Stops servers now.
pub(super) fn down(args: &DownArgs, printer: Printer) -> Exit {
    let folder = match warm_folder(printer) {
        Ok(folder) => folder,
        Err(exit) => return exit,
    };
    let pools = match args.all {
        true => folder.notes().into_iter().map(|note| note.pool).collect(),
        false => args.pools.clone(),
    };
    let stop = |note: &Note| {
        let said = ask(&folder, &note.pool, &Wish::Down, PATIENCE);
        if !matches!(said, Ok(Said::Done)) && note.is_of_a_living() {
            // It does not listen. Its guards end the servers.
            signal(note, Signal::SIGKILL);
        }
        Ok(())
    };
    each(&folder, &pools, args.json, printer, stop)
}

/// Stops servers when nobody uses them.
pub(super) fn drain(args: &DrainArgs, printer: Printer) -> Exit {
    let folder = match warm_folder(printer) {
        Ok(folder) => folder,
        Err(exit) => return exit,
    };
    let wish = Wish::Drain {
        deadline: args.deadline,
    };
    let patience = args.deadline.saturating_add(PATIENCE);
    let stop = |note: &Note| match ask(&folder, &note.pool, &wish, patience) {
        Ok(Said::Done) => Ok(()),
        Ok(Said::Failed { message, log }) => Err(Trouble { message, log }),
        Ok(Said::Status { .. }) => Err(Trouble::new("a bug of ours")),
        Err(_) if !note.is_of_a_living() => Ok(()),
        Err(error) => Err(unheard(&note.pool, &error)),
    };
    each(&folder, &args.pools, args.json, printer, stop)
}

/// The process of a pool does not answer.
pub(super) fn unheard(pool: &str, error: &std::io::Error) -> Trouble {
    Trouble::new(format!(
        "the process that keeps engine `{pool}` does not answer: {error}\n  `chainette engine down --pool {pool}` ends it"
    ))
}

/// Stops pools, one after the other; afterwards nothing of them is left.
fn each(
    folder: &WarmFolder,
    pools: &[String],
    json: bool,
    printer: Printer,
    stop: impl Fn(&Note) -> Result<(), Trouble>,
) -> Exit {
    let (mut stopped, mut not_up, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for pool in pools {
        let Some(note) = folder.note(pool) else {
            let notes = folder.notes();
            let hint = suggest(pool, notes.iter().map(|note| note.pool.as_str()));
            let hint = hint
                .filter(|_| !notes.is_empty())
                .map_or_else(String::new, |hint| format!("; {hint}"));
            printer.notice(&format!("engine {pool}: is not up{hint}"));
            not_up.push(pool);
            continue;
        };
        match stop(&note) {
            Ok(()) => {
                ended(folder, &note);
                printer.notice(&format!("engine {pool}: is down"));
                stopped.push(pool);
            }
            Err(trouble) => {
                show(&trouble, printer);
                failed.push(pool);
            }
        }
    }
    swept(folder, printer);
    if json {
        let told = json!({"stopped": stopped, "not_up": not_up, "failed": failed});
        printer.result(&format!("{told:#}\n"));
    }
    if failed.is_empty() {
        Exit::Done
    } else {
        Exit::Failed
    }
}

/// Waits for the end of a pool's process, unless it keeps other pools too.
fn ended(folder: &WarmFolder, note: &Note) {
    let others = || {
        folder
            .notes()
            .iter()
            .any(|other| other.pid == note.pid && other.pool != note.pool)
    };
    let begun = Instant::now();
    while note.is_of_a_living() && begun.elapsed() < END {
        if others() {
            return;
        }
        thread::sleep(LOOK);
    }
    signal(note, Signal::SIGKILL);
}

fn signal(note: &Note, signal: Signal) {
    if let (true, Ok(pid)) = (note.is_of_a_living(), i32::try_from(note.pid)) {
        // It may have ended this very moment.
        let _gone = kill(Pid::from_raw(pid), signal);
    }
}
