//! What a run is at, in words: the same on a terminal and in a log file.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use console::strip_ansi_codes;

use super::style::Style;
use super::text::{duration, percent, seconds, speed, thousands};
use crate::event::{
    EngineStatus, Event, Exchange, Feed, NodeInfo, Progress, Resumption, Status, Switching, are, counted,
};

/// Seconds after which a row that holds up the writing is worth a word.
const STRAGGLER: f64 = 5.0;

/// `12,345 of 100,000 rows (12%) · 1,234/s, last 10 s 1,180/s · 3 failed · about 3m 20s left`.
pub(super) fn run_line(progress: &Progress, style: Style) -> String {
    let mut parts = vec![share_done(progress)];
    parts.push(format!(
        "{}/s, last 10 s {}/s",
        speed(progress.rate, false),
        speed(progress.recent, false)
    ));
    if progress.failed > 0 {
        parts.push(format!("{} failed", thousands(progress.failed)));
    }
    if let Some(eta) = progress.eta.filter(|eta| *eta >= 0.5) {
        parts.push(format!("about {} left", seconds(eta)));
    }
    parts.join(style.dot())
}

/// `1m 03s, about 3m 20s left · 12,345 of 100,000 rows (12%) · 1,234/s · 3 failed`: what matters first, as
/// the end may be cut off.
pub(super) fn short_run_line(progress: &Progress, style: Style) -> String {
    let mut time = seconds(progress.seconds);
    if let Some(eta) = progress.eta.filter(|eta| *eta >= 0.5) {
        time += &format!(", about {} left", seconds(eta));
    }
    let mut parts = vec![time, share_done(progress)];
    parts.push(format!("{}/s", speed(progress.rate, false)));
    if progress.failed > 0 {
        parts.push(format!("{} failed", thousands(progress.failed)));
    }
    parts.join(style.dot())
}

/// `12,345 of 100,000 rows (12%)`.
fn share_done(progress: &Progress) -> String {
    let done = progress.done();
    match progress.total {
        Some(total) => format!(
            "{} of {} ({})",
            thousands(done),
            counted(total, "row"),
            percent(done, total)
        ),
        None => counted(done, "row"),
    }
}

/// What the run waits for, the first cause first: "waits for" and the cause, or "waits to" and what comes
/// next; none when nothing is known.
pub(super) fn waits(status: &Status) -> Option<(&'static str, String)> {
    let wait_for = |cause: String| Some(("waits for", cause));
    if let Some(Switching { to, from }) = &status.switching
        && status.engines.iter().all(|engine| engine.in_flight == 0)
    {
        let place = format!("{} to take the place of {}", engines(to), from.join(", "));
        let starting = status.engines.iter().filter(|engine| to.contains(&engine.name));
        let mut starting =
            starting.filter_map(|engine| engine.absent.as_deref().or(engine.trouble.as_deref()));
        let starting = starting
            .next()
            .map_or_else(String::new, |cause| format!(": {}", on_one_line(cause)));
        return wait_for(place + &starting);
    }
    if let Some(engine) = status.engines.iter().find(|engine| engine.trouble.is_some()) {
        let next = match engine.retry_in.map(f64::ceil) {
            Some(wait) if wait > 0.0 => format!("next try in {}", seconds(wait)),
            _ => "being tried now".into(),
        };
        let trouble = on_one_line(engine.trouble.as_deref().unwrap_or_default());
        return wait_for(format!("engine {}, {next}: {trouble}", engine.name));
    }
    let missing = |engine: &&EngineStatus| engine.absent.is_some() && engine.waiting > 0;
    if let Some(engine) = status.engines.iter().find(missing) {
        let what = on_one_line(engine.absent.as_deref().unwrap_or_default());
        return wait_for(match engine.retry_in.map(f64::ceil) {
            Some(wait) if wait > 0.0 => {
                format!("engine {}, next start in {}: {what}", engine.name, seconds(wait))
            }
            _ => format!("engine {}: {what}", engine.name),
        });
    }
    if status.disk_is_behind {
        return wait_for("the disk: finished rows cannot be written fast enough".into());
    }
    let limited = |engine: &&EngineStatus| engine.limited.is_some() && engine.waiting > 0;
    if let Some(engine) = status.engines.iter().find(limited) {
        return wait_for(format!("the rate limit of engine {}", engine.name));
    }
    let full = |engine: &&EngineStatus| engine.in_flight >= engine.limit && engine.waiting > 0;
    if let Some(engine) = status.engines.iter().find(full) {
        return wait_for(format!("a free slot of engine {}", engine.name));
    }
    let busy = |engine: &&EngineStatus| engine.in_flight > 0;
    let names: Vec<&str> = status
        .engines
        .iter()
        .filter(busy)
        .map(|engine| engine.name.as_str())
        .collect();
    match (names.as_slice(), status.feed) {
        ([], Feed::Reading) if status.traffic.iter().all(|node| node.came == node.done) => {
            wait_for("input rows".into())
        }
        ([], _) => match process(status) {
            Some(process) => wait_for(process),
            None if status.retrying.rows > 0 => {
                let rows = counted(status.retrying.rows as u64, "row");
                let reason = on_one_line(&status.retrying.reason);
                Some(("waits to", format!("ask {rows} again: {reason}")))
            }
            None => wait_for("Applies (CPU)".into()),
        },
        (names, _) => wait_for(format!("answers of {}", engines(names))),
    }
}

