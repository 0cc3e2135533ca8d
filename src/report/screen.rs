//! The live screen as lines of text: a pure function of a progress, a style and a size.

use console::measure_text_width;

use super::phrases::{engine_load, node_name, short_run_line as run_line, straggler, waits};
use super::style::{Style, Tint};
use super::text::{percent, seconds, short, speed, thousands};
use crate::event::{NodeInfo, NodeProgress, Progress, counted};

/// Engines that get a line each.
const ENGINES: usize = 3;
/// Columns that a node's name gets at least.
const LEAST_NAME: usize = 8;
/// Lines of the panel of requests.
const PANEL: usize = 6;

/// Draws a progress on a terminal of so many columns and lines, with the last of `requests` below
/// (`--verbose`). No line is as wide as the terminal, and one line stays free.
pub fn render(
    progress: &Progress,
    style: Style,
    (width, height): (usize, usize),
    requests: &[String],
) -> Vec<String> {
    let width = width.saturating_sub(1).max(20);
    let mut below = Vec::new();
    let named = |name: &str, text: &str| format!("{name:<10}{text}");
    for engine in progress.status.engines.iter().take(ENGINES) {
        let text = format!("{}  {}", engine.name, engine_load(engine, style));
        below.push(style.cut(&named("engine", &text), width));
    }
    let more = progress.status.engines.len().saturating_sub(ENGINES);
    if more > 0 {
        below.push(format!(
            "{:<10}{} {}",
            "",
            style.dots(),
            counted(more as u64, "more engine")
        ));
    }
    if let Some((waits, cause)) = waits(&progress.status) {
        let line = style.cut(&format!("{waits} {cause}"), width);
        let in_trouble = progress
            .status
            .engines
            .iter()
            .any(|engine| engine.trouble.is_some());
        below.push(if in_trouble {
            style.paint(Tint::Yellow, &line)
        } else {
            line
        });
    }
    if let Some(text) = straggler(progress) {
        below.push(style.cut(&named("straggler", &text), width));
    }
    below.push(style.cut(&named("run", &run_line(progress, style)), width));

    let room = height.saturating_sub(below.len() + 2).max(1);
    let mut lines = table(progress, style, width, room);
    lines.extend(below);
    let room = height.saturating_sub(lines.len() + 2).min(PANEL);
    if !requests.is_empty() && room > 0 {
        let title = format!("{:<10}", "requests");
        for (at, request) in requests.iter().rev().take(room).rev().enumerate() {
            let line = format!("{}{request}", if at == 0 { title.as_str() } else { "          " });
            lines.push(style.paint(Tint::Dim, &style.cut(&line, width)));
        }
    }
    lines
}

/// A text and what it means.
type Cell = (String, Option<Tint>);

/// A column of the table.
struct Column {
    head: &'static str,
    cells: Vec<String>,
    tints: Vec<Option<Tint>>,
}

impl Column {
    fn new(head: &'static str, cells: Vec<Cell>) -> Self {
        let (cells, tints) = cells.into_iter().unzip();
        Self { head, cells, tints }
    }

    fn width(&self) -> usize {
        let cells = self.cells.iter().map(|cell| measure_text_width(cell));
        cells.chain([self.head.len()]).max().unwrap_or(0)
    }
}

