//! Replies of a text generator: several sequences at a time, a token or more of each per forward pass.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::choose::Chooser;
use super::constraint::{Constraint, Grammars};
use super::decoder::{Decoder, Feed};
use super::kv::Kept;
use super::prefix::Prefixes;
use super::template::{CLOSE, Template};
use super::tokenizer::Tokenizer;
use crate::engine::embedded::{
    Batch, Ending, Generate, Generated, ModelError, TextGeneration, TextGenerator,
};
use crate::engine::runaway::Watch;

/// Tokens that go through the model in one pass.
pub(super) const PASS: usize = 512;

/// What the workers of one model share.
pub(super) struct Weights {
    pub(super) decoder: Decoder,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) template: Template,
    /// Tokens of a sequence, prompt and reply together.
    pub(super) context: usize,
}

/// A text generator, as one worker has it.
pub(super) struct Generator {
    weights: Arc<Weights>,
    grammars: Grammars,
    prefixes: Prefixes,
}

/// A reply on its way.
struct Sequence {
    /// Its place in the batch.
    at: usize,
    kept: Kept,
    /// Tokens that the model has still to see.
    pending: Vec<u32>,
    /// The reply so far.
    bytes: Vec<u8>,
    /// Looks whether it runs away; where it did.
    watch: Watch,
    ran: Option<usize>,
    chooser: Chooser,
    constraint: Option<Constraint>,
    /// What comes is still a thought: the answer begins after [`CLOSE`], and only that has a schema and texts that end it.
    thinks: bool,
    stop: Vec<String>,
    /// Tokens of the reply that there is still room for.
    left: usize,
    deadline: Instant,
    told: Generated,
}

impl Generator {
    pub(super) fn new(weights: Arc<Weights>, grammars: Grammars) -> Self {
        Self {
            weights,
            grammars,
            prefixes: Prefixes::default(),
        }
    }

    /// Begins a reply: its prompt, and what is known of that already.
    fn begin(&mut self, at: usize, request: &Generate, deadline: Instant) -> Result<Sequence, ModelError> {
        let weights = &self.weights;
        let prompt = weights
            .template
            .render(&request.messages)
            .map_err(ModelError::Refused)?;
        let prompt = weights.tokenizer.prompt(&prompt);
        let room = weights.context.saturating_sub(prompt.len());
        if room == 0 || prompt.is_empty() {
            return Err(ModelError::TooLong {
                tokens: prompt.len(),
                context: weights.context,
            });
        }
        let constraint = request
            .schema
            .as_ref()
            .map(|schema| self.grammars.constraint(schema))
            .transpose()?;
        let advice = self.prefixes.look(&prompt);
        let mut kept = weights.decoder.begin(advice.known);
        let reused = kept.len();
        if let Some(keep) = advice.keep {
            let new = prompt.get(reused..keep).unwrap_or_default();
            for tokens in new.chunks(PASS) {
                let feed = Feed {
                    tokens,
                    kept: &mut kept,
                };
                weights
                    .decoder
                    .forward(vec![feed])
                    .map_err(|error| failed(&error))?;
            }
            let segment = kept.freeze();
            self.prefixes
                .keep(prompt.get(..keep).unwrap_or_default(), &segment);
            kept = weights.decoder.begin(Some(segment));
        }
        let mut sequence = Sequence {
            at,
            pending: prompt.get(kept.len()..).unwrap_or_default().to_vec(),
            kept,
            bytes: Vec::new(),
            watch: Watch::default(),
            ran: None,
            chooser: Chooser::new(request.sampling),
            stop: request.stop.clone(),
            left: request.max_tokens.unwrap_or(room).min(room),
            deadline,
            told: Generated {
                prompt_tokens: prompt.len(),
                reused_tokens: reused,
                ..Generated::default()
            },
            constraint,
            thinks: weights.template.thinks(),
        };
        if !sequence.thinks {
            sequence.take_forced(&weights.tokenizer)?;
        }
        Ok(sequence)
    }

