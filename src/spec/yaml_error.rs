//! What a YAML parser complains about, in words for somebody who wrote a chain.

use std::ops::Range;

use crate::event::counted;
use serde_saphyr::granit_parser::ErrorKind;

/// A syntax error, explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Bytes of the file.
    pub(super) at: Range<usize>,
    /// What is wrong.
    pub(super) message: String,
    /// What to do about it.
    pub(super) help: String,
}

/// Explains an error of the parser that was noticed at byte `at`.
pub(super) fn explain(kind: &ErrorKind, text: &str, at: usize) -> Fault {
    let fault = |at: Range<usize>, message: &str, help: &str| Fault {
        at,
        message: message.to_owned(),
        help: help.to_owned(),
    };
    let (here, line) = (spot(text, at), line_at(text, at));
    let mut line = line;
    let mut blanks = indentation(text, &line);
    if matches!(kind, ErrorKind::TabInPlainScalar) && !blanks.contains('\t') {
        // The text above would go on in the line that the tab begins.
        line = line_at(text, (line.end + 1).min(text.len()));
        blanks = indentation(text, &line);
    }
    if blanks.contains('\t') && !matches!(kind, ErrorKind::UnclosedQuotedScalar) {
        let tab = line.start + blanks.find('\t').unwrap_or_default();
        return fault(tab..tab + 1, "a tab cannot indent YAML", "indent with spaces");
    }
    match kind {
        ErrorKind::UnclosedQuotedScalar => {
            let opened = opening_quote(text, at);
            let mark = text.get(opened.clone()).unwrap_or("\"");
            fault(
                opened,
                "this quote is never closed",
                &format!(
                    "close it with `{mark}`; a quote inside the text is written {}",
                    match mark {
                        "'" => "`''`",
                        _ => "`\\\"`",
                    }
                ),
            )
        }
        ErrorKind::InvalidQuotedScalarIndent => {
            let before = line.start.saturating_sub(1);
            fault(
                opening_quote(text, before),
                "this quote is not closed before a line that is indented less",
                "close it, or indent the text's further lines",
            )
        }
        ErrorKind::TabInIndentation | ErrorKind::TabInBlockIndentation | ErrorKind::TabNotAllowed => {
            fault(here, "a tab cannot stand here", "use spaces")
        }
        ErrorKind::UnknownAnchor => fault(
            here,
            "`*` at the start of a value names an anchor, and there is none of this name",
            "put quotes around a text that starts with `*`, or write the anchor (`&name`) before it",
        ),
        ErrorKind::MappingValueNotAllowed => colon(text, at, &line),
        ErrorKind::UnexpectedCharacter { character } => Fault {
            at: here,
            message: format!(
                "a text cannot start with `{}` in YAML",
                character.escape_default()
            ),
            help: "put quotes around the text".to_owned(),
        },
        ErrorKind::UnknownQuotedScalarEscape
        | ErrorKind::InvalidQuotedScalarHexEscape
        | ErrorKind::InvalidUnicodeEscape => {
            let slash = text.get(line.start..at).and_then(|l| l.rfind('\\'));
            let at = slash.map_or(here, |n| line.start + n..(line.start + n + 2).min(text.len()));
            fault(
                at,
                "an escape that YAML does not know",
                "write `\\\\` for a backslash, or use single quotes, where `\\` is an ordinary character",
            )
        }
        ErrorKind::UnclosedFlowCollection { open } => Fault {
            at: opening(text, *open, at),
            message: format!("this `{open}` is never closed"),
            help: format!(
                "close it with `{}`; put quotes around a text that holds brackets",
                closing(*open)
            ),
        },
        ErrorKind::UnexpectedEofFlowMapping
        | ErrorKind::UnexpectedEofFlowSequence
        | ErrorKind::UnexpectedEofImplicitFlowMapping => fault(
            here,
            "the file ends inside a bracket",
            "close each `{` with `}` and each `[` with `]`",
        ),
        ErrorKind::MismatchedFlowCollectionEnd { .. } | ErrorKind::MisplacedFlowCollectionEnd => fault(
            here,
            "this bracket closes nothing that is open",
            "check the brackets before it; put quotes around a text that holds brackets",
        ),
        ErrorKind::ExpectedFlowMappingSeparator | ErrorKind::ExpectedFlowSequenceSeparator => fault(
            here,
            "expected `,` or the closing bracket",
            "put a comma between the values; put quotes around a text that holds `,`, `[`, `]`, `{` or `}`",
        ),
        ErrorKind::ExpectedBlockMappingKey
        | ErrorKind::ExpectedBlockSequenceEntry
        | ErrorKind::InvalidIndentation
        | ErrorKind::InvalidBlockScalarIndent
        | ErrorKind::InvalidFlowScalarIndent
        | ErrorKind::BlockSequenceEntryNotAllowed
        | ErrorKind::MappingKeyNotAllowed => indented(text, at, &line),
        ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey => fault(
            trimmed(text, &line),
            "this line is neither `key: value` nor a list item `- …`",
            "write `: ` behind the key, or indent the line to continue the text above",
        ),
        ErrorKind::InvalidTrailingSingleQuotedScalar | ErrorKind::InvalidTrailingDoubleQuotedScalar => fault(
            here,
            "text behind a closing quote",
            "put the whole value into quotes; a quote inside is written `\\\"` or `''`",
        ),
        ErrorKind::DirectiveDisallowed
        | ErrorKind::MissingDirectiveName
        | ErrorKind::InvalidDirectiveName => fault(
            here,
            "a value that starts with `%` is a directive of YAML",
            "put quotes around the text",
        ),
        ErrorKind::RecursionLimitExceeded => fault(here, "nested too deeply", "write it flatter"),
        other => Fault {
            at: here,
            message: format!("not YAML: {other}"),
            help: "put quotes around text with special characters, and indent with spaces".to_owned(),
        },
    }
}

