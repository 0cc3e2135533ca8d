//! `chainette engine status`: what is up.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::args::StatusArgs;
use super::super::{Exit, printer::Printer};
use super::control::{Said, Wish, ask};
use super::servers::shown as memory;
use super::{columns, declared, sweep, warm_folder};
use crate::engine::provision::Need;
use crate::engine::supervise::{Handoff, files};
use crate::engine::warm::{Note, Stage, WarmFolder};
use crate::event::EventSender;
use crate::report::seconds;

/// How long a pool's process may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(3);

/// Shows the engines that are up.
pub(super) fn status(args: &StatusArgs, printer: Printer) -> Exit {
    let mut pools: Option<Vec<String>> = match &args.file {
        None => None,
        Some(_) => match declared(&args.pools_args(), printer) {
            Ok((specs, _)) => Some(
                specs
                    .into_iter()
                    .filter(|spec| spec.is_launched())
                    .map(|spec| spec.name)
                    .collect(),
            ),
            Err(exit) => return exit,
        },
    };
    if !args.pools.is_empty() && pools.is_none() {
        pools = Some(args.pools.clone());
    }
    let folder = match warm_folder(printer) {
        Ok(folder) => folder,
        Err(exit) => return exit,
    };
    let stale = sweep(&folder, printer);
    let mut rows = rows(&folder, pools.as_deref());
    let asked = |pool: &str| {
        pools
            .as_ref()
            .is_none_or(|pools| pools.iter().any(|name| name == pool))
    };
    for label in &stale {
        let (pool, replica) = label.rsplit_once('-').unwrap_or((label, "0"));
        if asked(pool) {
            rows.push(Row {
                what: Some("whoever kept it was killed; it is cleaned up now".to_owned()),
                ..Row::new(pool, replica.parse().unwrap_or_default(), "stale")
            });
        }
    }
    if let (None, Some(unknown)) = (&args.file, args.pools.iter().find(|pool| !known(&rows, pool))) {
        printer.error(&format!(
            "error: no engine `{unknown}` is up\n  `chainette engine status` shows what is up"
        ));
        return Exit::Failed;
    }
    printer.result(&told(&rows, args.json))
}

/// Whether there is anything of a pool.
fn known(rows: &[Row], pool: &str) -> bool {
    rows.iter().any(|row| row.pool == pool && row.state != "down")
}

/// The servers of these pools (or all), as a table or JSON.
pub(super) fn shown(folder: &WarmFolder, pools: Option<&[String]>, json: bool) -> String {
    told(&rows(folder, pools), json)
}

fn told(rows: &[Row], json: bool) -> String {
    if json {
        let engines: Vec<Value> = rows.iter().map(Row::json).collect();
        return format!("{:#}\n", json!({"engines": engines}));
    }
    if rows.is_empty() {
        return "no engine is up\n".to_owned();
    }
    let head = [
        "pool", "replica", "backend", "model", "state", "url", "pid", "slots", "in use", "uptime", "memory",
        "version",
    ];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(Row::cells));
    columns(&lines)
}

/// A server.
pub(in crate::cli) struct Row {
    pub(in crate::cli) pool: String,
    replica: u32,
    pub(in crate::cli) state: &'static str,
    /// What is done about it.
    pub(in crate::cli) what: Option<String>,
    pub(in crate::cli) handoff: Option<Handoff>,
    in_use: bool,
    uptime: Option<Duration>,
    log: Option<std::path::PathBuf>,
    file: Option<std::path::PathBuf>,
}

impl Row {
    fn new(pool: &str, replica: u32, state: &'static str) -> Self {
        Self {
            pool: pool.to_owned(),
            replica,
            state,
            what: None,
            handoff: None,
            in_use: false,
            uptime: None,
            log: None,
            file: None,
        }
    }

