//! When to try again, and with what.

use std::time::Duration;

use crate::engine::broker::backoff;
use crate::spec::Sampling;

/// What one row has used up at one Step, and what that changes in its next request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tries {
    /// The next try's number.
    pub(crate) turn: u32,
    /// Replies received.
    pub(crate) replies: u32,
    /// Replies that could not be used.
    pub(crate) bad: u32,
    /// Replies that ran in white space or repetition.
    pub(crate) runaways: u32,
    /// Transport faults.
    pub(crate) faults: u32,
    /// The token limit of a repeated question, once a reply was cut.
    pub(crate) doubled: Option<u32>,
}

impl Tries {
    /// The sampling of the next request: another seed after each bad reply (the same one would
    /// bring the same reply), more room after a cut one.
    pub(crate) fn sampling(&self, base: &Sampling) -> Sampling {
        let mut sampling = base.clone();
        let bad = i64::from(self.bad);
        sampling.seed = match base.seed {
            Some(seed) => Some(seed.wrapping_add(bad)),
            None => (bad > 0).then_some(bad),
        };
        if let Some(limit) = self.doubled {
            sampling.set_limit(limit);
        }
        sampling
    }

    /// Gives the next request twice the room of one whose reply was cut at `completion_tokens`.
    pub(crate) fn double(&mut self, base: &Sampling, completion_tokens: u64) {
        self.doubled = Some(match base.limit() {
            Some(limit) => limit.saturating_mul(2),
            None => u32::try_from(completion_tokens.saturating_mul(2))
                .unwrap_or(u32::MAX)
                .max(256),
        });
    }

    /// How long to wait before the next try after a transport fault.
    pub(crate) fn pause(&self) -> Duration {
        backoff(self.faults.saturating_sub(1))
    }
}
