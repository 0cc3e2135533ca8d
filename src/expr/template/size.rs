//! How deep a template can nest: its tree is built, walked and dropped by recursion, and minijinja bounds brackets only.

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;

use super::exprs::range;
use crate::expr::ExprError;

/// Operators, dots, filters and brackets of one tag.
const MAX_OPERATORS: usize = 150;

/// The `elif` of a whole template.
const MAX_ELIFS: usize = 50;

/// Refuses a template, or an expression, that is beyond the limits.
pub(super) fn check(source: &str, is_expression: bool) -> Result<(), ExprError> {
    let (mut operators, mut elifs) = (0, 0);
    // A wrong token is told by the parser.
    let tokens = tokenize(source, is_expression, SyntaxConfig::default()).map_while(Result::ok);
    for (token, span) in tokens {
        match token {
            Token::VariableStart | Token::BlockStart => operators = 0,
            Token::Ident("elif") => elifs += 1,
            Token::Ident("and" | "or" | "not" | "is" | "in" | "if" | "else")
            | Token::Plus
            | Token::Minus
            | Token::Mul
            | Token::Div
            | Token::FloorDiv
            | Token::Pow
            | Token::Mod
            | Token::Dot
            | Token::Tilde
            | Token::Pipe
            | Token::Eq
            | Token::Ne
            | Token::Gt
            | Token::Gte
            | Token::Lt
            | Token::Lte
            | Token::BracketOpen
            | Token::ParenOpen
            | Token::BraceOpen => operators += 1,
            _ => {}
        }
        let message = if operators > MAX_OPERATORS {
            format!("an expression has more than {MAX_OPERATORS} operators, dots, filters and brackets")
        } else if elifs > MAX_ELIFS {
            format!("the template has more than {MAX_ELIFS} `elif`")
        } else {
            continue;
        };
        return Err(ExprError {
            message,
            span: Some(range(span)),
        });
    }
    Ok(())
}
