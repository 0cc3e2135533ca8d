//! Text generation from GGUF files.

mod choose;
mod constraint;
mod decoder;
mod generate;
mod head;
mod kv;
mod layer;
mod prefix;
mod rope;
mod shape;
mod spm;
mod template;
mod tokenizer;
mod vocabulary;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use llguidance::ParserFactory;

use super::shared::Shared;
use super::{LoadError, Loader, Size, TextGeneration, TextGenerator, workers};
use crate::engine::provision::{Gguf, Need};
use constraint::Grammars;
use decoder::Decoder;
use generate::{Generator, Weights};
use head::Head;
use template::Template;
use tokenizer::Tokenizer;
use vocabulary::Vocabulary;

/// Tokens of a sequence, unless more or fewer are asked for.
const CONTEXT: usize = 4096;
/// Most sequences at the same time.
const SEQUENCES: usize = 16;
/// What keys and values of all sequences may take at least, in bytes.
const KEPT: u64 = 256 << 20;
/// The program's own part: the tokenizer, grammars, and a layer's states.
const WORK: u64 = 64 << 20;
/// Bytes of a number while it is computed with.
const FLOAT: u64 = 4;

/// A text generator in a GGUF file: `llama`, `qwen2`, `qwen3`, `gemma`, `gemma2`, `gemma3`, `phi2` or `phi3`, as its head
/// says. Its tokenizer and its chat template are taken from the file too.
#[derive(Debug)]
pub struct GgufText {
    path: PathBuf,
    context: Option<usize>,
    sequences: Option<usize>,
    thinking: bool,
    /// What workers that are there now share.
    shared: Shared<Common>,
}

/// What all workers of a model have in common.
struct Common {
    weights: Arc<Weights>,
    grammars: Arc<ParserFactory>,
}

impl std::fmt::Debug for Common {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Common")
    }
}

impl GgufText {
    /// The model of a file. Nothing is read before it is needed.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            context: None,
            sequences: None,
            thinking: false,
            shared: Shared::default(),
        }
    }

    /// Tokens of a prompt and its reply together. Default: 4096, or what the model was made for if that is less.
    #[must_use]
    pub fn with_context(self, tokens: usize) -> Self {
        Self {
            context: Some(tokens),
            ..self
        }
    }

    /// Requests that a worker works on at the same time. Default: as many as fit into 256 MiB, at most 16.
    #[must_use]
    pub fn with_sequences(self, sequences: usize) -> Self {
        Self {
            sequences: Some(sequences.max(1)),
            ..self
        }
    }

    /// Whether the model is to think before it answers; one whose chat template does not know of `<think>` cannot be loaded
    /// then. Default: no.
    #[must_use]
    pub fn with_thinking(self, thinking: bool) -> Self {
        Self { thinking, ..self }
    }

    fn context(&self, trained: usize) -> usize {
        self.context.unwrap_or(CONTEXT).min(trained)
    }
}

impl Common {
    fn read(of: &GgufText) -> Result<Self, LoadError> {
        let mut head = Head::open(&of.path)?;
        let tokenizer = Arc::new(Tokenizer::read(&head)?);
        let template = Template::read(&head, &tokenizer.vocabulary, of.thinking)?;
        let decoder = Decoder::read(&mut head)?;
        if decoder.vocabulary() < tokenizer.vocabulary.len() {
            return Err(head.wrong(format!(
                "it has {} tokens, and weights for {}",
                tokenizer.vocabulary.len(),
                decoder.vocabulary()
            )));
        }
        Ok(Self {
            grammars: constraint::factory(&tokenizer)?,
            weights: Arc::new(Weights {
                context: of.context(decoder.context()),
                decoder,
                tokenizer,
                template,
            }),
        })
    }
}

impl Loader<TextGenerator> for GgufText {
    fn size(&self) -> Result<Size, LoadError> {
        size(&self.path, self)
    }

    fn load(&self) -> Result<Box<dyn TextGeneration>, LoadError> {
        let shared = self.shared.get(|| Common::read(self))?;
        let grammars = Grammars::new(Arc::clone(&shared.grammars));
        Ok(Box::new(Held {
            generator: Generator::new(Arc::clone(&shared.weights), grammars),
            _shared: shared,
        }))
    }
}

/// A generator, and what it shares with others for as long as it is there.
struct Held {
    generator: Generator,
    _shared: Arc<Common>,
}

impl TextGeneration for Held {
    fn generate(&mut self, batch: &mut super::Batch<TextGenerator>) {
        self.generator.generate(batch);
    }
}

/// Weights as they are computed with, keys and values of all sequences at their longest, and states of a pass.
fn size(path: &Path, of: &GgufText) -> Result<Size, LoadError> {
    let unreadable =
        |error: &dyn std::fmt::Display| LoadError::new(format!("{} cannot be read: {error}", path.display()));
    let facts = Gguf::read(path).map_err(|error| unreadable(&error))?;
    let head = Head::open(path)?;
    if of.thinking {
        Template::read(&head, &Vocabulary::read(&head)?, true)?;
    }
    let weights = head.weight_bytes();
    let context = of.context(usize::try_from(facts.context).unwrap_or(usize::MAX).max(1)) as u64;
    let each = (facts.kept_per_token * FLOAT * context).max(1);
    let room = KEPT.max(weights / 2);
    let batch = of.sequences.unwrap_or_else(|| {
        usize::try_from(room / each)
            .unwrap_or(SEQUENCES)
            .clamp(1, SEQUENCES)
    });
    let pass = generate::PASS as u64 * (facts.width * 24 + facts.vocabulary / 16) * FLOAT;
    Ok(Size {
        need: Need {
            ram: weights
                .saturating_add(each.saturating_mul(batch as u64))
                .saturating_add(pass)
                .saturating_add(WORK),
            vram: Vec::new(),
        },
        batch,
        workers: workers(weights),
    })
}
