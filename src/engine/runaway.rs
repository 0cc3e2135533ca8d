//! Replies that run in white space or repetition: the same verdict on a reply that is whole and on one
//! that is still coming.

/// White space at the end of a reply that was cut, in characters.
const BLANK: usize = 64;
/// Repetition at the end of a reply that was cut, in characters.
const REPEATED: usize = 512;
/// The longest unit of a repetition, in characters.
const LONGEST_UNIT: usize = 64;
/// A reply that is not at its end must run this many times as far before it is given up.
const PATIENCE: usize = 4;
/// A growing reply is looked at after every so many characters: where it is cut depends on its text
/// alone, not on the pieces it came in.
const STRIDE: usize = 256;

/// True when the end of a cut reply is white space (64 characters or more), or a unit of up to 64
/// characters repeated over 512 characters or more.
pub fn is_runaway(text: &str) -> bool {
    runs_at_end(text, BLANK, REPEATED)
}

/// True when a text ends in `blank` characters of white space or in `repeated` of repetition.
fn runs_at_end(text: &str, blank: usize, repeated: usize) -> bool {
    let mut spaces = text.chars().rev().take_while(|c| c.is_whitespace());
    if spaces.nth(blank - 1).is_some() {
        return true;
    }
    // Nearly every text fails on the short tail; the long one is then not collected.
    [2 * LONGEST_UNIT, repeated].into_iter().all(|length| {
        let tail: Vec<char> = text.chars().rev().take(length).collect();
        let repeats = |unit: usize| tail.iter().zip(tail.iter().skip(unit)).all(|(a, b)| a == b);
        tail.len() == length && (1..=LONGEST_UNIT).any(repeats)
    })
}

/// Watches a growing text for 256 characters of white space, or a unit of up to 64 characters repeated
/// over 2,048; the work is linear in the text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch {
    /// Bytes looked at.
    seen: usize,
    /// Characters in them.
    chars: usize,
}

impl Watch {
    /// Looks at what was added to the text; where to cut it, in bytes, if it runs.
    pub fn look(&mut self, text: &str) -> Option<usize> {
        let start = self.seen;
        for (at, c) in text.get(start..)?.char_indices() {
            self.chars += 1;
            if self.chars.is_multiple_of(STRIDE) {
                let end = start + at + c.len_utf8();
                if runs_at_end(text.get(..end)?, PATIENCE * BLANK, PATIENCE * REPEATED) {
                    return Some(end);
                }
            }
        }
        self.seen = text.len();
        None
    }
}
