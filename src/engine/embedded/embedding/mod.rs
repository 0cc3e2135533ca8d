//! Text embedding from safetensors folders.

mod encoder;
mod folder;
mod pooling;
mod weights;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;
use tokenizers::Tokenizer;
use tokenizers::normalizers::{Lowercase, Sequence};

use super::shared::Shared;
use super::{Batch, Embedded, LoadError, Loader, ModelError, Size, TextEmbedder, TextEmbedding, workers};
use crate::engine::provision::Need;
use encoder::Encoder;
use folder::Folder;
use pooling::Head;
use weights::Weights;

/// Texts that a worker takes at the same time, unless more or fewer are asked for.
const TEXTS: usize = 32;
/// Tokens of one pass, unless one text has more: what is computed with then stays in a processor's cache.
const PASS: usize = 512;
/// The program's own part.
const WORK: u64 = 64 << 20;
/// Bytes of a tokenizer for one of its file's.
const TOKENIZER: u64 = 32;
/// Bytes of a number while it is computed with.
const FLOAT: u64 = 4;

/// An embedding model of BERT's family in a folder of safetensors, as sentence-transformers and transformers save it:
/// `bert`, `roberta`, `xlm-roberta`, `camembert`, `distilbert` or `mpnet`, as its `config.json` says. How a text's vector
/// is made of those of its tokens its `modules.json` says; without one it is their mean.
///
/// ```no_run
/// use std::sync::Arc;
/// use chainette::engine::embedded::{BertEmbedding, PoolConfig, Pools, TextEmbedder};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let pools = Pools::new();
/// let embedder = pools.add::<TextEmbedder>(
///     PoolConfig::new("embedder"),
///     Arc::new(BertEmbedding::new("models/all-MiniLM-L6-v2")),
/// );
/// pools.start();
/// let reply = embedder.ask("It broke after two days.".to_owned()).await?;
/// println!("{} numbers of {} tokens", reply.vector.len(), reply.tokens);
/// pools.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct BertEmbedding {
    path: PathBuf,
    context: Option<usize>,
    texts: Option<usize>,
    /// What workers that are there now share.
    shared: Shared<Model>,
}

impl BertEmbedding {
    /// The model of a folder. Nothing is read before it is needed.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            context: None,
            texts: None,
            shared: Shared::default(),
        }
    }

    /// Tokens of a text. Default, and most: what the model was made for.
    #[must_use]
    pub fn with_context(self, tokens: usize) -> Self {
        Self {
            context: Some(tokens),
            ..self
        }
    }

    /// Texts that a worker takes at the same time. Default: 32.
    #[must_use]
    pub fn with_texts(self, texts: usize) -> Self {
        Self {
            texts: Some(texts.max(1)),
            ..self
        }
    }

    /// What the folder says, with what its user says.
    fn folder(&self) -> Result<Folder, LoadError> {
        let mut folder = Folder::read(&self.path)?;
        if let Some(tokens) = self.context {
            folder.context = folder.context.min(tokens);
        }
        Ok(folder)
    }
}

impl Loader<TextEmbedder> for BertEmbedding {
    fn size(&self) -> Result<Size, LoadError> {
        let folder = self.folder()?;
        let weights = Weights::open(&folder.weights, encoder::WORDS)?.bytes();
        let shape = &folder.shape;
        let cut = std::fs::metadata(&folder.tokenizer).map_or(0, |meta| meta.len());
        // States, queries, keys, values and what comes of them; and the scores of one text for each thread.
        let tokens = PASS.max(folder.context) as u64;
        let row = (shape.width as u64)
            .saturating_mul(8)
            .saturating_add(shape.inner as u64);
        let scores = (encoder::SCORES as u64).max((shape.heads as u64).saturating_mul(folder.context as u64));
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
        let numbers = tokens
            .saturating_mul(row)
            .saturating_add(scores.saturating_mul(threads).saturating_mul(2));
        Ok(Size {
            need: Need {
                ram: weights
                    .saturating_add(cut.saturating_mul(TOKENIZER))
                    .saturating_add(numbers.saturating_mul(FLOAT))
                    .saturating_add(WORK),
                vram: Vec::new(),
            },
            batch: self.texts.unwrap_or(TEXTS),
            workers: workers(weights),
        })
    }

    fn load(&self) -> Result<Box<dyn TextEmbedding>, LoadError> {
        let model = self.shared.get(|| Model::read(self))?;
        Ok(Box::new(Worker(model)))
    }
}

/// A model as it is loaded.
struct Model {
    tokenizer: Tokenizer,
    encoder: Encoder,
    head: Head,
    context: usize,
    prompt: String,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Model")
    }
}

impl Model {
    fn read(of: &BertEmbedding) -> Result<Self, LoadError> {
        let folder = of.folder()?;
        Ok(Self {
            tokenizer: tokenizer(&folder)?,
            encoder: Encoder::read(&folder)?,
            head: Head::read(&folder.after)?,
            context: folder.context,
            prompt: folder.prompt,
        })
    }

