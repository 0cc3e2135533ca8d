//! What a decoder looks like, read from the head of its file: the families differ in a few points, and these are all.
//!
//! Which point belongs to which family follows llama.cpp, whose files these are
//! (<https://github.com/ggml-org/llama.cpp/tree/master/src/models>).

use super::head::Head;
use crate::engine::embedded::LoadError;

/// More layers, or numbers of a state, than any model has: a file that says so is damaged.
const MOST: usize = 1 << 20;

/// The kinds of models that are known here, by `general.architecture`.
const FAMILIES: [(&str, Family); 8] = [
    ("llama", Family::Llama),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("gemma", Family::Gemma),
    ("gemma2", Family::Gemma2),
    ("gemma3", Family::Gemma3),
    ("phi2", Family::Phi2),
    ("phi3", Family::Phi3),
];

/// A kind of model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Qwen2,
    Qwen3,
    Gemma,
    Gemma2,
    Gemma3,
    Phi2,
    Phi3,
}

impl Family {
    /// Gemma, of whatever generation.
    pub(super) fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma | Self::Gemma2 | Self::Gemma3)
    }

    /// Of so many layers in turn all but the last (Gemma 3) look at a window only.
    fn window_pattern(self) -> usize {
        match self {
            Self::Gemma2 => 2,
            Self::Gemma3 => 6,
            _ => 0,
        }
    }
}

/// How positions turn keys and queries.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rope {
    /// Numbers of a head that are turned.
    pub(super) dims: usize,
    /// The angle of each pair per position.
    pub(super) steps: Vec<f32>,
    /// Pairs are (i, i + dims/2), else (2i, 2i + 1).
    pub(super) halves: bool,
}

/// The numbers of a decoder.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) family: Family,
    pub(super) layers: usize,
    /// Numbers of a token's state.
    pub(super) width: usize,
    pub(super) heads: usize,
    /// Heads of keys and values.
    pub(super) kept_heads: usize,
    /// Numbers of a head.
    pub(super) head: usize,
    /// Numbers inside the feed-forward part.
    pub(super) inner: usize,
    pub(super) eps: f32,
    /// What scores are multiplied with.
    pub(super) attention_scale: f32,
    /// Scores are bent to stay below this.
    pub(super) attention_cap: Option<f32>,
    /// Logits are bent to stay below this.
    pub(super) logit_cap: Option<f32>,
    /// Tokens that a layer with a window sees.
    pub(super) window: Option<usize>,
    /// What embeddings are multiplied with.
    pub(super) embedding_scale: f32,
    /// Tokens that the model was made for.
    pub(super) context: usize,
    /// Of layers without and with a window.
    pub(super) rope: [Rope; 2],
}

