//! From a reply's text to one JSON value.

pub use crate::engine::runaway::is_runaway;

/// Finds the one JSON value of a reply: the whole text, one fenced block, or the only object or array
/// in prose.
///
/// Returns compact JSON text; numbers and keys stay spelled as they came, raw control characters
/// inside strings (some servers' grammars let them through) are escaped. The error is one line for
/// the model and the user.
pub fn extract(text: &str) -> Result<String, String> {
    let text = after_thoughts(text.trim_start_matches('\u{feff}')).trim_matches(WHITE);
    if text.is_empty() {
        return Err("the reply is empty".to_owned());
    }
    let whole = match scan(text) {
        Ok((value, rest)) if rest.trim_start_matches(WHITE).is_empty() => return Ok(value),
        Ok(_) => None,
        Err(failure) => Some(failure),
    };
    if let [value] = fenced(text).as_mut_slice() {
        return Ok(std::mem::take(value));
    }
    match in_prose(text).as_mut_slice() {
        [value] => Ok(std::mem::take(value)),
        [] => match whole {
            Some(failure) if text.starts_with(['{', '[']) => Err(format!(
                "not valid JSON: {} at character {}",
                failure.expected,
                text.get(..failure.at).unwrap_or(text).chars().count() + 1
            )),
            _ => Err("there is no JSON value in the reply".to_owned()),
        },
        values => Err(format!(
            "there are {} JSON values in the reply where one was expected",
            values.len()
        )),
    }
}

/// JSON's white space.
const WHITE: [char; 4] = [' ', '\t', '\n', '\r'];

/// Drops a leading `<think>…</think>`: thoughts are full of half-made JSON.
fn after_thoughts(text: &str) -> &str {
    if !text.trim_start().starts_with("<think>") {
        return text;
    }
    text.split_once("</think>").map_or(text, |(_, rest)| rest)
}

/// The values of the fenced blocks that hold exactly one value.
fn fenced(text: &str) -> Vec<String> {
    let mut values = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("```") {
        // The info string ends with the line; `json` may also be followed by the value at once.
        let block = after.trim_start_matches(|c: char| c.is_ascii_alphanumeric());
        let block = block.trim_start_matches(WHITE);
        match scan(block) {
            // The value is read first: its strings may hold fences.
            Ok((value, tail)) => {
                let tail = tail.trim_start_matches(WHITE);
                if tail.is_empty() || tail.starts_with("```") {
                    values.push(value);
                }
                rest = tail.strip_prefix("```").unwrap_or(tail);
            }
            Err(_) => rest = after.split_once("```").map_or("", |(_, rest)| rest),
        }
    }
    values
}

/// Every object and array in a text, outermost ones only.
fn in_prose(text: &str) -> Vec<String> {
    let mut values = Vec::new();
    let mut rest = text;
    while let Some(at) = memchr::memchr2(b'{', b'[', rest.as_bytes()) {
        let Some(from) = rest.get(at..) else { break };
        match scan(from) {
            Ok((value, tail)) => {
                values.push(value);
                rest = tail;
            }
            // Go on where it broke, not one bracket further: the inside of a broken object is no
            // reply, and the time stays linear.
            Err(failure) => rest = from.get(failure.at.max(1)..).unwrap_or_default(),
        }
    }
    values
}

/// Where and why a text is not JSON.
#[derive(Debug)]
struct Failure {
    at: usize,
    expected: &'static str,
}

/// What may stand next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Value,
    ValueOrEnd,
    KeyOrEnd,
    Key,
    CommaOrEnd,
}

