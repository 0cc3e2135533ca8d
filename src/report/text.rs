//! Numbers and times as people read them.

pub(crate) use crate::event::thousands;

/// A number in at most five characters: `9,999`, `12.3k`, `123k`, `1.23M`.
pub(super) fn short(n: u64) -> String {
    if n < 10_000 {
        return thousands(n);
    }
    let units = ["k", "M", "G", "T", "P", "E"];
    let mut value = n as f64 / 1000.0;
    let mut at = 0;
    while value >= 999.5 && at + 1 < units.len() {
        value /= 1000.0;
        at += 1;
    }
    format!(
        "{}{}",
        three_digits(value),
        units.get(at).copied().unwrap_or_default()
    )
}

/// `1.23`, `12.3`, `123`.
fn three_digits(value: f64) -> String {
    let decimals = match value {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

/// Rows per second: `0`, `0.4`, `12`, `1,234`.
pub(super) fn speed(per_second: f64, compact: bool) -> String {
    let whole = per_second.round() as u64;
    match per_second {
        ..0.05 => "0".into(),
        ..9.95 => format!("{per_second:.1}"),
        _ if compact => short(whole),
        _ => thousands(whole),
    }
}

/// A part of a whole; 100 only when it is all of it: ` 99%`.
pub(super) fn percent(part: u64, whole: u64) -> String {
    match part {
        _ if whole == 0 => String::new(),
        _ if part >= whole => "100%".into(),
        _ => format!("{}%", u128::from(part) * 100 / u128::from(whole)),
    }
}

/// A span of time: `0.4 s`, `12 s`, `3m 20s`, `2h 05m`, `3d 04h`.
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        _ if seconds < 9.95 => format!("{seconds:.1} s"),
        ..60 => format!("{whole} s"),
        60..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        3600..86_400 => format!("{}h {:02}m", whole / 3600, whole / 60 % 60),
        _ => format!("{}d {:02}h", whole / 86_400, whole / 3600 % 24),
    }
}

/// A span of time in whole seconds, for what is drawn again and again: `0 s`, `12 s`, `3m 20s`.
pub(crate) fn seconds(seconds: f64) -> String {
    if seconds < 59.5 {
        return format!("{} s", seconds.round() as u64);
    }
    duration(seconds)
}

/// A row's time, always seven characters wide at least: `1.23 µs`, `12.3 ms`, ` 123 s `.
pub(super) fn row_time(seconds: f64, unicode: bool) -> String {
    let micro = if unicode { "µs" } else { "us" };
    let (value, unit) = match seconds {
        ..0.000_000_999_5 => (seconds * 1e9, "ns"),
        ..0.000_999_5 => (seconds * 1e6, micro),
        ..0.999_5 => (seconds * 1e3, "ms"),
        _ => (seconds, "s "),
    };
    format!("{:>4} {unit}", three_digits(value))
}
