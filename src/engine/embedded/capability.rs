//! What kinds of models there are: five capabilities, each a trait that a model has, and how requests reach it.

use std::sync::Arc;

use serde_json::Value;

use super::batch::Batch;
use crate::engine::Message;
use crate::engine::provision::Need;

/// A kind of model: what it is asked, and what it answers. A [`Pool`](super::Pool) knows no more of it than this.
pub trait Capability: Sized + 'static {
    /// Its name in messages.
    const NAME: &'static str;
    /// What it is asked.
    type Request: Send + Sync + 'static;
    /// What it answers.
    type Reply: Send + 'static;
    /// A model, which one worker owns.
    type Model: ?Sized;

    /// Answers a batch. What is left without an answer when it returns has failed.
    fn answer(model: &mut Self::Model, batch: &mut Batch<Self>);

    /// Tokens of the request that were not worked on again for a reply: earlier requests began with them.
    fn reused_tokens(_reply: &Self::Reply) -> u64 {
        0
    }
}

/// Where a pool's workers get their models from. Both calls block as long as they must.
pub trait Loader<C: Capability>: Send + Sync {
    /// What a worker takes, as far as the model's files tell.
    ///
    /// # Errors
    /// The files are missing, or are no model of this kind.
    fn size(&self) -> Result<Size, LoadError>;

    /// Loads a model, on the thread that will own it.
    ///
    /// # Errors
    /// Why it cannot.
    fn load(&self) -> Result<Box<C::Model>, LoadError>;

    /// What [`Loader::size`] is at while it takes long, in a few words: `fetching FILE: 12 MB of 80 MB`. None: nothing
    /// worth telling.
    fn doing(&self) -> Option<String> {
        None
    }
}

/// What a worker takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size {
    /// Of the machine.
    pub need: Need,
    /// Requests that it works on at the same time.
    pub batch: usize,
    /// Workers that are worth having, unless the pool is told how many.
    pub workers: usize,
}

/// Why a model cannot be loaded, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LoadError {
    /// What is wrong; a line that begins with two spaces says what to do.
    pub message: Arc<str>,
}

impl LoadError {
    /// With this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into().into(),
        }
    }
}

/// Why a model gave no answer to one request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// The request is longer than the model's context, in tokens.
    #[error("the request has {tokens} tokens, and the model takes {context}")]
    TooLong {
        /// Tokens of the request.
        tokens: usize,
        /// Tokens that the model takes, prompt and reply together.
        context: usize,
    },
    /// The model cannot take this request, whatever is tried.
    #[error("{0}")]
    Refused(String),
    /// The reply was not done in time.
    #[error("the reply took too long")]
    Late,
    /// It failed this time.
    #[error("{0}")]
    Failed(String),
}

/// Writes text.
pub trait TextGeneration {
    /// Answers prompts.
    fn generate(&mut self, batch: &mut Batch<TextGenerator>);
}

/// The capability of [`TextGeneration`].
///
/// ```
/// use std::sync::Arc;
/// use chainette::engine::Message;
/// use chainette::engine::embedded::{Generate, GgufText, PoolConfig, Pools, TextGenerator};
/// use serde_json::json;
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pools = Pools::new();
/// let model = Arc::new(GgufText::new("examples/models/reviews.gguf"));
/// let pool = pools.add::<TextGenerator>(PoolConfig::new("reviews"), model);
/// pools.start();
/// let reply = pool
///     .ask(Generate {
///         messages: vec![
///             Message::system("Grade the product review."),
///             Message::user("Review: It broke after two days."),
///         ],
///         schema: Some(Arc::new(json!({
///             "type": "object",
///             "properties": {"sentiment": {"enum": ["positive", "negative"]}},
///             "required": ["sentiment"],
///             "additionalProperties": false,
///         }))),
///         ..Generate::default()
///     })
///     .await?;
/// assert_eq!(reply.text, r#"{"sentiment":"negative"}"#);
/// pools.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub enum TextGenerator {}

impl Capability for TextGenerator {
    const NAME: &'static str = "text generation";
    type Request = Generate;
    type Reply = Generated;
    type Model = dyn TextGeneration;

    fn answer(model: &mut Self::Model, batch: &mut Batch<Self>) {
        model.generate(batch);
    }

    fn reused_tokens(reply: &Generated) -> u64 {
        reply.reused_tokens as u64
    }
}

