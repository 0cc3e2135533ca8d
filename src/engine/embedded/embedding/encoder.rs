//! An encoder of BERT's family: the tokens of several texts in, a vector of each token out.
//!
//! Texts of any lengths share a pass, and nothing is filled up: products with the matrices are made for all tokens
//! together, and each text attends to itself.

use std::ops::Range;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::folder::{Folder, Shape};
use super::weights::Weights;
use crate::engine::embedded::LoadError;
use crate::engine::embedded::linear::{Linear, tensor};
use crate::engine::embedded::math::{Norm, add, add_scaled, softmax};

/// The weights of an encoder. They never change, and are shared by those who use them.
pub(super) struct Encoder {
    shape: Shape,
    /// Rows of `shape.width`: one for each token of the vocabulary.
    words: Vec<f32>,
    /// The same for each position; what all tokens have in common is added.
    positions: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
    distances: Option<Distances>,
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    out_norm: Norm,
    up: Linear,
    down: Linear,
    down_norm: Norm,
}

/// What is added to the scores of tokens by how far they are from each other.
struct Distances {
    /// Rows of one number for each head.
    by_bucket: Vec<f32>,
    buckets: usize,
}

/// The table of words, which tells what stands before all names.
pub(super) const WORDS: &str = "embeddings.word_embeddings.weight";
const POSITIONS: &str = "embeddings.position_embeddings.weight";
const KINDS: &str = "embeddings.token_type_embeddings.weight";
/// Scores that are worked on at the same time, of one text: they stay in a processor's cache.
pub(super) const SCORES: usize = 1 << 18;
/// Distances from here on share the last bucket.
const FAR: f32 = 128.0;

impl Encoder {
    /// Reads the weights.
    pub(super) fn read(folder: &Folder) -> Result<Self, LoadError> {
        let (shape, weights) = (&folder.shape, Weights::open(&folder.weights, WORDS)?);
        let (width, names) = (shape.width, &shape.names);
        let mut positions = weights.numbers(POSITIONS, &[shape.positions, width])?;
        if weights.has(KINDS) {
            let kinds = weights.numbers(KINDS, &[weights.rows(KINDS, width)?, width])?;
            // All of a text is of the first kind.
            add(&mut positions, kinds.get(..width).unwrap_or_default());
        }
        let layer = |at: usize| {
            let name = |part: &str| format!("{}.{at}.{part}", names.layer);
            let square = |part: &str| weights.linear(&name(part), width, width);
            let norm = |part: &str| weights.norm(&name(part), width, shape.eps);
            Ok(Layer {
                query: square(names.query)?,
                key: square(names.key)?,
                value: square(names.value)?,
                out: square(names.out)?,
                out_norm: norm(names.out_norm)?,
                up: weights.linear(&name(names.up), shape.inner, width)?,
                down: weights.linear(&name(names.down), width, shape.inner)?,
                down_norm: norm(names.down_norm)?,
            })
        };
        let distances = |name: &str| {
            let buckets = weights.rows(name, shape.heads)?;
            if buckets < 4 {
                return Err(weights.wrong(format!("{name} has {buckets} rows, expected 4 or more")));
            }
            Ok(Distances {
                by_bucket: weights.numbers(name, &[buckets, shape.heads])?,
                buckets,
            })
        };
        Ok(Self {
            words: weights.numbers(WORDS, &[shape.vocabulary, width])?,
            positions,
            norm: weights.norm("embeddings.LayerNorm", width, shape.eps)?,
            layers: (0..shape.layers).map(layer).collect::<Result<_, LoadError>>()?,
            distances: names.distances.map(distances).transpose()?,
            shape: shape.clone(),
        })
    }

    pub(super) fn width(&self) -> usize {
        self.shape.width
    }

    pub(super) fn vocabulary(&self) -> usize {
        self.shape.vocabulary
    }

    /// The vectors of all tokens of some texts, text after text. No text is longer than there are positions, and all
    /// tokens are of the vocabulary.
    pub(super) fn forward(&self, texts: &[&[u32]]) -> candle_core::Result<Vec<f32>> {
        let width = self.shape.width;
        let mut x = Vec::with_capacity(texts.iter().map(|text| text.len()).sum::<usize>() * width);
        let mut parts: Vec<Range<usize>> = Vec::with_capacity(texts.len());
        for text in texts {
            let start = x.len();
            for (token, position) in text.iter().zip(self.places(text)) {
                let at = x.len();
                x.extend_from_slice(row(&self.words, *token as usize, width)?);
                let place = row(&self.positions, position, width)?;
                add_scaled(x.get_mut(at..).unwrap_or_default(), place, 1.0);
            }
            parts.push(start..x.len());
        }
        self.norm.apply(&mut x);
        for layer in &self.layers {
            self.work(layer, &mut x, &parts)?;
        }
        Ok(x)
    }

    /// The position of each token.
    fn places(&self, text: &[u32]) -> impl Iterator<Item = usize> {
        let (padding, mut next) = (self.shape.padding, self.shape.first());
        text.iter().map(move |token| match padding {
            Some(padding) if padding == *token => padding as usize,
            _ => {
                next += 1;
                next - 1
            }
        })
    }

