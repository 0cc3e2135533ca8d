//! What the failpoints of a test build do, as the environment says.

use std::env;
use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What is to be done, and where.
static ARMED: LazyLock<Vec<Armed>> = LazyLock::new(|| {
    let text = env::var("CHAINETTE_FAILPOINT").unwrap_or_default();
    let each = text.split(';').filter(|text| !text.is_empty());
    each.map(Armed::parse).collect()
});
/// Where hits are listed.
static LOG: LazyLock<Option<PathBuf>> =
    LazyLock::new(|| env::var_os("CHAINETTE_FAILPOINT_LOG").map(PathBuf::from));
/// How often checkpoints are written.
static EVERY: LazyLock<Option<Duration>> = LazyLock::new(|| {
    let ms = env::var("CHAINETTE_CHECKPOINT_EVERY").ok()?.parse().ok()?;
    Some(Duration::from_millis(ms))
});
/// Bytes of a segment of the ledger.
static SEGMENT: LazyLock<Option<u64>> =
    LazyLock::new(|| env::var("CHAINETTE_SEGMENT_BYTES").ok()?.parse().ok());
/// Bytes of disk for rows that wait for an engine.
static SPILL: LazyLock<Option<u64>> = LazyLock::new(|| env::var("CHAINETTE_SPILL").ok()?.parse().ok());
/// How long a stream is waited for while rows are parked.
static PATIENCE: LazyLock<Option<Duration>> = LazyLock::new(|| {
    let ms = env::var("CHAINETTE_PATIENCE").ok()?.parse().ok()?;
    Some(Duration::from_millis(ms))
});
/// The steps of the clock: seconds, and from which reading on.
static STEPS: LazyLock<Vec<(i64, u64)>> = LazyLock::new(|| {
    let text = env::var("CHAINETTE_CLOCK").unwrap_or_default();
    let step = |step: &str| {
        let (seconds, reading) = step.split_once('@')?;
        Some((seconds.parse().ok()?, reading.parse().ok()?))
    };
    text.split(',').filter_map(step).collect()
});
/// Readings of the clock so far.
static READINGS: AtomicU64 = AtomicU64::new(0);

/// What is done at one hit of one place.
struct Armed {
    place: String,
    nth: u64,
    action: String,
    hits: AtomicU64,
}

impl Armed {
    fn parse(text: &str) -> Self {
        let (place, action) = text.split_once('=').unwrap_or((text, ""));
        let (place, nth) = place.split_once(':').unwrap_or((place, "1"));
        Self {
            place: place.to_owned(),
            nth: nth.parse().unwrap_or(1),
            action: action.to_owned(),
            hits: AtomicU64::new(0),
        }
    }

    fn act(&self, place: &str) -> io::Result<()> {
        match self.action.split_once(':').unwrap_or((&self.action, "")) {
            ("kill", _) => {
                send(Signal::SIGKILL)?;
                // Nothing is done after it, however long it takes to come.
                loop {
                    std::thread::park();
                }
            }
            ("term", _) => send(Signal::SIGTERM),
            ("error", _) => Err(io::Error::other(format!("failpoint {place}"))),
            ("enospc", _) => Err(Errno::ENOSPC.into()),
            ("pause", ms) => {
                let ms = ms.parse().map_err(io::Error::other)?;
                std::thread::sleep(Duration::from_millis(ms));
                Ok(())
            }
            ("wait", file) => {
                std::fs::write(format!("{file}.here"), "")?;
                while !std::path::Path::new(file).exists() {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Ok(())
            }
            _ => Err(io::Error::other(format!("no such failpoint: {}", self.action))),
        }
    }
}

fn send(signal: Signal) -> io::Result<()> {
    kill(Pid::this(), signal).map_err(io::Error::from)
}

/// See [`super::hit`].
pub(super) fn hit(place: &dyn Display) -> io::Result<()> {
    if ARMED.is_empty() && LOG.is_none() {
        return Ok(());
    }
    let place = place.to_string();
    if let Some(log) = &*LOG {
        // One `write` per line: it stands there whatever comes next.
        let mut log = OpenOptions::new().create(true).append(true).open(log)?;
        log.write_all(format!("{place}\n").as_bytes())?;
    }
    for armed in ARMED.iter().filter(|armed| armed.place == place) {
        if armed.hits.fetch_add(1, Ordering::SeqCst) + 1 == armed.nth {
            armed.act(&place)?;
        }
    }
    Ok(())
}

/// See [`super::segment_bytes`].
pub(super) fn segment_bytes() -> Option<u64> {
    *SEGMENT
}

/// See [`super::spill_bytes`].
pub(super) fn spill_bytes() -> Option<u64> {
    *SPILL
}

/// See [`super::patience`].
pub(super) fn patience() -> Option<Duration> {
    *PATIENCE
}

/// See [`super::sets`].
pub(super) fn sets() -> Option<Vec<Vec<String>>> {
    let text = env::var("CHAINETTE_SETS").ok()?;
    let set = |set: &str| set.split(',').map(str::to_owned).collect();
    Some(text.split(';').map(set).collect())
}

/// See [`super::every`].
pub(super) fn every() -> Option<Duration> {
    *EVERY
}

/// The system's time, with the steps that came so far.
#[expect(clippy::disallowed_methods, reason = "the one place")]
pub(crate) fn clock() -> SystemTime {
    let now = SystemTime::now();
    let reading = READINGS.fetch_add(1, Ordering::Relaxed) + 1;
    let steps = STEPS.iter().filter(|(_, from)| reading >= *from);
    let shift: i64 = steps.map(|(seconds, _)| seconds).sum();
    let by = Duration::from_secs(shift.unsigned_abs());
    let shifted = if shift < 0 {
        now.checked_sub(by)
    } else {
        now.checked_add(by)
    };
    shifted.unwrap_or(now)
}