/// What a text generator is asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generate {
    /// The conversation, which the model's chat template turns into a prompt.
    pub messages: Vec<Message>,
    /// A JSON Schema that the reply is held to; none for free text. Equal schemas should be one [`Arc`]: they are
    /// prepared once.
    pub schema: Option<Arc<Value>>,
    /// How tokens are chosen.
    pub sampling: Choice,
    /// The most tokens of the reply; none: as many as the context has room for.
    pub max_tokens: Option<usize>,
    /// The reply ends before the first of these.
    pub stop: Vec<String>,
}

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// 0: always the likeliest.
    pub temperature: f32,
    /// Only the likeliest that together have this share, 0..=1.
    pub top_p: f32,
    /// Only so many of the likeliest; 0: all.
    pub top_k: usize,
    /// Only those with at least this share of the likeliest one's, 0..=1.
    pub min_p: f32,
    /// Where the random numbers start; the same seed gives the same reply.
    pub seed: u64,
}

impl Default for Choice {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: 0,
        }
    }
}

/// Why a reply ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// It was done.
    #[default]
    Done,
    /// `max_tokens`, or the context, cut it.
    Cut,
    /// It ran in white space or repetition, and was cut there; see [`crate::engine::runaway`].
    Runaway,
}

/// What a text generator answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generated {
    /// The text.
    pub text: String,
    /// What the model thought before that, if it was to think.
    pub reasoning: Option<String>,
    /// Why it ended.
    pub ending: Ending,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that an earlier one began with, and that were not worked on again.
    pub reused_tokens: usize,
    /// Tokens of the reply.
    pub reply_tokens: usize,
}

/// A vector with its cost.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Embedded {
    /// The vector; of one model all have the same length.
    pub vector: Vec<f32>,
    /// Tokens, or patches of an image.
    pub tokens: usize,
}

/// Turns texts into vectors.
pub trait TextEmbedding {
    /// Answers texts.
    fn embed(&mut self, batch: &mut Batch<TextEmbedder>);
}

/// The capability of [`TextEmbedding`].
///
/// ```
/// use std::sync::Arc;
/// use chainette::engine::embedded::{BertEmbedding, PoolConfig, Pools, TextEmbedder};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pools = Pools::new();
/// let model = Arc::new(BertEmbedding::new("tests/it/vectors/bert"));
/// let pool = pools.add::<TextEmbedder>(PoolConfig::new("vectors"), model);
/// pools.start();
/// let reply = pool.ask("It broke after two days.".to_owned()).await?;
/// assert_eq!(reply.vector.len(), 24);
/// pools.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub enum TextEmbedder {}

impl Capability for TextEmbedder {
    const NAME: &'static str = "text embedding";
    type Request = String;
    type Reply = Embedded;
    type Model = dyn TextEmbedding;

    fn answer(model: &mut Self::Model, batch: &mut Batch<Self>) {
        model.embed(batch);
    }
}

/// An image as it lies in its file (PNG, JPEG, …).
pub type ImageBytes = Arc<[u8]>;

/// Turns images into vectors.
pub trait ImageEmbedding {
    /// Answers images.
    fn embed(&mut self, batch: &mut Batch<ImageEmbedder>);
}

/// The capability of [`ImageEmbedding`].
///
/// ```
/// use std::sync::Arc;
/// use chainette::engine::embedded::{
///     Batch, Embedded, ImageEmbedder, ImageEmbedding, LoadError, Loader, PoolConfig, Pools, Size,
/// };
/// use chainette::engine::provision::Need;
///
/// /// The mean of an image's bytes: a model of yours stands here.
/// struct Mean;
///
/// impl ImageEmbedding for Mean {
///     fn embed(&mut self, batch: &mut Batch<ImageEmbedder>) {
///         for at in 0..batch.len() {
///             let Some(asked) = batch.request(at) else { continue };
///             let sum: f32 = asked.iter().map(|byte| f32::from(*byte)).sum();
///             let vector = vec![sum / asked.len().max(1) as f32];
///             batch.answer(at, Ok(Embedded { vector, tokens: 1 }));
///         }
///     }
/// }
///
/// struct Files;
///
/// impl Loader<ImageEmbedder> for Files {
///     fn size(&self) -> Result<Size, LoadError> {
///         let need = Need { ram: 1 << 20, ..Need::default() };
///         Ok(Size { need, batch: 8, workers: 1 })
///     }
///
///     fn load(&self) -> Result<Box<dyn ImageEmbedding>, LoadError> {
///         Ok(Box::new(Mean))
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pools = Pools::new();
/// let pool = pools.add::<ImageEmbedder>(PoolConfig::new("mine"), Arc::new(Files));
/// pools.start();
/// let reply = pool.ask(Arc::from([1, 2, 3])).await?;
/// assert_eq!(reply.vector, [2.0]);
/// pools.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub enum ImageEmbedder {}

impl Capability for ImageEmbedder {
    const NAME: &'static str = "image embedding";
    type Request = ImageBytes;
    type Reply = Embedded;
    type Model = dyn ImageEmbedding;

    fn answer(model: &mut Self::Model, batch: &mut Batch<Self>) {
        model.embed(batch);
    }
}

