//! What a model's folder says of it: the kind and sizes of its encoder, how a text's vector is made of its tokens', and how
//! long a text may be.
//!
//! The files are those of sentence-transformers (<https://sbert.net/docs/package_reference/sentence_transformer/models.html>):
//! `config.json` of the encoder, `modules.json` with what follows it. Without that, the mean of the tokens' vectors is taken.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::pooling::{Activation, Mode};
use crate::engine::embedded::LoadError;
use crate::engine::provision::is_inside;

/// What the weights of a kind of encoder are called.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    /// Of a layer; its number follows.
    pub(super) layer: &'static str,
    pub(super) query: &'static str,
    pub(super) key: &'static str,
    pub(super) value: &'static str,
    pub(super) out: &'static str,
    pub(super) out_norm: &'static str,
    pub(super) up: &'static str,
    pub(super) down: &'static str,
    pub(super) down_norm: &'static str,
    /// Shares by distance, for all layers.
    pub(super) distances: Option<&'static str>,
}

const BERT: Names = Names {
    layer: "encoder.layer",
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    out: "attention.output.dense",
    out_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    down_norm: "output.LayerNorm",
    distances: None,
};
const DISTILBERT: Names = Names {
    layer: "transformer.layer",
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    out: "attention.out_lin",
    out_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    down_norm: "output_layer_norm",
    distances: None,
};
const MPNET: Names = Names {
    query: "attention.attn.q",
    key: "attention.attn.k",
    value: "attention.attn.v",
    out: "attention.attn.o",
    out_norm: "attention.LayerNorm",
    distances: Some("encoder.relative_attention_bias.weight"),
    ..BERT
};

/// The sizes of an encoder.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) names: Names,
    /// Numbers of a token's state.
    pub(super) width: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    /// Numbers between the two products of a layer.
    pub(super) inner: usize,
    pub(super) vocabulary: usize,
    /// Rows of the table of positions.
    pub(super) positions: usize,
    /// Positions are counted from the one after this token's number, and it has none itself; none: from 0, all tokens.
    pub(super) padding: Option<u32>,
    pub(super) eps: f32,
    pub(super) activation: Activation,
}

/// What is done with the tokens' vectors, one after the other.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum After {
    /// They become one, or several of which one is made.
    Pool(Vec<Mode>),
    /// It is multiplied with a matrix, of so many rows; the file is named.
    Dense {
        path: PathBuf,
        rows: usize,
        columns: usize,
        activation: Activation,
    },
    /// It gets the length 1.
    Normalize,
}

/// What a folder says.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    pub(super) tokenizer: PathBuf,
    /// The files with the weights.
    pub(super) weights: Vec<PathBuf>,
    pub(super) shape: Shape,
    pub(super) after: Vec<After>,
    /// Tokens of a text.
    pub(super) context: usize,
    /// Texts are made lower case first.
    pub(super) lower: bool,
    /// Stands before each text.
    pub(super) prompt: String,
}

/// A JSON file of the folder.
struct Settings {
    path: PathBuf,
    all: Value,
}

impl Settings {
    /// None if there is no such file.
    fn read(path: PathBuf) -> Result<Option<Self>, LoadError> {
        let wrong = |why: &dyn std::fmt::Display| {
            LoadError::new(format!(
                "{} cannot be read: {why}\n  download the model again",
                path.display()
            ))
        };
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrong(&error)),
        };
        let all = serde_json::from_slice(&text).map_err(|error| wrong(&error))?;
        Ok(Some(Self { path, all }))
    }

    /// The file is not as such files are.
    fn wrong(&self, what: impl std::fmt::Display) -> LoadError {
        LoadError::new(format!(
            "{}: {what}\n  download the model again",
            self.path.display()
        ))
    }

    /// The file is as it should be, and asks for what there is not here.
    fn unknown(&self, what: impl std::fmt::Display) -> LoadError {
        LoadError::new(format!(
            "{}: {what}\n  a server embeds with more kinds of models: Text Embeddings Inference (`backend: openai`), \
             `backend: vllm`, or `backend: llamacpp` with `flags: [--embeddings]`",
            self.path.display()
        ))
    }

    /// An error if a part does more than it did in sentence-transformers 5.6.
    fn plain(&self) -> Result<(), LoadError> {
        if self.get("use_residual").and_then(Value::as_bool) == Some(true) {
            return Err(self.unknown("`use_residual` does not run in this process"));
        }
        let names = ["module_input_name", "module_output_name"];
        let other = names
            .iter()
            .filter_map(|key| self.text(key))
            .find(|name| *name != "sentence_embedding");
        match other {
            Some(name) => Err(self.unknown(format!(
                "a part that works on `{name}` does not run in this process"
            ))),
            None => Ok(()),
        }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.all.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    /// A number above zero that a size can be.
    fn size(&self, key: &str) -> Option<usize> {
        let size = usize::try_from(self.get(key)?.as_u64()?).ok()?;
        (1..=1 << 32).contains(&size).then_some(size)
    }

    fn need(&self, key: &str) -> Result<usize, LoadError> {
        self.size(key)
            .ok_or_else(|| self.wrong(format!("there is no usable `{key}`")))
    }
}