/// Explains a key that is no string, which begins at byte `at`.
pub(super) fn bad_key(text: &str, at: usize, is_map: bool) -> Fault {
    let line = line_at(text, at);
    let before = at
        .checked_sub(1)
        .filter(|b| text.as_bytes().get(*b) == Some(&b'{'));
    let Some(open) = before.filter(|_| is_map) else {
        return Fault {
            at: spot(text, at),
            message: "a key must be a string".to_owned(),
            help: "put quotes around it".to_owned(),
        };
    };
    let rest = text.get(open..line.end).unwrap_or_default().trim_end();
    let close = rest.find("}}").map_or(rest.len(), |n| n + 2);
    let template = rest.get(..close).unwrap_or(rest);
    let head = text.get(line.start..open).unwrap_or_default();
    let key = head.trim_start().trim_start_matches("- ");
    // In a flow mapping the value ends before the line does.
    let value = if head.contains(['{', '[']) { template } else { rest };
    let quote = if value.contains('"') { '\'' } else { '"' };
    let key = key.rsplit([',', '{', '[']).next().unwrap_or(key).trim_start();
    Fault {
        at: open..open + template.len(),
        message: "an unquoted `{{` begins a YAML mapping, not a template".to_owned(),
        help: if value.contains(quote) || !key.ends_with(": ") {
            format!("put quotes around the text: {quote}{template}{quote}")
        } else {
            format!("put quotes around the text: `{key}{quote}{value}{quote}`")
        },
    }
}

/// `key: text: more`.
fn colon(text: &str, at: usize, line: &Range<usize>) -> Fault {
    let whole = text.get(line.clone()).unwrap_or_default().trim();
    let first = whole.trim_start_matches("- ").split_once(": ");
    if let Some((key, value)) = first
        && value.contains(": ")
        && !value.starts_with(['"', '\''])
    {
        let quote = if value.contains('"') { '\'' } else { '"' };
        return Fault {
            at: spot(text, at),
            message: "a second `: ` in one line: a text with `: ` in it needs quotes".to_owned(),
            help: if value.contains(quote) {
                format!("write the text below `{key}: |`, indented, or put quotes around it")
            } else {
                format!("put quotes around the text: `{key}: {quote}{value}{quote}`")
            },
        };
    }
    indented(text, at, line)
}

