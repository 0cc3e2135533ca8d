//! Which screen a run is watched on.

use std::io::IsTerminal;

use super::args::Global;
use super::inspect::tree_options;
use super::printer::is_colourful;
use crate::event::Report;
use crate::plan::{EngineIx, Plan, explain, explain::TreeOptions};
use crate::report::{Bars, JsonLogs, Plain, Quiet, Style, can_draw, speaks_unicode};

/// How screens are drawn on stderr, as the flags, the environment and the terminal say. A log file is
/// written in UTF-8 whatever the locale: only a terminal can be unable to show it.
pub(super) fn style(global: &Global) -> Style {
    let unicode = !std::io::stderr().is_terminal() || speaks_unicode();
    Style {
        color: is_colourful(global.color, &std::io::stderr()),
        unicode,
        icons: unicode && !global.no_icons,
        max_branches: global.max_branches,
    }
}

/// Who watches the run.
pub(super) fn report(global: &Global) -> Box<dyn Report> {
    match (global.json_logs, global.quiet) {
        (true, quiet) => Box::new(JsonLogs { quiet }),
        (false, true) => Box::new(Quiet),
        (false, false) if can_draw() => Box::new(Bars::new(style(global))),
        (false, false) => Box::new(Plain::stderr(style(global))),
    }
}

/// Columns of the terminal on stderr, if there is one.
pub(super) fn columns() -> Option<usize> {
    let size = console::Term::stderr().size_checked();
    size.map(|(_, columns)| usize::from(columns))
}

/// The chain as a tree for the terminal: its signs, its width.
pub(super) fn tree(plan: &Plan, sets: &[Vec<EngineIx>], global: &Global, columns: usize) -> String {
    let style = style(global);
    let options = TreeOptions {
        no_icons: !style.icons,
        ascii: !style.unicode,
        width: Some(columns.saturating_sub(1)),
        ..tree_options(global)
    };
    explain::tree_in_turns(plan, options, sets) + "\n"
}