impl Folder {
    /// Reads the settings of a folder.
    pub(super) fn read(path: &Path) -> Result<Self, LoadError> {
        let config = Settings::read(path.join("config.json"))?.ok_or_else(|| {
            LoadError::new(format!(
                "the folder {} holds no model: there is no `config.json`\n  name the folder that a model was saved to",
                path.display()
            ))
        })?;
        let shape = Shape::of(&config)?;
        let weights = weights(path)?;
        let tokenizer = path.join("tokenizer.json");
        if !tokenizer.is_file() {
            return Err(LoadError::new(format!(
                "{} is not there\n  save the model's fast tokenizer beside it: `AutoTokenizer.from_pretrained(…).save_pretrained(…)`",
                tokenizer.display()
            )));
        }
        let mut encoder = None;
        for name in ["bert", "roberta", "distilbert", "camembert", "xlm-roberta"] {
            if encoder.is_none() {
                encoder = Settings::read(path.join(format!("sentence_{name}_config.json")))?;
            }
        }
        let tokens = Settings::read(path.join("tokenizer_config.json"))?;
        let said = |settings: &Option<Settings>, key: &str| settings.as_ref().and_then(|it| it.size(key));
        let most = said(&encoder, "max_seq_length").or_else(|| said(&tokens, "model_max_length"));
        let context = most.map_or(shape.room(), |most| most.min(shape.room()));
        let lower = encoder.as_ref().and_then(|it| it.get("do_lower_case")?.as_bool());
        let prompt = prompt(path)?;
        let after = after(path, shape.width, &prompt)?;
        Ok(Self {
            context,
            lower: lower.unwrap_or(false),
            prompt,
            after,
            tokenizer,
            weights,
            shape,
        })
    }
}

impl Shape {
    fn of(config: &Settings) -> Result<Self, LoadError> {
        let kind = config
            .text("model_type")
            .ok_or_else(|| config.wrong("there is no `model_type`"))?;
        let names = match kind {
            "bert" | "roberta" | "xlm-roberta" | "camembert" => BERT,
            "distilbert" => DISTILBERT,
            "mpnet" => MPNET,
            other => {
                return Err(config.unknown(format!(
                    "a model of the kind `{other}` embeds nothing in this process; bert, roberta, xlm-roberta, \
                     camembert, distilbert and mpnet do"
                )));
            }
        };
        let keys = match kind {
            "distilbert" => ["dim", "n_layers", "n_heads", "hidden_dim", "activation"],
            _ => [
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "intermediate_size",
                "hidden_act",
            ],
        };
        let [width, layers, heads, inner, act] = keys;
        let (width, heads) = (config.need(width)?, config.need(heads)?);
        if !width.is_multiple_of(heads) {
            return Err(config.wrong(format!("{width} numbers cannot be shared by {heads} heads")));
        }
        if let Some(how) = config.text("position_embedding_type")
            && how != "absolute"
        {
            return Err(config.unknown(format!("positions told as `{how}` do not run in this process")));
        }
        if config.get("is_decoder").and_then(Value::as_bool) == Some(true) {
            return Err(config.unknown("a decoder embeds nothing in this process"));
        }
        let act = config.text(act).unwrap_or("gelu");
        let activation = Activation::named(act)
            .ok_or_else(|| config.unknown(format!("the function `{act}` does not run in this process")))?;
        let padding = match kind {
            "bert" | "distilbert" => None,
            // Whatever `pad_token_id` says.
            "mpnet" => Some(1),
            _ => {
                let padding = config.get("pad_token_id").and_then(Value::as_u64);
                Some(padding.and_then(|id| u32::try_from(id).ok()).unwrap_or(1))
            }
        };
        let eps = config.get("layer_norm_eps").and_then(Value::as_f64);
        let shape = Self {
            names,
            width,
            heads,
            layers: config.need(layers)?,
            inner: config.need(inner)?,
            vocabulary: config.need("vocab_size")?,
            positions: config.need("max_position_embeddings")?,
            padding,
            eps: eps.unwrap_or(1e-12) as f32,
            activation,
        };
        match shape.room() {
            0 => Err(config.wrong("its positions have no room for a token")),
            _ => Ok(shape),
        }
    }

    /// The first position.
    pub(super) fn first(&self) -> usize {
        self.padding.map_or(0, |padding| padding as usize + 1)
    }

    /// Tokens that have a position.
    fn room(&self) -> usize {
        self.positions.saturating_sub(self.first())
    }
}

/// The files with the weights, sorted.
fn weights(folder: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let one = folder.join("model.safetensors");
    if one.is_file() {
        return Ok(vec![one]);
    }
    let lost = || {
        LoadError::new(format!(
            "the folder {} holds no `model.safetensors`\n  download the model as a whole; weights in PyTorch's own form become safetensors with `save_pretrained`",
            folder.display()
        ))
    };
    let index = Settings::read(folder.join("model.safetensors.index.json"))?.ok_or_else(lost)?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let names = map.into_iter().flatten().filter_map(|(_, name)| name.as_str());
    let mut names: Vec<&str> = names.filter(|name| is_inside(name)).collect();
    names.sort_unstable();
    names.dedup();
    match names.is_empty() {
        true => Err(index.wrong("it names no files")),
        false => Ok(names.iter().map(|name| folder.join(name)).collect()),
    }
}

