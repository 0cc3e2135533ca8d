//! What differs between two runs, for people.

mod sample;

use console::measure_text_width;
use serde_json::Value;

use super::style::{Style, Tint};
use super::table::{Column, draw};
use super::text::thousands;
use crate::audit::{Diff, FolderDiff, InputDiff, Made, Pair, RowTotals, Side, Tokens, Which};
use crate::event::counted;
use sample::{arrow, both, printable, sample};

/// So many fields of a folder are listed.
const FIELDS: usize = 20;
/// So wide may names be in the samples.
const NAME: usize = 24;
/// The whole report, in lines of at most `width` columns where names and numbers allow it.
pub fn diff(diff: &Diff, style: Style, width: usize) -> String {
    let mut parts = vec![sides(diff, style), made(diff, style, width), rows(diff, style)];
    parts.push(fields(diff, style));
    parts.push(failures(diff, style));
    parts.push(tokens(diff, style));
    let samples = diff
        .folders
        .iter()
        .filter(|folder| folder.written_by == Which::Both);
    parts.extend(samples.map(|folder| sample(folder, style, width)));
    parts.push(verdict(diff, style));
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

/// The two runs.
fn sides(diff: &Diff, style: Style) -> String {
    let line = |name: &str, side: &Side| {
        let RowTotals {
            read, out, errors, ..
        } = side.rows;
        format!(
            "{name}: {}{dot}{} in{dot}{} out{dot}{} in errors/\n",
            printable(&side.out.to_string_lossy()),
            counted(read, "row"),
            thousands(out),
            thousands(errors),
            dot = style.dot(),
        )
    };
    line("A", &diff.a) + &line("B", &diff.b)
}

/// How they were made.
fn made(diff: &Diff, style: Style, width: usize) -> String {
    let Made {
        same_chain_file,
        same_graph,
        nodes_only_a,
        nodes_only_b,
        chain: itself,
        changed,
        engines,
        vars,
        input,
        options,
    } = &diff.made;
    if diff.made.is_same() {
        return "chain, vars, input and options are the same\n".into();
    }
    let mut lines: Vec<(&str, String)> = Vec::new();
    let mut chain: Vec<(&str, String)> = Vec::new();
    if diff.a.chain != diff.b.chain {
        let arrow = arrow(style);
        let names = [&diff.a.chain, &diff.b.chain].map(|name| printable(name));
        chain.push(("chain", format!("`{}` {arrow} `{}`", names[0], names[1])));
    }
    let named = [
        ("only in A", nodes_only_a.as_slice()),
        ("only in B", nodes_only_b),
        (
            "the chain itself",
            itself.strip_prefix(&["name".to_owned()]).unwrap_or(itself),
        ),
    ];
    let named = named.into_iter().chain(
        changed
            .iter()
            .map(|changed| (changed.id.as_str(), changed.keys.as_slice())),
    );
    for (what, names) in named.filter(|(_, names)| !names.is_empty()) {
        chain.push(("chain", printable(&format!("{what}: {}", names.join(", ")))));
    }
    if chain.is_empty() {
        let text = match (same_graph, same_chain_file) {
            (true, true) => "the same",
            (true, false) => "the files differ, what they mean does not",
            (false, _) if !engines.is_empty() => "the same but for its engines",
            (false, _) => "the graphs differ",
        };
        chain.push(("chain", text.into()));
    }
    lines.extend(chain);
    lines.extend(pairs("engine", engines, style, width));
    lines.extend(pairs("vars", vars, style, width));
    let (input, more) = match input {
        InputDiff::Same => ("the same".into(), None),
        InputDiff::Unknown => ("came through pipes; its first row is the same".into(), None),
        InputDiff::Different(how) => (
            printable(how.strip_prefix("the input ").unwrap_or(how)),
            Some("rows are compared by their row ids all the same".to_owned()),
        ),
    };
    lines.push(("input", input));
    lines.extend(more.map(|more| ("input", more)));
    lines.extend(pairs("options", options, style, width));
    let mut last = "";
    let mut out = String::new();
    for (head, text) in lines {
        let shown = if head == last { "" } else { head };
        last = head;
        out += &format!("{shown:<9}{text}\n");
    }
    out
}

/// Named values that differ.
fn pairs<'h>(head: &'h str, pairs: &[Pair], style: Style, width: usize) -> Vec<(&'h str, String)> {
    let value = |value: &Option<Value>| value.as_ref().map(Value::to_string);
    let lines = pairs.iter().map(|pair| {
        let name = style.cut(&printable(&pair.name), NAME);
        let room = width.saturating_sub(11 + measure_text_width(&name));
        let (a, b) = (value(&pair.a), value(&pair.b));
        let [a, b] = both(a.as_deref(), b.as_deref(), room.saturating_sub(4) / 2, style);
        (head, format!("{name}: {a} {} {b}", arrow(style)))
    });
    lines.collect()
}

