//! What the terminal can show, and what the user wants to see of it.

use std::env::var_os;
use std::io::IsTerminal;

use console::{measure_text_width, truncate_str};

/// Colours mean something; a word or a sign beside them says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tint {
    /// Done.
    Green,
    /// Waiting.
    Yellow,
    /// Failed.
    Red,
    /// Under way.
    Cyan,
    /// Of less weight.
    Dim,
}

/// How screens are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// With colours.
    pub color: bool,
    /// With characters beyond ASCII.
    pub unicode: bool,
    /// With emoji.
    pub icons: bool,
    /// Branches shown of each group; none shows all.
    pub max_branches: Option<usize>,
}

impl Style {
    /// `text` in a colour, where there are colours.
    pub fn paint(self, tint: Tint, text: &str) -> String {
        if !self.color || text.is_empty() {
            return text.to_owned();
        }
        let code = match tint {
            Tint::Green => "32",
            Tint::Yellow => "33",
            Tint::Red => "31",
            Tint::Cyan => "36",
            Tint::Dim => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// What stands between phrases.
    pub fn dot(self) -> &'static str {
        if self.unicode { " · " } else { " | " }
    }

    /// What stands for something left out.
    pub fn dots(self) -> &'static str {
        if self.unicode { "…" } else { "..." }
    }

    /// What stands for a number that nobody knows.
    pub fn dash(self) -> &'static str {
        if self.unicode { "–" } else { "-" }
    }

    /// `text` cut to a width in columns.
    pub fn cut(self, text: &str, width: usize) -> String {
        truncate_str(text, width, self.dots()).into_owned()
    }

    /// `text` cut or filled to a width, at the right or the left.
    pub fn fit(self, text: &str, width: usize, to_the_right: bool) -> String {
        let text = self.cut(text, width);
        let space = " ".repeat(width.saturating_sub(measure_text_width(&text)));
        if to_the_right {
            space + &text
        } else {
            text + &space
        }
    }

    /// `text` with the signs that this terminal can show. Letters of the user's stay; what the terminal
    /// makes of them is its own affair.
    pub fn spelled(self, text: &str) -> String {
        if self.unicode {
            return text.to_owned();
        }
        let signs = [
            ("├── ", "|-- "),
            ("└── ", "`-- "),
            ("│", "|"),
            ("…", "..."),
            ("·", "|"),
            ("–", "-"),
            ("±", "+-"),
            ("µ", "u"),
        ];
        signs
            .iter()
            .fold(text.to_owned(), |text, (sign, plain)| text.replace(sign, plain))
    }
}

/// True when stderr is a terminal on which lines can be drawn again. Developer logs go to stderr between
/// our lines and would tear them.
pub fn can_draw() -> bool {
    let is_dumb = var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
    std::io::stderr().is_terminal() && !is_dumb && var_os("CHAINETTE_LOG").is_none()
}

/// True when the locale is one of UTF-8: the first of LC_ALL, LC_CTYPE and LANG that says anything counts.
pub fn speaks_unicode() -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .filter_map(var_os)
        .find(|locale| !locale.is_empty());
    locale.is_some_and(|locale| {
        let locale = locale.to_string_lossy().to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}
