//! The one clock for wall time. It is shown and written, and nothing is reckoned from it but `Retry-After` as a date:
//! spans of time are taken from `Instant`, which no one sets back.

use std::time::SystemTime;

/// The wall clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock;

impl Clock {
    /// The time now, in any process but a test's the system's.
    #[cfg_attr(
        not(feature = "failpoints"),
        expect(clippy::disallowed_methods, reason = "the one place")
    )]
    pub(crate) fn now() -> SystemTime {
        #[cfg(feature = "failpoints")]
        return crate::failpoint::clock();
        #[cfg(not(feature = "failpoints"))]
        SystemTime::now()
    }
}
