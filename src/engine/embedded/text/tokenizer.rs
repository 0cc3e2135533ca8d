//! From text to tokens and back, as the model's own file says.

use aho_corasick::{AhoCorasick, MatchKind};
use candle_core::quantized::gguf_file::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer as Merges};

use super::head::Head;
use super::spm::Pieces;
use super::vocabulary::{Kind, Vocabulary};
use crate::engine::embedded::LoadError;

/// How texts are cut before pairs are merged, by `tokenizer.ggml.pre`: the patterns that the models were trained with.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// A text's tokens.
pub(super) struct Tokenizer {
    pub(super) vocabulary: Vocabulary,
    signs: AhoCorasick,
    /// By pattern of `signs`.
    sign_ids: Vec<u32>,
    cutter: Cutter,
}

enum Cutter {
    Merges(Box<Merges>),
    Pieces(Pieces),
}

impl Tokenizer {
    /// Reads it.
    pub(super) fn read(head: &Head) -> Result<Self, LoadError> {
        let vocabulary = Vocabulary::read(head)?;
        let (texts, sign_ids): (Vec<String>, Vec<u32>) =
            vocabulary.signs().map(|(text, id)| (text.to_owned(), id)).unzip();
        let signs = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(texts)
            .map_err(|error| head.wrong(format!("its tokens: {error}")))?;
        let cutter = match vocabulary.kind {
            Kind::Bpe => Cutter::Merges(Box::new(merges(head, &vocabulary)?)),
            Kind::Spm => Cutter::Pieces(Pieces::new(&vocabulary)),
        };
        Ok(Self {
            vocabulary,
            signs,
            sign_ids,
            cutter,
        })
    }

    /// The tokens of a prompt, in which the texts of signs are signs.
    pub(super) fn prompt(&self, text: &str) -> Vec<u32> {
        let mut tokens = self.signed(text, true);
        if let Some(first) = self.vocabulary.first
            && tokens.first() != Some(&first)
        {
            tokens.insert(0, first);
        }
        tokens
    }

    /// The tokens of a text that goes on, in which the texts of signs are signs.
    pub(super) fn going_on(&self, text: &str) -> Vec<u32> {
        self.signed(text, false)
    }

    fn signed(&self, text: &str, begins: bool) -> Vec<u32> {
        let mut tokens: Vec<u32> = Vec::new();
        let mut end = 0;
        for sign in self.signs.find_iter(text) {
            self.cut(
                text.get(end..sign.start()).unwrap_or_default(),
                begins,
                &mut tokens,
            );
            tokens.extend(self.sign_ids.get(sign.pattern().as_usize()));
            end = sign.end();
        }
        self.cut(text.get(end..).unwrap_or_default(), begins, &mut tokens);
        tokens
    }

    /// The tokens of a text that goes on, without any signs.
    pub(super) fn text(&self, text: &str) -> Vec<u32> {
        let mut tokens = Vec::new();
        self.cut(text, false, &mut tokens);
        tokens
    }

    fn cut(&self, text: &str, begins: bool, tokens: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        match &self.cutter {
            // It fails on no text: every byte is a token.
            Cutter::Merges(merges) => {
                if let Ok(found) = merges.encode_fast(text, false) {
                    tokens.extend_from_slice(found.get_ids());
                }
            }
            Cutter::Pieces(pieces) => {
                pieces.cut(
                    &self.vocabulary,
                    text,
                    begins && self.vocabulary.leading_space,
                    tokens,
                );
            }
        }
    }
}

fn merges(head: &Head, vocabulary: &Vocabulary) -> Result<Merges, LoadError> {
    let pre = head.text("tokenizer.ggml.pre").unwrap_or("default");
    let (pattern, whole_words) = match pre {
        "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" | "dbrx" => (LLAMA3, true),
        "qwen2" | "deepseek-r1-qwen" => (QWEN2, false),
        "gpt-2" | "gpt2" | "phi-2" | "default" => (GPT2, false),
        other => {
            return Err(head.wrong(format!(
                "its tokenizer cuts words as `{other}`, which is not known in process\n  \
                 `backend: llamacpp` runs it with llama.cpp"
            )));
        }
    };
    let pairs = head.list("tokenizer.ggml.merges").unwrap_or_default().iter();
    let pairs = pairs.filter_map(|value| match value {
        Value::String(text) => text
            .split_once(' ')
            .map(|(left, right)| (left.to_owned(), right.to_owned())),
        _ => None,
    });
    let ids = vocabulary.texts.iter().cloned().zip(0_u32..);
    let wrong = |error: &dyn std::fmt::Display| head.wrong(format!("its tokenizer: {error}"));
    let model = BPE::builder()
        .vocab_and_merges(ids.collect::<tokenizers::models::bpe::Vocab>(), pairs.collect())
        .ignore_merges(whole_words)
        .build()
        .map_err(|error| wrong(&error))?;
    let split = Split::new(
        SplitPattern::Regex(pattern.to_owned()),
        SplitDelimiterBehavior::Isolated,
        false,
    )
    .map_err(|error| wrong(&error))?;
    let bytes = ByteLevel::new(false, false, false);
    let mut merges = Merges::new(model);
    let cutters: Vec<PreTokenizerWrapper> = vec![split.into(), bytes.into()];
    merges.with_pre_tokenizer(Some(Sequence::new(cutters)));
    Ok(merges)
}
