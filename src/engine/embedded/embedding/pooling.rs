//! From the vectors of a text's tokens to the vector of the text.

use super::folder::After;
use super::weights::Weights;
use crate::engine::embedded::LoadError;
use crate::engine::embedded::linear::Linear;
use crate::engine::embedded::math::{add_scaled, dot, gelu, gelu_exact, silu};

/// How one vector is made of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// The first.
    First,
    /// The largest of each number.
    Max,
    Mean,
    /// Their sum by the root of their count.
    MeanSqrt,
    /// The mean, in which later ones count more.
    WeightedMean,
    Last,
}

impl Mode {
    /// All, with the keys by which models of before sentence-transformers 6 choose them, and their names since then, in
    /// the order in which their numbers follow each other.
    pub(super) const ALL: [(Self, &'static str, &'static str); 6] = [
        (Self::First, "pooling_mode_cls_token", "cls"),
        (Self::Max, "pooling_mode_max_tokens", "max"),
        (Self::Mean, "pooling_mode_mean_tokens", "mean"),
        (
            Self::MeanSqrt,
            "pooling_mode_mean_sqrt_len_tokens",
            "mean_sqrt_len_tokens",
        ),
        (
            Self::WeightedMean,
            "pooling_mode_weightedmean_tokens",
            "weightedmean",
        ),
        (Self::Last, "pooling_mode_lasttoken", "lasttoken"),
    ];

    pub(super) fn named(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find_map(|(mode, _, its)| (its == name).then_some(mode))
    }

    /// One vector of `width` numbers from one or more.
    fn pool(self, states: &[f32], width: usize) -> Vec<f32> {
        let rows = states.chunks_exact(width);
        let count = rows.len().max(1) as f32;
        let sum = |weight: &dyn Fn(usize) -> f32| {
            let mut sum = vec![0.0; width];
            for (at, row) in states.chunks_exact(width).enumerate() {
                add_scaled(&mut sum, row, weight(at));
            }
            sum
        };
        match self {
            Self::First => states.get(..width).unwrap_or_default().to_vec(),
            Self::Last => rows.last().unwrap_or_default().to_vec(),
            Self::Max => rows.fold(vec![f32::NEG_INFINITY; width], |mut most, row| {
                for (most, x) in most.iter_mut().zip(row) {
                    *most = most.max(*x);
                }
                most
            }),
            Self::Mean => sum(&|_| 1.0 / count),
            Self::MeanSqrt => sum(&|_| 1.0 / count.sqrt()),
            Self::WeightedMean => {
                let all = count * (count + 1.0) / 2.0;
                sum(&|at| (at + 1) as f32 / all)
            }
        }
    }
}

/// A function of each number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activation {
    Identity,
    /// With the error function itself.
    Gelu,
    /// Its approximation.
    GeluTanh,
    Relu,
    Silu,
    Tanh,
}

impl Activation {
    /// By the name that transformers has for it.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" => Self::GeluTanh,
            "relu" => Self::Relu,
            "silu" | "swish" => Self::Silu,
            "tanh" => Self::Tanh,
            "linear" => Self::Identity,
            _ => return None,
        })
    }

    /// By the name of PyTorch's class.
    pub(super) fn of_torch(class: &str) -> Option<Self> {
        Some(match class {
            "Identity" => Self::Identity,
            "Tanh" => Self::Tanh,
            "ReLU" => Self::Relu,
            "GELU" => Self::Gelu,
            "SiLU" => Self::Silu,
            _ => return None,
        })
    }

    /// In place.
    pub(super) fn apply(self, x: &mut [f32]) {
        let function: fn(f32) -> f32 = match self {
            Self::Identity => return,
            Self::Gelu => gelu_exact,
            Self::GeluTanh => gelu,
            Self::Relu => |x| x.max(0.0),
            Self::Silu => silu,
            Self::Tanh => f32::tanh,
        };
        for x in x {
            *x = function(*x);
        }
    }
}

/// What is done with the vectors of a text's tokens, one step after the other.
pub(super) struct Head {
    steps: Vec<Step>,
}

enum Step {
    Pool(Vec<Mode>),
    Dense(Linear, Activation),
    Normalize,
}

impl Head {
    pub(super) fn read(after: &[After]) -> Result<Self, LoadError> {
        let step = |after: &After| {
            Ok(match after {
                After::Pool(modes) => Step::Pool(modes.clone()),
                After::Normalize => Step::Normalize,
                After::Dense {
                    path,
                    rows,
                    columns,
                    activation,
                } => {
                    let weights = Weights::open(std::slice::from_ref(path), "linear.weight")?;
                    Step::Dense(weights.linear("linear", *rows, *columns)?, *activation)
                }
            })
        };
        Ok(Self {
            steps: after.iter().map(step).collect::<Result<_, LoadError>>()?,
        })
    }

    /// The vector of a text, from those of its tokens (rows of `width` numbers, at least one).
    pub(super) fn vector(&self, states: &[f32], width: usize) -> candle_core::Result<Vec<f32>> {
        let (mut vector, mut width) = (states.to_vec(), width);
        for step in &self.steps {
            match step {
                Step::Pool(modes) => {
                    vector = modes.iter().flat_map(|mode| mode.pool(&vector, width)).collect();
                }
                Step::Dense(linear, activation) => {
                    vector = linear.forward(&vector, width)?;
                    activation.apply(&mut vector);
                }
                Step::Normalize => {
                    let length = dot(&vector, &vector).sqrt().max(1e-12);
                    vector.iter_mut().for_each(|x| *x /= length);
                }
            }
            width = vector.len();
        }
        Ok(vector)
    }
}
