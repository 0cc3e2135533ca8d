//! Who watches: readers of the event stream.
use std::io::Write;

mod json_logs;
mod plain;
mod quiet;
mod summary;

pub use json_logs::{JsonLogs, json_line};
pub use plain::Plain;
pub use quiet::Quiet;
pub use summary::summary;

/// Writes a text to stderr, with a line end. Whoever closed it misses something; no run ends for that.
pub(crate) fn say(text: &str) {
    let line = format!("{}\n", text.trim_end());
    let _closed = std::io::stderr().write_all(line.as_bytes());
}

/// A number with thousands separated: `1,234,567`.
pub(crate) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A span of time as people say it: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`.
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole / 60 % 60),
    }
}