/// The nodes, one line each, as many as there is room for.
fn table(progress: &Progress, style: Style, width: usize, room: usize) -> Vec<String> {
    let all: Vec<(&NodeInfo, &NodeProgress)> = progress.status.nodes.iter().zip(&progress.nodes).collect();
    if all.is_empty() {
        return Vec::new();
    }
    let shown = choose(progress, &all, style, room);
    let nodes: Vec<_> = shown.iter().filter_map(|at| all.get(*at).copied()).collect();
    let (wide, narrow) = (width >= 99, width < 71);
    let gap = if narrow { " " } else { "  " };
    let number = |n: u64| if wide { thousands(n) } else { short(n) };
    let cells = |cell: &dyn Fn(&NodeInfo, &NodeProgress) -> Cell| {
        nodes
            .iter()
            .map(|(info, node)| cell(info, node))
            .collect::<Vec<_>>()
    };
    let count = |_: &NodeInfo, node: &NodeProgress| {
        let total = node.total.map_or_else(
            || "?".into(),
            |total| format!("{}{}", if total.estimate { "~" } else { "" }, number(total.rows)),
        );
        (format!("{}/{total}", number(node.traffic.done)), None)
    };
    let part = |_: &NodeInfo, node: &NodeProgress| {
        let text = node
            .total
            .map(|total| percent(node.traffic.done, total.rows))
            .unwrap_or_default();
        (text, None)
    };
    let failed = |_: &NodeInfo, node: &NodeProgress| match node.traffic.failed {
        0 => ("0".into(), Some(Tint::Dim)),
        failed => (number(failed), Some(Tint::Red)),
    };
    let left = |info: &NodeInfo, node: &NodeProgress| match state(progress, info, node) {
        State::Done => ("done".into(), Some(Tint::Green)),
        State::Waits => ("waits".into(), Some(Tint::Yellow)),
        State::Idle => (style.dash().to_owned(), Some(Tint::Dim)),
        State::Works => (node.eta.map_or_else(|| style.dash().to_owned(), seconds), None),
    };
    let mut columns = vec![Column::new("rows", cells(&count))];
    if !narrow {
        columns.push(Column::new("", cells(&part)));
    }
    columns.push(Column::new(
        "rows/s",
        cells(&|_, node| (speed(node.rate, !wide), None)),
    ));
    columns.push(Column::new(
        if wide { "last 10 s" } else { "10 s" },
        cells(&|_, node| (speed(node.recent, !wide), None)),
    ));
    columns.push(Column::new("failed", cells(&failed)));
    columns.push(Column::new("left", cells(&left)));
    // Numbers that grow by a digit should not move what stands beside them.
    let least = |column: &Column| match column.head {
        "" => 4,
        "left" => 7,
        "10 s" => 5,
        _ => 6,
    };
    let width_of = |column: &Column| column.width().max(least(column));
    let taken = |columns: &[Column]| columns.iter().map(|c| width_of(c) + gap.len()).sum::<usize>();
    // On a terminal too narrow for all, what can best be done without goes first.
    for head in ["", "rows/s", "failed", "10 s"] {
        if taken(&columns) + LEAST_NAME > width {
            columns.retain(|column| column.head != head);
        }
    }
    let fixed = taken(&columns);
    let widths: Vec<usize> = columns.iter().map(width_of).collect();
    let names: Vec<String> = nodes.iter().map(|(info, _)| label(info, style)).collect();
    let longest = names
        .iter()
        .map(|name| measure_text_width(name))
        .max()
        .unwrap_or(0);
    let free = width.saturating_sub(fixed + gap.len());
    let least_bar = if narrow { 6 } else { 8 };
    let name_width = longest.min(free.saturating_sub(least_bar).max(LEAST_NAME));
    // A bar too short to read is none.
    let bar_width = free.saturating_sub(name_width).min(40);
    let bar_width = if bar_width < 4 { 0 } else { bar_width };

    let mut lines = Vec::with_capacity(nodes.len() + 2);
    let mut head = " ".repeat(name_width + if bar_width > 0 { gap.len() + bar_width } else { 0 });
    for (column, width) in columns.iter().zip(&widths) {
        head += &format!("{gap}{:>width$}", column.head);
    }
    lines.push(style.paint(Tint::Dim, &style.cut(&head, width)));
    for (at, (name, (info, node))) in names.iter().zip(&nodes).enumerate() {
        let mut line = style.fit(name, name_width, false);
        if bar_width > 0 {
            line += gap;
            line += &bar(progress, info, node, style, bar_width);
        }
        for (column, width) in columns.iter().zip(&widths) {
            let cell = column.cells.get(at).map(String::as_str).unwrap_or_default();
            let cell_text = style.fit(cell, *width, true);
            let tint = column.tints.get(at).copied().flatten();
            line += gap;
            line += &tint.map_or_else(|| cell_text.clone(), |tint| style.paint(tint, &cell_text));
        }
        lines.push(style.cut(&line, width));
    }
    if shown.len() < all.len() {
        lines.push(style.paint(
            Tint::Dim,
            &style.cut(&left_out(progress, &all, &shown, style), width),
        ));
    }
    lines
}