    fn work(&self, layer: &Layer, x: &mut [f32], parts: &[Range<usize>]) -> candle_core::Result<()> {
        let (width, inner) = (self.shape.width, self.shape.inner);
        let input = tensor(x, width)?;
        let query = layer.query.forward_tensor(&input)?;
        let key = layer.key.forward_tensor(&input)?;
        let value = layer.value.forward_tensor(&input)?;
        let attended = parts.par_iter().map(|part| {
            let of = |all: &[f32]| self.heads(all.get(part.clone()).unwrap_or_default());
            self.attend(&of(&query)?, &of(&key)?, &of(&value)?)
        });
        let attended = attended.collect::<candle_core::Result<Vec<_>>>()?.concat();
        add_scaled(x, &layer.out.forward(&attended, width)?, 1.0);
        layer.out_norm.apply(x);
        let mut up = layer.up.forward(x, width)?;
        let act = self.shape.activation;
        up.par_chunks_mut(inner).for_each(|row| act.apply(row));
        add_scaled(x, &layer.down.forward(&up, inner)?, 1.0);
        layer.down_norm.apply(x);
        Ok(())
    }

    /// Rows of (tokens, width) as (heads, tokens, width of a head).
    fn heads(&self, rows: &[f32]) -> candle_core::Result<Tensor> {
        let (heads, width) = (self.shape.heads, self.shape.width);
        let tokens = rows.len() / width;
        Tensor::from_slice(rows, (tokens, heads, width / heads), &Device::Cpu)?.transpose(0, 1)
    }

    /// What the tokens of one text take from each other: rows of (tokens, width). So many tokens at a time that their
    /// scores stay small, however long the text is.
    fn attend(&self, query: &Tensor, key: &Tensor, value: &Tensor) -> candle_core::Result<Vec<f32>> {
        let (heads, tokens, head) = query.dims3()?;
        let scale = 1.0 / (head as f32).sqrt();
        let key = key.transpose(1, 2)?;
        let most = (SCORES / (heads * tokens)).clamp(1, tokens);
        let mut out = vec![0.0; heads * tokens * head];
        for (block, out) in out.chunks_mut(most * heads * head).enumerate() {
            let (first, asking) = (block * most, out.len() / (heads * head));
            let scores = query.narrow(1, first, asking)?.matmul(&key)?;
            let mut scores = scores.flatten_all()?.to_vec1::<f32>()?;
            for x in &mut scores {
                *x *= scale;
            }
            if let Some(distances) = &self.distances {
                distances.add(&mut scores, first, asking, tokens);
            }
            scores.chunks_exact_mut(tokens).for_each(softmax);
            let shares = Tensor::from_vec(scores, (heads, asking, tokens), &Device::Cpu)?;
            let taken = shares.matmul(value)?.flatten_all()?.to_vec1::<f32>()?;
            // Back to rows of tokens.
            for (at, taken) in taken.chunks_exact(asking * head).enumerate() {
                for (row, taken) in out.chunks_exact_mut(heads * head).zip(taken.chunks_exact(head)) {
                    if let Some(part) = row.get_mut(at * head..(at + 1) * head) {
                        part.copy_from_slice(taken);
                    }
                }
            }
        }
        Ok(out)
    }
}

/// A row of a table.
fn row(table: &[f32], at: usize, width: usize) -> candle_core::Result<&[f32]> {
    let row = table.get(at * width..(at + 1) * width);
    row.ok_or_else(|| candle_core::Error::msg(format!("there is no row {at}")))
}

impl Distances {
    /// Adds to scores of (heads, asking, tokens): those of the tokens from `first` on.
    fn add(&self, scores: &mut [f32], first: usize, asking: usize, tokens: usize) {
        let far = tokens.saturating_sub(1);
        // From one end of the text to the other.
        let buckets: Vec<usize> = (0..=2 * far)
            .map(|at| self.bucket(at as i64 - far as i64))
            .collect();
        let heads = self.by_bucket.len() / self.buckets;
        for (head, scores) in scores.chunks_exact_mut(asking * tokens).enumerate() {
            for (from, row) in (first..).zip(scores.chunks_exact_mut(tokens)) {
                let seen = buckets.get(far - from..).unwrap_or_default();
                for (score, bucket) in row.iter_mut().zip(seen) {
                    *score += self
                        .by_bucket
                        .get(bucket * heads + head)
                        .copied()
                        .unwrap_or_default();
                }
            }
        }
    }

    /// The bucket of a token so far after another one: half of them are for either direction, and of each half one half
    /// is for one distance each, the other for more and more of them (T5, <https://arxiv.org/abs/1910.10683>).
    fn bucket(&self, distance: i64) -> usize {
        let half = self.buckets / 2;
        let side = if distance > 0 { half } else { 0 };
        let (distance, exact) = (distance.unsigned_abs() as usize, half / 2);
        if distance < exact {
            return side + distance;
        }
        let beyond = (distance as f32 / exact as f32).ln() / (FAR / exact as f32).ln();
        let bucket = exact + (beyond * (half - exact) as f32) as usize;
        side + bucket.min(half - 1)
    }
}
