//! What a run did, at its end.

use super::{duration, thousands};
use crate::event::{RunState, RunStats};
use crate::run::Counts;

/// A table of nodes and their fates, and a line of sums.
pub fn summary(stats: &RunStats, counts: &Counts) -> String {
    let mut out = String::new();
    let heads = [
        "node",
        "rows",
        "emitted",
        "filtered",
        "skipped",
        "nulled",
        "failed",
        "tokens in/out",
    ];
    let rows: Vec<[String; 8]> = counts
        .nodes
        .iter()
        .map(|(id, node)| {
            let tokens = match (node.prompt_tokens, node.completion_tokens) {
                (0, 0) => String::new(),
                (prompt, completion) => format!("{}/{}", thousands(prompt), thousands(completion)),
            };
            [
                id.clone(),
                thousands(node.rows),
                thousands(node.emitted),
                thousands(node.filtered),
                thousands(node.skipped),
                thousands(node.nulled),
                thousands(node.failed),
                tokens,
            ]
        })
        .collect();
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells
            .chain(heads.get(column).map(|head| head.len()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    for row in std::iter::once(heads.map(str::to_owned)).chain(rows) {
        let cells = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(i, (cell, width))| match i {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
        out += cells.collect::<Vec<_>>().join("  ").trim_end();
        out.push('\n');
    }
    let rate = if stats.seconds > 0.0 {
        (stats.rows_in - stats.rows_resumed) as f64 / stats.seconds
    } else {
        0.0
    };
    let state = match stats.state {
        RunState::Finished => "finished",
        RunState::Interrupted => "interrupted",
        RunState::Stopped | RunState::Running => "stopped",
    };
    out += &format!(
        "{state}: {} rows in, {} out, {} in errors/, {}",
        thousands(stats.rows_in),
        thousands(stats.rows_out),
        thousands(stats.rows_failed),
        duration(stats.seconds)
    );
    if stats.state == RunState::Finished {
        out += &format!(" ({}/s)", thousands(rate.round() as u64));
    }
    out.push('\n');
    out
}
