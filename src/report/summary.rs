//! What a run did, at its end.

use super::style::{Style, Tint};
use super::table::{Column, draw, total_width};
use super::text::{duration, row_time, thousands};
use crate::event::{ModelStats, RunState, RunStats, counted};
use crate::run::{Counts, NodeCounts, Times};

/// A table of nodes with their fates and times, and a line of sums; two tables where one is too wide for a
/// terminal of `width` columns. Columns of fates that no row had are left out.
pub fn summary(
    stats: &RunStats,
    counts: &Counts,
    times: &Times,
    style: Style,
    width: Option<usize>,
) -> String {
    let names = Column::words("node", counts.nodes.keys().cloned());
    let fates = fates(counts);
    let times_table = per_row(counts, times, style);
    let whole: Vec<&Column> = std::iter::once(&names)
        .chain(&fates)
        .chain(&times_table)
        .collect();
    let mut out = if width.is_some_and(|width| total_width(&whole) > width) {
        let first: Vec<&Column> = std::iter::once(&names).chain(&fates).collect();
        let second: Vec<&Column> = std::iter::once(&names).chain(&times_table).collect();
        let mut text = draw(&first, style);
        if !times_table.is_empty() {
            text.push('\n');
            text += &draw(&second, style);
        }
        text
    } else {
        draw(&whole, style)
    };
    for engine in stats.engines.iter().filter(|engine| engine.most > engine.least) {
        out += &format!(
            "engine {}: {} to {} requests in flight, at the end {} ({})\n",
            engine.engine, engine.least, engine.most, engine.limit, engine.reason
        );
    }
    for engine in &stats.engines {
        if let Some(models) = engine.models.filter(|models| models.loads > 0) {
            out += &format!("engine {}: {}\n", engine.engine, did(&models, stats.seconds));
        }
    }
    out += &sums(stats, times, style);
    out.push('\n');
    out
}

/// `model loaded in 0.4 s, 2 workers busy 87% of the run, 12,340 prompt tokens reused`.
fn did(models: &ModelStats, seconds: f64) -> String {
    let loading = match models.loading.as_secs_f64() {
        seconds @ ..0.95 => format!("{:.0} ms", seconds * 1e3),
        seconds => duration(seconds),
    };
    let mut parts = vec![match models.loads {
        1 => format!("model loaded in {loading}"),
        n => format!("model loaded {} in {loading}", counted(n, "time")),
    }];
    // What a worker has to do is over with the run, or a little later if the run was stopped.
    let most = seconds * models.workers as f64;
    let share = (models.busy.as_secs_f64() / most.max(f64::EPSILON)).min(1.0);
    let workers = counted(models.workers, "worker");
    parts.push(format!("{workers} busy {:.0}% of the run", share * 100.0));
    if models.reused_tokens > 0 {
        parts.push(format!(
            "{} prompt tokens reused",
            thousands(models.reused_tokens)
        ));
    }
    if models.panics > 0 {
        parts.push(counted(models.panics, "panic"));
    }
    parts.join(", ")
}

/// One of a node's counts.
type Count = fn(&NodeCounts) -> u64;

fn fates(counts: &Counts) -> Vec<Column> {
    let nodes = || counts.nodes.values();
    let column = |head: &str, of: Count| Column::new(head, nodes().map(|node| thousands(of(node))));
    let mut columns = vec![
        column("rows", |node| node.rows),
        column("emitted", |node| node.emitted),
    ];
    let rare: [(&str, Count); 3] = [
        ("filtered", |node| node.filtered),
        ("skipped", |node| node.skipped),
        ("nulled", |node| node.nulled),
    ];
    for (head, of) in rare {
        if nodes().any(|node| of(node) > 0) {
            columns.push(column(head, of));
        }
    }
    columns.push(column("failed", |node| node.failed).tinted(Tint::Red));
    if nodes().any(|node| node.prompt_tokens + node.completion_tokens > 0) {
        let tokens = nodes().map(|node| match (node.prompt_tokens, node.completion_tokens) {
            (0, 0) => String::new(),
            (prompt, completion) => format!("{}/{}", thousands(prompt), thousands(completion)),
        });
        columns.push(Column::new("tokens in/out", tokens));
    }
    columns
}

/// Time per row: empty if nothing was measured.
fn per_row(counts: &Counts, times: &Times, style: Style) -> Vec<Column> {
    if times.nodes.iter().all(|timing| timing.is_empty()) {
        return Vec::new();
    }
    let pm = style.spelled("±");
    let cell = |of: &dyn Fn(&crate::node::timing::Timing) -> String| {
        let cells = times.nodes.iter().map(|timing| match timing.is_empty() {
            true => String::new(),
            false => of(timing),
        });
        cells.collect::<Vec<_>>().into_iter()
    };
    let time = |seconds| row_time(seconds, style.unicode);
    let shares = times.shares(counts);
    let share = shares.into_iter().map(|share| match share {
        Some(share) if share > 0.0 => format!("{:.0}%", share * 100.0),
        _ => String::new(),
    });
    vec![
        Column::new(
            format!("per row {pm} sd"),
            cell(&|t| format!("{} {pm} {}", time(t.mean), time(t.sd()))),
        ),
        Column::new("min", cell(&|t| time(t.min))),
        Column::new("max", cell(&|t| time(t.max))),
        Column::new("share", share),
    ]
}

/// `finished: 100 rows in, 98 out, 2 in errors/, 12 s (8/s)`.
fn sums(stats: &RunStats, times: &Times, style: Style) -> String {
    let (state, tint) = match stats.state {
        RunState::Finished => ("finished", Tint::Green),
        RunState::Interrupted => ("interrupted", Tint::Yellow),
        RunState::Stopped | RunState::Running => ("stopped", Tint::Red),
    };
    let mut line = format!(
        "{}: {} in, {} out, {} in errors/, {}",
        style.paint(tint, state),
        counted(stats.rows_in, "row"),
        thousands(stats.rows_out),
        thousands(stats.rows_failed),
        duration(stats.seconds)
    );
    if stats.state == RunState::Finished && stats.seconds > 0.0 {
        let rate = (stats.rows_in - stats.rows_resumed) as f64 / stats.seconds;
        line += &format!(" ({}/s)", thousands(rate.round() as u64));
    }
    if stats.switches > 0 {
        line += &format!(", {} between models", counted(stats.switches, "switch"));
    }
    if stats.answers_reused > 0 {
        line += &format!(", {} reused", counted(stats.answers_reused, "answer"));
    }
    if stats.rows_resumed > 0 {
        line += &format!(
            ", with the {} before {}",
            counted(stats.rows_resumed, "row"),
            duration(times.seconds.max(stats.seconds))
        );
    }
    line
}
