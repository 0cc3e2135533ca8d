//! What models do with rows of numbers beside products with their matrices.

use std::f32::consts::{FRAC_2_SQRT_PI, LOG2_E, PI, SQRT_2};

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

/// The sum of what a function makes of each number.
fn sum_of(x: &[f32], function: impl Fn(f32) -> f32) -> f32 {
    let (x, rest) = x.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for x in x {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum += function(*x);
        }
    }
    let rest: f32 = rest.iter().map(|x| function(*x)).sum();
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
                    let mean = sum_of(row, |x| x) / len;
                    let variance = sum_of(row, |x| (x - mean) * (x - mean)) / len;
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
    0.5 * x * (1.0 + erf(x / SQRT_2))
}

/// The error function, off by less than 4e-7: an odd rational function, fitted to it on -4..=4 by least squares. Without
/// branches, so that a processor can do several at once.
fn erf(x: f32) -> f32 {
    const ABOVE: [f32; 6] = [
        FRAC_2_SQRT_PI,
        0.196_260_82,
        0.053_468_83,
        0.004_004_087,
        0.000_288_039_95,
        0.000_001_974_596_2,
    ];
    const BELOW: [f32; 6] = [
        1.0,
        0.507_262_8,
        0.116_481_125,
        0.015_445_325,
        0.001_216_445,
        0.000_037_478_345,
    ];
    let x = x.clamp(-4.0, 4.0);
    let square = x * x;
    let sum = |factors: [f32; 6]| {
        let [a, b, c, d, e, f] = factors;
        ((((f * square + e) * square + d) * square + c) * square + b) * square + a
    };
    x * sum(ABOVE) / sum(BELOW)
}

/// `e` to the power of `x`, for `x` up to 0, off by less than 2e-7 of itself; below -87 it is about 1e-38. Without
/// branches, as above.
fn exp_below_zero(x: f32) -> f32 {
    // Adding it leaves whole numbers in the low bits.
    const WHOLE: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Not `max`: what is no number stays so.
    let x = if x < -87.0 { -87.0 } else { x };
    let whole = x * LOG2_E + WHOLE;
    let power = f32::from_bits(whole.to_bits().wrapping_add(127) << 23);
    let whole = whole - WHOLE;
    let rest = x - whole * LN_2_HIGH - whole * LN_2_LOW;
    // Taylor's series: what is left of it is below 2e-9 for half of ln 2.
    let series = (((((rest / 5040.0 + 1.0 / 720.0) * rest + 1.0 / 120.0) * rest + 1.0 / 24.0) * rest
        + 1.0 / 6.0)
        * rest
        + 0.5)
        * rest
        * rest
        + rest
        + 1.0;
    series * power
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
    for x in x.iter_mut() {
        *x = exp_below_zero(*x - most);
    }
    let sum = sum_of(x, |x| x);
    for x in x {
        *x /= sum;
    }
}
