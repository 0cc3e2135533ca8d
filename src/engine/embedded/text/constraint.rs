//! Replies that match a JSON Schema: which tokens may come next, by llguidance.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::tokenizer::Tokenizer;
use crate::engine::embedded::{LoadError, ModelError};

/// Schemas whose grammars are kept.
const KEPT: usize = 32;

/// What grammars need to know of a model's tokens.
struct Tokens {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

impl TokenizerEnv for Tokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie
            .tokenize_with_greedy_fallback(bytes, |text| self.tokenizer.text(text))
    }
}

/// Makes grammars for one model.
pub(super) struct Grammars {
    factory: Arc<ParserFactory>,
    /// By schema, the one that was used last at the end.
    kept: Vec<(Arc<Value>, Matcher)>,
}

/// What every worker of a model can share.
pub(super) fn factory(tokenizer: &Arc<Tokenizer>) -> Result<Arc<ParserFactory>, LoadError> {
    let vocabulary = &tokenizer.vocabulary;
    let count = u32::try_from(vocabulary.len()).map_err(|_| LoadError::new("it has too many tokens"))?;
    let words: Vec<Vec<u8>> = (0..count)
        .map(|id| {
            if vocabulary.is_control(id) || vocabulary.ends.contains(&id) {
                let mut marked = vec![TokTrie::SPECIAL_TOKEN_MARKER];
                marked.extend_from_slice(vocabulary.text(id).as_bytes());
                marked
            } else {
                vocabulary.bytes(id).to_vec()
            }
        })
        .collect();
    let end = vocabulary.ends.first().copied().unwrap_or_default();
    let trie = TokTrie::from(&TokRxInfo::new(count, end), &words).with_eos_tokens(&vocabulary.ends);
    let tokens: TokEnv = Arc::new(Tokens {
        trie,
        tokenizer: Arc::clone(tokenizer),
    });
    let able = InferenceCapabilities {
        ff_tokens: true,
        ..InferenceCapabilities::default()
    };
    let slices = llguidance::earley::SlicedBiasComputer::general_slices();
    let mut factory = ParserFactory::new(&tokens, able, &slices)
        .map_err(|error| LoadError::new(format!("its tokens cannot be constrained: {error}")))?;
    factory.quiet();
    Ok(Arc::new(factory))
}

impl Grammars {
    pub(super) fn new(factory: Arc<ParserFactory>) -> Self {
        Self {
            factory,
            kept: Vec::new(),
        }
    }

    /// What holds one reply to a schema.
    pub(super) fn constraint(&mut self, schema: &Arc<Value>) -> Result<Constraint, ModelError> {
        if let Some(at) = self.kept.iter().position(|(known, _)| known == schema) {
            let found = self.kept.remove(at);
            let matcher = found.1.clone();
            self.kept.push(found);
            return Ok(Constraint(matcher));
        }
        let mut wanted = Value::clone(schema);
        if let Some(object) = wanted.as_object_mut() {
            // As short as JSON can be: what is certain need not be asked of the model.
            object.insert(
                "x-guidance".to_owned(),
                json!({"whitespace_flexible": false, "item_separator": ",", "key_separator": ":", "lenient": true}),
            );
        }
        let refused = |error: String| {
            ModelError::Refused(format!("the schema cannot be held to by this engine: {error}"))
        };
        let parser = self
            .factory
            .create_parser(TopLevelGrammar::from_json_schema(wanted))
            .map_err(|error| refused(error.to_string()))?;
        let matcher = Matcher::new(Ok(parser));
        if let Some(error) = matcher.get_error() {
            return Err(refused(error));
        }
        if self.kept.len() == KEPT {
            self.kept.remove(0);
        }
        self.kept.push((Arc::clone(schema), matcher.clone()));
        Ok(Constraint(matcher))
    }
}

/// Holds one reply to its schema.
pub(super) struct Constraint(Matcher);

impl Constraint {
    /// The tokens that may come next.
    pub(super) fn allowed(&mut self) -> Result<SimpleVob, ModelError> {
        self.0.compute_mask_or_eos().map_err(|error| failed(&error))
    }

    /// Tokens that must come next, whatever the model thinks; they count as taken.
    pub(super) fn forced(&mut self) -> Result<Vec<u32>, ModelError> {
        if self.0.is_stopped() {
            return Ok(Vec::new());
        }
        let forced = self.0.compute_ff_tokens();
        self.0.consume_tokens(&forced).map_err(|error| failed(&error))?;
        Ok(forced)
    }

    /// A token was chosen.
    pub(super) fn take(&mut self, token: u32) -> Result<(), ModelError> {
        self.0.consume_token(token).map_err(|error| failed(&error))
    }

    /// Nothing can follow.
    pub(super) fn is_over(&self) -> bool {
        self.0.is_stopped()
    }
}

fn failed(error: &dyn std::fmt::Display) -> ModelError {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    ModelError::Failed(format!("the reply could not be held to its schema: {line}"))
}