/// What stands before each text.
fn prompt(folder: &Path) -> Result<String, LoadError> {
    let Some(settings) = Settings::read(folder.join("config_sentence_transformers.json"))? else {
        return Ok(String::new());
    };
    let Some(name) = settings.text("default_prompt_name") else {
        return Ok(String::new());
    };
    let prompts = settings.get("prompts").and_then(|prompts| prompts.get(name));
    prompts
        .and_then(Value::as_str)
        .map(str::to_owned)
        .ok_or_else(|| settings.wrong(format!("there is no prompt `{name}`")))
}

/// What follows the encoder.
fn after(folder: &Path, width: usize, prompt: &str) -> Result<Vec<After>, LoadError> {
    let Some(modules) = Settings::read(folder.join("modules.json"))? else {
        return Ok(vec![After::Pool(vec![Mode::Mean])]);
    };
    let mut after = Vec::new();
    let mut wide = width;
    for module in modules.all.as_array().into_iter().flatten() {
        let field = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
        let (kind, path) = (field("type"), field("path"));
        if !path.is_empty() && !is_inside(path) {
            return Err(modules.wrong(format!("`{path}` is outside of the folder")));
        }
        let settings = || {
            let path = folder.join(path).join("config.json");
            Settings::read(path.clone())?.ok_or_else(|| {
                LoadError::new(format!(
                    "{} is not there\n  download the model as a whole",
                    path.display()
                ))
            })
        };
        match kind.rsplit('.').next().unwrap_or(kind) {
            "Transformer" if path.is_empty() => {}
            "Transformer" => {
                return Err(LoadError::new(format!(
                    "{}: the encoder lies in a folder of its own, `{path}`, as very old versions saved it\n  \
                     save it again with a sentence-transformers of today: `SentenceTransformer(…).save_pretrained(…)`",
                    modules.path.display()
                )));
            }
            "Pooling" if after.is_empty() => {
                let modes = modes(&settings()?, prompt)?;
                wide *= modes.len();
                after.push(After::Pool(modes));
            }
            "Dense" => {
                let settings = settings()?;
                settings.plain()?;
                let weights = folder.join(path).join("model.safetensors");
                if !weights.is_file() {
                    return Err(LoadError::new(format!(
                        "{} is not there\n  download the model as a whole; weights in PyTorch's own form become safetensors with `save_pretrained`",
                        weights.display()
                    )));
                }
                let (columns, rows) = (settings.need("in_features")?, settings.need("out_features")?);
                if columns != wide {
                    return Err(settings.wrong(format!("it takes {columns} numbers, and {wide} come")));
                }
                wide = rows;
                let named = settings.text("activation_function").unwrap_or("Tanh");
                let named = named.rsplit('.').next().unwrap_or(named);
                after.push(After::Dense {
                    path: weights,
                    rows,
                    columns,
                    activation: Activation::of_torch(named).ok_or_else(|| {
                        settings.unknown(format!("the function `{named}` does not run in this process"))
                    })?,
                });
            }
            "Normalize" => {
                if let Some(settings) = Settings::read(folder.join(path).join("config.json"))? {
                    settings.plain()?;
                }
                after.push(After::Normalize);
            }
            // Does nothing but in training.
            "Dropout" => {}
            other => {
                return Err(modules.unknown(format!(
                    "a part of the kind `{other}` does not run in this process"
                )));
            }
        }
    }
    match after.first() {
        Some(After::Pool(_)) => Ok(after),
        _ => Err(modules.unknown("nothing makes one vector of those of the tokens")),
    }
}

/// How one vector is made of several.
fn modes(settings: &Settings, prompt: &str) -> Result<Vec<Mode>, LoadError> {
    if !prompt.is_empty() && settings.get("include_prompt").and_then(Value::as_bool) == Some(false) {
        return Err(settings.unknown("a prompt that is left out of the vector does not run in this process"));
    }
    let named = |name: &str| {
        Mode::named(name)
            .ok_or_else(|| settings.unknown(format!("pooling by `{name}` does not run in this process")))
    };
    let modes: Vec<Mode> = match settings.get("pooling_mode") {
        Some(Value::String(name)) => vec![named(name)?],
        Some(Value::Array(names)) => {
            let names = names.iter().filter_map(Value::as_str);
            names.map(named).collect::<Result<_, _>>()?
        }
        _ => Mode::ALL
            .into_iter()
            .filter(|(_, key, _)| settings.get(key).and_then(Value::as_bool) == Some(true))
            .map(|(mode, ..)| mode)
            .collect(),
    };
    Ok(match modes.is_empty() {
        true => vec![Mode::Mean],
        false => modes,
    })
}
