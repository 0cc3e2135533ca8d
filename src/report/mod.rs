//! Who watches: readers of the event stream.
use std::io::Write;

mod bars;
mod diff;
mod json_logs;
mod phrases;
mod plain;
mod quiet;
mod screen;
mod style;
mod summary;
mod table;
mod terminal;
mod text;

pub use bars::Bars;
pub use diff::diff;
pub(crate) use diff::printable;
pub use json_logs::{JsonLogs, events_schema, json_line};
pub(crate) use phrases::engine_line;
pub use plain::{Lines, Plain};
pub use quiet::Quiet;
pub use screen::render;
pub use style::{Style, Tint, can_draw, speaks_unicode};
pub use summary::summary;
pub(crate) use text::{duration, seconds, thousands};

/// Writes a text to stderr, with a line end. Whoever closed it misses something; no run ends for that.
pub(crate) fn say(text: &str) {
    let line = format!("{}\n", text.trim_end());
    let _closed = std::io::stderr().write_all(line.as_bytes());
}