    /// One forward pass for all; the logits of those whose tokens have all been seen, by place.
    fn pass(&self, running: &mut [Sequence]) -> candle_core::Result<HashMap<usize, Vec<f32>>> {
        let mut room = PASS;
        let mut fed = Vec::new();
        let mut feeds = Vec::new();
        for sequence in running.iter_mut() {
            let count = sequence.pending.len().min(room);
            if count == 0 {
                continue;
            }
            room -= count;
            fed.push((sequence.at, count, count == sequence.pending.len()));
            feeds.push(Feed {
                tokens: sequence.pending.get(..count).unwrap_or_default(),
                kept: &mut sequence.kept,
            });
        }
        let logits = self.weights.decoder.forward(feeds)?;
        for (at, count, _) in &fed {
            if let Some(sequence) = running.iter_mut().find(|sequence| sequence.at == *at) {
                sequence.pending.drain(..count);
            }
        }
        let whole = fed.into_iter().zip(logits).filter(|((_, _, whole), _)| *whole);
        Ok(whole.map(|((at, ..), logits)| (at, logits)).collect())
    }
}

impl TextGeneration for Generator {
    fn generate(&mut self, batch: &mut Batch<TextGenerator>) {
        let mut running: Vec<Sequence> = Vec::new();
        let mut begun = 0;
        loop {
            if batch.has_room() {
                batch.refill();
            }
            let new = begun..batch.len();
            begun = new.end;
            for at in new {
                let Some(request) = batch.request(at) else {
                    continue;
                };
                match self.begin(at, &request, batch.deadline(at)) {
                    Err(error) => batch.answer(at, Err(error)),
                    Ok(sequence) => match sequence.is_over() {
                        Some(end) => sequence.end(end, batch),
                        None => running.push(sequence),
                    },
                }
            }
            // What nobody waits for any more, or not for so long.
            running.retain_mut(|sequence| {
                let late = Instant::now() >= sequence.deadline;
                if late {
                    batch.answer(sequence.at, Err(ModelError::Late));
                }
                !late && batch.is_wanted(sequence.at)
            });
            if running.is_empty() {
                return;
            }
            let mut logits = match self.pass(&mut running) {
                Ok(logits) => logits,
                Err(error) => {
                    for sequence in running {
                        batch.answer(sequence.at, Err(failed(&error)));
                    }
                    return;
                }
            };
            let mut still = Vec::with_capacity(running.len());
            for mut sequence in running {
                let Some(logits) = logits.remove(&sequence.at) else {
                    still.push(sequence);
                    continue;
                };
                match sequence.next(&logits, &self.weights.tokenizer) {
                    Err(error) => batch.answer(sequence.at, Err(error)),
                    Ok(Some(end)) => sequence.end(end, batch),
                    Ok(None) => still.push(sequence),
                }
            }
            running = still;
        }
    }
}

impl Sequence {
    /// Takes tokens into the reply, as far as there is room.
    fn accept(&mut self, tokens: &[u32], tokenizer: &Tokenizer) {
        let tokens = tokens.get(..tokens.len().min(self.left)).unwrap_or_default();
        for token in tokens {
            self.bytes.extend_from_slice(tokenizer.vocabulary.bytes(*token));
        }
        self.left -= tokens.len();
        self.told.reply_tokens += tokens.len();
        self.pending.extend_from_slice(tokens);
        let text = match std::str::from_utf8(&self.bytes) {
            Ok(text) => text,
            // The last character may still be coming.
            Err(error) => std::str::from_utf8(self.bytes.get(..error.valid_up_to()).unwrap_or_default())
                .unwrap_or_default(),
        };
        self.ran = self.ran.or(self.watch.look(text));
    }

    /// Whether nothing more is to come.
    fn is_over(&self) -> Option<Ending> {
        if self.constraint.as_ref().is_some_and(Constraint::is_over) || self.stops().is_some() {
            Some(Ending::Done)
        } else if self.ran.is_some() {
            Some(Ending::Runaway)
        } else if self.left == 0 {
            Some(Ending::Cut)
        } else {
            None
        }
    }

