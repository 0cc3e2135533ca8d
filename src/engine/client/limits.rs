//! What a hosted API says about its limits with each answer.
//!
//! | who | headers | reset |
//! | --- | --- | --- |
//! | OpenAI and those like it | `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` | a span: `1s`, `6m0s`, `250ms` |
//! | Anthropic | `anthropic-ratelimit-{requests,tokens}-{limit,remaining,reset}` | a time, RFC 3339 |
//! | GitHub, gateways | `x-ratelimit-{limit,remaining,reset}` | a time, seconds since 1970, or a span in seconds |
//! | draft-ietf-httpapi-ratelimit-headers | `ratelimit-{limit,remaining,reset}` | a span in seconds |

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// No limit is believed to hold for longer.
const LONGEST: Duration = Duration::from_secs(3600);

/// A number this large is a time in seconds since 1970, and one as large in milliseconds.
const TIME: (f64, f64) = (1e9, 1e12);

/// One of the limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// How many may be used in a window of time.
    pub limit: Option<u64>,
    /// How many are left of them.
    pub remaining: Option<u64>,
    /// How long until there are as many as the limit again; at most an hour.
    pub reset: Option<Duration>,
}

/// The limits that an answer named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// When it came.
    pub at: Instant,
    /// Requests.
    pub requests: Quota,
    /// Tokens.
    pub tokens: Quota,
}

impl Limits {
    /// Reads the headers of an answer; none where they name no limit. `wall` is the server's time, for resets that
    /// are times. What cannot be read is left out.
    pub fn read<'a>(header: impl Fn(&str) -> Option<&'a str>, at: Instant, wall: SystemTime) -> Option<Self> {
        let quota = |names: [String; 3]| {
            let [limit, remaining, reset] = names.map(|name| header(&name));
            Quota {
                limit: limit.and_then(count),
                remaining: remaining.and_then(count),
                reset: reset.and_then(|text| span(text, wall)),
            }
        };
        let of = |what: &str| {
            let openai =
                quota(["limit", "remaining", "reset"].map(|part| format!("x-ratelimit-{part}-{what}")));
            let anthropic = quota(
                ["limit", "remaining", "reset"].map(|part| format!("anthropic-ratelimit-{what}-{part}")),
            );
            openai.or(anthropic)
        };
        let bare =
            |head: &str| quota(["limit", "remaining", "reset"].map(|part| format!("{head}ratelimit-{part}")));
        let limits = Self {
            at,
            requests: of("requests").or(bare("x-")).or(bare("")),
            tokens: of("tokens"),
        };
        let says = [limits.requests, limits.tokens]
            .iter()
            .any(|quota| *quota != Quota::default());
        says.then_some(limits)
    }
}

impl Quota {
    /// This one, or the other where this says nothing.
    fn or(self, other: Self) -> Self {
        if self == Self::default() { other } else { self }
    }
}

/// A count: of `100`, `100, 100;w=60` the first number.
fn count(text: &str) -> Option<u64> {
    let digits = text.trim().split([',', ';']).next()?.trim();
    let number: f64 = digits.parse().ok()?;
    // Beyond 2⁵³ no quota lies; `as` saturates there.
    (number.is_finite() && number >= 0.0).then_some(number as u64)
}

/// How long until a reset, however it is written.
fn span(text: &str, wall: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let seconds = match text.parse::<f64>() {
        Ok(number) if number >= TIME.1 => until(number / 1000.0, wall)?,
        Ok(number) if number >= TIME.0 => until(number, wall)?,
        Ok(number) => number,
        Err(_) => match text.parse::<jiff::Timestamp>() {
            Ok(time) => until(time.as_millisecond() as f64 / 1000.0, wall)?,
            Err(_) => duration(text)?,
        },
    };
    let seconds = seconds.clamp(0.0, LONGEST.as_secs_f64());
    Duration::try_from_secs_f64(seconds).ok()
}

/// Seconds from the server's time to a time in seconds since 1970.
fn until(time: f64, wall: SystemTime) -> Option<f64> {
    let now = wall.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(time - now.as_secs_f64())
}

/// `6m0s`, `1.5s`, `250ms`, `1h2m`, as Go prints spans of time; in seconds.
fn duration(text: &str) -> Option<f64> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let (number, after) = rest.split_at_checked(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?)?;
        let number: f64 = number.parse().ok()?;
        let (unit, after) = after.split_at_checked(
            after
                .find(|c: char| c.is_ascii_digit() || c == '.')
                .unwrap_or(after.len()),
        )?;
        seconds += number
            * match unit {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86_400.0,
                _ => return None,
            };
        rest = after;
    }
    (!text.is_empty()).then_some(seconds)
}
