//! Tables of aligned columns.

use console::measure_text_width;

use super::style::{Style, Tint};

/// A column of a table.
pub(super) struct Column {
    head: String,
    cells: Vec<String>,
    to_the_right: bool,
    /// For cells that say more than nothing.
    tint: Option<Tint>,
}

impl Column {
    /// Numbers, which stand to the right.
    pub(super) fn new(head: impl Into<String>, cells: impl Iterator<Item = String>) -> Self {
        Self {
            head: head.into(),
            cells: cells.collect(),
            to_the_right: true,
            tint: None,
        }
    }

    /// Words, which stand to the left.
    pub(super) fn words(head: impl Into<String>, cells: impl Iterator<Item = String>) -> Self {
        Self {
            to_the_right: false,
            ..Self::new(head, cells)
        }
    }

    /// In a colour.
    pub(super) fn tinted(self, tint: Tint) -> Self {
        let tint = Some(tint);
        Self { tint, ..self }
    }

    fn width(&self) -> usize {
        let cells = self.cells.iter().chain([&self.head]);
        cells.map(|cell| measure_text_width(cell)).max().unwrap_or(0)
    }
}

/// How wide a table of these columns is.
pub(super) fn total_width(columns: &[&Column]) -> usize {
    columns.iter().map(|column| column.width() + 2).sum::<usize>() - 2
}

/// A table: a line with the heads, one per row.
pub(super) fn draw(columns: &[&Column], style: Style) -> String {
    let rows = columns.iter().map(|column| column.cells.len()).max().unwrap_or(0);
    let line = |cell: &dyn Fn(&Column) -> String| {
        let cells: Vec<String> = columns
            .iter()
            .map(|column| style.fit(&cell(column), column.width(), column.to_the_right))
            .collect();
        cells
    };
    let head = line(&|column| column.head.clone()).join("  ");
    let mut out = style.paint(Tint::Dim, head.trim_end()) + "\n";
    for at in 0..rows {
        let cells = line(&|column| column.cells.get(at).cloned().unwrap_or_default());
        let cells = cells
            .into_iter()
            .zip(columns)
            .map(|(cell, column)| match column.tint {
                Some(tint) if !matches!(cell.trim(), "0" | "-" | "–") => style.paint(tint, &cell),
                _ => cell,
            });
        let cells: Vec<String> = cells.collect();
        out += cells.join("  ").trim_end();
        out.push('\n');
    }
    out
}
