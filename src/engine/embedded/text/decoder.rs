//! A decoder: tokens of several sequences in, the logits of each one's next token out.
//!
//! One forward pass takes any number of sequences of any lengths: products with the matrices are made for all tokens
//! together, and each sequence attends to its own past. The models of candle-transformers keep one past inside, for
//! sequences of one length only.

use std::sync::Arc;

use candle_core::quantized::QMatMul;
use candle_core::{Device, Tensor};

use super::head::Head;
use super::kv::{Kept, Segment};
use super::layer::{Layer, Part, linear, norm};
use super::shape::Shape;
use crate::engine::embedded::LoadError;
use crate::engine::embedded::linear::Linear;
use crate::engine::embedded::math::{Norm, bend};

/// The weights of a decoder. They never change, and are shared by those who use them.
#[derive(Debug)]
pub(super) struct Decoder {
    shape: Shape,
    embeddings: QMatMul,
    layers: Vec<Layer>,
    norm: Norm,
    output: Linear,
    vocabulary: usize,
}

/// New tokens of a sequence, at least one.
pub(super) struct Feed<'a> {
    /// The tokens.
    pub(super) tokens: &'a [u32],
    /// What the sequence has seen; the tokens are added.
    pub(super) kept: &'a mut Kept,
}

impl Decoder {
    /// Reads the weights.
    pub(super) fn read(head: &mut Head) -> Result<Self, LoadError> {
        let shape = Shape::of(head)?;
        let embeddings = head.matrix("token_embd.weight", (0, shape.width))?;
        let vocabulary = match &embeddings {
            QMatMul::QTensor(tensor) => tensor.shape().dims().first().copied(),
            QMatMul::Tensor(tensor) | QMatMul::TensorF16(tensor) => tensor.dims().first().copied(),
        };
        let vocabulary = vocabulary.unwrap_or(0);
        let output = match head.has("output.weight") {
            true => linear(head, "output", (vocabulary, shape.width))?,
            false => Linear::new(embeddings.clone(), None),
        };
        let norm = norm(head, "output_norm", shape.width, shape.eps)?;
        let layers = (0..shape.layers).map(|at| Layer::read(head, &shape, at));
        Ok(Self {
            layers: layers.collect::<Result<_, _>>()?,
            embeddings,
            norm,
            output,
            vocabulary,
            shape,
        })
    }

    /// Tokens that the model was made for.
    pub(super) fn context(&self) -> usize {
        self.shape.context
    }

    /// Tokens that it knows.
    pub(super) fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// What a new sequence has seen: nothing, or what it shares with others.
    pub(super) fn begin(&self, shared: Option<Arc<Segment>>) -> Kept {
        Kept::new(self.layers.len(), shared)
    }

    /// Feeds tokens of several sequences; the logits after the last one of each.
    pub(super) fn forward(&self, feeds: Vec<Feed<'_>>) -> candle_core::Result<Vec<Vec<f32>>> {
        let tokens: Vec<u32> = feeds.iter().flat_map(|feed| feed.tokens).copied().collect();
        let positions: Vec<usize> = feeds
            .iter()
            .flat_map(|feed| (feed.kept.len()..).take(feed.tokens.len()))
            .collect();
        let turns = self.shape.rope.each_ref().map(|rope| {
            let turns = positions.iter().map(|position| rope.turns(*position));
            turns.collect::<Vec<_>>()
        });
        let ids = Tensor::from_slice(&tokens, tokens.len(), &Device::Cpu)?;
        let mut x: Vec<f32> = self.embeddings.embedding(&ids)?.flatten_all()?.to_vec1()?;
        if self.shape.embedding_scale != 1.0 {
            x.iter_mut().for_each(|x| *x *= self.shape.embedding_scale);
        }
        let mut parts: Vec<Part<'_>> = feeds
            .into_iter()
            .map(|feed| Part {
                tokens: feed.tokens.len(),
                kept: feed.kept,
            })
            .collect();
        for (at, layer) in self.layers.iter().enumerate() {
            layer.forward(&self.shape, at, &mut x, &mut parts, &turns)?;
        }
        let mut last = Vec::with_capacity(parts.len() * self.shape.width);
        let mut end = 0;
        for part in parts {
            part.kept.grown(part.tokens);
            end += part.tokens * self.shape.width;
            last.extend_from_slice(x.get(end - self.shape.width..end).unwrap_or_default());
        }
        self.norm.apply(&mut last);
        let mut logits = self.output.forward(&last, self.shape.width)?;
        if let Some(cap) = self.shape.logit_cap {
            bend(&mut logits, cap);
        }
        Ok(logits
            .chunks_exact(self.vocabulary)
            .map(<[f32]>::to_vec)
            .collect())
    }
}
