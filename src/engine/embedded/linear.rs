//! Products with a matrix.

use candle_core::quantized::QMatMul;
use candle_core::{Device, Module as _, Tensor};

use super::math::add;

/// A matrix, and what is added to its products.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    weight: QMatMul,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// A matrix of (rows, columns), and as many numbers as it has rows.
    pub(super) fn new(weight: QMatMul, bias: Option<Vec<f32>>) -> Self {
        Self { weight, bias }
    }

    /// The products of every row of `x` (rows of `columns` numbers).
    pub(super) fn forward(&self, x: &[f32], columns: usize) -> candle_core::Result<Vec<f32>> {
        self.forward_tensor(&tensor(x, columns)?)
    }

    /// The same, of a tensor of (rows, columns).
    pub(super) fn forward_tensor(&self, x: &Tensor) -> candle_core::Result<Vec<f32>> {
        let mut out = self.weight.forward(x)?.flatten_all()?.to_vec1::<f32>()?;
        if let Some(bias) = &self.bias {
            add(&mut out, bias);
        }
        Ok(out)
    }
}

/// Rows of `columns` numbers.
pub(super) fn tensor(x: &[f32], columns: usize) -> candle_core::Result<Tensor> {
    Tensor::from_slice(x, (x.len() / columns.max(1), columns), &Device::Cpu)
}