    /// The tokens of a text.
    fn tokens(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let text = format!("{}{text}", self.prompt);
        let cut = self.tokenizer.encode_fast(text, true);
        let cut =
            cut.map_err(|error| ModelError::Refused(format!("the text cannot be cut into tokens: {error}")))?;
        let tokens = cut.get_ids().to_vec();
        if tokens.len() > self.context {
            return Err(ModelError::TooLong {
                tokens: tokens.len(),
                context: self.context,
            });
        }
        let known = self.encoder.vocabulary();
        if let Some(unknown) = tokens.iter().find(|token| **token as usize >= known) {
            return Err(ModelError::Refused(format!(
                "the tokenizer has a token {unknown}, and the model {known} tokens"
            )));
        }
        match tokens.is_empty() {
            true => Err(ModelError::Refused("the text has no tokens".to_owned())),
            false => Ok(tokens),
        }
    }

    /// The vectors of some texts, which share a pass.
    fn vectors(&self, texts: &[&[u32]]) -> candle_core::Result<Vec<Vec<f32>>> {
        let width = self.encoder.width();
        let states = self.encoder.forward(texts)?;
        let mut rest = states.as_slice();
        let vectors = texts.iter().map(|text| {
            let (own, after) = rest.split_at(text.len() * width);
            rest = after;
            self.head.vector(own, width)
        });
        vectors.collect()
    }
}

/// The tokenizer of a folder. What it says of lengths is not followed: a text that is too long is an error, not cut.
fn tokenizer(folder: &Folder) -> Result<Tokenizer, LoadError> {
    let path = &folder.tokenizer;
    let wrong = |error: &dyn std::fmt::Display| {
        LoadError::new(format!(
            "{} cannot be used: {error}\n  download the model again",
            path.display()
        ))
    };
    let text = std::fs::read(path).map_err(|error| wrong(&error))?;
    let mut tokenizer = Tokenizer::from_bytes(&text).map_err(|error| wrong(&error))?;
    tokenizer.with_truncation(None).map_err(|error| wrong(&error))?;
    tokenizer.with_padding(None);
    if folder.lower {
        let others = tokenizer.get_normalizer().cloned();
        let all = std::iter::once(Lowercase.into()).chain(others).collect();
        tokenizer
            .with_normalizer(Some(Sequence::new(all)))
            .map_err(|error| wrong(&error))?;
    }
    Ok(tokenizer)
}

/// A worker's model: all of it is shared.
struct Worker(Arc<Model>);

impl TextEmbedding for Worker {
    fn embed(&mut self, batch: &mut Batch<TextEmbedder>) {
        let model = &*self.0;
        let texts: Vec<Option<Arc<String>>> = (0..batch.len()).map(|at| batch.request(at)).collect();
        let cut = texts.par_iter().map(|text| Some(model.tokens(text.as_deref()?)));
        let cut: Vec<Option<Result<Vec<u32>, ModelError>>> = cut.collect();
        let mut waiting: Vec<(usize, Vec<u32>)> = Vec::new();
        for (at, cut) in cut.into_iter().enumerate() {
            match cut {
                Some(Ok(tokens)) => waiting.push((at, tokens)),
                Some(Err(error)) => batch.answer(at, Err(error)),
                None => {}
            }
        }
        let mut rest = waiting.as_slice();
        while !rest.is_empty() {
            let (pass, after) = rest.split_at(pass(rest));
            rest = after;
            answer(model, batch, pass);
        }
    }
}

/// How many of those that wait share the next pass: at least one.
fn pass(waiting: &[(usize, Vec<u32>)]) -> usize {
    let mut tokens = 0;
    let fits = waiting.iter().take_while(|(_, text)| {
        tokens += text.len();
        tokens <= PASS
    });
    fits.count().max(1)
}

/// Answers those of a pass that somebody still waits for.
fn answer(model: &Model, batch: &mut Batch<TextEmbedder>, pass: &[(usize, Vec<u32>)]) {
    let now = Instant::now();
    let mut texts: Vec<(usize, &[u32])> = Vec::new();
    for (at, tokens) in pass {
        if batch.is_wanted(*at) && batch.deadline(*at) > now {
            texts.push((*at, tokens));
        } else {
            batch.answer(*at, Err(ModelError::Late));
        }
    }
    let tokens: Vec<&[u32]> = texts.iter().map(|(_, tokens)| *tokens).collect();
    if tokens.is_empty() {
        return;
    }
    match model.vectors(&tokens) {
        Ok(vectors) => {
            for ((at, tokens), vector) in texts.into_iter().zip(vectors) {
                let tokens = tokens.len();
                batch.answer(at, Ok(Embedded { vector, tokens }));
            }
        }
        Err(error) => {
            let why = ModelError::Failed(format!("the model cannot compute: {error}"));
            for (at, _) in texts {
                batch.answer(at, Err(why.clone()));
            }
        }
    }
}