    fn cells(&self) -> Vec<String> {
        let of = |read: &dyn Fn(&Handoff) -> Option<String>| {
            self.handoff
                .as_ref()
                .and_then(read)
                .unwrap_or_else(|| "-".to_owned())
        };
        let state = match &self.what {
            Some(what) => format!("{}: {}", self.state, what.lines().next().unwrap_or_default()),
            None => self.state.to_owned(),
        };
        vec![
            self.pool.clone(),
            self.replica.to_string(),
            of(&|it| Some(it.engine.clone())),
            of(&|it| Some(it.model.id.clone())),
            state,
            of(&|it| Some(it.url.clone())),
            of(&|it| Some(it.pid.to_string())),
            of(&|it| it.slots.map(|slots| slots.to_string())),
            match (&self.handoff, self.in_use) {
                (None, _) => "-".to_owned(),
                (Some(_), true) => "yes".to_owned(),
                (Some(_), false) => "no".to_owned(),
            },
            self.uptime
                .map_or_else(|| "-".to_owned(), |uptime| seconds(uptime.as_secs_f64().floor())),
            of(&|it| (it.need != Need::default()).then(|| memory(&it.need))),
            of(&|it| it.engine_version.clone()),
        ]
    }

    fn json(&self) -> Value {
        let handoff = self.handoff.as_ref();
        json!({
            "pool": self.pool,
            "replica": self.replica,
            "state": self.state,
            "reason": self.what,
            "backend": handoff.map(|it| &it.engine),
            "model": handoff.map(|it| &it.model),
            "url": handoff.map(|it| &it.url),
            "pid": handoff.map(|it| it.pid),
            "slots": handoff.and_then(|it| it.slots),
            "in_use": self.in_use,
            "uptime_s": self.uptime.map(|uptime| uptime.as_secs()),
            "need": handoff.map(|it| &it.need),
            "version": handoff.and_then(|it| it.engine_version.as_ref()),
            "spec_digest": handoff.map(|it| &it.spec_digest),
            "log": self.log,
            "file": self.file,
        })
    }
}

/// The servers of these pools (or all that are up).
pub(in crate::cli) fn rows(folder: &WarmFolder, pools: Option<&[String]>) -> Vec<Row> {
    // What cannot be read is not ours.
    let running = folder
        .supervisor(EventSender::none())
        .running()
        .unwrap_or_default();
    let handoffs: Vec<Handoff> = running.into_iter().filter_map(|it| it.handoff).collect();
    let notes = folder.notes();
    let mut names: BTreeSet<&str> = notes.iter().map(|note| note.pool.as_str()).collect();
    if let Some(pools) = pools {
        names = pools.iter().map(String::as_str).collect();
    }
    let mut rows = Vec::new();
    for name in names {
        match notes.iter().find(|note| note.pool == name) {
            Some(note) => rows.extend(of_pool(folder, note, &handoffs)),
            None => rows.push(Row::new(name, 0, "down")),
        }
    }
    rows
}

fn of_pool(folder: &WarmFolder, note: &Note, handoffs: &[Handoff]) -> Vec<Row> {
    let servers = match ask(folder, &note.pool, &Wish::Status, PATIENCE) {
        Ok(Said::Status { servers }) => servers,
        // It is only just starting, or on its way out.
        _ => Vec::new(),
    };
    let row = |replica: u32| {
        let handoff = handoffs
            .iter()
            .find(|it| it.pool_id == note.pool && it.replica_id == replica);
        let said = servers.get(replica as usize);
        let (state, what) = match (handoff, said) {
            (Some(it), _) if it.draining => ("draining", None),
            (Some(_), _) => ("ready", None),
            (None, Some((state, what))) if state == "failed" => ("failed", what.clone()),
            (None, Some((_, what))) => ("starting", what.clone().filter(|what| what != "starting")),
            (None, None) if note.stage == Stage::Ending => {
                ("draining", Some("it is being stopped".to_owned()))
            }
            (None, None) => ("starting", None),
        };
        let label = format!("{}-{replica}", note.pool);
        Row {
            what,
            handoff: handoff.cloned(),
            in_use: folder.is_leased(&label),
            uptime: handoff.and_then(|it| files::age(it.start_time)),
            log: folder.log(&note.pool, replica).ok(),
            file: Some(note.file.clone()),
            ..Row::new(&note.pool, replica, state)
        }
    };
    (0..note.replicas.max(1)).map(row).collect()
}