/// What a node is at.
#[derive(Clone, Copy, PartialEq)]
enum State {
    /// No row has come.
    Idle,
    Works,
    /// Its engine takes no requests.
    Waits,
    /// Every row that will come has its fate.
    Done,
}

fn state(progress: &Progress, info: &NodeInfo, node: &NodeProgress) -> State {
    let traffic = node.traffic;
    if node
        .total
        .is_some_and(|total| !total.estimate && total.rows > 0 && traffic.done >= total.rows)
    {
        return State::Done;
    }
    let in_trouble = |name: &String| {
        let mut engines = progress.status.engines.iter();
        engines.any(|engine| engine.name == *name && engine.trouble.is_some())
    };
    match traffic.came > traffic.done {
        true if info.engine.as_ref().is_some_and(in_trouble) => State::Waits,
        false if traffic.came == 0 => State::Idle,
        _ => State::Works,
    }
}

/// A node's name, set in by its branches.
fn label(info: &NodeInfo, style: Style) -> String {
    let icon = match style.icons && style.unicode {
        true => format!("{} ", info.icon),
        false => String::new(),
    };
    format!("{}{icon}{}", "  ".repeat(info.depth), node_name(info))
}

fn bar(progress: &Progress, info: &NodeInfo, node: &NodeProgress, style: Style, width: usize) -> String {
    let (full, half, empty) = if style.unicode {
        ("━", "╸", "─")
    } else {
        ("=", ">", ".")
    };
    let part = node
        .total
        .filter(|total| total.rows > 0)
        .map_or(0.0, |total| node.traffic.done as f64 / total.rows as f64);
    let halves = ((part.clamp(0.0, 1.0) * (width * 2) as f64) as usize).min(width * 2);
    let mut filled = full.repeat(halves / 2);
    if halves % 2 == 1 {
        filled += half;
    }
    let rest = empty.repeat(width - halves.div_ceil(2));
    let tint = match state(progress, info, node) {
        State::Done => Tint::Green,
        State::Waits => Tint::Yellow,
        State::Works | State::Idle => Tint::Cyan,
    };
    style.paint(tint, &filled) + &style.paint(Tint::Dim, &rest)
}

/// The nodes that are shown, by index: all if there is room, else those at work, then those whose turn
/// comes next, then those that were done last.
fn choose(progress: &Progress, all: &[(&NodeInfo, &NodeProgress)], style: Style, room: usize) -> Vec<usize> {
    let is_shown = |info: &NodeInfo| {
        style
            .max_branches
            .is_none_or(|max| info.depth == 0 || info.rank < max)
    };
    let listed: Vec<(usize, State)> = all
        .iter()
        .enumerate()
        .filter(|(_, (info, _))| is_shown(info))
        .map(|(at, (info, node))| (at, state(progress, info, node)))
        .collect();
    // The heads of the columns take a line, and so does the count of those left out.
    let room = room.saturating_sub(1).max(1);
    if listed.len() == all.len() && all.len() <= room {
        return listed.into_iter().map(|(at, _)| at).collect();
    }
    let room = room.saturating_sub(1).max(1);
    let of = |wanted: &'static [State]| listed.iter().filter(|(_, state)| wanted.contains(state));
    let at_work = of(&[State::Works, State::Waits]);
    let ranked = at_work.chain(of(&[State::Idle])).chain(of(&[State::Done]).rev());
    let mut shown: Vec<usize> = ranked.take(room).map(|(at, _)| *at).collect();
    shown.sort_unstable();
    shown
}

/// `… 12 more: 3 at work, 8 done, 1 not begun`.
fn left_out(
    progress: &Progress,
    all: &[(&NodeInfo, &NodeProgress)],
    shown: &[usize],
    style: Style,
) -> String {
    let states: Vec<State> = all
        .iter()
        .enumerate()
        .filter(|(at, _)| !shown.contains(at))
        .map(|(_, (info, node))| state(progress, info, node))
        .collect();
    let count = |wanted: &[State]| states.iter().filter(|state| wanted.contains(state)).count();
    let parts = [
        (count(&[State::Works, State::Waits]), "at work"),
        (count(&[State::Done]), "done"),
        (count(&[State::Idle]), "not begun"),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, what)| format!("{n} {what}"))
        .collect();
    format!("{} {} more: {}", style.dots(), states.len(), parts.join(", "))
}
