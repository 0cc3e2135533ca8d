//! Where the bytes of a YAML string stand in the file: under quotes, escapes, folding and indentation.

use std::ops::Range;

use super::problem::{Sources, Span};
use super::yaml::Text;

/// A string of the chain with the place of each of its bytes.
#[derive(Clone, Debug)]
pub struct Places {
    whole: Span,
    /// For each byte of the string, the bytes of the source that spell it; none where that is not known.
    map: Option<Vec<Range<usize>>>,
}

impl Text {
    /// Follows the string through its source, once for any number of questions.
    pub fn places(&self, sources: &Sources) -> Places {
        Places {
            whole: self.span,
            map: sources.slice(self.span).and_then(|s| align(s, &self.value)),
        }
    }
}

impl Places {
    /// Where a byte range of the string stands; a range at the string's end stands behind its last
    /// character. The whole string where the source does not spell it out.
    pub fn span(&self, range: Range<usize>) -> Span {
        let Some(map) = &self.map else {
            return self.whole;
        };
        let found = match (map.get(range.start), map.last()) {
            (Some(first), _) => {
                let last = range.end.saturating_sub(1).max(range.start);
                let end = map.get(last).or(map.last()).map_or(first.end, |l| l.end);
                Some((first.start, end.max(first.start)))
            }
            (None, Some(last)) => Some((last.end, last.end)),
            (None, None) => None,
        };
        found.map_or(self.whole, |(start, end)| self.whole.within(start, end))
    }
}

/// For each byte of `value`, the source bytes that spell it.
///
/// White space is matched loosely, which covers folding and indentation; everything else must be
/// there in order.
fn align(source: &str, value: &str) -> Option<Vec<Range<usize>>> {
    let bytes = source.as_bytes();
    let (mut at, quote) = match bytes.first()? {
        quote @ (b'"' | b'\'') => (1, Some(*quote)),
        b'|' | b'>' => (memchr::memchr(b'\n', bytes)? + 1, None),
        _ => (0, None),
    };
    let mut map: Vec<Range<usize>> = Vec::with_capacity(value.len());
    let blank = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_whitespace);
    for char in value.chars() {
        if quote == Some(b'"') {
            // A line break behind a backslash is none.
            while let Some(skip) = continued(bytes, at) {
                at += skip;
            }
        }
        if char.is_ascii_whitespace() && !escaped(bytes, at, quote) {
            if blank(at) {
                map.push(at..at + 1);
                at += 1;
            } else {
                let before = at.saturating_sub(1);
                map.push(before..at);
            }
            continue;
        }
        while blank(at) {
            at += 1;
            if quote == Some(b'"') {
                while let Some(skip) = continued(bytes, at) {
                    at += skip;
                }
            }
        }
        let len = spelled(source, at, char, quote)?;
        // A place is a whole spelling, so that the caret never stands inside a character.
        map.extend(std::iter::repeat_n(at..at + len, char.len_utf8()));
        at += len;
    }
    Some(map)
}

/// True at an escape other than an escaped line break.
fn escaped(bytes: &[u8], at: usize, quote: Option<u8>) -> bool {
    quote == Some(b'"') && bytes.get(at) == Some(&b'\\')
}

/// The length of a backslash at the end of a line, with the line break and the next line's indentation.
fn continued(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = bytes.get(at..)?.strip_prefix(b"\\")?;
    let rest = rest.strip_prefix(b"\r").unwrap_or(rest).strip_prefix(b"\n")?;
    let blanks = rest.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    Some(bytes.len() - at - rest.len() + blanks)
}

/// The length of what spells `char` at this place.
fn spelled(source: &str, at: usize, char: char, quote: Option<u8>) -> Option<usize> {
    let rest = source.get(at..)?;
    match quote {
        Some(b'"') if rest.starts_with('\\') => {
            let kind = rest.get(1..)?.chars().next()?;
            Some(match kind {
                // A character beyond 16 bits may be spelled as two halves.
                'u' if char.len_utf16() == 2 => 12,
                'x' => 4,
                'u' => 6,
                'U' => 10,
                other => 1 + other.len_utf8(),
            })
        }
        Some(b'\'') if char == '\'' => rest.starts_with("''").then_some(2),
        _ => rest.starts_with(char).then(|| char.len_utf8()),
    }
}
