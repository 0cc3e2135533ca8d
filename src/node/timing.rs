//! How long rows take at a node: count, mean, spread and extremes, in constant space.

use serde::{Deserialize, Serialize};

/// Seconds per row. Parts can be merged in any order (Chan, Golub and LeVeque 1979, *Updating formulae and
/// a pairwise algorithm for computing sample variances*).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Rows that were measured.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Sum of squared differences from the mean.
    pub m2: f64,
    /// The quickest.
    pub min: f64,
    /// The slowest.
    pub max: f64,
}

impl Timing {
    /// Adds one row's seconds.
    pub fn add(&mut self, seconds: f64) {
        self.merge(&Self {
            count: 1,
            mean: seconds,
            m2: 0.0,
            min: seconds,
            max: seconds,
        });
    }

    /// Adds other rows.
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            *self = *other;
            return;
        }
        let (mine, theirs) = (self.count as f64, other.count as f64);
        let (all, apart) = (mine + theirs, other.mean - self.mean);
        self.count += other.count;
        self.mean += apart * theirs / all;
        self.m2 += other.m2 + apart * apart * mine * theirs / all;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// The standard deviation of the rows (of one row: 0).
    pub fn sd(&self) -> f64 {
        if self.count < 2 {
            return 0.0;
        }
        (self.m2 / (self.count - 1) as f64).sqrt()
    }

    /// Nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}
