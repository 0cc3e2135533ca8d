//! Answers: what came of each try, kept before it is used.

use std::io;

use futures::future::BoxFuture;

use crate::engine::{Finish, Reply};
use crate::event::Usage;
use crate::row::{ErrorKind, RowId};

/// Which try an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AnswerKey<'a> {
    /// The Step's id.
    pub node: &'a str,
    /// The row.
    pub row_id: &'a RowId,
    /// The try at this Step, from 0.
    pub turn: u32,
    /// Digest of the request and of who is asked: an answer to another question, or of another engine, is none.
    pub digest: [u8; 32],
}

/// What came of one try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The engine replied.
    Reply(Reply),
    /// The try failed though the engine lives; it counts against `retries.transport`.
    Fault {
        /// [`ErrorKind::Http`] or [`ErrorKind::Timeout`].
        kind: ErrorKind,
        /// What happened.
        message: String,
    },
    /// The engine will never take this request.
    Refused {
        /// [`ErrorKind::Http`] or [`ErrorKind::ContextLength`].
        kind: ErrorKind,
        /// What it said.
        message: String,
    },
}

/// The ledger as a Step sees it.
pub trait Answers: Send + Sync {
    /// The answer a former run got to exactly this request.
    ///
    /// # Errors
    /// That it is used again could not be kept.
    fn find(&self, key: &AnswerKey<'_>) -> io::Result<Option<Answer>>;

    /// Keeps an answer; it is used only after this returned.
    fn keep<'a>(&'a self, key: AnswerKey<'a>, answer: &'a Answer) -> BoxFuture<'a, io::Result<()>>;

    /// Told that a row fails at a Step, by the answer that was found for this key: true if its answers are given up, and it is
    /// to be asked again from its first try.
    ///
    /// # Errors
    /// The decision could not be kept.
    fn again(&self, key: &AnswerKey<'_>) -> io::Result<bool> {
        let _ = key;
        Ok(false)
    }
}

/// No ledger (`--no-ledger`): finds nothing, keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoAnswers;

impl Answers for NoAnswers {
    fn find(&self, _: &AnswerKey<'_>) -> io::Result<Option<Answer>> {
        Ok(None)
    }

    fn keep<'a>(&'a self, _: AnswerKey<'a>, _: &'a Answer) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// First byte of an encoded reply, fault and refusal.
const REPLY: u8 = 0;
const FAULT: u8 = 1;
const REFUSED: u8 = 2;

impl Answer {
    /// The answer as bytes: a tag, fixed fields in little endian, length-prefixed texts, the last text
    /// without a length.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        match self {
            Self::Reply(reply) => {
                out.push(REPLY);
                out.push(match reply.finish {
                    Finish::Stop => 0,
                    Finish::Length => 1,
                    Finish::Rejected => 2,
                    Finish::Runaway => 3,
                });
                out.extend_from_slice(&reply.usage.prompt_tokens.to_le_bytes());
                out.extend_from_slice(&reply.usage.completion_tokens.to_le_bytes());
                match &reply.reasoning {
                    None => out.push(0),
                    Some(text) => {
                        out.push(1);
                        out.extend_from_slice(&(text.len() as u64).to_le_bytes());
                        out.extend_from_slice(text.as_bytes());
                    }
                }
                out.extend_from_slice(reply.text.as_bytes());
            }
            Self::Fault { kind, message } => encode_error(&mut out, FAULT, *kind, message),
            Self::Refused { kind, message } => encode_error(&mut out, REFUSED, *kind, message),
        }
        out
    }

    /// Reads what [`Answer::encode`] wrote; none if it is damaged or from an unknown version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (tag, rest) = bytes.split_first()?;
        match *tag {
            REPLY => {
                let (finish, rest) = rest.split_first()?;
                let finish = match *finish {
                    0 => Finish::Stop,
                    1 => Finish::Length,
                    2 => Finish::Rejected,
                    3 => Finish::Runaway,
                    _ => return None,
                };
                let (prompt_tokens, rest) = take_u64(rest)?;
                let (completion_tokens, rest) = take_u64(rest)?;
                let (has_reasoning, rest) = rest.split_first()?;
                let (reasoning, rest) = match *has_reasoning {
                    0 => (None, rest),
                    1 => {
                        let (len, rest) = take_u64(rest)?;
                        let (text, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
                        (Some(utf8(text)?), rest)
                    }
                    _ => return None,
                };
                Some(Self::Reply(Reply {
                    text: utf8(rest)?,
                    reasoning,
                    finish,
                    usage: Usage {
                        prompt_tokens,
                        completion_tokens,
                    },
                }))
            }
            FAULT => decode_error(rest).map(|(kind, message)| Self::Fault { kind, message }),
            REFUSED => decode_error(rest).map(|(kind, message)| Self::Refused { kind, message }),
            _ => None,
        }
    }
}

/// Kinds are written by name: names never change, their order may.
fn encode_error(out: &mut Vec<u8>, tag: u8, kind: ErrorKind, message: &str) {
    out.push(tag);
    out.extend_from_slice(kind.as_str().as_bytes());
    out.push(0);
    out.extend_from_slice(message.as_bytes());
}

fn decode_error(bytes: &[u8]) -> Option<(ErrorKind, String)> {
    let end = memchr::memchr(0, bytes)?;
    let (name, rest) = bytes.split_at_checked(end)?;
    let kind = ErrorKind::ALL
        .into_iter()
        .find(|kind| kind.as_str().as_bytes() == name)?;
    Some((kind, utf8(rest.get(1..)?)?))
}

fn take_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*head), rest))
}

fn utf8(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}