/// A line that stands at a column where nothing can stand.
fn indented(text: &str, at: usize, line: &Range<usize>) -> Fault {
    let column = indentation(text, line).chars().count();
    let above: Vec<usize> = text
        .get(..line.start)
        .unwrap_or_default()
        .lines()
        .rev()
        .filter(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#'))
        .take(1)
        .map(|l| l.len() - l.trim_start_matches([' ', '-']).len())
        .collect();
    let help = match above.first() {
        Some(above) if *above != column => format!(
            "this line begins with {}, the keys of the line above with {above}; keys of one mapping begin in the same column",
            counted(column as u64, "space")
        ),
        _ => "keys of one mapping and items of one list begin in the same column".to_owned(),
    };
    Fault {
        at: if at >= line.start && at < line.end {
            spot(text, at)
        } else {
            trimmed(text, line)
        },
        message: "wrong indentation, or a missing `-` or `:`".to_owned(),
        help,
    }
}

/// The character at a byte.
fn spot(text: &str, at: usize) -> Range<usize> {
    let at = (0..=at.min(text.len()))
        .rev()
        .find(|n| text.is_char_boundary(*n))
        .unwrap_or(0);
    let len = text
        .get(at..)
        .and_then(|t| t.chars().next())
        .filter(|c| *c != '\n')
        .map_or(0, char::len_utf8);
    at..at + len
}

/// The line that a byte stands on, without its line break.
fn line_at(text: &str, at: usize) -> Range<usize> {
    let bytes = text.as_bytes();
    let before = bytes.get(..at).unwrap_or(bytes);
    let start = memchr::memrchr(b'\n', before).map_or(0, |n| n + 1);
    let rest = bytes.get(start..).unwrap_or_default();
    start..start + memchr::memchr(b'\n', rest).unwrap_or(rest.len())
}

/// A line without the white space around it.
fn trimmed(text: &str, line: &Range<usize>) -> Range<usize> {
    let start = line.start + indentation(text, line).len();
    let len = text.get(start..line.end).unwrap_or_default().trim_end().len();
    start..start + len
}

/// The white space at the start of a line.
fn indentation<'t>(text: &'t str, line: &Range<usize>) -> &'t str {
    let line = text.get(line.clone()).unwrap_or_default();
    let rest = line.trim_start_matches([' ', '\t']);
    line.get(..line.len() - rest.len()).unwrap_or_default()
}

/// The quote that was opened and not closed before byte `at`: the first on its line that stands
/// where a value can begin.
fn opening_quote(text: &str, at: usize) -> Range<usize> {
    let found = spot(text, at);
    let is_quote = |n: usize| matches!(text.as_bytes().get(n), Some(b'"' | b'\''));
    if is_quote(found.start) {
        return found;
    }
    let before = text.get(..found.start).unwrap_or_default();
    let opens = |n: &usize| {
        is_quote(*n)
            && matches!(
                before.as_bytes().get(n.wrapping_sub(1)),
                None | Some(b' ' | b'\n' | b'[' | b'{' | b',' | b'\t')
            )
    };
    match (0..before.len()).rev().find(opens) {
        Some(n) => n..n + 1,
        None => found,
    }
}

/// The last bracket of this kind before byte `at` that no other closes.
fn opening(text: &str, open: char, at: usize) -> Range<usize> {
    let found = spot(text, at);
    if text.get(found.clone()).is_some_and(|t| t.starts_with(open)) {
        return found;
    }
    let mut depth = 0_usize;
    for (n, c) in text
        .get(..at.min(text.len()))
        .unwrap_or_default()
        .char_indices()
        .rev()
    {
        if c == closing(open) {
            depth += 1;
        } else if c == open {
            if depth == 0 {
                return n..n + 1;
            }
            depth -= 1;
        }
    }
    found
}

fn closing(open: char) -> char {
    if open == '[' { ']' } else { '}' }
}
