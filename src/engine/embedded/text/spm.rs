//! Pieces of SentencePiece: neighbours are merged, those first that make the piece with the best score.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::vocabulary::Vocabulary;

/// The pieces of a vocabulary.
pub(super) struct Pieces {
    ids: HashMap<String, u32>,
}

/// A part of the text that is one piece so far; empty once it is merged into the one before.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    end: usize,
    before: Option<usize>,
    after: Option<usize>,
}

/// Two neighbours that make a piece.
#[derive(PartialEq)]
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both; else one of them has grown since.
    len: usize,
}

impl Eq for Pair {}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Pieces {
    pub(super) fn new(vocabulary: &Vocabulary) -> Self {
        let all = vocabulary.texts.iter().cloned().zip(0..);
        Self { ids: all.collect() }
    }

    /// Cuts a text, with a space before it if it is to begin with one.
    pub(super) fn cut(&self, vocabulary: &Vocabulary, text: &str, space: bool, tokens: &mut Vec<u32>) {
        let mut marked = text.replace(' ', "\u{2581}");
        if space {
            marked.insert(0, '\u{2581}');
        }
        let mut symbols: Vec<Symbol> = Vec::new();
        for (start, c) in marked.char_indices() {
            let at = symbols.len();
            symbols.push(Symbol {
                start,
                end: start + c.len_utf8(),
                before: at.checked_sub(1),
                after: Some(at + 1),
            });
        }
        if let Some(last) = symbols.last_mut() {
            last.after = None;
        }
        let mut pairs = BinaryHeap::new();
        for right in 1..symbols.len() {
            pairs.extend(self.pair(vocabulary, &marked, &symbols, right - 1, right));
        }
        while let Some(Pair { left, right, len, .. }) = pairs.pop() {
            let (Some(&l), Some(&r)) = (symbols.get(left), symbols.get(right)) else {
                continue;
            };
            if l.end == l.start || r.end == r.start || r.end - l.start != len {
                continue;
            }
            if let Some(l) = symbols.get_mut(left) {
                (l.end, l.after) = (r.end, r.after);
            }
            if let Some(r) = symbols.get_mut(right) {
                r.end = r.start;
            }
            if let Some(after) = r.after
                && let Some(symbol) = symbols.get_mut(after)
            {
                symbol.before = Some(left);
            }
            if let Some(before) = l.before {
                pairs.extend(self.pair(vocabulary, &marked, &symbols, before, left));
            }
            if let Some(after) = r.after {
                pairs.extend(self.pair(vocabulary, &marked, &symbols, left, after));
            }
        }
        for symbol in symbols.iter().filter(|symbol| symbol.end > symbol.start) {
            let piece = marked.get(symbol.start..symbol.end).unwrap_or_default();
            match self.ids.get(piece) {
                Some(id) => tokens.push(*id),
                // What is no piece is spelt in bytes.
                None => tokens.extend(
                    piece
                        .bytes()
                        .filter_map(|byte| self.ids.get(&format!("<0x{byte:02X}>"))),
                ),
            }
        }
    }

    fn pair(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        symbols: &[Symbol],
        left: usize,
        right: usize,
    ) -> Option<Pair> {
        let (l, r) = (symbols.get(left)?, symbols.get(right)?);
        let id = self.ids.get(text.get(l.start..r.end)?)?;
        Some(Pair {
            score: vocabulary.scores.get(*id as usize).copied().unwrap_or_default(),
            left,
            right,
            len: r.end - l.start,
        })
    }
}
