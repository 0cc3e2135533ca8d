//! `chainette run`.

use std::io::{ErrorKind, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;

use super::args::{Format, Global, MaxErrors, RunArgs};
use super::printer::Printer;
use super::screen::{columns, report, style, tree};
use super::{Exit, compile, csv_types, explain_error, turns};
use crate::engine::Stop;
use crate::engine::broker::stage::Stage;
use crate::event::{Event, Recent, RunState, RunStats, are, counted};
use crate::plan::explain;
use crate::report::{summary, thousands};
use crate::row;
use crate::run::{
    Counts, DEFAULT_SPILL, Dispatcher, ErrorLimit, Existing, Moment, Outcome, RunConfig, RunError, Signals,
    run as run_plan,
};
use crate::sink;
use crate::source::{SourceError, open_input};

/// Runs a chain.
pub(crate) fn run(args: &RunArgs, global: &Global, printer: Printer) -> Exit {
    let signals = match Signals::catch(move |moment| leave(moment, printer)) {
        Ok(signals) => signals,
        Err(error) => {
            printer.error(&format!("error: cannot catch signals: {error}"));
            return Exit::Failed;
        }
    };
    let compiled = match compile(&args.chain, printer) {
        Ok(compiled) => compiled,
        Err(exit) => return exit,
    };
    let input = match open_input(&args.inputs, &args.out) {
        Ok(opened) => opened,
        Err(error) => {
            printer.error(&explain_error(&error));
            return Exit::Usage;
        }
    };
    if let Some(message) = passed_over(&input.ignored) {
        printer.warning(&message);
    }
    let plan = Arc::new(compiled.plan);
    if let Some(message) = csv_types::misfits(&plan, input.csv.as_deref()) {
        printer.warning(&message);
    }
    let engines = match super::engine::planned(&plan.engines, &plan.resources, printer) {
        Ok(engines) => engines,
        Err(exit) => return exit,
    };
    let sets = turns::sets(&plan, &engines);
    if args.dry_run {
        return super::dry_run::dry_run(args, global, (plan, &sets), &*input.input, printer);
    }
    if std::io::stderr().is_terminal() {
        printer.notice(&tree(&plan, &sets, global, columns().unwrap_or(80)));
    }
    let dispatcher = match Dispatcher::start(vec![report(global)]) {
        Ok(dispatcher) => dispatcher,
        Err(error) => {
            printer.error(&format!("error: cannot start a thread: {error}"));
            return Exit::Failed;
        }
    };
    let events = dispatcher.events();
    let broker = match engines.broker(&plan.engines, events.clone()) {
        Ok(broker) => {
            let recent = global.verbose.then(Recent::default);
            let stage = (!sets.is_empty()).then(|| Arc::new(Stage::new(sets)));
            Arc::new(broker.with_recent(recent).with_stage(stage))
        }
        Err(error) => {
            printer.error(&explain_error(&error));
            return Exit::Usage;
        }
    };
    let config = RunConfig {
        batch_size: args.batch_size.map_or(plan.batch_size, |rows| rows as usize),
        graph: explain::graph_json(&plan),
        chain_digest: compiled.digest,
        input: input.input,
        out: args.out.clone(),
        existing: match (args.overwrite, args.resume) {
            (true, _) => Existing::Overwrite,
            (false, true) => Existing::Keep,
            (false, false) => Existing::Same,
        },
        retry_errors: args.retry_errors,
        format: match args.format {
            Format::Jsonl => sink::Format::Jsonl,
            Format::Parquet => sink::Format::Parquet,
        },
        max_rows: args.max_lines_per_file,
        flattened: !args.no_flattened,
        limit: args.limit,
        ledger: !args.no_ledger,
        spill: plan.resources.spill.unwrap_or(DEFAULT_SPILL),
        errors: match (args.fail_fast, args.max_errors) {
            (true, _) => ErrorLimit::FailFast,
            (false, Some(MaxErrors::Rows(rows))) => ErrorLimit::Rows(rows),
            (false, Some(MaxErrors::Percent(percent))) => ErrorLimit::Percent(percent),
            (false, None) => ErrorLimit::Hopeless,
        },
        signals: Some(signals),
        plan,
    };
    match run_plan(config, broker, &events, &dispatcher.status) {
        Err(error) => {
            // Nothing was run; the reports need not hear of it.
            let usage = error.is_usage();
            let hint = if usage { "" } else { again(&error) };
            printer.error(&format!("{}{hint}", explain_error(&error)));
            if usage { Exit::Usage } else { Exit::Failed }
        }
        Ok(outcome) => {
            dispatcher.finish(Event::RunFinished(outcome.stats.clone()));
            finish(args, global, &outcome, printer)
        }
    }
}

/// Ends the program at a signal that no run is there to hear.
fn leave(moment: Moment, printer: Printer) {
    printer.warning(match moment {
        Moment::Before => "interrupted before any row was taken; the same command starts again",
        Moment::Late => "interrupted: the same command goes on where this stopped",
    });
    std::process::exit(Exit::Interrupted as i32);
}

/// Says how the run ended.
fn finish(args: &RunArgs, global: &Global, outcome: &Outcome, printer: Printer) -> Exit {
    let RunStats {
        state,
        rows_in,
        rows_failed,
        ..
    } = outcome.stats;
    // Without a slash at its end.
    let out: PathBuf = args.out.components().collect();
    let out = out.display();
    if outcome.already_finished {
        let hint = match failed_by_engine(&outcome.counts) {
            true => "--retry-errors asks its failed rows again, --overwrite starts again",
            false => "--overwrite starts again",
        };
        printer.notice(&format!("{out} is finished already: nothing to do ({hint})"));
        return Exit::Done;
    }
    let Outcome {
        stats, counts, times, ..
    } = outcome;
    printer.notice(&summary(stats, counts, times, style(global), columns()));
    match (state, &outcome.stopped) {
        (RunState::Finished, _) if rows_failed > 0 => {
            let (rows, are) = (counted(rows_failed, "row"), are(rows_failed));
            let hint = match failed_by_engine(counts) {
                true if !args.no_ledger => "; the same command with --retry-errors asks them again",
                _ => "",
            };
            printer.notice(&format!("{rows} {are} in {out}/errors/{hint}"));
            Exit::RowErrors
        }
        (RunState::Finished, _) => {
            if rows_in == 0 {
                printer.notice(&format!("{} holds no rows", args.inputs.display()));
            }
            Exit::Done
        }
        (RunState::Interrupted, stopped) => {
            if let Some(error) = stopped {
                printer.error(&explain_error(error));
            }
            unwritten(outcome, printer);
            printer.notice("interrupted: the same command goes on where this stopped");
            Exit::Interrupted
        }
        (_, stopped) => {
            unwritten(outcome, printer);
            let cause = stopped
                .as_ref()
                .map_or_else(|| "error: the run stopped".into(), |error| explain_error(error));
            let hint = match stopped {
                // These say themselves what to do.
                Some(
                    RunError::TooManyErrors { .. }
                    | RunError::Damaged { .. }
                    | RunError::Gone { .. }
                    | RunError::Source(SourceError::Unreadable { .. } | SourceError::OtherStream { .. }),
                ) => "",
                Some(RunError::Stop(Stop::Engine { .. })) => {
                    "\n  once that is mended the same command goes on where this stopped; a chain that was changed needs --resume"
                }
                Some(error) => again(error),
                None => GOES_ON,
            };
            printer.error(&format!("{cause}{hint}"));
            Exit::Failed
        }
    }
}

/// Says what is on file beyond what the outputs show.
fn unwritten(outcome: &Outcome, printer: Printer) {
    if outcome.unwritten > 0 {
        let (rows, are) = (counted(outcome.unwritten, "more row"), are(outcome.unwritten));
        printer.notice(&format!(
            "{rows} {are} done and not written yet; the next run writes what is done without asking again"
        ));
    }
}

const GOES_ON: &str = "\n  the same command goes on where this stopped";

/// What to do about an error that stopped a run, so that it can go on.
fn again(error: &RunError) -> &'static str {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    let mut kinds = causes.filter_map(|cause| {
        let shared = cause
            .downcast_ref::<Arc<std::io::Error>>()
            .map(|shared| &**shared);
        Some(shared.or_else(|| cause.downcast_ref())?.kind())
    });
    if kinds.any(|kind| matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded)) {
        "\n  make room there; the same command then goes on where this stopped"
    } else {
        GOES_ON
    }
}

/// Whether rows failed by what an engine did: it may not do that again, as an Apply will.
fn failed_by_engine(counts: &Counts) -> bool {
    let mut kinds = row::ErrorKind::ALL.into_iter().filter(|kind| kind.is_of_engine());
    kinds.any(|kind| counts.kinds.contains_key(kind.as_str()))
}

/// Says what lies beside the input and is not read.
fn passed_over(ignored: &[PathBuf]) -> Option<String> {
    const SHOWN: usize = 3;
    let mut shown: Vec<String> = ignored
        .iter()
        .take(SHOWN)
        .map(|path| path.display().to_string())
        .collect();
    if let Some(more) = ignored.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        shown.push(format!("and {} more", thousands(more as u64)));
    }
    (!ignored.is_empty()).then(|| format!("not read, as their kind is unknown: {}", shown.join(", ")))
}
