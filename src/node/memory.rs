//! What a row keeps of its ways so far: rows that wait for an engine which is not loaded are led again from their start.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::answer::{Answer, AnswerKey};
use super::output::Fate;
use crate::row::{ErrorKind, Record, RowError, RowId};

/// What a row was answered, what programs and functions made of it, and what watchers were told of it. The next walk asks
/// nothing of that again, takes as long at each node as the first one did, and is not counted twice.
///
/// What others computed is kept though Applies are to be pure: a function that is not would ask something else on each walk,
/// of engines in turns, for ever. jq programs are pure, and computed again.
///
/// Not the ledger: that finds what former processes were answered, and a run without one parks rows too.
#[derive(Debug, Default)]
pub(crate) struct Memory(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    answers: HashMap<Try, Known>,
    /// By node and row.
    applied: HashMap<(String, String), Applied>,
    /// Everything that watchers were told of the row.
    told: HashMap<News, u32>,
    /// What of it this walk has not come to yet.
    repeated: HashMap<News, u32>,
}

/// One try of a row, or a child of it, at a Step.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Try {
    node: String,
    row_id: String,
    turn: u32,
}

/// What came of a try.
#[derive(Clone, Debug)]
pub(super) struct Known {
    digest: [u8; 32],
    pub(super) answer: Answer,
    /// From lease to answer; none if it was on file.
    pub(super) took: Option<Duration>,
}

/// What an Apply made of a row, and how long it took if that was looked at.
pub(super) type Applied = (Result<Vec<Record>, RowError>, Option<Duration>);

/// Something that watchers are told of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) enum News {
    /// It came to a node.
    Came(usize),
    /// It got its fate at a node.
    Fate(usize, Fate),
    /// All its answers at a Step were on file.
    Reused(usize),
    /// It came to a branch; whether it skipped it.
    Entered(usize, bool),
}

/// What is kept but the texts of the answers, to be written to disk.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outline {
    told: Vec<(News, u32)>,
    applied: Vec<Made>,
    answers: Vec<Written>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Made {
    node: String,
    row_id: String,
    /// JSON texts; or the kind of the failure, and its message.
    outputs: Result<Vec<String>, (String, String)>,
    /// Nanoseconds.
    took: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Written {
    node: String,
    row_id: String,
    turn: u32,
    digest: [u8; 32],
    /// Nanoseconds.
    took: Option<u64>,
    /// Bytes of the answer.
    len: usize,
}

impl Memory {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What came of a try on a former walk.
    pub(super) fn find(&self, key: &AnswerKey<'_>) -> Option<Known> {
        let kept = self.kept();
        let known = kept.answers.get(&Try::of(key))?;
        (known.digest == key.digest).then(|| known.clone())
    }

    /// Keeps what came of a try.
    pub(super) fn keep(&self, key: &AnswerKey<'_>, answer: &Answer, took: Option<Duration>) {
        let known = Known {
            digest: key.digest,
            answer: answer.clone(),
            took,
        };
        self.kept().answers.insert(Try::of(key), known);
    }

    /// What an Apply made of a row on a former walk.
    pub(super) fn applied(&self, node: &str, row_id: &RowId) -> Option<Applied> {
        let key = (node.to_owned(), row_id.to_string());
        self.kept().applied.get(&key).cloned()
    }

    /// Keeps what an Apply made of a row.
    pub(super) fn keep_applied(&self, node: &str, row_id: &RowId, applied: &Applied) {
        let key = (node.to_owned(), row_id.to_string());
        self.kept().applied.insert(key, applied.clone());
    }

    /// A row's answers at a Step were given up.
    pub(super) fn forget(&self, key: &AnswerKey<'_>) {
        let row_id = key.row_id.to_string();
        let mut kept = self.kept();
        kept.answers
            .retain(|of, _| of.node != key.node || of.row_id != row_id);
    }

    /// False for what watchers were told already on a former walk.
    pub(super) fn is_news(&self, news: News) -> bool {
        let mut kept = self.kept();
        if let Some(left) = kept.repeated.get_mut(&news).filter(|left| **left > 0) {
            *left -= 1;
            return false;
        }
        *kept.told.entry(news).or_default() += 1;
        true
    }

    /// The outline, and the texts of the answers one after another.
    pub(crate) fn encode(&self) -> (Outline, Vec<u8>) {
        let kept = self.kept();
        let mut texts = Vec::new();
        let answers = kept.answers.iter().map(|(of, known)| {
            let text = known.answer.encode();
            texts.extend_from_slice(&text);
            Written {
                node: of.node.clone(),
                row_id: of.row_id.clone(),
                turn: of.turn,
                digest: known.digest,
                took: known.took.map(nanoseconds),
                len: text.len(),
            }
        });
        let answers = answers.collect();
        let applied = kept.applied.iter().map(|((node, row_id), (outputs, took))| Made {
            node: node.clone(),
            row_id: row_id.clone(),
            outputs: match outputs {
                Ok(records) => Ok(records.iter().map(|record| record.text().to_owned()).collect()),
                Err(error) => Err((error.kind.as_str().to_owned(), error.message.clone())),
            },
            took: took.map(nanoseconds),
        });
        let applied = applied.collect();
        let told = kept.told.iter().map(|(news, times)| (*news, *times)).collect();
        let outline = Outline {
            told,
            applied,
            answers,
        };
        (outline, texts)
    }

    /// Reads what [`Memory::encode`] made; none if it is damaged.
    pub(crate) fn decode(outline: Outline, mut texts: &[u8]) -> Option<Self> {
        let told: HashMap<_, _> = outline.told.into_iter().collect();
        let mut answers = HashMap::with_capacity(outline.answers.len());
        for written in outline.answers {
            let (text, rest) = texts.split_at_checked(written.len)?;
            let known = Known {
                digest: written.digest,
                answer: Answer::decode(text)?,
                took: written.took.map(Duration::from_nanos),
            };
            let of = Try {
                node: written.node,
                row_id: written.row_id,
                turn: written.turn,
            };
            answers.insert(of, known);
            texts = rest;
        }
        let mut applied = HashMap::with_capacity(outline.applied.len());
        for made in outline.applied {
            let outputs = match made.outputs {
                Ok(texts) => {
                    let records = texts.iter().map(|text| Record::parse(text).ok());
                    Ok(records.collect::<Option<Vec<_>>>()?)
                }
                Err((kind, message)) => {
                    let kind = ErrorKind::ALL.into_iter().find(|known| known.as_str() == kind)?;
                    Err(RowError::new(kind, message))
                }
            };
            let took = made.took.map(Duration::from_nanos);
            applied.insert((made.node, made.row_id), (outputs, took));
        }
        Some(Self(Mutex::new(Kept {
            answers,
            applied,
            repeated: told.clone(),
            told,
        })))
    }
}

fn nanoseconds(took: Duration) -> u64 {
    u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)
}

impl Try {
    fn of(key: &AnswerKey<'_>) -> Self {
        Self {
            node: key.node.to_owned(),
            row_id: key.row_id.to_string(),
            turn: key.turn,
        }
    }
}
