//! `chainette diff`.

use super::args::{DiffArgs, Global};
use super::printer::is_colourful;
use super::{Exit, explain_error, printer::Printer};
use crate::audit::{self, AuditError, Diff, Outputs};
use crate::report::{self, Style, speaks_unicode};

/// The width of the report where no terminal has another one.
const COLUMNS: usize = 80;

/// No report is narrower.
const NARROWEST: usize = 40;

/// Compares two finished runs. Nothing is written.
pub(crate) fn diff(args: &DiffArgs, global: &Global, printer: Printer) -> Exit {
    let diff = match compare(args) {
        Ok(diff) => diff,
        Err(error) => {
            printer.error(&explain_error(&error));
            return Exit::Usage;
        }
    };
    let text = if args.json {
        match serde_json::to_string_pretty(&diff) {
            Ok(text) => text + "\n",
            Err(error) => {
                printer.error(&format!("error: cannot print the differences: {error}"));
                return Exit::Usage;
            }
        }
    } else {
        let size = console::Term::stdout().size_checked();
        // A terminal may say that it has no columns.
        let columns = size
            .map(|(_, columns)| usize::from(columns))
            .filter(|columns| *columns > 0);
        let width = columns.map_or(COLUMNS, |columns| columns.max(NARROWEST));
        report::diff(&diff, style(global), width)
    };
    match printer.result(&text) {
        // As `diff` has it: 1 says that something differs, 2 that there was trouble.
        Exit::Done if diff.same => Exit::Done,
        Exit::Done => Exit::Failed,
        _ => Exit::Usage,
    }
}

fn compare(args: &DiffArgs) -> Result<Diff, AuditError> {
    let (a, b) = (Outputs::open(&args.out_a)?, Outputs::open(&args.out_b)?);
    audit::diff(&a, &b, args.sample)
}

/// How the report looks on stdout. A file is written in UTF-8 whatever the locale.
fn style(global: &Global) -> Style {
    let stdout = std::io::stdout();
    Style {
        color: is_colourful(global.color, &stdout),
        unicode: !console::Term::stdout().is_term() || speaks_unicode(),
        ..Style::default()
    }
}
