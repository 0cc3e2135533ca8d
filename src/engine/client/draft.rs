//! A reply while it comes in: whole or piece by piece, it ends up as the same [`Reply`].

use crate::engine::runaway::Watch;
use crate::engine::{CallError, Finish, Reply};
use crate::event::Usage;
use crate::row::ErrorKind;

use super::http::too_large;

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// What there is of a reply.
#[derive(Debug)]
pub(super) struct Draft {
    text: Running,
    reasoning: Running,
    refusal: String,
    finish: Option<Finish>,
    usage: Usage,
    room: u64,
}

/// A growing text that is cut where it runs away.
#[derive(Debug, Default)]
struct Running {
    text: String,
    watch: Watch,
    cut: bool,
}

impl Running {
    fn push(&mut self, piece: &str) {
        if self.cut {
            return;
        }
        self.text.push_str(piece);
        if let Some(end) = self.watch.look(&self.text) {
            self.text.truncate(end);
            self.cut = true;
        }
    }
}

impl Draft {
    /// An empty one that may grow to so many bytes.
    pub(super) fn new(max_reply: u64) -> Self {
        Self {
            text: Running::default(),
            reasoning: Running::default(),
            refusal: String::new(),
            finish: None,
            usage: Usage::default(),
            room: max_reply,
        }
    }

    fn take_room(&mut self, piece: &str) -> Result<(), CallError> {
        self.room = self.room.checked_sub(piece.len() as u64).ok_or_else(too_large)?;
        Ok(())
    }

    /// Adds to the answer's text.
    pub(super) fn say(&mut self, piece: &str) -> Result<(), CallError> {
        self.take_room(piece)?;
        // Thoughts come first: once they ran away there is no answer.
        if !self.reasoning.cut {
            self.text.push(piece);
        }
        Ok(())
    }

    /// Adds to the reasoning text.
    pub(super) fn think(&mut self, piece: &str) -> Result<(), CallError> {
        self.take_room(piece)?;
        self.reasoning.push(piece);
        Ok(())
    }

    /// Adds to a refusal.
    pub(super) fn refuse(&mut self, piece: &str) -> Result<(), CallError> {
        self.take_room(piece)?;
        self.refusal.push_str(piece);
        Ok(())
    }

    /// Notes why the model stopped.
    pub(super) fn finish(&mut self, reason: &str) -> Result<(), CallError> {
        self.finish = Some(match reason {
            "length" => Finish::Length,
            "content_filter" => Finish::Rejected,
            "abort" | "error" => return Err(fault("the engine aborted the reply")),
            _ => Finish::Stop,
        });
        Ok(())
    }

    /// Notes the tokens so far; the last word counts.
    pub(super) fn usage(&mut self, usage: Usage) {
        self.usage = usage;
    }

    /// True once the reply has run away: nothing that is still to come matters.
    pub(super) fn ran_away(&self) -> bool {
        self.text.cut || self.reasoning.cut
    }

    /// True while nothing at all was said, not even why the model stopped.
    pub(super) fn is_empty(&self) -> bool {
        let said = [&self.text.text, &self.reasoning.text, &self.refusal];
        self.finish.is_none() && said.iter().all(|text| text.is_empty())
    }

    /// True once the model has said why it stopped.
    pub(super) fn is_finished(&self) -> bool {
        self.finish.is_some()
    }

    /// The reply. Thoughts that stand before the answer in `<think>…</think>` are taken out of it, with
    /// `reasoning` also where only the end of them is marked (templates that open the tag themselves).
    pub(super) fn reply(self, reasoning: bool) -> Reply {
        let (mut thoughts, mut text) = (self.reasoning.text, self.text.text);
        let mut finish = self.finish.unwrap_or(Finish::Stop);
        if self.text.cut || self.reasoning.cut {
            finish = Finish::Runaway;
        } else if !self.refusal.is_empty() {
            (text, finish) = (self.refusal, Finish::Rejected);
        } else if finish == Finish::Rejected {
            text = "the engine's content filter stopped the reply".to_owned();
        }
        if thoughts.is_empty()
            && let Some((inline, answer)) = split(&text, reasoning, finish)
        {
            (thoughts, text) = (inline, answer);
        }
        Reply {
            text,
            reasoning: Some(thoughts).filter(|thoughts| !thoughts.is_empty()),
            finish,
            usage: self.usage,
        }
    }
}

/// Thoughts and answer of a text that holds both.
fn split(text: &str, reasoning: bool, finish: Finish) -> Option<(String, String)> {
    let opened = text.trim_start().strip_prefix(OPEN);
    let inside = match opened {
        Some(inside) => inside,
        None if reasoning => text,
        None => return None,
    };
    let (thoughts, answer) = match inside.split_once(CLOSE) {
        Some(parts) => parts,
        // Cut while it was thinking.
        None if opened.is_some() && matches!(finish, Finish::Length | Finish::Runaway) => (inside, ""),
        None => return None,
    };
    Some((thoughts.trim().to_owned(), answer.trim_start().to_owned()))
}

/// A fault of this try.
pub(super) fn fault(message: &str) -> CallError {
    CallError::Transport {
        kind: ErrorKind::Http,
        message: message.to_owned(),
    }
}
