//! One layer of a decoder.

use rayon::prelude::*;

use super::head::Head;
use super::kv::Kept;
use super::shape::{Family, Shape};
use crate::engine::embedded::LoadError;
use crate::engine::embedded::linear::{Linear, tensor};
use crate::engine::embedded::math::{Norm, add_scaled, bend, dot, gelu, silu, softmax};

/// Queries, keys and values.
#[derive(Clone, Debug)]
enum Qkv {
    Apart { q: Linear, k: Linear, v: Linear },
    Fused(Linear),
}

#[derive(Clone, Debug)]
struct FeedForward {
    /// None where `up` holds the gate too, or there is none.
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
}

/// One layer.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    attention_norm: Norm,
    qkv: Qkv,
    query_norm: Option<Norm>,
    key_norm: Option<Norm>,
    out: Linear,
    after_attention: Option<Norm>,
    /// None where both parts work on the same input.
    feed_norm: Option<Norm>,
    feed: FeedForward,
    after_feed: Option<Norm>,
    /// Tokens that it sees; none: all.
    window: Option<usize>,
    /// Which of the shape's ways to turn it uses.
    near: bool,
}

/// The new tokens of one sequence, among those of a batch.
pub(super) struct Part<'a> {
    /// How many.
    pub(super) tokens: usize,
    /// What the sequence has seen before.
    pub(super) kept: &'a mut Kept,
}

/// `name.weight`, of (rows, columns), and `name.bias`, if there is one.
pub(super) fn linear(head: &mut Head, name: &str, shape: (usize, usize)) -> Result<Linear, LoadError> {
    let weight = head.matrix(&format!("{name}.weight"), shape)?;
    Ok(Linear::new(
        weight,
        head.maybe_vector(&format!("{name}.bias"), shape.0)?,
    ))
}

/// A norm of a model, of `len` numbers.
pub(super) fn norm(head: &mut Head, name: &str, len: usize, eps: f32) -> Result<Norm, LoadError> {
    let weight = head.vector(&format!("{name}.weight"), len)?;
    Ok(match head.maybe_vector(&format!("{name}.bias"), len)? {
        Some(bias) => Norm::Layer { weight, bias, eps },
        None => Norm::Rms { weight, eps },
    })
}

impl Layer {
    /// Reads layer `at`.
    pub(super) fn read(head: &mut Head, shape: &Shape, at: usize) -> Result<Self, LoadError> {
        let name = |part: &str| format!("blk.{at}.{part}");
        let (width, queries, kept, inner) =
            (shape.width, shape.heads * shape.head, shape.kept(), shape.inner);
        let eps = shape.eps;
        let maybe = |head: &mut Head, part: &str, len: usize| {
            let name = name(part);
            head.has(&format!("{name}.weight"))
                .then(|| norm(head, &name, len, eps))
                .transpose()
        };
        let qkv = if head.has(&name("attn_qkv.weight")) {
            Qkv::Fused(linear(head, &name("attn_qkv"), (queries + 2 * kept, width))?)
        } else {
            Qkv::Apart {
                q: linear(head, &name("attn_q"), (queries, width))?,
                k: linear(head, &name("attn_k"), (kept, width))?,
                v: linear(head, &name("attn_v"), (kept, width))?,
            }
        };
        let gate = head
            .has(&name("ffn_gate.weight"))
            .then(|| linear(head, &name("ffn_gate"), (inner, width)))
            .transpose()?;
        let up = if shape.family == Family::Phi3 {
            2 * inner
        } else {
            inner
        };
        let windowed = shape.is_windowed(at);
        Ok(Self {
            attention_norm: norm(head, &name("attn_norm"), width, eps)?,
            qkv,
            query_norm: maybe(head, "attn_q_norm", shape.head)?,
            key_norm: maybe(head, "attn_k_norm", shape.head)?,
            out: linear(head, &name("attn_output"), (width, queries))?,
            after_attention: maybe(head, "post_attention_norm", width)?,
            feed_norm: maybe(head, "ffn_norm", width)?,
            feed: FeedForward {
                gate,
                up: linear(head, &name("ffn_up"), (up, width))?,
                down: linear(head, &name("ffn_down"), (width, inner))?,
            },
            after_feed: maybe(head, "post_ffw_norm", width)?,
            window: shape.window.filter(|_| windowed),
            near: windowed,
        })
    }