/// Reads one JSON value from the start of a text: its compact form and what follows it.
///
/// No recursion: nesting costs one byte a level, so no reply can exhaust the stack.
fn scan(text: &str) -> Result<(String, &str), Failure> {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len().min(1024));
    let mut open: Vec<u8> = Vec::new();
    let mut next = Next::Value;
    let mut at = 0;
    loop {
        while matches!(bytes.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            at += 1;
        }
        let byte = bytes.get(at).copied();
        let fail = |expected| Err(Failure { at, expected });
        match (next, byte) {
            (Next::ValueOrEnd | Next::CommaOrEnd, Some(b']')) if open.last() == Some(&b'[') => {
                out.push(']');
                open.pop();
                at += 1;
                next = Next::CommaOrEnd;
            }
            (Next::KeyOrEnd | Next::CommaOrEnd, Some(b'}')) if open.last() == Some(&b'{') => {
                out.push('}');
                open.pop();
                at += 1;
                next = Next::CommaOrEnd;
            }
            (Next::CommaOrEnd, Some(b',')) => {
                out.push(',');
                at += 1;
                next = if open.last() == Some(&b'{') {
                    Next::Key
                } else {
                    Next::Value
                };
            }
            (Next::CommaOrEnd, _) => {
                return fail(if open.last() == Some(&b'{') {
                    "expected `,` or `}`"
                } else {
                    "expected `,` or `]`"
                });
            }
            (Next::Key | Next::KeyOrEnd, Some(b'"')) => {
                at = string(text, at, &mut out)?;
                while matches!(bytes.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
                    at += 1;
                }
                if bytes.get(at) != Some(&b':') {
                    return Err(Failure {
                        at,
                        expected: "expected `:`",
                    });
                }
                out.push(':');
                at += 1;
                next = Next::Value;
            }
            (Next::Key | Next::KeyOrEnd, _) => return fail("expected a key in double quotes"),
            (Next::Value | Next::ValueOrEnd, Some(bracket @ (b'{' | b'['))) => {
                out.push(char::from(bracket));
                open.push(bracket);
                at += 1;
                next = if bracket == b'{' {
                    Next::KeyOrEnd
                } else {
                    Next::ValueOrEnd
                };
            }
            (Next::Value | Next::ValueOrEnd, Some(b'"')) => {
                at = string(text, at, &mut out)?;
                next = Next::CommaOrEnd;
            }
            (Next::Value | Next::ValueOrEnd, _) => {
                let len = word(bytes.get(at..).unwrap_or_default());
                let token = text.get(at..at + len).unwrap_or_default();
                if !matches!(token, "true" | "false" | "null") && !is_number(token) {
                    return fail("expected a JSON value");
                }
                out.push_str(token);
                at += len;
                next = Next::CommaOrEnd;
            }
        }
        if next == Next::CommaOrEnd && open.is_empty() {
            return Ok((out, text.get(at..).unwrap_or_default()));
        }
    }
}

/// Copies the string at `at`, its raw control characters escaped; where it ends.
fn string(text: &str, at: usize, out: &mut String) -> Result<usize, Failure> {
    let bytes = text.as_bytes();
    out.push('"');
    let mut from = at + 1;
    let mut here = from;
    loop {
        let Some(byte) = bytes.get(here).copied() else {
            return Err(Failure {
                at: here,
                expected: "the text ends inside a string",
            });
        };
        match byte {
            b'"' => {
                out.push_str(text.get(from..=here).unwrap_or_default());
                return Ok(here + 1);
            }
            b'\\' => {
                here += match bytes.get(here + 1) {
                    Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
                    Some(b'u')
                        if bytes
                            .get(here + 2..here + 6)
                            .is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) =>
                    {
                        6
                    }
                    _ => {
                        return Err(Failure {
                            at: here,
                            expected: "a bad escape in a string",
                        });
                    }
                };
            }
            0x00..=0x1f => {
                out.push_str(text.get(from..here).unwrap_or_default());
                match byte {
                    b'\n' => out.push_str("\\n"),
                    b'\r' => out.push_str("\\r"),
                    b'\t' => out.push_str("\\t"),
                    _ => out.push_str(&format!("\\u{byte:04x}")),
                }
                here += 1;
                from = here;
            }
            _ => here += 1,
        }
    }
}

/// The length of the literal or number at the start.
fn word(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .position(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'+' | b'-' | b'.'))
        .unwrap_or(bytes.len())
}

/// JSON's number grammar.
fn is_number(token: &str) -> bool {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let rest = token.strip_prefix('-').unwrap_or(token);
    let whole = digits(rest);
    if whole == 0 || (whole > 1 && rest.starts_with('0')) {
        return false;
    }
    let mut rest = rest.get(whole..).unwrap_or_default();
    if let Some(fraction) = rest.strip_prefix('.') {
        let len = digits(fraction);
        if len == 0 {
            return false;
        }
        rest = fraction.get(len..).unwrap_or_default();
    }
    if let Some(exponent) = rest.strip_prefix(['e', 'E']) {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        return !exponent.is_empty() && digits(exponent) == exponent.len();
    }
    rest.is_empty()
}
