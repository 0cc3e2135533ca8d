//! The tokens of a model: the bytes each stands for, and which are signs rather than text.

use candle_core::quantized::gguf_file::Value;

use super::head::{Head, number};
use crate::engine::embedded::LoadError;

/// How texts are cut into tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Pairs of bytes are merged in the order of a list (GPT-2).
    Bpe,
    /// Pairs are merged by the score of what they make (SentencePiece).
    Spm,
}

/// What a token is; the numbers are those of GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Text,
    /// A sign of the model, such as the end of a turn: no text.
    Control,
    /// Text that is one token wherever it stands.
    Defined,
    /// One byte.
    Byte,
}

/// The tokens of a model.
#[derive(Debug)]
pub(super) struct Vocabulary {
    pub(super) kind: Kind,
    /// As the file has them, by id.
    pub(super) texts: Vec<String>,
    /// What each adds to a text.
    bytes: Vec<Vec<u8>>,
    sorts: Vec<Sort>,
    /// Of each, where there are scores.
    pub(super) scores: Vec<f32>,
    /// Put before every text.
    pub(super) first: Option<u32>,
    /// After these a reply is over; the first is the usual one.
    pub(super) ends: Vec<u32>,
    /// A text begins with a space.
    pub(super) leading_space: bool,
}

/// Names of tokens that end a turn, in the families that are known here.
const ENDS: [&str; 8] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<eos>",
    "</s>",
];

impl Vocabulary {
    /// Reads it.
    pub(super) fn read(head: &Head) -> Result<Self, LoadError> {
        let kind = match head.need_text("tokenizer.ggml.model")? {
            "gpt2" => Kind::Bpe,
            "llama" => Kind::Spm,
            other => {
                return Err(head.wrong(format!(
                    "its tokenizer `{other}` is not known in process\n  `backend: llamacpp` runs it with llama.cpp"
                )));
            }
        };
        let texts: Vec<String> = head
            .list("tokenizer.ggml.tokens")
            .unwrap_or_default()
            .iter()
            .map(|value| match value {
                Value::String(text) => text.clone(),
                _ => String::new(),
            })
            .collect();
        if texts.is_empty() {
            return Err(head.wrong("its head has no tokens"));
        }
        let types = head.list("tokenizer.ggml.token_type").unwrap_or_default();
        let sorts: Vec<Sort> = (0..texts.len())
            .map(|at| match types.get(at).and_then(number).unwrap_or(1.0) as u32 {
                3 => Sort::Control,
                4 => Sort::Defined,
                6 => Sort::Byte,
                _ => Sort::Text,
            })
            .collect();
        let bytes = texts.iter().zip(&sorts);
        let bytes = bytes.map(|(text, sort)| bytes_of(kind, text, *sort)).collect();
        let scores = head.list("tokenizer.ggml.scores").unwrap_or_default();
        let id = |key: &str| {
            let id = head.number(&format!("tokenizer.ggml.{key}"))?;
            (id >= 0.0 && (id as usize) < texts.len()).then_some(id as u32)
        };
        let mut ends: Vec<u32> = ["eos_token_id", "eot_token_id"]
            .into_iter()
            .filter_map(id)
            .collect();
        let named = texts.iter().zip(&sorts).zip(0_u32..);
        let named =
            named.filter(|((text, sort), _)| **sort == Sort::Control && ENDS.contains(&text.as_str()));
        for (_, id) in named {
            if !ends.contains(&id) {
                ends.push(id);
            }
        }
        if ends.is_empty() {
            return Err(head.wrong("its head names no token that ends a reply"));
        }
        let add_first = head
            .flag("tokenizer.ggml.add_bos_token")
            .unwrap_or(kind == Kind::Spm);
        Ok(Self {
            kind,
            scores: scores
                .iter()
                .map(|score| number(score).unwrap_or_default() as f32)
                .collect(),
            first: id("bos_token_id").filter(|_| add_first),
            ends,
            leading_space: head
                .flag("tokenizer.ggml.add_space_prefix")
                .unwrap_or(kind == Kind::Spm),
            texts,
            bytes,
            sorts,
        })
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    /// What a token adds to a text; nothing if it is a sign.
    pub(super) fn bytes(&self, token: u32) -> &[u8] {
        self.bytes.get(token as usize).map_or(&[], Vec::as_slice)
    }

    /// The text of a token as a template knows it, such as `<s>`.
    pub(super) fn text(&self, token: u32) -> &str {
        self.texts.get(token as usize).map_or("", String::as_str)
    }

    /// The tokens that stand for themselves wherever their text is met.
    pub(super) fn signs(&self) -> impl Iterator<Item = (&str, u32)> {
        let all = self.texts.iter().zip(&self.sorts).zip(0_u32..);
        all.filter(|((text, sort), _)| matches!(sort, Sort::Control | Sort::Defined) && !text.is_empty())
            .map(|((text, _), id)| (text.as_str(), id))
    }

    /// Whether a token is a sign rather than text.
    pub(super) fn is_control(&self, token: u32) -> bool {
        self.sorts.get(token as usize) == Some(&Sort::Control)
    }
}

/// What a token adds to a text.
fn bytes_of(kind: Kind, text: &str, sort: Sort) -> Vec<u8> {
    match (sort, kind) {
        (Sort::Control, _) => Vec::new(),
        (Sort::Byte, _) => {
            let hex = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
            hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())
                .into_iter()
                .collect()
        }
        (Sort::Defined, Kind::Bpe) => text.as_bytes().to_vec(),
        (_, Kind::Spm) => text.replace('\u{2581}', " ").into_bytes(),
        (Sort::Text, Kind::Bpe) => {
            let bytes: Option<Vec<u8>> = text.chars().map(byte_of).collect();
            bytes.unwrap_or_else(|| text.as_bytes().to_vec())
        }
    }
}

/// The byte that a character stands for in the alphabet of GPT-2: printable ones for themselves, the others in their
/// order from U+0100 on (<https://github.com/openai/gpt-2/blob/master/src/encoder.py>).
fn byte_of(c: char) -> Option<u8> {
    let printable = |byte: &u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let code = u32::from(c);
    if printable(&code) {
        return u8::try_from(code).ok();
    }
    let nth = usize::try_from(code.checked_sub(0x100)?).ok()?;
    let byte = (0..=0xFF_u32).filter(|byte| !printable(byte)).nth(nth)?;
    u8::try_from(byte).ok()
}
