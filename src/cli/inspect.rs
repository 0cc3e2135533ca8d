//! `chainette inspect`.

use super::args::{Global, InspectArgs, InspectFormat};
use super::check_rows::check_rows;
use super::{Exit, compile, printer::Printer, turns};
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
    let plan = &compiled.plan;
    let sets = turns::expected(plan);
    let text = match args.format {
        InspectFormat::Tree => explain::tree_in_turns(plan, tree_options(global), &sets),
        InspectFormat::Dot => explain::dot_in_turns(plan, &sets),
        InspectFormat::Mermaid => explain::mermaid_in_turns(plan, &sets),
        InspectFormat::Json => {
            let mut graph = explain::graph_json(plan);
            // Where memory is short is a machine's business: not what graph.json says of the chain.
            if let (false, Some(graph)) = (sets.is_empty(), graph.as_object_mut()) {
                graph.insert("switches".into(), explain::switches_json(plan, &sets));
            }
            format!("{graph:#}\n")
        }
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