/// Writes text about images.
pub trait Vision {
    /// Answers prompts with images.
    fn describe(&mut self, batch: &mut Batch<Describer>);
}

/// The capability of [`Vision`].
///
/// ```
/// use std::sync::Arc;
/// use chainette::engine::embedded::{
///     Batch, Describe, Describer, Generated, LoadError, Loader, PoolConfig, Pools, Size, Vision,
/// };
/// use chainette::engine::provision::Need;
///
/// /// Counts images: a model of yours stands here.
/// struct Counter;
///
/// impl Vision for Counter {
///     fn describe(&mut self, batch: &mut Batch<Describer>) {
///         for at in 0..batch.len() {
///             let Some(asked) = batch.request(at) else { continue };
///             let text = format!("{} images", asked.images.len());
///             batch.answer(at, Ok(Generated { text, ..Generated::default() }));
///         }
///     }
/// }
///
/// struct Files;
///
/// impl Loader<Describer> for Files {
///     fn size(&self) -> Result<Size, LoadError> {
///         let need = Need { ram: 1 << 20, ..Need::default() };
///         Ok(Size { need, batch: 8, workers: 1 })
///     }
///
///     fn load(&self) -> Result<Box<dyn Vision>, LoadError> {
///         Ok(Box::new(Counter))
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pools = Pools::new();
/// let pool = pools.add::<Describer>(PoolConfig::new("mine"), Arc::new(Files));
/// pools.start();
/// let images = vec![Arc::from([0; 4]), Arc::from([1; 4])];
/// let reply = pool.ask(Describe { images, ..Describe::default() }).await?;
/// assert_eq!(reply.text, "2 images");
/// pools.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub enum Describer {}

/// What a model of [`Vision`] is asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Describe {
    /// The images, in the order in which the text speaks of them.
    pub images: Vec<ImageBytes>,
    /// The rest.
    pub text: Generate,
}

impl Capability for Describer {
    const NAME: &'static str = "vision";
    type Request = Describe;
    type Reply = Generated;
    type Model = dyn Vision;

    fn answer(model: &mut Self::Model, batch: &mut Batch<Self>) {
        model.describe(batch);
    }

    fn reused_tokens(reply: &Generated) -> u64 {
        reply.reused_tokens as u64
    }
}

/// Paints.
pub trait TextToImage {
    /// Answers prompts.
    fn paint(&mut self, batch: &mut Batch<Painter>);
}

/// The capability of [`TextToImage`].
///
/// ```
/// use std::sync::Arc;
/// use chainette::engine::embedded::{
///     Batch, LoadError, Loader, Paint, Painted, Painter, PoolConfig, Pools, Size, TextToImage,
/// };
/// use chainette::engine::provision::Need;
///
/// /// Paints everything black: a model of yours stands here.
/// struct Black;
///
/// impl TextToImage for Black {
///     fn paint(&mut self, batch: &mut Batch<Painter>) {
///         for at in 0..batch.len() {
///             let Some(asked) = batch.request(at) else { continue };
///             let (width, height) = (asked.width, asked.height);
///             let pixels = vec![0; width as usize * height as usize * 3];
///             batch.answer(at, Ok(Painted { width, height, pixels }));
///         }
///     }
/// }
///
/// struct Files;
///
/// impl Loader<Painter> for Files {
///     fn size(&self) -> Result<Size, LoadError> {
///         let need = Need { ram: 1 << 20, ..Need::default() };
///         Ok(Size { need, batch: 8, workers: 1 })
///     }
///
///     fn load(&self) -> Result<Box<dyn TextToImage>, LoadError> {
///         Ok(Box::new(Black))
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pools = Pools::new();
/// let pool = pools.add::<Painter>(PoolConfig::new("mine"), Arc::new(Files));
/// pools.start();
/// let asked = Paint { prompt: "night".to_owned(), width: 4, height: 2, ..Paint::default() };
/// let reply = pool.ask(asked).await?;
/// assert_eq!(reply.pixels.len(), 24);
/// pools.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub enum Painter {}

/// What a model of [`TextToImage`] is asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Paint {
    /// What is to be seen.
    pub prompt: String,
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
    /// Rounds of work.
    pub steps: u32,
    /// Where the random numbers start.
    pub seed: u64,
}

/// What a model of [`TextToImage`] answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Painted {
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
    /// Red, green and blue of each pixel, row by row.
    pub pixels: Vec<u8>,
}

impl Capability for Painter {
    const NAME: &'static str = "text to image";
    type Request = Paint;
    type Reply = Painted;
    type Model = dyn TextToImage;

    fn answer(model: &mut Self::Model, batch: &mut Batch<Self>) {
        model.paint(batch);
    }
}