    /// Works on the states `x` of all new tokens, part after part; `turns` are those of each token.
    pub(super) fn forward(
        &self,
        shape: &Shape,
        at: usize,
        x: &mut Vec<f32>,
        parts: &mut [Part<'_>],
        turns: &[Vec<Vec<(f32, f32)>>; 2],
    ) -> candle_core::Result<()> {
        let mut input = x.clone();
        self.attention_norm.apply(&mut input);
        let mut attended = self.attend(shape, at, &input, parts, turns)?;
        if let Some(norm) = &self.after_attention {
            norm.apply(&mut attended);
        }
        add_all(x, &attended);
        if let Some(norm) = &self.feed_norm {
            input.clone_from(x);
            norm.apply(&mut input);
        }
        let mut fed = self.feed(shape, &input)?;
        if let Some(norm) = &self.after_feed {
            norm.apply(&mut fed);
        }
        add_all(x, &fed);
        Ok(())
    }

    fn attend(
        &self,
        shape: &Shape,
        at: usize,
        input: &[f32],
        parts: &mut [Part<'_>],
        turns: &[Vec<Vec<(f32, f32)>>; 2],
    ) -> candle_core::Result<Vec<f32>> {
        let (queries, kept) = (shape.heads * shape.head, shape.kept());
        let input = tensor(input, shape.width)?;
        let (mut q, mut k, v) = match &self.qkv {
            Qkv::Apart { q, k, v } => (
                q.forward_tensor(&input)?,
                k.forward_tensor(&input)?,
                v.forward_tensor(&input)?,
            ),
            Qkv::Fused(all) => split(&all.forward_tensor(&input)?, queries, kept),
        };
        if let Some(norm) = &self.query_norm {
            norm.apply(&mut q);
        }
        if let Some(norm) = &self.key_norm {
            norm.apply(&mut k);
        }
        let [all, near] = &shape.rope;
        let [all_turns, near_turns] = turns;
        let (rope, turns) = if self.near {
            (near, near_turns)
        } else {
            (all, all_turns)
        };
        let rows = q.chunks_exact_mut(queries).zip(k.chunks_exact_mut(kept));
        for ((q, k), turns) in rows.zip(turns) {
            rope.turn(q, shape.head, turns);
            rope.turn(k, shape.head, turns);
        }
        let mut attended = vec![0.0; q.len()];
        let (mut q, mut k, mut v, mut out) =
            (q.as_slice(), k.as_slice(), v.as_slice(), attended.as_mut_slice());
        for part in parts {
            let take = |all: &mut &[f32], each: usize| -> Vec<f32> {
                let (own, rest) = all.split_at(part.tokens * each);
                let own = own.to_vec();
                *all = rest;
                own
            };
            let asked = take(&mut q, queries);
            let before = part.kept.len();
            if let Some(keys) = part.kept.own.keys.get_mut(at) {
                keys.extend(take(&mut k, kept));
            }
            if let Some(values) = part.kept.own.values.get_mut(at) {
                values.extend(take(&mut v, kept));
            }
            let (own, rest) = std::mem::take(&mut out).split_at_mut(part.tokens * queries);
            out = rest;
            let past = Past::of(part.kept, at, kept);
            own.par_chunks_exact_mut(queries)
                .zip(asked.par_chunks_exact(queries))
                .enumerate()
                .for_each(|(i, (out, asked))| self.attend_one(shape, &past, before + i, asked, out));
        }
        self.out.forward(&attended, queries)
    }

    /// What the token at `position` takes from those before it and itself.
    fn attend_one(&self, shape: &Shape, past: &Past<'_>, position: usize, asked: &[f32], out: &mut [f32]) {
        let from = self
            .window
            .map_or(0, |window| (position + 1).saturating_sub(window));
        let group = shape.heads / shape.kept_heads;
        let mut scores = Vec::with_capacity(position + 1 - from);
        let heads = asked
            .chunks_exact(shape.head)
            .zip(out.chunks_exact_mut(shape.head));
        for (head, (asked, out)) in heads.enumerate() {
            let start = head / group * shape.head;
            scores.clear();
            let keys = past.rows(&past.keys, from, position, start, shape.head);
            scores.extend(keys.map(|key| dot(asked, key) * shape.attention_scale));
            if let Some(cap) = shape.attention_cap {
                bend(&mut scores, cap);
            }
            softmax(&mut scores);
            let values = past.rows(&past.values, from, position, start, shape.head);
            for (value, share) in values.zip(&scores) {
                add_scaled(out, value, *share);
            }
        }
    }

    fn feed(&self, shape: &Shape, input: &[f32]) -> candle_core::Result<Vec<f32>> {
        let input = tensor(input, shape.width)?;
        let act = if shape.family.is_gemma() || shape.family == Family::Phi2 {
            gelu
        } else {
            silu
        };
        let mut up = self.feed.up.forward_tensor(&input)?;
        if let Some(gate) = &self.feed.gate {
            let gate = gate.forward_tensor(&input)?;
            for (up, gate) in up.iter_mut().zip(gate) {
                *up *= act(gate);
            }
        } else if shape.family == Family::Phi3 {
            up = up
                .chunks_exact(2 * shape.inner)
                .flat_map(|row| {
                    let (gate, up) = row.split_at(shape.inner);
                    gate.iter().zip(up).map(|(gate, up)| act(*gate) * up)
                })
                .collect();
        } else {
            up.iter_mut().for_each(|x| *x = act(*x));
        }
        self.feed.down.forward(&up, shape.inner)
    }
}

fn add_all(to: &mut [f32], more: &[f32]) {
    add_scaled(to, more, 1.0);
}

/// Rows of queries, keys and values from rows that hold all three.
fn split(all: &[f32], queries: usize, kept: usize) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
    for row in all.chunks_exact(queries + 2 * kept) {
        let (query, rest) = row.split_at(queries);
        let (key, value) = rest.split_at(kept);
        q.extend_from_slice(query);
        k.extend_from_slice(key);
        v.extend_from_slice(value);
    }
    (q, k, v)
}

/// The keys and values of a sequence in one layer: those it shares, then its own.
struct Past<'a> {
    keys: [&'a [f32]; 2],
    values: [&'a [f32]; 2],
    shared: usize,
    kept: usize,
}

impl<'a> Past<'a> {
    fn of(of: &'a Kept, layer: usize, kept: usize) -> Self {
        let get = |all: &'a [Vec<f32>]| all.get(layer).map_or(&[] as &[f32], Vec::as_slice);
        let shared = of.shared.as_deref();
        Self {
            keys: [shared.map_or(&[], |it| get(&it.keys)), get(&of.own.keys)],
            values: [shared.map_or(&[], |it| get(&it.values)), get(&of.own.values)],
            shared: shared.map_or(0, super::kv::Segment::len),
            kept,
        }
    }

    /// The rows of positions `from..=to`, of each the `len` numbers from `start` on.
    fn rows(
        &self,
        of: &[&'a [f32]; 2],
        from: usize,
        to: usize,
        start: usize,
        len: usize,
    ) -> impl Iterator<Item = &'a [f32]> + use<'a> {
        let [shared, own] = *of;
        let rows = |rows: &'a [f32], kept: usize, from: usize, to: usize| {
            let rows = rows.get(from * kept..to * kept).unwrap_or_default();
            rows.chunks_exact(kept)
                .filter_map(move |row| row.get(start..start + len))
        };
        let split = |at: usize| (at.min(self.shared), at.saturating_sub(self.shared));
        let ((shared_from, own_from), (shared_to, own_to)) = (split(from), split(to + 1));
        rows(shared, self.kept, shared_from, shared_to).chain(rows(own, self.kept, own_from, own_to))
    }
}
