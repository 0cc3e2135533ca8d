//! Positions, told by turning pairs of numbers.

use super::shape::Rope;

impl Rope {
    /// Sine and cosine of each pair at a position.
    pub(super) fn turns(&self, position: usize) -> Vec<(f32, f32)> {
        self.steps
            .iter()
            .map(|step| (position as f32 * step).sin_cos())
            .collect()
    }

    /// Turns heads of `len` numbers, all of one token.
    pub(super) fn turn(&self, heads: &mut [f32], len: usize, turns: &[(f32, f32)]) {
        for head in heads.chunks_exact_mut(len) {
            let Some(turned) = head.get_mut(..self.dims) else {
                continue;
            };
            if self.halves {
                let (low, high) = turned.split_at_mut(self.dims / 2);
                for ((a, b), (sin, cos)) in low.iter_mut().zip(high).zip(turns) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            } else {
                let (pairs, _) = turned.as_chunks_mut::<2>();
                for ([a, b], (sin, cos)) in pairs.iter_mut().zip(turns) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
        }
    }
}
