//! `chainette engine reload`: other servers in the place of those that are up.

use std::time::Duration;

use super::super::args::ReloadArgs;
use super::super::{Exit, printer::Printer};
use super::control::{Said, Wish, ask};
use super::pool::Trouble;
use super::stop::unheard;
use super::up::show;
use super::{declared, planned, status, swept, warm_folder};
use crate::spec::suggest;

/// A new server may have to be downloaded, and two may have to start: the pool says when it is over.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// Drains servers and starts others.
pub(super) fn reload(args: &ReloadArgs, printer: Printer) -> Exit {
    let folder = match warm_folder(printer) {
        Ok(folder) => folder,
        Err(exit) => return exit,
    };
    swept(&folder, printer);
    let pool = &args.pool;
    if folder.note(pool).is_none() {
        let notes = folder.notes();
        let hint = suggest(pool, notes.iter().map(|note| note.pool.as_str())).filter(|_| !notes.is_empty());
        let hint = hint.unwrap_or_else(|| "`chainette engine up FILE` starts engines".to_owned());
        printer.error(&format!("error: engine `{pool}` is not up\n  {hint}"));
        return Exit::Failed;
    }
    let file = match &args.file {
        None => None,
        Some(file) => {
            // What is wrong with it is shown here, with its place, before anything is touched.
            let plans = declared(&args.pools_args(file), printer)
                .and_then(|(specs, resources)| planned(&specs, &resources, printer));
            if let Err(exit) = plans {
                return exit;
            }
            Some(std::path::absolute(file).unwrap_or_else(|_| file.clone()))
        }
    };
    let wish = Wish::Reload {
        deadline: args.deadline,
        file,
    };
    let trouble = match ask(&folder, pool, &wish, PATIENCE) {
        Ok(Said::Done) => None,
        Ok(Said::Failed { message, log }) => Some(Trouble { message, log }),
        Ok(Said::Status { .. }) => Some(Trouble::new("a bug of ours")),
        Err(error) => Some(unheard(pool, &error)),
    };
    if let Some(trouble) = trouble {
        show(&trouble, printer);
        return Exit::Failed;
    }
    printer.result(&status::shown(
        &folder,
        Some(std::slice::from_ref(pool)),
        args.json,
    ))
}