/// `engine small`, `engines small, large`.
fn engines(names: &[impl AsRef<str>]) -> String {
    let plural = if names.len() == 1 { "" } else { "s" };
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    format!("engine{plural} {}", names.join(", "))
}

/// The processes of the Apply that has the most rows to answer: "the program of `a`".
fn process(status: &Status) -> Option<String> {
    let nodes = status.nodes.iter().zip(&status.unanswered);
    let busy = nodes.filter_map(|(node, rows)| {
        let process = node.process.filter(|_| *rows > 0)?;
        Some((*rows, process, &node.id))
    });
    let (_, process, id) = busy.max_by_key(|(rows, ..)| *rows)?;
    Some(format!("the {process} of `{id}`"))
}

/// `64 of 64 busy · 12 rows wait for a slot`.
pub(super) fn engine_load(engine: &EngineStatus, style: Style) -> String {
    let mut text = format!("{} of {} busy", engine.in_flight, engine.limit);
    if engine.waiting > 0 {
        let waiting = engine.waiting as u64;
        let wait = if waiting == 1 { "waits" } else { "wait" };
        text += &format!("{}{} {wait} for a slot", style.dot(), counted(waiting, "row"));
    }
    if engine.parked > 0 {
        text += &format!(
            "{}{} parked until it is loaded",
            style.dot(),
            counted(engine.parked, "row")
        );
    }
    text
}

/// The row that all others have waited for, for a while now.
pub(super) fn straggler(progress: &Progress) -> Option<String> {
    // Rows that are parked hold up others as a matter of course.
    let is_parked = progress.status.engines.iter().any(|engine| engine.parked > 0);
    let row = progress
        .status
        .behind
        .filter(|_| progress.stuck >= STRAGGLER && !is_parked)?;
    let after = progress.done().saturating_sub(row);
    if after == 0 {
        return None;
    }
    Some(format!(
        "row {row} is out for {}; {} after it {} done",
        seconds(progress.stuck),
        counted(after, "row"),
        are(after)
    ))
}

/// A node's name, with its branch.
pub(super) fn node_name(node: &NodeInfo) -> String {
    match &node.branch {
        Some(branch) => format!("{branch}/{}", node.id),
        None => node.id.clone(),
    }
}

/// The line for an event of an engine, where nothing else is watched.
pub(crate) fn engine_line(event: &Event) -> Option<String> {
    News::default().line(event, &Progress::default())
}

