//! `chainette run`.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;

use super::args::{Format, Global, MaxErrors, RunArgs};
use super::printer::Printer;
use super::screen::{columns, report, style, tree};
use super::{Exit, compile, explain_error};
use crate::engine::broker::Broker;
use crate::event::{Event, Recent, RunState, RunStats};
use crate::plan::explain;
use crate::report::{summary, thousands};
use crate::run::{Dispatcher, ErrorLimit, Existing, Outcome, RunConfig, RunError, run as run_plan};

/// Runs a chain.
pub(crate) fn run(args: &RunArgs, global: &Global, printer: Printer) -> Exit {
    let compiled = match compile(&args.chain, printer) {
        Ok(compiled) => compiled,
        Err(exit) => return exit,
    };
    if let Some(message) = unusable_input(&args.inputs) {
        printer.error(&format!("error: {message}"));
        return Exit::Usage;
    }
    let Format::Jsonl = args.format;
    let plan = Arc::new(compiled.plan);
    if std::io::stderr().is_terminal() {
        printer.notice(&tree(&plan, global, columns().unwrap_or(80)));
    }
    let dispatcher = match Dispatcher::start(vec![report(global)]) {
        Ok(dispatcher) => dispatcher,
        Err(error) => {
            printer.error(&format!("error: cannot start a thread: {error}"));
            return Exit::Failed;
        }
    };
    let events = dispatcher.events();
    let broker = match Broker::new(&plan.engines, events.clone()) {
        Ok(broker) => Arc::new(broker.with_recent(global.verbose.then(Recent::default))),
        Err(error) => {
            printer.error(&explain_error(&error));
            return Exit::Usage;
        }
    };
    let config = RunConfig {
        batch_size: args.batch_size.map_or(plan.batch_size, |rows| rows as usize),
        graph: explain::graph_json(&plan),
        chain_digest: compiled.digest,
        plan,
        inputs: vec![args.inputs.clone()],
        out: args.out.clone(),
        existing: match (args.overwrite, args.resume) {
            (true, _) => Existing::Overwrite,
            (false, true) => Existing::Keep,
            (false, false) => Existing::Same,
        },
        max_rows: args.max_lines_per_file,
        flattened: !args.no_flattened,
        limit: args.limit,
        ledger: !args.no_ledger,
        errors: match (args.fail_fast, args.max_errors) {
            (true, _) => ErrorLimit::FailFast,
            (false, Some(MaxErrors::Rows(rows))) => ErrorLimit::Rows(rows),
            (false, Some(MaxErrors::Percent(percent))) => ErrorLimit::Percent(percent),
            (false, None) => ErrorLimit::Hopeless,
        },
        signals: true,
    };
    match run_plan(config, broker, &events, &dispatcher.status) {
        Err(error) => {
            // Nothing was run; the reports need not hear of it.
            printer.error(&explain_error(&error));
            if error.is_usage() {
                Exit::Usage
            } else {
                Exit::Failed
            }
        }
        Ok(outcome) => {
            dispatcher.finish(Event::RunFinished(outcome.stats.clone()));
            finish(args, global, &outcome, printer)
        }
    }
}

/// Says how the run ended.
fn finish(args: &RunArgs, global: &Global, outcome: &Outcome, printer: Printer) -> Exit {
    let RunStats {
        state, rows_failed, ..
    } = outcome.stats;
    let out = args.out.display();
    if outcome.already_finished {
        printer.notice(&format!(
            "{out} is finished already: nothing to do (--overwrite starts again)"
        ));
        return if rows_failed > 0 {
            Exit::RowErrors
        } else {
            Exit::Done
        };
    }
    let Outcome {
        stats, counts, times, ..
    } = outcome;
    printer.notice(&summary(stats, counts, times, style(global), columns()));
    match (state, &outcome.stopped) {
        (RunState::Finished, _) if rows_failed > 0 => {
            let rows = thousands(rows_failed);
            let are = if rows_failed == 1 { "row is" } else { "rows are" };
            printer.notice(&format!("{rows} {are} in {out}/errors/"));
            Exit::RowErrors
        }
        (RunState::Finished, _) => Exit::Done,
        (RunState::Interrupted, stopped) => {
            if let Some(error) = stopped {
                printer.error(&explain_error(error));
            }
            if outcome.unwritten > 0 {
                let rows = thousands(outcome.unwritten);
                printer.notice(&format!(
                    "{rows} more rows are done and not written yet; the next run writes them without asking again"
                ));
            }
            printer.notice("interrupted: the same command goes on where this stopped");
            Exit::Interrupted
        }
        (_, stopped) => {
            let cause = stopped
                .as_ref()
                .map_or_else(|| "error: the run stopped".into(), |error| explain_error(error));
            let hint = match stopped {
                Some(RunError::TooManyErrors { .. } | RunError::Damaged { .. }) => "",
                _ => "\n  the same command goes on where this stopped",
            };
            printer.error(&format!("{cause}{hint}"));
            Exit::Failed
        }
    }
}

/// Why a path cannot be read as rows.
fn unusable_input(path: &Path) -> Option<String> {
    let shown = path.display();
    match std::fs::metadata(path) {
        Err(error) => return Some(format!("cannot read {shown}: {error}")),
        Ok(meta) if meta.is_dir() => {
            return Some(format!("{shown} is a directory; give a .jsonl or .ndjson file"));
        }
        Ok(_) => {}
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("jsonl" | "ndjson") => std::fs::File::open(path)
            .err()
            .map(|error| format!("cannot read {shown}: {error}")),
        _ => Some(format!(
            "{shown} is none of the kinds this version reads: .jsonl, .ndjson"
        )),
    }
}
