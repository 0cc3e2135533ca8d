//! How many numbers the vectors of a Step have: as many as the first one that came, for a whole run and over resumes.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::engine::{Finish, Reply, vector};
use crate::row::Record;

/// The length of a Step's vectors; 0 until one came.
#[derive(Debug, Default)]
pub(super) struct Dimension(AtomicU32);

impl Dimension {
    /// That of the vectors that were written before; 0 takes the first one that comes.
    pub(super) fn of(known: u32) -> Self {
        Self(AtomicU32::new(known))
    }

    /// A reply as the Step's output, or the problem with it in one line; and the length that decided on it, 0 where
    /// there was no vector to decide on.
    pub(super) fn output(&self, reply: &Reply) -> (u32, Result<Record, String>) {
        let read = match reply.finish {
            Finish::Stop => vector::read(&reply.text),
            Finish::Rejected => Err(reply.text.clone()),
            Finish::Length | Finish::Runaway => Err("the reply was cut".to_owned()),
        };
        let vector = match read {
            Ok(vector) => vector,
            Err(problem) => return (0, Err(problem)),
        };
        let Ok(values) = u32::try_from(vector.len()) else {
            return (0, Err("the vector is too long".to_owned()));
        };
        let known = self
            .0
            .compare_exchange(0, values, Ordering::Relaxed, Ordering::Relaxed);
        let known = known.map_or_else(|known| known, |_| values);
        if known != values {
            let problem = format!(
                "the vector has {values} values, where the first one of this Step had {known}: did the engine change its model?"
            );
            return (known, Err(problem));
        }
        let record = Record::parse(&vector::print(&vector)).map_err(|error| error.to_string());
        (known, record)
    }
}
