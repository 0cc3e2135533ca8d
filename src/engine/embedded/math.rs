//! What models do with rows of numbers beside products with their matrices.

use std::f32::consts::PI;

use candle_core::cpu::erf::erf_f32;

/// Numbers that are summed side by side, so that a processor can do them at once.
const LANES: usize = 8;

/// The sum of products.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// Adds `by` times `x`.
pub(super) fn add_scaled(to: &mut [f32], x: &[f32], by: f32) {
    for (to, x) in to.iter_mut().zip(x) {
        *to += x * by;
    }
}

/// Adds row by row; `more` may be one row for all.
pub(super) fn add(to: &mut [f32], more: &[f32]) {
    for row in to.chunks_mut(more.len().max(1)) {
        add_scaled(row, more, 1.0);
    }
}

/// How rows are brought to one size.
#[derive(Clone, Debug)]
pub(super) enum Norm {
    /// By the root of the mean of squares.
    Rms { weight: Vec<f32>, eps: f32 },
    /// By mean and deviation.
    Layer {
        weight: Vec<f32>,
        bias: Vec<f32>,
        eps: f32,
    },
}

impl Norm {
    /// In place, row by row.
    pub(super) fn apply(&self, x: &mut [f32]) {
        match self {
            Self::Rms { weight, eps } => {
                for row in x.chunks_exact_mut(weight.len()) {
                    let mean = dot(row, row) / weight.len() as f32;
                    let scale = 1.0 / (mean + eps).sqrt();
                    for (x, weight) in row.iter_mut().zip(weight) {
                        *x *= scale * weight;
                    }
                }
            }
            Self::Layer { weight, bias, eps } => {
                let len = weight.len() as f32;
                for row in x.chunks_exact_mut(weight.len()) {
                    let mean = row.iter().sum::<f32>() / len;
                    let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / len;
                    let scale = 1.0 / (variance + eps).sqrt();
                    for ((x, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
                        *x = (*x - mean) * scale * weight + bias;
                    }
                }
            }
        }
    }
}

/// `x · sigmoid(x)`.
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// The usual approximation by a hyperbolic tangent (Hendrycks and Gimpel, <https://arxiv.org/abs/1606.08415>).
pub(super) fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
}

/// `x` times the share of a normal distribution that lies below it.
pub(super) fn gelu_exact(x: f32) -> f32 {
    0.5 * x * (1.0 + erf_f32(x / std::f32::consts::SQRT_2))
}

/// Keeps numbers below `cap`, in both directions.
pub(super) fn bend(x: &mut [f32], cap: f32) {
    for x in x {
        *x = (*x / cap).tanh() * cap;
    }
}

/// Turns scores into shares of one.
pub(super) fn softmax(x: &mut [f32]) {
    let most = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in x.iter_mut() {
        *x = (*x - most).exp();
        sum += *x;
    }
    for x in x {
        *x /= sum;
    }
}
