//! The report: every problem of a chain, each with its line and a caret.

use std::fmt;

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, Severity, SourceCode,
    ThemeCharacters, ThemeStyles,
};

use crate::event::counted;
use crate::spec::{Code, Problem, Problems, Sources};

/// How a report is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// ASCII without colour (`NO_COLOR`, files, logs).
    #[default]
    Plain,
    /// Colour and box characters.
    Color,
}

/// Problems drawn in full; more than these are counted. A chain with so many has one cause.
const MAX_DRAWN: usize = 100;

/// Lines longer than this are not drawn: the caret would stand screens away.
const MAX_LINE: usize = 4096;
/// Longest message drawn, in bytes: it may quote a name of any length.
const MAX_MESSAGE: usize = 1000;

/// All problems of a chain.
#[derive(Clone, Default)]
pub struct Report {
    problems: Vec<Problem>,
    sources: Sources,
}

impl Report {
    pub(crate) fn new(problems: Problems, sources: Sources) -> Self {
        Self {
            problems: problems.into_sorted(),
            sources,
        }
    }

    /// The problems in the order of their places.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// True when there is nothing to report.
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// Draws every problem, and a last line that counts them.
    pub fn render(&self, style: Style) -> String {
        let theme = match style {
            Style::Plain => GraphicalTheme {
                characters: ThemeCharacters::ascii(),
                styles: ThemeStyles::none(),
            },
            Style::Color => GraphicalTheme::unicode(),
        };
        let handler = GraphicalReportHandler::new_themed(theme)
            .with_links(false)
            .with_width(100);
        let mut out = String::new();
        for problem in self.problems.iter().take(MAX_DRAWN) {
            let shown = self.shown(problem);
            if handler.render_report(&mut out, &shown).is_err() {
                out.push_str(&problem.message);
                out.push('\n');
            }
            out.push('\n');
        }
        if let Some(more) = self.problems.len().checked_sub(MAX_DRAWN).filter(|n| *n > 0) {
            out.push_str(&format!("... and {more} more, once these are mended\n\n"));
        }
        out.push_str(&self.count());
        out.push('\n');
        // miette pads empty lines of help; trailing blanks help nobody.
        let lines: Vec<&str> = out.lines().map(str::trim_end).collect();
        let mut out = lines.join("\n");
        out.push('\n');
        out
    }

    /// A problem as it is drawn.
    fn shown<'p>(&self, problem: &'p Problem) -> Shown<'p> {
        let mut message = problem.message.clone();
        if message.len() > MAX_MESSAGE {
            let end = (0..MAX_MESSAGE).rev().find(|at| message.is_char_boundary(*at));
            message.truncate(end.unwrap_or_default());
            message.push('…');
        }
        let mut source = None;
        if let Some((span, file)) = problem.span.and_then(|s| Some((s, self.sources.get(s.file)?))) {
            let path = file.path.display().to_string();
            let (line, column) = file.position(span.start);
            // One line of context is drawn on each side.
            let mut near = file.text.lines().skip(line.saturating_sub(2)).take(3);
            if near.any(|line| line.len() > MAX_LINE) {
                message.push_str(&format!(" ({path}:{line}:{column})"));
            } else {
                source = Some(NamedSource::new(path, file.text.clone()));
            }
        }
        Shown {
            problem,
            message,
            source,
        }
    }

    /// The problems as facts, for `--json-logs`: the event's name and its fields.
    pub fn events(&self) -> impl Iterator<Item = (&'static str, serde_json::Value)> {
        self.problems.iter().take(MAX_DRAWN).map(|problem| {
            let name = if problem.code.is_warning() {
                "warning"
            } else {
                "error"
            };
            let place = problem.span.and_then(|span| {
                let file = self.sources.get(span.file)?;
                let (line, column) = file.position(span.start);
                Some((file.path.display().to_string(), line, column))
            });
            let (file, line, column) = match place {
                Some((file, line, column)) => (Some(file), Some(line), Some(column)),
                None => (None, None, None),
            };
            let mut fields = serde_json::json!({
                "code": problem.code.as_str(),
                "message": problem.message,
                "file": file,
                "line": line,
                "column": column,
                "help": problem.help,
            });
            if let Some(map) = fields.as_object_mut() {
                map.retain(|_, value| !value.is_null());
            }
            (name, fields)
        })
    }

    /// "2 errors, 1 warning".
    fn count(&self) -> String {
        let warnings = self.problems.iter().filter(|p| p.code.is_warning()).count();
        let errors = self.problems.len() - warnings;
        let plural = |n: usize, what: &str| counted(n as u64, what);
        match (errors, warnings) {
            (_, 0) => plural(errors, "error"),
            (0, _) => plural(warnings, "warning"),
            _ => format!("{}, {}", plural(errors, "error"), plural(warnings, "warning")),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(Style::Plain))
    }
}

/// As it is shown: what a program prints whose `main` returns it.
impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{}", self.render(Style::Plain))
    }
}

impl std::error::Error for Report {}

/// A problem with its source, as miette wants it.
#[derive(Debug)]
struct Shown<'a> {
    problem: &'a Problem,
    message: String,
    source: Option<NamedSource<String>>,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Shown<'_> {}

impl Diagnostic for Shown<'_> {
    fn code<'b>(&'b self) -> Option<Box<dyn fmt::Display + 'b>> {
        Some(Box::new(self.problem.code.as_str()))
    }

    fn severity(&self) -> Option<Severity> {
        Some(if self.problem.code.is_warning() {
            Severity::Warning
        } else {
            Severity::Error
        })
    }

    fn help<'b>(&'b self) -> Option<Box<dyn fmt::Display + 'b>> {
        self.problem
            .help
            .as_ref()
            .map(|h| Box::new(h) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_ref().map(|s| s as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let span = self.problem.span?;
        let text = self.source.as_ref()?.inner();
        // One line is enough to find a prompt or a mapping that spans many.
        let shown = text.get(span.start..span.end).unwrap_or_default();
        let len = shown.find('\n').unwrap_or(shown.len());
        let label = label(self.problem.code);
        let place = LabeledSpan::new(Some(label.to_owned()), span.start.min(text.len()), len);
        Some(Box::new(std::iter::once(place)))
    }
}

/// A word or two beside the caret.
fn label(code: Code) -> &'static str {
    match code {
        Code::UnknownKey => "unknown key",
        Code::MissingKey => "incomplete",
        Code::DuplicateId => "again here",
        Code::UndefinedName => "not defined",
        Code::NotVisible => "not visible here",
        Code::UnguardedNull => "can be null",
        Code::JoinCardinality => "more than one row",
        Code::UnknownEngine | Code::UnknownModel | Code::UnknownClosure => "unknown",
        Code::ReservedName => "reserved",
        Code::Unsupported => "not supported",
        Code::Unused => "unused",
        _ => "here",
    }
}
