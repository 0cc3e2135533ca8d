//! The first rows that differ, and how values are shown.

use console::measure_text_width;
use serde_json::value::RawValue;

use super::NAME;
use crate::audit::{FieldPair, FolderDiff, SampleRow};
use crate::event::{counted, thousands};
use crate::report::style::{Style, Tint};

/// So many fields of a row are shown.
const FIELDS: usize = 10;
/// Values are not cut to fewer columns than these.
const NARROW: usize = 8;

/// The first rows of a folder that differ.
pub(super) fn sample(folder: &FolderDiff, style: Style, width: usize) -> String {
    let name = printable(&folder.folder);
    let mut out = String::new();
    let parts = [
        (None, folder.different, &folder.sample.different),
        (Some("only in A"), folder.only_a, &folder.sample.only_a),
        (Some("only in B"), folder.only_b, &folder.sample.only_b),
    ];
    for (what, count, rows) in parts {
        if rows.is_empty() {
            continue;
        }
        let shown = rows.len() as u64;
        let first = match shown {
            _ if shown == count => String::new(),
            1 => "the first of ".into(),
            _ => format!("the first {shown} of "),
        };
        let differs = if count == 1 { "that differs" } else { "that differ" };
        let head = format!(
            "{name}: {first}{} {}",
            counted(count, "row"),
            what.unwrap_or(differs)
        );
        out += &(style.paint(Tint::Dim, &head) + "\n");
        if rows
            .iter()
            .all(|row| row.failure.is_none() && row.fields.is_empty())
        {
            let ids: Vec<&str> = rows.iter().map(|row| row.row_id.as_str()).collect();
            out += &wrapped(&ids, width);
            continue;
        }
        rows.iter().for_each(|row| out += &sample_row(row, style, width));
    }
    out
}

/// A row with its fields, or with its failure.
fn sample_row(row: &SampleRow, style: Style, width: usize) -> String {
    let mut head = format!("  {}", row.row_id);
    if let Some(failure) = &row.failure {
        let node = failure.node.as_deref().unwrap_or("(input)");
        head += &format!("  {node}  {}", failure.kind);
        if row.fields.is_empty() {
            head += &format!(": {}", failure.message);
        }
    }
    let mut out = style.cut(&printable(&head), width) + "\n";
    let shown = row.fields.get(..FIELDS).unwrap_or(&row.fields);
    let names = shown.iter().map(|pair| style.cut(&printable(&pair.field), NAME));
    let names: Vec<String> = names.collect();
    let widths = names.iter().map(|name| measure_text_width(name));
    let widest = widths.max().unwrap_or(0);
    for (name, pair) in names.iter().zip(shown) {
        let name = style.fit(name, widest, false);
        out += &format!(
            "    {name}  {}\n",
            values(pair, style, widest + 6, width.saturating_sub(widest + 6))
        );
    }
    let more = row.fields.len() - shown.len();
    if more > 0 {
        out += &format!("    and {} more\n", thousands(more as u64));
    }
    out
}

/// Both values of a field: side by side if there is room, else below one another behind `indent` columns.
fn values(pair: &FieldPair, style: Style, indent: usize, room: usize) -> String {
    let [a, b] = [&pair.a, &pair.b].map(|raw| raw.as_deref().map(RawValue::get));
    let arrow = arrow(style);
    let gap = measure_text_width(arrow) + 1;
    let painted = |[a, b]: [String; 2]| (style.paint(Tint::Red, &a), style.paint(Tint::Green, &b));
    let whole = both(a, b, usize::MAX, style);
    let width: usize = whole.iter().map(|text| measure_text_width(text)).sum();
    if width + gap < room {
        let (a, b) = painted(whole);
        return format!("{a} {arrow} {b}");
    }
    let (a, b) = painted(both(a, b, room.saturating_sub(gap).max(NARROW), style));
    format!("{}{a}\n{}{arrow} {b}", " ".repeat(gap), " ".repeat(indent))
}

/// Row ids side by side, as many as fit into a line.
fn wrapped(ids: &[&str], width: usize) -> String {
    let mut out = String::new();
    let mut line = String::new();
    for id in ids {
        if !line.is_empty() && line.len() + id.len() + 4 > width {
            out += &format!("  {line},\n");
            line.clear();
        }
        if !line.is_empty() {
            line += ", ";
        }
        line += id;
    }
    out + &format!("  {line}\n")
}

/// Two values as they can be shown in `width` columns each. Where both are too long they are shown from where
/// they begin to differ.
pub(super) fn both(a: Option<&str>, b: Option<&str>, width: usize, style: Style) -> [String; 2] {
    let texts = [a, b].map(|value| value.map(printable));
    let is_long = |text: &Option<String>| text.as_ref().is_some_and(|text| measure_text_width(text) > width);
    let skipped = match &texts {
        [Some(a), Some(b)] if is_long(&texts[0]) || is_long(&texts[1]) => {
            let common = a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count();
            // Enough of what is common that one knows the place.
            match common > width / 2 {
                true => common - width / 3,
                false => 0,
            }
        }
        _ => 0,
    };
    texts.map(|text| match text {
        None => "(none)".to_owned(),
        Some(text) if skipped == 0 => style.cut(&text, width),
        Some(text) => {
            let rest: String = text.chars().skip(skipped).collect();
            style.cut(&format!("{}{rest}", style.dots()), width)
        }
    })
}

/// What stands between two values.
pub(super) fn arrow(style: Style) -> &'static str {
    if style.unicode { "→" } else { "->" }
}

/// A text in which nothing can move a cursor, hide or turn around what stands beside it.
pub(super) fn printable(text: &str) -> String {
    let is_plain = |c: char| !c.is_control() && !is_invisible(c);
    if text.chars().all(is_plain) {
        return text.to_owned();
    }
    text.chars()
        .map(|c| match is_plain(c) {
            true => c.to_string(),
            false => format!("\\u{:04x}", u32::from(c)),
        })
        .collect()
}

/// Marks of direction and characters without a width.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}