    /// Where one of the texts begins that end it.
    fn stops(&self) -> Option<usize> {
        if self.thinks {
            return None;
        }
        let found = |stop: &String| memchr::memmem::find(&self.bytes, stop.as_bytes());
        self.stop
            .iter()
            .filter(|stop| !stop.is_empty())
            .filter_map(found)
            .min()
    }

    /// Chooses the next token, and takes those that must follow it.
    fn next(&mut self, logits: &[f32], tokenizer: &Tokenizer) -> Result<Option<Ending>, ModelError> {
        // Weights may be padded with tokens that there are not.
        let logits = logits.get(..tokenizer.vocabulary.len()).unwrap_or(logits);
        let constraint = self.constraint.as_mut().filter(|_| !self.thinks);
        let allowed = constraint.map(Constraint::allowed).transpose()?;
        let Some(token) = self.chooser.choose(logits, allowed.as_ref()) else {
            return Err(ModelError::Failed(
                "the model has no token to go on with".to_owned(),
            ));
        };
        let ends = tokenizer.vocabulary.ends.contains(&token);
        if self.thinks {
            self.think(token, ends, tokenizer)?;
            return Ok(self.is_over());
        }
        if ends {
            return Ok(Some(Ending::Done));
        }
        self.accept(&[token], tokenizer);
        if let Some(constraint) = &mut self.constraint {
            constraint.take(token)?;
            self.take_forced(tokenizer)?;
        }
        Ok(self.is_over())
    }

    /// Takes what the schema leaves no choice about.
    fn take_forced(&mut self, tokenizer: &Tokenizer) -> Result<(), ModelError> {
        let forced = self.constraint.as_mut().map(Constraint::forced).transpose()?;
        self.accept(&forced.unwrap_or_default(), tokenizer);
        Ok(())
    }

    /// Takes a token of a thought. Where the model says that it has thought enough, or would end its reply, the answer begins.
    fn think(&mut self, token: u32, ends: bool, tokenizer: &Tokenizer) -> Result<(), ModelError> {
        if ends {
            self.accept(&tokenizer.going_on(&format!("\n{CLOSE}")), tokenizer);
        } else {
            self.accept(&[token], tokenizer);
        }
        let text = String::from_utf8_lossy(&self.bytes);
        // Where the mark is a sign of the model, it has no text.
        let is_sign = ends || tokenizer.vocabulary.text(token) == CLOSE;
        let (thoughts, answer) = match text.split_once(CLOSE) {
            Some((thoughts, answer)) => (thoughts, answer.to_owned()),
            None if is_sign => (&*text, String::new()),
            None => return Ok(()),
        };
        self.told.reasoning = Some(thoughts.trim().to_owned());
        self.thinks = false;
        if self.constraint.is_some() {
            // As the model would go on, if it were let.
            self.accept(&tokenizer.going_on("\n\n"), tokenizer);
        }
        // What the answer begins with is looked at anew.
        (self.watch, self.ran) = (Watch::default(), None);
        self.bytes.clear();
        if self.constraint.is_none() {
            self.bytes.extend_from_slice(answer.as_bytes());
        }
        self.take_forced(tokenizer)
    }

    /// Answers.
    fn end(self, ending: Ending, batch: &mut Batch<TextGenerator>) {
        let upto = self.stops().or(self.ran).unwrap_or(self.bytes.len());
        let text = String::from_utf8_lossy(self.bytes.get(..upto).unwrap_or_default()).into_owned();
        let (text, thoughts) = match self.told.reasoning.clone() {
            // Cut before there was an answer.
            None if self.thinks => (String::new(), Some(text.trim().to_owned())),
            None => (text, None),
            thoughts => (text.trim_start().to_owned(), thoughts),
        };
        let reply = Generated {
            text,
            reasoning: thoughts.filter(|thoughts| !thoughts.is_empty()),
            ending,
            ..self.told
        };
        batch.answer(self.at, Ok(reply));
    }
}

fn failed(error: &candle_core::Error) -> ModelError {
    ModelError::Failed(format!("the model failed: {error}"))
}