/// Rows by folder.
fn rows(diff: &Diff, style: Style) -> String {
    let folders = &diff.folders;
    // Of a folder that only one of them writes no other count is known.
    let column = |head: &str, of: fn(&FolderDiff) -> u64, writer: Which| {
        let cells = folders.iter().map(|folder| match folder.written_by {
            by if by == Which::Both || by == writer => thousands(of(folder)),
            _ => style.dash().to_owned(),
        });
        Column::new(head, cells)
    };
    let notes: Vec<&str> = folders
        .iter()
        .map(|folder| match folder.written_by {
            Which::Both => "",
            Which::A if diff.made.nodes_only_a.contains(&folder.folder) => "B has no such node",
            Which::A => "B does not write it",
            Which::B if diff.made.nodes_only_b.contains(&folder.folder) => "A has no such node",
            Which::B => "A does not write it",
        })
        .collect();
    let mut columns = vec![
        Column::words("rows", folders.iter().map(|folder| printable(&folder.folder))),
        column("only in A", |f| f.only_a, Which::A).tinted(Tint::Red),
        column("only in B", |f| f.only_b, Which::B).tinted(Tint::Green),
        column("equal", |f| f.equal, Which::Both),
        column("different", |f| f.different, Which::Both).tinted(Tint::Yellow),
    ];
    if notes.iter().any(|note| !note.is_empty()) {
        columns.push(Column::words("", notes.into_iter().map(str::to_owned)));
    }
    draw(&columns.iter().collect::<Vec<_>>(), style)
}

/// Fields by folder.
fn fields(diff: &Diff, style: Style) -> String {
    let mut cells: [Vec<String>; 4] = Default::default();
    let mut line = |row: [String; 4]| {
        cells
            .iter_mut()
            .zip(row)
            .for_each(|(cells, cell)| cells.push(cell))
    };
    for folder in &diff.folders {
        let mut name = folder.folder.as_str();
        for (field, count) in folder.fields.iter().take(FIELDS) {
            let only = [(count.only_a, "only in A"), (count.only_b, "only in B")].into_iter();
            let only = only
                .filter(|(rows, _)| *rows > 0)
                .map(|(rows, where_)| match rows {
                    rows if rows == count.rows => where_.to_owned(),
                    rows => format!("{} {where_}", thousands(rows)),
                });
            let note = only.collect::<Vec<_>>().join(", ");
            let field = style.cut(&printable(field), 2 * NAME);
            line([printable(name), field, thousands(count.rows), note]);
            name = "";
        }
        let more = folder.fields.len().saturating_sub(FIELDS);
        if more > 0 {
            let more = format!(
                "and {} more{}",
                thousands(more as u64),
                if folder.further_fields > 0 {
                    ", at least"
                } else {
                    ""
                }
            );
            line([String::new(), more, String::new(), String::new()]);
        }
    }
    let [folders, names, counts, notes] = cells;
    if folders.is_empty() {
        return String::new();
    }
    let columns = [
        Column::words("fields", folders.into_iter()),
        Column::words("", names.into_iter()),
        Column::new("rows that differ", counts.into_iter()),
        Column::words("", notes.into_iter()),
    ];
    draw(&columns.iter().collect::<Vec<_>>(), style)
}

/// Failures by node and kind.
fn failures(diff: &Diff, style: Style) -> String {
    if diff.failures.is_empty() {
        return String::new();
    }
    let all = || diff.failures.iter();
    let columns = [
        Column::words(
            "failures",
            all().map(|failure| {
                failure
                    .node
                    .as_deref()
                    .map_or_else(|| "(input)".into(), printable)
            }),
        ),
        Column::words("", all().map(|failure| printable(&failure.kind))),
        Column::new("only in A", all().map(|failure| thousands(failure.only_a))).tinted(Tint::Green),
        Column::new("only in B", all().map(|failure| thousands(failure.only_b))).tinted(Tint::Red),
        Column::new("in both", all().map(|failure| thousands(failure.both))),
    ];
    draw(&columns.iter().collect::<Vec<_>>(), style)
}

/// Tokens by Step, where there were any.
fn tokens(diff: &Diff, style: Style) -> String {
    let any = |tokens: &Option<Tokens>| tokens.is_some_and(|tokens| tokens != Tokens::default());
    let all = || diff.tokens.iter().filter(|step| any(&step.a) || any(&step.b));
    if all().next().is_none() {
        return String::new();
    }
    let count = |tokens: Option<Tokens>, of: fn(Tokens) -> u64| {
        tokens.map_or_else(|| style.dash().to_owned(), |tokens| thousands(of(tokens)))
    };
    let percent = |percent: Option<f64>| percent.map(change).unwrap_or_default();
    let (prompt, completion) = (|t: Tokens| t.prompt, |t: Tokens| t.completion);
    let columns = [
        Column::words("tokens", all().map(|step| printable(&step.node))),
        Column::new("prompts in A", all().map(|step| count(step.a, prompt))),
        Column::new("in B", all().map(|step| count(step.b, prompt))),
        Column::new("", all().map(|step| percent(step.prompt_percent))),
        Column::new("replies in A", all().map(|step| count(step.a, completion))),
        Column::new("in B", all().map(|step| count(step.b, completion))),
        Column::new("", all().map(|step| percent(step.completion_percent))),
    ];
    draw(&columns.iter().collect::<Vec<_>>(), style)
}

/// `+12%`, `-0.4%`, `0%`.
fn change(percent: f64) -> String {
    match percent.abs() {
        0.0 => "0%".into(),
        ..9.95 => format!("{percent:+.1}%"),
        _ => format!("{percent:+.0}%"),
    }
}

/// The result in one line.
fn verdict(diff: &Diff, style: Style) -> String {
    let differing = diff.folders.iter().filter(|folder| !folder.is_same());
    let names: Vec<String> = differing.map(|folder| printable(&folder.folder) + "/").collect();
    match names.as_slice() {
        [] => style.paint(Tint::Green, "the outputs are the same") + "\n",
        names => format!(
            "{} in {}\n",
            style.paint(Tint::Yellow, "the outputs differ"),
            names.join(", ")
        ),
    }
}
