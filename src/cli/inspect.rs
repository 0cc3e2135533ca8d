//! `chainette inspect`.

use super::args::{Global, InspectArgs, InspectFormat};
use super::check_rows::check_rows;
use super::{Exit, compile, printer::Printer};
use crate::plan::explain;

/// Shows the chain; no run, no network.
pub(crate) fn inspect(args: &InspectArgs, global: &Global, printer: Printer) -> Exit {
    let compiled = match compile(&args.chain, printer) {
        Ok(compiled) => compiled,
        Err(exit) => return exit,
    };
    if let Some(input) = &args.input {
        if matches!(args.format, InspectFormat::Dot | InspectFormat::Mermaid) {
            printer.error("error: --input checks rows, which is shown as a tree or as JSON\n  leave out --format, or --input");
            return Exit::Usage;
        }
        return check_rows(args, input, compiled.plan, printer);
    }
    let text = match args.format {
        InspectFormat::Tree => explain::tree(&compiled.plan, tree_options(global)),
        InspectFormat::Dot => explain::dot(&compiled.plan),
        InspectFormat::Mermaid => explain::mermaid(&compiled.plan),
        InspectFormat::Json => format!("{:#}\n", explain::graph_json(&compiled.plan)),
    };
    printer.result(&text)
}

/// How the tree is to look.
pub(super) fn tree_options(global: &Global) -> explain::TreeOptions {
    explain::TreeOptions {
        no_icons: global.no_icons,
        max_branches: global.max_branches,
        width: console::Term::stdout()
            .size_checked()
            .map(|(_, columns)| usize::from(columns)),
        ..explain::TreeOptions::default()
    }
}