impl Shape {
    /// Reads it.
    pub(super) fn of(head: &mut Head) -> Result<Self, LoadError> {
        let architecture = head.architecture.clone();
        let known = FAMILIES.iter().find(|(name, _)| *name == architecture);
        let Some((_, family)) = known else {
            let names: Vec<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
            return Err(head.wrong(format!(
                "models of the kind `{architecture}` do not run in process; there is {}\n  \
                 `backend: llamacpp` runs it with llama.cpp",
                names.join(", ")
            )));
        };
        let family = *family;
        if head.count("expert_count").is_some_and(|experts| experts > 1) {
            return Err(head.wrong(
                "mixtures of experts do not run in process\n  `backend: llamacpp` runs it with llama.cpp",
            ));
        }
        let layers = head.need_count("block_count")?;
        let width = head.need_count("embedding_length")?;
        let heads = head.need_count("attention.head_count")?;
        let kept_heads = head.count("attention.head_count_kv").unwrap_or(heads);
        let head_len = head.count("attention.key_length").unwrap_or(width / heads);
        if width > MOST || heads > MOST || head_len > MOST || layers > MOST {
            return Err(head.wrong("its head names numbers that no model has"));
        }
        if kept_heads == 0
            || !heads.is_multiple_of(kept_heads)
            || head_len == 0
            || !head_len.is_multiple_of(2)
        {
            return Err(head.wrong(format!(
                "{heads} heads of {head_len} numbers over {kept_heads} kept ones cannot be"
            )));
        }
        if head
            .count("attention.value_length")
            .is_some_and(|len| len != head_len)
        {
            return Err(head.wrong("keys and values of different lengths do not run in process"));
        }
        let own_scale = match (family, layers) {
            // The 27B models of Gemma 2 and 3.
            (Family::Gemma2, 46) | (Family::Gemma3, 62) => width / heads,
            _ => head_len,
        };
        let eps = head
            .own_number("attention.layer_norm_rms_epsilon")
            .or_else(|| head.own_number("attention.layer_norm_epsilon"))
            .unwrap_or(1e-5);
        let windowed = family.window_pattern() > 0;
        Ok(Self {
            family,
            layers,
            width,
            heads,
            kept_heads,
            head: head_len,
            inner: head.need_count("feed_forward_length")?,
            eps: eps as f32,
            attention_scale: 1.0 / (own_scale as f32).sqrt(),
            attention_cap: head.own_number("attn_logit_softcapping").map(|cap| cap as f32),
            logit_cap: head.own_number("final_logit_softcapping").map(|cap| cap as f32),
            window: windowed
                .then(|| head.count("attention.sliding_window"))
                .flatten()
                .filter(|window| *window > 0),
            embedding_scale: if family.is_gemma() {
                (width as f32).sqrt()
            } else {
                1.0
            },
            context: head.need_count("context_length")?,
            rope: ropes(head, family, head_len)?,
        })
    }

    /// Whether a layer sees a window only.
    pub(super) fn is_windowed(&self, layer: usize) -> bool {
        let pattern = self.family.window_pattern();
        self.window.is_some() && pattern > 0 && layer % pattern < pattern - 1
    }

    /// Numbers of keys (and as many of values) that a layer keeps of a token.
    pub(super) fn kept(&self) -> usize {
        self.kept_heads * self.head
    }
}

fn ropes(head: &mut Head, family: Family, head_len: usize) -> Result<[Rope; 2], LoadError> {
    let dims = head.count("rope.dimension_count").unwrap_or(head_len);
    if dims > head_len || dims == 0 || !dims.is_multiple_of(2) {
        return Err(head.wrong(format!("{dims} turned numbers of a head of {head_len} cannot be")));
    }
    let base = head.own_number("rope.freq_base").unwrap_or(10_000.0);
    let slower = match head.own_text("rope.scaling.type") {
        None | Some("none") => 1.0,
        Some("linear") => head.own_number("rope.scaling.factor").unwrap_or(1.0),
        Some(other) => {
            return Err(head.wrong(format!(
                "positions scaled by `{other}` do not run in process\n  `backend: llamacpp` runs it with llama.cpp"
            )));
        }
    };
    if head.has("rope_factors_long.weight") {
        return Err(head.wrong(
            "positions scaled by `longrope` do not run in process\n  \
             take the model for short contexts, or `backend: llamacpp`",
        ));
    }
    let factors = head.maybe_vector("rope_freqs.weight", dims / 2)?;
    let rope = |base: f64, slower: f64, factors: Option<&[f32]>| Rope {
        dims,
        steps: (0..dims / 2)
            .map(|i| {
                let factor = factors
                    .and_then(|factors| factors.get(i))
                    .map_or(1.0, |f| f64::from(*f));
                (base.powf(-2.0 * i as f64 / dims as f64) / slower / factor) as f32
            })
            .collect(),
        halves: family != Family::Llama,
    };
    let all = rope(base, slower, factors.as_deref());
    let near = match family {
        Family::Gemma3 => rope(10_000.0, 1.0, None),
        _ => all.clone(),
    };
    Ok([all, near])
}
