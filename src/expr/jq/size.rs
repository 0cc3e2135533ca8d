//! How deep a jq program nests: jaq reads, compiles and drops it by recursion, which has no bound of its own.

use std::io;

use jaq_core::load::Lexer;
use jaq_core::load::lex::{Error, StrPart, Tok, Token};

use crate::expr::ExprError;

/// Brackets within brackets.
const MAX_NESTING: usize = 50;

/// Operators that depend on one another, `a | b | c`, over all levels of brackets.
const MAX_OPERATORS: usize = 4000;

/// The longest program, in bytes, that is read on the stack that is there: it has at most half as many operators.
const SHORT: usize = 500;

/// Enough for [`MAX_OPERATORS`] in a build that is not optimised; only what is used of it is ever touched.
const STACK: usize = 256 << 20;

/// Does what goes down the syntax tree of a program, where the stack is deep enough for it.
///
/// # Errors
/// There is no room for another thread.
pub(super) fn with_room<T: Send>(source: &str, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    if source.len() <= SHORT {
        return Ok(work());
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, work)?;
        thread.join().map_err(|panic| std::panic::resume_unwind(panic))
    })
}

/// The tokens of a program, or its own errors; an error where it is beyond the limits.
#[expect(clippy::type_complexity, reason = "the lexer's own result within ours")]
pub(super) fn lex(source: &str) -> Result<Result<Vec<Token<&str>>, Vec<Error<&str>>>, ExprError> {
    if let Some(at) = too_nested(source) {
        return Err(ExprError {
            message: format!("the program nests more than {MAX_NESTING} brackets"),
            span: Some(at..at + 1),
        });
    }
    let tokens = Lexer::new(source).lex();
    if let Ok(tokens) = &tokens
        && operators(tokens, false) > MAX_OPERATORS
    {
        return Err(ExprError {
            message: format!("the program chains more than {MAX_OPERATORS} operators"),
            span: Some(0..0),
        });
    }
    Ok(tokens)
}

/// Where the brackets are too many: a scan without recursion that knows texts and comments as the lexer does.
fn too_nested(source: &str) -> Option<usize> {
    // Each `(`, `[`, `{`, and each `"` that is open.
    let mut open: Vec<u8> = Vec::new();
    let mut bytes = source.bytes().enumerate().peekable();
    while let Some((at, byte)) = bytes.next() {
        let in_text = open.last() == Some(&b'"');
        match byte {
            b'"' if in_text => drop(open.pop()),
            b'\\' if in_text => {
                if let Some((_, b'(')) = bytes.next() {
                    open.push(b'(');
                }
            }
            _ if in_text => {}
            b'#' => {
                // A comment ends at a line end without an odd number of backslashes before it.
                let mut backslashes = 0_usize;
                for (_, byte) in bytes.by_ref() {
                    match byte {
                        b'\n' if backslashes.is_multiple_of(2) => break,
                        b'\\' => backslashes += 1,
                        b'\r' => {}
                        _ => backslashes = 0,
                    }
                }
            }
            b'"' | b'(' | b'[' | b'{' => open.push(byte),
            b')' | b']' | b'}' => drop(open.pop()),
            _ => {}
        }
        if open.len() > MAX_NESTING {
            return Some(at);
        }
    }
    None
}

/// Words that nest as operators do.
const OPERATORS: [&str; 11] = [
    "if", "elif", "try", "def", "reduce", "foreach", "label", "as", "and", "or", "catch",
];

/// How deep the syntax tree of these tokens can be: their operators, and the deepest brackets.
fn operators(tokens: &[Token<&str>], in_object: bool) -> usize {
    let (mut most, mut own, mut inner) = (0_usize, 0_usize, 0_usize);
    let mut fields = 0;
    // The operators around each definition that is open.
    let mut around: Vec<usize> = Vec::new();
    for Token(text, token) in tokens {
        match token {
            // Definitions, arguments and fields have nothing to do with one another, but a definition and a
            // field is one more level for what stands behind it.
            Tok::Sym if *text == ";" || (in_object && *text == ",") => {
                most = most.max(own + inner);
                own = match *text {
                    ";" => around.pop().map_or(0, |own| own + 1),
                    _ => {
                        fields += 1;
                        fields
                    }
                };
                inner = 0;
            }
            // `.a.b.c` is one path.
            Tok::Sym if text.starts_with('.') => {}
            Tok::Sym => own += 1,
            Tok::Word => {
                if *text == "def" {
                    around.push(own);
                }
                own += usize::from(OPERATORS.contains(text));
            }
            Tok::Block(tokens) => inner = inner.max(1 + operators(tokens, text.starts_with('{'))),
            Tok::Str(parts) => {
                for part in parts {
                    if let StrPart::Term(term) = part {
                        inner = inner.max(1 + operators(std::slice::from_ref(term), false));
                    }
                }
            }
            Tok::Var | Tok::Fmt | Tok::Num => {}
        }
    }
    most.max(own + inner)
}