/// Turns changes into lines; of failures only the first of each kind and place, and that there are more.
#[derive(Debug, Default)]
pub(super) struct News {
    /// The kinds of failures at each node, and whether it was said that there are more.
    shown: HashMap<(String, &'static str), bool>,
}

impl News {
    /// The line for an event, if it is worth one.
    pub(super) fn line(&mut self, event: &Event, progress: &Progress) -> Option<String> {
        let line = match event {
            Event::Resumed {
                rows,
                answers,
                in_flight,
                reason,
            } => resumed(*rows, *answers, *in_flight, *reason, progress.total),
            Event::RowsFailed {
                node,
                kind,
                example,
                count,
            } => self.failed(node, kind.as_str(), example, *count)?,
            Event::EngineWaiting {
                engine,
                reason,
                retry_in_s,
            } => format!(
                "engine {engine}: waiting ({reason}); next try in {}",
                duration(*retry_in_s)
            ),
            Event::EngineReady { engine } => format!("engine {engine}: answers"),
            Event::EngineStarting { engine, reason, .. } => format!("engine {engine}: {reason}"),
            Event::EngineDraining { engine, reason, .. } => format!("engine {engine}: draining ({reason})"),
            Event::EngineReleased { engine, reason, .. } => format!("engine {engine}: stopped ({reason})"),
            Event::EngineCrashed {
                engine,
                reason,
                in_flight,
                log,
                ..
            } => format!(
                "engine {engine}: {reason}, with {} in flight; its log: {log}",
                counted(*in_flight as u64, "request")
            ),
            Event::Warning { message } => format!("warning: {message}"),
            _ => return None,
        };
        Some(on_one_line(&line))
    }

    /// The line for rows that failed, if it says something new.
    fn failed(&mut self, node: &str, kind: &'static str, example: &str, count: u64) -> Option<String> {
        match self.shown.entry((node.to_owned(), kind)) {
            Entry::Vacant(first) => {
                let more = *first.insert(count > 1);
                let more = if more {
                    "; more of these go to errors/ silently"
                } else {
                    ""
                };
                Some(format!("row failed at {node} ({kind}): {example}{more}"))
            }
            Entry::Occupied(mut told) => (!told.insert(true))
                .then(|| format!("more rows fail at {node} ({kind}): they go to errors/ silently")),
        }
    }
}

/// `resuming: 812,344 of 1,000,000 rows done, 1,204 answers waiting, at most 37 requests may be asked again`.
fn resumed(
    rows: u64,
    answers: u64,
    in_flight: Option<u64>,
    reason: Resumption,
    total: Option<u64>,
) -> String {
    let on_file = counted(answers, "answer");
    match reason {
        Resumption::Edited => {
            format!(
                "the chain, its vars or its input changed: {on_file} on file, only new requests are asked"
            )
        }
        Resumption::Retry { failures } => format!(
            "trying {} again: {on_file} on file, only those that failed are asked",
            counted(failures, "failure")
        ),
        Resumption::Same => {
            let done = match total {
                Some(total) => format!("{} of {}", thousands(rows), counted(total, "row")),
                None => counted(rows, "row"),
            };
            let asked = match in_flight {
                None => ", no answers on file".to_owned(),
                Some(0) if answers == 0 => String::new(),
                Some(0) => format!(", {on_file} waiting, no request is asked again"),
                Some(n) => format!(
                    ", {on_file} waiting, at most {} may be asked again",
                    counted(n, "request")
                ),
            };
            format!("resuming: {done} done{asked}")
        }
    }
}

/// `sentiment row 17 · engine small · try 2 · bad_reply · 812 ms · 200 + 35 tokens · expected a string`.
pub(super) fn request(exchange: &Exchange, style: Style) -> String {
    let Exchange {
        node,
        row_id,
        engine,
        attempt,
        status,
        ms,
        usage,
        problem,
        ..
    } = exchange;
    let mut parts = vec![format!("{node} row {row_id}"), format!("engine {engine}")];
    if *attempt > 1 {
        parts.push(format!("try {attempt}"));
    }
    parts.push((*status).to_owned());
    parts.push(format!("{} ms", thousands(*ms)));
    if usage.prompt_tokens + usage.completion_tokens > 0 {
        parts.push(format!(
            "{} + {} tokens",
            thousands(usage.prompt_tokens),
            thousands(usage.completion_tokens)
        ));
    }
    parts.extend(problem.clone());
    on_one_line(&parts.join(style.dot()))
}

/// `(27 requests not shown)`; none if all were.
pub(super) fn not_shown(requests: u64) -> Option<String> {
    (requests > 0).then(|| format!("({} not shown)", counted(requests, "request")))
}

/// What someone else said, so that it can neither break a line nor move a cursor.
pub(super) fn on_one_line(text: &str) -> String {
    let text = strip_ansi_codes(text);
    text.replace(|c: char| c.is_control(), " ")
}
